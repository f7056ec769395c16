"""The values of core/state as rtnetlink messages, and back. No socket here, and nothing is decided.

pyroute2 knows the attributes; what they mean is in rtnetlink(7) and include/uapi/linux/{rtnetlink,if_addr,
fib_rules}.h. A route that a Route cannot say in full is read so that nothing desired is taken for met by it,
and so that route_message() can write it again:

- several next hops: `via` is "192.0.2.1 dev eth1 weight 1 and 192.0.2.2 dev eth2 weight 3";
- no next hop on purpose: `via` is "blackhole", "unreachable", "prohibit" or "throw".

What is not kept of a foreign route: scope, MTU and other metrics, encapsulation, the remaining lifetime of
a route learnt from a router advertisement, and whether a next hop was marked onlink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from socket import AF_INET, AF_INET6

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD, ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import RT_SCOPE_LINK, rtmsg

from lbd.core.state import PROTOCOL, Address, LiveRoute, Route, Rule
from lbd.host.netlink import EVERYTHING, FAMILY, VERSION

UNICAST = 1
TYPES = {
    UNICAST: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
    10: "nat",
}
TO_TABLE = 1  # FR_ACT_TO_TBL, what "lookup" is to ip-rule(8)
INVERTED = 2  # FIB_RULE_INVERT, what "not" is to ip-rule(8)
NOT_SUPPRESSED = 0xFFFFFFFF
PLAIN_RULE = {
    *("FRA_TABLE", "FRA_PRIORITY", "FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN"),
    *("FRA_SRC", "FRA_DST", "FRA_IIFNAME"),
}

Names = Mapping[int, str]
"""Interface index to name."""

Index = Callable[[str], int]
"""Interface name to index."""


def address_message(address: Address, index: Index) -> ifaddrmsg:
    """Return what adds or deletes an address.

    Duplicate address detection keeps an IPv6 address tentative for 1.6 to 2.0 seconds (measured): nothing
    answers on it, and a route that names it as its source is refused. So it is skipped, as keepalived does
    for the addresses that it moves.
    """
    interface = ip_interface(address.address)
    message = ifaddrmsg()
    message["family"] = FAMILY[interface.version]
    message["prefixlen"] = interface.network.prefixlen
    message["flags"] = IFA_F_NODAD if message["family"] == AF_INET6 else 0
    message["index"] = index(address.interface)
    message["attrs"] = [
        ("IFA_LOCAL", str(interface.ip)),
        ("IFA_ADDRESS", str(interface.ip)),
        ("IFA_PROTO", PROTOCOL),
    ]
    return message


def read_address(message: ifaddrmsg, names: Names) -> tuple[Address, bool]:
    """Return an address and whether it is ours."""
    # On a point-to-point link IFA_ADDRESS is the other end; IPv6 has IFA_LOCAL only there.
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    address = ip_interface(f"{text}/{message['prefixlen']}")
    return Address(str(address), _name(names, message["index"])), message.get_attr("IFA_PROTO") == PROTOCOL


def route_message(route: Route, protocol: int, index: Index, *, flags: int = 0) -> rtmsg:
    """Return what adds, replaces or deletes a route; `flags` are of its next hop (RTNH_F_*)."""
    network = ip_network(route.to)
    kinds = {name: number for number, name in TYPES.items() if number != UNICAST}
    message = rtmsg()
    message["family"] = FAMILY[network.version]
    message["dst_len"] = network.prefixlen
    message["proto"] = protocol
    message["type"] = kinds.get(route.via, UNICAST)
    message["flags"] = flags
    attributes: list[tuple[str, object]] = [("RTA_TABLE", route.table)]
    if network.prefixlen:
        attributes.append(("RTA_DST", str(network.network_address)))
    if route.metric:
        attributes.append(("RTA_PRIORITY", route.metric))
    if route.source:
        attributes.append(("RTA_PREFSRC", route.source))
    if route.via == "" and message["family"] == AF_INET:
        message["scope"] = RT_SCOPE_LINK
    if " " in route.via:
        attributes.append(
            ("RTA_MULTIPATH", [_hop(hop, network.version, index) for hop in route.via.split(" and ")])
        )
    else:
        if route.via and route.via not in kinds:
            attributes.append(_gateway(route.via, network.version))
        # IPv6 keeps routes without a next hop on lo, and says so; it does not take that back.
        if route.interface and route.via not in kinds:
            attributes.append(("RTA_OIF", index(route.interface)))
    message["attrs"] = attributes
    return message


def read_route(message: rtmsg, names: Names) -> LiveRoute:
    """Return a route and whose it is."""
    to = message.get_attr("RTA_DST")
    kind = message["type"]
    if hops := message.get_attr("RTA_MULTIPATH"):
        via, interface = " and ".join(_hop_text(hop, names) for hop in hops), ""
    else:
        via = _gateway_text(message) if kind == UNICAST else TYPES.get(kind, f"type-{kind}")
        index = message.get_attr("RTA_OIF")
        interface = _name(names, index) if index else ""
    route = Route(
        to=str(ip_network(f"{to}/{message['dst_len']}")) if to else EVERYTHING[message["family"]],
        via=via,
        interface=interface,
        source=message.get_attr("RTA_PREFSRC") or "",
        table=message.get_attr("RTA_TABLE") or message["table"],
        metric=message.get_attr("RTA_PRIORITY") or 0,
    )
    return LiveRoute(route, message["proto"])


def rule_message(rule: Rule) -> fibmsg:
    """Return what adds or deletes a policy rule."""
    message = fibmsg()
    message["family"] = FAMILY[rule.family]
    message["action"] = TO_TABLE
    attributes: list[tuple[str, object]] = [
        ("FRA_TABLE", rule.table),
        ("FRA_PRIORITY", rule.priority),
        ("FRA_PROTOCOL", PROTOCOL),
    ]
    for text, length, attribute in ((rule.source, "src_len", "FRA_SRC"), (rule.to, "dst_len", "FRA_DST")):
        if text:
            network = ip_network(text)
            message[length] = network.prefixlen
            attributes.append((attribute, str(network.network_address)))
    if rule.iif:
        attributes.append(("FRA_IIFNAME", rule.iif))
    message["attrs"] = attributes
    return message


def read_rule(message: fibmsg) -> tuple[Rule, bool] | None:
    """Return a rule and whether it is ours; None for one that says more than a Rule can."""
    plain = {name for name, _ in message["attrs"]} <= PLAIN_RULE
    suppresses = message.get_attr("FRA_SUPPRESS_PREFIXLEN") not in (None, NOT_SUPPRESSED)
    if not plain or suppresses or message["tos"] or message["flags"] & INVERTED:
        return None
    if message["action"] != TO_TABLE:
        return None
    rule = Rule(
        priority=message.get_attr("FRA_PRIORITY") or 0,
        table=message.get_attr("FRA_TABLE") or message["table"],
        family=VERSION[message["family"]],
        source=_network(message.get_attr("FRA_SRC"), message["src_len"]),
        to=_network(message.get_attr("FRA_DST"), message["dst_len"]),
        iif=message.get_attr("FRA_IIFNAME") or "",
    )
    return rule, message.get_attr("FRA_PROTOCOL") == PROTOCOL


def _name(names: Names, index: int) -> str:
    # An interface that went away between two reads; "#" is in no interface's name that lbd accepts.
    return names.get(index, f"#{index}")


def _network(address: str | None, length: int) -> str:
    return str(ip_network(f"{address}/{length}")) if address else ""


def _gateway(via: str, version: int) -> tuple[str, object]:
    gateway = ip_address(via)
    if gateway.version == version:
        return "RTA_GATEWAY", str(gateway)
    return "RTA_VIA", {"family": FAMILY[gateway.version], "addr": str(gateway)}


def _gateway_text(hop: rtmsg) -> str:
    other = hop.get_attr("RTA_VIA")
    return str(other["addr"] if other else hop.get_attr("RTA_GATEWAY") or "")


def _hop_text(hop: rtmsg, names: Names) -> str:
    words = [_gateway_text(hop), "dev", _name(names, hop["oif"]), "weight", str(hop["hops"] + 1)]
    return " ".join(word for word in words if word)


def _hop(text: str, version: int, index: Index) -> dict[str, object]:
    via, _, rest = text.rpartition("dev ")
    name, _, weight = rest.split()
    return {
        "oif": index(name),
        "hops": int(weight) - 1,
        "attrs": [_gateway(via.strip(), version)] if via else [],
    }
