"""What cannot hold together inside one service, though each value alone is right."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from lbd.core.config import health, untracked
from lbd.core.config.findings import Finding, Place
from lbd.core.config.services import PORT_FIELDS
from lbd.core.config.written import Written
from lbd.core.settings import EVERY_PORT, IP, Backend, Director, Listen, Ports

_HASHING = ("maglev", "source-hash")


def service(written: Written, director: Director, doubtful: frozenset[str]) -> Iterator[Finding]:
    """Find what is wrong in a service. `doubtful` are keys of [director] that could not be read."""
    yield from chain(
        _hash(written),
        _wildcards(written),
        _families(written),
        _sorry(written),
        _sources(written),
        _ports(written),
        _ranges(written),
        _twice(written),
        _backend_keys(written),
        _pins(written),
        _synproxy(written),
        untracked.service(written),
        health.service(written),
    )
    if "mark_mask" not in doubtful:
        yield from _mark(written, director.mark_mask)
    if "ssh_ports" not in doubtful:
        yield from _ssh(written, director.ssh_ports)
    if "devices" not in doubtful and "offload" in written.given and written.service.offload:
        yield from offload(written.place / "offload", director)


def offload(place: Place, director: Director) -> Iterator[Finding]:
    """Find that nobody said between which interfaces to offload, for a key `offload` that is true."""
    if not director.devices:
        message = 'offload is between interfaces; list them: [director] devices = ["eth0", "eth1"]'
        yield Finding(place, message)


def _hash(written: Written) -> Iterator[Finding]:
    service, given = written.service, written.given
    if not written.right("scheduler", "hash", "table_size", "backends", "listen", "mark"):
        return
    scheduler = service.scheduler
    for key in sorted({"hash", "table_size"} & given):
        if scheduler not in _HASHING:
            message = f'"{key}" is for scheduler "maglev", and this service has "{scheduler}"'
            yield Finding(written.place / key, message)
    if "hash" in given and scheduler == "source-hash" and service.hash != ("source-address",):
        message = 'scheduler "source-hash" hashes ["source-address"]; for more use scheduler "maglev"'
        yield Finding(written.place / "hash", message)
    elif "hash" in given and (why := _portless(service.listen, service.mark)):
        for field in service.hash:
            if field in PORT_FIELDS:
                yield Finding(written.place / "hash", f'"{field}" cannot be hashed: {why}')
    if 0 < service.table_size < len(service.backends):
        message = (
            f"{service.table_size} slots are fewer than the {len(service.backends)} backends; "
            "some hundred slots for each make even shares"
        )
        yield Finding(written.place / "table_size", message)


def _portless(listens: tuple[Listen, ...], mark: int | None) -> str:
    """Return why there may be no ports, "" when there are."""
    if mark is not None:
        return "packets with a mark are of any protocol, also of those without ports"
    portless = next((each for each in listens if each.protocol == "any"), None)
    return f"{portless} is every protocol, also those without ports" if portless else ""


def _mark(written: Written, mask: int) -> Iterator[Finding]:
    mark = written.service.mark
    if mark is not None and mark & ~mask:
        message = (
            f"mark {mark:#x} has bits outside of [director] mark_mask, which is {mask:#x}, and no packet "
            "would match; change one of them"
        )
        yield Finding(written.place / "mark", message)


def _wildcards(written: Written) -> Iterator[Finding]:
    if written.service.interface is not None or not written.right("interface"):
        return
    told = set()
    for place, listen in written.listens():
        if listen.wildcard and place not in told:
            told.add(place)
            message = (
                'every address of the director needs "interface", where clients come in; without it '
                "connections that only pass through would be taken as well"
            )
            yield Finding(place, message)


def _families(written: Written) -> Iterator[Finding]:
    service = written.service
    if service.mark is not None or not written.right("listen", "mark", "backends"):
        return
    listens: dict[int, tuple[Place, Listen]] = {}
    for place, listen in written.listens():
        listens.setdefault(listen.family, (place, listen))
    backends = {backend.family for backend in service.backends}
    if not (backends | {server.family for server in service.sorry}) <= listens.keys():
        for place, server in written.servers():
            if server.family not in listens:
                yield Finding(place, _no_listen(server, service.listen[0]))
    for family, (place, listen) in listens.items():
        if backends and family not in backends and backends & listens.keys():
            yield Finding(
                place, f"{listen} is IPv{family}, and the service has no IPv{family} backend for it"
            )


def _sorry(written: Written) -> Iterator[Finding]:
    service = written.service
    backends = {backend.family for backend in service.backends}
    first: dict[int, Place] = {}
    for i, server in enumerate(service.sorry):
        place = written.place / "sorry_server" / i
        earlier = first.setdefault(server.family, place)
        if earlier is not place:
            yield Finding(place, f"a second sorry server of IPv{server.family}; keep one", also=earlier)
        elif service.mark is not None and backends and server.family not in backends:
            yield Finding(place, f"{server} is IPv{server.family}, and no backend is")


def _no_listen(server: Backend, listen: Listen) -> str:
    return (
        f"{server} is IPv{server.family}, but the service listens on IPv{listen.family} only, as {listen}; "
        "lbd does not translate between families"
    )


def _sources(written: Written) -> Iterator[Finding]:
    """Find families of "snat" without an address to put in the place of the client's."""
    path = written.service.return_path
    if not path.sources or not written.right("listen", "mark", "backends", "return_path"):
        return
    told = set()
    for place, each in written.servers() if written.service.mark is not None else written.listens():
        if each.family not in told and not path.of(each.family):
            told.add(each.family)
            message = (
                f"{path} is IPv{path.sources[0].version} and cannot be the source for {each}, which is "
                f"IPv{each.family}; add an address of that family behind a comma"
            )
            yield Finding(written.place / "return_path", message, also=place)


