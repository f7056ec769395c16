"""The `lbd` command: only it and the demo (lab/narrator) print.

Commands import what they need when they run, so that `lbd status` does not wait for libraries that only
the daemon uses.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import lbd
from lbd.client import CallError, call
from lbd.core.control import BAD_FILE, DIFFERENCES, FAILED, NO_PERMISSION, OK
from lbd.core.words import NEEDS_CAPABILITY, cut, many, printable

if TYPE_CHECKING:
    from lbd.core.observed import Observed
    from lbd.core.plan import Plan
    from lbd.core.settings import Config
    from lbd.host.director import Director

# A reload reads the file and may load ten thousand services; longer than that is a verdict in itself.
RELOAD_MOST = 120.0
STATUS_MOST = 5.0


class ExitError(Exception):
    """Ends the command with a message and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit."""
    _have_streams()
    arguments = parser().parse_args(argv)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except ExitError as error:
        print(f"lbd: {error}" if error.code != BAD_FILE else error, file=sys.stderr)
        code = error.code
    except OSError as error:
        # What is left in the buffer must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A broken pipe: the reader (`| head`) has enough.
        code = OK if isinstance(error, BrokenPipeError) else FAILED
        if code:
            print(f"lbd: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _have_streams() -> None:
    """Open /dev/null for each standard stream that was closed, or the next socket would get its number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open until the process ends


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; man page and completions are made of it."""
    top = argparse.ArgumentParser(prog="lbd", description=lbd.__doc__)
    top.add_argument("--version", action="version", version=f"lbd {lbd.__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    def with_file(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument(
            "-c",
            "--config",
            metavar="FILE",
            type=Path,
            default=Path("/etc/lbd.toml"),
            help="the file that describes this director (default: %(default)s)",
        )
        return sub

    def with_output(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("-o", "--output", choices=["text", "json"], default="text", help="default: text")
        return sub

    with_file(command("run", _run, "run the daemon in the foreground"))
    with_output(with_file(command("check", _check, "check the file; needs no root and touches nothing")))
    plan = with_output(with_file(command("plan", _plan, "show what apply would do")))
    plan.add_argument(
        "--exit-code", action="store_true", help=f"exit {DIFFERENCES} when there is something to do"
    )
    apply = with_file(command("apply", _apply, "apply the file once, without a daemon"))
    apply.add_argument(
        "--remove",
        action="store_true",
        help="take away all that lbd has set up, and put back what was there before",
    )
    with_file(command("reload", _reload, "make the running daemon read the file, and wait for its verdict"))
    with_output(with_file(command("status", _status, "show what the running daemon does")))
    demo = command("demo", _demo, "walk through the main job in network namespaces, on real packets")
    demo.add_argument("--no-colour", action="store_true", help="plain text also on a terminal")
    command("version", _version, "show the version")
    return top


def _directory(variable: str, default: str) -> Path:
    # systemd gives several directories separated by colons; ours is the first.
    return Path(os.environ.get(variable, "").split(":")[0] or default)


def _runtime() -> Path:
    return _directory("RUNTIME_DIRECTORY", "/run/lbd")


def _state() -> Path:
    return _directory("STATE_DIRECTORY", "/var/lib/lbd")


def _version(_: argparse.Namespace) -> int:
    print(f"lbd {lbd.__version__}")
    return OK


def _run(arguments: argparse.Namespace) -> int:
    import asyncio

    from lbd.daemon import Daemon, Directories
    from lbd.host.serve import ControlSocketError

    try:
        with _claim():
            asyncio.run(Daemon(arguments.config, Directories(_runtime(), _state())).run())
    except ControlSocketError as error:
        denied = isinstance(error.__cause__, PermissionError)
        raise ExitError(NO_PERMISSION if denied else FAILED, str(error)) from error
    except PermissionError as error:
        raise ExitError(NO_PERMISSION, f"{error.strerror} ({NEEDS_CAPABILITY})") from error
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from lbd.core.notes import lines, notes
    from lbd.core.source import BadFileError
    from lbd.host import files

    try:
        config = files.load(arguments.config)
    except BadFileError as error:
        if arguments.output == "json":
            problems = [
                {"file": p.path, "line": p.line, "column": p.column, "message": p.message}
                for p in error.problems
            ]
            print(json.dumps({"ok": False, "problems": problems}))
            return BAD_FILE
        raise ExitError(BAD_FILE, str(error)) from error
    found = notes(config)
    if arguments.output == "json":
        said = [{"service": note.service, "message": note.message} for note in found]
        print(json.dumps({"ok": True, "problems": [], "notes": said}))
        return OK
    backends = sum(len(service.backends) for service in config.services)
    things = {
        "service": len(config.services),
        "backend": backends,
        "address": len(config.addresses),
        "route": len(config.routes),
        "rule": len(config.rules),
    }
    counts = ", ".join(many(count, name) for name, count in things.items() if count)
    print(f"{printable(str(arguments.config))}: good: {counts or 'nothing to do'}")
    for line in lines(found):
        print(line)
    return OK


def _plan(arguments: argparse.Namespace) -> int:
    from lbd.core.desired import desired
    from lbd.reconcile import plan

    config = _load(arguments.config)
    with _director() as host:
        found = plan(host, desired(config, _as_balanced(host.observe(config))))
    _show_plan(found, arguments.output)
    return DIFFERENCES if found and arguments.exit_code else OK


def _as_balanced(observed: Observed) -> Observed:
    """Return what was observed with what the running daemon, if there is one, knows from counting."""
    from dataclasses import replace

    from lbd.core.status import balanced

    try:
        known = balanced(call(_runtime(), "status", {}, STATUS_MOST))
    except CallError:
        return observed
    return replace(observed, full=known.full, shares=known.shares)


def _apply(arguments: argparse.Namespace) -> int:
    from lbd.core.desired import desired
    from lbd.reconcile import reconcile, remove

    config = None if arguments.remove else _load(arguments.config)
    with _claim(), _director() as host:
        outcome = remove(host) if config is None else reconcile(host, desired(config, host.observe(config)))
    if outcome.plan or outcome.converged:
        _show_plan(outcome.plan, "text")
    if not outcome.converged:
        raise ExitError(NO_PERMISSION if outcome.permission else FAILED, "\nlbd: ".join(outcome.failures))
    return OK


def _load(path: Path) -> Config:
    from lbd.core.source import BadFileError
    from lbd.host import files

    try:
        return files.load(path)
    except BadFileError as error:
        raise ExitError(BAD_FILE, str(error)) from error


@contextmanager
def _director() -> Iterator[Director]:
    """Open this host; what the kernel refuses ends the command."""
    from lbd.host.director import Director
    from lbd.host.store import Store
    from lbd.reconcile import RefusedError

    host = Director(Store(_state()))
    try:
        yield host
    except RefusedError as error:
        raise ExitError(NO_PERMISSION if error.permission else FAILED, str(error)) from error
    finally:
        host.close()


@contextmanager
def _claim() -> Iterator[None]:
    """Be the only lbd that changes this network namespace."""
    from lbd.host.claim import Claim, ClaimedError

    # The daemon runs as the user that owns the state directory.
    owners = {_state().stat().st_uid} if _state().exists() else set()
    try:
        claim = Claim({0, os.geteuid(), *owners})
    except ClaimedError as error:
        raise ExitError(FAILED, str(error)) from error
    try:
        yield
    finally:
        claim.close()


def _show_plan(plan: Plan, output: str) -> None:
    if output == "json":
        names = ("before", "swap", "collect", "forget", "after")
        groups = {name: getattr(plan, name) for name in names}
        said = {name: list(map(str, ops)) for name, ops in groups.items()}
        print(json.dumps(said | {"unsafe": plan.unsafe, "lacking": plan.lacking}))
        return
    for line in plan.lines():
        # 40,000 elements on one line are for JSON.
        print(cut(line))
    for reason in (*plan.unsafe, *plan.lacking):
        print(f"left out: {reason}")
    if not (plan or plan.unsafe or plan.lacking):
        print("nothing to do")


def _reload(_: argparse.Namespace) -> int:
    verdict = _call("reload", RELOAD_MOST)
    if not verdict["ok"]:
        raise ExitError(int(verdict.get("exit", FAILED)), str(verdict["error"]))
    count = verdict["operations"]
    print(f"reloaded: {many(count, 'operation') if count else 'nothing to do'}")
    return OK


def _status(arguments: argparse.Namespace) -> int:
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
        return call(_runtime(), command, {}, timeout)
    except CallError as error:
        raise ExitError(error.exit_code, str(error)) from error


def _demo(arguments: argparse.Namespace) -> int:
    from lbd.lab.demo import run

    if os.geteuid() != 0:
        raise ExitError(NO_PERMISSION, "the demo makes network namespaces, which takes root")
    code: int = run(colour=sys.stdout.isatty() and not arguments.no_colour and "NO_COLOR" not in os.environ)
    return code
