"""The status: its document is a contract, its text is for people."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings

from lbd.core.config import parse
from lbd.core.health import Belief
from lbd.core.observed import Observed
from lbd.core.show import text
from lbd.core.source import Source
from lbd.core.status import Standing, document, headline, known
from strategies import configs

CONFIG = parse(
    Source(
        "lbd.toml",
        """
        [[service]]
        name = "web"
        listen = ["192.0.2.1:80", "[2001:db8::1]:53/udp"]
        return_path = "masquerade"
        backends = [
            "10.0.0.1:8080",
            { address = "10.0.0.2", state = "drain" },
            { address = "10.0.0.3", weight = 0 },
            "[fd00::1]",
        ]
        [[service]]
        name = "planned"
        listen = "192.0.2.2:80"
        scheduler = "random"
        backends = []
        """,
    )
)
GOOD = Standing("converged", "/etc/lbd.toml", hash="0123456789abcdef", elements=512, generation=7)
REFUSED = Standing("degraded", "/etc/lbd.toml", hash="0123456789abcdef", error="lbd.toml:3:1: no")
LAST_GOOD = "the file on disk is refused, the last good one is in force"
DRIFT = {"time": "2026-01-02T03:04:05+00:00", "operations": 2, "by": "nft (pid 4711)"}


def test_document_has_the_keys_of_the_contract():
    found = document(GOOD, CONFIG)
    assert found == {
        "state": "converged",
        "problems": [],
        "config": {"path": "/etc/lbd.toml", "hash": "0123456789abcdef", "error": None},
        "services": [
            {
                "name": "web",
                "state": "up",
                "listen": ["192.0.2.1:80", "[2001:db8::1]:53/udp"],
                "scheduler": "maglev",
                "return_path": "masquerade",
                "backends": [
                    {"address": "10.0.0.1:8080", "weight": 1, "state": "up", "reason": ""},
                    {
                        "address": "10.0.0.2",
                        "weight": 1,
                        "state": "drain",
                        "reason": "state = 'drain' in the file",
                    },
                    {"address": "10.0.0.3", "weight": 0, "state": "up", "reason": "weight = 0 in the file"},
                    {"address": "[fd00::1]", "weight": 1, "state": "up", "reason": ""},
                ],
            },
            {
                "name": "planned",
                "state": "empty",
                "listen": ["192.0.2.2:80"],
                "scheduler": "random",
                "return_path": "gateway",
                "backends": [],
            },
        ],
        "drift": {"count": 0, "last": None},
        "kernel": {"elements": 512, "generation": 7},
    }
    assert json.loads(json.dumps(found)) == found


def test_document_without_a_configuration_says_why():
    found = document(Standing("degraded", "/etc/lbd.toml", error="no such file"), None)
    assert found["services"] == []
    assert found["config"]["error"] == "no such file"


def test_service_whose_backends_take_no_part_is_empty():
    service = '[[service]]\nname = "w"\nlisten = "192.0.2.1:80"\nbackends = [%s]'
    for out in ('state = "down"', 'state = "drain"', "weight = 0"):
        config = parse(Source("f", service % f'{{ address = "10.0.0.1", {out} }}'))
        assert document(GOOD, config)["services"][0]["state"] == "empty"


@pytest.mark.parametrize(
    ("standing", "config", "line"),
    [
        (GOOD, CONFIG, "converged: 2 services, 4 backends"),
        (
            REFUSED,
            CONFIG,
            f"degraded: 2 services, 4 backends; {LAST_GOOD}: lbd.toml:3:1: no",
        ),
        (REFUSED, None, "no configuration in force: lbd.toml:3:1: no"),
        (
            Standing("degraded", "f", problems=("one", "two")),
            CONFIG,
            "degraded: 2 services, 4 backends; one",
        ),
    ],
)
def test_headline_is_one_line(standing, config, line):
    assert headline(standing, config) == line


TEXT = """\
converged: /etc/lbd.toml (0123456789ab)
SERVICE  LISTEN            SCHEDULER  RETURN PATH  BACKEND        WEIGHT  STATE  REASON
web      192.0.2.1:80      maglev     masquerade   10.0.0.1:8080  1       up
                                                   10.0.0.2       1       drain  state = 'drain' in the file
