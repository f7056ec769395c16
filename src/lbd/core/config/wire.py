"""Reading what checks send, and what they take for a good answer: nothing in it can end a line or a header.

Every function raises ValueError with a message for the person who wrote the file, as those of values do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address

from lbd.core.config import values
from lbd.core.probes import Codes
from lbd.core.words import quote

# In bytes. Answers are looked into for 64 KiB.
LONGEST_TEXT = 4096
# What servers take for a request line at least (RFC 9112, section 3, asks for 8,000).
LONGEST_PATH = 4096
LOWEST_STATUS, HIGHEST_STATUS = 100, 599
HIGHEST_PORT = 65535

# Those that lbd writes itself, and those that change what the connection is (RFC 9110, 7.6.1).
OWN_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # RFC 9110, 5.6.2
_PATH = re.compile(r"/[!-~]*")
_HOST = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\.?$){_LABEL}(?:\.{_LABEL})*\.?")
_ONE_LINE = re.compile(r"[ -~]+")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2} ?)*")


def payload(value: object) -> bytes:
    """Return bytes from a text, which is UTF-8 then, or from { hex = "00 ff" }."""
    if isinstance(value, str):
        return _not_too_long(value.encode())
    written = value.get("hex") if isinstance(value, dict) and value.keys() == {"hex"} else None
    if not isinstance(written, str):
        raise ValueError(f'must be a string or bytes as {{ hex = "00ff" }}, not {values.described(value)}')  # noqa: TRY004 - pydantic's way
    if not _HEX.fullmatch(written):
        raise ValueError(f'{quote(written)} is not hexadecimal; write two digits for each byte: "00ff"')
    return _not_too_long(bytes.fromhex(written))


def page_part(text: str) -> bytes:
    """Return what has to be in a page."""
    if not text:
        raise ValueError("the text is empty, and in every page; leave the key out to take any page")
    return _not_too_long(text.encode())


def _not_too_long(found: bytes) -> bytes:
    if len(found) > LONGEST_TEXT:
        raise ValueError(f"{len(found)} bytes are too many; {LONGEST_TEXT} are the most")
    return found


def method(text: str) -> str:
    """Return a method of HTTP."""
    if text == "CONNECT":
        raise ValueError('"CONNECT" opens a tunnel, and a check asks for a page; use "GET" or "HEAD"')
    if _METHOD.fullmatch(text):
        return text
    upper = text.upper()
    hint = f'write "{upper}"' if _METHOD.fullmatch(upper) else 'write "GET", "HEAD" or "OPTIONS"'
    raise ValueError(f"{quote(text)} is not a method; {hint}")


def path(text: str) -> str:
    """Return what stands behind the host in the address of a page."""
    if "://" in text.partition("/")[0] + text[:8]:
        raise ValueError(f'{quote(text)} is a whole address; write the path, and its host under "host"')
    if not text.startswith("/"):
        raise ValueError(f'{quote(text)} is not a path; paths begin with "/"')
    if "#" in text:
        raise ValueError(f'{quote(text)} has a "#", and what is behind it is not sent; leave it out')
    if not _PATH.fullmatch(text):
        raise ValueError(
            f'{quote(text)} has what no path has; write such characters in per cent form, a space as "%20"'
        )
    if len(text) > LONGEST_PATH:
        raise ValueError(f"a path of {len(text)} characters; {LONGEST_PATH} are the most")
    return text


def host(text: str) -> str:
    """Return the name of a host for HTTP: "www.example.com", "192.0.2.1:8080", "[2001:db8::1]"."""
    found = _HOST.fullmatch(text)
    if found and found["name"].startswith("["):
        values.address(found["name"][1:-1])
    if found is None or not 1 <= int(found["port"] or HIGHEST_PORT) <= HIGHEST_PORT:
        raise ValueError(
            f'{quote(text)} is not a host; write one like "www.example.com", with a port or without'
        )
    return text


def without_port(text: str) -> str:
    """Return the name or the address in a host."""
    found = _HOST.fullmatch(text)
    return found["name"].strip("[]") if found else ""


def header_name(text: str) -> str:
    """Return the name of a header that a request may have beside lbd's own."""
    if not _TOKEN.fullmatch(text):
        raise ValueError(f'{quote(text)} is not the name of a header; write one like "X-Check"')
    if text.lower() == "host":
        raise ValueError('the host has a key of its own; write host = "www.example.com"')
    if text.lower() in OWN_HEADERS:
        raise ValueError(f"{quote(text)} is about the connection, which is lbd's; leave it out")
    return text


