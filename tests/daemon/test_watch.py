"""host/watch against a real file system: whatever an editor does, the reader ends with what is there."""

import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from watchdog.events import DirDeletedEvent

from lbd.host import watch as watch_module
from lbd.host.watch import FileWatch

NEVER = 600.0  # a poll that cannot be what made a test pass
DEADLINE = 5.0


class Reader:
    """Does what the daemon does: reads the file each time it is told to."""

    def __init__(self, path, poll=NEVER):
        self.path = path
        self.calls = 0
        self.text = None
        self.read()
        self.watch = FileWatch(path, self.changed, asyncio.get_running_loop(), poll)

    def read(self):
        try:
            self.text = self.path.read_text()
        except OSError:
            self.text = None

    def changed(self):
        self.calls += 1
        self.read()

    async def until(self, condition):
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, f"after {self.calls} calls the reader has {self.text!r}"
            await asyncio.sleep(0.005)

    async def sees(self, text):
        await self.until(lambda: self.text == text)

    async def quiet(self):
        """Wait until nothing is told for a while, and return the number of calls."""
        calls = -1
        while calls != self.calls:
            calls = self.calls
            await asyncio.sleep(0.3)
        return calls

    async def told(self, calls):
        await self.until(lambda: self.calls > calls)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def run(path, scenario, poll=NEVER):
    async def main():
        reader = Reader(path, poll)
        try:
            await asyncio.wait_for(scenario(reader), 60)
        finally:
            reader.watch.close()

    asyncio.run(main())


def in_place(path, text):
    with path.open("r+") as file:
        file.write(text)
        file.truncate()


def truncate_then_write(path, text):
    with path.open("w") as file:
        file.flush()
        file.write(text)


def rename_over(path, text):
    new = path.with_name(".lbd.toml.swp")
    new.write_text(text)
    new.rename(path)


def rename_from_elsewhere(path, text):
    new = path.parent.parent / "built.toml"
    new.write_text(text)
    new.rename(path)


def sed_in_place(path, text):
    subprocess.run(["sed", "-i", f"1c {text}", str(path)], check=True)


def vim(path, text):
    path.rename(path.with_name("lbd.toml~"))
    path.write_text(text)
    path.with_name("lbd.toml~").unlink()


def hard_link(path, text):
    new = path.with_name("new")
    new.write_text(text)
    path.unlink()
    os.link(new, path)
    new.unlink()


def remove_then_create(path, text):
    path.unlink()
    path.write_text(text)


def cp_preserving(path, text):
    status = path.stat()
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


EDITORS = [
    in_place,
    truncate_then_write,
    rename_over,
    rename_from_elsewhere,
    sed_in_place,
    vim,
    hard_link,
    remove_then_create,
    cp_preserving,
]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "etc" / "lbd.toml"
    path.parent.mkdir()
    path.write_text("one\n")
    return path


@pytest.mark.parametrize("edit", EDITORS)
def test_every_editor_is_seen_again_and_again(config, edit):
    async def scenario(reader):
        for text in ("two\n", "three\n", "four\n"):
            edit(config, text.strip() if edit is sed_in_place else text)
            await reader.sees(text)

    run(config, scenario)


@pytest.mark.parametrize("edit", EDITORS)
def test_every_editor_is_seen_behind_a_symlinked_file(config, tmp_path, edit):
    real = tmp_path / "elsewhere" / "lbd.toml"
    real.parent.mkdir()
    config.rename(real)
    config.symlink_to("../elsewhere/lbd.toml")

    async def scenario(reader):
        for text in ("two\n", "three\n"):
            edit(real, text.strip() if edit is sed_in_place else text)
            await reader.sees(text)

    run(config, scenario)


def swap(link, target):
    new = link.with_name(link.name + ".new")
    new.symlink_to(target)
    new.rename(link)


def test_a_symlink_that_is_pointed_elsewhere_is_seen(config, tmp_path):
    for name in ("two", "three"):
        (tmp_path / name).write_text(name)
    config.unlink()
    config.symlink_to("../missing")

    async def scenario(reader):
        for name in ("two", "three", "two"):
            swap(config, f"../{name}")
            await reader.sees(name)
        (tmp_path / "two").write_text("edited")
        await reader.sees("edited")

    run(config, scenario)


def test_a_configmap_swap_is_seen(tmp_path):
    mount = tmp_path / "mount"
    mount.mkdir()
    for name in ("one", "two", "three"):
        (mount / f"..{name}").mkdir()
        (mount / f"..{name}" / "lbd.toml").write_text(name)
    (mount / "..data").symlink_to("..one")
    (mount / "lbd.toml").symlink_to("..data/lbd.toml")

    async def scenario(reader):
        for old, new in (("one", "two"), ("two", "three")):
            swap(mount / "..data", f"..{new}")
            shutil.rmtree(mount / f"..{old}")
            await reader.sees(new)

    run(mount / "lbd.toml", scenario)


