"""Which connections end when a backend goes: the table of docs/configuration.md, and what is not ours."""

from dataclasses import replace

import pytest

from lbd.core.attribution import Attribution, Sent
from lbd.core.config import parse
from lbd.core.leftovers import Left, Ruling, Unreached, changed, ended, kinds, served, touched
from lbd.core.observed import Observed, Override
from lbd.core.probes import Health, TcpProbe
from lbd.core.settings import Config
from lbd.core.source import Source
from running import service

TCP, UDP, GRE, SCTP = 6, 17, 47, 132
NUMBER = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
ONE, TWO = "10.0.0.1:80", "10.0.0.2:80"
KEY = ("web", ONE)


def config(*services):
    return parse(Source("lbd.toml", "\n".join(services) or "allow_empty = true"))


def web(backends, protocol="tcp", *, on_down=None, name="web", listen="192.0.2.1:80", **options):
    suffix = "" if protocol == "tcp" else f"/{protocol}"
    options = {**options, **({"on_down": on_down} if on_down else {})}
    return service(listen + suffix, backends, name=name, **options)


def ruling(now, before=None, observed=None):
    gone = changed(before, now)[0] if before else ()
    return Ruling(Attribution(now), Attribution(Config(services=gone)), observed or Observed())


def sent(protocol=TCP, backend="10.0.0.1", port=80, backend_port=80, address="192.0.2.1"):
    return Sent(protocol, address, port, backend, backend_port)


# state of the backend; TCP with on_down unset, "keep" and "reset"; UDP. True is that it ends.
POLICY = {
    "dead": (True, False, True, True),
    "down": (True, False, True, True),
    "ended": (True, False, True, True),
    "expired": (True, False, True, True),
    "maintenance": (False, False, True, True),
    "maintenance by command": (False, False, True, True),
    "removed": (False, False, True, True),
    "another port": (False, False, True, True),
    "service removed": (False, False, True, True),
    "drain": (False, False, False, False),
    "drain by command": (False, False, False, False),
    "full": (False, False, False, False),
    "idle": (False, False, False, False),
    "standby": (False, False, False, False),
    "up": (False, False, False, False),
}
OBSERVED = {
    "dead": Observed(dead=frozenset({KEY})),
    "ended": Observed(ended=frozenset({KEY})),
    "expired": Observed(expired=frozenset({KEY})),
    "maintenance by command": Observed(overrides={KEY: Override("maintenance", "lbd maintenance")}),
    "drain by command": Observed(overrides={KEY: Override("drain", "lbd drain")}),
    "full": Observed(full=frozenset({KEY})),
}
WRITTEN = {
    "down": {"state": "down"},
    "maintenance": {"state": "maintenance"},
    "ended": {"state": "drain"},
    "expired": {"state": "drain"},
    "drain": {"state": "drain"},
    "idle": {"weight": 0},
    "standby": {"backup": 1},
}


@pytest.mark.parametrize("case", POLICY)
@pytest.mark.parametrize("protocol", NUMBER)
@pytest.mark.parametrize("on_down", [None, "keep", "reset"])
def test_policy(case, protocol, on_down):
    before = config(web([ONE, TWO], protocol, on_down=on_down))
    match case:
        case "removed":
            now = config(web([TWO], protocol, on_down=on_down))
        case "another port":
            now = config(web(["10.0.0.1:81", TWO], protocol, on_down=on_down))
        case "service removed":
            now = config()
        case _:
            backend = {"address": ONE, **WRITTEN.get(case, {})}
            now = config(web([backend, TWO], protocol, on_down=on_down))
    unset, keep, reset, udp = POLICY[case]
    expected = udp if protocol == "udp" else {None: unset, "keep": keep, "reset": reset}[on_down]
    found = ruling(now, before, OBSERVED.get(case)).left(sent(NUMBER[protocol]))
    assert bool(found) == expected
    if found:
        assert found.backend == KEY


def test_in_panic_the_dead_are_in_use():
    dead = Observed(dead=frozenset({KEY, ("web", TWO)}))
    (one,) = config(web([ONE, TWO])).services
    for panic, ends in ((0, True), (50, False)):
        now = Config(services=(replace(one, health=replace(Health(TcpProbe()), panic=panic)),))
        assert bool(ruling(now, observed=dead).left(sent())) == ends


