"""The key: which source wins, what is refused, and that it never shows."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import traceback
from pathlib import Path

import pytest

from hotpind.chat.key import CREDENTIAL, KeySource, Secret, checked_key, read_key_file, remove_key, store_key
from hotpind.errors import OperatorError, StateError

TEXT = "gsk_1234567890abcdef"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_secret_does_not_show_itself(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(TEXT)
    logging.getLogger("x").warning("key %s %r %s", secret, secret, {"key": secret})
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", f"{secret!r}", f"{[secret]}", caplog.text,
             str(vars(type(secret))), json.dumps({"key": str(secret)})]
    assert not any(TEXT in text for text in shown)
    assert not hasattr(secret, "__dict__")
    for leak in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(TypeError):
            leak(secret)
    with pytest.raises(TypeError):
        hash(secret)
    assert secret.reveal() == TEXT


def test_a_secret_does_not_show_in_a_traceback() -> None:
    def fail(key: Secret) -> None:
        raise ValueError(key)

    try:
        fail(Secret(TEXT))
    except ValueError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "Secret(...)" in shown
    assert TEXT not in shown


def test_secrets_compare() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


@pytest.mark.parametrize("text", ["", "  \n", "two words", "line\nbreak", "k\u00e9y", "x" * 600, "a\x00b",
                                  "gsk_x\r\nHost: elsewhere"])
def test_what_cannot_be_a_key_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(OperatorError) as caught:
        checked_key(text)
    assert not text.strip() or text not in str(caught.value)


def test_space_around_a_key_is_no_part_of_it() -> None:
    assert checked_key(f" {TEXT}\r\n").reveal() == TEXT


def test_the_order_of_the_sources(tmp_path: Path) -> None:
    credentials, state = tmp_path / "credentials", tmp_path / "state"
    credentials.mkdir()
    state.mkdir()
    key_file = write(tmp_path / "key", "from-file")
    write(state / CREDENTIAL, "from-state")
    write(credentials / CREDENTIAL, "from-credential", 0o440)
    environ = {"CREDENTIALS_DIRECTORY": str(credentials), "GROQ_API_KEY": "from-variable"}

    def read(configured: str = str(key_file)) -> tuple[str | None, str]:
        reading = KeySource(configured, state, environ).read()
        assert reading.problem == ""
        return (reading.key.reveal() if reading.key else None), reading.source

    assert read() == ("from-credential", "the systemd credential")
    (credentials / CREDENTIAL).unlink()
    assert read() == ("from-variable", "$GROQ_API_KEY")
    environ["GROQ_API_KEY"] = " "
    assert read() == ("from-file", "chat.groq.key_file")
    assert read("") == ("from-state", "the state directory")
    (state / CREDENTIAL).unlink()
    assert read("") == (None, "")


@pytest.mark.parametrize("content", [None, " \n"])
def test_a_file_that_was_configured_has_to_be_there(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        write(path, content)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}
    reading = KeySource(str(path), tmp_path / "state", environ).read()
    assert reading.key is None
    assert str(path) in reading.problem
    assert "chat.groq.key_file" in reading.problem
    store_key(tmp_path / "state", Secret("good"))
    reading = KeySource(str(path), tmp_path / "state", environ).read()
    assert reading.key == Secret("good")
    assert "chat.groq.key_file" in reading.problem


def test_a_key_set_after_the_service_started_beats_its_credential(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    old = write(tmp_path / "c" / CREDENTIAL, "old", 0o400)
    os.utime(old, (1000, 1000))
    state = tmp_path / "state"
    store_key(state, Secret("new"))
    source = KeySource("", state, {"CREDENTIALS_DIRECTORY": str(tmp_path / "c")})
    reading = source.read()
    assert reading.key == Secret("new")
    os.utime(state / CREDENTIAL, (900, 900))
    assert source.read().key == Secret("old")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "key", TEXT, mode)
    with pytest.raises(OperatorError, match=f"chmod 600 {path}"):
        read_key_file(path)
    reading = KeySource(str(path), tmp_path / "none", {}).read()
    assert reading.key is None
    assert "others can read" in reading.problem
    assert TEXT not in repr(reading)


def test_a_refused_source_does_not_hide_a_good_one(tmp_path: Path) -> None:
    path = write(tmp_path / "key", TEXT, 0o644)
    store_key(tmp_path / "state", Secret("good"))
    reading = KeySource(str(path), tmp_path / "state", {}).read()
    assert reading.key == Secret("good")
    assert str(path) in reading.problem


@pytest.mark.parametrize("make", ["directory", "fifo", "nonsense", "huge"])
def test_a_file_that_holds_no_key_is_named_not_quoted(tmp_path: Path, make: str) -> None:
    path = tmp_path / "key"
    if make == "directory":
        path.mkdir(mode=0o700)
    elif make == "fifo":
        os.mkfifo(path, 0o600)
    else:
        write(path, "this is not a key" if make == "nonsense" else "y" * 3_000_000)
    with pytest.raises(OperatorError) as caught:
        read_key_file(path)
    assert str(path) in str(caught.value)
    assert "this is not a key" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_no_file_and_an_empty_file_are_no_key(tmp_path: Path) -> None:
    assert read_key_file(tmp_path / "none") is None
    assert read_key_file(write(tmp_path / "key", "\n")) is None


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    reading = KeySource("", tmp_path, {"GROQ_API_KEY": "two words"}).read()
    assert reading.key is None
    assert "$GROQ_API_KEY" in reading.problem
    assert "two words" not in reading.problem


def test_a_stored_key_is_the_owners_alone_and_replaced_as_a_whole(tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    previous = os.umask(0)
    try:
        path = store_key(state, Secret("one"))
        store_key(state, Secret("two"))
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    assert path.read_text() == "two\n"
    assert [entry.name for entry in state.iterdir()] == [CREDENTIAL]
    assert remove_key(state) is True
    assert remove_key(state) is False


def test_a_left_over_file_or_a_link_in_the_way_does_not_matter(tmp_path: Path) -> None:
    victim = write(tmp_path / "victim", "mine")
    (tmp_path / f".{CREDENTIAL}.{os.getpid()}").symlink_to(victim)
    store_key(tmp_path, Secret("key"))
    assert victim.read_text() == "mine"
    assert (tmp_path / CREDENTIAL).read_text() == "key\n"


@pytest.mark.skipif(os.getuid() != 0, reason="giving a file to another user needs root")
def test_root_stores_the_key_for_the_services_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12346)
    path = store_key(tmp_path, Secret("key"))
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


def test_where_nothing_can_be_stored_is_said(tmp_path: Path) -> None:
    blocker = write(tmp_path / "file", "x")
    with pytest.raises(StateError, match="cannot be stored"):
        store_key(blocker / "state", Secret("key"))


def test_a_change_of_any_source_is_noticed(tmp_path: Path) -> None:
    state, key_file = tmp_path / "state", tmp_path / "key"
    source = KeySource(str(key_file), state, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    seen = [source.fingerprint()]
    for change in (lambda: store_key(state, Secret("a")), lambda: store_key(state, Secret("b")),
                   lambda: write(key_file, "x"), lambda: key_file.chmod(0o644), lambda: remove_key(state),
                   lambda: write(tmp_path / CREDENTIAL, "c")):
        change()
        assert source.fingerprint() not in seen
        seen.append(source.fingerprint())
    assert source.fingerprint() == seen[-1]
    assert "gsk" not in repr(seen)
