"""What is said of backends at run time: whom it means, what holds, and when a drain has ended."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.core import memory
from lbd.core.config import parse
from lbd.core.drains import Drains, Terms, draining
from lbd.core.observed import Observed, Override
from lbd.core.overrides import (
    Asked,
    Said,
    StandsInFileError,
    UnknownError,
    answer,
    decide,
    find,
    within,
)
from lbd.core.rotation import condition
from lbd.core.source import Source
from lbd.core.status import Standing, document, known, overridden
from running import service

AT = "2026-01-02T03:04:05+00:00"
DRAIN, MAINTENANCE = Said("drain", 0, AT), Said("maintenance", 7, AT)


def config(*services):
    return parse(Source("lbd.toml", "\n".join(services)))


WEB = config(
    service("192.0.2.1:80", ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80"], "web"),
    service("192.0.2.2:8000-8009", ["10.0.0.1:9000-9009"], "range"),
    service("[2001:db8::1]:80", ["[fd00::1]:80", "[fd00::2]"], "six"),
    service("192.0.2.3:80", [], "empty"),
)


@pytest.mark.parametrize(
    ("name", "words", "meant"),
    [
        ("web", "10.0.0.1:80", "10.0.0.1:80"),
        ("web", "10.0.0.2", "10.0.0.2:80"),
        ("range", "10.0.0.1:9000-9009", "10.0.0.1:9000-9009"),
        ("range", "10.0.0.1", "10.0.0.1:9000-9009"),
        ("six", "[FD00:0:0::1]:80", "[fd00::1]:80"),
        ("six", "fd00::1", "[fd00::1]:80"),
        ("six", "[fd00::1]", "[fd00::1]:80"),
        ("six", "fd00:0::2", "[fd00::2]"),
    ],
)
def test_backend_is_meant_by(name, words, meant):
    assert [
        part(each) for part, each in zip((lambda s: s.name, str), find(WEB, name, words), strict=True)
    ] == [
        name,
        meant,
    ]


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("wbe", "10.0.0.1:80", 'no service "wbe"; did you mean "web"?; there are web, range, six, empty'),
        ("web", "10.0.0.1", '"10.0.0.1" is several backends of service "web": 10.0.0.1:80, 10.0.0.1:81'),
        (
            "web",
            "10.0.0.2:82",
            'no backend "10.0.0.2:82"; did you mean "10.0.0.2:80"?; there are 10.0.0.1:80,',
        ),
        ("range", "10.0.0.1:9000", "there is 10.0.0.1:9000-9009"),
        ("empty", "10.0.0.1", "there are none"),
        ("web", "", "there are 10.0.0.1:80"),
        ("web", "\x1b[2J", r'"\x1b[2J"'),
        ("web", "[::1", "has no backend"),
        ("web", ":80", "has no backend"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(name, words, told):
    with pytest.raises(UnknownError) as error:
        find(WEB, name, words)
    assert told in str(error.value)


@given(st.text(max_size=20), st.text(max_size=40))
def test_any_words_find_one_or_are_told(name, words):
    for wanted in (name, "web", "six"):
        with suppress(UnknownError):
            found, backend = find(WEB, wanted, words)
            assert backend in found.backends


def test_of_many_the_first_are_listed():
    many = config(service("192.0.2.1:80", [f"10.0.0.{n}:80" for n in range(1, 60)], "web"))
    with pytest.raises(UnknownError, match=r"and 39 more$"):
        find(many, "web", "x")


# What holds after a command.


def one(state="up", **options):
    """A service whose first backend is in this state, and both."""
    first = {"address": "10.0.0.1:80", "state": state}
    found = config(service("192.0.2.1:80", [first, "10.0.0.8:80"], "web", **options))
    return found, found.services[0], found.services[0].backends[0]


KEY = ("web", "10.0.0.1:80")


@pytest.mark.parametrize("before", [None, DRAIN, MAINTENANCE])
@pytest.mark.parametrize("wish", [None, DRAIN, MAINTENANCE])
def test_the_last_word_holds(before, wish):
    _, web, backend = one()
    other = {("web", "10.0.0.9:80"): MAINTENANCE}
    said = other | ({KEY: before} if before else {})
    after = decide(said, web, backend, wish)
    assert after == other | ({KEY: wish} if wish else {})
    # So that nothing is written when nothing changes.
    assert (after is said) == (before == wish)


def test_the_first_who_said_it_is_kept():
    _, web, backend = one()
    said = {KEY: DRAIN}
    assert decide(said, web, backend, replace(DRAIN, uid=7)) is said


@pytest.mark.parametrize("state", ["drain", "down", "maintenance"])
def test_what_stands_in_the_file_is_not_undone(state):
    _, web, backend = one(state)
    with pytest.raises(StandsInFileError, match=f"state = '{state}' stands in the file; change it there"):
        decide({}, web, backend, None)
    # What was said beside it can be taken back.
    assert decide({KEY: DRAIN}, web, backend, None) == {}


def test_what_is_said_of_backends_that_are_gone_is_dropped():
    said = {KEY: DRAIN, ("web", "10.0.0.9:80"): DRAIN, ("gone", "10.0.0.1:80"): MAINTENANCE}
    found, *_ = one()
    assert within(said, found) == {KEY: DRAIN}
    kept = {KEY: DRAIN}
    assert within(kept, found) is kept


STATES = {
    ("up", None): "up",
    ("up", "drain"): "drain",
    ("up", "maintenance"): "maintenance",
    ("drain", None): "drain",
    ("drain", "drain"): "drain",
    ("drain", "maintenance"): "maintenance",
    ("down", None): "down",
    ("down", "drain"): "down",
    ("down", "maintenance"): "down",
    ("maintenance", None): "maintenance",
    ("maintenance", "drain"): "maintenance",
    ("maintenance", "maintenance"): "maintenance",
}
SAID = {None: None, "drain": DRAIN, "maintenance": MAINTENANCE}


@pytest.mark.parametrize(("file", "word"), STATES)
def test_the_stronger_of_file_and_word_holds(file, word):
    found, web, backend = one(file)
    said = SAID[word]
    observed = Observed(overrides={KEY: said.override} if said else {})
    assert condition(web, backend, observed).state == STATES[file, word]
    told = answer(Asked(web, backend, None, said, 3), observed)
    assert told["state"] == STATES[file, word]
    assert told["message"].startswith(f"web 10.0.0.1:80: {told['state']}")
    assert ("which is stronger" in told["message"]) == (bool(word) and told["state"] != word)
    row = document(Standing("converged", "f", observed=observed), found)["services"][0]["backends"][0]
    # Never silently beside the file.
    assert (said is not None and said.override.reason in row["reason"]) == bool(word)
    assert known(document(Standing("converged", "f", observed=observed), found)) == observed


WEB_ONE = "web 10.0.0.1:80"
ANSWERS = [
    ((None, DRAIN, 3), {}, f"{WEB_ONE}: drain (3 connections are left)"),
    ((None, DRAIN, 1), {}, f"{WEB_ONE}: drain (1 connection is left)"),
    ((None, DRAIN, None), {}, f"{WEB_ONE}: drain (its connections could not be counted)"),
    ((DRAIN, DRAIN, 0), {}, f"{WEB_ONE}: drain (since {AT}, said by uid 0; no connection is left)"),
    ((None, DRAIN, 0), {"ended": frozenset({KEY})}, f"{WEB_ONE}: drained (no connection is left)"),
    ((DRAIN, MAINTENANCE, 2), {}, f"{WEB_ONE}: maintenance (2 connections are left)"),
    ((DRAIN, None, 2), {}, f"{WEB_ONE}: up"),
    ((None, None, 2), {}, f"{WEB_ONE}: up (nothing was to be undone)"),
    ((DRAIN, None, 2), {"dead": frozenset({KEY})}, f"{WEB_ONE}: down (its checks say so)"),
    (
        (None, None, 2),
        {"overrides": {KEY: Override("drain", "its agent says drain")}},
        f"{WEB_ONE}: drain (nothing was to be undone; its agent says drain)",
    ),
]


@pytest.mark.parametrize(("asked", "observed", "message"), ANSWERS)
def test_answer(asked, observed, message):
    _, web, backend = one()
    before, now, count = asked
    overrides = {"overrides": {KEY: now.override}} if now else {}
    told = answer(Asked(web, backend, before, now, count), Observed(**(overrides | observed)))
    assert told["message"] == message
    assert told["ended"] == ("drained" in message)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nobody takes new connections now"),
        ({"sorry_server": "10.0.0.9:80"}, "only the sorry server takes new connections now"),
    ],
)
def test_answer_tells_when_it_was_the_last(options, words):
    _, web, backend = one(**options)
    other = ("web", "10.0.0.8:80")
    observed = Observed(overrides={KEY: DRAIN.override, other: DRAIN.override})
    told = answer(Asked(web, backend, None, DRAIN, 0), observed)
    assert told["message"] == f"{WEB_ONE}: drain (no connection is left; {words})"


def test_answer_where_nothing_is_tracked():
    found = config(
        service(
            "192.0.2.1:80",
            ["10.0.0.1", "10.0.0.2"],
            "web",
            return_path="direct",
            interface="eth0",
            scheduler="maglev",
        )
    )
    (web,) = found.services
    observed = Observed(overrides={("web", "10.0.0.1"): DRAIN.override})
    observed = replace(observed, ended=Drains().follow(draining(found, observed), 1.0).ended)
    told = answer(Asked(web, web.backends[0], None, DRAIN), observed)
    assert told["message"] == "web 10.0.0.1: drained (its connections are not tracked)"
    assert told["reason"].startswith("drained, its connections are not tracked; drained by uid 0")


def test_plan_tells_what_holds_beside_the_file():
    found, *_ = one()
    observed = Observed(overrides={KEY: DRAIN.override, ("web", "10.0.0.9:80"): MAINTENANCE.override})
    first, second = overridden(found, observed)
    assert first == f"{WEB_ONE}: drained by uid 0 at {AT} (lbd undrain ends it)"
    assert second.startswith(f"web 10.0.0.9:80: in maintenance by uid 7 at {AT}")
    assert second.endswith("; the file does not have it, and once in force it is forgotten")


# What is kept.

NAMES = st.tuples(st.text(max_size=9), st.text(max_size=9))
WORDS = st.builds(
    Said, st.sampled_from(["drain", "maintenance"]), st.integers(0, 1 << 32), st.text(max_size=9)
)


@given(st.dictionaries(NAMES, WORDS))
def test_kept_is_read_as_it_was(said):
    assert memory.decode_overrides(memory.encode_overrides(said)) == said


@pytest.mark.parametrize(
    "item",
    [
        {"service": "w", "backend": "b", "state": "down", "uid": 0, "at": AT},
        {"service": "w", "backend": "b", "state": "drain", "uid": "0", "at": AT},
        {"service": "w", "state": "drain", "uid": 0, "at": AT},
        {"service": "w", "backend": "b", "state": "drain", "uid": 0},
        [],
    ],
)
def test_anything_else_is_refused(item):
    with pytest.raises(ValueError, match=r"."):
        memory.decode_overrides(memory._seal("overrides", [item]))


# When a drain has ended.


def test_who_drains():
    backends = [
        {"address": "10.0.0.1", "state": "drain"},
        "10.0.0.2",
        "10.0.0.3",
        {"address": "10.0.0.4", "state": "down"},
        {"address": "10.0.0.5", "weight": 0},
        {"address": "10.0.0.6", "state": "drain", "drain_until": "2026-01-01T00:00:00Z"},
    ]
    text = service("192.0.2.1:80", backends, "web", persistence="5m")
    found = config(text.replace('"2026-01-01T00:00:00Z"', "2026-01-01T00:00:00Z"))
    names = [("web", f"10.0.0.{n}") for n in range(1, 7)]
    overrides = {names[1]: DRAIN.override, names[2]: MAINTENANCE.override, names[3]: DRAIN.override}
    observed = Observed(overrides=overrides, expired=frozenset({names[5]}), dead=frozenset({names[1]}))
    assert draining(found, observed) == dict.fromkeys(names[:2], Terms(quiet=300.0))
    # Those that have ended go on until they are undone.
    assert draining(found, replace(observed, ended=frozenset(names))).keys() == set(names[:2])


def follow(*steps, quiet=0.0, tracked=True):
    """What is ended after each of these counts, a second apart."""
    drains = Drains().follow({KEY: Terms(quiet, tracked)}, 0.0)
    seen = []
    for at, count in enumerate(steps, 1):
        drains = drains.step({KEY: count} if count else {}, float(at))
        seen.append(KEY in drains.ended)
    return seen


def test_two_counts_in_a_row_without_a_connection_end_it():
    assert follow(3, 1, 0, 0, 0) == [False, False, False, True, True]
    assert follow(0, 1, 0, 1, 0) == [False] * 5
    assert follow(0, 0) == [False, True]


def test_where_clients_come_back_it_is_quiet_for_as_long():
    assert follow(0, 0, 0, 0, 0, quiet=3.0) == [False, False, False, True, True]
    assert follow(0, 0, 0, 1, 0, 0, 0, 0, quiet=3.0) == [*[False] * 7, True]


def test_what_is_not_tracked_has_ended_at_once():
    drains = Drains().follow({KEY: Terms(tracked=False)}, 0.0)
    assert drains.ended == {KEY}
    assert not drains.open


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(0, 4))
def test_it_never_ends_with_a_connection_and_then_stays(counts, quiet):
    seen = follow(*counts, quiet=float(quiet))
    assert seen == sorted(seen)
    if True in seen:
        first = seen.index(True)
        assert not any(counts[max(0, first - max(1, quiet)) : first + 1])


def test_drained_anew_is_counted_anew():
    terms = {KEY: Terms()}
    ended = Drains().follow(terms, 0.0).step({}, 1.0).step({}, 2.0)
    assert ended.ended == {KEY}
    assert ended.follow(dict(terms), 3.0) is ended
    assert ended.follow(terms | {("web", "x"): Terms()}, 3.0).ended == {KEY}
    assert ended.follow(terms | {("web", "x"): Terms()}, 3.0).began[KEY] == 0.0
    again = ended.follow({}, 3.0).follow(terms, 4.0)
    assert again.open == {KEY}
    assert again.began == {KEY: 4.0}
