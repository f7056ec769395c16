"""The `lbd` command: only it (and asking) and the demo (lab/narrator) print.

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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import lbd
from lbd.asking import ExitError, directory, drift, duration, override, reload, runtime, status
from lbd.core.control import BAD_FILE, DIFFERENCES, FAILED, NO_PERMISSION, OK
from lbd.core.words import NEEDS_CAPABILITY, cut, many, printable

if TYPE_CHECKING:
    from lbd.core.plan import Plan
    from lbd.host.director import Director
    from lbd.intent import InForce


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

    def with_meant(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--yes",
            action="store_true",
            help="also if more than half of many services are gone, which looks like an accident",
        )

    with_file(command("run", _run, "run the daemon in the foreground"))
    with_output(with_file(command("check", _check, "check the file; needs no root and touches nothing")))
    plan = with_output(with_file(command("plan", _plan, "show what apply would do")))
    plan.add_argument(
        "--exit-code", action="store_true", help=f"exit {DIFFERENCES} when there is something to do"
    )
    apply = with_file(command("apply", _apply, "apply the file once, without a daemon"))
    with_meant(apply)
    apply.add_argument(
        "--remove",
        action="store_true",
        help="take away all that lbd has set up, and put back what was there before",
    )
    again = command("reload", reload, "make the running daemon read the file, and wait for its verdict")
    with_meant(with_file(again))
    with_output(with_file(command("status", status, "show what the running daemon does")))
    for name, does in {
        "drain": "keep new connections from a backend until `lbd undrain`, also over restarts",
        "maintenance": "take a backend out, without checks, until `lbd undrain`",
        "undrain": "end `lbd drain` or `lbd maintenance`",
    }.items():
        sub = with_output(with_file(command(name, partial(override, name), does)))
        sub.add_argument("service", metavar="SERVICE", help="its name in the file")
        sub.add_argument("backend", metavar="BACKEND", help="as in the file, or its address alone")
        if name == "drain":
            sub.add_argument("--wait", action="store_true", help="return when no connection is left")
            sub.add_argument(
                "--timeout", metavar="TIME", type=duration, help="with --wait: how long (default: 10m)"
            )
    with_output(command("drift", drift, "list who changed what is lbd's, and what became of it"))
    demo = command("demo", _demo, "walk through the main job in network namespaces, on real packets")
    demo.add_argument("--no-colour", action="store_true", help="plain text also on a terminal")
    command("version", _version, "show the version")
    return top


def _state() -> Path:
    return directory("STATE_DIRECTORY", "/var/lib/lbd")


def _version(_: argparse.Namespace) -> int:
    print(f"lbd {lbd.__version__}")
    return OK


def _run(arguments: argparse.Namespace) -> int:
    import asyncio
    import gc

    # What is imported stays: to look for garbage in it, now and later, takes time and finds none.
    gc.disable()
    from lbd.daemon import Daemon, Directories
    from lbd.host.serve import ControlSocketError

    gc.freeze()
    gc.enable()
    try:
        with _claim():
            asyncio.run(Daemon(arguments.config, Directories(runtime(), _state())).run())
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
    from dataclasses import asdict

    from lbd.core.accident import accident
    from lbd.core.changes import changes
    from lbd.core.desired import desired
    from lbd.core.status import overridden
    from lbd.known import last_applied, with_daemon
    from lbd.reconcile import plan

    read = _load(arguments.config)
    config = read.config
    with _director() as host:
        observed = with_daemon(runtime(), _state(), host.observe(config))
        found = plan(host, desired(config, observed))
    before = last_applied(_state(), read.sources, config)
    why = accident(before, config)
    if arguments.output == "json":
        names = ("before", "swap", "collect", "forget", "after")
        said: dict[str, object] = {name: list(map(str, getattr(found, name))) for name in names}
        said |= {"unsafe": found.unsafe, "lacking": found.lacking, "overrides": overridden(config, observed)}
        said["changes"] = [asdict(change) for change in changes(before, config)]
        said["accident"] = why
        print(json.dumps(said))
    else:
        for change in changes(before, config):
            print(_coloured(printable(str(change))))
        if why:
            print(f"refused: {why}")
        _show_plan(found, overridden(config, observed))
    return DIFFERENCES if found and arguments.exit_code else OK


def _apply(arguments: argparse.Namespace) -> int:
    from lbd.core.desired import desired
    from lbd.core.status import overridden
    from lbd.known import with_kept
    from lbd.reconcile import reconcile, remove

    found, overrides = None if arguments.remove else _load(arguments.config), []
    if found and not arguments.yes and (why := _accident(found)):
        raise ExitError(BAD_FILE, f"{printable(str(arguments.config))}: {why}")
    with _claim(), _director() as host:
        if found is None:
            outcome = remove(host)
        else:
            observed = with_kept(_state(), host.observe(found.config))
            overrides = overridden(found.config, observed)
            outcome = reconcile(host, desired(found.config, observed))
            if outcome.converged:
                _keep(found)
    if outcome.plan or outcome.converged:
        _show_plan(outcome.plan, overrides)
    if not outcome.converged:
        raise ExitError(NO_PERMISSION if outcome.permission else FAILED, "\nlbd: ".join(outcome.failures))
    return OK


def _accident(found: InForce) -> str:
    from lbd.core.accident import accident
    from lbd.known import last_applied

    return accident(last_applied(_state(), found.sources, found.config), found.config, "apply")


def _load(path: Path) -> InForce:
    from lbd.core.source import BadFileError
    from lbd.host import files
    from lbd.intent import build

    try:
        return build(files.read(path).sources)
    except BadFileError as error:
        raise ExitError(BAD_FILE, str(error)) from error


def _keep(applied: InForce) -> None:
    """Keep a file that was applied, for `lbd plan` to tell the next one from."""
    from lbd.host.store import Store, StoreError

    try:
        Store(_state()).save_last_good(applied.sources)
    except StoreError as error:
        print(f"lbd: {error}", file=sys.stderr)


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


def _show_plan(plan: Plan, overrides: Sequence[str]) -> None:
    for line in overrides:
        print(f"override: {line}")
    for line in plan.lines():
        # 40,000 elements on one line are for JSON.
        print(cut(line))
    for reason in (*plan.unsafe, *plan.lacking):
        print(f"left out: {reason}")
    if not (plan or plan.unsafe or plan.lacking):
        print("nothing to do")


# What is new, what is gone and what is another way, as diff(1) and others have them.
COLOURS = {"+": "32", "-": "31", "~": "33"}


def _coloured(change: str) -> str:
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return change
    return f"\x1b[{COLOURS[change[0]]}m{change}\x1b[0m"


def _demo(arguments: argparse.Namespace) -> int:
    from lbd.lab.demo import run

    if os.geteuid() != 0:
        raise ExitError(NO_PERMISSION, "the demo makes network namespaces, which takes root")
    code: int = run(colour=sys.stdout.isatty() and not arguments.no_colour and "NO_COLOR" not in os.environ)
    return code
