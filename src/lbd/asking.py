"""The commands that ask the running daemon. They import little: who asks does not want to wait."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lbd.client import CallError, await_drained, call
from lbd.core.control import FAILED, OK, STATUS_MOST, USAGE
from lbd.core.words import many, printable

# A reload reads the file and may load ten thousand services; longer than that is a verdict in itself.
RELOAD_MOST = 120.0
# How long `lbd drain --wait` waits unless it is told.
DRAIN_MOST = 600.0


class ExitError(Exception):
    """Ends the command with a message and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def directory(variable: str, default: str) -> Path:
    """Return the directory that an environment variable names."""
    # systemd gives several directories separated by colons; ours is the first.
    return Path(os.environ.get(variable, "").split(":")[0] or default)


def runtime() -> Path:
    """Return where the daemon listens."""
    return directory("RUNTIME_DIRECTORY", "/run/lbd")


def reload(arguments: argparse.Namespace) -> int:
    """Have the daemon read its file."""
    verdict = _asked(lambda: call(runtime(), "reload", {"yes": arguments.yes}, RELOAD_MOST))
    count = verdict["operations"]
    print(f"reloaded: {many(count, 'operation') if count else 'nothing to do'}")
    return OK


def drift(arguments: argparse.Namespace) -> int:
    """Show who changed what is lbd's."""
    incidents = _call("drift", STATUS_MOST)["incidents"]
    if arguments.output == "json":
        print(json.dumps(incidents))
        return OK
    from lbd.core.incidents import Incident, lines

    known = [Incident(**incident) for incident in incidents]
    for line in lines(known) or ("nobody has changed anything of lbd's",):
        print(printable(line))
    return OK


def override(name: str, arguments: argparse.Namespace) -> int:
    """Have the daemon drain a backend, or put it into maintenance, or end that; and wait if asked to."""
    about = {"service": arguments.service, "backend": arguments.backend}
    wait, timeout = name == "drain" and arguments.wait, getattr(arguments, "timeout", None)
    if timeout and not wait:
        raise ExitError(USAGE, "--timeout goes with --wait")
    text = arguments.output == "text"
    answer = _asked(lambda: call(runtime(), name, about, RELOAD_MOST))
    if wait and answer["state"] == "drain":
        if text:
            print(answer["message"], flush=True)
        answer = _asked(lambda: await_drained(runtime(), **about, timeout=timeout or DRAIN_MOST))
    over = not wait or answer["state"] == "down"
    if text and not over:
        raise ExitError(FAILED, f"not drained: {answer['message']}")
    print(answer["message"] if text else json.dumps(answer))
    return OK if over else FAILED


def duration(text: str) -> float:
    """Read a time as the file has it, in seconds."""
    from lbd.core.config.values import duration

    try:
        return duration(text, "1s", "1000h")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def status(arguments: argparse.Namespace) -> int:
    """Show what the daemon does."""
    status = _call("status", STATUS_MOST)
    if arguments.output == "json":
        status.pop("ok", None)
        print(json.dumps(status))
        return OK
    from lbd.core.show import text

    for line in text(status, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ):
        print(line)
    return OK


def _call(command: str, timeout: float) -> dict[str, Any]:
    try:
        return call(runtime(), command, {}, timeout)
    except CallError as error:
        raise ExitError(error.exit_code, str(error)) from error


def _asked(question: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the answer to a question; a refusal, or none, ends the command."""
    try:
        answer = question()
    except CallError as error:
        raise ExitError(error.exit_code, str(error)) from error
    if not answer.pop("ok"):
        raise ExitError(int(answer.get("exit", FAILED)), str(answer["error"]))
    return answer
