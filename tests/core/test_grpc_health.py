"""The health protocol of gRPC, beside the classes that protobuf generates for it."""

import pytest
from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from hypothesis import example, given
from hypothesis import strategies as st

from lbd.core import grpc_health
from lbd.core.grpc_health import CODES, SERVING, STATUSES, request, verdict

HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK = ((b"grpc-status", b"0"),)


def framed(message):
    return b"\0" + len(message).to_bytes(4, "big") + message


@given(st.text())
@example("")
@example("x" * 127)
@example("x" * 128)
@example("x" * 20_000)
def test_request_is_what_protobuf_makes(service):
    assert request(service) == framed(HealthCheckRequest(service=service).SerializeToString())


def test_names_are_those_of_the_generated_code():
    statuses = HealthCheckResponse.ServingStatus
    assert {number: statuses.Name(number) for number in STATUSES} == STATUSES
    assert set(statuses.values()) == set(STATUSES)
    assert statuses.Value("SERVING") == SERVING
    assert {code.value[0]: code.name for code in StatusCode} == dict(enumerate(CODES))


@given(st.integers(-(2**31), 2**31 - 1))
@example(SERVING)
def test_status_is_read_as_protobuf_writes_it(status):
    said = verdict(HEAD, framed(HealthCheckResponse(status=status).SerializeToString()), OK)
    expected = STATUSES.get(status, f"health status {status}")
    assert said == ("" if expected == "SERVING" else expected)


# Bytes that are likely to be a message, or nearly one.
PIECES = st.sampled_from([b"\x08", b"\x01", b"\x02", b"\x12\x03abc", b"\x0d1234", b"\x0912345678", b"\xff"])
MESSAGES = st.binary(max_size=40) | st.lists(PIECES, max_size=8).map(b"".join)


@given(MESSAGES)
@example(b"\x08\x01\x08\x02")  # the last one counts
@example(b"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x01")
@example(b"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")  # eleven bytes
@example(b"\x0a\x01\x01")  # the field's number with another type
@example(b"\x08")
@example(b"\x00\x01")
def test_any_bytes_are_read_as_protobuf_reads_them(message):
    said = verdict(HEAD, framed(message), OK)
    try:
        status = HealthCheckResponse.FromString(message).status
    except DecodeError:
        assert said.startswith("not a health answer")
    else:
        # Groups (wire types 3 and 4), which nothing writes any more, are the one thing we do not read.
        expected = STATUSES.get(status, f"health status {status}")
        assert said == ("" if status == SERVING else expected) or "wire type" in said


@pytest.mark.parametrize(
    ("head", "body", "trailers", "said"),
    [
        (HEAD, framed(b"\x08\x01"), OK, ""),
        (HEAD, framed(b"\x08\x01"), ((b"grpc-status", b"00"),), ""),
        (HEAD, framed(b"\x08\x02"), OK, "NOT_SERVING"),
        (HEAD, framed(b""), OK, "UNKNOWN"),
        (HEAD, framed(b"\x08\x07"), OK, "health status 7"),
        ((*HEAD, (b"grpc-status", b"12")), b"", (), "UNIMPLEMENTED (12)"),
        (
            (*HEAD, (b"grpc-status", b"5"), (b"grpc-message", b"no %22x%22%0a\xc3%bc")),
            b"",
            (),
            'NOT_FOUND (5): no "x"\\nü',
        ),
        (HEAD, b"", ((b"grpc-status", b"14"), (b"grpc-message", b"gone")), "UNAVAILABLE (14): gone"),
        # What counts is the trailer, if there is one.
        ((*HEAD, (b"grpc-status", b"0")), b"", ((b"grpc-status", b"8"),), "RESOURCE_EXHAUSTED (8)"),
        (HEAD, framed(b"\x08\x01"), (), "not gRPC: the answer ends without a grpc-status"),
        (HEAD, framed(b"\x08\x01"), ((b"grpc-status", b""),), 'grpc-status ""'),
        (HEAD, b"", ((b"grpc-status", b"99"),), 'grpc-status "99"'),
        (HEAD, b"", ((b"grpc-status", b"x\r\ny"),), 'grpc-status "x\\r\\ny"'),
        (HEAD, b"", ((b"grpc-status", b"9" * 5000),), f'grpc-status "{"9" * 64}..."'),
        (HEAD, b"", OK, "not a health answer: it has no message"),
        (
            HEAD,
            b"\x01" + framed(b"\x08\x01")[1:],
            OK,
            "not a health answer: it is compressed, which was not asked for",
        ),
        (HEAD, framed(b"\x08\x01") + b"x", OK, "not a health answer: 3 bytes, and not one message of 2"),
        (((b":status", b"503"),), b"", (), "status 503"),
        ((), b"", (), "status missing"),
        (
            ((b":status", b"200"), (b"content-type", b"text/html")),
            b"<p>",
            (),
            'not gRPC: the content type is "text/html"',
        ),
        (((b":status", b"200"),), b"", OK, 'not gRPC: the content type is ""'),
    ],
)
def test_verdict(head, body, trailers, said):
    assert verdict(head, body, trailers) == said


def test_long_message_is_cut():
    said = verdict((*HEAD, (b"grpc-status", b"13"), (b"grpc-message", b"x" * 5000)), b"")
    assert said.startswith("INTERNAL (13): xxx")
    assert len(said) < 400
    assert grpc_health.PATH == "/grpc.health.v1.Health/Check"
