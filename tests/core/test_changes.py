"""What is different between two files, in words."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.core.changes import changes
from lbd.core.config import parse
from lbd.core.source import Source
from strategies import configs

SERVICE = """\
[[service]]
name = "web"
listen = ["192.0.2.1:80"]
backends = ["10.0.0.1:80", "10.0.0.2:80"]
"""


def config(text):
    return parse(Source("lbd.toml", text))


def said(before, now):
    return [str(change) for change in changes(config(before), config(now))]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"10.0.0.2:80"]', '{ address = "10.0.0.2:80", weight = 3 }]', "backend 10.0.0.2:80 weight 1 -> 3"),
        (
            '"10.0.0.2:80"]',
            '{ address = "10.0.0.2:80", state = "drain" }]',
            "backend 10.0.0.2:80 state up -> drain",
        ),
        ('name = "web"', 'name = "web"\nscheduler = "random"', "scheduler maglev -> random"),
        ('name = "web"', 'name = "web"\nreturn_path = "masquerade"', "return_path gateway -> masquerade"),
        ('name = "web"', 'name = "web"\npersistence = "10m"', "persistence none -> 600s"),
        ('name = "web"', 'name = "web"\noffload = true', "offload off -> on"),
        ('name = "web"', 'name = "web"\nrefuse = "reject"', "refuse drop -> reject"),
        ('name = "web"', 'name = "web"\ndeny = ["203.0.113.0/24"]', "deny none -> 203.0.113.0/24"),
        (
            'name = "web"',
            'name = "web"\nlimits = { client_connections = 5 }',
            "limits.client_connections 0 -> 5",
        ),
        ('name = "web"', 'name = "web"\nlimits = { new_per_second = 5 }', "limits.new none -> 5/s, burst 5"),
    ],
)
def test_what_another_value_is_called(old, new, words):
    text = SERVICE if "offload" not in new else SERVICE + '[director]\ndevices = ["eth0", "eth1"]\n'
    before = text
    assert said(before, text.replace(old, new)) == [f"~ service web: {words}"]


def test_what_is_new_and_what_is_gone():
    other = '[[service]]\nname = "dns"\nlisten = "192.0.2.1:53/udp"\nbackends = ["10.0.0.1"]\n'
    assert said(SERVICE, other) == [
        "- service web: 192.0.2.1:80, 2 backends",
        "+ service dns: 192.0.2.1:53/udp, 1 backend",
    ]


def test_listen_addresses_and_backends_that_come_and_go():
    now = SERVICE.replace('["192.0.2.1:80"]', '["192.0.2.2:80"]').replace(
        '"10.0.0.2:80"', '{ address = "10.0.0.3:80", weight = 2 }'
    )
    assert said(SERVICE, now) == [
        "- service web: listen 192.0.2.1:80",
        "+ service web: listen 192.0.2.2:80",
        "- service web: backend 10.0.0.2:80",
        "+ service web: backend 10.0.0.3:80 weight 2",
    ]


def test_what_is_beside_services():
    more = """\
[director]
audit = "30s"
[[address]]
address = "192.0.2.1/24"
interface = "eth0"
[[route]]
to = "10.9.0.0/16"
via = "192.0.2.9"
[[rule]]
from = "192.0.2.0/24"
table = 100
priority = 1000
"""
    assert said(SERVICE, SERVICE + more) == [
        "~ director: audit 60s -> 30s",
        "+ address 192.0.2.1/24 on eth0",
        "+ route 10.9.0.0/16 via 192.0.2.9 table 254",
        "+ rule priority 1000 from 192.0.2.0/24 table 100 IPv4",
    ]


def test_what_is_too_long_to_read_is_not_shown():
    prefixes = ", ".join(f'"203.0.113.{2 * n}"' for n in range(20))
    assert said(SERVICE, SERVICE.replace('name = "web"', f'name = "web"\ndeny = [{prefixes}]')) == [
        "~ service web: deny is another"
    ]


def without_order(config):
    """What a file says, whatever the order it says it in."""
    services = {
        service.name: replace(service, listen=frozenset(service.listen), backends=frozenset(service.backends))
        for service in config.services
    }
    return config.director, services, *map(frozenset, (config.addresses, config.routes, config.rules))


@settings(max_examples=100, deadline=None)
@given(configs(), configs())
def test_there_is_a_change_if_and_only_if_files_differ(before, now):
    assert not list(changes(now, now))
    found = list(changes(before, now))
    assert bool(found) == (without_order(before) != without_order(now))
    assert not any("\n" in str(change) for change in found)


@settings(max_examples=100, deadline=None)
@given(configs(), st.data())
def test_one_key_of_a_service_is_one_change(config, data):
    if not config.services:
        return
    service = data.draw(st.sampled_from(config.services))
    other = replace(service, log="new" if service.log == "off" else "off")
    services = tuple(other if each is service else each for each in config.services)
    (change,) = changes(config, replace(config, services=services))
    assert str(change) == f"~ service {service.name}: log {service.log} -> {other.log}"
