"""What is said of files that are right: in which words, and that looking stays cheap."""

import json
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd import cli
from lbd.core import notes as module
from lbd.core.config import parse
from lbd.core.notes import MANY_TURNS, MOST_LINES, Note, lines, notes
from lbd.core.schedule import pick
from lbd.core.settings import Backend, Config, Listen, Ports, Service
from lbd.core.source import Source

FOUR, SIX = '"198.51.100.1:80"', '"[2001:db8::9]:80"'


def weighted(*weights: int, more: str = "") -> str:
    """Return backends with these weights, 192.0.2.1 and up."""
    entries = (
        f'{{ address = "192.0.{2 + i // 250}.{i % 250 + 1}", weight = {weight}{more} }}'
        for i, weight in enumerate(weights)
    )
    return f"[{', '.join(entries)}]"


def of(backends: str, keys: str = "", listen: str = FOUR) -> list[str]:
    """Return what is said of a file with one service."""
    where = f"listen = {listen}" if listen else ""
    text = f'[[service]]\nname = "s"\n{where}\nbackends = {backends}\n{keys}\n'
    return [str(note) for note in notes(parse(Source("f", text)))]


@pytest.mark.parametrize(
    ("backends", "keys"),
    [
        ("[]", ""),
        ("[]", "sorry_server = '192.0.2.9'"),
        (weighted(65535), ""),
        (weighted(1, 1), ""),
        (weighted(1, 2, 3), "scheduler = 'round-robin'"),
        (weighted(1, 4095), "scheduler = 'random'"),
        (weighted(20000, 40001, 5535), "scheduler = 'random'"),
        (weighted(*[1] * 15), ""),
        (weighted(*[1] * 100), ""),
        (weighted(1, 1, 1), "table_size = 1021"),
        # One backend, and one that is used when that is gone.
        ('["192.0.2.1", { address = "192.0.2.2", weight = 65535, backup = true }]', ""),
        ('["192.0.2.1", { address = "192.0.2.2", weight = 65535, state = "down" }]', ""),
        # Shares are made anew of what is open.
        (weighted(1, 65535), "scheduler = 'least-connections'"),
    ],
)
def test_nothing_to_say(backends: str, keys: str):
    assert of(backends, keys) == []


FAR = "weights are scaled to 4,096 in all, and these are too far apart for that"
SMALL = "table_size = {} is small for these weights; a larger one comes nearer"


@pytest.mark.parametrize(
    ("backends", "keys", "share", "why"),
    [
        (
            weighted(1, 65535),
            "scheduler = 'random'",
            "192.0.2.1:80 with weight 1 of 65,536 gets 0.0244 % of new connections instead of 0.00153 %",
            FAR,
        ),
        (
            weighted(65535, 1),
            "scheduler = 'round-robin'",
            "192.0.2.2:80 with weight 1 of 65,536 gets 0.0244 % of new connections instead of 0.00153 %",
            FAR,
        ),
        (
            weighted(1, 65535),
            "",
            "192.0.2.1:80 with weight 1 of 65,536 gets 0.0244 % of new connections instead of 0.00153 %",
            FAR,
        ),
        (
            weighted(1, 1, 1),
            "table_size = 5",
            "192.0.2.3:80 with weight 1 of 3 gets 20 % of new connections instead of 33.3 %",
            SMALL.format(5),
        ),
        (
            weighted(1, 1),
            "table_size = 3\nscheduler = 'source-hash'",
            "192.0.2.2:80 with weight 1 of 2 gets 33.3 % of new connections instead of 50 %",
            SMALL.format(3),
        ),
        # One that gets nothing is worse off than one that gets too much.
        (
            weighted(9, 1, 1),
            "table_size = 5",
            "192.0.2.3:80 with weight 1 of 11 gets 0 % of new connections instead of 9.09 %",
            SMALL.format(5),
        ),
        (
            weighted(*[1] * 255),
            "",
            "192.0.2.1:80 with weight 1 of 255 gets 0.415 % of new connections instead of 0.392 %",
            "the table has 4,093 slots; a larger table_size comes nearer",
        ),
        # The last in the order of their text get nothing of what is left over.
        (
            weighted(*[1] * 4096),
            "",
            "192.0.9.86:80 with weight 1 of 4,096 gets 0.0229 % of new connections instead of 0.0244 %",
            "the table has 65,521 slots, and none has more",
        ),
    ],
)
def test_shares_that_are_off(backends: str, keys: str, share: str, why: str):
    assert of(backends, keys) == [f'service "s": backend {share}: {why}']


