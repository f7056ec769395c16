"""Tests of this directory run inside the emulated machine only: `make test-emulated`, see boot.py."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "LBD_EMULATED" in os.environ:
        return
    skip = pytest.mark.skip(reason="needs Debian's kernel under emulation: make test-emulated")
    for item in items:
        # A conftest is asked about the tests of all directories.
        if HERE in item.path.parents:
            item.add_marker(skip)
