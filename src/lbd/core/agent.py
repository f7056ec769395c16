"""HAProxy's agent protocol: a line of words that say how a backend feels.

See "agent-check" in HAProxy's configuration manual. Words are separated by spaces, tabs and commas; what
comes after "#" is a text for people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lbd.core.health import Agent, Result
from lbd.core.words import cut, printable, quote

# What a line may have at most, in bytes.
LONGEST = 1024

# Beside its share of connections: "ready" ends the two others.
_ASKED: Mapping[str, Agent] = {"ready": "", "drain": "drain", "maint": "maintenance"}
_UP = "up"
_DOWN = frozenset({"down", "fail", "stopped"})

_WEIGHT = re.compile(r"([0-9]{1,9})%")


def parse(line: bytes) -> Result:
    """Return what a line of an agent means; without any word of the protocol it is a failure.

    Words that are not of it are passed over, as by HAProxy, which has more of them (maxconn). The last one
    counts where two say different things.
    """
    text, _, comment = line.decode(errors="replace").strip().partition("#")
    weight: int | None = None
    asked: Agent | None = None
    state = ""
    for word in re.split(r"[ \t,]+", text.lower()):
        if found := _WEIGHT.fullmatch(word):
            weight = min(100, int(found[1]))
        elif word in _ASKED:
            asked = _ASKED[word]
        elif word == _UP or word in _DOWN:
            state = word
    if weight is None and asked is None and not state:
        return Result(
            False, f"no word of an agent in {quote(text.strip())}" if text.strip() else "an empty line"
        )
    said = cut(printable(comment.strip()))
    if state in _DOWN:
        return Result(False, f"the agent says {state}" + (f": {said}" if said else ""), weight, asked)
    return Result(True, said, weight, "" if asked is None and state == _UP else asked)
