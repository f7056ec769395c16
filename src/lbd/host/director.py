"""The real host: all the doors together, as reconcile wants them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from lbd.core.observed import Observed, expired, named_interfaces, untracked_backends, wants_offload
from lbd.core.ops import (
    AddAddress,
    AddPolicyRule,
    AddRoute,
    DeleteAddress,
    DeletePolicyRule,
    DeleteRoute,
    HostOp,
    NftOp,
    Remember,
    RestoreRoute,
    SetSysctl,
)
from lbd.core.settings import Config
from lbd.core.state import Desired, Live, Memory
from lbd.host import sysctl
from lbd.host.net import Net
from lbd.host.net_links import interfaces
from lbd.host.nft import Nft
from lbd.host.store import Store, StoreError
from lbd.reconcile import RefusedError

# A commit is announced to us before it returns, so only the last few can still be on their way.
OWN_GENERATIONS = 64


class Director:
    """The host we run on, in the network namespace of the calling thread. For one thread at a time."""

    def __init__(self, store: Store, lost: Callable[[str], None] = lambda _: None) -> None:
        """`lost` is told when the nftables worker had to be given up."""
        self.store = store
        self.nft = Nft(lost=lost)
        self.net = Net()
        kept = store.memory()
        self.memory = kept.value
        # Why what was kept is not used, or "".
        self.ignored = kept.ignored
        # The ruleset generations that were ours.
        self.own: deque[int] = deque(maxlen=OWN_GENERATIONS)

    def close(self) -> None:
        """End the worker and close the sockets. The kernel's state stays."""
        self.nft.close()
        self.net.close()

    def read(self, desired: Desired, *, learned: bool = False) -> Live:
        """Return what there is of ours, and what stands where `desired` wants something."""
        table, generation = self.nft.read(desired.table.maps, learned=learned)
        schema = desired.ingress.maps if desired.ingress else {}
        ingress, _ = self.nft.read(schema, family="netdev")
        routes = desired.routes.keys() | self.memory.routes.keys()
        net = self.net.read(desired.addresses, routes, desired.rules)
        return Live(
            table=table,
            ingress=ingress,
            addresses=net.addresses,
            routes=net.routes,
            rules=net.rules,
            sysctls=sysctl.read(desired.sysctls.keys() | self.memory.sysctls.keys()),
            memory=self.memory,
            generation=generation,
        )

    def observe(self, config: Config) -> Observed:
        """Return what of this host the rules depend on, for the services of `config`."""
        asks = any(service.return_path.kind == "gateway" for service in config.services)
        named = named_interfaces(config)
        return Observed(
            expired=expired(config, datetime.now(UTC)),
            neighbours=self.net.neighbours() if asks else frozenset(),
            links=self.net.links(untracked_backends(config) or ()),
            interfaces=named & interfaces() if named else named,
            offloads=wants_offload(config) and self.nft.can_offload(),
        )

    def commit(self, ops: Sequence[NftOp]) -> int:
        """Do all of `ops` in one nftables transaction, or none."""
        generation = self.nft.commit(ops)
        self.own.append(generation)
        return generation

    def apply(self, op: HostOp) -> None:
        """Do one operation outside nftables."""
        match op:
            case AddAddress(address):
                self.net.add_address(address)
            case DeleteAddress(address):
                self.net.delete_address(address)
            case AddRoute(route, replace):
                self.net.add_route(route, replace=replace)
            case DeleteRoute(route):
                self.net.delete_route(route)
            case RestoreRoute(live):
                self.net.restore_route(live)
            case AddPolicyRule(rule):
                self.net.add_rule(rule)
            case DeletePolicyRule(rule):
                self.net.delete_rule(rule)
            case SetSysctl(name, value):
                sysctl.write(name, value)
            case Remember(memory):
                self._remember(memory)

    def _remember(self, memory: Memory) -> None:
        self.memory = memory
        try:
            self.store.save_memory(memory)
        except StoreError as error:
            raise RefusedError(str(error)) from error
