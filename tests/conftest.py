"""What every test of this tree stands on: a test that needs more than it has here is skipped and says why."""

import functools
import os
import shutil
import subprocess

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark, missing in (("kernel", _missing_for_kernel), ("systemd", _missing_for_systemd)):
            if item.get_closest_marker(mark) and (reason := missing()):
                item.add_marker(pytest.mark.skip(reason=reason))


@functools.cache
def _missing_for_kernel() -> str:
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"needs {program}"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"no network namespaces here: {probe.stderr.strip()}"


@functools.cache
def _missing_for_systemd() -> str:
    if reason := _missing_for_kernel():
        return reason
    return "" if shutil.which("systemd-nspawn") else "needs systemd-nspawn (Debian: systemd-container)"
