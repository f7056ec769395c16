"""What looks like a mistake, and what does not: nearly everything."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from lbd.core.accident import accident
from lbd.core.settings import Config, Director, Listen, Ports, Service


def service(n, name="", **keys):
    return Service(name or f"s{n}", (Listen(ip_address("192.0.2.1"), Ports(n, n)),), (), **keys)


def config(*numbers, **director):
    return Config(Director(**director), tuple(map(service, numbers)))


TEN = config(*range(1, 11))


def test_half_of_ten_may_go():
    assert accident(TEN, config(*range(1, 6))) == ""


def test_more_than_half_of_ten_is_told_with_names_and_the_way_out():
    assert accident(TEN, config(*range(1, 5))) == (
        "6 of 10 services are gone at once (s5, s6, s7, s8, s9 and 1 more), which looks like an accident; "
        "if it is meant, say so: lbd reload --yes"
    )


def test_of_nine_all_but_one_may_go():
    assert accident(config(*range(1, 10)), config(1)) == ""


def test_another_name_is_the_same_service():
    renamed = Config(services=tuple(service(n, f"other{n}") for n in range(1, 11)))
    assert accident(TEN, renamed) == ""


def test_one_of_several_listen_addresses_is_enough():
    both = replace(service(1), listen=service(1).listen + service(99).listen)
    before = Config(services=(both, *(service(n) for n in range(2, 11))))
    # The first goes on at its other address, with four more.
    assert accident(before, config(99, 2, 3, 4, 5)) == ""
    assert accident(before, config(98, 2, 3, 4, 5))


def test_another_interface_is_another_service():
    other = Config(services=tuple(service(n, interface="eth1") for n in range(1, 11)))
    assert accident(TEN, other)


def test_marks_are_listen_addresses_too():
    before = Config(services=tuple(Service(f"m{n}", (), (), mark=n) for n in range(1, 11)))
    assert accident(before, before) == ""
    assert accident(before, TEN)


@pytest.mark.parametrize(
    ("director", "refused"),
    [
        ({"removed_percent": 60}, False),
        ({"removed_percent": 59}, True),
        ({"removed_percent": 100}, False),
        ({"removed_from": 11}, False),
    ],
)
def test_the_new_file_sets_the_thresholds(director, refused):
    assert bool(accident(TEN, config(*range(1, 5), **director))) is refused


def test_a_file_that_may_be_empty_is_empty():
    assert accident(TEN, Config()) == ""
