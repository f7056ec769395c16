"""A page by HTTP/1.1 (or 1.0), as far as a check needs it, with h11."""

from __future__ import annotations

import asyncio
import re

import h11

from lbd.core.health import Target
from lbd.core.page import Search, fields, spoken, status_flaw
from lbd.core.probes import HttpProbe
from lbd.core.words import cut, printable

ALPN = ("http/1.1",)
NAME = "HTTP/1.1"

# Bytes of the header of an answer, or of what stands between two chunks of its page.
HEADER = 16 * 1024
# Answers of status 1xx before the answer, and pieces that a page comes in. It is searched for 64 KiB at most:
# no server means less than 32 bytes with a chunk, and each takes 15 us of the event loop.
INTERIM = 16
PIECES = 2000

# Bytes that are taken at once. A hostile answer of nothing but small pieces keeps the event loop for some
# milliseconds with so many, and then others have their turn.
AT_ONCE = 2048

HTTP = b"HTTP/"  # how every answer begins
# h11's words for a switch to another protocol, and its hint for what is too long: what a server would answer.
UNASKED, TOO_LONG = "_SWITCH_UPGRADE", 431
START = 64  # bytes of the beginning that are kept, to say what it is


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target, probe: HttpProbe
) -> str:
    """Send the request, and return why the answer fails the check, "" when it passes. Raises OSError."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER)
    try:
        request = h11.Request(
            method=probe.method,
            target=probe.path,
            headers=[(n.encode(), v.encode()) for n, v in fields(probe, target.address, target.port)],
        )
        writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    except h11.LocalProtocolError as error:
        return f"the request cannot be sent: {error}"
    await writer.drain()
    answer = _Answer(connection, reader)
    try:
        return await _judged(answer, probe)
    except h11.RemoteProtocolError as error:
        return answer.flaw(error)


async def _judged(answer: _Answer, probe: HttpProbe) -> str:
    search, interim, pieces = Search(probe.body), 0, 0
    while not search.done:
        event = await answer.event()
        if isinstance(event, h11.Data):
            search.look(bytes(event.data))
            pieces += 1
            if pieces > PIECES:
                return f"the page comes in more than {PIECES} pieces"
        elif not isinstance(event, h11.Response | h11.InformationalResponse):
            break
        elif isinstance(event, h11.Response):
            flaw = status_flaw(probe, event.status_code)
            if flaw or not probe.body:
                return flaw
        else:
            interim += 1
            if interim > INTERIM:
                return f"more than {INTERIM} answers of status 1xx, and no other"
    return search.flaw()


class _Answer:
    """What comes back, event by event, within bounds of its size."""

    def __init__(self, connection: h11.Connection, reader: asyncio.StreamReader) -> None:
        self._connection, self._reader = connection, reader
        self._start, self._ended, self._page = b"", False, False

    async def event(self) -> h11.Event | None:
        """Return the next event, None when there is nothing more of HTTP.

        Raises h11.RemoteProtocolError for what is not HTTP or has no end.
        """
        while not isinstance(event := self._connection.next_event(), h11.Event):
            if event is not h11.NEED_DATA:
                return None
            data = await self._reader.read(AT_ONCE)
            await asyncio.sleep(0)  # what is there already is read without a wait
            self._start = (self._start + data)[:START]
            self._ended = not data
            self._connection.receive_data(data)
        self._page = self._page or isinstance(event, h11.Response)
        return event

    def flaw(self, error: h11.RemoteProtocolError) -> str:
        """Return in words what was wrong with it."""
        if not self._start:
            return "closed before an answer"
        if self._start[: len(HTTP)] != HTTP[: len(self._start)]:
            return f"not HTTP/1: {spoken(self._start)}"
        if self._ended:
            return f"closed {'before the page ended' if self._page else 'in the middle of the answer'}"
        said = str(error)
        if error.error_status_hint == TOO_LONG:
            what = "what is between its chunks" if self._page else "its header"
            said = f"{what} is longer than {HEADER // 1024} KiB"
        elif UNASKED in said:
            said = "status 101, for which nobody asked"
        # h11 shows what it read as Python would.
        said = re.sub(r"bytearray\(b'(.*)'\)", r'"\1"', said)
        return cut(f"not HTTP/1: {printable(said)}")
