"""Entries of connection tracking made by hand, in the network namespace of the calling thread."""

import struct
from contextlib import contextmanager
from ipaddress import ip_address

from lbd.host import netlink
from netns import inside

TCP, UDP, ICMP = 6, 17, 1
NEW = 1 << 8  # NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_NEW
CREATE, EXCL, ACK = 0x400, 0x200, 0x4
ESTABLISHED, FIN_WAIT, CLOSE_WAIT, TIME_WAIT, CLOSE = 3, 4, 5, 7, 8
CONFIRMED_SEEN = 0x8 | 0x2  # IPS_CONFIRMED and IPS_SEEN_REPLY

VIP = {4: "192.0.2.1", 6: "2001:db8::1"}
BACKEND = {4: "10.1.0.1", 6: "fd00::1"}
CLIENT = {4: "10.0.0.0", 6: "2001:db8:5::"}


def nested(kind, *parts):
    return netlink.attribute(kind | 0x8000, b"".join(parts))


def ends(kind, source, destination, protocol, ports):
    """A tuple; `ports` are both ports, or type, code and id of an ICMP message."""
    first = 1 if len(source) == 4 else 3
    ip = nested(1, netlink.attribute(first, source), netlink.attribute(first + 1, destination))
    number = netlink.attribute(1, bytes([protocol]))
    if protocol == ICMP:
        message, identity = ports
        rest = (
            netlink.attribute(4, struct.pack("!H", identity)),
            netlink.attribute(5, bytes([message])),
            netlink.attribute(6, b"\0"),
        )
    else:
        rest = tuple(netlink.attribute(n, struct.pack("!H", port)) for n, port in enumerate(ports, 2))
    return nested(kind, ip, nested(2, number, *rest))


def entry(
    family,
    client,
    port,
    listen,
    *,
    backend=None,
    protocol=TCP,
    state=ESTABLISHED,
    zone=0,
    mark=0,
    to=None,
    status=CONFIRMED_SEEN,
):
    """The message that makes a connection of a client (a number) to a listen port, sent to a backend port.

    `to` is the backend's address, where it is not BACKEND.
    """
    source = (ip_address(CLIENT[family]) + client).packed
    destination = ip_address(VIP[family]).packed
    there, back = ((8, port), (0, port)) if protocol == ICMP else ((port, listen), (listen, port))
    body = struct.pack("!BBH", netlink.FAMILY[family], 0, 0)
    body += ends(1, source, destination, protocol, there) + ends(2, destination, source, protocol, back)
    body += netlink.attribute(3, struct.pack("!I", status)) + netlink.attribute(7, struct.pack("!I", 300))
    if mark:
        body += netlink.attribute(8, struct.pack("!I", mark))
    if protocol == TCP:
        body += nested(4, nested(1, netlink.attribute(1, bytes([state]))))
    if zone:
        body += netlink.attribute(18, struct.pack("!H", zone))
    if backend is not None:
        to = ip_address(to or BACKEND[family]).packed
        first = 1 if family == 4 else 4
        range_ = b"".join(netlink.attribute(n, struct.pack("!H", backend)) for n in (1, 2))
        ports = nested(3, range_) if protocol != ICMP else b""
        body += nested(13, netlink.attribute(first, to), netlink.attribute(first + 1, to), ports)
    return netlink.message(NEW, netlink.REQUEST | ACK | CREATE | EXCL, body)


def make(messages):
    """Put entries into the table of this namespace, fifty with each system call."""
    messages = list(messages)
    with netlink.connect(receive_buffer=1 << 20) as sock:
        sock.settimeout(10)
        for at in range(0, len(messages), 50):
            batch = messages[at : at + 50]
            sock.send(b"".join(message + b"\0" * (-len(message) % 4) for message in batch))
            told = 0
            while told < len(batch):
                for got in netlink.messages(sock.recv(netlink.READ)):
                    code = int.from_bytes(got.payload[:4], "little", signed=True)
                    assert code == 0, f"entry {at + told}: {code}"
                    told += 1


@contextmanager
def tracking():
    """A namespace with the calling thread in it, whose connections are tracked: a rule looks at them."""
    with inside("link set lo up") as namespace:
        namespace.run("nft", "add table inet t")
        namespace.run("nft", "add chain inet t c { type nat hook prerouting priority -100; }")
        yield namespace


def empty():
    """Delete all entries of this namespace."""
    with netlink.connect() as sock:
        list(netlink.ask(sock, 1 << 8 | 2, 0, struct.pack("!BBH", 0, 0, 0)))  # IPCTNL_MSG_CT_DELETE


def raw():
    """Every entry as the kernel has it, byte for byte, without what time changes in it (CTA_TIMEOUT)."""
    with netlink.connect() as sock:
        request = struct.pack("!BBH", 0, 0, 0)
        payloads = list(netlink.ask(sock, 1 << 8 | 1, netlink.DUMP, request))  # IPCTNL_MSG_CT_GET
    return sorted(
        payload[:4] + b"".join(netlink.attribute(k, v) for k, v in netlink.attributes(payload, 4) if k != 7)
        for payload in payloads
    )
