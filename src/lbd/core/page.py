"""What an HTTP check sends, and what it makes of the answer; the same for every version of HTTP."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lbd.core.packet import endpoint
from lbd.core.probes import HttpProbe, Tls
from lbd.core.words import quote

# How much of a page is searched, in bytes.
PAGE = 64 * 1024

USER_AGENT = "lbd"

# RFC 9110: a token, and a field value. A request target is what RFC 3986 leaves unencoded, in short.
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VISIBLE, _INSIDE = r"[^\x00-\x20\x7f\ud800-\udfff]", r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]"
VALUE = re.compile(f"(?:{_VISIBLE}(?:{_INSIDE}*{_VISIBLE})?)?")
PATH = re.compile(r"[\x21-\x7e]+")

# How TLS begins (RFC 8446, 5.1), and HTTP/2 after the length of its first frame (RFC 9113, 3.4).
ALERT_OR_HANDSHAKE = (b"\x15\x03", b"\x16\x03")
SETTINGS = b"\x04\x00\x00\x00\x00\x00"

# Methods of which a server expects content; without a length some ask for one (status 411): RFC 9110, 8.6.
WITH_CONTENT = frozenset({"POST", "PUT", "PATCH"})

# What is about one connection of HTTP/1.1, and an error in HTTP/2: RFC 9113, 8.2.2.
OF_CONNECTIONS = frozenset(
    {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "te"}
)

DEFAULT_PORT = {False: 80, True: 443}


def authority(host: str, port: int, tls: Tls | None) -> str:
    """Return a host name or address with its port, which is left out where it is the default."""
    return endpoint(host, port) if port != DEFAULT_PORT[tls is not None] else _alone(host)


def fields(probe: HttpProbe, address: str, port: int) -> list[tuple[str, str]]:
    """Return the header fields of a request of HTTP/1.1; one that the file has takes the place of ours."""
    before = [
        ("Host", probe.host or authority(address, port, probe.tls)),
        ("User-Agent", USER_AGENT),
        ("Accept", "*/*"),
    ]
    after = [("Connection", "close")]
    if probe.method in WITH_CONTENT:
        after.insert(0, ("Content-Length", "0"))
    given = {name.lower() for name, _ in probe.headers}
    ours = [[(name, value) for name, value in part if name.lower() not in given] for part in (before, after)]
    return [*ours[0], *probe.headers, *ours[1]]


def fields_of_2(probe: HttpProbe, address: str, port: int) -> list[tuple[str, str]]:
    """Return the header fields of a request of HTTP/2: the first line and Host as fields of their own."""
    listed = [(name.lower(), value) for name, value in fields(probe, address, port)]
    host = next(value for name, value in listed if name == "host")
    return [
        (":method", probe.method),
        (":scheme", "https" if probe.tls else "http"),
        (":authority", host),
        (":path", probe.path),
        *((name, value) for name, value in listed if name not in OF_CONNECTIONS | {"host"}),
    ]


def flaw(probe: HttpProbe) -> str:
    """Return why a request cannot be sent as it is, "" when it can.

    Nothing of it may end the line or the header it stands in: a newline would begin another request.
    """
    if not TOKEN.fullmatch(probe.method):
        return f"{quote(probe.method)} is no method"
    if not PATH.fullmatch(probe.path):
        return f"{quote(probe.path)} is no path: other characters than those of ASCII are written as %xx"
    for name, value in (("Host", probe.host), *probe.headers):
        if not TOKEN.fullmatch(name):
            return f"{quote(name)} is no name of a header"
        if not VALUE.fullmatch(value):
            return f"{quote(value)} cannot be the value of a header"
    return ""


def status_flaw(probe: HttpProbe, status: int) -> str:
    """Return why a status fails the check, "" when it passes."""
    return "" if any(low <= status <= high for low, high in probe.status) else f"status {status}"


def spoken(start: bytes) -> str:
    """Return what an answer is that begins so, and is not of the version that was asked for."""
    if start.startswith(b"HTTP/"):
        return "the answer is HTTP/1"
    if start[:2] in ALERT_OR_HANDSHAKE:
        return "the answer is TLS"
    if start[3:9] == SETTINGS:
        return "the answer is HTTP/2"
    return f"the answer is {quote(start.decode('utf-8', 'backslashreplace'))}"


@dataclass(slots=True)
class Search:
    """Looks for `wanted` in a page that comes piece by piece, and keeps no more of it than that takes."""

    wanted: bytes
    found: bool = False
    read: int = 0
    _end: bytes = b""

    @property
    def done(self) -> bool:
        """Whether the rest of the page would not matter."""
        return self.found or self.read >= PAGE

    def look(self, piece: bytes) -> None:
        """Look at the next piece."""
        piece = piece[: PAGE - self.read]
        text = self._end + piece
        self.found = self.found or self.wanted in text
        self.read += len(piece)
        self._end = text[-(len(self.wanted) - 1) :] if len(self.wanted) > 1 else b""

    def flaw(self) -> str:
        """Return why the page fails the check after what was read of it, "" when it passes."""
        if self.found:
            return ""
        what = quote(self.wanted.decode("utf-8", "backslashreplace"))
        if self.read >= PAGE:
            return f"the first {PAGE // 1024} KiB of the page do not have {what} in them"
        return f"the page does not have {what} in it"


def _alone(host: str) -> str:
    return f"[{host}]" if ":" in host else host
