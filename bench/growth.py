"""What lbd costs at 1 and at 10,000 services, as ratios in one run.

    make bench

Everything happens in a network namespace made for it. Each figure is the median of interleaved rounds;
absolute times are this machine's, ratios travel better.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lbd.core.config import parse
from lbd.core.desired import desired
from lbd.core.source import Source
from lbd.core.state import Desired
from lbd.host.director import Director
from lbd.host.store import Store
from lbd.lab.namespaces import Lab
from lbd.lab.topology import experiment
from lbd.reconcile import reconcile, remove

BACKENDS = 4


def text(services: int, scheduler: str, *, weight: int = 1) -> str:
    """Return a file of that many services; `weight` is the first backend's of the first service."""
    parts = []
    for i in range(services):
        ends = [f"10.{100 + i // 65536}.{i // 256 % 256}.{i % 256}:{9000 + k}" for k in range(BACKENDS)]
        first = f'{{ address = "{ends[0]}", weight = {weight if i == 0 else 1} }}'
        backends = ", ".join([first, *(f'"{end}"' for end in ends[1:])])
        listen = f"198.51.{i // 256 % 256}.{i % 256}:{80 + i // 65536}"
        parts.append(f'[[service]]\nname = "s{i}"\nlisten = "{listen}"\nscheduler = "{scheduler}"')
        parts.append(f"backends = [{backends}]\n")
    return "\n".join(parts)


def wish(content: str) -> Desired:
    """Return what a file asks for."""
    return desired(parse(Source("bench.toml", content)))


@contextmanager
def host() -> Iterator[Director]:
    """Give a director in a namespace of its own, with nothing applied."""
    with Lab(experiment()) as lab, tempfile.TemporaryDirectory() as state, lab.inside("director"):
        director = Director(Store(Path(state)))
        # The worker's start is a cost of the process, not of a size.
        director.read(Desired())
        try:
            yield director
        finally:
            director.close()


def timed(work: Callable[[], object]) -> float:
    """Return the milliseconds that `work` takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def measure(services: int, scheduler: str) -> dict[str, float]:
    """Return milliseconds for each thing that an administrator waits for."""
    before, after = text(services, scheduler), text(services, scheduler, weight=2)
    result: dict[str, float] = {}
    result["parse the file"] = timed(lambda: wish(before))
    first, second = wish(before), wish(after)
    with host() as director:
        result["first load"] = timed(lambda: _converge(director, first))
        result["look, nothing to do"] = timed(lambda: _converge(director, first))
        result["one weight changes"] = timed(lambda: _converge(director, second))
        result["remove all"] = timed(lambda: remove(director))
    return result


def _converge(director: Director, goal: Desired) -> None:
    outcome = reconcile(director, goal)
    assert outcome.converged, outcome.problems


def main() -> None:
    """Print a table: medians at each size and the ratio between the two."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--services", type=int, default=10_000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--scheduler", default="random")
    chosen = arguments.parse_args()
    rounds = [
        (measure(1, chosen.scheduler), measure(chosen.services, chosen.scheduler))
        for _ in range(chosen.rounds)
    ]
    print(f"scheduler {chosen.scheduler}, {BACKENDS} backends each, median of {chosen.rounds} rounds, ms")
    print(f"{'':24}{1:>10}{chosen.services:>10}{'ratio':>10}")
    for name in rounds[0][0]:
        one, many = (statistics.median(pair[side][name] for pair in rounds) for side in (0, 1))
        print(f"{name:24}{one:>10.1f}{many:>10.1f}{many / one:>10.1f}")


if __name__ == "__main__":
    main()