def _ports(written: Written) -> Iterator[Finding]:
    """Find ports where there are none, and backends that cannot be mixed."""
    service = written.service
    if not written.right("listen", "mark", "backends"):
        return
    if why := _portless(service.listen, service.mark):
        for place, server in written.servers():
            if server.ports:
                yield Finding(place, f'{server} has a port, but {why}; write "{Backend(server.address)}"')
        return
    loose = next((each for each in service.listen if each.wildcard or not each.ports.single), None)
    if loose is None:
        return
    start, first = next(written.backends(), (written.place, None))
    for place, backend in written.backends():
        if first and _form(backend) != _form(first):
            message = (
                f"{backend} has {_form(backend)} and {first} has {_form(first)}; behind {loose} all backends "
                "have no port, one port, or the same range of ports"
            )
            yield Finding(place, message, also=start)
            return


def _form(backend: Backend) -> str:
    """Return how a backend has ports: by rule, all of a service get none, one, or are shifted by as much."""
    if backend.ports is None:
        return "no port"
    return "one port" if backend.ports.single else f"the range {backend.ports}"


def _ranges(written: Written) -> Iterator[Finding]:
    shifts = any(backend.ports and not backend.ports.single for backend in written.service.backends)
    if not shifts or not written.right("listen", "mark", "backends"):
        return
    listens = list(written.listens())
    for place, backend in written.backends():
        ports = backend.ports
        if ports is None or ports.single:
            continue
        there, other = next(
            ((at, each) for at, each in listens if len(each.ports) != len(ports)), (None, None)
        )
        if other is not None:
            message = (
                f"{backend} has a range of {len(ports)} ports, which shifts a range of as many, and {other} "
                "is not one; make them equal or give the backend one port"
            )
            yield Finding(place, message, also=there)


def _twice(written: Written) -> Iterator[Finding]:
    """Find backends that are one: a backend without a port has those of each listen address."""
    backends = written.service.backends
    groups: dict[IP, list[int]] = {}
    for i, backend in enumerate(backends):
        groups.setdefault(backend.address, []).append(i)
    behind = sorted({listen.ports for listen in written.service.listen}) or [EVERY_PORT]
    for group in groups.values():
        if len(group) > 1:
            for i, earlier in sorted(_overlaps({i: backends[i].ports for i in group}, behind).items()):
                backend, other = backends[i], backends[earlier]
                same = backend.ports == other.ports or not (backend.ports and other.ports)
                how = "is listed twice" if same else f"overlaps {other}"
                hint = "give one a higher weight to send it more"
                place = written.place / "backends"
                yield Finding(place / i, f"{backend} {how}; {hint}", also=place / earlier)


