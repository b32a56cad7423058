"""Single steps of scripts/lib.sh, each where it is hard to meet by setting a whole tree up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.places import TOP
from tests.waiting import wait_until

as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
ANYBODY = "nobody"
HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that other users reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="hotpin-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def bash(script: str, *, top: Path = TOP, user: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run lines after sourcing lib.sh as the scripts do."""
    command = ["bash", "-euo", "pipefail", "-c", f"source {top}/scripts/lib.sh\n{script}"]
    if user:
        command = ["runuser", "-u", user, "--", *command]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "HOME": "/root" if not user else "/nonexistent", **environ})


@as_root_only
@pytest.mark.parametrize(("sudo", "works"), [
    # Cloud images and Raspberry Pi OS: no password is asked for, and there is none that could be given.
    ('[ "$1" = -n ] && shift && "$@"', True),
    # A password was given a moment ago, or is given now.
    ('[ "$1" = -v ] && touch FOLDER/known && exit; [ -e FOLDER/known ] && shift && "$@"', True),
    ("false", False)])
def test_whoever_may_use_sudo_gets_the_packages(open_folder: Path, sudo: str, works: bool) -> None:
    for name, text in {"sudo": sudo.replace("FOLDER", str(open_folder)), "apt-get": f'echo "$*" >>{open_folder}/apt',
                       "apt-cache": "true", "dpkg": "true"}.items():
        program = open_folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    open_folder.chmod(0o777)
    done = bash(f'WORK={open_folder}/work; need_packages "hotpin-no-such-package|is needed by this test"', user=ANYBODY,
                PATH=f"{open_folder}:{os.environ['PATH']}")
    assert "hotpin-no-such-package: is needed by this test" in done.stdout
    assert (done.returncode == 0) is works, done.stdout + done.stderr
    if works:
        assert "hotpin-no-such-package" in (open_folder / "apt").read_text()
    else:
        assert "sudo refused" in done.stderr


@pytest.mark.parametrize("on_term", ["sleep 1; exit", ""])
def test_an_interrupted_step_leaves_no_child_behind(tmp_path: Path, on_term: str) -> None:
    """Its children end later than the step itself, or not at all unless they are killed."""
    child = f"trap '{on_term}' TERM; touch {tmp_path}/begun; for i in {{1..600}}; do sleep 0.1; done"
    script = f"""WORK={tmp_path}/work; take_lock; quietly "a step" bash -c "bash -c \\"{child}\\" & wait" """
    with subprocess.Popen(["bash", "-euo", "pipefail", "-c", f"source {TOP}/scripts/lib.sh\n{script}"], text=True,
                          stdout=subprocess.PIPE, start_new_session=True) as process:
        wait_until((tmp_path / "begun").exists, 20)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in said
    assert subprocess.run(["pgrep", "-f", f"{tmp_path}/begun"], check=False, capture_output=True).stdout == b""


def test_an_interrupted_installation_is_finished_when_the_one_before_has_let_go(tmp_path: Path) -> None:
    """The real dpkg, on a database of its own."""
    for name in ("status", "available", "lock-frontend", "lock"):
        (tmp_path / name).touch()
    for name in ("updates", "info", "triggers"):
        (tmp_path / name).mkdir()
    configure = f"env LC_ALL=C dpkg --admindir={tmp_path} --configure -a"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock-frontend")], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder, ThreadPoolExecutor(1) as thread:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            assert "lock" in bash(configure).stderr, "dpkg itself does not wait"
            waiting = thread.submit(bash, f"when_unlocked {configure}")
            time.sleep(2.5)
            assert not waiting.done(), waiting.result()
        finally:
            holder.stdin.close()
        done = waiting.result(60)
    assert done.returncode == 0, done.stdout + done.stderr
    # Any other failure is one at once.
    failed = bash("when_unlocked sh -c 'echo broken; exit 3' || exit $?")
    assert (failed.returncode, "broken" in failed.stdout) == (3, True)


def test_llama_built_with_other_options_is_another_wheel() -> None:
    def wheels(options: str) -> str:
        return bash('echo "$WHEELS"', XDG_CACHE_HOME="/x", CMAKE_ARGS=options).stdout.strip()

    plain = wheels("")
    cuda = wheels("-DGGML_CUDA=on")
    assert plain == "/x/hotpin/wheels"
    assert len({plain, cuda, wheels("-DGGML_VULKAN=on")}) == 3
    assert cuda == wheels("-DGGML_CUDA=on")


@pytest.mark.parametrize(("features", "built_for"), [
    # Raspberry Pi 4 and 5, Jetson Orin, as their kernels tell them; the two side by side; no half precision.
    ("fp asimd evtstrm crc32 cpuid", ""),
    ("fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
     "armv8.2-a+dotprod+fp16"),
    ("fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat ilrcpc "
     "flagm paca pacg", "armv8.2-a+dotprod+fp16"),
    ("fp asimdhp asimddp", "armv8.2-a+dotprod+fp16"),
    ("fp asimd crc32 atomics asimdrdm asimddp", "armv8.2-a+dotprod")])
