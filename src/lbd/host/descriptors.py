"""How many files this process may have open."""

from __future__ import annotations

import resource

# So many checks at once are those of 16,384 targets that do not answer, each until its timeout.
MOST = 16384


def for_checks(wanted: int) -> int:
    """Return how many descriptors checks may have, which want so many; half of all are left to the rest.

    The soft limit is raised as far as that needs, and not further: programs that lbd runs inherit it, and
    some close as many descriptors as there may be (the hard limit can be a thousand million).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    goal = 2 * min(wanted, MOST)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < goal:
        soft = goal if hard == unlimited else min(goal, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, MOST if soft == unlimited else min(soft // 2, MOST))
