"""Whose fault it is when a check fails, and the few words that say so."""

from __future__ import annotations

import errno
import os
import ssl

from lbd.core.words import cut, printable

# What the director lacks, whomever it asks: descriptors, memory, a source address or port, the permission.
# It says nothing of a target.
OWN = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EADDRNOTAVAIL,
        errno.EADDRINUSE,
        errno.EAFNOSUPPORT,
        errno.EAGAIN,  # no free port, and no process more
        errno.EACCES,
        errno.EPERM,
    }
)

# Where the kernel's words, or their case, are not those of the field.
WORDS = {
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection closed",
    errno.EADDRNOTAVAIL: "the source address is not on this host, or has no free port",
    errno.EPERM: "not permitted: does a rule of this host drop it?",
    errno.EAFNOSUPPORT: "this host has no such address family",
}

# OpenSSL's reasons that an administrator meets; the others are said in OpenSSL's words.
TLS_WORDS = {
    "WRONG_VERSION_NUMBER": "the answer is not TLS",
    "UNEXPECTED_EOF_WHILE_READING": "connection closed in the TLS handshake",
}


class OwnTroubleError(OSError):
    """A check could not be made for a reason of the director's own; it is no verdict on the target."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class NetworkSaysError(OSError):
    """An error that came from outside, later than what caused it: of the target's doing, whatever its number.

    For ICMPv6's "prohibited" that is EACCES, as for what this host forbids.
    """


def own(error: OSError) -> bool:
    """Return whether an error is the director's own trouble."""
    if isinstance(error, ssl.SSLError | NetworkSaysError):  # the errno of the former is OpenSSL's
        return False
    return isinstance(error, OwnTroubleError) or error.errno in OWN


def trouble(error: OSError) -> OwnTroubleError:
    """Return an error of the director's own as what it is, in words."""
    return error if isinstance(error, OwnTroubleError) else OwnTroubleError(error.errno, said(error))


def said(error: OSError) -> str:
    """Return what an error of a socket or of TLS says, in a few words: "connection refused"."""
    if isinstance(error, ssl.SSLError):
        return _said_of_tls(error)
    if isinstance(error, NetworkSaysError) and error.errno == errno.EACCES:
        return "prohibited on the way"
    if error.errno in WORDS:
        return WORDS[error.errno]
    if error.errno is None and isinstance(error, ConnectionError):  # asyncio's, for an end too soon
        return "connection closed"
    if error.errno is None or isinstance(error, OwnTroubleError):
        return printable(error.strerror or str(error)) or type(error).__name__
    return os.strerror(error.errno).lower()


def _said_of_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return cut(f"certificate not verified: {printable(error.verify_message.rstrip('.'))}")
    reason = error.reason or "no reason given"
    return TLS_WORDS.get(reason) or f"TLS failed: {printable(reason.replace('_', ' ').lower())}"