def test_an_arm_processor_gets_what_it_can_do(tmp_path: Path, features: str, built_for: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n" * 2)
    done = bash(f'uname() {{ echo aarch64; }}\narm_arch "{cpuinfo}"')
    assert (done.returncode, done.stdout) == (0, built_for), done.stderr
    assert bash(f'uname() {{ echo x86_64; }}\narm_arch "{cpuinfo}"').stdout == ""


def test_what_was_built_for_one_arm_processor_is_not_taken_for_another() -> None:
    def asked(arch: str) -> tuple[str, ...]:
        shown = bash('printf "%s\n" "$WHEELS" "$NATIVE_ARGS"', XDG_CACHE_HOME="/x", CMAKE_ARGS="-DX=on",
                     GGML_CPU_ARM_ARCH=arch)
        return tuple(shown.stdout.splitlines())

    plain, older, newer = asked(""), asked("armv8-a"), asked("armv8.2-a+dotprod")
    assert len({each[0] for each in (plain, older, newer)}) == 3
    assert [each[1] for each in (plain, older, newer)] == [
        "-DX=on", "-DGGML_CPU_ARM_ARCH=armv8-a -DX=on", "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod -DX=on"]


SETTINGS = """
[paths]
models = "{folder}/models"
[stt]
engine = "whisper-cpp-python"
"""
PYTHON_THAT_TELLS = """#!/bin/sh
echo "$@" >>{folder}/pulled
mkdir -p {folder}/models && touch {folder}/models/fetched
"""


def test_the_models_are_those_that_the_daemons_settings_ask_for(tmp_path: Path) -> None:
    settings = tmp_path / "hotpin.toml"
    settings.write_text(SETTINGS.format(folder=tmp_path))
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON_THAT_TELLS.format(folder=tmp_path))
    python.chmod(0o755)

    def set_up(variable: str = "") -> str:
        done = bash(f"""unset HOTPIN_PATHS__MODELS
                        {variable and f"export {variable}"}
                        STAMPS={tmp_path} VENV={sys.prefix}
                        read_settings {settings}
                        echo "$MODELS_DIR $SPEECH_ENGINE"
                        VENV={tmp_path}/venv
                        need_models run {settings}""")
        return done.stdout.splitlines()[0] if done.returncode == 0 else done.stderr

    def pulls() -> list[str]:
        return (tmp_path / "pulled").read_text().splitlines()

    assert set_up() == f"{tmp_path}/models whisper-cpp-python"
    assert pulls() == [f"-m hotpind.cli.models pull --config {settings}"]
    set_up()
    assert len(pulls()) == 1, "nothing has changed"
    (tmp_path / "models/fetched").unlink()
    set_up()
    assert len(pulls()) == 2, "a file is gone"
    set_up("HOTPIN_SERVER__PORT=8001")
    assert len(pulls()) == 2, "that is no model's business"
    assert set_up("HOTPIN_STT__URI=tcp://nas:10300") == f"{tmp_path}/models ", "no engine here, no binding"
    assert len(pulls()) == 3, "the settings ask for other models"
    assert set_up(f"HOTPIN_PATHS__MODELS={tmp_path}/others").startswith(f"{tmp_path}/others ")
    said = set_up("HOTPIN_STT_ENGINE=pywhispercpp")
    assert "here HOTPIN_STT__ENGINE" in said
    assert "Traceback" not in said


@as_root_only
def test_what_sudo_runs_in_somebodys_clone_is_done_as_them(open_folder: Path) -> None:
    (open_folder / "scripts").mkdir()
    shutil.copy(TOP / "scripts/lib.sh", open_folder / "scripts/lib.sh")
    ask = """as_owner sh -c 'echo "$(id -un) $HOME $CMAKE_ARGS"'"""

    def said(sudo_user: str) -> str:
        done = bash(ask, top=open_folder, SUDO_USER=sudo_user, CMAKE_ARGS="-DX=on")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert said(ANYBODY) == "root /root -DX=on", "root's own clone, used by somebody with sudo"
    shutil.chown(open_folder, ANYBODY)
    assert said(ANYBODY) == f"{ANYBODY} /nonexistent -DX=on"
    assert said("") == "root /root -DX=on"
    assert said("root") == "root /root -DX=on"


@pytest.mark.slow
@pytest.mark.models
@as_root_only
def test_another_users_package_begins_with_building_llama_for_them(tmp_path: Path) -> None:
    """The environment is complete, and nothing is in this user's cache: as for root after somebody's scripts/run."""
    with subprocess.Popen([TOP / "scripts/build-deb.sh", "--output", tmp_path], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                          env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "CMAKE_ARGS": ""}) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "llama.cpp is built once" in line:
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert "llama.cpp is built once" in said, said
    assert process.returncode == 130, said + rest
