"""What `lbd reload` is told: about the file first, then about the host."""

from __future__ import annotations

from lbd.core.control import BAD_FILE, FAILED, NO_PERMISSION
from lbd.core.source import BadFileError
from lbd.host.serve import Answer
from lbd.reconcile import Outcome


def verdict(refusal: BadFileError | None, outcome: Outcome | None) -> Answer:
    """Return the answer to a client that asked for a look, which has come to `outcome`."""
    if refusal:
        return {"ok": False, "error": str(refusal), "exit": BAD_FILE}
    if outcome is None or not outcome.converged:
        error = "\n".join(outcome.failures) if outcome else "nothing was applied"
        denied = outcome is not None and outcome.permission
        return {"ok": False, "error": error, "exit": NO_PERMISSION if denied else FAILED}
    return {"ok": True, "operations": len(outcome.plan.lines())}
