"""The door to kernel settings: /proc/sys/net/ipv4 and /proc/sys/net/ipv6.

These files show the network namespace of the thread that opens them (proc_sys(5), namespaces(7)).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from lbd.core.words import NEEDS_CAPABILITY
from lbd.reconcile import RefusedError

ROOT = Path("/proc/sys")
# lbd holds settings of these trees and of no other.
TREES = ("net/ipv4/", "net/ipv6/")

HINTS = {
    errno.EROFS: "/proc/sys is read-only here: a systemd unit needs ReadWritePaths=/proc/sys/net, a container"
    " needs /proc/sys/net writable or the value set from outside",
    errno.EACCES: NEEDS_CAPABILITY,
    errno.EPERM: NEEDS_CAPABILITY,
    errno.EINVAL: "the kernel does not take this value",
    errno.ENOENT: "there is no such setting; is the protocol disabled, or the interface gone?",
}


class SysctlRefusedError(RefusedError):
    """A setting cannot be read or written; the message says why and what to do."""


def read(names: Iterable[str]) -> dict[str, str]:
    """Return the values of those of `names` that exist (with IPv6 disabled, net.ipv6 does not).

    Words of a value are separated by one space, whatever the kernel writes between them.
    """
    values = {}
    for name in names:
        try:
            values[name] = " ".join(_path(name).read_text().split())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _refused("read", name, error) from None
    return values


def write(name: str, value: str) -> None:
    """Set one setting."""
    try:
        # Not write_text: it would first truncate, which some settings take for a write of their own.
        file = os.open(_path(name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, f"{value}\n".encode())
        finally:
            os.close(file)
    except OSError as error:
        raise _refused(f"set to {value}", name, error) from None


def _path(name: str) -> Path:
    """Return the file of "net.ipv4.ip_forward" or "net/ipv4/conf/eth0.100/forwarding".

    As in sysctl.d(5): the first separator decides; after a dot, slashes stand for dots in the names.
    """
    if name.find("/") < 0 or 0 <= name.find(".") < name.find("/"):
        name = name.translate(str.maketrans("./", "/."))
    if not name.startswith(TREES) or ".." in name.split("/"):
        raise SysctlRefusedError(f"sysctl {name}: lbd only touches settings below net.ipv4 and net.ipv6")
    return ROOT / name


def _refused(verb: str, name: str, error: OSError) -> SysctlRefusedError:
    hint = HINTS.get(error.errno or 0, "")
    reason = f"{error.strerror} ({hint})" if hint else error.strerror
    return SysctlRefusedError(
        f"sysctl {name} cannot be {verb}: {reason}", permission=isinstance(error, PermissionError)
    )
