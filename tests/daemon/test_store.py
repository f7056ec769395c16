"""host/store and core/memory on a real file system: whole or not there, and never an exception on reading."""

import errno
import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbd.core.health import Belief
from lbd.core.memory import decode_memory, decode_sources, encode_beliefs, encode_memory, encode_sources
from lbd.core.source import Source
from lbd.core.state import LiveRoute, Memory, Route, RouteKey
from lbd.host.store import Loaded, Store, StoreError

SOURCES = (Source("/etc/lbd.toml", 'name = "caf\u00e9"\r\n'), Source("/etc/lbd.d/a.toml", ""))
DEFAULT = Route("0.0.0.0/0", via="192.168.2.1", interface="eth0", source="192.168.2.73")
MEMORY = Memory(
    sysctls={"net.ipv4.ip_forward": "0"},
    routes={
        DEFAULT.key: LiveRoute(DEFAULT, 3),
        RouteKey("::/0", 100, 1024): LiveRoute(Route("::/0", "fe80::1", "eth1", "", 100, 1024), 9),
    },
    bodies={"dnat ip to 192.0.2.1": ("ab12", "cd34"), "": ()},
)

BELIEFS = {"ab": Belief("down", 12.5, reason="connection refused"), "cd": Belief("up", 1.0, came_up=0.5)}

KINDS = [
    ("last-good.json", encode_sources(SOURCES), Store.last_good, None),
    ("memory.json", encode_memory(MEMORY), Store.memory, Memory()),
    ("health.json", encode_beliefs("a boot", BELIEFS), Store.beliefs, {}),
]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "lbd")


def test_what_was_saved_is_loaded(store):
    store.save_last_good(SOURCES)
    store.save_memory(MEMORY)
    assert Store(store.directory).last_good() == Loaded(SOURCES)
    assert Store(store.directory).memory() == Loaded(MEMORY)


def test_what_is_believed_is_of_one_boot_of_the_host(store):
    assert store.beliefs() == Loaded({})
    store.save_beliefs(BELIEFS)
    assert Store(store.directory).beliefs() == Loaded(BELIEFS)
    (store.directory / "health.json").write_text(encode_beliefs("another boot", BELIEFS))
    assert store.beliefs() == Loaded({})


def test_nothing_saved_is_nothing_and_no_complaint(store):
    assert store.last_good() == Loaded(None)
    assert store.memory() == Loaded(Memory())


def test_the_files_are_for_their_owner_only_and_nothing_else_is_left(store):
    old = os.umask(0)
    try:
        for _ in range(3):
            store.save_last_good(SOURCES)
            store.save_memory(MEMORY)
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.directory.iterdir()}
    assert modes == {"last-good.json": 0o600, "memory.json": 0o600}
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(("name", "text", "load", "absent"), KINDS)
def test_every_truncation_is_ignored_with_a_reason(store, name, text, load, absent):
    store.directory.mkdir()
    path = store.directory / name
    for size in range(len(text.rstrip())):
        path.write_text(text[:size])
        found = load(store)
        assert found.value == absent
        assert found.ignored.startswith(f"{path} is ignored: ")


@pytest.mark.parametrize(("name", "text", "load", "absent"), KINDS)
def test_every_damaged_byte_is_ignored_or_harmless(store, name, text, load, absent):
    store.directory.mkdir()
    path = store.directory / name
    path.write_text(text)
    whole = load(store)
    data = text.encode()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :])
        found = load(store)
        assert found == whole or (found.value == absent and found.ignored)


GARBAGE = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b"9" * 10_000,
    b'{"kind": "memory", "version": 1}',
    b'{"kind": "last-good", "version": 1, "sha256": "", "body": []}',
]


@pytest.mark.parametrize("data", GARBAGE)
@pytest.mark.parametrize(("name", "text", "load", "absent"), KINDS)
def test_garbage_is_ignored_with_a_reason(store, name, text, load, absent, data):
    assert text
    store.directory.mkdir()
    (store.directory / name).write_bytes(data)
    found = load(store)
    assert found.value == absent
    assert found.ignored


@pytest.mark.parametrize(("name", "text", "load", "absent"), KINDS)
def test_a_file_of_a_newer_version_is_ignored_and_says_so(store, name, text, load, absent):
    store.directory.mkdir()
    (store.directory / name).write_text(json.dumps({**json.loads(text), "version": 2}))
    found = load(store)
    assert found.value == absent
    assert "format version 2, this lbd reads 1" in found.ignored


