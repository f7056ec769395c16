"""The files of the configuration as they are on disk: what is read, and what is refused without a wait."""

import glob
import hashlib
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from lbd.core.memory import decode_sources, encode_sources
from lbd.core.source import BadFileError, Source
from lbd.host import files

WEB = '[[service]]\nname = "web"\nlisten = "192.0.2.1:80"\nbackends = ["198.51.100.1:80"]\n'


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "lbd.toml"
    path.write_text(WEB)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadFileError) as refused:
        files.read(path)
    (problem,) = refused.value.problems
    assert problem.line is None
    return problem.render()


def drop_in(main: Path, name: str, number: int) -> Path:
    path = main.parent / "lbd.d" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(WEB.replace("web", f"s{number}").replace(":80", f":{number}"))
    return path


def test_a_file_alone(main: Path):
    found = files.read(main)
    assert [(source.path, source.text) for source in found.sources] == [(str(main), WEB)]
    assert found.watched == (main,)
    assert files.load(main).services[0].name == "web"


def test_included_files_are_read_in_order_once_and_not_the_main_file(main: Path):
    main.write_text('include = ["lbd.d/*.toml", "lbd.d/a.toml", "./lbd.d/../*.toml", "none/*"]\n' + WEB)
    b, a = drop_in(main, "b.toml", 2), drop_in(main, "a.toml", 1)
    drop_in(main, ".#a.toml", 3)
    drop_in(main, "a.toml~", 4)
    found = files.read(main)
    assert [source.path for source in found.sources] == [str(main), str(a), str(b)]
    assert found.watched[1] == main.parent / "lbd.d" / "*.toml"
    assert [service.name for service in files.load(main).services] == ["web", "s1", "s2"]


def test_included_files_include_nothing(main: Path):
    main.write_text('include = ["lbd.d/*.toml"]\n' + WEB)
    drop_in(main, "a.toml", 1).write_text('include = ["/etc/passwd"]')
    assert len(files.read(main).sources) == 2


def test_a_directory_with_wildcards_in_its_name(tmp_path: Path):
    main = tmp_path / "a[b]*" / "lbd.toml"
    main.parent.mkdir()
    main.write_text('include = ["lbd.d/*.toml"]\n' + WEB)
    inner = drop_in(main, "a.toml", 1)
    found = files.read(main)
    assert [source.path for source in found.sources] == [str(main), str(inner)]
    assert [glob.glob(str(pattern)) for pattern in found.watched] == [[str(main)], [str(inner)]]  # noqa: PTH207 - as a watcher


def test_a_relative_path(main: Path, monkeypatch: pytest.MonkeyPatch):
    main.write_text('include = ["lbd.d/*.toml"]\n' + WEB)
    drop_in(main, "a.toml", 1)
    monkeypatch.chdir(main.parent)
    found = files.read(Path("lbd.toml"))
    assert [source.path for source in found.sources] == ["lbd.toml", "lbd.d/a.toml"]
    assert found.watched == (main, main.parent / "lbd.d" / "*.toml")


LISTED = WEB + 'allow = [{ file = "lists/a.txt" }, { file = "/nowhere/b.txt" }]\n'


def prefixes(main: Path, text: str) -> Path:
    path = main.parent / "lists" / "a.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_files_of_prefixes_are_read_and_watched(main: Path):
    path = prefixes(main, "10.0.0.0/8\n")
    drop_in(main, "a.toml", 1).write_text(LISTED.replace(', { file = "/nowhere/b.txt" }', ""))
    main.write_text('include = ["lbd.d/*"]\n[defaults]\ndeny = [{ file = "./lists/a.txt" }]\n')
    found = files.read(main)
    assert [(source.path, source.kind) for source in found.sources] == [
        (str(main), "toml"),
        (str(main.parent / "lbd.d" / "a.toml"), "toml"),
        (str(path), "prefixes"),
    ]
    assert found.watched == (main, main.parent / "lbd.d" / "*", path)
    (service,) = files.load(main).services
    assert service.allow == service.deny
    assert service.deny.files[0].path == str(path)


def test_what_was_read_is_kept_whole(main: Path):
    prefixes(main, "10.0.0.0/8\n")
    main.write_text(LISTED.replace(', { file = "/nowhere/b.txt" }', ""))
    sources = files.read(main).sources
    assert decode_sources(encode_sources(sources)) == sources
    text = encode_sources(sources[:1])
    body = [{"path": str(main), "text": WEB}]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    older = json.dumps(json.loads(text) | {"body": body, "sha256": digest})
    assert decode_sources(older) == (Source(str(main), WEB),)
    body[0]["kind"] = "bogus"
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    with pytest.raises(ValueError, match="bogus"):
        decode_sources(json.dumps(json.loads(text) | {"body": body, "sha256": digest}))


def test_a_file_of_prefixes_that_cannot_be_read_is_watched_and_refused_where_it_is_named(main: Path):
    (main.parent / "lists" / "a.txt").mkdir(parents=True)
    main.write_text(LISTED)
    assert files.read(main).watched == (main, main.parent / "lists" / "a.txt", Path("/nowhere/b.txt"))
    with pytest.raises(BadFileError) as refused:
        files.load(main)
    first, second = refused.value.problems
    assert (first.path, first.line, first.column) == (str(main), 5, 10)
    assert first.message == (f'service "web": allow: {main.parent}/lists/a.txt: is a directory, not a file')
    assert second.message == (
        'service "web": allow: /nowhere/b.txt: cannot be read: No such file or directory'
    )


