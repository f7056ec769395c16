"""How much a service takes: of all clients, and of each.

What all clients share is one limit object for each service, named in a map by its listen addresses. What a
client may do is counted in sets that packets fill, one for each kind of limit. A full set counts nobody
new: a limit protects a service, and must not be a way to close it.
"""

from __future__ import annotations

from hashlib import blake2b

from lbd.core.draft import Draft
from lbd.core.settings import Limits, Rate
from lbd.core.shape import Reading, address_type, common, ip, verdicts
from lbd.core.state import Map
from lbd.core.virtual import Virtual

# How long a client is remembered after its last connection by what counts its connections per second. A
# burst is whole again sooner, unless it is of more than half a minute.
CLIENT_MEMORY = "30s"

# The most clients that are counted, in each set.
MOST_CLIENTS = 65_536


def needed(limits: Limits) -> bool:
    """Tell whether a connection has any limit to pass. A synproxy is passed by packets, not connections."""
    return bool(limits.new or limits.client_new or limits.client_connections)


def add(draft: Draft, virtual: Virtual, reading: Reading, refuse: str) -> None:
    """Put the limits of `virtual` into their maps; beyond them a connection goes to the chain `refuse`."""
    limits, key = virtual.service.limits, virtual.where.key
    if limits.new:
        types = reading.shape.types(reading.family, reading.shape.fields)
        shape = Map(types, "limit", 0, interval=reading.shape.interval)
        # Named by what it is, since nftables takes another rate under a known name, and ignores it.
        name = f"new_{_rate_name(limits.new)}_{_digest(virtual.service.name)}"
        draft.limits[name] = _over(limits.new)
        draft.put(f"limits_{refuse}{common(reading)}", shape, key, name)
    if limits.client_new or limits.client_connections:
        verdict = f"jump {_client_chain(draft, virtual, reading, refuse)}"
        draft.put(f"client_limits{common(reading)}", verdicts(reading), key, verdict)


def rules(draft: Draft, reading: Reading) -> list[str]:
    """Return the rules that look the limits of a reading up."""
    found = [
        f"{reading.guard}limit name {reading.key} map @{name} goto {refuse}"
        for refuse in ("refuse_drop", "refuse_reject")
        if (name := f"limits_{refuse}{common(reading)}") in draft.maps
    ]
    if (name := f"client_limits{common(reading)}") in draft.maps:
        found.append(f"{reading.guard}{reading.key} vmap @{name}")
    return found


def _client_chain(draft: Draft, virtual: Virtual, reading: Reading, refuse: str) -> str:
    """Have the chain that counts a client, and its sets; all services with the same limits share it."""
    limits = virtual.service.limits
    # The ports of a range are one for a client: services with ranges have sets of their own.
    counted = reading.per_client
    own = f"_{_digest(str(virtual.where.ports))}" if counted != reading else ""
    ends = f"{own}{common(reading)}"
    key = f"{counted.key} . {ip(reading.family)} saddr"
    types = (*counted.shape.types(reading.family, counted.shape.fields), address_type(reading.family))
    found, words = [], []
    if limits.client_new:
        name = f"client_new{ends}_{_rate_name(limits.client_new)}"
        draft.declare(name, Map(types, (), MOST_CLIENTS, learned="timeout"))
        counting = f"{key} timeout {CLIENT_MEMORY} limit {_over(limits.client_new)}"
        found.append(f"update @{name} {{ {counting} }} goto {refuse}")
        words.append(_rate_name(limits.client_new))
    if limits.client_connections:
        name = f"client_open{ends}_{limits.client_connections}"
        draft.declare(name, Map(types, (), MOST_CLIENTS, learned="count"))
        counting = f"{key} ct count over {limits.client_connections}"
        found.append(f"add @{name} {{ {counting} }} goto {refuse}")
        words.append(f"open_{limits.client_connections}")
    return draft.chain(f"client{ends}_{'_'.join(words)}_{refuse}", *found)


def _rate_name(rate: Rate) -> str:
    return f"{rate.per_second}_{rate.burst}"


def _over(rate: Rate) -> str:
    return f"rate over {rate.per_second}/second burst {rate.burst} packets"


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=6).hexdigest()
