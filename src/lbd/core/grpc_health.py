"""The health checking protocol of gRPC (grpc.health.v1): its two messages, and what an answer says.

Each message has one field, so that they are written and read here by the rules of protobuf's wire format
(varints, and fields with numbers and wire types) and need no generated code.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from lbd.core.words import cut, printable, quote

PATH = "/grpc.health.v1.Health/Check"

# Header or trailer fields, in the order they came.
Fields = tuple[tuple[bytes, bytes], ...]

# HealthCheckResponse.ServingStatus. SERVICE_UNKNOWN is for Watch; Check says NOT_FOUND instead.
SERVING = 1
STATUSES = {0: "UNKNOWN", SERVING: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}

# google.rpc.Code, by number.
CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)

PREFIX = 5  # bytes before a message: whether it is compressed, and its length in four bytes

# Wire types: a varint, eight bytes, a length and so many bytes, four bytes.
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
LONGEST_VARINT = 10  # bytes, seven bits in each

SERVICE = 1  # HealthCheckRequest.service
STATUS = 1  # HealthCheckResponse.status


class _NotAMessageError(Exception):
    """The bytes are no message. The text says why."""


def request(service: str) -> bytes:
    """Return the body of a request for `service`; "" is the server as a whole."""
    name = service.encode()
    message = bytes([SERVICE << 3 | BYTES]) + _varint(len(name)) + name if name else b""
    return bytes(1) + len(message).to_bytes(4, "big") + message


def verdict(head: Fields, body: bytes, trailers: Fields = ()) -> str:
    """Return why a whole answer is not "serving", "" when it is.

    An answer without a message may have its trailers in the head.
    """
    fields = dict(reversed((*trailers, *head)))  # the first of each name in what is reversed last
    if fields.get(b":status") != b"200":
        return f"status {_text(fields.get(b':status', b'missing'))}"
    kind = fields.get(b"content-type", b"")
    if not kind.startswith(b"application/grpc"):
        return f"not gRPC: the content type is {quote(_text(kind))}"
    code = fields.get(b"grpc-status")
    if code is None:
        return "not gRPC: the answer ends without a grpc-status"
    if not code or code.strip(b"0"):
        return _failed(_text(code), _text(unquote_to_bytes(fields.get(b"grpc-message", b""))))
    try:
        status = _status(_message(body))
    except _NotAMessageError as error:
        return f"not a health answer: {error}"
    return "" if status == SERVING else STATUSES.get(status, f"health status {status}")


def _failed(code: str, message: str) -> str:
    """Return "UNIMPLEMENTED (12): Method not found!"."""
    known = code.isascii() and code.isdecimal() and len(code) < 4 and int(code) < len(CODES)  # noqa: PLR2004
    name = f"{CODES[int(code)]} ({int(code)})" if known else f"grpc-status {quote(code)}"
    return cut(f"{name}: {printable(message)}" if message else name)


def _message(body: bytes) -> bytes:
    if len(body) < PREFIX:
        raise _NotAMessageError("it has no message")
    compressed, length, message = body[0], int.from_bytes(body[1:PREFIX], "big"), body[PREFIX:]
    if compressed:
        raise _NotAMessageError("it is compressed, which was not asked for")
    if length != len(message):
        raise _NotAMessageError(f"{len(message)} bytes, and not one message of {length}")
    return message


def _status(message: bytes) -> int:
    """Return the field `status`; protobuf leaves out a 0, and takes the last of several."""
    found = 0
    for field, value in _fields(message):
        if field == (STATUS, VARINT):
            found = value & 0xFFFF_FFFF  # an enum is an int32, whatever is sent
    return found - (1 << 32) if found >> 31 else found


def _fields(message: bytes) -> Iterator[tuple[tuple[int, int], int]]:
    """Give ((field number, wire type), value) of each field; the value of one that is no varint is 0."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, kind = key >> 3, key & 7
        value = 0
        if kind == VARINT:
            value, at = _read_varint(message, at)
        elif kind == BYTES:
            length, at = _read_varint(message, at)
            at += length
        elif kind in (EIGHT, FOUR):
            at += 8 if kind == EIGHT else 4
        else:
            raise _NotAMessageError(f"wire type {kind}")
        if at > len(message) or not 0 < number < 1 << 29:
            raise _NotAMessageError("a field is cut" if number else "field number 0")
        yield (number, kind), value


def _varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first; bit 7 says that another follows."""
    groups = bytearray()
    while number > 0x7F:  # noqa: PLR2004
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where the next thing begins."""
    number = 0
    for count, byte in enumerate(data[at : at + LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * count
        if byte < 0x80:  # noqa: PLR2004
            return number, at + count + 1
    raise _NotAMessageError("a number without an end")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
