"""A page, or the answer of a gRPC health service, by HTTP/2 with h2: one stream of one connection.

Without TLS it is HTTP/2 from the first byte ("prior knowledge"), with TLS the server has to choose it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from lbd.core import grpc_health
from lbd.core.health import Target
from lbd.core.page import USER_AGENT, Search, authority, fields_of_2, spoken, status_flaw
from lbd.core.probes import GrpcProbe, HttpProbe
from lbd.core.words import cut, printable, quote

ALPN = ("h2",)
NAME = "HTTP/2"

STREAM = 1

# The header of a frame: its length in three bytes, type, flags, and stream in four (RFC 9113, 4.1).
FRAME, SETTINGS, GOAWAY = 9, 0x4, 0x7
LEAST_GOAWAY = 8  # the last stream that is answered, and an error code

# Bytes, and frames, that an answer may have as a whole. A page is searched for 64 KiB at most, which servers
# send in frames of kilobytes. A frame takes 50 to 100 us of the event loop, and then others have their turn.
WHOLE = 256 * 1024
FRAMES = 500
LONGEST_FRAME = 16 * 1024  # the least that every side has to take, and we ask for no more
HEADER = 64 * 1024  # of an answer, unpacked: what h2 allows until the other side has agreed to less

HEALTH = 4 * 1024  # bytes of an answer of the health service, which has two


class NoAnswerError(Exception):
    """There is no whole answer. The text says why."""


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target, probe: HttpProbe
) -> str:
    """Send the request, and return why the answer fails the check, "" when it passes. Raises OSError."""
    stream = _Stream(reader, writer)
    try:
        await stream.ask(fields_of_2(probe, target.address, target.port))
        return await _judged(stream, probe)
    except NoAnswerError as error:
        return str(error)


async def _judged(stream: _Stream, probe: HttpProbe) -> str:
    search = Search(probe.body)
    while not search.done:
        event = await stream.event()
        if isinstance(event, ResponseReceived):
            flaw = status_flaw(probe, _status(event))
            if flaw or not probe.body:
                return flaw
        elif isinstance(event, DataReceived):
            search.look(event.data or b"")
        elif isinstance(event, StreamEnded):
            break
    return search.flaw()


async def ask_health(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target, probe: GrpcProbe
) -> str:
    """Ask for the health of a service, and return why it is not "serving". Raises OSError."""
    stream = _Stream(reader, writer)
    host = probe.tls.name if probe.tls and probe.tls.name else target.address
    try:
        await stream.ask(
            [
                (":method", "POST"),
                (":scheme", "https" if probe.tls else "http"),
                (":authority", authority(host, target.port, probe.tls)),
                (":path", grpc_health.PATH),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("user-agent", USER_AGENT),
            ],
            grpc_health.request(probe.service),
        )
        return await _judged_health(stream)
    except NoAnswerError as error:
        return str(error)


async def _judged_health(stream: _Stream) -> str:
    head: grpc_health.Fields = ()
    trailers: grpc_health.Fields = ()
    body = b""
    while not isinstance(event := await stream.event(), StreamEnded):
        if isinstance(event, ResponseReceived):
            head = _fields(event)
        elif isinstance(event, TrailersReceived):
            trailers = _fields(event)
        elif isinstance(event, DataReceived):
            body += event.data or b""
            if len(body) > HEALTH:
                return f"not a health answer: it has more than {HEALTH // 1024} KiB"
    return grpc_health.verdict(head, body, trailers)


class _Stream:
    """A request and its answer, within bounds. Its methods raise NoAnswerError, and OSError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        # What we send is checked in core/page, and what comes is bytes until somebody reads it.
        self._connection = H2Connection(H2Configuration(client_side=True, header_encoding=False))
        self._connection.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_FRAME_SIZE: LONGEST_FRAME,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEADER,
            },
        )
        self._events: deque[Event] = deque()
        self._frames = self._size = 0

    async def ask(self, fields: Iterable[tuple[str, str]], body: bytes = b"") -> None:
        """Send the request, in one packet with the connection's beginning as far as that goes."""
        tls = self._writer.get_extra_info("ssl_object")
        if tls and tls.selected_alpn_protocol() not in ALPN:
            raise NoAnswerError("the server does not offer HTTP/2 (ALPN)")
        try:
            self._connection.initiate_connection()
            self._connection.send_headers(
                STREAM, [(name.encode(), value.encode()) for name, value in fields], end_stream=not body
            )
            if body:
                # As long as the other side has not said otherwise, it takes 64 KiB of a stream.
                self._connection.send_data(STREAM, body, end_stream=True)
        except H2Error as error:
            raise NoAnswerError(f"the request cannot be sent: {error}") from None
        await self._flush()

    async def event(self) -> Event:
        """Return the next event of the stream."""
        while not self._events:
            frame = await self._frame()
            if _harmless(frame):
                continue
            try:
                self._events += self._connection.receive_data(frame)
            except H2Error as error:
                # What is wrong with a header is followed by an address in memory, different each time.
                said = str(error).partition(": Unable to decode")[0]
                raise NoAnswerError(cut(f"not HTTP/2: {printable(said)}")) from None
            await self._flush()
        event = self._events.popleft()
        if isinstance(event, StreamReset):
            raise NoAnswerError(f"RST_STREAM: {_code(event.error_code)}")
        if isinstance(event, DataReceived) and event.flow_controlled_length:
            self._connection.acknowledge_received_data(event.flow_controlled_length, STREAM)
            await self._flush()
        return event

    async def _frame(self) -> bytes:
        """Return the next frame as it is."""
        await asyncio.sleep(0)  # what is there already is read without a wait
        try:
            head = await self._reader.readexactly(FRAME)
            if not self._frames and head[3] != SETTINGS:
                raise NoAnswerError(f"not HTTP/2: {spoken(head)}")
            length = int.from_bytes(head[:3], "big")
            self._frames += 1
            self._size += FRAME + length
            if length > LONGEST_FRAME:
                raise NoAnswerError(f"not HTTP/2: a frame of {length} bytes")
            if self._frames > FRAMES or self._size > WHOLE:
                raise NoAnswerError(f"more than {FRAMES} frames or {WHOLE // 1024} KiB, and no end")
            return head + await self._reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            if self._frames or not error.partial:
                when = "in the middle of the answer" if self._frames else "before an answer"
                raise NoAnswerError(f"closed {when}") from None
            raise NoAnswerError(f"not HTTP/2: {spoken(error.partial)}") from None

    async def _flush(self) -> None:
        if data := self._connection.data_to_send():
            self._writer.write(data)
            await self._writer.drain()


