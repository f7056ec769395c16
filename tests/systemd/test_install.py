"""`make install` and `make uninstall`: what goes where, and what is the administrator's to keep."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from machine import REPOSITORY, command, install, must

FILES = {
    "bin/lbd": 0o755,
    "lib/lbd/lbd/cli.py": 0o644,
    "lib/systemd/system/lbd.service": 0o644,
    "lib/sysusers.d/lbd.conf": 0o644,
    "share/doc/lbd/README.md": 0o644,
    "share/doc/lbd/examples/lbd.toml": 0o644,
}


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("installed")
    install(place)
    return place


def test_everything_is_in_its_place_and_readable_whatever_the_umask(tmp_path: Path):
    must("make", "-C", REPOSITORY, "install", f"DESTDIR={tmp_path}", "PREFIX=/usr/local", umask=0o077)
    for name, mode in FILES.items():
        assert stat.S_IMODE((tmp_path / "usr/local" / name).stat().st_mode) == mode, name
    assert stat.S_IMODE((tmp_path / "usr/local/lib/lbd/lbd").stat().st_mode) == 0o755
    unit = (tmp_path / "usr/local/lib/systemd/system/lbd.service").read_text()
    assert "ExecStart=/usr/local/bin/lbd run" in unit
    assert "ExecReload=/usr/local/bin/lbd reload" in unit


def test_installed_code_is_compiled_and_names_its_final_place(installed: Path):
    compiled = next((installed / "usr/lib/lbd/lbd/__pycache__").glob("cli.*.pyc")).read_bytes()
    assert b"/usr/lib/lbd/lbd/cli.py" in compiled
    assert os.fsencode(installed) not in compiled


def test_installed_example_is_good(installed: Path, tmp_path: Path):
    launcher = (installed / "usr/bin/lbd").read_text()
    here = tmp_path / "lbd"
    here.write_text(launcher.replace('"/usr/lib/lbd"', f'"{installed}/usr/lib/lbd"'))
    here.chmod(0o755)
    done = command(here, "check", "-c", installed / "etc/lbd.toml")
    assert done.returncode == 0, done.stderr


def test_second_install_keeps_the_configuration_and_uninstall_leaves_only_it(installed: Path, tmp_path: Path):
    root = tmp_path / "root"
    shutil.copytree(installed, root)
    (root / "etc/lbd.toml").write_text("# mine\n")
    (root / "usr/lib/lbd/lbd/stale.py").write_text("")
    install(root)
    assert (root / "etc/lbd.toml").read_text() == "# mine\n"
    assert files(root) == files(installed)
    must("make", "-C", REPOSITORY, "uninstall", f"DESTDIR={root}")
    assert files(root) == {"etc/lbd.toml"}
