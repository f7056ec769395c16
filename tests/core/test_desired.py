"""What a file means for the host, in the kernel's terms."""

from collections import Counter
from datetime import UTC, datetime
from ipaddress import ip_network

import pytest
from hypothesis import given, settings

from lbd.core.config import parse
from lbd.core.desired import desired
from lbd.core.observed import Observed, expired
from lbd.core.slots import MOST
from lbd.core.source import Source
from lbd.core.state import Address, Desired, Route, RouteKey, Rule
from strategies import configs
from written import sources

IPV4, IPV6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"


def wish(text) -> Desired:
    return desired(parse(Source("lbd.toml", text)))


def service(**keys):
    """One service on 192.0.2.1:80 with two backends, and what `keys` say in TOML."""
    said = {"name": '"web"', "listen": '"192.0.2.1:80"', "backends": '["10.0.0.1", "10.0.0.2:8080"]'} | keys
    return "[[service]]\n" + "".join(f"{key} = {value}\n" for key, value in said.items())


@settings(max_examples=300, deadline=None)
@given(configs())
def test_the_configurations_that_the_other_tests_draw_are_valid(config):
    assert parse(*sources(config)) == config


@settings(max_examples=30, deadline=None)
@given(configs())
def test_the_same_configuration_is_the_same_state(config):
    assert desired(config) == desired(config)


def test_backend_without_a_port_has_that_of_each_listen_address():
    slots = wish(service(listen='["192.0.2.1:80", "192.0.2.1:443"]')).table.elements["slots_tcp4"]
    for port in (80, 443):
        found = {data for key, data in slots.items() if f" . {port} . " in key}
        assert found == {f"10.0.0.1 . {port}", "10.0.0.2 . 8080"}


def test_each_listen_address_has_the_backends_of_its_family():
    elements = wish(
        service(listen='["192.0.2.1:80", "[2001:db8::1]:80"]', backends='["10.0.0.1", "[fd00::1]"]')
    ).table.elements
    assert elements["slots_tcp4"] == {"192.0.2.1 . 80 . 0": "10.0.0.1 . 80"}
    assert elements["slots_tcp6"] == {"2001:db8::1 . 80 . 0": "fd00::1 . 80"}


@pytest.mark.parametrize("state", ["drain", "down"])
def test_who_goes_out_of_rotation_moves_nobody_else(state):
    def slots(out):
        backends = f'["10.0.0.1", {{ address = "10.0.0.2"{out} }}, "10.0.0.3", "10.0.0.4"]'
        return wish(service(backends=backends)).table.elements["slots_tcp4"]

    before, after = slots(""), slots(f', state = "{state}"')
    assert before.keys() == after.keys()
    stays = {key for key, data in before.items() if data != "10.0.0.2 . 80"}
    assert all(after[key] == before[key] for key in stays)
    assert set(after.values()) == {before[key] for key in stays}


@pytest.mark.parametrize("out", ['state = "drain"', 'state = "down"', "weight = 0"])
def test_backend_that_takes_no_part_has_no_slot(out):
    table = wish(service(backends=f'["10.0.0.1", {{ address = "10.0.0.2", {out} }}]')).table
    assert table.elements["slots_tcp4"] == {"192.0.2.1 . 80 . 0": "10.0.0.1 . 80"}


def test_drained_backend_keeps_the_size_of_the_table():
    three = '["10.0.0.1", "10.0.0.2", {{ address = "10.0.0.3", weight = 4, state = "{}" }}]'
    whole, drained = (wish(service(backends=three.format(state))).table for state in ("up", "drain"))
    assert whole.chains == drained.chains
    slots = whole.elements["slots_tcp4"], drained.elements["slots_tcp4"]
    assert slots[0].keys() == slots[1].keys()
    # Those that stay keep nearly all they had.
    stays = [key for key, data in slots[0].items() if data != "10.0.0.3 . 80"]
    assert sum(slots[0][key] == slots[1][key] for key in stays) > 0.9 * len(stays)


def test_service_of_an_interface_is_found_by_it():
    elements = wish(service(interface='"eth0"')).table.elements
    assert "services4" not in elements
    assert list(elements["services_if4"]) == ["eth0 . 192.0.2.1 . tcp . 80"]


@pytest.mark.parametrize(
    ("path", "chain"),
    [
        ("gateway", "gateway4"),
        ("masquerade", "masqueraded"),
        ("snat:198.51.100.9", "snat_one4"),
    ],
)
def test_return_path_is_an_element(path, chain):
    table = wish(service(return_path=f'"{path}"')).table
    assert table.elements["return_path4"] == {"192.0.2.1 . tcp . 80": f"goto {chain}"}
    assert {"gateway4", "masqueraded", "snat_one4"} & table.chains.keys() == {chain}
    sources = {"192.0.2.1 . tcp . 80": "198.51.100.9"} if chain == "snat_one4" else None
    assert table.elements.get("snat4") == sources


def test_services_with_one_pool_of_sources_share_its_chain():
    path = '"snat:198.51.100.9,198.51.100.10 port 20000-29999"'
    table = wish(
        service(return_path=path) + service(name='"b"', listen='"192.0.2.2:80"', return_path=path)
    ).table
    (chain,) = {verdict.removeprefix("goto ") for verdict in table.elements["return_path4"].values()}
    assert "snat4" not in table.maps
    assert table.chains[chain].rules[-1] == (
        "snat ip to jhash ip saddr mod 2 seed 0x1 map { 0 : 198.51.100.9, 1 : 198.51.100.10 }"
    )


