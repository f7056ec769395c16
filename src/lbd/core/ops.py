"""Operations: the words a Plan is made of. str() is what nft is sent, or what `ip` would say."""

from __future__ import annotations

from dataclasses import dataclass, field

from lbd.core.state import TABLE, Address, Hook, LiveRoute, Map, Memory, Route, Rule, TableFamily

# nft's key of the element that matches what no other one of its map does.
CATCH_ALL = "*"


@dataclass(frozen=True, slots=True)
class AddTable:
    """Make our table."""

    family: TableFamily = "inet"

    def __str__(self) -> str:
        return f"add table {self.family} {TABLE}"


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """Delete our table and all in it."""

    family: TableFamily = "inet"

    def __str__(self) -> str:
        return f"delete table {self.family} {TABLE}"


@dataclass(frozen=True, slots=True)
class AddChain:
    """Make an empty chain; it must not exist."""

    name: str
    hook: Hook | None = None
    family: TableFamily = "inet"

    def __str__(self) -> str:
        text = f"add chain {self.family} {TABLE} {self.name}"
        if not self.hook:
            return text
        device = f' device "{self.hook.device}"' if self.hook.device else ""
        hook = f"type {self.hook.type} hook {self.hook.point}{device} priority {self.hook.priority}"
        return f"{text} {{ {hook}; policy {self.hook.policy}; }}"


@dataclass(frozen=True, slots=True)
class FlushChain:
    """Delete all rules of a chain."""

    name: str
    family: TableFamily = "inet"

    def __str__(self) -> str:
        return f"flush chain {self.family} {TABLE} {self.name}"


@dataclass(frozen=True, slots=True)
class DeleteChain:
    """Delete an empty chain that nothing goes to."""

    name: str
    family: TableFamily = "inet"

    def __str__(self) -> str:
        return f"delete chain {self.family} {TABLE} {self.name}"


@dataclass(frozen=True, slots=True)
class AddRule:
    """Append a rule."""

    chain: str
    rule: str
    family: TableFamily = "inet"

    def __str__(self) -> str:
        return f"add rule {self.family} {TABLE} {self.chain} {self.rule}"


@dataclass(frozen=True, slots=True)
class AddMap:
    """Make an empty map, or a set when it has no data."""

    name: str
    map: Map
    family: TableFamily = "inet"

    def __str__(self) -> str:
        shape = self.map
        data = shape.data if isinstance(shape.data, str) else " . ".join(shape.data)
        declared = f"typeof {shape.typeof}" if shape.typeof else f"type {' . '.join(shape.key)}"
        if data and not shape.typeof:
            declared += f" : {data}"
        flags = ["interval"] if shape.interval else ["dynamic"] if shape.learned else []
        flags += ["timeout"] if shape.learned == "timeout" else []
        declared += f"; size {shape.size};" + (f" flags {','.join(flags)};" if flags else "")
        counter = " counter;" if shape.counter else ""
        return f"add {kind(shape)} {self.family} {TABLE} {self.name} {{ {declared}{counter} }}"


@dataclass(frozen=True, slots=True)
class DeleteMap:
    """Delete a map or set that no rule names."""

    name: str
    family: TableFamily = "inet"

    def __str__(self) -> str:
        # nft takes either word for either kind here.
        return f"delete map {self.family} {TABLE} {self.name}"


@dataclass(frozen=True, slots=True)
class AddElements:
    """Add elements that are not there; each is a key and its data ("" in a set)."""

    name: str
    map: Map = field(repr=False)
    items: tuple[tuple[str, str], ...]
    family: TableFamily = "inet"

    def __str__(self) -> str:
        data = '{} : "{}"' if self.map.data == "limit" else "{} : {}"
        items = ", ".join(
            data.format(quote(k, self.map), v) if v else quote(k, self.map) for k, v in self.items
        )
        return f"add element {self.family} {TABLE} {self.name} {{ {items} }}"


@dataclass(frozen=True, slots=True)
class DeleteElements:
    """Delete elements that are there."""

    name: str
    map: Map = field(repr=False)
    keys: tuple[str, ...]
    family: TableFamily = "inet"

    def __str__(self) -> str:
        keys = ", ".join(quote(key, self.map) for key in self.keys)
        return f"delete element {self.family} {TABLE} {self.name} {{ {keys} }}"