def _harmless(frame: bytes) -> bool:
    """Return whether a frame is a GOAWAY that lets our request end, after which h2 would take no frame.

    A server says so when it stops, or has had as many requests as it wants of a connection. Raises
    NoAnswerError when it is a GOAWAY that does not.
    """
    if frame[3] != GOAWAY or len(frame) < FRAME + LEAST_GOAWAY:
        return False
    last, code = (int.from_bytes(frame[at : at + 4], "big") for at in (FRAME, FRAME + 4))
    if code == ErrorCodes.NO_ERROR and last & 0x7FFF_FFFF >= STREAM:
        return True
    why = frame[FRAME + LEAST_GOAWAY :].decode("utf-8", "backslashreplace")
    raise NoAnswerError(f"GOAWAY: {_code(code)}" + (f" {quote(why)}" if why else ""))


def _code(number: int | None) -> str:
    """Return "REFUSED_STREAM", or the number of a code that has no name."""
    return next((code.name for code in ErrorCodes if code == number), str(number))


def _fields(event: ResponseReceived | TrailersReceived) -> grpc_health.Fields:
    return tuple((bytes(name), bytes(value)) for name, value in event.headers or ())


def _status(event: ResponseReceived) -> int:
    status = dict(_fields(event)).get(b":status", b"")
    if not status.isdigit():
        raise NoAnswerError(f"not HTTP/2: the status is {quote(status.decode('utf-8', 'backslashreplace'))}")
    return int(status)
