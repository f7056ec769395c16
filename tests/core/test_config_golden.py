"""Bad files and what lbd says of them, word for word.

Each golden/config/NAME.toml is refused with the text of NAME.txt. After a change of a message run the test
with LBD_WRITE_GOLDEN=1 and read the difference.
"""

import os
from pathlib import Path

import pytest

from lbd.core.config import parse
from lbd.core.source import BadFileError, Source

FILES = sorted((Path(__file__).parent / "golden" / "config").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_bad_file_is_refused_in_these_words(file: Path):
    with pytest.raises(BadFileError) as refused:
        parse(Source("/etc/lbd.toml", file.read_bytes().decode()))
    said = f"{refused.value}\n"
    expected = file.with_suffix(".txt")
    if os.environ.get("LBD_WRITE_GOLDEN"):
        expected.write_text(said)
    assert said == expected.read_text()


def test_there_are_bad_files():
    assert len(FILES) > 30