@dataclass(frozen=True, slots=True)
class AddLimit:
    """Make a limit object; its name must be new, since nftables ignores another rate under a known one."""

    name: str
    rate: str
    family: TableFamily = "inet"

    def __str__(self) -> str:
        return f"add limit {self.family} {TABLE} {self.name} {{ {self.rate}; }}"


@dataclass(frozen=True, slots=True)
class DeleteLimit:
    """Delete a limit object that no element names."""

    name: str
    family: TableFamily = "inet"

    def __str__(self) -> str:
        return f"delete limit {self.family} {TABLE} {self.name}"


@dataclass(frozen=True, slots=True)
class AddFlowtable:
    """Make a flowtable over interfaces that are there; it must not exist."""

    name: str
    devices: tuple[str, ...]
    family: TableFamily = "inet"

    def __str__(self) -> str:
        devices = ", ".join(f'"{device}"' for device in self.devices)
        hook = f"hook ingress priority 0; devices = {{ {devices} }};"
        return f"add flowtable {self.family} {TABLE} {self.name} {{ {hook} }}"


@dataclass(frozen=True, slots=True)
class DeleteFlowtable:
    """Delete a flowtable that no rule names; its connections go back to the path of the rules."""

    name: str
    family: TableFamily = "inet"

    def __str__(self) -> str:
        return f"delete flowtable {self.family} {TABLE} {self.name}"


def kind(shape: Map) -> str:
    """Return nft's word for a map or a set."""
    return "map" if shape.data else "set"


def quote(key: str, shape: Map) -> str:
    """Return a key as nft reads it: interface names are quoted, since some are nft's own words."""
    if "ifname" not in shape.key or key == CATCH_ALL:
        return key
    at = shape.key.index("ifname")
    words = key.split(" . ")
    words[at] = f'"{words[at]}"'
    return " . ".join(words)


NftOp = (
    AddTable
    | DeleteTable
    | AddChain
    | FlushChain
    | DeleteChain
    | AddRule
    | AddMap
    | DeleteMap
    | AddElements
    | DeleteElements
    | AddLimit
    | DeleteLimit
    | AddFlowtable
    | DeleteFlowtable
)


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Give an interface an address of ours."""

    address: Address

    def __str__(self) -> str:
        return f"add {self.address}"


@dataclass(frozen=True, slots=True)
class DeleteAddress:
    """Take an address of ours from an interface."""

    address: Address

    def __str__(self) -> str:
        return f"delete {self.address}"


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Add a route of ours; with `replace`, in the place of the one with the same key, whose ever it is."""

    route: Route
    replace: bool = False

    def __str__(self) -> str:
        return f"{'replace' if self.replace else 'add'} {self.route}"


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    """Delete a route of ours."""

    route: Route

    def __str__(self) -> str:
        return f"delete {self.route}"


@dataclass(frozen=True, slots=True)
class RestoreRoute:
    """Put a foreign route back that ours had replaced."""

    live: LiveRoute

    def __str__(self) -> str:
        return f"restore {self.live.route}"


@dataclass(frozen=True, slots=True)
class AddPolicyRule:
    """Add a policy routing rule of ours."""

    rule: Rule

    def __str__(self) -> str:
        return f"add {self.rule}"


@dataclass(frozen=True, slots=True)
class DeletePolicyRule:
    """Delete a policy routing rule of ours."""

    rule: Rule

    def __str__(self) -> str:
        return f"delete {self.rule}"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """Set a kernel setting."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"set {self.name} = {self.value}"


@dataclass(frozen=True, slots=True)
class Remember:
    """Write down what was there before lbd, to put it back; changes nothing in the kernel."""

    memory: Memory = field(repr=False)

    def __str__(self) -> str:
        held = [*self.memory.sysctls, *(str(live.route) for live in self.memory.routes.values())]
        return (
            f"note what was there before lbd: {', '.join(held)}"
            if held
            else "forget what was there before lbd"
        )


HostOp = (
    AddAddress
    | DeleteAddress
    | AddRoute
    | DeleteRoute
    | RestoreRoute
    | AddPolicyRule
    | DeletePolicyRule
    | SetSysctl
    | Remember
)
