"""Files of prefixes: which ones a configuration names, what is in them, and how mistakes in them are told."""

import time
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.core.config import lists, parse
from lbd.core.settings import Access, Config, PrefixFile
from lbd.core.source import BadFileError, Problem, Source

SERVICE = '[[service]]\nname = "s"\nlisten = "198.51.100.1:80"\nbackends = ["192.0.2.1"]\n'
ALLOW = SERVICE + 'allow = [{ file = "lists/office.txt" }]\n'
OFFICE = "/etc/lists/office.txt"


def prefixes(text: str, path: str = OFFICE) -> Source:
    return Source(path, text, "prefixes")


def config(text: str, *others: Source) -> Config:
    return parse(Source("/etc/lbd.toml", text), others)


def problems(text: str, *others: Source) -> tuple[Problem, ...]:
    with pytest.raises(BadFileError) as refused:
        config(text, *others)
    return refused.value.problems


def test_a_file_is_comments_blank_lines_and_prefixes():
    text = (
        "# office\n\n  10.0.0.0/16 # first\r\n10.1.0.0/16\n\t2001:db8::1\n192.0.2.7\n10.0.0.0/16\n0.0.0.0/32"
    )
    (service,) = config(ALLOW, prefixes(text)).services
    expected = ("0.0.0.0/32", "10.0.0.0/15", "192.0.2.7/32", "2001:db8::1/128")
    assert service.allow == Access(files=(PrefixFile(OFFICE, tuple(map(ip_network, expected))),))


def test_files_and_prefixes_go_together():
    text = SERVICE + 'deny = ["10.0.0.0/8", { file = "/srv/bad.txt" }, { file = "lists/office.txt" }]\n'
    (service,) = config(text, prefixes("10.1.0.0/16"), prefixes("", "/srv/bad.txt")).services
    assert service.deny == Access(
        (ip_network("10.0.0.0/8"),),
        (PrefixFile("/srv/bad.txt", ()), PrefixFile(OFFICE, (ip_network("10.1.0.0/16"),))),
    )


def test_an_included_file_names_files_from_the_directory_of_the_main_one():
    other = Source("/etc/lbd.d/a.toml", ALLOW)
    (service,) = config('include = ["lbd.d/*"]', other, prefixes("10.0.0.0/8")).services
    assert service.allow
    assert service.allow.files[0].path == OFFICE


