"""How replies find their way back through the director: what postrouting does with the source address.

With `gateway` the client's address stays, except where the reply would not come back: when the client is a
neighbour of the backend it goes to, which would answer it directly, and when it is the director itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

from lbd.core.draft import Draft
from lbd.core.persistence import Sticky
from lbd.core.settings import Ports
from lbd.core.shape import TRANSPORT, TRANSPORTS, Reading, address_type, common, ip, verdicts
from lbd.core.state import Map
from lbd.core.virtual import Virtual


def add(draft: Draft, virtual: Virtual, reading: Reading, salt: int) -> None:
    """Say what becomes of the source address of connections to `virtual`, and what is noted of them."""
    leaving, chain = _Leaving(reading), _chain(draft, virtual, reading)
    for key in leaving.keys(virtual):
        draft.put(f"return_path{common(reading)}", leaving.map, key, f"goto {chain}")
    if virtual.service.persistence and virtual.stay:
        sticky = Sticky(virtual, reading, salt)
        sticky.declare(draft)
        form = "" if virtual.form == "port" else "host_"
        name = f"record_{virtual.where.kind}_{form}{sticky.timeout}_{sticky.name}"
        chain = draft.chain(name, sticky.record)
        for key in leaving.keys(virtual):
            draft.put(f"record{common(reading)}", leaving.map, key, f"jump {chain}")


@dataclass(frozen=True, slots=True)
class _Leaving:
    """How a connection is told on its way out: by where it came to.

    Of every address of the director nothing is left then but a port and an interface, and somebody else's
    DNAT may have those, too: so there the backend it goes to is part of the key.
    """

    reading: Reading

    @property
    def wild(self) -> bool:
        return not self.reading.shape.address and not self.reading.shape.mark

    @property
    def key(self) -> str:
        to = f" . {ip(self.reading.family)} daddr" if self.wild else ""
        return f"{self.reading.original}{to}"

    @property
    def map(self) -> Map:
        plain = verdicts(self.reading)
        return replace(plain, key=(*plain.key, address_type(self.reading.family))) if self.wild else plain

    def keys(self, virtual: Virtual) -> list[str]:
        if not self.wild:
            return [virtual.where.key]
        backends = sorted({target.address for target in (*virtual.targets, *virtual.stay)})
        return [f"{virtual.where.key} . {address}" for address in backends]


def _chain(draft: Draft, virtual: Virtual, reading: Reading) -> str:
    """Return the chain that translates the source; those of one return path share it."""
    path, family = virtual.service.return_path, reading.family
    if path.kind == "masquerade":
        return draft.chain("masqueraded", "masquerade")
    if path.kind == "snat":
        addresses = [str(address) for address in path.of(family)]
        if len(addresses) == 1 and path.ports is None:
            types = reading.shape.types(family, reading.shape.fields)
            snat = Map(types, (address_type(family),), 0, interval=reading.shape.interval)
            draft.put(f"snat{common(reading)}", snat, virtual.where.key, addresses[0])
            match = f"{TRANSPORT} " if "port" in reading.shape.fields else ""
            rule = f"{match}snat {ip(family)} to {reading.original} map @snat{common(reading)}"
            return draft.chain(f"snat_one{common(reading)}", rule)
        return _pool(draft, addresses, path.ports, reading)
    # What was an answer to the director itself, or to a neighbour, would not pass the director again.
    draft.declare(f"neighbours{family}", Map((address_type(family), "ifname"), (), 0, interval=True))
    return draft.chain(
        f"gateway{family}",
        "fib saddr type local masquerade",
        f"{ip(family)} saddr . oifname @neighbours{family} masquerade",
    )


def _pool(draft: Draft, addresses: list[str], ports: Ports | None, reading: Reading) -> str:
    """Return the chain of several source addresses, or of source ports: one for each such pool."""
    words = f"{' '.join(addresses)} {ports}"
    family = ip(reading.family)
    source, colon = addresses[0], ":"
    if len(addresses) > 1:
        # By the client's address, so that one client has one address.
        slots = ", ".join(f"{i} : {address}" for i, address in enumerate(addresses))
        source, colon = f"jhash {family} saddr mod {len(addresses)} seed 0x1 map {{ {slots} }}", " : "
    rules = [f"snat {family} to {source}"]
    if ports is not None:
        before = f"[{source}]" if ":" in addresses[0] and len(addresses) == 1 else source
        each = f"snat {family} to {before}{colon}{ports}"
        rules = [*(f"meta l4proto {protocol} {each}" for protocol in TRANSPORTS), *rules]
    return draft.chain(f"snat_{blake2b(words.encode(), digest_size=6).hexdigest()}", *rules)


def rules(draft: Draft, reading: Reading) -> list[str]:
    """Return what becomes of translated connections of a reading: what is noted, then the source address."""
    match = f"{reading.original_guard}{_Leaving(reading).key} vmap"
    names = (f"record{common(reading)}", f"return_path{common(reading)}")
    return [f"{match} @{name}" for name in names if name in draft.maps]
