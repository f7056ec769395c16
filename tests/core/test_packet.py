"""Packets read from bytes as they are on the wire, and told apart by where they are on their way."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbd.core.packet import End, Packet, Paths, endpoint, parse

CLIENT, VIP, BACKEND = ("198.51.100.7", 40000), ("192.0.2.1", 80), ("10.0.0.1", 8080)
SYN, ACK, FIN, PSH = 2, 16, 1, 8


def ipv4(source, destination, protocol, payload, options=b""):
    """RFC 791."""
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, 4 * words + len(payload), 1, 0x4000, 64, protocol, 0)
    return head + ip_address(source).packed + ip_address(destination).packed + options + payload


def ipv6(source, destination, protocol, payload):
    """RFC 8200."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return head + ip_address(source).packed + ip_address(destination).packed + payload


def tcp(source, destination, flags=SYN):
    """RFC 9293."""
    return struct.pack("!HHIIBBHHH", source, destination, 1, 0, 5 << 4, flags, 65535, 0, 0)


def udp(source, destination, data=b"query"):
    """RFC 768."""
    return struct.pack("!HHHH", source, destination, 8 + len(data), 0) + data


TCP4 = ipv4("198.51.100.7", "192.0.2.1", 6, tcp(40000, 80))
UDP4 = ipv4("198.51.100.7", "192.0.2.1", 17, udp(40000, 53))
TCP6 = ipv6("2001:db8:1::7", "2001:db8::1", 6, tcp(40000, 80, SYN | ACK))
UDP6 = ipv6("2001:db8:1::7", "2001:db8::1", 17, udp(40000, 53))
WHOLE = (TCP4, UDP4, TCP6, UDP6)


def test_tcp_over_ipv4():
    assert parse("in", "eth0", TCP4) == Packet(
        "in", "eth0", "198.51.100.7", "192.0.2.1", "tcp", 40000, 80, ("SYN",), 64
    )


def test_udp_over_ipv4():
    assert parse("out", "eth1", UDP4) == Packet(
        "out", "eth1", "198.51.100.7", "192.0.2.1", "udp", 40000, 53, ttl=64
    )


def test_tcp_over_ipv6():
    assert parse("in", "eth0", TCP6) == Packet(
        "in", "eth0", "2001:db8:1::7", "2001:db8::1", "tcp", 40000, 80, ("SYN", "ACK"), 64
    )


def test_udp_over_ipv6():
    assert parse("in", "eth0", UDP6) == Packet(
        "in", "eth0", "2001:db8:1::7", "2001:db8::1", "udp", 40000, 53, ttl=64
    )


def test_options_of_ipv4_are_passed_over():
    data = ipv4("198.51.100.7", "192.0.2.1", 6, tcp(40000, 80), options=bytes(40))
    assert parse("in", "eth0", data) == parse("in", "eth0", TCP4)


@pytest.mark.parametrize(
    ("flags", "names"),
    [(0, ()), (FIN | ACK, ("FIN", "ACK")), (4, ("RST",)), (PSH | ACK, ("PSH", "ACK")), (0xC0, ())],
)
def test_flags_are_named(flags, names):
    assert parse("in", "eth0", ipv4("10.0.0.1", "10.0.0.2", 6, tcp(1, 2, flags))).flags == names


def test_other_protocols_have_a_number_and_no_ports():
    packet = parse("in", "eth0", ipv4("10.0.0.1", "10.0.0.2", 89, bytes(8)))
    assert (packet.protocol, packet.source_port, packet.destination_port) == ("89", 0, 0)


@pytest.mark.parametrize("data", WHOLE, ids=["tcp4", "udp4", "tcp6", "udp6"])
def test_packet_that_is_cut_anywhere_is_read_as_far_as_it_goes(data):
    whole = parse("in", "eth0", data)
    least = 20 if data[0] >> 4 == 4 else 40
    for length in range(len(data)):
        packet = parse("in", "eth0", data[:length])
        if length < least:
            assert packet is None
        else:
            assert (packet.source, packet.destination) == (whole.source, whole.destination)
            assert packet.source_port in (0, whole.source_port)
            assert packet.flags in ((), whole.flags)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_are_a_packet_or_none(data):
    packet = parse("in", "eth0", data)
    assert packet is None or str(packet)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(WHOLE), st.integers(0, 47), st.integers(0, 255))
def test_packet_with_a_wrong_byte_is_a_packet_or_none(data, at, byte):
    wrong = bytearray(data)
    wrong[at % len(data)] = byte
    packet = parse("in", "eth0", bytes(wrong))
    assert packet is None or str(packet)


def test_header_shorter_than_ipv4_allows_is_no_packet():
    assert parse("in", "eth0", b"\x44" + TCP4[1:]) is None