planned  192.0.2.2:53/udp  random     gateway      (none)                 empty
drift repaired: 0
kernel: 512 elements, generation 7
"""


def test_text_is_a_table_of_the_document():
    status = document(GOOD, CONFIG)
    status["services"][0]["listen"] = ["192.0.2.1:80"]
    status["services"][0]["backends"][2:] = []
    status["services"][1]["listen"] = ["192.0.2.2:53/udp"]
    assert "".join(f"{line}\n" for line in text(status, colour=False)) == TEXT


def test_text_tells_what_is_wrong_first():
    standing = Standing(
        "degraded", "f", error="f:3:1: no", problems=("one", "two"), drifts=3, last_drift=DRIFT
    )
    lines = list(text(document(standing, None), colour=False))
    assert lines[:4] == [
        "degraded: f (nothing in force)",
        "  the file on disk is refused: f:3:1: no",
        "  one",
        "  two",
    ]
    assert "drift repaired: 3, last 2026-01-02T03:04:05+00:00 by nft (pid 4711)" in lines


def test_column_with_nothing_in_it_is_left_out():
    status = document(GOOD, CONFIG)
    del status["services"][0]["backends"][1:]
    titles = list(text(status, colour=False))[1]
    assert titles.split()[-2:] == ["WEIGHT", "STATE"]


def test_colour_changes_no_width():
    plain = list(text(document(GOOD, CONFIG), colour=False))
    painted = list(text(document(GOOD, CONFIG), colour=True))
    assert painted[0].startswith("\x1b[32mconverged\x1b[0m")
    for code in ("\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"):
        painted = [line.replace(code, "") for line in painted]
    assert [line.rstrip() for line in painted] == plain


def test_full_backend_and_counted_connections_are_shown():
    service = '[[service]]\nname = "w"\nlisten = "192.0.2.1:80"\nbackends = [%s, "10.0.0.2"]'
    config = parse(Source("f", service % '{ address = "10.0.0.1", max_connections = 20 }'))
    one, two = ("w", "10.0.0.1"), ("w", "10.0.0.2")
    standing = replace(
        GOOD, connections={one: 19, two: 0}, observed=Observed(full=frozenset({one}), shares={two: 7})
    )
    status = document(standing, config)
    (found,) = status["services"]
    assert found["state"] == "up"
    assert found["backends"] == [
        {
            "address": "10.0.0.1",
            "weight": 1,
            "state": "full",
            "reason": "max_connections = 20 in the file",
            "connections": 19,
        },
        {"address": "10.0.0.2", "weight": 1, "state": "up", "reason": "", "connections": 0, "share": 7},
    ]
    assert known(status) == standing.observed
    lines = list(text(status, colour=False))
    assert lines[1].split()[-4:] == ["WEIGHT", "CONNECTIONS", "STATE", "REASON"]
    assert lines[2].split()[-9:-6] == ["1", "19", "full"]
    nobody = replace(standing, observed=Observed(full=frozenset({one, two})))
    assert document(nobody, config)["services"][0]["state"] == "empty"


def test_whoever_waits_for_others_to_fail_is_shown_as_such():
    service = """[[service]]
name = "w"
listen = "192.0.2.1:80"
backends = [{ address = "10.0.0.1"%s }, { address = "10.0.0.2", backup = true }]
sorry_server = "10.0.0.9"
"""
    for first, states, state in (
        ("", ["up", "standby"], "up"),
        (', state = "down"', ["down", "up"], "up"),
        (', state = "drain", drain_until = 2026-01-01T00:00:00Z', ["drain", "up"], "up"),
    ):
        (found,) = document(GOOD, parse(Source("f", service % first)))["services"]
        assert [backend["state"] for backend in found["backends"]] == states
        assert found["state"] == state
    gone = parse(Source("f", (service % ', state = "down"').replace("backup = true", 'state = "down"')))
    assert document(GOOD, gone)["services"][0]["state"] == "sorry"


def test_what_checks_say_is_shown_and_for_how_long():
    service = """[[service]]
name = "w"
listen = "192.0.2.1:80"
backends = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
health = { type = "tcp" }
"""
    one, two, three = (("w", f"10.0.0.{n}") for n in (1, 2, 3))
    beliefs = {
        one: Belief("failing", 100.0, 2, "connection refused"),
        two: Belief("passing", 500.0, 1, "no answer within 1s"),
        three: Belief("up", 900.0, came_up=900.0),
    }
    observed = Observed(dead=frozenset({two}), portions={three: 30})
    standing = replace(GOOD, beliefs=beliefs, observed=observed, now=923.5)
    status = document(standing, parse(Source("f", service)))
    (found,) = status["services"]
    assert [backend["state"] for backend in found["backends"]] == ["up", "down", "starting"]
    assert [backend["health"] for backend in found["backends"]] == [
        {"up": True, "seconds": 823.5, "against": 2, "reason": "connection refused"},
        {"up": False, "seconds": 423.5, "against": 1, "reason": "no answer within 1s"},
        {"up": True, "seconds": 23.5, "against": 0, "reason": ""},
    ]
    shown = [line.rpartition("  ")[2] for line in text(status, colour=False)][2:5]
    assert shown == [
        "2 checks failed: connection refused",
        "no answer within 1s, for 7 min; 1 check passed",
        "30 % of its weight",
    ]


@settings(max_examples=50, deadline=None)
@given(configs())
def test_any_configuration_can_be_shown(config):
    found = json.loads(json.dumps(document(GOOD, config)))
    lines = list(text(found, colour=False))
    rows = sum(max(1, len(service["backends"])) for service in found["services"])
    # Without a service there are no titles either.
    assert len(lines) == 3 + rows + (rows > 0)
    assert "\n" not in headline(GOOD, config)
