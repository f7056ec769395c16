"""`lbd demo` shows its six steps, says so when it cannot, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lbd.lab import demo, steps
from lbd.lab.namespaces import NAMES, wait_until
from lbd.lab.narrator import WIDTH

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 60.0

TITLES = (
    "1. No service: the director refuses",
    "2. The five-line service, without forwarding",
    "3. Forwarding, as is the default",
    "4. The director as the real server's gateway",
    "5. Two more real servers",
    "6. Somebody deletes all rules",
)


def start(directory):
    """Start the demo with its temporary files in `directory`, by which all its processes are known."""
    return subprocess.Popen(
        [sys.executable, "-m", "lbd", "demo"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(pid, directory):
    """Namespaces, files and processes of the demo that had this process id."""
    found = [*NAMES.glob(f"lbd-{pid}-*"), *directory.iterdir()]
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found += [path] if f"TMPDIR={directory}\0".encode() in path.read_bytes() else []
    return found


@pytest.fixture
def directory(tmp_path_factory):
    """A directory with a short name: the path of the control socket in it has 107 bytes at most (unix(7))."""
    return tmp_path_factory.mktemp("d")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole run: exit code, what it said on both streams, seconds, and what it left behind."""
    directory = tmp_path_factory.mktemp("d")
    begin = time.monotonic()
    process = start(directory)
    said, complained = process.communicate(timeout=MOST_SECONDS * 2)
    seconds = time.monotonic() - begin
    left = left_behind(process.pid, directory)
    return process.returncode, said, complained, seconds, left


def test_demo_ends_well_within_a_minute_and_leaves_nothing_behind(whole):
    code, said, complained, seconds, left = whole
    assert code == 0, said + complained
    assert complained == ""
    assert seconds < MOST_SECONDS
    assert left == []


def test_demo_has_the_six_steps_in_their_order(whole):
    said = whole[1]
    titles = re.findall(r"^\d\. .*$", said, re.MULTILINE)
    assert [title[: len(wanted)] for title, wanted in zip(titles, TITLES, strict=True)] == list(TITLES)


def test_demo_is_plain_and_narrow_when_nobody_looks(whole):
    said = whole[1]
    assert "\x1b" not in said
    # The table of `lbd status` is shown as it is.
    own = re.sub(r"^converged: .*?^kernel: .*?$", "", said, flags=re.MULTILINE | re.DOTALL)
    assert own != said
    assert [line for line in own.splitlines() if len(line) > WIDTH] == []


def test_demo_shows_the_path_one_part_further_at_each_step(whole):
    hops = re.findall(r"^ +(\w+ (?:enters|leaves)) +(eth\d) .*?(4000\d)", whole[1], re.MULTILINE)
    shown = {f"4000{n}": [hop[:2] for hop in hops if hop[2] == f"4000{n}"] for n in range(1, 5)}
    way = [
        ("request enters", "eth0"),
        ("request leaves", "eth1"),
        ("reply enters", "eth1"),
        ("reply leaves", "eth0"),
    ]
    assert shown == {
        "40001": [way[0], ("answer leaves", "eth0")],
        "40002": way[:1],
        "40003": way[:2],
        "40004": way,
    }


def test_demo_shows_the_rules_of_the_kernel_log(whole):
    said = " ".join(whole[1].split())
    assert 'log prefix "<<<<< PER IN:" level debug' in said
    assert 'log prefix ">>>>> POST OUT:" level debug' in said


def test_demo_counts_who_served_and_no_request_failed(whole):
    said = whole[1]
    counts = dict(re.findall(r"^ +(server\d) [\d.]+ +(\d+)  #+$", said, re.MULTILINE))
    assert counts.keys() == {"server1", "server2", "server3"}
    assert sum(map(int, counts.values())) >= steps.REQUESTS
    assert re.search(r"\d+ requests, 0 failed", said)


def test_demo_names_who_deleted_the_rules(whole):
    assert re.search(r"drift repaired in \d+ ms, changed by nft \(pid \d+\b", whole[1])
    assert re.search(r"The rules were away for \d+ ms", whole[1])


def test_five_lines_are_those_of_the_readme():
    text = (ROOT / "README.md").read_text()
    assert "".join(f"    {line}\n" for line in steps.FIVE_LINES.splitlines()) in text


@pytest.mark.parametrize(
    ("title", "number"),
    [("lbd demo:", signal.SIGTERM), (TITLES[1], signal.SIGINT), (TITLES[4], signal.SIGINT)],
)
def test_interrupted_demo_leaves_nothing_behind(directory, title, number):
    process = start(directory)
    # The lab is there when the first title is, the daemon's when the first step ends.
    assert any(line.startswith(title) for line in process.stdout)
    assert left_behind(process.pid, directory) != []
    process.send_signal(number)
    # Who is in a hurry must not break the tidying up.
    process.send_signal(signal.SIGINT)
    _, complained = process.communicate(timeout=20)
    assert (process.returncode, complained) == (130, "")
    assert left_behind(process.pid, directory) == []


def test_signal_while_the_lab_is_made_is_kept_until_it_is_there(directory):
    process = start(directory)
    assert wait_until(lambda: [*NAMES.glob(f"lbd-{process.pid}-*")], 10)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=20)
    assert (process.returncode, complained) == (130, "")
    assert TITLES[1] not in said
    assert left_behind(process.pid, directory) == []


def test_step_that_does_not_show_its_thing_fails_the_demo(monkeypatch, capfd):
    # With forwarding on, the request of step 2 leaves.
    monkeypatch.setattr(steps, "NOT_FORWARDING", f"{steps.WITH_LOG}\n# otherwise")
    handler = signal.getsignal(signal.SIGINT)
    assert demo.run(colour=False) == 1
    said, complained = capfd.readouterr()
    assert TITLES[1] in said
    assert TITLES[2] not in said
    assert "step 2 did not show what it must: net.ipv4.ip_forward was to be 0, not 1" in complained
    assert "lbd: applied lbd.toml" in complained
    assert signal.getsignal(signal.SIGINT) == handler
    assert not [*NAMES.glob(f"lbd-{os.getpid()}-*-client")]


def test_colour_is_for_those_who_ask_for_it(monkeypatch, capsys):
    monkeypatch.setattr(steps.Steps, "all", ())
    assert demo.run(colour=True) == 0
    assert "\x1b[" in capsys.readouterr().out
