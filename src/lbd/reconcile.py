"""Make the host what the file asks for: read, diff, apply, read again.

The host is anything that speaks the Host protocol: the real one is host/director, the fake is testing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lbd.core.ops import AddRule, HostOp, NftOp, Remember
from lbd.core.plan import Plan, body, diff, removal
from lbd.core.state import Desired, Live, LiveTable, Memory, Table, TableFamily
from lbd.core.words import cut


class RefusedError(Exception):
    """The kernel said no; the message says to what, and why. `permission` when we lack the right to ask."""

    def __init__(self, message: str, *, permission: bool = False) -> None:
        super().__init__(message)
        self.permission = permission


class Host(Protocol):
    """What reconcile needs of a host. Nothing here decides."""

    def read(self, desired: Desired, *, learned: bool = False) -> Live:
        """Return what there is of ours, and what stands where `desired` wants something.

        What packets have noted is only read when asked for: there may be hundreds of thousands of notes.
        """

    def commit(self, ops: Sequence[NftOp]) -> int:
        """Do all of `ops` in one nftables transaction, or none and raise RefusedError.

        Returns the ruleset generation that the commit made, or 0 when somebody else committed in the
        same moment and ours cannot be told from theirs.
        """

    def apply(self, op: HostOp) -> None:
        """Do one operation outside nftables, or raise RefusedError.

        A Remember that is refused could not be written down: it holds for as long as this host is open.
        A full disk must not keep a director from forwarding.
        """


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one look at the host.

    `plan` is what was found to do; `refused` is what the kernel did not let us do; `left` is what still
    differs after all was done. `undone` is what was to do at the end, refused or not; None when the host
    could not be read.
    """

    plan: Plan
    refused: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    undone: tuple[str, ...] | None = None
    permission: bool = False
    generation: int = 0
    elements: int = 0

    def goes_beyond(self, left: tuple[str, ...]) -> bool:
        """Tell whether there was more to do than what an earlier look at the same desired state had left."""
        return not set(self.plan.lines()) <= set(left)

    def is_back_to(self, left: tuple[str, ...]) -> bool:
        """Tell whether no more is left to do now than was then."""
        return set(self.undone or ()) <= set(left)

    @property
    def converged(self) -> bool:
        """Tell whether the host is now what the file asks for, as far as a host like this can be."""
        return not (self.refused or self.left or self.plan.unsafe)

    @property
    def failures(self) -> tuple[str, ...]:
        """Return everything that keeps the host from what the file asks for, in words."""
        left = tuple(f"still to do after applying: {cut(line)}" for line in self.left)
        return self.refused + self.plan.unsafe + left

    @property
    def problems(self) -> tuple[str, ...]:
        """Return the failures, and what is not done because this host cannot."""
        return self.failures + self.plan.lacking


def plan(host: Host, desired: Desired) -> Plan:
    """Return what reconcile() would do."""
    return diff(host.read(desired), desired)


def reconcile(host: Host, desired: Desired, *, thorough: bool = True) -> Outcome:
    """Bring the host to `desired` and say what it took. Converged twice in a row takes nothing.

    What packets have noted is looked at after every change of the rules, and else only if `thorough`.
    """
    try:
        return _reconcile(host, desired, learned=thorough and bool(desired.table.learned))
    except RefusedError as error:
        # Not even reading was possible: what was done before it is for the next look to find.
        return Outcome(Plan(), (str(error),), permission=error.permission)


def _reconcile(host: Host, desired: Desired, *, learned: bool) -> Outcome:
    live = host.read(desired, learned=learned)
    todo = diff(live, desired)
    if not todo:
        return Outcome(todo, undone=(), generation=live.generation, elements=_count(live))
    run = _Run(host)
    run.each(todo.before)
    # What the old rules need stays until the new ones are in place.
    swapped = run.transaction(todo.prepare) and run.transaction(todo.swap)
    if swapped:
        run.transaction(todo.collect)
        run.each(todo.after)
    live = host.read(desired, learned=bool(desired.table.learned))
    if swapped and any(isinstance(op, AddRule) for op in todo.swap):
        live = run.learn(desired, live)
    rest = diff(live, desired)
    if swapped and rest.forget:
        # Only now: until the new rules were in place, packets noted what the old ones did.
        todo = replace(todo, forget=rest.forget)
        for op in rest.forget:
            run.transaction([op])
        live = host.read(desired, learned=True)
        rest = diff(live, desired)
    undone = rest.lines()
    # What the kernel refused is told as such, not as what is left.
    left = () if run.refused else undone
    return Outcome(todo, tuple(run.refused), left, undone, run.permission, live.generation, _count(live))


def remove(host: Host) -> Outcome:
    """Take everything of lbd's away and put back what was there before."""
    nothing = Desired()
    live = host.read(nothing)
    todo = removal(live)
    run = _Run(host)
    run.each(todo.before)
    run.transaction(todo.swap)
    run.each(todo.after)
    if not run.refused:
        run.each([Remember(Memory())])
    return Outcome(todo, tuple(run.refused), permission=run.permission)


def _count(live: Live) -> int:
    return sum(len(e) for table in (live.table, live.ingress) if table for e in table.elements.values())


class _Run:
    """One application of a plan: goes on past what the kernel refuses, and keeps the reasons."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.refused: list[str] = []
        self.permission = False
        self.generation = 0

    def each(self, ops: Iterable[HostOp]) -> None:
        """Do all that can be done. What was before lbd is forgotten only if all before that was done."""
        refused = len(self.refused)
        for op in ops:
            if isinstance(op, Remember) and len(self.refused) > refused:
                return
            try:
                self.host.apply(op)
            except RefusedError as error:
                self._note(error)

    def transaction(self, ops: Sequence[NftOp]) -> bool:
        if not ops:
            return True
        try:
            self.generation = self.host.commit(ops)
        except RefusedError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: RefusedError) -> None:
        self.refused.append(str(error))
        self.permission |= error.permission

    def learn(self, desired: Desired, live: Live) -> Live:
        """Note what the kernel made of the chains that we wrote, for all later looks to compare with.

        `live` was read after the writing; it is returned with the note in its memory.

        If somebody else committed since, the read may show their hand and not ours: then only bodies
        that were never seen before are taken, and any other difference is drift for the next look.
        """
        ours = live.generation == self.generation
        known = {}
        pairs: tuple[tuple[TableFamily, Table | None, LiveTable | None], ...] = (
            ("inet", desired.table, live.table),
            ("netdev", desired.ingress, live.ingress),
        )
        for family, wanted, there in pairs:
            for name, chain in wanted.chains.items() if wanted and there else ():
                text, found = body(chain, family), there.chains.get(name) if there else None
                before = live.memory.bodies.get(text)
                if found and (ours or before is None) and len(found.digests) == len(chain.rules):
                    known[text] = found.digests
                elif before is not None:
                    known[text] = before
        if known == live.memory.bodies:
            return live
        memory = replace(live.memory, bodies=known)
        self.each([Remember(memory)])
        return replace(live, memory=memory)