@pytest.mark.parametrize(
    ("address", "port", "text"),
    [
        ("192.0.2.1", 80, "192.0.2.1:80"),
        ("192.0.2.1", 0, "192.0.2.1"),
        ("2001:db8::1", 80, "[2001:db8::1]:80"),
        ("2001:db8::1", 0, "2001:db8::1"),
    ],
)
def test_endpoint_is_written_as_in_the_file(address, port, text):
    assert endpoint(address, port) == text


def test_packet_is_one_line():
    assert str(parse("in", "eth0", TCP4)) == "eth0 198.51.100.7:40000 > 192.0.2.1:80 tcp SYN"
    assert str(parse("in", "eth0", UDP6)) == "eth0 [2001:db8:1::7]:40000 > [2001:db8::1]:53 udp"


def one(protocol, address, port):
    return End(protocol, address, port, port)


PATHS = Paths.of(
    [
        ("web", one("tcp", *VIP), [one("tcp", *BACKEND), one("tcp", "10.0.0.2", 8080)]),
        ("shop", one("tcp", "192.0.2.2", 80), [one("tcp", *BACKEND)]),
        ("shop", one("tcp", "192.0.2.2", 81), [one("tcp", *BACKEND)]),
        ("dns", one("udp", "192.0.2.1", 53), [one("udp", "10.0.0.1", 53)]),
        ("games", End("udp", "192.0.2.3", 8000, 8003), [End("udp", "10.0.0.3", 9000, 9003)]),
        ("all", End("any", "192.0.2.4", 0, 65535), [End("any", "10.0.0.4", 0, 65535)]),
        ("box", one("tcp", "", 25), [one("tcp", "10.0.0.5", 25)]),
    ]
)


@pytest.mark.parametrize(
    ("direction", "source", "destination", "service", "part"),
    [
        ("in", CLIENT, VIP, "web", "request enters"),
        ("out", CLIENT, ("10.0.0.2", 8080), "web", "request leaves"),
        ("in", ("10.0.0.2", 8080), CLIENT, "web", "reply enters"),
        ("out", VIP, CLIENT, "web", "answer of the director leaves"),
        # Two services share this backend: both are named, each once.
        ("out", CLIENT, BACKEND, "web/shop", "request leaves"),
        ("in", BACKEND, CLIENT, "web/shop", "reply enters"),
        ("in", CLIENT, ("192.0.2.9", 80), "", "packet enters"),
        ("out", CLIENT, ("192.0.2.9", 80), "", "packet leaves"),
        # The port is part of it.
        ("in", CLIENT, ("192.0.2.1", 443), "", "packet enters"),
    ],
)
def test_each_part_of_the_way_has_a_name(direction, source, destination, service, part):
    packet = Packet(direction, "eth0", source[0], destination[0], "tcp", source[1], destination[1])
    assert PATHS.explain(packet) == (service, part)


def test_protocol_is_part_of_a_listen_address():
    packet = Packet("in", "eth0", CLIENT[0], "192.0.2.1", "udp", CLIENT[1], 53)
    assert PATHS.explain(packet) == ("dns", "request enters")
    packet = Packet("in", "eth0", CLIENT[0], "192.0.2.1", "tcp", CLIENT[1], 53)
    assert PATHS.explain(packet) == ("", "packet enters")


@pytest.mark.parametrize(
    ("protocol", "source", "destination", "service", "part"),
    [
        ("udp", CLIENT, ("192.0.2.3", 8003), "games", "request enters"),
        ("udp", CLIENT, ("192.0.2.3", 8004), "", "packet enters"),
        ("tcp", CLIENT, ("192.0.2.3", 8003), "", "packet enters"),
        ("udp", ("10.0.0.3", 9000), CLIENT, "games", "reply enters"),
        ("icmp", CLIENT, ("192.0.2.4", 0), "all", "request enters"),
        ("tcp", ("10.0.0.4", 22), CLIENT, "all", "reply enters"),
        # Every address of the director, but not a packet to a backend of somebody else.
        ("tcp", CLIENT, ("192.0.2.99", 25), "box", "request enters"),
        ("tcp", CLIENT, ("10.0.0.5", 25), "box", "request enters"),
    ],
)
def test_what_is_wider_than_a_port_is_named_too(protocol, source, destination, service, part):
    packet = Packet("in", "eth0", source[0], destination[0], protocol, source[1], destination[1])
    assert PATHS.explain(packet) == (service, part)


def test_a_port_is_more_exact_than_a_range():
    paths = Paths.of(
        [
            ("one", one("tcp", *VIP), [one("tcp", *BACKEND)]),
            ("many", End("tcp", "192.0.2.1", 1, 1024), [one("tcp", "10.0.0.2", 80)]),
        ]
    )
    packet = Packet("in", "eth0", CLIENT[0], VIP[0], "tcp", CLIENT[1], VIP[1])
    assert paths.explain(packet) == ("one", "request enters")


def test_a_later_fragment_has_no_ports():
    fragment = TCP4[:6] + b"\x00\x10" + TCP4[8:]
    assert parse("in", "eth0", fragment) == Packet("in", "eth0", "198.51.100.7", "192.0.2.1", "tcp", ttl=64)