def sealed(text, body):
    """The same file with another body and a checksum that is right for it."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**json.loads(text), "sha256": digest, "body": body})


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        None,
        {"sysctls": {"a": 1}, "routes": [], "bodies": {}},
        {"sysctls": {}, "routes": [{}], "bodies": {}},
        {"sysctls": {}, "routes": [{"key": {"to": "::/0", "table": True, "metric": 0}}], "bodies": {}},
        {"sysctls": {}, "routes": [], "bodies": {"a": [1]}},
        {"sysctls": {}, "routes": [], "bodies": {"a": "b"}},
    ],
)
def test_memory_of_the_wrong_shape_is_refused_in_words(body):
    with pytest.raises(ValueError, match=r"missing|not a number"):
        decode_memory(sealed(encode_memory(MEMORY), body))


@pytest.mark.parametrize("body", [[], {}, None, [1], [{"path": "a"}], [{"path": "a", "text": None}]])
def test_sources_of_the_wrong_shape_are_refused_in_words(body):
    with pytest.raises(ValueError, match=r"missing|holds no file"):
        decode_sources(sealed(encode_sources(SOURCES), body))


@pytest.mark.parametrize("place", ["fifo", "directory", "dangling", "huge"])
def test_something_else_in_the_place_of_the_file_is_ignored(store, place):
    store.directory.mkdir()
    path = store.directory / "last-good.json"
    if place == "fifo":
        os.mkfifo(path)
    elif place == "directory":
        path.mkdir()
    elif place == "dangling":
        path.symlink_to("nowhere")
    else:
        with path.open("w") as file:
            file.truncate(1 << 30)
    start = time.monotonic()
    found = store.last_good()
    assert time.monotonic() - start < 1
    assert found.value is None
    assert bool(found.ignored) == (place != "dangling")


@contextmanager
def files_end_after(size):
    """Writing more than `size` bytes to a file fails (EFBIG), as it does on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_file_whole_and_nothing_else(store):
    store.save_last_good(SOURCES)
    large = (Source("/etc/lbd.toml", "x" * 100_000),)
    with (
        files_end_after(10_000),
        pytest.raises(StoreError, match=r"last-good.json could not be written: File too"),
    ):
        store.save_last_good(large)
    assert store.last_good() == Loaded(SOURCES)
    assert [path.name for path in store.directory.iterdir()] == ["last-good.json"]
    store.save_last_good(large)
    assert store.last_good() == Loaded(large)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fails_late_leaves_the_old_file_whole(store, monkeypatch, call):
    store.save_memory(MEMORY)
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StoreError, match=r"memory.json could not be written: No space left on device"):
        store.save_memory(Memory())
    monkeypatch.undo()
    assert calls
    assert store.memory() == Loaded(MEMORY)


def test_a_directory_that_cannot_be_made_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"memory.json could not be written: Not a directory"):
        Store(tmp_path / "file" / "lbd").save_memory(MEMORY)


def test_a_leftover_of_a_crash_does_not_matter(store):
    store.directory.mkdir()
    new = store.directory / "memory.json.new"
    new.write_text("half")
    new.chmod(0o666)
    store.save_memory(MEMORY)
    assert store.memory() == Loaded(MEMORY)
    assert not new.exists()
    assert stat.S_IMODE((store.directory / "memory.json").stat().st_mode) == 0o600


WRITER = """
    import sys
    from pathlib import Path
    from lbd.core.source import Source
    from lbd.host.store import Store
    store = Store(Path(sys.argv[1]))
    print("ready", flush=True)
    while True:
        for letter in "ab":
            store.save_last_good([Source(letter, letter * 300_000)])
"""


def test_a_writer_that_is_killed_leaves_one_whole_version(store):
    for n in range(5):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(store.directory)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            end = time.monotonic() + 5
            while not (store.directory / "last-good.json").exists():
                assert time.monotonic() < end
            # Somewhere in the middle: how far it is differs from round to round.
            for _ in range(n * 200):
                assert store.last_good().ignored == ""
            writer.kill()
        found = store.last_good()
        assert found.ignored == ""
        assert found.value in {(Source(letter, letter * 300_000),) for letter in "ab"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_writes_belongs_to_whom_the_directory_belongs(store):
    store.save_last_good(SOURCES)
    os.chown(store.directory, 65534, 65534)
    store.save_last_good(SOURCES)
    found = (store.directory / "last-good.json").stat()
    assert (found.st_uid, found.st_gid) == (65534, 65534)


TEXTS = st.text(max_size=20)
NUMBERS = st.integers(0, 2**32 - 1)
ROUTES = st.builds(Route, to=TEXTS, via=TEXTS, interface=TEXTS, source=TEXTS, table=NUMBERS, metric=NUMBERS)
MEMORIES = st.builds(
    Memory,
    sysctls=st.dictionaries(TEXTS, TEXTS, max_size=3),
    routes=st.dictionaries(
        st.builds(RouteKey, TEXTS, NUMBERS, NUMBERS),
        st.builds(LiveRoute, ROUTES, st.integers(0, 255)),
        max_size=3,
    ),
    bodies=st.dictionaries(TEXTS, st.lists(TEXTS, max_size=3).map(tuple), max_size=3),
)


@given(MEMORIES)
def test_any_memory_survives_writing_and_reading(memory):
    assert decode_memory(encode_memory(memory)) == memory


@given(st.lists(st.builds(Source, TEXTS, st.text()), min_size=1, max_size=3).map(tuple))
def test_any_sources_survive_writing_and_reading(sources):
    assert decode_sources(encode_sources(sources)) == sources
