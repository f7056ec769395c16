"""What the answer of a name server is worth to a check that asked it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from lbd.core.health import Result
from lbd.core.probes import DnsProbe
from lbd.core.words import cut, printable

# So many of the records that are there are named when the right one is not.
NAMED = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """`code` as the protocol names it ("NXDOMAIN"), and the data of the records of the type asked for."""

    code: str
    records: Sequence[str] = ()
    truncated: bool = False


def judge(probe: DnsProbe, answer: Answer) -> Result:
    """Return whether an answer has the records that are expected, and else what it has."""
    if answer.code != "NOERROR":
        return Result(False, answer.code)
    there = {_plain(record) for record in answer.records}
    missing = [expected for expected in probe.answers if _plain(expected) not in there]
    if there and not missing:
        return Result(True)
    if answer.truncated and not probe.answers:
        return Result(True)  # there is more than fits into a datagram
    but = "the answer is truncated, and " if answer.truncated else ""
    if not there:
        return Result(False, f"{but}no {probe.record} record")
    has = ", ".join(answer.records[:NAMED]) + (", ..." if len(answer.records) > NAMED else "")
    return Result(False, cut(printable(f"{but}has {has}, not {', '.join(missing)}")))


def _plain(text: str) -> str:
    """Return what two ways of writing the same data have in common: 2001:DB8::0:1, name. and "text"."""
    text = text.strip().removesuffix(".").strip('"').lower()
    try:
        return str(ip_address(text))
    except ValueError:
        return text
