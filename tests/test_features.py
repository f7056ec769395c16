"""The tests that docs/features.md names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "features.md").read_text())


def test_every_feature_names_a_test_that_there_is():
    missing = [
        f"{file}::{name}"
        for file, name in NAMED
        if f"\ndef {name}(" not in (ROOT / "tests" / "kernel" / file).read_text()
    ]
    assert len(NAMED) > 40
    assert not missing
