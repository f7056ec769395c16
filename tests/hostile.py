"""Servers that answer HTTP as no server should, as a program: `hostile.py PORT`, one per port from there on.

It says "ready" and runs until it is ended. An answer is a sequence of pieces, endless ones too; a number
among them is a wait in seconds. Whoever has it all is closed, or reset with RESET.
"""

import itertools
import random
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import NamedTuple

RESET = "reset"

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Again(NamedTuple):
    """A piece that comes without an end."""

    piece: bytes


def slowly(data, seconds, times=1):
    """One byte at a time."""
    return [part for byte in data * times for part in (bytes([byte]), seconds)]


def frame(kind, payload=b"", *, stream=0, flags=0, length=None):
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 0x1, 0x4
READY = frame(SETTINGS)
# RFC 7541: :status 200 is entry 8 of the static table.
ANSWER = frame(HEADERS, b"\x88", stream=1, flags=END_HEADERS)
ENDED = frame(DATA, b"ok", stream=1, flags=END_STREAM)


def literal(name, value):
    """A header field of HPACK, written out and not for the table; both parts shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def bomb():
    """A header field of 4 KB that goes into the table, and is asked for again and again in a byte each."""
    value = b"x" * 4000
    size = 4000 - 127
    entry = b"\x40\x01a\x7f" + bytes([size & 0x7F | 0x80, size >> 7]) + value
    return entry + b"\xbe" * 10_000


HTTP1 = {
    "closes": [],
    "resets": [RESET],
    "garbage": [random.Random(1).randbytes(4000)],
    "endless garbage": [Again(random.Random(2).randbytes(4000))],
    "endless line": [Again(b"H" * 4000)],
    "http/0.9": [b"<html>ok</html>\n"],
    "mail": [b"220 mail.example ESMTP\r\n"],
    "tls alert": [bytes.fromhex("15030100020246")],
    "http/2": [READY, frame(GOAWAY, bytes(8))],
    "endless header": [OK, Again(b"X-A: b\r\n" * 100)],
    "huge header": [OK, b"X-A: " + b"b" * 1_000_000],
    "no header": [OK + b"no colon\r\n\r\n"],
    "status of words": [b"HTTP/1.1 fine\r\n\r\n"],
    "half a header": [OK + b"X-A: "],
    "half a page": [OK + b"Content-Length: 1000\r\n\r\nx"],
    "half a chunk": [CHUNKED + b"5\r\nx"],
    "endless page": [OK + b"\r\n", Again(b"x" * 4000)],
    "endless chunks": [CHUNKED, Again(b"1\r\nx\r\n" * 600)],
    "endless chunk header": [CHUNKED + b"1;", Again(b"x" * 4000)],
    "endless trailers": [CHUNKED + b"0\r\n", Again(b"X-A: b\r\n" * 100)],
    "chunk of words": [CHUNKED + b"many\r\n"],
    "huge chunk": [CHUNKED + b"f" * 18 + b"\r\n", Again(b"x" * 4000)],
    "two lengths": [OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"],
    "length of words": [OK + b"Content-Length: many\r\n\r\n"],
    "negative length": [OK + b"Content-Length: -1\r\n\r\n"],
    "endless interim": [Again(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)],
    "endless switching": [Again(b"HTTP/1.1 101 Switching\r\n\r\n" * 100)],
    "some interim": [b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" * 3, OK + b"Content-Length: 2\r\n\r\nok"],
    "without a length": [b"HTTP/1.0 200 OK\r\n\r\nit is ", 0.05, b"ok"],
    "in pieces": slowly(OK + b"\r\nok", 0.001),
    "drips": [OK, *slowly(b"X", 0.1, 1000)],
    "says nothing": [1000],
}
HTTP2 = {
    "closes": [],
    "resets": [RESET],
    "garbage": [random.Random(1).randbytes(4000)],
    "http/1": [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    "tls alert": [bytes.fromhex("15030100020246")],
    "no settings": [ANSWER, ENDED],
    "half a frame": [READY, frame(HEADERS, b"\x88", stream=1, length=100)],
    "only settings": [READY],
    "huge frame": [READY, frame(DATA, length=1_000_000, stream=1), Again(b"x" * 4000)],
    "reset stream": [READY, frame(RST_STREAM, b"\0\0\0\7", stream=1)],
    "reset flood": [READY, Again(frame(RST_STREAM, b"\0\0\0\7", stream=1) * 100)],
    "reset of others": [READY, Again(frame(RST_STREAM, b"\0\0\0\7", stream=3) * 100)],
    "unknown error code": [READY, frame(RST_STREAM, b"\0\0\1\0", stream=1)],
    "ping flood": [READY, Again(frame(PING, bytes(8)) * 100)],
    "settings flood": [Again(READY * 100)],
    "settings in full": [Again(frame(SETTINGS, struct.pack("!HL", 4, 1) * 2000))],
    "priority flood": [READY, Again(frame(PRIORITY, bytes(5), stream=1) * 100)],
    "unknown frames": [READY, Again(frame(0x77, b"x" * 10) * 100)],
    "window flood": [READY, Again(frame(WINDOW, b"\0\0\0\1") * 100)],
    "window too wide": [READY, frame(WINDOW, b"\x7f\xff\xff\xff") * 2],
    "window of 0": [READY, frame(WINDOW, bytes(4), stream=1)],
    "push": [READY, frame(PUSH, b"\0\0\0\2\x88", stream=1, flags=END_HEADERS)],
    "continuation flood": [READY, frame(HEADERS, b"", stream=1), Again(frame(CONTINUATION, stream=1) * 100)],
    "long continuation": [
        READY,
        frame(HEADERS, b"", stream=1),
        Again(frame(CONTINUATION, b"x" * 9000, stream=1)),
    ],
    "header bomb": [READY, frame(HEADERS, bomb(), stream=1, flags=END_HEADERS)],
    "broken header": [READY, frame(HEADERS, b"\xff\xff\xff\xff\xff", stream=1, flags=END_HEADERS)],
    "no status": [READY, frame(HEADERS, literal(b"a", b"b"), stream=1, flags=END_HEADERS)],
    "status of words": [READY, frame(HEADERS, literal(b":status", b"fine"), stream=1, flags=END_HEADERS)],
    "line in a header": [
        READY,
        frame(HEADERS, b"\x88" + literal(b"a", b"b\r\nc"), stream=1, flags=END_HEADERS),
    ],
    "page before its header": [READY, ENDED],
    "endless interim": [
        READY,
        Again(frame(HEADERS, literal(b":status", b"100"), stream=1, flags=END_HEADERS) * 9),
    ],
    "endless page": [READY, ANSWER, Again(frame(DATA, b"x" * 10_000, stream=1))],
    "endless small frames": [READY, ANSWER, Again(frame(DATA, b"x", stream=1) * 100)],
    "endless empty frames": [READY, ANSWER, Again(frame(DATA, b"", stream=1) * 100)],
    "page without an end": [READY, ANSWER, frame(DATA, b"x", stream=1)],
    "goaway with a reason": [READY, frame(GOAWAY, b"\0\0\0\0\0\0\0\x0btoo_many\npings")],
    "goaway for all": [READY, frame(GOAWAY, bytes(8))],
    "goaway, then the answer": [READY, frame(GOAWAY, b"\x7f\xff\xff\xff" + bytes(4)), ANSWER, ENDED],
    "goaway flood": [READY, Again(frame(GOAWAY, b"\x7f\xff\xff\xff" + bytes(4)) * 100)],
    "in pieces": slowly(READY + ANSWER + ENDED, 0.001),
    "drips": [READY, *slowly(ANSWER, 0.1, 1000)],
    "window closed": [frame(SETTINGS, struct.pack("!HL", 4, 0)), 1000],
    "says nothing": [1000],
}
KINDS = [("1.1", kind) for kind in HTTP1] + [("2", kind) for kind in HTTP2]


def _pieces(answer):
    for part in answer:
        yield from itertools.repeat(part.piece) if isinstance(part, Again) else [part]


def _converse(connection, answer):
    # A client that has enough resets the connection, and that is the end.
    with connection, suppress(OSError):
        connection.recv(65536)
        for piece in _pieces(answer):
            if piece == RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif isinstance(piece, bytes):
                connection.sendall(piece)
            else:
                time.sleep(piece)
        if RESET not in answer:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # closing with something unread would be a reset
                pass


def _serve(listener, answer):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_converse, args=[connection, answer], daemon=True).start()


def main(port):
    for number, (version, kind) in enumerate(KINDS):
        listener = socket.create_server(
            ("::", int(port) + number), family=socket.AF_INET6, dualstack_ipv6=True
        )
        answer = {"1.1": HTTP1, "2": HTTP2}[version][kind]
        threading.Thread(target=_serve, args=[listener, answer]).start()
    print("ready", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
