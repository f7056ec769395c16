"""What the answers of name servers are worth."""

import pytest

from lbd.core.answers import Answer, judge
from lbd.core.health import Result
from lbd.core.probes import DnsProbe

TWO = ("192.0.2.9", "192.0.2.10")


def judged(answers, answer, record="A"):
    return judge(DnsProbe("www.example.org", record, answers), answer)


@pytest.mark.parametrize(
    ("record", "expected", "there"),
    [
        ("A", (), TWO),
        ("A", ("192.0.2.10",), TWO),
        ("A", tuple(reversed(TWO)), TWO),
        ("AAAA", ("2001:DB8::0:1",), ("2001:db8::1",)),
        ("CNAME", ("WWW.example.org",), ("www.Example.org.",)),
        ("MX", ("10 mail.example.org",), ("10 mail.example.org.",)),
        ("TXT", ("v=spf1 -all",), ('"v=spf1 -all"',)),
        ("TXT", ('"v=spf1 -all"',), ('"v=spf1 -all"',)),
    ],
)
def test_records_are_those_expected_however_they_are_written(record, expected, there):
    assert judged(expected, Answer("NOERROR", there), record) == Result(True)


@pytest.mark.parametrize(
    ("expected", "answer", "reason"),
    [
        ((), Answer("NXDOMAIN"), "NXDOMAIN"),
        ((), Answer("SERVFAIL", TWO), "SERVFAIL"),
        ((), Answer("NOERROR"), "no A record"),
        (("192.0.2.1",), Answer("NOERROR", ("192.0.2.9",)), "has 192.0.2.9, not 192.0.2.1"),
        (("192.0.2.9", "192.0.2.1"), Answer("NOERROR", TWO), "has 192.0.2.9, 192.0.2.10, not 192.0.2.1"),
        (("x",), Answer("NOERROR", ("a", "b", "c", "d", "e")), "has a, b, c, d, ..., not x"),
        (("x",), Answer("NOERROR", ("\x1b[31m",)), "has \\x1b[31m, not x"),
        (("x",), Answer("NOERROR", ("y",), truncated=True), "the answer is truncated, and has y, not x"),
        (("x",), Answer("NOERROR", (), truncated=True), "the answer is truncated, and no A record"),
    ],
)
def test_else_it_says_what_there_is(expected, answer, reason):
    assert judged(expected, answer) == Result(False, reason)


def test_an_answer_that_is_too_large_for_a_datagram_is_one():
    assert judged((), Answer("NOERROR", (), truncated=True)) == Result(True)


def test_a_record_as_long_as_they_get_is_cut():
    assert len(judged(("x",), Answer("NOERROR", ("y" * 60_000,))).reason) < 400
