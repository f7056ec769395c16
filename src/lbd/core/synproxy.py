"""Answering SYNs in the place of the backends, so that a flood of them makes no connections.

The SYN of a protected service is not tracked, and nftables answers it with a cookie. Who answers that is
real: the kernel then sends a SYN of its own to the service, which leaves through the output hook, where it is
balanced like any other. Packets of protected services that no connection knows, and that would make one
(nf_conntrack_tcp_loose), go to the synproxy as well, which drops what has no cookie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbd.core.draft import Draft
from lbd.core.settings import Family
from lbd.core.shape import Reading, common
from lbd.core.state import Chain, Hook, Map
from lbd.core.virtual import Virtual

# Numbers of linux/netfilter_ipv4.h (NF_IP_PRI_RAW, NF_IP_PRI_FILTER).
RAW, FILTER = -300, 0

# The largest segment of Ethernet without and with IPv6. No other option: with timestamps the kernel answers
# the backend with an echo of the wrong one, and connections stand for 1.7 s (Linux 6.18); and without them
# a cookie has no room for window scaling and SACK.
MSS: dict[Family, int] = {4: 1460, 6: 1440}


def add(draft: Draft, virtual: Virtual, reading: Reading) -> None:
    """Protect a listen address."""
    types = reading.shape.types(reading.family, reading.shape.slot_fields)
    protected = Map(types, (), 0, interval=reading.shape.interval)
    draft.put(_set(reading), protected, virtual.where.slot_key)


def _set(reading: Reading) -> str:
    return f"protected{common(reading)}"


def passed(draft: Draft, used: Sequence[Reading]) -> Iterator[str]:
    """Give the rules of prerouting that leave what is protected to the synproxy."""
    for reading in used:
        if _set(reading) in draft.maps:
            yield f"{reading.slot_key('tcp')} @{_set(reading)} accept"


def chains(draft: Draft, used: Sequence[Reading]) -> None:
    """Have the chains of the synproxy where a service asks for it."""
    protecting = [reading for reading in used if _set(reading) in draft.maps]
    if not protecting:
        return
    begin, answer = [], []
    for reading in protecting:
        match = f"{reading.slot_key('tcp')} @{_set(reading)}"
        begin.append(f"{match} tcp flags & (fin|syn|rst|ack) == syn notrack")
        state = "ct state invalid,untracked,new"
        answer.append(f"{match} {state} synproxy mss {MSS[reading.family]}")
    draft.chains["syn_raw"] = Chain(tuple(begin), Hook("filter", "prerouting", RAW))
    # Where a listen address is the director's, and where it is only routed to it.
    draft.chains["syn_input"] = Chain(tuple(answer), Hook("filter", "input", FILTER))
    draft.chains["syn_forward"] = Chain(tuple(answer), Hook("filter", "forward", FILTER))
