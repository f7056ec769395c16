"""When a backend that passes its check is said not to answer clients, and when it is not."""

import pytest

from lbd.core.attribution import Attribution, Sent
from lbd.core.config import parse
from lbd.core.health import Belief
from lbd.core.source import Source
from lbd.core.unanswered import Sample, problem, reported, suspects, waiting
from running import service

ONE = Sent(6, "192.0.2.1", 80, "10.0.0.1", 80)
KEY = ("web", "10.0.0.1:80")
CONFIG = parse(Source("lbd.toml", service("192.0.2.1:80", ["10.0.0.1:80", "10.0.0.2:80"])))
UP, DOWN = Belief("up", 0.0), Belief("down", 0.0)


def sample(unanswered="", answered=""):
    """Connections are letters."""
    return Sample(*({ONE: frozenset(each.encode() for each in ids)} for ids in (unanswered, answered)))


@pytest.mark.parametrize(
    ("before", "now", "number"),
    [
        (Sample(), sample("abc"), 0),
        (sample("abc"), sample("abc"), 3),
        (sample("abc"), sample("bcd"), 2),
        (sample("abc"), sample("def"), 0),
        (sample("abc", "x"), sample("abc", "x"), 3),
        (sample("abc", "x"), sample("abc"), 3),
        (sample("abc", "x"), sample("abc", "xy"), 0),
        (sample("abc"), sample("bc", "a"), 0),
        (sample("abc"), Sample(), 0),
    ],
)
def test_waiting(before, now, number):
    assert waiting(before, now, {ONE: KEY})[KEY] == number


def test_answer_on_another_listen_address_clears_the_backend():
    other = ONE._replace(address="192.0.2.2")
    before = Sample({ONE: frozenset({b"a"}), other: frozenset()}, {other: frozenset()})
    now = Sample({ONE: frozenset({b"a"}), other: frozenset()}, {other: frozenset({b"n"})})
    assert waiting(before, now, {ONE: KEY, other: KEY}) == {}


@pytest.mark.parametrize(("beliefs", "there"), [({KEY: UP}, True), ({KEY: DOWN}, False), ({}, False)])
def test_only_of_backends_that_pass_their_check(beliefs, there):
    stranger = ONE._replace(backend="10.0.0.9")
    found = suspects(Attribution(CONFIG), beliefs, [ONE, stranger])
    assert found == ({ONE: KEY} if there else {})


def test_words():
    said = reported(KEY, 5)
    assert said.message == problem(KEY, 5)
    assert said.message.startswith(
        'backend 10.0.0.1:80 of service "web" passes its check, and 5 connections of clients were never '
    )
    assert said.fields == {"LBD_SERVICE": "web", "LBD_BACKEND": "10.0.0.1:80", "LBD_CONNECTIONS": "5"}