def test_a_file_of_prefixes_with_bytes_that_are_no_text(main: Path):
    path = prefixes(main, "")
    path.write_bytes(b"10.0.0.0/8\n10.\xff")
    main.write_text(LISTED.replace(', { file = "/nowhere/b.txt" }', ""))
    with pytest.raises(BadFileError) as refused:
        files.load(main)
    assert refused.value.problems[0].message == (
        f'service "web": allow: {path}:2:4: not UTF-8 text: byte 0xff'
    )


@pytest.mark.timeout(10)
def test_files_of_prefixes_are_bounded_with_all_others(main: Path, monkeypatch: pytest.MonkeyPatch):
    path = prefixes(main, "10.0.0.0/8\n")
    main.write_text(LISTED.replace(', { file = "/nowhere/b.txt" }', ""))
    together = sum(each.stat().st_size for each in (main, path))
    monkeypatch.setattr(files, "LARGEST", together)
    assert files.load(main)
    monkeypatch.setattr(files, "LARGEST", together - 1)
    with pytest.raises(BadFileError, match="is too large"):
        files.load(main)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadFileError, match="is a FIFO"):
        files.load(main)


def test_a_file_of_prefixes_with_wildcards_in_its_name(main: Path):
    path = main.parent / "a[b]*.txt"
    path.write_text("10.0.0.0/8")
    main.write_text(WEB + 'deny = [{ file = "a[b]*.txt" }]\n')
    found = files.read(main)
    assert glob.glob(str(found.watched[1])) == [str(path)]  # noqa: PTH207 - as a watcher
    assert files.load(main).services[0].deny.files


@pytest.mark.parametrize("text", ["", "[", 'include = "x"', "[[service]]\nbogus = 1"])
def test_a_bad_main_file_is_still_read(main: Path, text: str):
    main.write_text(text)
    found = files.read(main)
    assert found.sources[0].text == text
    with pytest.raises(BadFileError):
        files.load(main)


def test_no_file(tmp_path: Path):
    path = tmp_path / "lbd.toml"
    assert refusal(path) == f"{path}: cannot be read: No such file or directory"
    assert refusal(path / "x" / "y") == f"{path}/x/y: cannot be read: No such file or directory"


def test_dangling_link_and_loop(tmp_path: Path):
    dangling, loop = tmp_path / "dangling", tmp_path / "loop"
    dangling.symlink_to(tmp_path / "nowhere")
    loop.symlink_to(loop)
    assert "No such file" in refusal(dangling)
    assert "symbolic links" in refusal(loop)


@pytest.mark.timeout(10)
def test_a_fifo_does_not_make_anybody_wait(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert refusal(fifo) == f"{fifo}: is a FIFO, not a file"


def test_a_directory_a_device_a_socket(tmp_path: Path):
    assert refusal(tmp_path).endswith("is a directory, not a file")
    assert refusal(Path("/dev/zero")).endswith("is a device, not a file")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert "cannot be read" in refusal(tmp_path / "s")


def test_a_path_with_nul():
    assert "NUL" in refusal(Path("/etc/a\0b"))


@pytest.mark.timeout(10)
def test_a_file_of_a_gibibyte_is_refused_unread(tmp_path: Path):
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    assert "is too large" in refusal(huge)


def test_the_bound_is_for_all_files_together(main: Path, monkeypatch: pytest.MonkeyPatch):
    main.write_text('include = ["lbd.d/*.toml"]\n' + WEB)
    a, b = drop_in(main, "a.toml", 1), drop_in(main, "b.toml", 2)
    together = sum(path.stat().st_size for path in (main, a, b))
    monkeypatch.setattr(files, "LARGEST", together)
    assert len(files.read(main).sources) == 3
    monkeypatch.setattr(files, "LARGEST", together - 1)
    assert str(b) in refusal(main)


def test_a_file_that_cannot_be_opened(main: Path):
    main.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        said = refusal(main)
    finally:
        os.seteuid(user)
    assert said == f"{main}: cannot be read: Permission denied"


def test_an_included_directory_or_dangling_link_is_refused(main: Path):
    main.write_text('include = ["lbd.d/*"]\n' + WEB)
    (main.parent / "lbd.d" / "dir").mkdir(parents=True)
    assert refusal(main).endswith("lbd.d/dir: is a directory, not a file")
    (main.parent / "lbd.d" / "dir").rmdir()
    (main.parent / "lbd.d" / "gone.toml").symlink_to("nowhere")
    assert "gone.toml: cannot be read" in refusal(main)


def test_bytes_that_are_not_utf8(main: Path):
    main.write_bytes(b"a = '\xff'")
    with pytest.raises(BadFileError, match=r":1:6: not UTF-8"):
        files.read(main)


def test_no_descriptor_is_left_open(main: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    for path in (main, tmp_path, tmp_path / "fifo", tmp_path / "none"):
        with suppress(BadFileError):
            files.read(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - a count
