"""Deleting entries of connection tracking: just those that are meant, also where a kernel cannot filter."""

import struct

import pytest

from lbd.core.attribution import Sent
from lbd.host import conntrack, conntrack_delete, netlink
from lbd.host.conntrack_delete import NoFilterError
from tracked import BACKEND, ICMP, TCP, UDP, VIP, empty, entry, make, raw, tracking

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
OTHER = {4: "10.1.0.2", 6: "fd00::2"}


@pytest.fixture(scope="module")
def namespace():
    with tracking() as namespace:
        yield namespace


@pytest.fixture
def table(namespace):
    empty()
    return namespace


def sent(family, port=80, backend_port=8080, protocol=TCP, backend=None):
    return Sent(protocol, VIP[family], port, backend or BACKEND[family], backend_port)


def others(family, protocol=TCP):
    """Everything that differs from `sent` in one thing, and what nobody translated."""
    yield entry(family, 1, 1000, 81, backend=8080, protocol=protocol)
    yield entry(family, 2, 1000, 80, backend=8081, protocol=protocol)
    yield entry(family, 3, 1000, 80, backend=8080, protocol=protocol, to=OTHER[family])
    yield entry(family, 4, 1000, 80, backend=8080, protocol=UDP if protocol == TCP else TCP)
    yield entry(family, 5, 1000, 80, protocol=protocol)
    yield entry(10 - family, 6, 1000, 80, backend=8080, protocol=protocol)
    yield entry(4, 7, 77, 0, backend=0, protocol=ICMP)
    yield entry(family, 8, 1000, 80, backend=9000, protocol=protocol, mark=5)
    yield entry(family, 9, 1000, 80, backend=9000, protocol=protocol, zone=3)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_filter_takes_what_it_says_and_nothing_else(table, protocol):
    make(others(4, protocol))
    foreign = raw()
    assert len(foreign) == 9
    make(entry(4, 100 + n, 2000 + n, 80, backend=8080, protocol=protocol) for n in range(30))
    conntrack_delete.by_filter(sent(4, protocol=protocol))
    assert raw() == foreign


def test_ipv6_is_not_deleted_by_filter(table):
    make(others(6))
    before = raw()
    with pytest.raises(NoFilterError):
        conntrack_delete.by_filter(sent(6))
    assert raw() == before


@FAMILIES
def test_one_by_one_takes_what_it_says_and_nothing_else(table, family):
    make(others(family))
    foreign = raw()
    make(entry(family, 100 + n, 2000 + n, 80, backend=8080) for n in range(200))
    make([entry(family, 90, 2000, 80, backend=8080, zone=4)])
    found = list(conntrack.handles({sent(family)}))
    assert len(found) == 201
    assert conntrack_delete.singly(found) == 201
    assert raw() == foreign
    # They are gone: that is no failure, and nothing is counted twice.
    assert conntrack_delete.singly(found) == 0


@FAMILIES
def test_entry_that_came_in_the_place_of_another_stays(table, family):
    make([entry(family, 1, 1000, 80, backend=8080)])
    found = list(conntrack.handles({sent(family)}))
    empty()
    make([entry(family, 1, 1000, 80, backend=8080, to=OTHER[family])])
    after = raw()
    assert conntrack_delete.singly(found) == 0
    assert raw() == after


def test_kernel_that_knows_no_filter_refuses(table, monkeypatch):
    """What a kernel does not know it does not see: what is left of the request must be harmless."""
    make(others(4))
    make([entry(4, 100, 2000, 80, backend=8080)])
    before = raw()
    whole = conntrack_delete.matching
    for unknown in ({25}, {25, 2}):

        def without(to, unknown=frozenset(unknown)):
            attributes = netlink.attributes(whole(to))
            kept = ((kind, value) for kind, value in attributes if kind not in unknown)
            return b"".join(netlink.attribute(kind | 0x8000, value) for kind, value in kept)

        monkeypatch.setattr(conntrack_delete, "matching", without)
        with pytest.raises(NoFilterError):
            conntrack_delete.by_filter(sent(4))
        assert raw() == before


def test_why_a_request_has_the_first_tuple(table):
    """Without it the kernel empties the table, whatever else is said: here of labels."""
    make(others(4))
    with netlink.connect() as sock:
        labels = netlink.attribute(22, bytes(16))
        list(netlink.ask(sock, conntrack_delete.DELETE, 0, struct.pack("!BBH", 4, 0, 0) + labels))
    assert len(raw()) < 9


def test_protocol_without_ports_is_left_to_the_other_way(table):
    make([entry(4, 30, 77, 0, backend=0, protocol=ICMP)])
    ping = Sent(ICMP, VIP[4], 0, BACKEND[4], 0)
    with pytest.raises(NoFilterError):
        conntrack_delete.by_filter(ping)
    assert conntrack_delete.singly(conntrack.handles({ping})) == 1
    assert raw() == []


@FAMILIES
def test_one_kind_is_counted(table, family):
    make(others(family))
    make(entry(family, 100 + n, 2000 + n, 80, backend=8080) for n in range(30))
    assert conntrack.count(sent(family)) == {sent(family): 30}
    assert conntrack.count(sent(family, port=443)) == {sent(family, port=443): 0}


@FAMILIES
def test_untranslated_entries_are_found_with_their_clients(table, family):
    make(others(family, UDP))
    at = Sent(UDP, VIP[family], 80, VIP[family], 80)
    (found,) = conntrack.untranslated(UDP, at)
    (same,) = conntrack.untranslated(UDP)
    assert found == same
    assert found.sent == at
    assert found.client.endswith("5")
    assert conntrack_delete.singly([found.handle]) == 1
    assert not list(conntrack.untranslated(UDP))


@FAMILIES
def test_unanswered_connections_are_found(table, family):
    syn_sent, confirmed = 1, 0x8
    make(others(family))
    made = [entry(family, 50 + n, 1000, 80, backend=8080, state=syn_sent, status=confirmed) for n in range(3)]
    make(made)
    found = list(conntrack.unanswered())
    assert [(each.sent, each.state, each.answered) for each in found] == [(sent(family), 1, False)] * 3
    assert len({each.id for each in found}) == 3
    assert not list(conntrack.answered(sent(family)))
    assert len(list(conntrack.answered(sent(family, port=81)))) == 1
