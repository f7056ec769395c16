"""What every test of this tree stands on: a test that needs more than it has here is skipped and says why."""

import functools
import os
import shutil
import subprocess
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# What is drawn may be a whole table, which takes its time on a slow machine: that is no defect of a test.
# Said here, so that it also holds for a file of tests that is run alone.
settings.register_profile("lbd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lbd")

# An overlay of this host's files, as tests/machine.py mounts one: some containers do not allow it.
OVERLAY = """\
mount -t tmpfs tmpfs "$1" && mkdir "$1/upper" "$1/work" "$1/root" &&
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
"""


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
    if shutil.which("systemd-nspawn") is None:
        return "needs systemd-nspawn (Debian: systemd-container)"
    with tempfile.TemporaryDirectory() as place:
        argv = ["unshare", "--mount", "sh", "-c", OVERLAY, "sh", place]
        probe = subprocess.run(argv, capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"no overlay of / here: {probe.stderr.strip()}"