def _overlaps(group: dict[int, Ports | None], behind: list[Ports]) -> dict[int, int]:
    """Return the later and the earlier of backends with one address that share a port."""
    spans = sorted((ports, i) for i, own in group.items() for ports in ([own] if own else behind))
    shared: dict[int, int] = {}
    furthest, holder = spans[0]
    for ports, i in spans[1:]:
        if i != holder and ports.low <= furthest.high:
            shared.setdefault(max(i, holder), min(i, holder))
        if ports.high > furthest.high:
            furthest, holder = ports, i
    return shared


def _backend_keys(written: Written) -> Iterator[Finding]:
    if not any(backend.drain_until for backend in written.service.backends):
        return
    for place, backend in written.backends():
        if backend.drain_until is not None and backend.state != "drain":
            message = f'drain_until ends a drain, and this backend is "{backend.state}"; add state = "drain"'
            yield Finding(place / "drain_until", message)


def _pins(written: Written) -> Iterator[Finding]:
    pins, place = written.service.pins, written.place / "pin"
    if not written.right("pin"):
        return
    for i, pin in enumerate(pins):
        if pin.client.version != pin.backend.family:
            message = f"{pin.client} is IPv{pin.client.version}, and its backend {pin.backend} is not"
            yield Finding(place / i, message)
    # In this order a prefix comes right behind those that it is inside of.
    around: list[int] = []
    clients = [(p.client.version, int(p.client.network_address), p.client.prefixlen) for p in pins]
    for i in sorted(range(len(pins)), key=clients.__getitem__):
        client = pins[i].client
        while around and not (
            client.version == pins[around[-1]].client.version
            and client.network_address in pins[around[-1]].client
        ):
            around.pop()
        if around:
            outer = pins[around[-1]].client
            message = f"{client} is pinned twice" if outer == client else f"{client} is inside {outer}"
            hint = "; a client is pinned to one backend"
            later, earlier = max(i, around[-1]), min(i, around[-1])
            yield Finding(place / later / "client", message + hint, also=place / earlier / "client")
        around.append(i)


def _synproxy(written: Written) -> Iterator[Finding]:
    service = written.service
    if not service.limits.synproxy or not written.right("limits", "listen", "mark"):
        return
    message = "synproxy answers for TCP ports, single ones or ranges"
    if service.mark is not None:
        yield written.finding("limits", f"{message}, and a mark is on packets of any protocol")
    other = next((each for each in service.listen if each.protocol != "tcp" or each.ports.every), None)
    if other is not None:
        yield written.finding("limits", f"{message}, and {other} is something else")
    # Without connection tracking limits are refused as a whole, and the interface is needed.
    tracked = service.return_path.kind not in {"direct", "stateless"} and written.right("return_path")
    if tracked and service.interface is not None and written.right("interface"):
        message = (
            '"interface" does not go with synproxy: the connection that the director itself opens to the '
            "backend enters by none; take one of them out"
        )
        there = written.place / "limits" if "limits" in written.given else written.inherited["limits"]
        yield Finding(written.place / "interface", message, also=there)


def _ssh(written: Written, ssh_ports: tuple[int, ...]) -> Iterator[Finding]:
    if written.service.ssh or not written.right("ssh"):
        return
    told = set()
    for place, listen in written.listens():
        port = next((each for each in ssh_ports if each in listen.ports), None)
        if port is not None and listen.protocol in {"tcp", "any"} and place not in told:
            told.add(place)
            message = (
                f"{listen} takes the director's SSH port {port}, and you could lock yourself out; if that is "
                "meant, write ssh = true in the service, and if SSH is on other ports, list those in "
                "[director] ssh_ports"
            )
            yield Finding(place, message)
