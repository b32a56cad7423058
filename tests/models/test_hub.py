"""Files of the Hugging Face hub: whole, resumed, tampered with, moved, unreachable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hotpind.errors import ModelFileError
from hotpind.models import hub as hub_module
from hotpind.models.progress import Progress, Stage
from hotpind.models.store import ModelStore
from tests.models.hub_server import COMMIT, Hub
from tests.models.samples import a_gguf, a_voice_config, an_onnx, hub_model, sha256

StoreOf = Callable[[str], ModelStore]
REPO = "someone/models"


@pytest.fixture
def content(tmp_path: Path, hub: Hub) -> bytes:
    """A language model of 1 MB on the hub, as ``m.gguf``."""
    data = a_gguf(tmp_path / "made.gguf", values=1 << 18)
    hub.files[f"{REPO}/m.gguf"] = data
    return data


@pytest.fixture
def store(store_of: StoreOf, content: bytes) -> ModelStore:
    return store_of(hub_model("m", REPO, "m.gguf"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_init = hub_module.HubFile.__init__

    def hurry(self: hub_module.HubFile, *arguments: object, **options: object) -> None:
        fetch_init(self, *arguments, **{**options, "sleep": lambda _: None})  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(hub_module.HubFile, "__init__", hurry)


def part_of(store: ModelStore) -> Path:
    (part,) = (store.root / ".partial" / "m").glob("m.gguf.*.part")
    return part


def test_a_file_is_fetched_checked_and_recorded(store: ModelStore, hub: Hub, content: bytes) -> None:
    reports: list[Progress] = []
    files = store.ensure("m", reports.append)
    assert files.main == store.root / "m" / "m.gguf"
    assert files.main.read_bytes() == content
    assert store.installed("m") == [files.main]
    record = json.loads((store.root / "m" / "installed.json").read_text())["files"]["m.gguf"]
    assert (record["sha256"], record["commit"]) == (sha256(content), COMMIT)
    assert not (store.root / ".partial" / "m").exists()
    last = [report for report in reports if report.stage is Stage.DOWNLOADING][-1]
    assert (last.done, last.total) == (len(content), len(content))


def test_the_second_time_the_hub_is_not_asked(store: ModelStore, hub: Hub) -> None:
    store.ensure("m")
    asked = len(hub.tokens)
    ModelStore(store.root).ensure("m")
    assert len(hub.tokens) == asked


def test_a_broken_connection_is_taken_up_where_it_broke(store: ModelStore, hub: Hub, content: bytes) -> None:
    hub.faults.cut_after = [300_000, 200_000]
    assert store.ensure("m").main.read_bytes() == content
    begins = [begin for _, begin in hub.ranges]
    assert begins[0] == 0
    assert 0 < begins[1] <= 300_000 < begins[2] <= 500_000
    assert begins[1] >= 300_000 - 65536


def test_a_download_that_failed_is_resumed_by_the_next_process(store: ModelStore, hub: Hub, content: bytes) -> None:
    hub.faults.cut_after = [700_000] + [0] * 20
    with pytest.raises(ModelFileError, match=r"of 10\d+ bytes are kept, run the same command again"):
        store.ensure("m")
    kept = part_of(store).stat().st_size
    assert 600_000 < kept <= 700_000
    assert not (store.root / "m" / "m.gguf").exists()
    hub.faults.cut_after = []
    hub.sent = 0
    assert ModelStore(store.root).ensure("m").main.read_bytes() == content
    assert hub.ranges[-1] == (f"{REPO}/m.gguf", kept)
    assert hub.sent == len(content) - kept


def test_a_server_that_ignores_ranges_sends_the_whole_file(store: ModelStore, hub: Hub, content: bytes) -> None:
    hub.faults.cut_after = [500_000]
    hub.faults.ignore_range = True
    assert store.ensure("m").main.read_bytes() == content


def test_a_busy_server_is_asked_again(store: ModelStore, hub: Hub, content: bytes) -> None:
    hub.faults.get_status = [503, 429, 502]
    assert store.ensure("m").main.read_bytes() == content


def test_tampered_bytes_are_refused_and_not_kept(store: ModelStore, hub: Hub, content: bytes) -> None:
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    hub.faults.serve[f"{REPO}/m.gguf"] = wrong
    with pytest.raises(ModelFileError) as caught:
        store.ensure("m")
    message = str(caught.value)
    assert "m.gguf" in message
    assert f"expected SHA-256 {sha256(content)}, found {sha256(wrong)}" in message
    assert "\n" not in message
    assert list(store.root.rglob("*.gguf*")) == []


def test_a_hole_left_by_a_power_cut_costs_one_fresh_download(store: ModelStore, hub: Hub, content: bytes) -> None:
    hub.faults.cut_after = [700_000] + [0] * 20
    with pytest.raises(ModelFileError):
        store.ensure("m")
    part = part_of(store)
    with part.open("r+b") as file:
        file.seek(100_000)
        file.write(bytes(50_000))
    hub.faults.cut_after = []
    assert store.ensure("m").main.read_bytes() == content
    assert [begin for _, begin in hub.ranges[-2:]] == [part_size(hub, content), 0]


def part_size(hub: Hub, content: bytes) -> int:
    """First byte asked for by the last but one transfer, which must have been a resumption."""
    begin = hub.ranges[-2][1]
    assert 0 < begin < len(content)
    return begin


def test_a_file_that_changed_meanwhile_is_not_patched_together(store: ModelStore, hub: Hub, content: bytes,
                                                                tmp_path: Path) -> None:
    hub.faults.cut_after = [700_000] + [0] * 20
    with pytest.raises(ModelFileError):
        store.ensure("m")
    hub.faults.cut_after = []
    newer = a_gguf(tmp_path / "newer.gguf", values=1 << 18, seed=5)
    hub.files[f"{REPO}/m.gguf"] = newer
    assert store.ensure("m").main.read_bytes() == newer
    assert hub.ranges[-1][1] == 0


def test_a_file_is_held_to_what_it_was_when_first_fetched(store: ModelStore, hub: Hub, content: bytes,
                                                          tmp_path: Path) -> None:
    store.ensure("m").main.unlink()
    newer = a_gguf(tmp_path / "newer.gguf", values=1 << 18, seed=5)
    hub.files[f"{REPO}/m.gguf"] = newer
    before = len(hub.ranges)
    with pytest.raises(ModelFileError, match=f"expected SHA-256 {sha256(content)}, found {sha256(newer)}"):
        store.ensure("m")
    assert len(hub.ranges) == before
    store.remove("m")
    assert store.ensure("m").main.read_bytes() == newer


def test_the_catalogues_digest_wins_over_the_servers(store_of: StoreOf, hub: Hub, content: bytes) -> None:
    published = hashlib.sha1(b"something else").hexdigest()
    store = store_of(hub_model("m", REPO, "m.gguf", extra=f', sha1 = "{published}"'))
    with pytest.raises(ModelFileError, match=f"expected SHA-1 {published}, found {hashlib.sha1(content).hexdigest()}"):
        store.ensure("m")
    assert store.installed("m") is None


def test_a_stated_size_that_is_not_the_catalogues_is_refused_at_once(store_of: StoreOf, hub: Hub,
                                                                     content: bytes) -> None:
    store = store_of(hub_model("m", REPO, "m.gguf", extra=", size = 12345"))
    with pytest.raises(ModelFileError, match=f"expected 12345 bytes, found {len(content)} stated"):
        store.ensure("m")
    assert hub.ranges == []


def test_a_server_that_sends_too_much_is_stopped(store: ModelStore, hub: Hub, content: bytes) -> None:
    hub.faults.endless = True
    with pytest.raises(ModelFileError, match="sent more than the"):
        store.ensure("m")
    assert part_of(store).stat().st_size <= len(content)


def test_a_voice_has_two_files_and_the_small_one_is_checked_too(store_of: StoreOf, hub: Hub) -> None:
    hub.files[f"{REPO}/en/v.onnx"] = an_onnx(300_000)
    hub.files[f"{REPO}/en/v.onnx.json"] = a_voice_config()
    hub.small.add(f"{REPO}/en/v.onnx.json")
    store = store_of(f"""
