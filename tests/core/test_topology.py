"""The lab's topology, as a value and as the commands that build it."""

from ipaddress import ip_interface

import pytest

from lbd.core.state import Route
from lbd.lab.topology import Host, Interface, Topology, experiment, setup, wiring


def test_experiment_has_the_addresses_it_is_described_with():
    topology = experiment()
    cards = {(h.name, i.name): i.addresses for h in topology.hosts for i in h.interfaces}
    assert cards == {
        ("client", "eth0"): ("192.168.18.25/24",),
        ("director", "eth0"): ("192.168.18.58/24",),
        ("director", "eth1"): ("192.168.2.90/24",),
        ("router", "eth0"): ("192.168.2.1/24",),
        ("server1", "eth0"): ("192.168.2.73/24",),
    }


def test_client_side_and_server_side_are_different_segments():
    topology = experiment()
    eth0, eth1 = topology["director"].interfaces
    assert eth0.segment == topology["client"].interfaces[0].segment
    assert eth1.segment == topology["server1"].interfaces[0].segment
    assert topology.segments == (eth0.segment, eth1.segment)


def test_default_gateway_of_real_servers_is_the_router_unless_chosen():
    assert experiment()["server1"].routes == (Route("0.0.0.0/0", "192.168.2.1"),)
    assert experiment(gateway="director")["server1"].routes == (Route("0.0.0.0/0", "192.168.2.90"),)
    mixed = experiment(2, gateway=("director", "elsewhere"))
    assert [mixed[f"server{n}"].routes[0].via for n in (1, 2)] == ["192.168.2.90", "192.168.2.1"]


def test_further_real_servers_count_up_and_pass_over_the_director():
    topology = experiment(20)
    addresses = [topology[f"server{n}"].address() for n in range(1, 21)]
    assert addresses[:3] == ["192.168.2.73", "192.168.2.74", "192.168.2.75"]
    assert addresses[16:] == ["192.168.2.89", "192.168.2.91", "192.168.2.92", "192.168.2.93"]


def test_further_clients_count_up():
    topology = experiment(clients=2)
    assert [topology[name].address() for name in ("client", "client2")] == ["192.168.18.25", "192.168.18.26"]


def test_ipv6_has_the_same_last_numbers_and_its_own_default_route():
    topology = experiment(ipv6=True, gateway="director")
    assert topology["client"].address(6) == "2001:db8:18::25"
    assert topology["server1"].address(6) == "2001:db8:2::73"
    assert topology["server1"].routes == (
        Route("0.0.0.0/0", "192.168.2.90"),
        Route("::/0", "2001:db8:2::90"),
    )


def test_without_ipv6_no_host_has_such_an_address():
    with pytest.raises(LookupError, match="'client' has no IPv6 address"):
        experiment()["client"].address(6)


@pytest.mark.parametrize("arguments", [{"servers": 0}, {"servers": 182}, {"clients": 0}, {"clients": 34}])
def test_more_hosts_than_the_subnets_hold_are_refused(arguments):
    with pytest.raises(ValueError, match="at most 33 and 181"):
        experiment(**arguments)


def test_the_largest_experiment_has_no_address_twice_and_all_in_range():
    topology = experiment(181, clients=33)
    addresses = [a for h in topology.hosts for i in h.interfaces for a in i.addresses]
    assert len(set(addresses)) == len(addresses) == 181 + 33 + 3
    assert all(ip_interface(a).ip != ip_interface(a).network.broadcast_address for a in addresses)


def test_gateways_must_be_as_many_as_servers():
    with pytest.raises(ValueError, match="2 real servers and 1 gateways"):
        experiment(2, gateway=("director",))


def test_unknown_host_is_named_with_those_there_are():
    with pytest.raises(LookupError, match="no host 'server9' in the lab, only client, director"):
        experiment()["server9"]


def host(name, *addresses, routes=()):
    return Host(name, (Interface("eth0", "lan", addresses),), routes)


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ((host("a"), host("a")), "host given twice or reserved: a"),
        ((host("wire"),), "host given twice or reserved: wire"),
        ((host("a", "192.0.2.1/24"), host("b", "192.0.2.1/24")), "address given twice"),
        ((Host("a", (Interface("lo", "lan"),)),), "interface of a given twice or reserved: lo"),
        ((host("a", "192.0.2.1/24", routes=(Route("0.0.0.0/0", "198.51.100.1"),)),), "in no subnet"),
    ],
)
def test_what_cannot_work_is_refused(hosts, message):
    with pytest.raises(ValueError, match=message):
        Topology(hosts)


def test_commands_of_a_host_bring_up_address_and_route_in_this_order():
    server = experiment(ipv6=True)["server1"]
    assert list(setup(server)) == [
        "link set lo up",
        "link set eth0 up",
        "address add 192.168.2.73/24 dev eth0",
        "address add 2001:db8:2::73/64 dev eth0 nodad",
        "route add 0.0.0.0/0 via 192.168.2.1 table 254",
        "route add ::/0 via 2001:db8:2::1 table 254",
    ]


def test_every_word_of_a_route_is_in_its_command():
    route = Route("198.51.100.0/24", "192.0.2.1", "eth0", "192.0.2.2", table=100, metric=5)
    *_, line = setup(host("a", "192.0.2.2/24", routes=(route,)))
    assert line == "route add 198.51.100.0/24 via 192.0.2.1 dev eth0 src 192.0.2.2 metric 5 table 100"


def test_wiring_gives_every_interface_a_port_in_the_bridge_of_its_segment():
    topology = Topology((host("a"), Host("b", (Interface("eth0", "lan"), Interface("eth1", "san")))))
    assert list(wiring(topology, {"a": "x-a", "b": "x-b"})) == [
        "link add segment0 type bridge mcast_snooping 0",
        "link set segment0 up",
        "link add segment1 type bridge mcast_snooping 0",
        "link set segment1 up",
        "link add port0 type veth peer name eth0 netns x-a",
        "link set port0 master segment0 up",
        "link add port1 type veth peer name eth0 netns x-b",
        "link set port1 master segment0 up",
        "link add port2 type veth peer name eth1 netns x-b",
        "link set port2 master segment1 up",
    ]
