"""The directory of the sockets is private, and one daemon's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotpind.config.paths import make_private
from hotpind.errors import OperatorError
from hotpind.system.sole import LOCK_FILE, claim


def test_it_is_made_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "hotpin"
    make_private(path)
    assert path.stat().st_mode & 0o777 == 0o700
    make_private(path)


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_one_that_others_may_read_is_taken_as_the_service_manager_makes_it(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    make_private(tmp_path)


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_one_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(OperatorError, match="others may write"):
        make_private(tmp_path)


def test_somebody_elses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(OperatorError, match="belongs to user"):
        make_private(tmp_path)


def test_a_link_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OperatorError, match="symbolic link"):
        make_private(tmp_path / "link")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").touch()
    for name in ("dangling", "file"):
        with pytest.raises(OperatorError, match="is something else"):
            make_private(tmp_path / name)


def test_a_directory_is_one_process_at_a_time(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from hotpind.system.sole import claim\n"
         "claim(Path(sys.argv[1])); print('has it', flush=True); sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "has it\n"
    with pytest.raises(OperatorError, match=rf"in use by another hotpind \(process {other.pid}\)"):
        claim(tmp_path)
    other.kill()
    other.communicate()
    descriptor = claim(tmp_path)
    with pytest.raises(OperatorError, match=f"process {os.getpid()}"):
        claim(tmp_path)
    os.close(descriptor)
    os.close(claim(tmp_path))
    assert (tmp_path / LOCK_FILE).stat().st_mode & 0o777 == 0o600
