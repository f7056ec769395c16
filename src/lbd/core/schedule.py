"""Which backend a new connection gets: slots in maps, and the chain of a class that picks one.

All services that pick alike share a chain: a class is protocol, family, shape, what the slots hold, how a
slot is picked and among how many. The chain ends in a drop, since a slot that is not there (a packet between
two generations) must not fall through to the director's own ports: dropped, the client tries again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from lbd.core import maglev
from lbd.core.draft import Draft
from lbd.core.persistence import Sticky
from lbd.core.settings import HashField
from lbd.core.shape import Reading, address_type, ip, prefix
from lbd.core.slots import reduce, share
from lbd.core.state import FieldType, Map
from lbd.core.virtual import Form, Target, Virtual

# Least-connections gives out this many slots by weight and by what is open: a share can be off by 1/503.
BALANCED_SLOTS = 251

# How the fields of a hash are called in the name of a class, in the order in which they are hashed.
LETTERS: Mapping[HashField, str] = {
    "source-address": "sa",
    "destination-address": "da",
    "source-port": "sp",
    "destination-port": "dp",
}
DEFAULT_HASH: tuple[HashField, ...] = ("source-address", "source-port")


@dataclass(frozen=True, slots=True)
class Pick:
    """How a slot is picked: `name` tells it from others, `expression` is nft's; and what the slots are."""

    name: str
    expression: str
    slots: tuple[Target, ...]


def hashed(virtual: Virtual) -> tuple[HashField, ...]:
    """Return the fields that are hashed for a listen address, in the order in which the kernel is told to.

    What is the same for all its connections tells none apart, and IPv6 has no registers to spare for it.
    """
    service, where = virtual.service, virtual.where
    fields = ("source-address",) if service.scheduler == "source-hash" else service.hash
    same: set[HashField] = {"destination-address"} if where.address else set()
    same |= {"destination-port"} if where.ports.single else set()
    asked = tuple(name for name in LETTERS if name in fields)
    return tuple(name for name in asked if name not in same) or asked[:1]


def pick(virtual: Virtual, reading: Reading) -> Pick:
    """Return the slots of a service and how nft picks one."""
    service = virtual.service
    if len(virtual.targets) == 1:
        # A hash modulo 1 is refused by the kernel (ERANGE), and nothing is to be chosen.
        return Pick("one", "numgen inc mod 1", tuple(virtual.targets))
    if service.scheduler in ("maglev", "source-hash"):
        size = service.table_size or maglev.table_size(virtual.total)
        fields = hashed(virtual)
        words = "" if fields == DEFAULT_HASH else "_" + "_".join(LETTERS[name] for name in fields)
        expression = f"jhash {_hash_key(fields, virtual, reading)} mod {size} seed {maglev.SEED:#x}"
        return Pick(f"maglev_{size}{words}", expression, _maglev(virtual.targets, size, virtual.away))
    if service.scheduler == "least-connections":
        # Slots change with what is open: as few of them as can be, hence a maglev table.
        slots = _maglev(virtual.targets, BALANCED_SLOTS, {})
        return Pick(f"random_{len(slots)}", f"numgen random mod {len(slots)}", slots)
    slots = tuple(share(virtual.targets))
    if service.scheduler == "random":
        return Pick(f"random_{len(slots)}", f"numgen random mod {len(slots)}", slots)
    # Turns are counted by the rule, so a service that takes turns needs a rule of its own.
    return Pick(f"turns_{_spelt(virtual)}", f"numgen inc mod {len(slots)}", slots)


def _maglev(targets: Mapping[Target, int], size: int, away: Mapping[Target, int]) -> tuple[Target, ...]:
    by_name = {target.element: target for target in targets}
    # Reduced, since beside a weight of 65,535 one of 1 would get no slot at all.
    weights = {target.element: weight for target, weight in reduce({**away, **targets}).items()}
    return tuple(by_name[name] for name in maglev.table(weights, size, weights.keys() - by_name.keys()))


def _hash_key(fields: tuple[HashField, ...], virtual: Virtual, reading: Reading) -> str:
    family, protocol = ip(reading.family), virtual.where.protocol
    words: dict[HashField, str] = {
        "source-address": f"{family} saddr",
        "destination-address": f"{family} daddr",
        "source-port": f"{protocol} sport",
        "destination-port": f"{protocol} dport",
    }
    return " . ".join(words[name] for name in fields)


def _spelt(virtual: Virtual) -> str:
    """Return what can be part of a chain's name and is of this listen address alone."""
    where = virtual.where
    if where.address and where.ports.single:
        return f"{where.address.replace('.', '_').replace(':', '-')}_{where.ports}"
    return blake2b(where.slot_key.encode(), digest_size=6).hexdigest()


def data(form: Form, reading: Reading) -> tuple[FieldType, ...]:
    """Return the types of what a slot holds."""
    address = address_type(reading.family)
    return (address, "inet_service") if form == "port" else (address,)


