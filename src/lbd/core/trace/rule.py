"""What a rule does, as values: its statements in order, each with the keys and maps it asks.

core/trace/text makes them of nft's text, core/trace/effect does them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the packet; `mask` is an address, or a number for a mark, "" for all bits."""

    name: str
    mask: str = ""


@dataclass(frozen=True, slots=True)
class Hash:
    """`jhash KEY mod MODULUS seed SEED`."""

    key: tuple[Field, ...]
    modulus: int
    seed: int


@dataclass(frozen=True, slots=True)
class Choice:
    """`numgen random|inc mod MODULUS`: any number below."""

    modulus: int


Term = Field | Hash | Choice
Key = tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """`KEY map @NAME`, or with the elements in the place of a name."""

    key: Key
    name: str
    inline: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """`KEY @NAME`: goes on when the set has the key."""

    key: Key
    name: str


@dataclass(frozen=True, slots=True)
class Is:
    """Goes on when `subject` is one of `values`."""

    subject: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Branch:
    """`KEY vmap @NAME`: the verdict of the key's element."""

    key: Key
    name: str


@dataclass(frozen=True, slots=True)
class Quota:
    """`limit name KEY map @NAME`: goes on when the limit of the key's element is passed."""

    key: Key
    name: str


@dataclass(frozen=True, slots=True)
class Note:
    """`update|add @NAME { KEY ... }`: with `limited` it goes on only when the client is over the limit.

    `connections` says that the limit is one of open connections, of which the kernel then keeps a count.
    """

    name: str
    key: Key
    data: Field | None = None
    limited: bool = False
    connections: bool = False


@dataclass(frozen=True, slots=True)
class Translate:
    """`dnat|snat ip|ip6 to ADDRESS [: PORTS]`; `ports` "" leaves the port."""

    kind: Literal["dnat", "snat"]
    family: int
    address: Lookup | str
    ports: Lookup | str = ""


@dataclass(frozen=True, slots=True)
class Set:
    """`FIELD set VALUE`: writes into the packet. A lookup that finds nothing ends the rule."""

    field: str
    value: Lookup | str


@dataclass(frozen=True, slots=True)
class Forward:
    """`fwd ip|ip6 to ADDRESS device INDEX`: on to a neighbour, past all hooks that follow."""

    family: int
    address: Lookup
    device: Lookup


@dataclass(frozen=True, slots=True)
class Plain:
    """Something without arguments that matter here.

    "rate" goes on below a rate of log lines, "flow" once the connection is established.
    """

    kind: Literal["masquerade", "notrack", "synproxy", "log", "rate", "flow"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ends a rule: "accept", "drop", "return", "reset", "unreachable", "goto CHAIN", "jump CHAIN"."""

    text: str


Statement = Member | Is | Branch | Quota | Note | Translate | Set | Forward | Plain | Verdict