def test_the_family_that_is_off_most_is_told():
    both = '["192.0.2.1", "192.0.2.2", "[2001:db8::1]:90", { address = "[2001:db8::2]:90", weight = 99 }]'
    (note,) = of(both, "table_size = 13", f"[{FOUR}, {SIX}]")
    assert note.startswith('service "s": backend [2001:db8::1]:90 with weight 1 of 100 gets 0 % of')


def test_a_range_and_a_mark_have_backends_without_a_port():
    for keys, listen in (("", '"198.51.100.1:80-90"'), ("mark = 7", "")):
        (note,) = of(weighted(1, 1), f"table_size = 3\n{keys}", listen)
        assert "backend 192.0.2.2 with weight" in note


HASHED = (
    'service "s": scheduler "{}" hashes the source address alone, and sends a client to the same backend '
    "anyway; persistence adds nothing to that until backends change"
)


@pytest.mark.parametrize(
    ("keys", "listen", "expected"),
    [
        ("scheduler = 'source-hash'\npersistence = '1h'", FOUR, [HASHED.format("source-hash")]),
        ("hash = ['source-address']\npersistence = '1h'", FOUR, [HASHED.format("maglev")]),
        ("persistence = '1h'", '"198.51.100.1:*/any"', [HASHED.format("maglev")]),
        # A single port is the same for all, and is not hashed.
        (
            "hash = ['source-address', 'destination-port']\npersistence = '1h'",
            FOUR,
            [HASHED.format("maglev")],
        ),
        ("scheduler = 'source-hash'", FOUR, []),
        ("persistence = '1h'", FOUR, []),
        ("scheduler = 'random'\npersistence = '1h'", FOUR, []),
        # Clients of one network stay together by persistence alone.
        ("scheduler = 'source-hash'\npersistence = { timeout = '1h', prefix_v4 = 24 }", FOUR, []),
        (
            "scheduler = 'source-hash'\npersistence = { timeout = '1h', prefix_v6 = 64 }",
            FOUR,
            [HASHED.format("source-hash")],
        ),
    ],
)
def test_persistence_that_adds_nothing(keys: str, listen: str, expected: list[str]):
    assert of(weighted(1, 1), f"ssh = true\n{keys}", listen) == expected


def service(number: int, weights: tuple[int, ...] = (1, 1), scheduler: str = "maglev") -> Service:
    address = ip_address(0x0A000000 + number)
    backends = tuple(
        Backend(ip_address(0x0B000000 + number * 256 + i), weight=weight) for i, weight in enumerate(weights)
    )
    return Service(f"s{number}", (Listen(address, Ports(80, 80)),), backends, scheduler=scheduler)  # type: ignore[arg-type]


UDP = 'a check of type "udp" without "expect" takes silence for good: only an error that comes back fails it'
SLOW = (
    'slow_start changes shares 10 times, and with return_path = "direct" each change sends some open '
    "connections to another backend"
)
PORT = (
    "checks ask port 443 of 192.0.2.1 alone, and the service has 2 ports; write port = 443, or another, to "
    "say which"
)
AGENT = 'agents are asked at port 80, that of the service; write "port" if they listen on another'
TOGETHER = "all 2 backends are checked at 192.0.2.9, and go up and down together"
ONE, TWO = '["192.0.2.1"]', '["192.0.2.1", "192.0.2.2"]'
TWO_PORTS = '"198.51.100.1:443,80"'
DIRECT = TWO + '\ninterface = "eth0"\nreturn_path = "direct"'


@pytest.mark.parametrize(
    ("health", "backends", "listen", "expected"),
    [
        ("type = 'tcp'", ONE, FOUR, []),
        ("type = 'agent'\nport = 9", ONE, FOUR, []),
        ("type = 'agent'", ONE, FOUR, [AGENT]),
        ("type = 'agent'", "[]", FOUR, []),
        ("type = 'udp'\nexpect = ''", ONE, FOUR, []),
        ("type = 'udp'", ONE, FOUR, [UDP]),
        ("type = 'tcp'\naddress = '192.0.2.9'", ONE, FOUR, []),
        ("type = 'tcp'\naddress = '192.0.2.9'", '["192.0.2.1:1", "192.0.2.2:2"]', FOUR, []),
        ("type = 'tcp'\naddress = '192.0.2.9'", TWO, FOUR, [TOGETHER]),
        ("type = 'tcp'", DIRECT, FOUR, []),
        ("type = 'tcp'\nslow_start = '30s'", TWO, FOUR, []),
        ("type = 'tcp'\nslow_start = '30s'", DIRECT, FOUR, [SLOW]),
        ("type = 'tcp'\nport = 443", ONE, TWO_PORTS, []),
        ("type = 'icmp'", ONE, TWO_PORTS, []),
        ("type = 'tcp'", '["192.0.2.1:80"]', TWO_PORTS, []),
        ("type = 'tcp'", ONE, '["198.51.100.1:53", "198.51.100.1:53/udp"]', []),
        ("type = 'tcp'", ONE, TWO_PORTS, [PORT]),
    ],
)
def test_health_checks(health: str, backends: str, listen: str, expected: list[str]):
    said = of(backends, f"[service.health]\n{health}", listen)
    assert said == [f'service "s": {message}' for message in expected]


