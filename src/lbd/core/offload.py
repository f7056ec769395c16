"""Connections that leave the path of the rules once they are established: a flowtable between interfaces.

The kernel then carries their packets from interface to interface where they enter, with the addresses that
NAT gave them, and asks no chain any more. It has to be told of each connection, by one packet that is
forwarded; when it is not used for a while, or ends, the packets pass the rules again.

    flowtable offloaded { hook ingress priority 0; devices = { "eth0", "eth1" }; }
    offload4     { 192.168.18.58 . tcp . 8888 }
    chain offload_forward { type filter hook forward priority 0;
        meta l4proto { tcp, udp } ct status dnat ct state established
            ct original ip daddr . meta l4proto . ct original proto-dst @offload4 flow add @offloaded }
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbd.core.draft import Draft
from lbd.core.observed import Observed, wants_offload
from lbd.core.settings import Config
from lbd.core.shape import Reading, common
from lbd.core.state import FLOWTABLE, Chain, Hook, Map
from lbd.core.virtual import Virtual
from lbd.core.words import many

# Number of linux/netfilter_ipv4.h (NF_IP_PRI_FILTER).
FILTER = 0

# What a flowtable carries: others have no ports, or too many addresses.
CARRIED = "meta l4proto { tcp, udp }"


def devices(config: Config, observed: Observed) -> tuple[str, ...]:
    """Return the interfaces of the flowtable, in order; none when there is to be no flowtable."""
    if not (observed.offloads and wants_offload(config)):
        return ()
    return tuple(sorted(observed.interfaces.intersection(config.director.devices)))


def lacking(config: Config, observed: Observed) -> Iterator[str]:
    """Say what is not offloaded although the file asks for it, and why."""
    names = [f'"{service.name}"' for service in config.services if service.offload]
    if not names:
        return
    if not observed.offloads:
        whose = f"service {names[0]}"
        if len(names) > 1:
            whose += f" and of {many(len(names) - 1, 'other')}"
        yield f"this kernel has no flowtables (NF_FLOW_TABLE): connections of {whose} are not offloaded"
        return
    for device in sorted({*config.director.devices} - observed.interfaces):
        yield f"interface {device} does not exist: connections through it are not offloaded"


def add(draft: Draft, virtual: Virtual, reading: Reading) -> None:
    """Offload the connections of a listen address; also when nothing takes new ones, for those it has."""
    if virtual.where.protocol != "sctp":
        types = reading.shape.types(reading.family, reading.shape.fields)
        draft.put(_set(reading), Map(types, (), 0, interval=reading.shape.interval), virtual.where.key)


def _set(reading: Reading) -> str:
    return f"offload{common(reading)}"


def chains(draft: Draft, used: Sequence[Reading], between: tuple[str, ...]) -> None:
    """Have the flowtable and the chain that fills it, where a service asks for it."""
    rules = []
    for reading in used:
        if _set(reading) in draft.maps:
            family = "" if reading.shape.address else f"meta nfproto ipv{reading.family} "
            match = f"{CARRIED} {family}ct status dnat ct state established"
            rules.append(f"{match} {reading.original} @{_set(reading)} flow add @{FLOWTABLE}")
    if rules:
        draft.flowtables[FLOWTABLE] = between
        draft.chains["offload_forward"] = Chain(tuple(rules), Hook("filter", "forward", FILTER))
