"""What tests of services share: servers of every protocol, and listen addresses that no host carries."""

from lbd.host import netlink
from lbd.lab.sctp import SctpServer
from lbd.lab.servers import Server
from running import VIP

FAMILIES = [4, 6]
PROTOCOLS = ["tcp", "udp", "sctp"]

# Listen addresses that are routed to the director, and that it does not have.
ROUTED = {4: "203.0.113.80", 6: "2001:db8:80::80"}
NETWORKS = {4: "203.0.113.0/24", 6: "2001:db8:80::/48"}

# The director on the side of its real servers, and their network.
BACK = {4: "192.168.2.90", 6: "2001:db8:2::90"}
BEHIND = {4: "192.168.2.0/24", 6: "2001:db8:2::/64"}


def serve(lab, host, port, protocol="tcp", name=""):
    """A server of a protocol that answers with its name, or that of its host."""
    if protocol == "sctp":
        return SctpServer(lab, host, port, name=name)
    return Server(lab, host, port, {"tcp": "lines", "udp": "datagrams"}[protocol], name=name)


def route(lab, *hosts):
    """Have hosts send what is for the routed listen addresses, and for the real servers, to the director."""
    for host in hosts:
        for family in FAMILIES:
            for network in (NETWORKS[family], BEHIND[family]):
                lab.run(host, ["ip", "route", "replace", network, "via", VIP[family]])


def bare(backends):
    """Backends without their ports."""
    return [backend.rpartition(":")[0] for backend in backends]


# NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_DELETE of linux/netfilter/nfnetlink_conntrack.h.
DELETE_CONNECTIONS = 1 << 8 | 2


def forget_connections(lab, host="director"):
    """Have the kernel of a host forget all connections that it tracks."""
    with lab.inside(host):
        sock = netlink.connect()
    with sock:
        # Without any attribute it is all of them; the header is a struct nfgenmsg.
        list(netlink.ask(sock, DELETE_CONNECTIONS, 0, bytes(4)))


def connections(lab, host="director"):
    """How many connections the kernel of a host tracks."""
    return int(lab.sysctl(host, "net.netfilter.nf_conntrack_count"))
