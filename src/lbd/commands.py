"""What the control socket is asked, and what it is answered (core/control has the contract)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from lbd.balancing import Balancing
from lbd.core import overrides
from lbd.core.control import FAILED, USAGE, WAIT_MOST
from lbd.core.observed import name
from lbd.core.overrides import COMMANDS, Asked, Said, StandsInFileError, UnknownError
from lbd.core.pacer import Reason
from lbd.core.settings import Backend, Service
from lbd.core.source import BadFileError
from lbd.core.status import Standing, document
from lbd.drifts import Drifts
from lbd.host.serve import Answer, Request
from lbd.intent import Intent
from lbd.overrides import Overrides
from lbd.reconcile import Outcome
from lbd.verdict import verdict

# What a look has come to: what is wrong with the file, and with the host.
Looked = tuple[BadFileError | None, Outcome | None]


@dataclass(frozen=True, slots=True)
class Commands:
    """Answers requests. `look` asks the daemon for a look and waits for it, `standing` is where it stands."""

    intent: Intent
    overrides: Overrides
    balancing: Balancing
    drifts: Drifts
    standing: Callable[[], Standing]
    look: Callable[[Reason], Awaitable[Looked]]

    async def answer(self, request: Request) -> Answer:
        """Return the answer to a request of somebody who may ask."""
        now = self.intent.now
        match request.command:
            case "status":
                return document(self.standing(), now.config if now else None)
            case "drift":
                return {"incidents": [asdict(incident) for incident in self.drifts.incidents.known]}
            case "reload":
                if request.arguments.get("yes") is True:
                    self.intent.meant = True
                return verdict(*await self.look("reload"))
            case "drain" | "undrain" | "maintenance" | "drained":
                return await self._of_backend(request)
            case other:
                return _error(f"unknown command {other!r}", USAGE)

    async def _of_backend(self, request: Request) -> Answer:
        now, given = self.intent.now, request.arguments
        if now is None:
            return _error("no file is in force, and so there is no backend", FAILED)
        try:
            found = overrides.find(now.config, str(given.get("service")), str(given.get("backend")))
            if request.command == "drained":
                return await self._wait(*found, given.get("seconds"))
            return await self._say(*found, request)
        except UnknownError as error:
            return _error(str(error), USAGE)
        except StandsInFileError as error:
            return _error(str(error), FAILED)

    async def _wait(self, service: Service, backend: Backend, seconds: object) -> Answer:
        """Wait for the end of a drain."""
        if not isinstance(seconds, int | float) or not seconds >= 0:
            return _error('"seconds" is not a number from 0 on', USAGE)
        key = name(service, backend)
        await self.balancing.drained(key, min(float(seconds), WAIT_MOST))
        said = self.overrides.said.get(key)
        return await self._told(Asked(service, backend, said, said))

    async def _say(self, service: Service, backend: Backend, request: Request) -> Answer:
        """Have a backend be something else, and wait until the rules are so."""
        key = name(service, backend)
        state, peer = COMMANDS[request.command], request.peer
        wish = (
            Said(state, peer.uid, datetime.now(UTC).isoformat(timespec="seconds")) if state != "up" else None
        )
        before, lost = await self.overrides.say_of(service, backend, wish, peer.pid, peer.uid)
        _, outcome = await self.look("override")
        told = await self._told(Asked(service, backend, before, self.overrides.said.get(key)))
        done = verdict(None, outcome)
        if not done["ok"]:
            return {**told, **done, "error": f"{told['message']}, but not all is in force: {done['error']}"}
        if lost:
            return {**told, **_error(f"{told['message']}, but a restart forgets it: {lost}", FAILED)}
        return told

    async def _told(self, asked: Asked) -> Answer:
        """Return how a backend is now. Raises UnknownError when the file has lost it meanwhile."""
        now = self.intent.now
        assert now is not None
        service, backend = overrides.find(now.config, asked.service.name, str(asked.backend))
        count = await self.balancing.count(name(service, backend)) if overrides.tracked(service) else None
        asked = replace(asked, service=service, backend=backend, connections=count)
        # The look that follows the end of a drain may not have been yet.
        return overrides.answer(asked, replace(self.intent.observed, ended=self.balancing.drains.ended))


def _error(text: str, code: int) -> Answer:
    return {"ok": False, "error": text, "exit": code}
