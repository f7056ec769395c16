"""host/journal against a real datagram socket that reads as journald does, and core/entry."""

import errno
import fcntl
import io
import os
import pty
import re
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lbd.core import entry as entries
from lbd.core.entry import APPLIED, ERROR, MESSAGE_IDS, WARNING, Entry
from lbd.host.journal import Journal

PAGE = Path(__file__).parents[2] / "docs" / "journal.md"


class Journald:
    """Reads entries by the rules of the native protocol."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(2)
        self.files = 0

    def next(self):
        data, fds, _, _ = socket.recv_fds(self.socket, 1 << 20, 4)
        if fds:
            assert data == b""
            (fd,) = fds
            sealed = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == sealed
            data = os.pread(fd, 1 << 26, 0)
            os.close(fd)
            self.files += 1
        return parse(data)


def parse(data):
    fields = {}
    while data:
        name, _, rest = data.partition(b"\n")
        if b"=" in name:
            name, _, value = name.partition(b"=")
            data = rest
        else:
            (size,) = struct.unpack_from("<Q", rest)
            value = rest[8 : 8 + size]
            assert rest[8 + size : 9 + size] == b"\n"
            data = rest[9 + size :]
        fields[name.decode()] = value.decode()
    return fields


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """An error stream that is the journal's."""
    with (tmp_path / "stderr").open("w+") as file:
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        yield file


@pytest.fixture
def journald(tmp_path):
    receiver = Journald(tmp_path / "journal")
    yield receiver
    receiver.socket.close()


@pytest.fixture
def journal(stream, tmp_path):
    sender = Journal(stream, tmp_path / "journal")
    yield sender
    sender.close()


def written(stream):
    stream.seek(0)
    return stream.read()


def test_an_entry_arrives_with_its_fields_and_not_on_the_stream(journal, journald, stream):
    journal.send(
        Entry("2 changes applied", APPLIED, WARNING, {"LBD_CHANGES": "2", "LBD_FILE": "/etc/lbd.toml"})
    )
    assert journald.next() == {
        "MESSAGE": "2 changes applied",
        "MESSAGE_ID": APPLIED,
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "lbd",
        "LBD_CHANGES": "2",
        "LBD_FILE": "/etc/lbd.toml",
    }
    assert written(stream) == ""


def test_values_with_newlines_equals_signs_and_nothing_in_them_arrive_whole(journal, journald):
    fields = {
        "LBD_A": "one\ntwo\nPRIORITY=0",
        "LBD_B": "a=b=c",
        "LBD_C": "",
        "LBD_D": "\n",
        "LBD_E": "\u8ca0",
    }
    journal.send(Entry("many\nlines", APPLIED, fields=fields))
    entry = journald.next()
    assert entry["MESSAGE"] == "many\nlines"
    assert entry["PRIORITY"] == "6"
    assert {name: entry[name] for name in fields} == fields


def test_a_name_that_is_no_text_does_not_lose_the_entry(journal, journald):
    journal.send(Entry("file \udcff", APPLIED))
    assert journald.next()["MESSAGE"] == "file \\udcff"


def test_an_entry_too_large_for_a_datagram_comes_as_a_sealed_file(journal, journald):
    before = descriptors()
    text = "plan\n" * 400_000
    journal.send(Entry("large", APPLIED, fields={"LBD_PLAN": text}))
    assert journald.next()["LBD_PLAN"] == text
    assert journald.files == 1
    assert descriptors() == before


def test_without_journald_the_entry_is_a_line_on_the_stream(journal, stream):
    journal.send(Entry("applied", APPLIED))
    assert written(stream) == "lbd: applied\n"


def test_a_full_queue_does_not_block_and_the_entry_is_a_line_on_the_stream(journal, journald, stream):
    start = time.monotonic()
    for _ in range(5000):
        journal.send(Entry("again", APPLIED))
    journal.send(Entry("large", APPLIED, fields={"LBD_PLAN": "x" * 2_000_000}))
    assert time.monotonic() - start < 5
    assert written(stream).endswith("lbd: again\nlbd: large\n")
    assert journald.next()["MESSAGE"] == "again"


