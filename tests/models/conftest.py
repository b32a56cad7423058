"""A models directory of our own, a hub on loopback, and pip without any index but a directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotpind.models.store import ModelStore
from tests.models.hub_server import Hub

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _no_internet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Make a test that forgot its server fail rather than reach for the internet, but for the real models."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    if request.node.get_closest_marker("models") is None:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
        for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


@pytest.fixture
def store_of(root: Path) -> Callable[[str], ModelStore]:
    """Make a store whose user catalogue has the given entries."""
    def make(entries: str) -> ModelStore:
        (root / "catalogue.toml").write_text(entries, encoding="utf-8")
        return ModelStore(root)

    return make


@pytest.fixture
def cli(root: Path) -> Run:
    """Run `hotpinctl models` on the models directory as a process of its own."""
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(root, *arguments), capture_output=True, text=True, timeout=120, check=False)

    return run


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "hotpind.cli.models", *arguments, "--dir", str(root)]
