"""The rules of ARCHITECTURE.md that a machine can hold: who imports what, who prints, how long a file gets.

Each rule is a function from modules to complaints, and each is shown to bite on a module that breaks it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"

# From the top. A module may import from its own part and from the layers below it; parts of one layer do not
# know each other.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"asking"},
    {"daemon", "lab"},
    {"commands", "applied"},
    {
        "intent",
        "packets",
        "balancing",
        "checking",
        "overrides",
        "leftovers",
        "unanswered",
        "drifts",
        "verdict",
        "known",
    },
    {"host", "testing", "client"},
    {"reconcile"},
    {"core"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# One dependency, one door: the modules that may import it. A prefix covers what begins with it.
DOORS = {
    "dns": ("lbd.host.probe_dns",),
    "h11": ("lbd.host.probe_h1",),
    "h2": ("lbd.host.probe_h2",),
    "nftables": ("lbd.host.nft",),
    "watchdog": ("lbd.host.watch",),
    "sdnotify": ("lbd.host.notify",),
    "pydantic": ("lbd.core.config",),
    "toml_rs": ("lbd.core.config",),
    "pyroute2": ("lbd.host.net",),
}

# `lbd status` has to answer in 150 ms, and importing pyroute2 alone takes most of that: what the client
# imports, and what that imports in turn, is lbd's or of the standard library.
LIGHT = "lbd.client"

# What would let the clock, the world or chance into the core.
IMPURE = {
    "os",
    "socket",
    "time",
    "logging",
    "subprocess",
    "asyncio",
    "random",
    "secrets",
    "pathlib",
    "threading",
}

# What is in one of those and depends on its arguments alone.
PURE = {"random.Random"}

MAY_PRINT = ("lbd.cli", "lbd.asking", "lbd.lab.narrator")

LONGEST = 350  # lines; what is read in one sitting

# These say "it does things with"; the thing done is the better name.
EMPTY_WORDS = re.compile(r"Manager|Helper|Util|Base(?![a-z])|Handler")


@dataclass(frozen=True)
class Module:
    name: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @property
    def part(self) -> str:
        """The second word of its name: core, host, cli; empty for lbd itself."""
        return self.name.partition(".")[2].partition(".")[0]


def modules() -> list[Module]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found.append(Module(".".join(parts).removesuffix(".__init__"), path.read_text()))
    return found


def imports(module: Module) -> Iterator[str]:
    """Every name imported anywhere in the module, in full: `from lbd.core import plan` is lbd.core.plan."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = module.name.split(".")[: -node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def upward_imports(module: Module) -> Iterator[str]:
    for name in imports(module):
        target = name.split(".")[1] if name.startswith("lbd.") else ""
        if target not in LEVEL or module.part not in LEVEL or target == module.part:
            continue
        if LEVEL[target] <= LEVEL[module.part]:
            yield f"imports {name}, which is not below it"


def unknown_part(module: Module) -> Iterator[str]:
    if module.part and module.part not in LEVEL:
        yield "has no layer: give it one in LAYERS"


def wrong_doors(module: Module) -> Iterator[str]:
    for name in imports(module):
        doors = DOORS.get(name.partition(".")[0])
        if doors and not module.name.startswith(doors):
            yield f"imports {name}, whose door is {' or '.join(doors)}"


def foreign_in_client(module: Module) -> Iterator[str]:
    if module.name == LIGHT:
        for name in imports(module):
            if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith("lbd.core."):
                yield f"imports {name}, which is neither of the standard library nor of the core"


def impure_core(module: Module) -> Iterator[str]:
    if module.part == "core":
        for name in imports(module):
            if name.partition(".")[0] in IMPURE and name not in PURE:
                yield f"imports {name}: the core has no clock, no chance and no world"


def prints(module: Module) -> Iterator[str]:
    if not module.name.startswith(MAY_PRINT):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield f"prints in line {node.lineno}"


def too_long(module: Module) -> Iterator[str]:
    if (lines := len(module.text.splitlines())) > LONGEST:
        yield f"has {lines} lines, more than {LONGEST}"


def empty_names(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and EMPTY_WORDS.search(node.name):
            yield f"class {node.name} does not say what it does"


RULES = (
    upward_imports,
    unknown_part,
    wrong_doors,
    foreign_in_client,
    impure_core,
    prints,
    too_long,
    empty_names,
)
Rule = Callable[[Module], Iterable[str]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps_the_rule(rule: Rule):
    complaints = [f"{module.name} {complaint}" for module in modules() for complaint in rule(module)]
    assert not complaints, "\n".join(complaints)


BREAKS = (
    (upward_imports, "lbd.core.plan", "from lbd.host import nft"),
    (upward_imports, "lbd.core.plan", "def f():\n    import lbd.daemon"),
    (upward_imports, "lbd.core.plan", "from ..host import nft"),
    (upward_imports, "lbd.reconcile", "from lbd.testing import FakeHost"),
    (upward_imports, "lbd.host.nft", "from lbd import daemon"),
    (upward_imports, "lbd.testing", "from lbd.host.net import read"),
    (upward_imports, "lbd.packets", "from lbd.intent import Intent"),
    (upward_imports, "lbd.balancing", "from lbd.intent import Intent"),
    (upward_imports, "lbd.lab.demo", "from lbd.daemon import main"),
    (unknown_part, "lbd.extra", ""),
    (wrong_doors, "lbd.daemon", "import nftables"),
    (wrong_doors, "lbd.host.net", "from watchdog.observers import Observer"),
    (wrong_doors, "lbd.core.plan", "import pydantic"),
    (foreign_in_client, "lbd.client", "import pyroute2"),
    (impure_core, "lbd.core.plan", "import os"),
    (impure_core, "lbd.core.plan", "from random import random"),
    (impure_core, "lbd.core.plan", "from pathlib import Path"),
    (impure_core, "lbd.core.plan", "if TYPE:\n    import os.path"),
    (prints, "lbd.daemon", "print('hello')"),
    (too_long, "lbd.daemon", "\n" * (LONGEST + 1)),
    (empty_names, "lbd.daemon", "class NftManager: ..."),
    (empty_names, "lbd.daemon", "class BaseProbe: ..."),
)


@pytest.mark.parametrize(("rule", "name", "text"), BREAKS)
def test_rule_bites(rule: Rule, name: str, text: str):
    assert list(rule(Module(name, text)))


ALLOWED = (
    (upward_imports, "lbd.cli", "from lbd.lab import demo\nfrom lbd.daemon import main"),
    (upward_imports, "lbd.host.nft", "from lbd.core import plan\nfrom lbd import __version__"),
    (wrong_doors, "lbd.host.nft_worker", "import nftables"),
    (wrong_doors, "lbd.core.config.model", "import pydantic"),
    (impure_core, "lbd.core.maglev", "from random import Random"),
    (foreign_in_client, "lbd.client", "import json\nfrom lbd.core import control"),
    (prints, "lbd.cli", "print('hello')"),
    (empty_names, "lbd.daemon", "class Baseline: ..."),
)


@pytest.mark.parametrize(("rule", "name", "text"), ALLOWED)
def test_rule_lets_pass_what_is_right(rule: Rule, name: str, text: str):
    assert not list(rule(Module(name, text)))


def test_client_imports_nothing_heavy():
    show = "import sys, lbd.client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r}); {show}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(DOORS) & set(done.stdout.split())


def test_every_module_is_looked_at():
    names = {module.name for module in modules()}
    assert {"lbd", "lbd.core.state"} <= names