def test_a_restarted_journald_is_found(journal, journald, stream, tmp_path):
    journald.socket.close()
    journal.send(Entry("lost", APPLIED))
    (tmp_path / "journal").unlink()
    after = Journald(tmp_path / "journal")
    journal.send(Entry("found", APPLIED))
    assert after.next()["MESSAGE"] == "found"
    assert written(stream) == "lbd: lost\n"
    after.socket.close()


def nothing_came(journald):
    journald.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        journald.next()


@pytest.mark.parametrize("value", [None, "", "1:2", "nonsense"])
def test_a_stream_that_is_not_the_journals_gets_text(journald, stream, tmp_path, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("JOURNAL_STREAM")
    else:
        monkeypatch.setenv("JOURNAL_STREAM", value)
    Journal(stream, tmp_path / "journal").send(Entry("by hand", APPLIED))
    assert written(stream) == "lbd: by hand\n"
    nothing_came(journald)


def test_a_stream_in_memory_gets_text():
    stream = io.StringIO()
    Journal(stream).send(Entry("one", APPLIED))
    assert stream.getvalue() == "lbd: one\n"


def test_no_line_looks_like_another_entry_and_none_is_an_escape_sequence(stream, monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM")
    Journal(stream).send(Entry("a\nlbd: b\x1b[31mc\r", APPLIED, ERROR))
    assert written(stream) == "lbd: a\n    lbd: b [31mc \n"


def test_a_stream_of_another_encoding_still_gets_the_line(tmp_path):
    with (tmp_path / "ascii").open("w+", encoding="ascii") as stream:
        Journal(stream).send(Entry("caf\u00e9", APPLIED))
        assert written(stream) == "lbd: caf\\xe9\n"


def test_a_terminal_gets_colour_for_what_is_wrong_only():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        journal = Journal(stream)
        for message, priority in (("good", 6), ("odd", WARNING), ("bad", ERROR)):
            journal.send(Entry(message, APPLIED, priority))
        shown = b""
        while shown.count(b"\n") < 3:
            shown += os.read(master, 1000)
    os.close(master)
    lines = shown.decode().split("\r\n")
    assert lines[:3] == ["lbd: good", "\x1b[33mlbd: odd\x1b[0m", "\x1b[31mlbd: bad\x1b[0m"]


def test_a_stream_that_nobody_reads_does_not_block():
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    journal = Journal(stream)
    start = time.monotonic()
    for _ in range(200):
        journal.send(Entry("x" * 10_000, APPLIED))
    assert time.monotonic() - start < 2
    os.close(reader)
    journal.send(Entry("nobody", APPLIED))
    with suppress(BrokenPipeError):
        stream.close()


def test_a_stream_that_fails_is_no_error():
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(errno.EPIPE, text)

    Journal(Broken()).send(Entry("one", APPLIED))
    closed = io.StringIO()
    journal = Journal(closed)
    closed.close()
    journal.send(Entry("two", APPLIED))


@pytest.mark.parametrize(
    ("message_id", "priority", "fields"),
    [
        ("", 6, {}),
        (APPLIED.upper(), 6, {}),
        (APPLIED + "0", 6, {}),
        (APPLIED, 8, {}),
        (APPLIED, -1, {}),
        (APPLIED, 6, {"MESSAGE": "x"}),
        (APPLIED, 6, {"LBD_lower": "x"}),
        (APPLIED, 6, {"LBD_A=B": "x"}),
        (APPLIED, 6, {"LBD_": "x"}),
        (APPLIED, 6, {"LBD_" + "A" * 61: "x"}),
    ],
)
def test_an_entry_that_journald_would_not_take_as_meant_cannot_be_made(message_id, priority, fields):
    with pytest.raises(ValueError, match=r"message id|priority|journal field"):
        Entry("x", message_id, priority, fields)


def test_message_ids_are_distinct_and_named_after_themselves():
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)
    for name, message_id in MESSAGE_IDS.items():
        assert getattr(entries, name) == message_id
        assert re.fullmatch("[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", message_id)  # a random UUID


def test_the_page_lists_every_message_id_with_a_command():
    page = PAGE.read_text()
    for name, message_id in MESSAGE_IDS.items():
        assert f"## {name}\n" in page
        assert f"journalctl -u lbd MESSAGE_ID={message_id}" in page
    assert set(re.findall("[0-9a-f]{32}", page)) == set(MESSAGE_IDS.values())
