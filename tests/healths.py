"""Random health checks of services, from few values: every kind of check is among them."""

from ipaddress import ip_address

from hypothesis import strategies as st

from lbd.core.probes import (
    AgentProbe,
    DnsProbe,
    ExecProbe,
    GrpcProbe,
    Health,
    HttpProbe,
    IcmpProbe,
    TcpProbe,
    Timing,
    Tls,
    UdpProbe,
)

PROBES = (
    TcpProbe(),
    TcpProbe(b"PING\r\n", b"+PONG"),
    HttpProbe(),
    HttpProbe("HEAD", "/up?a=b", "www.example.com:80", (("X-Check", "lbd"),), ((200, 204), (301, 301))),
    HttpProbe(body=b"good", version="2", tls=Tls("www.example.com")),
    HttpProbe(tls=Tls(verify=False)),
    HttpProbe(tls=Tls(authorities="/etc/tls/ca.pem")),
    UdpProbe(),
    UdpProbe(b"\x00\xff", b""),
    DnsProbe("www.example.com"),
    DnsProbe("www.example.com", "AAAA", ("2001:db8::1", "2001:db8::2")),
    IcmpProbe(),
    ExecProbe(("/usr/local/bin/check", "--quick")),
    AgentProbe(b"web"),
    GrpcProbe(),
    GrpcProbe("shop.Orders", Tls("www.example.com")),
)
TIMINGS = (Timing(), Timing(0.5, 0.25, 1, 1, 0.1, "down"), Timing(60.0, 1.0, 5, 10, 60.0))
# Where checks go in the place of a backend, and where they come from.
CHECKED = {4: ip_address("10.0.2.1"), 6: ip_address("fd00:2::1")}
CHECKING = {4: ip_address("192.168.2.1"), 6: ip_address("2001:db8:2::1")}


@st.composite
def healths(draw, listens, backends):
    """What a service with these listen addresses (none: a mark) says of the health of its backends."""
    if draw(st.booleans()):
        return None
    probe = draw(st.sampled_from(PROBES))
    ports = (None, 8080)
    if isinstance(probe, IcmpProbe):
        ports = (None,)
    elif not isinstance(probe, ExecProbe) and not all(_has_port(b, listens) for b in backends):
        ports = (8080,)
    address = source = None
    families = {backend.family for backend in backends}
    if len(families) == 1:
        (family,) = families
        address = draw(st.sampled_from((None, None, CHECKED[family])))
        source = draw(st.sampled_from((None, None, CHECKING[family])))
    return Health(
        probe,
        draw(st.sampled_from(TIMINGS)),
        address,
        draw(st.sampled_from(ports)),
        None if isinstance(probe, ExecProbe) else source,
        draw(st.sampled_from((0.0, 0.0, 30.0))),
        draw(st.sampled_from((0, 0, 50, 100))),
    )


def _has_port(backend, listens):
    own = [backend.ports] if backend.ports else [x.ports for x in listens if x.family == backend.family]
    return bool(own) and own[0].single
