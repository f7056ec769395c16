"""When to look at the host again: triggers in, a time out. Time is an argument, in monotonic seconds.

A trigger carries a reason and never data: whoever looks reads everything anew. So triggers that come
close together are one look.
"""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "start",
    "file",
    "signal",
    "reload",
    "rules",
    "net",
    "audit",
    "retry",
    "deadline",
    "override",
    "health",
    "balance",
]

# What a look of any kind answers, since it reads the host anew.
HOST_REASONS: frozenset[Reason] = frozenset({"rules", "net"})

# Editors write in several steps; 0.3 s after the last one the file is whole, and an edit is still in the
# kernel well within a second.
SETTLE = 0.3
# A file that never settles is looked at all the same.
SETTLE_MOST = 2.0

# A rack that loses its power is many backends within a moment, and one transaction.
HEALTH_SETTLE = 0.05

# One who changes our rules again and again is answered at once, then ever more slowly: 1 s, 2 s, 4 s ...
GAP_LEAST, GAP_MOST = 1.0, 30.0
# ... until it has been quiet for this long.
QUIET = 60.0

RETRY_LEAST, RETRY_MOST = 1.0, 60.0

# Connections come and go all the time: a look for who takes new ones waits this many times as long as the
# last look took, so that 10,000 services, where a look takes seconds, leave the host most of a core.
BALANCE_REST = 4.0

# From the beginning of one look to that of the next: signals and events may come by the thousand.
LOOKS_APART = 0.05


class Pacer:
    """Collects triggers between looks; `due` tells when the next look is to begin."""

    def __init__(self, audit: float) -> None:
        """`audit` is the time between two looks that nothing has asked for."""
        self.audit = audit
        self.reasons: dict[Reason, float] = {}
        self._first_file: float | None = None
        self._gap = 0.0
        self._last_drift = -QUIET
        self._retry = 0.0
        self._next_audit = float("inf")
        self._not_before = 0.0
        self._began = self._rested = 0.0

    def trigger(self, reason: Reason, now: float) -> None:
        """Note that something asks for a look."""
        match reason:
            case "file":
                first = self._first_file = now if self._first_file is None else self._first_file
                self.reasons["file"] = min(now + SETTLE, first + SETTLE_MOST)
            case "rules" | "net":
                at = max(now, self._last_drift + self._gap)
                self.reasons[reason] = min(at, self.reasons.get(reason, at))
            case "health":
                self.reasons.setdefault("health", now + HEALTH_SETTLE)
            case "balance":
                self.reasons.setdefault("balance", max(now, self._rested))
            case _:
                self.reasons[reason] = now

    def later(self, reason: Reason, at: float) -> None:
        """Ask for a look at a given time."""
        self.reasons[reason] = at

    @property
    def due(self) -> float:
        """Return when the next look is to begin; it may be in the past."""
        return max(min([*self.reasons.values(), self._next_audit]), self._not_before)

    def take(self, now: float) -> frozenset[Reason]:
        """Begin a look: return the reasons that are due, and forget them."""
        if now < self._not_before:
            return frozenset()
        if now >= self._next_audit:
            self.reasons.setdefault("audit", now)
        due = frozenset(reason for reason, at in self.reasons.items() if at <= now)
        # Whatever a look is for, it answers what changed on the host: no second look for that.
        answered: frozenset[Reason] = due | HOST_REASONS if due else due
        for reason in answered:
            self.reasons.pop(reason, None)
        if "file" in due:
            self._first_file = None
        if due:
            self._not_before = now + LOOKS_APART
            self._began = now
        # Looks for who takes new connections would put the audit off for ever.
        if due - {"balance"}:
            self._next_audit = now + self.audit
        return due

    def done(self, now: float, *, converged: bool, drift: bool) -> None:
        """End a look. What did not converge is tried again; repeated drift is met ever more slowly."""
        self._rested = now + BALANCE_REST * (now - self._began)
        if "balance" in self.reasons:
            self.reasons["balance"] = max(self.reasons["balance"], self._rested)
        if drift:
            again = now - self._last_drift < QUIET
            self._gap = min(self._gap * 2, GAP_MOST) if again and self._gap else GAP_LEAST
            self._last_drift = now
        if converged:
            self._retry = 0.0
            self.reasons.pop("retry", None)
        else:
            self._retry = min(max(self._retry * 2, RETRY_LEAST), RETRY_MOST)
            self.reasons["retry"] = now + self._retry