def header_value(text: str) -> str:
    """Return the value of a header: one line, printable, with nothing to trim."""
    if text and not _ONE_LINE.fullmatch(text):
        raise ValueError(f"{quote(text)} is not one line of printable ASCII")
    if text != text.strip():
        raise ValueError(f"{quote(text)} begins or ends with a space, which is not sent; leave it out")
    _not_too_long(text.encode())
    return text


def codes(value: object) -> Codes:
    """Return status codes from 200 or "200-299"."""
    if isinstance(value, int) and not isinstance(value, bool):
        low = high = value
    elif isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", value)
        if match is None:
            raise ValueError(f'{quote(value)} is not a status; write a number, or a range: "200-299"')
        low, high = int(match[1]), int(match[2] or match[1])
    else:
        raise ValueError(f'must be a number or a range such as "200-299", not {values.described(value)}')  # noqa: TRY004 - pydantic's way
    for each in (low, high):
        if not LOWEST_STATUS <= each <= HIGHEST_STATUS:
            raise ValueError(f"{each} is not a status; those are {LOWEST_STATUS} to {HIGHEST_STATUS}")
    if low > high:
        raise ValueError(f'range {quote(str(value))} ends before it begins; write "{high}-{low}"')
    return low, high


def name(text: str) -> str:
    """Return a name of DNS, with or without the dot at its end; "." is the root."""
    if text == ".":
        return text
    if not text.isascii():
        raise ValueError(f'{quote(text)} is not ASCII; write it as DNS has it, with "xn--"')
    if _address(text) or not _NAME.fullmatch(text):
        raise ValueError(f'{quote(text)} is not a name of DNS; write one like "www.example.com"')
    return text


def query(text: str) -> str:
    """Return a name to ask for; whoever writes an address means the name that DNS has for it."""
    if pointer := _address(text):
        raise ValueError(f'{quote(text)} is an address; what DNS has for it is "{pointer}"')
    return name(text)


def server_name(text: str) -> str:
    """Return a name for SNI, which has no dot at its end."""
    if _address(text):
        raise ValueError(f"{quote(text)} is an address, and SNI has names; leave the key out")
    found = name(text)
    if found.endswith("."):
        raise ValueError(f"{quote(text)} ends with a dot, which SNI does not have; leave it out")
    return found


def _address(text: str) -> str:
    """Return the name that DNS has for an address, "" if it is none."""
    try:
        return ip_address(text).reverse_pointer
    except ValueError:
        return ""


def _of_version(version: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        found = values.address(text)
        if found.version != version:
            raise ValueError(f"{found} is IPv{found.version}; the other family has another record")
        return str(found)

    return read


def _numbered(count: int, example: str) -> Callable[[str], str]:
    """Take some numbers of 16 bits and a name, as MX and SRV have them."""

    def read(text: str) -> str:
        *numbers, last = text.split(" ")
        fit = all(re.fullmatch("[0-9]{1,5}", each) and int(each) < 1 << 16 for each in numbers)
        if len(numbers) != count or not fit:
            raise ValueError(f'{quote(text)} is not understood; write it like "{example}"')
        return " ".join([*numbers, name(last)])

    return read


def line(text: str) -> str:
    """Return one line of text that is not empty."""
    if not text or not text.isprintable():
        raise ValueError(f"{quote(text)} is not a line of text")
    _not_too_long(text.encode())
    return text


# What an answer looks like, by the kind of record.
ANSWERS: Mapping[str, Callable[[str], str]] = {
    "A": _of_version(4),
    "AAAA": _of_version(6),
    "CNAME": name,
    "MX": _numbered(1, "10 mail.example.com"),
    "NS": name,
    "PTR": name,
    "SOA": line,
    "SRV": _numbered(3, "0 5 5060 sip.example.com"),
    "TXT": line,
}


def argument(text: str) -> str:
    """Return a word of a command."""
    if "\0" in text:
        raise ValueError("a NUL, which no argument of a program can have")
    _not_too_long(text.encode())
    return text


def grpc_service(text: str) -> str:
    """Return the name of a service of gRPC."""
    if not _ONE_LINE.fullmatch(text) or " " in text:
        raise ValueError(
            f'{quote(text)} is not a service; write one like "shop.Orders", or leave the key out'
        )
    _not_too_long(text.encode())
    return text
