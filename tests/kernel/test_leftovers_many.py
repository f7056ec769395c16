"""A full table: what one backend leaves behind is ended soon, and the event loop does not wait for it."""

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from lbd.core.config import parse
from lbd.core.observed import Observed
from lbd.core.source import Source
from lbd.host import conntrack_delete
from lbd.host.conntrack_delete import NoFilterError
from lbd.host.store import Store
from lbd.leftovers import Leftovers
from running import at, service
from tracked import UDP, VIP, empty, entry, make, raw, tracking

pytestmark = pytest.mark.kernel

# The whole, and of that what one backend has. (The kernel's own maximum is 262,144 on most hosts.)
MANY, OF_ONE = 60_000, 15_000
BACKENDS = {
    4: ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"],
    6: ["fd00::1", "fd00::2", "fd00::3", "fd00::4"],
}


@pytest.fixture(scope="module")
def namespace():
    with tracking() as namespace:
        yield namespace


@pytest.fixture
def table(namespace):
    empty()
    yield namespace
    empty()


def fill(family, many, of_one):
    """Connections in equal parts to backends of one service, the first of which has so many."""
    per = (many - of_one) // 3
    counts = [of_one, per, per, many - of_one - 2 * per]
    client = 0
    for address, count in zip(BACKENDS[family], counts, strict=True):
        make(
            entry(family, client + n // 1000, 1000 + n % 1000, 80, backend=8080, to=address, protocol=UDP)
            for n in range(count)
        )
        client += count // 1000 + 1


def configuration(family, backends, number=1):
    listed = [at(address, 8080) for address in backends]
    listen = [at(VIP[family], 80 + n, "udp") for n in range(number)]
    source = Source("/etc/lbd.toml", service(listen, listed))
    return parse(source), (source,)


@dataclass
class Run:
    """Clears on a loop that has something else to do, too."""

    store: Store
    lag: float = 0.0
    seconds: float = 0.0
    said: list = field(default_factory=list)

    async def of(self, *configurations):
        leftovers = Leftovers(self.said.append, self.store)
        for config, sources in configurations:
            leftovers.note(config, sources)
            clearing = asyncio.ensure_future(
                leftovers.clear(config, Observed(), thorough=False, settled=True)
            )
            began = last = time.monotonic()
            while not clearing.done():
                await asyncio.sleep(0.001)
                self.lag = max(self.lag, time.monotonic() - last - 0.001)
                last = time.monotonic()
            self.seconds = last - began
            await clearing
        return self


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", ["filter", "one by one", "sweep"])
def test_full_table(table, tmp_path, monkeypatch, family, way):
    fill(family, MANY, OF_ONE)

    def cannot(_):
        raise NoFilterError

    if way == "one by one":
        monkeypatch.setattr(conntrack_delete, "by_filter", cannot)
    before = configuration(family, BACKENDS[family])
    after = configuration(family, BACKENDS[family][1:])
    store = Store(tmp_path)
    if way == "sweep":
        # As a daemon does that starts.
        store.save_last_good(before[1])
    run = asyncio.run(Run(store).of(*([after] if way == "sweep" else [before, after])))
    print(f"{family=} {way=}: {run.seconds:.3f} s, the loop waited {run.lag * 1000:.0f} ms at most")
    assert len(raw()) == MANY - OF_ONE
    assert [entry.fields["LBD_CONNECTIONS"] for entry in run.said] == [str(OF_ONE)]
    assert run.lag < 0.1
    # The machine may be busy with other things: alone it is a few tenths of a second.
    assert run.seconds < 6.0