def test_a_file_for_many_services_is_read_once():
    top = '[defaults]\ndeny = [{ file = "lists/../lists/office.txt" }]\n'
    text = top + SERVICE + SERVICE.replace('"s"', '"t"').replace(":80", ":81")
    one, other = config(text, prefixes("10.0.0.0/8")).services
    assert one.deny.files[0] is other.deny.files[0]
    assert one.deny.files[0].path == OFFICE


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("10.0.0.1/8", 1, '"10.0.0.1/8" has bits set beyond its prefix; the network is "10.0.0.0/8"'),
        ("  10.0.0.0/33 # no", 3, "/33 is not a prefix length; for 10.0.0.0 it is 0 to 32"),
        ("10.0.0.0/", 1, "/ is not a prefix length; for 10.0.0.0 it is 0 to 32"),
        ("2001:db8::/129", 1, "/129 is not a prefix length; for 2001:db8:: it is 0 to 128"),
        ("2001:db8:::1", 1, '"2001:db8:::1" is not an IPv6 address'),
        ("::ffff:a00:1", 1, '"::ffff:a00:1" is an IPv4 address in IPv6 form; write 10.0.0.1'),
        (
            "10.0.0.256",
            1,
            '"10.0.0.256" is not an IPv4 address; it is four numbers, 0 to 255, without leading zeros',
        ),
        (
            "10.0.0.01",
            1,
            '"10.0.0.01" is not an IPv4 address; it is four numbers, 0 to 255, without leading zeros',
        ),
        (
            "10.0.0.0 10.1.0.0",
            1,
            '"10.0.0.0 10.1.0.0" is not an address; write one like "192.0.2.1" or "2001:db8::1"',
        ),
        (
            "\ta.example",
            2,
            '"a.example" is a host name; lbd wants an address, because a name can change its meaning unseen',
        ),
        ("::ffff:10.0.0.1", 1, '"::ffff:10.0.0.1" is an IPv4 address in IPv6 form; write 10.0.0.1'),
        (
            "2001:db8::1/32",
            1,
            '"2001:db8::1/32" has bits set beyond its prefix; the network is "2001:db8::/32"',
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(line: str, column: int, message: str):
    text = f"# first\n{line}\n10.0.0.0/8\n"
    (found,) = problems(ALLOW, prefixes(text))
    assert (found.path, found.line, found.column) == (OFFICE, 2, column)
    assert found.message == message
    assert found.excerpt.startswith("  2 | ")


def test_mistakes_of_all_files_come_together():
    found = problems(ALLOW + "bogus = 1", prefixes("x\n"))
    assert [(p.path, p.line) for p in found] == [("/etc/lbd.toml", 6), (OFFICE, 1)]


def test_a_file_that_is_something_else_is_not_told_line_by_line():
    found = problems(ALLOW, prefixes("x\n" * 1000))
    assert len(found) == lists.MOST_PROBLEMS + 1
    assert found[-1].message == "20 mistakes so far; the rest of this file is not looked at"


def test_a_file_that_could_not_be_read_is_refused_where_it_is_named():
    (found,) = problems(
        ALLOW, Source(OFFICE, "", "prefixes", unread=f"{OFFICE}: cannot be read: No such file")
    )
    assert found.headline == (
        f'/etc/lbd.toml:5:10: service "s": allow: {OFFICE}: cannot be read: No such file'
    )


def test_a_file_named_twice_is_a_mistake():
    text = SERVICE + 'deny = [{ file = "lists/office.txt" }, { file = "lists/office.txt" }]'
    (found,) = problems(text, prefixes(""))
    assert found.message == 'service "s": deny: "lists/office.txt" is listed twice (/etc/lbd.toml:5)'


def test_a_file_may_not_allow_and_deny():
    text = ALLOW + 'deny = [{ file = "lists/office.txt" }]'
    (found,) = problems(text, prefixes("10.0.0.0/8"))
    assert found.message == (
        'service "s": deny: "lists/office.txt" is allowed and denied; denied wins, so keep one of them '
        "(/etc/lbd.toml:5)"
    )


def test_a_list_of_nobody_to_allow_is_refused():
    (found,) = problems(ALLOW, prefixes("# nobody yet\n"))
    assert (found.line, found.message) == (
        5,
        'service "s": allow: there is no prefix in these files, and nobody could connect',
    )


def test_files_that_nobody_names_are_not_looked_at():
    assert config(SERVICE, prefixes("bogus"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ALLOW, ("/etc/lists/office.txt",)),
        (
            '[defaults]\ndeny = [{ file = "/a" }, { "file" = "b" }]\n' + ALLOW,
            ("/a", "/etc/b", "/etc/lists/office.txt"),
        ),
        ('[defaults]\ndeny = [{ "\\u0066ile" = "a" }]', ("/etc/a",)),
        ("[[service]]\n[[service.deny]]\nfile='../x'", ("/x",)),
        (ALLOW + ALLOW, ("/etc/lists/office.txt",)),
        (SERVICE + '# allow = [{ file = "a" }]', ()),
        # What is wrong is told when it is parsed.
        ("[ file = 1", ()),
        ("[service]\nallow = [{ file = 'a' }]", ()),
        (
            "service = [1]\n[defaults]\nallow = 1\ndeny = ['a', { file = 1 }, { file = '' }, { file = [] }]",
            (),
        ),
    ],
)
def test_which_files_are_named(text: str, expected: tuple[str, ...]):
    assert lists.paths((Source("/etc/lbd.toml", text),)) == expected


def test_paths_are_relative_to_the_main_file():
    assert lists.paths((Source("lbd.toml", ALLOW),)) == ("lists/office.txt",)
    assert lists.paths((Source("/etc/lbd.toml", ""), Source("/etc/lbd.d/a", ALLOW))) == (OFFICE,)


NETWORKS = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda n: IPv4Network(n, strict=False)),
    st.tuples(st.integers(0, 15), st.integers(28, 32)).map(lambda n: IPv4Network(n, strict=False)),
    st.tuples(st.integers(0, 15), st.integers(124, 128)).map(lambda n: IPv6Network(n, strict=False)),
)


@given(st.lists(NETWORKS))
def test_prefixes_are_put_together_as_the_standard_library_does(networks: list[IPv4Network | IPv6Network]):
    expected = [
        *collapse_addresses(n for n in networks if isinstance(n, IPv4Network)),
        *collapse_addresses(n for n in networks if isinstance(n, IPv6Network)),
    ]
    assert list(lists.collapsed(networks)) == expected
    assert lists.read(prefixes("\n".join(map(str, networks)))) == (tuple(expected), [])


@given(st.text())
def test_any_text_is_read_or_refused(text: str):
    found, wrong = lists.read(prefixes(text))
    assert isinstance(found, tuple)
    assert all(each.line and each.column and "\n" not in each.headline for each in wrong)


@pytest.mark.parametrize("line", ["{a}.{b}.{c}.0/24", "2001:{a:x}{c:02x}:{b:x}::/48"])
def test_a_file_of_20000_lines_takes_a_moment(line: str):
    text = "\n".join(line.format(a=i % 223 + 1, b=i >> 8 & 255, c=i & 255) for i in range(20_000))
    start = time.process_time()
    found, wrong = lists.read(prefixes(text))
    assert time.process_time() - start < 1
    assert found
    assert not wrong