def add(draft: Draft, virtual: Virtual, reading: Reading, salt: int) -> str:
    """Put the slots of `virtual` into their maps and return the chain that reads them."""
    form, common, key = virtual.form, virtual.where.kind, reading.slot_key(virtual.where.protocol)
    beginning = f"{virtual.where.slot_key} . " if virtual.where.slot_key else ""
    tail = ""
    if form == "shift":
        tail = f" : {key} map @ports_{common}"
        _shift(draft, virtual, reading)
    where = f"{key} . " if key else ""
    name = f"{common}_{'' if form == 'port' else form + '_'}"
    dnat = f"dnat {ip(reading.family)} to "
    # nft takes a port only behind a match on the protocol, which a key without a port does not imply.
    match = f"meta l4proto {virtual.where.protocol} "
    to = f"{match}{dnat}" if form == "port" and "port" not in reading.shape.fields else dnat
    if virtual.targets:
        chosen = pick(virtual, reading)
        slots = f"{'slots' if form == 'port' else 'hosts'}_{common}"
        shape = _slots_map(virtual, reading, form)
        for i, target in enumerate(chosen.slots):
            draft.put(slots, shape, f"{beginning}{i}", target.element)
        name += chosen.name
        rules = [f"{to}{where}{chosen.expression} map @{slots}{tail}", "drop"]
    else:
        # Those who are with a drained backend stay with it, and there is nobody for others.
        name += f"none_{virtual.service.when_empty}"
        rules = [f"goto refuse_{virtual.service.when_empty}"]
    if virtual.service.persistence:
        sticky = Sticky(virtual, reading, salt)
        sticky.declare(draft)
        name += f"_{sticky.name}"
        rules.insert(0, f"{'' if form == 'host' else match}{dnat}{sticky.lookup}{tail}")
    if pins := pinned(virtual):
        name += "_pinned"
        held = f"{'pins' if form == 'port' else 'pinhosts'}_{common}"
        client = f"{where}{ip(reading.family)} saddr"
        shape = _pins_map(virtual, reading, form)
        for client_prefix, target in pins.items():
            draft.put(held, shape, f"{beginning}{client_prefix}", target.element)
        rules.insert(0, f"{to}{client} map @{held}{tail}")
    return draft.chain(name, *rules)


def _slots_map(virtual: Virtual, reading: Reading, form: Form) -> Map:
    protocol = virtual.where.protocol
    fields = reading.shape.slot_fields
    packet = reading.typeof(protocol)
    target = f"{ip(reading.family)} daddr" + (f" . {protocol} dport" if form == "port" else "")
    typeof = f"{packet} . numgen inc mod 65536" if packet else "numgen inc mod 65536"
    return Map(
        (*reading.shape.types(reading.family, fields), "index"),
        data(form, reading),
        0,
        counter=True,
        interval=reading.shape.interval,
        typeof=f"{typeof} : {target}",
    )


def _pins_map(virtual: Virtual, reading: Reading, form: Form) -> Map:
    types = reading.shape.types(reading.family, reading.shape.slot_fields)
    protocol, family = virtual.where.protocol, ip(reading.family)
    packet = reading.typeof(protocol)
    client = f"{packet} . {family} saddr" if packet else f"{family} saddr"
    target = f"{family} daddr" + (f" . {protocol} dport" if form == "port" else "")
    return Map(
        (*types, address_type(reading.family)),
        data(form, reading),
        0,
        interval=True,
        typeof=f"{client} : {target}",
    )


def pinned(virtual: Virtual) -> dict[str, Target]:
    """Return the pinned clients of the family and where they go, as far as that takes connections."""
    pins: dict[str, Target] = {}
    for pin in virtual.service.pins:
        address = str(pin.backend.address)
        found = next((t for t in virtual.stay if t.address == address and _is_of(pin.backend.ports, t)), None)
        # Behind a sorry server of another form there is no slot that could hold it.
        if found is not None and found.form == virtual.form and pin.client.version == virtual.where.family:
            pins[prefix(pin.client)] = found
    return pins


def _is_of(ports: object, target: Target) -> bool:
    return ports is None or ports == target.ports


def _shift(draft: Draft, virtual: Virtual, reading: Reading) -> None:
    """Say for each port of the range which port it becomes; the same for all backends."""
    ports = next(target.ports for target in (*virtual.targets, *virtual.stay))
    assert ports is not None
    where, fields = virtual.where, reading.shape.slot_fields
    types = reading.shape.types(reading.family, fields)
    shape = Map(types, ("inet_service",), 0)
    for i in range(len(ports)):
        words = [where.address] * ("address" in fields) + [str(where.ports.low + i)]
        draft.put(f"ports_{where.kind}", shape, " . ".join(words), str(ports.low + i))