[[model]]
name = "v"
title = "A voice"
role = "tts"
licence = "MIT"
memory_mb = 10
source = {{ kind = "huggingface", repository = "{REPO}" }}
files = [{{ name = "v.onnx", path = "en/v.onnx" }}, {{ name = "v.onnx.json", path = "en/v.onnx.json" }}]
""")
    hub.faults.serve[f"{REPO}/en/v.onnx.json"] = a_voice_config().replace(b"22050", b"16000")
    with pytest.raises(ModelFileError, match="git SHA-1"):
        store.ensure("v")
    hub.faults.serve.clear()
    before = len(hub.ranges)
    files = store.ensure("v")
    assert files.config is not None
    assert files.config.read_bytes() == a_voice_config()
    assert [path for path, _ in hub.ranges[before:]] == [f"{REPO}/en/v.onnx.json"], "only what is missing"


def test_what_is_no_model_is_refused_although_its_digest_is_right(store: ModelStore, hub: Hub) -> None:
    hub.files[f"{REPO}/m.gguf"] = b"<html>please log in to this Wi-Fi</html>"
    with pytest.raises(ModelFileError, match="is not a language model"):
        store.ensure("m")
    assert list(store.root.rglob("*.gguf*")) == []


def test_a_missing_file_is_named(store_of: StoreOf, hub: Hub) -> None:
    store = store_of(hub_model("m", REPO, "gone.gguf"))
    with pytest.raises(ModelFileError, match=r"there is no gone\.gguf of someone/models on 127\.0\.0\.1"):
        store.ensure("m")


def test_a_server_without_digests_is_not_trusted(store: ModelStore, hub: Hub) -> None:
    hub.faults.no_digest = True
    with pytest.raises(ModelFileError, match="states no digest"):
        store.ensure("m")


def test_no_network_is_one_sentence(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelFileError, match=r"127\.0\.0\.1 cannot be reached for m\.gguf"):
        store.ensure("m")


def test_a_hub_that_is_down_is_one_sentence(store: ModelStore, hub: Hub) -> None:
    hub.faults.head_status = 503
    with pytest.raises(ModelFileError, match=r"127\.0\.0\.1 cannot be reached for m\.gguf \(.*503") as caught:
        store.ensure("m")
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_is_no_address_is_named(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.local")
    with pytest.raises(ModelFileError, match=r"HF_ENDPOINT is 'mirror\.local'"):
        store.ensure("m")


def test_the_token_goes_to_the_hub_and_nowhere_else(store: ModelStore, hub: Hub,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    store.ensure("m")
    assert ("hub", "Bearer hf_secret") in hub.tokens
    assert [token for kind, token in hub.tokens if kind == "storage"] == [""]


def test_a_model_with_eyes_brings_its_projector(store_of: StoreOf, hub: Hub, tmp_path: Path) -> None:
    hub.files[f"{REPO}/see.gguf"] = a_gguf(tmp_path / "a.gguf")
    hub.files[f"{REPO}/mmproj.gguf"] = a_gguf(tmp_path / "b.gguf", architecture="clip")
    store = store_of(hub_model("see", REPO, "see.gguf", more='projector = "see-mmproj"')
                     + hub_model("see-mmproj", REPO, "mmproj.gguf", role="vision-projector"))
    files = store.ensure("see")
    assert files.projector == store.root / "see-mmproj" / "mmproj.gguf"
    assert store.installed("see") == [files.main, files.projector]
    files.projector.unlink()
    assert store.installed("see") is None
    store.ensure("see")
    store.remove("see")
    assert not (store.root / "see-mmproj").exists()