def test_many_services_that_take_turns():
    def taking_turns(count: int) -> tuple[Note, ...]:
        return notes(Config(services=tuple(service(i, scheduler="round-robin") for i in range(count))))

    assert taking_turns(MANY_TURNS) == ()
    (note,) = taking_turns(MANY_TURNS + 1)
    assert str(note) == (
        '101 listen addresses with scheduler "round-robin" have a chain each, and the time to load them '
        'grows with the square of their number: about 26 s for 10,000; with "random" services share chains'
    )
    # Those with one backend take no turns.
    assert notes(Config(services=tuple(service(i, (1,), "round-robin") for i in range(200)))) == ()


@pytest.fixture
def picks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What slots were made of, one entry for each time."""
    made: list[str] = []

    def counting(virtual, reading):
        made.append(virtual.service.name)
        return pick(virtual, reading)

    monkeypatch.setattr(module, "pick", counting)
    return made


def test_slots_are_made_once_for_the_same_weights(picks: list[str]):
    services = tuple(service(i, ((1, 1), (3, 1), (1, 2, 3))[i % 3]) for i in range(10_000))
    assert notes(Config(services=services)) == ()
    assert picks == ["s0", "s1", "s2"]


# Each of these services with two backends has 4,096 slots or a few less.
@pytest.mark.parametrize(("limit", "value"), [("MOST_POOLS", 10), ("MOST_SLOTS", 40_000)])
def test_beyond_so_many_different_weights_nothing_is_looked_at(
    picks: list[str], monkeypatch: pytest.MonkeyPatch, limit: str, value: int
):
    monkeypatch.setattr(module, limit, value)
    services = [service(i, (4093, i + 1), "random") for i in range(10)]
    known, new = service(10, (4093, 5), "random"), service(11, (1, 65535), "random")
    assert notes(Config(services=(*services, known))) == ()
    (note,) = notes(Config(services=(*services, known, new)))
    assert str(note) == (
        "weights differ much between services; shares were looked at for the first 10 sets of them"
    )
    assert len(picks) == 20


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.permutations(range(6)))
def test_what_is_said_does_not_depend_on_who_came_first(weights: list[int], order: list[int]):
    """Shares are those of the order of addresses, whichever service with the same weights was looked at."""
    one = service(1, tuple(weights))
    shuffled = [one.backends[i] for i in order if i < len(weights)]
    other = Service("other", one.listen, tuple(shuffled))
    for each in (one, other):
        alone = [note.message for note in notes(Config(services=(each,)))]
        after = notes(Config(services=(other, one) if each is one else (one, other)))
        assert [note.message for note in after if note.service == each.name] == alone


def test_a_person_is_not_told_more_than_is_read():
    found = [Note(f"s{i}", "is odd") for i in range(MOST_LINES)]
    assert list(lines(found)) == [f'note: service "s{i}": is odd' for i in range(MOST_LINES)]
    assert list(lines([*found, Note("", "all is odd")]))[MOST_LINES:] == [
        "note: 1 note more; `lbd check -o json` has all"
    ]


def test_check_says_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "lbd.toml"
    path.write_text(
        f'[[service]]\nname = "s"\nlisten = {FOUR}\ntable_size = 3\nbackends = {weighted(1, 1)}\n'
    )

    def check(*arguments: str) -> str:
        with pytest.raises(SystemExit) as done:
            cli.main(["check", "-c", str(path), *arguments])
        assert done.value.code == 0
        return capsys.readouterr().out

    message = (
        "backend 192.0.2.2:80 with weight 1 of 2 gets 33.3 % of new connections instead of 50 %: "
        "table_size = 3 is small for these weights; a larger one comes nearer"
    )
    assert check() == f'{path}: good: 1 service, 2 backends\nnote: service "s": {message}\n'
    assert json.loads(check("-o", "json")) == {
        "ok": True,
        "problems": [],
        "notes": [{"service": "s", "message": message}],
    }
