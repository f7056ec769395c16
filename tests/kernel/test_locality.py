"""A change of one service is a change of its own elements, and nobody else notices it."""

import os
import random
from contextlib import ExitStack

import pytest

from lbd.lab.traffic import Conversation, Requester
from running import VIP, at, backends, service

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

# In a tenth of the time of a test run, or by choice as many as matter.
EDITS = 1000 if os.environ.get("LBD_LONG") == "1" else 100
SEED = int(os.environ.get("LBD_SEED", "1"))
CLIENTS = {4: "192.168.18.0/24", 6: "2001:db8:18::/64"}

# Services that nobody touches, each of another kind, under load all the time: family, protocol, port, and
# the rest of the service.
UNTOUCHED = [
    (4, "tcp", "8888", {}),
    (6, "tcp", "8888", {"persistence": "1h", "scheduler": "random"}),
    (4, "udp", "8888", {"allow": [CLIENTS[4]], "scheduler": "round-robin"}),
    (6, "udp", "8880-8889", {"limits": {"new_per_second": 100_000}, "scheduler": "random"}),
    (4, "tcp", "8890-8899", {"persistence": "1h", "allow": [CLIENTS[4]], "return_path": "masquerade"}),
    (6, "tcp", "8890-8899", {"limits": {"client_connections": 1000}, "deny": ["2001:db8:66::/48"]}),
]


def untouched():
    return "".join(
        service(at(VIP[family], ports, protocol), backends(3, family), name=f"kept{n}", **options)
        for n, (family, protocol, ports, options) in enumerate(UNTOUCHED)
    )


def edited(chance, n):
    """A service of any kind; its ports are those that `is_of` knows it by."""
    family, protocol = chance.choice([4, 6]), chance.choice(["tcp", "udp"])
    servers = [
        {
            "address": address,
            "weight": chance.choice([0, 1, 1, 2, 5]),
            "state": chance.choice(["up", "up", "up", "drain", "down"]),
            "backup": chance.choice([0, 0, 1]),
        }
        for address in chance.sample(backends(3, family), chance.randint(0, 3))
    ]
    for each in servers:
        if not each["backup"]:
            del each["backup"]
    options = {"scheduler": chance.choice(["maglev", "source-hash", "random", "round-robin"])}
    several = {
        "persistence": "1h",
        "allow": [CLIENTS[family], "198.51.100.0/24"],
        "deny": ["198.51.101.0/24", "2001:db8:51::/48"],
        "refuse": "reject",
        "return_path": "masquerade",
        "when_empty": "drop",
        "limits": chance.choice(
            [
                {"new_per_second": chance.randint(1, 9)},
                {"client_new_per_second": chance.randint(1, 3)},
                {"client_connections": chance.randint(1, 3)},
            ]
        ),
    }
    options |= {key: value for key, value in several.items() if chance.random() < 0.3}
    ports = chance.choice([f"{7000 + n}", f"{7100 + 10 * n}-{7105 + 10 * n}", f"{7000 + n},{7200 + n}"])
    return service(at(VIP[family], ports, protocol), servers, name=f"edited{n}", **options)


def is_of(key, n):
    """Whether an element is of the service with this number."""
    mine = {f"{7000 + n}", f"{7200 + n}", f"{7100 + 10 * n}-{7105 + 10 * n}"}
    return not mine.isdisjoint(key.split(" . "))


def elements(table):
    """All elements, by map and key."""
    return {(name, key): data for name, held in table.elements.items() for key, data in held.items()}


def test_random_edits_change_one_service_and_disturb_no_other(lab, director):
    chance = random.Random(SEED)
    services = {n: edited(chance, n) for n in range(6)}
    director.apply(untouched() + "".join(services.values()))
    with ExitStack() as stack:
        load = [
            stack.enter_context(
                Requester(
                    lab,
                    host,
                    VIP[family],
                    int(ports.split("-")[0]),
                    protocol=protocol,
                    pause=0.01,
                    seconds=500,
                )
            )
            for (family, protocol, ports, _), host in zip(UNTOUCHED, ["client", "client2"] * 3, strict=True)
        ]
        talks = [
            stack.enter_context(
                Conversation(lab, "client", VIP[family], int(ports.split("-")[0]), protocol=protocol)
            )
            for family, protocol, ports, _ in UNTOUCHED
        ]
        before = elements(director.table())
        for edit in range(EDITS):
            n = chance.randrange(6)
            if n in services and chance.random() < 0.2:
                del services[n]
            else:
                services[n] = edited(chance, n)
            director.apply(untouched() + "".join(services.values()))
            after = elements(director.table())
            changed = {each for each in before.keys() | after.keys() if before.get(each) != after.get(each)}
            strangers = {(name, key) for name, key in changed if not is_of(key, n)}
            assert not strangers, f"edit {edit} of service {n}"
            before = after
            # A flow of UDP that is silent for two minutes is forgotten, and then a new one.
            assert all(talk.alive() for talk in talks), f"edit {edit} of service {n}"
        tallies = [requests.stop() for requests in load]
    assert [tally.failures for tally in tallies] == [{}] * len(UNTOUCHED)
    assert all(tally.total > EDITS / 2 for tally in tallies)


@pytest.mark.parametrize("family", [4, 6])
def test_a_change_of_a_backend_s_weight_is_a_few_elements(director, family):
    """What is sent to the kernel is the difference, however many services there are."""
    many = [
        service(at(VIP[family], 7000 + n), backends(3, family), name=f"s{n}", scheduler="random")
        for n in range(200)
    ]
    director.apply("".join(many))
    before = elements(director.table())
    one, two, three = backends(3, family)
    heavier = [one, {"address": two, "weight": 2}, three]
    many[99] = service(at(VIP[family], 7099), heavier, name="s99", scheduler="random")
    director.apply("".join(many))
    after = elements(director.table())
    changed = {each for each in before.keys() | after.keys() if before.get(each) != after.get(each)}
    assert changed
    assert all("7099" in key.split(" . ") for _, key in changed)
