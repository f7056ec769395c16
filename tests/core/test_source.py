"""Bytes to text to data, and how a mistake is shown."""

import pickle

import pytest

from lbd.core.source import BadFileError, Problem, Source, Span, decode, load, problem
from lbd.core.words import quote


def refused(source: Source) -> Problem:
    with pytest.raises(BadFileError) as error:
        load(source)
    (only,) = error.value.problems
    return only


def test_rendered_problem_is_headline_line_and_carets():
    source = Source("/etc/lbd.toml", 'a = 1\nlisten = "x:0"\n')
    assert problem(source, Span(2, 10, 5), "port 0 is not a port").render() == (
        "/etc/lbd.toml:2:10: port 0 is not a port\n"
        '  2 | listen = "x:0"\n'
        "    |          ^^^^^"
    )  # fmt: skip


def test_problem_of_a_whole_file_is_one_line():
    assert Problem("/etc/lbd.toml", None, None, "is a FIFO, not a file", "").render() == (
        "/etc/lbd.toml: is a FIFO, not a file"
    )


def test_summary_is_one_line_and_counts_the_rest():
    one, two = (Problem("f", n, 1, "wrong", "") for n in (1, 2))
    assert BadFileError([one]).summary == "f:1:1: wrong"
    assert BadFileError([one, two]).summary == "f:1:1: wrong (and 1 more)"
    assert str(BadFileError([one, two])) == "f:1:1: wrong\nf:2:1: wrong"


def test_error_survives_pickling():
    error = BadFileError([Problem("f", 1, 1, "wrong", "x")])
    assert pickle.loads(pickle.dumps(error)).problems == error.problems  # noqa: S301 - our own bytes


def test_tabs_and_control_characters_do_not_move_the_carets():
    shown = problem(Source("f", "\ta\x1b[31m = 9"), Span(1, 11), "wrong").excerpt
    assert shown == "  1 |  a?[31m = 9\n    |           ^"


def test_a_long_line_is_cut_around_the_place():
    source = Source("f", "x" * 1_000_000 + "HERE" + "y" * 1_000_000)
    first, second = problem(source, Span(1, 1_000_001, 4), "wrong").excerpt.splitlines()
    assert len(first) < 120
    assert first[second.index("^") : second.index("^") + 4] == "HERE"
    assert second.count("^") == 4


def test_path_with_odd_bytes_is_shown_as_ascii():
    line = Problem("/etc/\udcff\n.toml", None, None, "wrong", "").render()
    assert line == "/etc/\\udcff\\n.toml: wrong"


def test_quoted_text_is_short_and_on_one_line():
    assert quote("a\nb\x1b") == '"a\\nb\\x1b"'
    assert len(quote("x" * 1000)) < 80


def test_crlf_is_fine_and_lines_count_the_same():
    assert load(Source("f", 'a = 1\r\nb = """x\r\ny"""\r\n')) == {"a": 1, "b": "x\ny"}
    bad = refused(Source("f", "a = 1\r\nb = \r\n"))
    assert (bad.line, bad.column) == (2, 5)
    assert "\r" not in bad.render()


@pytest.mark.parametrize(
    ("data", "line", "column", "words"),
    [
        (b"a = 1\nb = \xe9\n", 2, 5, "not UTF-8 text: byte 0xe9"),
        ("# é\nb = '".encode() + b"\xff'", 2, 6, "byte 0xff"),
        ("a = 1".encode("utf-16"), 1, 1, "looks like UTF-16"),
        (b"\x80", 1, 1, "byte 0x80"),
    ],
)
def test_what_is_not_utf8_is_located(data: bytes, line: int, column: int, words: str):
    with pytest.raises(BadFileError) as error:
        decode("f", data)
    (bad,) = error.value.problems
    assert (bad.line, bad.column) == (line, column)
    assert words in bad.message


def test_byte_order_mark_is_refused_at_the_start():
    bad = refused(decode("f", b"\xef\xbb\xbfa = 1\n"))
    assert (bad.line, bad.column) == (1, 1)
    assert "byte order mark" in bad.message


def test_nul_is_refused_at_its_place():
    bad = refused(Source("f", "a = 1\nb = 2\0\0\0"))
    assert (bad.line, bad.column) == (2, 6)
    assert "NUL" in bad.message


@pytest.mark.parametrize("nested", ["[" * 2000, "[" * 2000 + "]" * 2000, "{a=" * 2000, "[" * 200_000])
def test_nested_brackets_are_one_located_problem(nested: str):
    bad = refused(Source("f", f'a = "[[["\n# [[[\nb = {nested}'))
    assert bad.line == 3
    assert "nested" in bad.message


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "key", [".".join("a" * 200_000), "[" + ".".join("a" * 200_000) + "]", '"a".' * 200_000]
)
def test_a_key_of_many_parts_does_not_hang(key: str):
    assert "parts" in refused(Source("f", f"x = 1\n{key} = 1")).message


def test_many_dots_elsewhere_are_fine():
    dots = ".".join("a" * 200)
    assert load(Source("f", f'a = "{dots}"\n# {dots}\nb = [{"1.5, " * 200}]\n'))["a"] == dots


def test_a_number_of_5000_digits_is_refused_at_its_place():
    bad = refused(Source("f", "a = 1\nb = " + "9" * 5000))
    assert (bad.line, bad.column) == (2, 5)


def test_the_end_of_a_cut_off_file_is_its_last_line():
    bad = refused(Source("f", "a = 1\nb = [1,\n\n"))
    assert (bad.line, bad.column) == (2, 8)
