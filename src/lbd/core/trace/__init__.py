"""Where a packet goes: the rules of our tables followed as the kernel does, without a kernel.

What is followed is the text that nft is sent (text, rule), not what made it, so a mistake in the program
shows. Every number that chance or turns can give is followed: the outcomes have shares, and these add up to
1. A construct that is not known raises ValueError.

Not followed: routing beyond "is it ours" and the interface, forwarding switched off, and replies of tracked
connections, which no rule is asked for.
"""

from __future__ import annotations

from lbd.core.state import Desired
from lbd.core.trace.fields import Packet
from lbd.core.trace.flow import Ending, Facts, Flow, Noted, Outcome, Step
from lbd.core.trace.walk import Walk

__all__ = ["Ending", "Facts", "Noted", "Outcome", "Packet", "Step", "trace"]


def trace(desired: Desired, packet: Packet, facts: Facts | None = None) -> tuple[Outcome, ...]:
    """Return all that may become of a packet. Raises ValueError for a rule that is not understood."""
    facts = facts or Facts()
    flows = [Flow(packet, packet)]
    if desired.ingress is not None:
        flows = list(Walk(desired.ingress, facts).entrance(flows[0]))
    walk = Walk(desired.table, facts)
    return tuple(after.outcome for flow in flows for after in walk.way(flow))
