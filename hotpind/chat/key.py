"""The API key: where it comes from, how it is kept out of sight, and how it is stored.

Sources, the first that has one wins: the systemd credential ``groq_api_key`` (systemd.exec(5),
LoadCredential=), the variable ``GROQ_API_KEY``, the file of the settings, and the file that `hotpinctl key
set` writes into the state directory. The last two are refused when anybody but their owner may read them.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hotpind.errors import OperatorError, StateError
from hotpind.files import sync_directory, write_durably

CREDENTIAL = "groq_api_key"
"""Name of the systemd credential and of the file in the state directory."""
VARIABLE = "GROQ_API_KEY"
SETTING = "chat.groq.key_file"
LONGEST_KEY = 512
"""Characters; Groq's keys have 56."""


class Secret:
    """A text that never shows itself: not when printed, formatted, logged, compared by hash, copied or
    pickled.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Return the text itself, for the one place that sends it."""
        return self.__text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __str__(self) -> str:
        return "(hidden)"

    def __format__(self, spec: str) -> str:
        return "(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.__text.encode(), other.__text.encode())

    __hash__ = None  # type: ignore[assignment]  # a hash would end up in a table, and tables in dumps

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")


@dataclass(frozen=True, slots=True)
class KeyReading:
    """What the sources hold now."""

    key: Secret | None
    source: str = ""
    """Where the key came from, in words."""
    problem: str = ""
    """One sentence about a source that was passed over."""


def checked_key(text: str) -> Secret:
    """Return a key without the space around it.

    Raises `OperatorError` when it cannot be a key.
    """
    text = text.strip()
    if not text:
        raise OperatorError("the API key is empty; copy it from https://console.groq.com/keys")
    # Anything else could not go into an HTTP header.
    if len(text) > LONGEST_KEY or not all("!" <= letter <= "~" for letter in text):
        raise OperatorError("this is not an API key: a key is one word of plain letters, digits and signs; "
                            "copy it again from https://console.groq.com/keys")
    return Secret(text)


class KeySource:
    """Looks for the key; all methods read files, so call them in a thread."""

    def __init__(self, key_file: str, state: Path, environ: Mapping[str, str] = os.environ) -> None:
        """``key_file`` is the value of `SETTING`; ``state`` the state directory."""
        self._environ = environ
        self._key_file = Path(key_file).expanduser() if key_file else None
        self._stored = state / CREDENTIAL
        directory = environ.get("CREDENTIALS_DIRECTORY")
        self._credential = Path(directory) / CREDENTIAL if directory else None

    def read(self) -> KeyReading:
        """Return the key that counts now; never raises for a missing or bad source, but names it."""
        problems: list[str] = []
        for words, path, guarded in self._files():
            try:
                key = self._key_in(words, path, guarded=guarded)
            except OperatorError as error:
                problems.append(str(error))
                continue
            except OSError as error:
                problems.append(f"{path}: the API key cannot be read ({error.strerror}).")
                continue
            if key is not None:
                return KeyReading(key, words, " ".join(problems))
        return KeyReading(None, "", " ".join(problems))

    def fingerprint(self) -> tuple[object, ...]:
        """Return something that differs once any source has changed, without reading a key."""
        return tuple(file_mark(path) for _, path, _ in self._files() if path is not None)

    def _key_in(self, words: str, path: Path | None, *, guarded: bool) -> Secret | None:
        if path is None:
            return _variable(self._environ)
        if words == SETTING:
            return read_configured_key(path, setting=SETTING)
        return read_key_file(path, guarded=guarded)

    def _files(self) -> list[tuple[str, Path | None, bool]]:
        """List (words, file or None for the variable, whether its permissions matter) in order of
        precedence.
        """
        # systemd itself guards the credential's directory.
        credential: list[tuple[str, Path | None, bool]] = (
            [("the systemd credential", self._credential, False)] if self._credential else [])
        stored: tuple[str, Path | None, bool] = ("the state directory", self._stored, True)
        others: list[tuple[str, Path | None, bool]] = [(f"${VARIABLE}", None, False)]
        if self._key_file:
            others.append((SETTING, self._key_file, True))
        # A running service keeps the credential it was started with; a key set (or removed, leaving an empty
        # file) since then is the newer truth.
        if self._credential and _newer(self._stored, self._credential):
            return [stored, *others]
        return [*credential, *others, stored]


def _variable(environ: Mapping[str, str]) -> Secret | None:
    text = environ.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        return checked_key(text)
    except OperatorError:
        raise OperatorError(f"${VARIABLE} does not hold an API key; set it to one or unset it") from None


def _newer(file: Path, than: Path) -> bool:
    try:
        return file.stat().st_mtime_ns > than.stat().st_mtime_ns
    except OSError:
        return False


def file_mark(path: Path) -> object:
    """Return something that differs once the file has changed, come or gone."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino, info.st_mode


def read_configured_key(path: Path, *, setting: str) -> Secret:
    """Return the key in a file that somebody named in ``setting``, so that it has to be there.

    Raises `OperatorError` as `read_key_file` does, and when there is no key.
    """
    key = read_key_file(path)
    if key is None:
        raise OperatorError(f"{path}: there is no API key, although {setting} names this file; put the key there "
                            "or take the setting away")
    return key


def read_key_file(path: Path, *, guarded: bool = True) -> Secret | None:
    """Return the key in a file; None when there is no such file or it is empty.

    Raises `OperatorError` when it cannot be read, holds no key, or (``guarded``) others may read it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperatorError(f"{path}: the API key cannot be read ({error.strerror}); make the file readable "
                            "for the service's user") from None
    try:
        # The permissions of what was opened, not of what the name stands for a moment later.
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise OperatorError(f"{path}: this is not a file; put the API key into a file")
        if guarded and info.st_mode & 0o077:
            raise OperatorError(f"{path}: others can read the API key, so it is not used; "
                                f"run `chmod 600 {path}`")
        text = os.read(descriptor, 4 * LONGEST_KEY).decode("utf-8", "replace")
    finally:
        os.close(descriptor)
    if not text.strip():
        return None
    try:
        return checked_key(text)
    except OperatorError:
        raise OperatorError(f"{path}: this file does not hold an API key, which is one word of plain letters, digits "
                            "and signs; copy the key into it again") from None


def store_key(state: Path, key: Secret | None) -> Path:
    """Write the key into the state directory, readable by the directory's owner only, and return the file.

    The file is replaced as a whole, so a running service reads the old key or the new one. None writes an empty
    file, which says that the key was taken away. Raises `StateError`.
    """
    path = state / CREDENTIAL
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = state.stat()
        owner = (info.st_uid, info.st_gid) if os.geteuid() == 0 else None
        write_durably(path, (key.reveal() if key else "").encode() + b"\n", 0o600, owner=owner)
    except OSError as error:
        raise StateError(f"{path}: the API key cannot be stored ({error.strerror}); run the command as root "
                         "or as the service's user") from None
    return path


def remove_key(state: Path) -> bool:
    """Remove the stored key and return whether there was one.

    Raises `StateError` when it cannot be removed.
    """
    path = state / CREDENTIAL
    try:
        path.unlink()
        sync_directory(state)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StateError(f"{path}: the API key cannot be removed ({error.strerror}); run the command as root "
                         "or as the service's user") from None
    return True
