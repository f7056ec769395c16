"""Who changed a ruleset: the commits of the network namespace, as the kernel announces them.

Every transaction ends with NFT_MSG_NEWGEN, which tells its generation, and the process that made it by id
and name. The messages before it tell which tables it touched.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lbd.core.state import TABLE
from lbd.host import netlink

GROUP = 7  # NFNLGRP_NFTABLES
NEWGEN = netlink.NFNL_SUBSYS_NFTABLES << 8 | 15
GEN_ID, GEN_PID, GEN_NAME = 1, 2, 3

# A commit of 10,000 services is some 40,000 messages of 100 to 200 bytes.
RECEIVE_BUFFER = 16 << 20

# At most this many datagrams are taken at once, so that a storm leaves the event loop its turn.
BATCH = 512


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction that touched our table.

    `pid` and `process` are the writer's as the kernel knows them (outside any pid namespace). `lost` is
    set when the kernel had more events than we could take: then nothing is known but that a look is due.
    """

    generation: int
    pid: int = 0
    process: str = ""
    lost: bool = False


class NftEvents:
    """The commits of others and of our own; which is which the generation tells."""

    def __init__(self) -> None:
        """Raise OSError when netfilter's events cannot be had."""
        self._sock = netlink.connect(receive_buffer=RECEIVE_BUFFER)
        self._sock.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_ADD_MEMBERSHIP, GROUP)
        self._sock.setblocking(False)
        self._touched = False

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._sock.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()

    def drain(self) -> list[Commit]:
        """Return the commits that touched our table and were announced since, without waiting."""
        commits: list[Commit] = []
        for data in netlink.queued(self._sock, BATCH):
            if data is None:
                commits.append(Commit(0, lost=True))
                continue
            for message in netlink.messages(data):
                if message.kind != NEWGEN:
                    self._touched |= _table(message.payload) == TABLE
                elif self._touched:
                    self._touched = False
                    commits.append(_commit(message.payload))
        return commits


def _table(payload: bytes) -> str:
    # Attribute 1 is the table's name in every message but NEWGEN's.
    kind, value = next(netlink.attributes(payload, 4), (0, b""))
    return value.rstrip(b"\0").decode(errors="replace") if kind == 1 else ""


def _commit(payload: bytes) -> Commit:
    found = dict(netlink.attributes(payload, 4))

    def number(kind: int) -> int:
        return int(struct.unpack("!I", found.get(kind, b"\0\0\0\0"))[0])

    name = found.get(GEN_NAME, b"").rstrip(b"\0").decode(errors="replace")
    return Commit(number(GEN_ID), number(GEN_PID), name)
