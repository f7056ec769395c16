"""Our table read back: what lbd wrote comes back as it was meant, what others put in is survived."""

import pytest

from lbd.core.config import parse
from lbd.core.desired import desired
from lbd.core.source import Source
from lbd.host import netlink, nft_read
from lbd.host.director import Director
from lbd.host.store import Store
from lbd.reconcile import plan, reconcile
from netns import DIRECTOR, inside
from running import SERVERS, VIP, at, service

pytestmark = pytest.mark.kernel

FILE = "\n".join(
    service(
        at(VIP[family], 8888, protocol),
        [at(address, 9999) for address in SERVERS[family]],
        name=f"{protocol}{family}{interface}",
        scheduler=scheduler,
        return_path=return_path,
        log="path",
        **({"interface": interface} if interface else {}),
    )
    for family, protocol, interface, scheduler, return_path in (
        (4, "tcp", "eth0", "maglev", "gateway"),
        (4, "udp", "", "random", "masquerade"),
        (6, "tcp", "eth0", "round-robin", "snat:2001:db8:2::91"),
        (6, "udp", "", "maglev", "masquerade"),
    )
)
WISH = desired(parse(Source("lbd.toml", FILE)))
SCHEMA = WISH.table.maps

# What somebody may put into the table, in the words of nft.
FOREIGN = {
    "a set of marks": "add set inet lbd x { type mark; }; add element inet lbd x { 1, 2 }",
    "an interval set": "add set inet lbd x { type ipv4_addr; flags interval; };"
    "add element inet lbd x { 192.0.2.0/24, 198.51.100.7-198.51.100.9 }",
    "ranges of several fields": "add set inet lbd x { type ipv4_addr . inet_service; flags interval; };"
    "add element inet lbd x { 192.0.2.0/24 . 80-90 }",
    "elements that time out": "add set inet lbd x { type ipv6_addr; timeout 1h; };"
    "add element inet lbd x { 2001:db8::1 timeout 5m }",
    "a dynamic set": "add set inet lbd x { type ipv4_addr; size 9; flags dynamic; };"
    "add rule inet lbd prerouting update @x { ip saddr limit rate 5/second } return",
    "a verdict map": "add map inet lbd x { type iface_index : verdict; };add element inet lbd x { 1 : drop }",
    "a map to addresses": "add map inet lbd x { type mark : ipv4_addr; };"
    "add element inet lbd x { 1 : 192.0.2.1 }",
    "a map that names counters": "add counter inet lbd c; add map inet lbd x { type ipv4_addr : counter; };"
    'add element inet lbd x { 192.0.2.1 : "c" }',
    "counters, quotas and limits": "add counter inet lbd c; add quota inet lbd q 5 mbytes;"
    "add limit inet lbd l rate 5/second",
    "anonymous sets and maps": "add rule inet lbd prerouting ip saddr { 192.0.2.1, 192.0.2.7 }"
    " tcp dport vmap { 22 : accept, 23 : drop }",
    "an anonymous chain": "add rule inet lbd prerouting tcp dport 22 jump { accept; }",
    "chains of other hooks": "add chain inet lbd a { type route hook output priority 0; };"
    "add chain inet lbd b { type nat hook input priority 100; };"
    'add chain inet lbd c { type filter hook ingress device "eth0" priority 0; }',
    "a chain with a comment": 'add chain inet lbd x { comment "mine"; };'
    'add rule inet lbd x counter comment "too"',
    "a set in the place of a map": "flush chain inet lbd services; delete map inet lbd services4;"
    "add set inet lbd services4 { type ipv4_addr; }; add element inet lbd services4 { 192.0.2.1 }",
    "one of our maps with intervals": "flush chain inet lbd services; delete map inet lbd services4;"
    "add map inet lbd services4 { type ipv4_addr . inet_proto . inet_service : verdict; flags interval; };"
    "add element inet lbd services4 { 192.0.2.0/24 . tcp . 80-90 : drop }",
    "one of our maps that times out": "flush chain inet lbd services; delete map inet lbd services4;"
    "add map inet lbd services4 { type ipv4_addr . inet_proto . inet_service : verdict; timeout 1h; };"
    "add element inet lbd services4 { 192.0.2.1 . tcp . 80 : drop }",
    "an element with a comment": "add element inet lbd services4"
    ' { 192.0.2.1 . tcp . 80 comment "mine" : drop }',
    "a protocol without a name": "add element inet lbd services4 { 192.0.2.1 . sctp . 1 : continue }",
    "an element for all other keys": "add element inet lbd services4 { * : drop };"
    "add element inet lbd services_if6 { * : drop }; add element inet lbd log_path4 { * }",
}


@pytest.fixture
def host():
    with inside(DIRECTOR) as namespace:
        yield namespace


@pytest.fixture
def director(host, tmp_path):
    director = Director(Store(tmp_path))
    yield director
    director.close()


@pytest.fixture
def sock(host):
    with netlink.connect() as sock:
        yield sock


def test_without_a_table_there_is_none(host, sock):
    assert nft_read.read(sock, SCHEMA)[0] is None
    host.run("nft", "add table ip lbd; add table inet lbd2")
    assert nft_read.read(sock, SCHEMA)[0] is None


def test_generation_counts_every_commit_of_the_namespace(host, sock):
    before = nft_read.generation(sock)
    host.run("nft", "add table ip other")
    host.run("nft", "add table ip more; add table ip most")
    assert nft_read.generation(sock) == before + 2


def test_what_was_written_comes_back_as_it_was_meant(director, sock):
    assert reconcile(director, WISH).converged
    table, generation = nft_read.read(sock, SCHEMA)
    assert generation == nft_read.generation(sock)
    want = WISH.table
    assert table.elements == want.elements
    assert table.chains.keys() == want.chains.keys()
    for name, chain in want.chains.items():
        assert (len(table.chains[name].digests), table.chains[name].hook) == (len(chain.rules), chain.hook)
    for name, shape in want.maps.items():
        found = table.maps[name]
        expected = (shape.key, shape.data, shape.size, shape.counter)
        assert (found.key, found.data, found.size, found.counter) == expected


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_what_others_put_in_is_read_and_taken_out(host, director, foreign):
    assert reconcile(director, WISH).converged
    host.run("nft", foreign)
    outcome = reconcile(director, WISH)
    assert outcome.problems == ()
    assert not plan(director, WISH)
    table = director.read(WISH).table
    assert table.elements == WISH.table.elements
    assert table.chains.keys() == WISH.table.chains.keys()
    assert table.maps.keys() == WISH.table.maps.keys()


@pytest.mark.emulated
def test_a_flowtable_of_somebody_else_is_taken_out(host, director):
    if not director.nft.can_offload():
        pytest.skip("no flowtables in this kernel")
    assert reconcile(director, WISH).converged
    host.run("nft", "add flowtable inet lbd f { hook ingress priority 0; devices = { eth0 }; }")
    assert director.read(WISH).table.beyond_repair
    assert reconcile(director, WISH).converged
    assert not director.read(WISH).table.beyond_repair
