"""HAProxy's agent protocol, as its manual has it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lbd.core.agent import parse
from lbd.core.health import Result
from lbd.core.words import LONGEST_LINE


@pytest.mark.parametrize(
    ("line", "result"),
    [
        (b"75%", Result(True, weight=75)),
        (b"0%", Result(True, weight=0)),
        (b"100%", Result(True, weight=100)),
        (b"250%", Result(True, weight=100)),
        (b"up", Result(True, agent="")),
        (b"ready", Result(True, agent="")),
        (b"UP", Result(True, agent="")),
        (b"drain", Result(True, agent="drain")),
        (b"maint", Result(True, agent="maintenance")),
        (b"up drain", Result(True, agent="drain")),
        (b"drain up", Result(True, agent="drain")),
        (b"drain ready", Result(True, agent="")),
        (b"ready up 50%", Result(True, weight=50, agent="")),
        (b" ready,\tup ,, 50% ", Result(True, weight=50, agent="")),
        (b"50% maxconn:30", Result(True, weight=50)),
        (b"drain #upgrade until noon", Result(True, "upgrade until noon", agent="drain")),
        (b"down", Result(False, "the agent says down")),
        (b"fail", Result(False, "the agent says fail")),
        (b"stopped#by hand", Result(False, "the agent says stopped: by hand")),
        (b"down #up 10%", Result(False, "the agent says down: up 10%")),
        (b"down, 20%, drain", Result(False, "the agent says down", 20, "drain")),
        (
            b"down #\x1b[31mred\xff",
            Result(False, "the agent says down: \\x1b[31mred\N{REPLACEMENT CHARACTER}"),
        ),
        (b"up down", Result(False, "the agent says down")),
        (b"down up", Result(True, agent="")),
    ],
)
def test_a_line_means(line, result):
    assert parse(line) == result


@pytest.mark.parametrize(
    "line", [b"", b"   ", b"#down", b"hello", b"75", b"-5%", b"7.5%", b"\xff\xfe", b"9999999999%"]
)
def test_a_line_without_a_word_of_the_protocol_is_a_failure(line):
    result = parse(line)
    assert (result.passed, result.weight, result.agent) == (False, None, None)
    assert result.reason


WORDS = st.sampled_from(
    [b"up", b"down", b"drain", b"maint", b"ready", b"40%", b"400%", b"#", b" ", b",", b"\t"]
)


@given(st.one_of(st.binary(max_size=1024), st.lists(WORDS, max_size=40).map(b"".join)))
@example(b"down#" + b"x" * 1000)
def test_whatever_comes_is_a_result_that_can_be_shown(line):
    result = parse(line)
    assert result.reason.isprintable()
    assert len(result.reason) < LONGEST_LINE + 100
    assert result.passed or result.reason
    assert result.weight is None or 0 <= result.weight <= 100
