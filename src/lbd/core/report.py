"""What the journal is told: one entry per thing that happened, made from values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lbd.core import entry
from lbd.core.entry import Entry
from lbd.core.packet import Packet
from lbd.core.plan import Plan
from lbd.core.source import BadFileError
from lbd.core.words import cut, many, printable

# A journal field is for reading: a plan of 40,000 operations is not.
OPERATIONS_SHOWN = 20
# Somebody's loop is a new process each time.
ACTORS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Actor:
    """Who committed a change to our table, as the kernel told it.

    `command` and `user` are known of a process that still lived when the kernel's word of it came.
    """

    pid: int
    process: str
    command: str = ""
    user: str = ""

    def __str__(self) -> str:
        said = f"{self.process or 'unknown'} (pid {self.pid}"
        if self.user:
            said += f", {self.user}: {cut(printable(self.command))}"
        return said + ")"


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


def drift(plan: Plan, actors: Sequence[Actor], seconds: float, *, repaired: bool, times: int = 1) -> Entry:
    """Say that the host had changed under us, the last of so many times, and whether that is undone."""
    by = who(actors)
    lines = plan.lines()
    done = "repaired" if repaired else "not all repaired"
    message = f"drift {done} in {seconds * 1000:.0f} ms, changed by {by}: {many(len(lines), 'operation')}"
    if len(lines) == 1:
        message += f": {cut(lines[0])}"
    if times > 1:
        message += f"; the last of {times} times since this was told before"
    named = {"LBD_ACTOR_PID": str(actors[0].pid), "LBD_ACTOR_PROCESS": actors[0].process} if actors else {}
    if actors and actors[0].user:
        named |= {"LBD_ACTOR_USER": actors[0].user, "LBD_ACTOR_COMMAND": actors[0].command}
    seconds_and_times = {"LBD_SECONDS": f"{seconds:.3f}", "LBD_TIMES": str(times)}
    fields = {"LBD_ACTOR": by, **named, **_plan(plan), **seconds_and_times}
    return Entry(message, entry.DRIFT, entry.WARNING, fields)


def drift_over(by: Sequence[str], times: int) -> Entry:
    """Say how often the host was changed and repaired since that was told, now that it has been quiet."""
    who_it_was = ", ".join(by) or "unknown"
    message = f"drift has ended: repaired {many(times, 'more time')}, changed by {who_it_was}"
    return Entry(message, entry.DRIFT, entry.NOTICE, {"LBD_ACTOR": who_it_was, "LBD_TIMES": str(times)})


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


@dataclass(frozen=True, slots=True)
class Turn:
    """A backend that is something else now, and what it was for how many seconds."""

    service: str
    backend: str
    before: str
    after: str
    reason: str
    seconds: float


def turned(turn: Turn) -> Entry:
    """Say that checks, or its agent, make something else of a backend."""
    message = f'backend {turn.backend} of service "{turn.service}": {turn.before} -> {turn.after}'
    message += f": {cut(printable(turn.reason))}" if turn.reason else ""
    fields = {
        "LBD_SERVICE": turn.service,
        "LBD_BACKEND": turn.backend,
        "LBD_FROM": turn.before,
        "LBD_TO": turn.after,
        "LBD_REASON": turn.reason,
        "LBD_SECONDS": f"{turn.seconds:.3f}",
    }
    priority = entry.WARNING if turn.after == "down" else entry.NOTICE
    return Entry(f"{message} (after {turn.seconds:.1f} s)", entry.HEALTH, priority, fields)


def turned_too(by_state: Mapping[str, int], services: Sequence[str]) -> Entry:
    """Say how many backends turned beside those that were told one by one."""
    states = ", ".join(f"{count} -> {state}" for state, count in sorted(by_state.items()))
    where = ", ".join(f'"{service}"' for service in services[:OPERATIONS_SHOWN])
    if len(services) > OPERATIONS_SHOWN:
        where += f" and {len(services) - OPERATIONS_SHOWN} more"
    message = f"{many(sum(by_state.values()), 'more backend')} within a second: {states}; of service {where}"
    priority = entry.WARNING if "down" in by_state else entry.NOTICE
    return Entry(message, entry.HEALTH, priority, {"LBD_BACKENDS": str(sum(by_state.values()))})


def panic(service: str, dead: int, count: int, threshold: int) -> Entry:
    """Say that a service uses backends that are down, since too few are up."""
    message = (
        f'service "{service}" fails open: {dead} of {many(count, "backend")} are down, which leaves less '
        f"than panic = {threshold} % up, and all are used"
    )
    fields = {"LBD_SERVICE": service, "LBD_DEAD": str(dead), "LBD_TO": "panic"}
    return Entry(message, entry.PANIC, entry.ERROR, fields)


def panic_over(service: str) -> Entry:
    """Say that a service uses only backends that are up again."""
    message = f'service "{service}" does not fail open any more: only backends that are up are used'
    return Entry(message, entry.PANIC, entry.NOTICE, {"LBD_SERVICE": service, "LBD_TO": "up"})


def override(service: str, backend: str, said: str, uid: int, pid: int) -> Entry:
    """Say what a backend is to be from now on, and who wants it; `said` is in words, "up" ends it."""
    words = {"drain": "drained", "maintenance": "in maintenance"}.get(said, "as the file says again")
    fields = {
        "LBD_SERVICE": service,
        "LBD_BACKEND": backend,
        "LBD_TO": said,
        "LBD_UID": str(uid),
        "LBD_PID": str(pid),
    }
    message = f'backend {backend} of service "{service}": {words}, by uid {uid} (pid {pid})'
    return Entry(message, entry.OVERRIDE, entry.NOTICE, fields)


def override_dropped(service: str, backend: str, reason: str) -> Entry:
    """Say that what was said of a backend is forgotten, since the file does not have it any more."""
    message = (
        f'backend {backend} of service "{service}" is not in the file any more, and is forgotten: {reason}'
    )
    fields = {"LBD_SERVICE": service, "LBD_BACKEND": backend, "LBD_TO": "", "LBD_REASON": reason}
    return Entry(message, entry.OVERRIDE, entry.NOTICE, fields)


def drained(service: str, backend: str, left: str, seconds: float) -> Entry:
    """Say that the drain of a backend has ended; `left` is what there is of its connections, in words."""
    message = f'backend {backend} of service "{service}" is drained after {seconds:.0f} s: {left}'
    fields = {"LBD_SERVICE": service, "LBD_BACKEND": backend, "LBD_SECONDS": f"{seconds:.3f}"}
    return Entry(message, entry.DRAINED, entry.NOTICE, fields)