def test_only_networks_of_backends_behind_a_gateway_are_told():
    neighbours = frozenset((ip_network(net), "eth1") for net in ("10.0.0.0/24", "10.0.1.0/24", "fd00::/64"))
    config = parse(Source("lbd.toml", service()))
    assert desired(config, Observed(neighbours=neighbours)).table.elements["neighbours4"] == {
        "10.0.0.0/24 . eth1": ""
    }
    config = parse(Source("lbd.toml", service(return_path='"masquerade"')))
    assert "neighbours4" not in desired(config, Observed(neighbours=neighbours)).table.maps


def slots(text, **observed):
    """The backends of the slots of the only service, by the map's data."""
    elements = desired(parse(Source("lbd.toml", text)), Observed(**observed)).table.elements
    return {data.split(" . ")[0] for data in elements.get("slots_tcp4", {}).values()}


def test_backups_are_used_when_nothing_before_them_is_left():
    keys = ('address = "10.0.0.1"', 'address = "10.0.0.2", backup = true', 'address = "10.0.0.3", backup = 2')

    def text(*downs):
        states = ['state = "down"' if n in downs else 'state = "up"' for n in range(len(keys))]
        listed = ", ".join(f"{{ {key}, {state} }}" for key, state in zip(keys, states, strict=True))
        return service(backends=f"[{listed}]", sorry_server='"10.0.0.9"')

    assert slots(text()) == {"10.0.0.1"}
    assert slots(text(0)) == {"10.0.0.2"}
    assert slots(text(0, 1)) == {"10.0.0.3"}
    assert slots(text(0, 1, 2)) == {"10.0.0.9"}
    # As many connections as it may have.
    assert slots(text(), full=frozenset({("web", "10.0.0.1")})) == {"10.0.0.2"}


def test_share_of_a_backend_may_be_another_than_the_files():
    text = service(scheduler='"least-connections"')
    elements = desired(
        parse(Source("lbd.toml", text)), Observed(shares={("web", "10.0.0.1"): 9})
    ).table.elements
    count = Counter(data for data in elements["slots_tcp4"].values())
    assert count["10.0.0.1 . 80"] > 5 * count["10.0.0.2 . 8080"]


def test_drained_backend_keeps_its_clients_until_its_time_is_over():
    drained = '{ address = "10.0.0.2", state = "drain", drain_until = 2026-12-31T22:00:00Z }'
    config = parse(Source("lbd.toml", service(backends=f'["10.0.0.1", {drained}]', persistence='"10m"')))

    def allowed(**observed):
        (learned,) = desired(config, Observed(**observed)).table.learned
        (known,) = learned.allowed.values()
        return known

    assert allowed() == {"10.0.0.1 . 80", "10.0.0.2 . 80"}
    over = expired(config, datetime(2026, 12, 31, 22, tzinfo=UTC))
    assert allowed(expired=over) == {"10.0.0.1 . 80"}


@pytest.mark.parametrize(
    ("listen", "backend", "sysctls"),
    [
        ("192.0.2.1:80", "10.0.0.1", {IPV4: "1"}),
        ("[2001:db8::1]:80", "[fd00::1]", {IPV6: "1"}),
    ],
)
def test_forwarding_is_on_for_the_families_of_the_services(listen, backend, sysctls):
    text = service(listen=f'"{listen}"', backends=f'["{backend}"]')
    assert wish(text).sysctls == sysctls
    assert wish("[director]\nforwarding = true\n" + text).sysctls == sysctls


def test_forwarding_false_leaves_it_to_the_administrator():
    assert wish("[director]\nforwarding = false\n" + service()).sysctls == {}


def test_without_a_service_nothing_is_held():
    assert wish("allow_empty = true").sysctls == {}
    assert not any(wish("allow_empty = true").table.elements.values())


def test_addresses_routes_and_rules_are_in_the_kernels_terms():
    found = wish(
        """
        [[address]]
        address = "2001:DB8::1/64"
        interface = "eth0"
        [[route]]
        to = "default"
        via = "192.168.2.90"
        replace = true
        [[route]]
        to = "2001:DB8:9::/48"
        interface = "eth1"
        source = "2001:db8::1"
        [[rule]]
        from = "::/0"
        interface = "eth1"
        table = 100
        priority = 1000
        """
    )
    assert found.addresses == {Address("2001:db8::1/64", "eth0")}
    default = RouteKey("0.0.0.0/0", 254, 0)
    # IPv6 has no metric 0.
    other = RouteKey("2001:db8:9::/48", 254, 1024)
    assert found.routes == {
        default: Route("0.0.0.0/0", "192.168.2.90"),
        other: Route("2001:db8:9::/48", "", "eth1", "2001:db8::1", 254, 1024),
    }
    assert found.replace == {default}
    assert found.rules == {Rule(1000, 100, 6, "", "", "eth1")}


def test_largest_weights_make_a_table_in_time():
    backends = ", ".join(f'{{ address = "10.0.{n // 256}.{n % 256}", weight = 1 }}' for n in range(1, 300))
    text = service(backends=f'[{backends}, {{ address = "10.1.0.0", weight = 65535 }}]')
    slots = wish(text).table.elements["slots_tcp4"]
    assert len(set(slots.values())) == 300
    assert len(slots) > MOST


def test_pings_are_allowed_while_a_check_pings():
    def settings_with(kind):
        return wish(service() + f'[service.health]\ntype = "{kind}"\n').sysctls

    assert settings_with("icmp") == {IPV4: "1", "net.ipv4.ping_group_range": "0 2147483647"}
    assert settings_with("tcp") == {IPV4: "1"}
