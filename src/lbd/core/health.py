"""Is a backend up? What checks say, step by step, and what follows from it for its share of connections.

TRANSITIONS is all there is to it: what a result makes of what was believed. Time is an argument, in
monotonic seconds (CLOCK_MONOTONIC, which a restart of lbd does not set back).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lbd.core.observed import BackendName, name
from lbd.core.probes import IcmpProbe, Probe, Timing
from lbd.core.settings import Backend, Config, Service

# New ones are believed to be what their `start` says. "failing" is up and "passing" is down: some checks in a
# row say otherwise, and not enough of them yet.
Phase = Literal["new up", "new down", "up", "failing", "down", "passing"]

IN_ROTATION: frozenset[Phase] = frozenset({"new up", "up", "failing"})
# Something may be about to change: checks come at the fast interval.
CHANGING: frozenset[Phase] = frozenset({"failing", "passing"})

# By (phase, whether the check passed): the phase when there have been enough such checks in a row, and the
# phase until then.
TRANSITIONS: Mapping[tuple[Phase, bool], tuple[Phase, Phase]] = {
    ("new up", True): ("up", "up"),
    ("new up", False): ("down", "down"),
    ("new down", True): ("up", "up"),
    ("new down", False): ("down", "down"),
    ("up", True): ("up", "up"),
    ("up", False): ("down", "failing"),
    ("failing", True): ("up", "up"),
    ("failing", False): ("down", "failing"),
    ("down", True): ("up", "passing"),
    ("down", False): ("down", "down"),
    ("passing", True): ("up", "passing"),
    ("passing", False): ("down", "down"),
}

# What an agent may have a backend do beside its weight: "" is nothing special.
Agent = Literal["", "drain", "maintenance"]

# Slow start goes in so many steps: each changes rules.
STEPS = 10


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask and what. `port` is 0 for a probe that has none, `source` "" for the kernel's choice."""

    probe: Probe
    address: str
    port: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One check. Equal ones are one, whoever wants them: so services share the checks of a backend."""

    target: Target
    timing: Timing


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check. `reason` says why it failed, or what is worth knowing.

    `weight` is in per cent of the file's, `agent` what else an agent says; None is that it does not say.
    """

    passed: bool
    reason: str = ""
    weight: int | None = None
    agent: Agent | None = None


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of a backend after some checks.

    `count` checks in a row spoke against it; it is up or down since the time `since`. `came_up` is when it
    came up after it was down, None if it has not: one that was up all the time does not start slowly.
    """

    phase: Phase
    since: float
    count: int = 0
    reason: str = ""
    came_up: float | None = None
    weight: int = 100
    agent: Agent = ""

    @property
    def up(self) -> bool:
        """Whether it takes connections, as far as checks have a say."""
        return self.phase in IN_ROTATION


def first(timing: Timing, now: float) -> Belief:
    """Return what is believed before the first check."""
    return Belief("new up" if timing.start == "up" else "new down", now)


def step(belief: Belief, result: Result, timing: Timing, now: float) -> Belief:
    """Return what is believed after a check with this result."""
    if _says_the_same(belief, result):
        return belief
    count = belief.count + 1
    enough, until_then = TRANSITIONS[belief.phase, result.passed]
    phase = enough if count >= (timing.rise if result.passed else timing.fall) else until_then
    turned = (phase in IN_ROTATION) != belief.up
    return Belief(
        phase,
        since=now if turned else belief.since,
        count=count if phase in CHANGING else 0,
        # Why one is down is what it is down for, until it is up again.
        reason=belief.reason if phase == "passing" else result.reason,
        came_up=now if turned and phase == "up" and belief.phase != "new down" else belief.came_up,
        weight=belief.weight if result.weight is None else result.weight,
        agent=belief.agent if result.agent is None else result.agent,
    )


def _says_the_same(belief: Belief, result: Result) -> bool:
    """Tell whether a result changes nothing: as a rule, and then nothing new is made."""
    return (
        belief.phase == ("up" if result.passed else "down")
        and belief.reason == result.reason
        and result.weight in (None, belief.weight)
        and result.agent in (None, belief.agent)
    )


def resumed(belief: Belief, now: float) -> Belief:
    """Return what is believed of a backend that was not checked for a while, until the first check.

    One that was up may have been restarted meanwhile: it starts slowly, and the first check decides alone.
    """
    if not belief.up:
        return replace(belief, phase="down", count=0)
    return replace(belief, phase="new up", count=0, reason="", came_up=now)


def carried_over(belief: Belief) -> Belief:
    """Return what another check of the same backend leaves behind for one that takes its place."""
    return replace(belief, phase="new up" if belief.up else "new down", count=0, weight=100, agent="")


def said(belief: Belief) -> str:
    """Return what a backend is, as far as checks and its agent say, in the words of core/rotation."""
    return (belief.agent or "up") if belief.up else "down"


def portion(belief: Belief, slow_start: float, now: float) -> int:
    """Return how much of its weight a backend gets, in per cent: what an agent says, less while it starts."""
    if belief.came_up is None or now >= belief.came_up + slow_start:
        return belief.weight
    done = int(STEPS * (now - belief.came_up) / slow_start) + 1
    return max(1, belief.weight * done // STEPS) if belief.weight else 0


def next_step(belief: Belief, slow_start: float, now: float) -> float | None:
    """Return when `portion` changes next by time alone."""
    if belief.came_up is None or not slow_start or now >= belief.came_up + slow_start:
        return None
    done = int(STEPS * (now - belief.came_up) / slow_start) + 1
    return belief.came_up + done * slow_start / STEPS


def checks(config: Config) -> dict[BackendName, Check]:
    """Return the check of each backend that has one. One in maintenance by the file is not checked."""
    found = {}
    for service in config.services:
        if service.health:
            for backend in service.backends:
                if backend.state != "maintenance":
                    found[name(service, backend)] = Check(target(service, backend), service.health.timing)
    return found


def target(service: Service, backend: Backend) -> Target:
    """Return whom a check of this backend asks; core/config has seen to it that there is a port."""
    health = service.health
    assert health is not None
    address = health.address or backend.address
    port = 0 if isinstance(health.probe, IcmpProbe) else health.port or _port(service, backend)
    return Target(health.probe, str(address), port, str(health.source or ""))


def _port(service: Service, backend: Backend) -> int:
    """Return the port of a backend, or the first that connections to it may have; 0 is none (or every)."""
    if backend.ports:
        return backend.ports.low
    ports = [listen.ports for listen in service.listen if listen.family == backend.family]
    return ports[0].low if ports and not ports[0].every else 0
