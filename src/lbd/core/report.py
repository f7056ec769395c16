"""What the journal is told: one entry per thing that happened, made from values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lbd.core import entry
from lbd.core.entry import Entry
from lbd.core.packet import Packet
from lbd.core.plan import Plan
from lbd.core.source import BadFileError
from lbd.core.words import cut, many

# A journal field is for reading: a plan of 40,000 operations is not.
OPERATIONS_SHOWN = 20
# Somebody's loop is a new process each time.
ACTORS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Actor:
    """Who committed a change to our table, as the kernel told it."""

    pid: int
    process: str

    def __str__(self) -> str:
        return f"{self.process or 'unknown'} (pid {self.pid})"


def who(actors: Collection[Actor]) -> str:
    """Return the actors in words."""
    all_of_them = list(dict.fromkeys(actors))
    words = ", ".join(map(str, all_of_them[:ACTORS_SHOWN])) or "unknown"
    more = len(all_of_them) - ACTORS_SHOWN
    return f"{words} and {more} more" if more > 0 else words


def _plan(plan: Plan) -> dict[str, str]:
    lines = plan.lines()
    shown = [cut(line) for line in lines[:OPERATIONS_SHOWN]]
    if len(lines) > OPERATIONS_SHOWN:
        shown.append(f"... and {len(lines) - OPERATIONS_SHOWN} more")
    return {"LBD_OPERATIONS": str(len(lines)), "LBD_PLAN": "\n".join(shown)}


def started(version: str, path: str) -> Entry:
    """Say that the daemon begins."""
    return Entry(f"lbd {version} started for {path}", entry.STARTED, entry.INFO, {"LBD_CONFIG": path})


def ready(headline: str, seconds: float) -> Entry:
    """Say that the first converged state is reached."""
    message = f"ready after {seconds:.2f} s: {headline}"
    return Entry(message, entry.READY, entry.INFO, {"LBD_SECONDS": f"{seconds:.3f}"})


def stopped() -> Entry:
    """Say that the daemon ends, and that what it set up does not."""
    message = "stopped; the kernel goes on forwarding as it is (`lbd apply --remove` takes it away)"
    return Entry(message, entry.STOPPED, entry.INFO, {})


def applied(plan: Plan, path: str, digest: str, seconds: float) -> Entry:
    """Say that the file was put into force."""
    what = many(len(plan.lines()), "operation") if plan else "nothing to do"
    fields = {"LBD_CONFIG": path, "LBD_HASH": digest, "LBD_SECONDS": f"{seconds:.3f}", **_plan(plan)}
    return Entry(f"applied {path}: {what} in {seconds * 1000:.0f} ms", entry.APPLIED, entry.NOTICE, fields)


def adapted(plan: Plan, why: Sequence[str], seconds: float) -> Entry:
    """Say that the rules followed what changed on the host, or the time."""
    what = many(len(plan.lines()), "operation") if plan else "nothing to do"
    message = f"adapted in {seconds * 1000:.0f} ms: {what}, because {'; '.join(why[:OPERATIONS_SHOWN])}"
    fields = {"LBD_REASON": why[0], "LBD_SECONDS": f"{seconds:.3f}", **_plan(plan)}
    return Entry(message, entry.ADAPTED, entry.NOTICE, fields)


def refused(error: BadFileError, *, kept: bool) -> Entry:
    """Say that the file was refused, with every problem."""
    first = error.problems[0]
    goes_on = "the last good file stays in force" if kept else "nothing is in force"
    fields = {
        "LBD_FILE": first.path,
        "LBD_LINE": str(first.line or ""),
        "LBD_COLUMN": str(first.column or ""),
        "LBD_REASON": first.message,
    }
    return Entry(f"file refused, {goes_on}: {error}", entry.REFUSED, entry.ERROR, fields)


def drift(plan: Plan, actors: Sequence[Actor], seconds: float, *, repaired: bool) -> Entry:
    """Say that the host had changed under us, and whether that is undone."""
    by = who(actors)
    lines = plan.lines()
    done = "repaired" if repaired else "not all repaired"
    message = f"drift {done} in {seconds * 1000:.0f} ms, changed by {by}: {many(len(lines), 'operation')}"
    if len(lines) == 1:
        message += f": {cut(lines[0])}"
    named = {"LBD_ACTOR_PID": str(actors[0].pid), "LBD_ACTOR_PROCESS": actors[0].process} if actors else {}
    fields = {"LBD_ACTOR": by, **named, **_plan(plan), "LBD_SECONDS": f"{seconds:.3f}"}
    return Entry(message, entry.DRIFT, entry.WARNING, fields)


def failed(problems: Sequence[str]) -> Entry:
    """Say what keeps the host from what the file asks for."""
    message = "not converged: " + "; ".join(problems[:OPERATIONS_SHOWN])
    return Entry(message, entry.FAILED, entry.ERROR, {"LBD_REASON": problems[0] if problems else ""})


def degraded(reason: str) -> Entry:
    """Say that something of lbd itself does not work as it should."""
    return Entry(reason, entry.DEGRADED, entry.WARNING, {"LBD_REASON": reason})


def worker(reason: str) -> Entry:
    """Say that the nftables worker was replaced."""
    return Entry(f"{reason}; a new one is started", entry.WORKER, entry.WARNING, {"LBD_REASON": reason})


def packet(seen: Packet, service: str, part: str) -> Entry:
    """Say that a packet of a service with `log` passed a hook."""
    fields = {
        "LBD_SERVICE": service,
        "LBD_PART": part,
        "LBD_INTERFACE": seen.interface,
        "LBD_SOURCE": f"{seen.source} {seen.source_port}",
        "LBD_DESTINATION": f"{seen.destination} {seen.destination_port}",
        "LBD_PROTOCOL": seen.protocol,
    }
    return Entry(f"{service or '-'}: {part}: {seen}", entry.PACKET, entry.DEBUG, fields)
