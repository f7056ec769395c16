"""One file with every kind of service: this kernel takes it as a whole, and reads it back as it was meant."""

from pathlib import Path

import pytest

from lbd.lab.namespaces import Lab
from lbd.lab.topology import experiment
from running import Director

pytestmark = [pytest.mark.kernel, pytest.mark.emulated]

EVERYTHING = Path(__file__).parents[1] / "everything" / "lbd.toml"
# Python alone takes half a minute to begin where a machine is emulated.
SECONDS = 300.0


@pytest.fixture(scope="module")
def director():
    with Lab(experiment(2, gateway="director", ipv6=True)) as lab, Director(lab) as director:
        for file in EVERYTHING.parent.iterdir():
            (director.directory / file.name).write_bytes(file.read_bytes())
        done = director.lbd("apply", timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        yield director


def test_applied_twice_there_is_nothing_to_do(director):
    assert director.lbd("plan", timeout=SECONDS).stdout == "nothing to do\n"


@pytest.mark.parametrize("table", ["inet lbd", "netdev lbd"])
def test_an_administrator_can_list_it(director, table):
    listed = director.lab.run("director", ["nft", "list", "table", *table.split()]).stdout
    assert "services" in listed


def test_everything_is_taken_away(director):
    assert director.lbd("apply", "--remove", timeout=SECONDS).returncode == 0
    assert "lbd" not in director.lab.run("director", ["nft", "list", "tables"]).stdout