def test_what_is_not_lbds_is_nobodys():
    now, before = config(web([TWO], "udp")), config(web([ONE, TWO], "udp"))
    judge = ruling(now, before)
    assert judge.left(sent(UDP)) == Left(KEY, "removed")
    for other in (
        sent(UDP, port=81),
        sent(UDP, backend_port=81),
        sent(UDP, backend="10.0.0.9"),
        sent(UDP, address="192.0.2.2"),
        sent(TCP),
    ):
        assert judge.left(other) is None


def test_who_still_has_it_keeps_it():
    gone = web([TWO], "udp", name="a", interface="eth0")
    has = web([ONE], "udp", name="b", interface="eth1")
    before = config(web([ONE], "udp", name="a", interface="eth0"), has)
    assert ruling(config(gone, has), before).left(sent(UDP)) is None


def test_service_that_takes_everything_hides_the_less_exact():
    wide = web([ONE.removesuffix(":80")], "udp", name="wide", listen="192.0.2.1:1-99")
    exact = web([TWO], "udp", name="exact")
    assert ruling(config(wide)).left(sent(UDP)) is None
    # It was of the other one, which is as it was, and goes to this one from now on.
    judge = ruling(config(wide, exact), config(wide))
    assert judge.left(sent(UDP)) == Left(("wide", "10.0.0.1"), "removed")
    assert judge.left(sent(UDP, port=81, backend_port=81)) is None
    assert judge.hides(sent(UDP))
    assert not judge.hides(sent(UDP, port=81))
    before = config(wide, web([ONE], "udp", name="exact"))
    assert ruling(config(wide, exact), before).left(sent(UDP)) == Left(("exact", ONE), "removed")


def test_what_the_file_says_now_counts():
    before = config(web([ONE, TWO]))
    now = config(web([TWO], on_down="reset"))
    assert ruling(now, before).left(sent())


def test_sorry_server_keeps_what_it_has_and_goes_like_others():
    before = config(web([ONE], "udp", sorry_server="10.0.0.9:80"))
    there = sent(UDP, backend="10.0.0.9")
    assert ruling(before).left(there) is None
    assert ruling(config(web([ONE], "udp")), before).left(there)


def test_changed_services_and_kinds():
    a, b, c = (web([ONE], name=name, listen=f"192.0.2.{n}:80") for n, name in enumerate("abc", 1))
    before, now = config(a, b), config(a, c, web([TWO], name="b", listen="192.0.2.2:80"))
    were, are = changed(before, now)
    assert [service.name for service in were] == ["b"]
    assert [service.name for service in are] == ["c", "b"]
    assert changed(now, now) == ((), ())
    assert kinds(were) == (frozenset({sent(address="192.0.2.2")}), True)
    assert kinds(config(web([ONE.removesuffix(":80")], listen="192.0.2.1:1-9")).services)[1] is False


def test_touched_by_what_is_observed():
    for case, found in OBSERVED.items():
        names = frozenset() if case == "full" else frozenset({"web"})
        assert touched(Observed(), found) == touched(found, Observed()) == names
        assert touched(found, found) == frozenset()


def test_listen_addresses_that_are_served():
    found = config(
        web([ONE], "udp", name="a"),
        web([], "udp", name="empty", listen="192.0.2.2:80"),
        web([ONE], name="tcp", listen="192.0.2.3:80"),
        web(["10.0.0.1"], "udp", name="range", listen="192.0.2.4:10-20", interface="eth0"),
    )
    now = served(found.services, Observed())
    assert {each.service for each in now} == {"a", "range"}
    at = Unreached(now)
    home = sent(UDP, backend="192.0.2.1")
    (one,) = at.at(home)
    assert (one.service, one.interface, one.kind) == ("a", "", home)
    (ranged,) = at.at(sent(UDP, address="192.0.2.4", port=15))
    assert (ranged.interface, ranged.kind) == ("eth0", None)
    assert not at.at(sent(UDP, address="192.0.2.4", port=21))
    assert not served(found.services, Observed(dead=frozenset({("a", ONE)}))) >= now


def test_words():
    assert ended({}, {}, 0.1) is None
    assert ended({Left(KEY, "down"): 0}, {}, 0.1) is None
    said = ended({Left(KEY, "down"): 2, Left(("web", TWO), "removed"): 5}, {"dns": 1}, 0.25)
    assert said.message == (
        "ended 8 connections that would go nowhere: "
        f'5 of backend {TWO} of service "web", which was removed; '
        f'2 of backend {ONE} of service "web", which is down; 1 to service "dns" from before it had a backend'
    )
    assert said.fields["LBD_CONNECTIONS"] == "8"
    assert said.fields["LBD_BACKEND"] == TWO