def test_a_symlinked_directory_that_is_pointed_elsewhere_is_seen(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lbd.toml").write_text(name)
    (tmp_path / "etc").symlink_to("one")

    async def scenario(reader):
        swap(tmp_path / "etc", "two")
        await reader.sees("two")
        (tmp_path / "two" / "lbd.toml").write_text("edited")
        await reader.sees("edited")

    run(tmp_path / "etc" / "lbd.toml", scenario)


def test_a_deleted_file_is_told_and_a_new_one_is_seen(config):
    async def scenario(reader):
        for text in ("two", "three"):
            config.unlink()
            await reader.sees(None)
            config.write_text(text)
            await reader.sees(text)

    run(config, scenario)


def test_a_removed_and_recreated_directory_is_watched_again(config):
    async def scenario(reader):
        for round_ in range(10):
            shutil.rmtree(config.parent)
            if round_ % 2:  # and without a pause
                await reader.sees(None)
            config.parent.mkdir()
            config.write_text(f"new {round_}")
            await reader.sees(f"new {round_}")
            await reader.quiet()
            # The new directory is watched for itself: nothing but its own watch can tell this.
            config.write_text(f"edited {round_}")
            await reader.sees(f"edited {round_}")

    run(config, scenario)


def test_a_directory_that_is_moved_away_and_replaced_is_watched_again(config):
    async def scenario(reader):
        old = config.parent.with_name("etc.old")
        config.parent.rename(old)
        await reader.sees(None)
        config.parent.mkdir()
        config.write_text("new")
        await reader.sees("new")
        config.write_text("edited")
        await reader.sees("edited")
        calls = await reader.quiet()
        (old / "lbd.toml").write_text("nobody's")
        assert await reader.quiet() == calls

    run(config, scenario)


def test_directories_that_do_not_exist_at_start_are_found_when_they_come(tmp_path):
    path = tmp_path / "a" / "b" / "c" / "lbd.toml"

    async def scenario(reader):
        path.parent.mkdir(parents=True)
        path.write_text("one")
        await reader.sees("one")
        path.write_text("two")
        await reader.sees("two")

    run(path, scenario)


def test_a_file_that_becomes_readable_is_told(config):
    async def scenario(reader):
        config.chmod(0)
        await reader.told(0)
        calls = await reader.quiet()
        config.chmod(0o644)
        await reader.told(calls)

    run(config, scenario)


def test_reading_the_file_and_other_files_tell_nothing(config):
    async def scenario(reader):
        for n in range(50):
            config.read_text()
            (config.parent / f"other{n}").write_text("x")
            (config.parent / f"other{n}").unlink()
        assert await reader.quiet() == 0

    run(config, scenario)


def test_one_write_is_told_once_or_twice_although_each_call_reads_the_file(config):
    async def scenario(reader):
        config.write_text("two")
        await reader.sees("two")
        assert await reader.quiet() <= 3

    run(config, scenario)


def test_a_name_with_wildcards_in_it_is_no_pattern(tmp_path):
    path = tmp_path / "[ab]*" / "lbd[1].toml"
    path.parent.mkdir()
    path.write_text("one")

    async def scenario(reader):
        rename_over(path, "two")
        await reader.sees("two")

    run(path, scenario)


def test_drop_ins_are_told_by_pattern(config):
    drop_ins = config.parent / "lbd.d"

    async def scenario(reader):
        reader.watch.paths = [drop_ins / "*.toml"]
        calls = await reader.quiet()
        drop_ins.mkdir()
        (drop_ins / "a.toml").write_text("one")
        await reader.told(calls)
        calls = await reader.quiet()
        (drop_ins / "a.toml").write_text("two")
        await reader.told(calls)
        calls = await reader.quiet()
        (drop_ins / "README").write_text("not a drop-in")
        assert await reader.quiet() == calls
        (drop_ins / "a.toml").unlink()
        await reader.told(calls)

    run(config, scenario)


def test_a_symlinked_drop_in_is_followed_to_where_it_lies(config, tmp_path):
    (config.parent / "lbd.d").mkdir()
    (tmp_path / "real.conf").write_text("one")
    (config.parent / "lbd.d" / "a.toml").symlink_to(tmp_path / "real.conf")

    async def scenario(reader):
        reader.watch.paths = [config.parent / "lbd.d" / "*.toml"]
        calls = await reader.quiet()
        (tmp_path / "real.conf").write_text("two")
        await reader.told(calls)

    run(config, scenario)


def test_setting_the_same_paths_tells_nothing(config):
    paths = [config.parent / "lbd.d" / "*.toml", config.parent / "\0"]

    async def scenario(reader):
        reader.watch.paths = paths
        calls = await reader.quiet()
        reader.watch.paths = reversed(paths)
        assert await reader.quiet() == calls

    run(config, scenario)


def test_a_loop_of_symlinks_ends_and_is_left_when_it_is_repaired(config):
    config.unlink()
    config.symlink_to("lbd.toml")

    async def scenario(reader):
        rename_over(config, "two")
        await reader.sees("two")

    run(config, scenario)


def test_a_dead_watch_is_found_by_the_poll_and_made_again(config):
    async def scenario(reader):
        for text in ("two", "three"):
            dead = set(reader.watch._observer.emitters)
            for emitter in dead:
                emitter.stop()
            config.write_text(text)
            await reader.sees(text)
            await reader.until(lambda dead=dead: not dead & reader.watch._observer.emitters)
            assert all(emitter.is_alive() for emitter in reader.watch._observer.emitters)

    run(config, scenario, poll=0.1)


def test_a_watch_whose_directory_was_deleted_is_dead_even_while_its_thread_still_ends(config):
    async def scenario(reader):
        before = reader.watch._watches[config.parent]
        # What watchdog tells before it ends the emitter; the same inode number may be back by then.
        before.ear.dispatch(DirDeletedEvent(str(config.parent)))
        await reader.until(lambda: reader.watch._watches.get(config.parent) not in {None, before})
        config.write_text("two")
        await reader.sees("two")

    run(config, scenario)


def test_a_directory_that_comes_while_the_watches_are_set_is_not_missed(tmp_path, monkeypatch):
    path = tmp_path / "etc" / "lbd.toml"
    identity = watch_module._identity

    def just_before(directory):
        found = identity(directory)
        if directory == path.parent and found is None:
            path.parent.mkdir()
            path.write_text("one")
        return found

    monkeypatch.setattr(watch_module, "_identity", just_before)

    async def scenario(reader):
        path.write_text("two")
        await reader.sees("two")

    run(path, scenario)


@pytest.mark.parametrize("edit", EDITORS)
def test_without_inotify_the_poll_sees_every_editor(config, edit, monkeypatch):
    def no_instance_left():
        raise OSError(24, "inotify instance limit reached")

    monkeypatch.setattr(watch_module, "Observer", no_instance_left)

    async def scenario(reader):
        for text in ("two\n", "six\n"):
            edit(config, text.strip() if edit is sed_in_place else text)
            await reader.sees(text)

    run(config, scenario, poll=0.05)


def test_a_thousand_edits_cost_no_descriptor_no_thread_and_few_calls(config):
    async def scenario(reader):
        rename_over(config, "warm")
        await reader.sees("warm")
        calls = await reader.quiet()
        before = descriptors(), threading.active_count()
        start = time.monotonic()
        for n in range(1000):
            rename_over(config, f"text {n}")
            if n % 20 == 0:
                await asyncio.sleep(0)
        for _ in range(20):
            shutil.rmtree(config.parent)
            config.parent.mkdir()
            config.write_text("last")
            await asyncio.sleep(0.01)
        await reader.sees("last")
        calls = await reader.quiet() - calls
        assert (descriptors(), threading.active_count()) == before
        assert calls <= 3 + 20 * (time.monotonic() - start)

    run(config, scenario)


def test_idle_costs_no_processor_time(config):
    async def scenario(reader):
        await reader.quiet()
        before = time.process_time()
        await asyncio.sleep(1)
        assert time.process_time() - before < 0.1

    run(config, scenario)


def test_nothing_is_told_and_no_thread_is_left_after_close(config):
    async def main():
        before = threading.active_count()
        reader = Reader(config, 0.05)
        await reader.quiet()
        reader.watch.close()
        config.write_text("two")
        assert await reader.quiet() == 0
        executor = 1  # asyncio.to_thread keeps its worker
        assert threading.active_count() <= before + executor

    asyncio.run(main())


BIND_MOUNT = """
    import asyncio, pathlib, subprocess, sys
    from lbd.host.watch import FileWatch
    path = pathlib.Path(sys.argv[1])

    async def main():
        seen = asyncio.Event()
        changed = lambda: path.read_text() == sys.argv[3] and seen.set()
        watch = FileWatch(path, changed, asyncio.get_running_loop(), 0.1)
        subprocess.run(["mount", "--bind", sys.argv[2], path], check=True)
        await asyncio.wait_for(seen.wait(), 5)
        seen.clear()
        subprocess.run(["umount", path], check=True)
        sys.argv[3] = "one\\n"
        await asyncio.wait_for(seen.wait(), 5)
        watch.close()

    asyncio.run(main())
"""


def test_a_bind_mount_over_the_file_is_seen_by_the_poll(config, tmp_path):
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    (tmp_path / "over").write_text("mounted")
    script = textwrap.dedent(BIND_MOUNT)
    subprocess.run(
        [*unshare, sys.executable, "-c", script, str(config), str(tmp_path / "over"), "mounted"],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=30,
    )
