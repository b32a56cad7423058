"""Fetches files from the Hugging Face hub, going on where an earlier attempt stopped.

`huggingface_hub` says where a file is, how large and with what digest, and lends its HTTP client (endpoint,
token, proxy, certificates). Its own `hf_hub_download` is not used for the transfer: it writes to a file of a
random name that is removed on failure, so that nothing can be resumed by the next process, and it does not
compare digests.

What is received is kept as ``<file>.<beginning of its digest>.part``: the name ties it to the content, so a
file that changed on the server is never patched together from two versions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import get_hf_file_metadata, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hotpind.errors import ModelFileError
from hotpind.models.catalogue import FileEntry, HubSource
from hotpind.models.files import GIT_SHA1, check_content

DEFAULT_ENDPOINT = "https://huggingface.co"
LOOK_UP_TIMEOUT_S = 15.0
STALL_TIMEOUT_S = 30.0
"""Longest wait for the next bytes before the connection is given up and made anew."""
ATTEMPTS = 5
"""Attempts in a row that may bring nothing new before the download is given up."""
REPORT_EVERY_S = 0.1
_READ_BYTES = 1 << 16
_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}

# The library changed its HTTP client between versions (httpx, httpx2); its own error inherits the client's.
_HttpError: type[Exception] = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the hub states about a file."""

    url: str
    """Where the bytes are, often on another host and only for an hour."""
    size: int
    """Bytes."""
    algorithm: str
    """"sha256" for large files, `GIT_SHA1` for small ones."""
    digest: str
    """Hexadecimal."""
    commit: str
    """Commit of the repository that the revision stands for now."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was received and compared with everything known about it."""

    part: Path
    sha256: str
    commit: str = ""


def endpoint() -> str:
    """Address of the hub: $HF_ENDPOINT or the public one. Raises `ModelFileError`."""
    address = os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ModelFileError(f"HF_ENDPOINT is {address!r}, which is not an address such as {DEFAULT_ENDPOINT}")
    return address


class HubFile:
    """One file of a repository on the hub. All methods block."""

    def __init__(self, source: HubSource, file: FileEntry, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._source = source
        self._file = file
        self._endpoint = endpoint()
        self._host = urlsplit(self._endpoint).hostname or ""
        self._sleep = sleep

    @property
    def _shown(self) -> str:
        return f"{self._file.source_path} of {self._source.repository} on {self._host}"

    def look_up(self) -> RemoteFile:
        """Ask the hub about the file. Raises `ModelFileError` if it is not there or has no digest."""
        url = hf_hub_url(self._source.repository, self._file.source_path, revision=self._source.revision,
                         endpoint=self._endpoint)
        try:
            stated = get_hf_file_metadata(url, timeout=LOOK_UP_TIMEOUT_S, endpoint=self._endpoint)
        except GatedRepoError:
            raise ModelFileError(f"{self._shown} is only given out after its licence is accepted on "
                                 f"{self._host}; accept it and set HF_TOKEN") from None
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
            raise ModelFileError(f"there is no {self._shown} (revision {self._source.revision}); it may have "
                                 f"been moved: choose another model of `hotpinctl models list`") from None
        except OfflineModeIsEnabled:
            raise ModelFileError(f"{self._shown} is not fetched because HF_HUB_OFFLINE is set; "
                                 f"unset it") from None
        except _HttpError as error:
            raise _HubUnreachableError(self._unreachable(error)) from None
        digest = (stated.etag or "").lower()
        algorithm = {64: "sha256", 40: GIT_SHA1}.get(len(digest))
        if algorithm is None or not stated.size:
            raise ModelFileError(f"{self._host} states no digest or size for {self._shown}, so it cannot be "
                                 f"checked; set HF_ENDPOINT to a complete mirror")
        return RemoteFile(url=stated.location, size=stated.size, algorithm=algorithm, digest=digest,
                          commit=stated.commit_hash or "")

    def fetch(self, remote: RemoteFile, directory: Path, expected: Mapping[str, str],
              on_bytes: Callable[[int, int], None], on_check: Callable[[int, int], None]) -> Fetched:
        """Bring the file into ``directory`` and compare it with ``remote`` and the ``expected`` digests.

        ``on_bytes`` and ``on_check`` take the bytes received or hashed and the size. Raises `ModelFileError`,
        after which what was received is still there unless it was wrong, and `OSError` of the disk.
        """
        part = directory / f"{self._file.name}.{remote.digest[:16]}.part"
        self._forget_others(directory, part)
        digests = {**expected, remote.algorithm: remote.digest}
        while True:
            resumed = part.exists() and part.stat().st_size > 0
            self._receive(remote, part, on_bytes)
            try:
                sha256 = check_content(
                    part, shown=f"{self._file.name} as received from {self._host}", size=remote.size,
                    digests=digests, report=on_check,
                    remedy="it was discarded: run the same command again, and if it stays so, do not trust the "
                           "server")
            except ModelFileError:
                part.unlink()
                if resumed:
                    # A power cut may have left a hole in what an earlier attempt wrote.
                    continue
                raise
            return Fetched(part, sha256, remote.commit)

    def _forget_others(self, directory: Path, part: Path) -> None:
        for other in directory.glob(f"{self._file.name}.*.part"):
            if other != part:
                other.unlink()

    def _receive(self, remote: RemoteFile, part: Path, on_bytes: Callable[[int, int], None]) -> None:
        """Append to ``part`` until it has the stated size."""
        fruitless = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            if before == remote.size:
                return
            try:
                self._transfer(remote, part, on_bytes)
            except (_HubUnreachableError, _HttpError) as error:
                received = part.stat().st_size if part.exists() else 0
                fruitless = 0 if received > before else fruitless + 1
                if fruitless >= ATTEMPTS:
                    raise ModelFileError(
                        f"{self._unreachable(error)}; {received} of {remote.size} bytes are kept, run the same "
                        f"command again to go on") from None
                self._sleep(min(2.0 ** fruitless, 15.0))
                # The address of the bytes may have run out meanwhile; if the hub is away too, the old one is tried.
                with suppress(_HubUnreachableError):
                    remote = self._same(remote, self.look_up())

    def _same(self, before: RemoteFile, now: RemoteFile) -> RemoteFile:
        if (now.digest, now.size) != (before.digest, before.size):
            raise ModelFileError(f"{self._shown} was changed while it was downloaded; run the same command again")
        return now

    def _transfer(self, remote: RemoteFile, part: Path, on_bytes: Callable[[int, int], None]) -> None:
        """Make one request for what is missing of ``part``."""
        have = part.stat().st_size if part.exists() else 0
        if have > remote.size:
            part.unlink()
            have = 0
        with get_session().stream("GET", remote.url, headers=self._headers(remote.url, have),
                                  timeout=STALL_TIMEOUT_S) as response:
            if response.status_code == 416:
                part.unlink(missing_ok=True)
                raise _HubUnreachableError(f"{self._host} does not know the rest of {self._file.name}")
            if response.status_code in _RETRY_STATUS:
                raise _HubUnreachableError(f"{self._host} answered {response.status_code}")
            if response.status_code >= 400:
                raise ModelFileError(f"{self._host} answered {response.status_code} for {self._shown}; "
                                     f"try again later or set HF_ENDPOINT to a mirror")
            begin = f"bytes {have}-"
            if have and not (response.status_code == 206
                             and response.headers.get("Content-Range", "").startswith(begin)):
                # The server sends the whole file instead of the rest.
                have = 0
            last_report = 0.0
            with part.open("r+b" if part.exists() else "wb") as file:
                file.seek(have)
                file.truncate()
                for chunk in response.iter_bytes(_READ_BYTES):
                    have += len(chunk)
                    if have > remote.size:
                        raise ModelFileError(f"{self._host} sent more than the {remote.size} bytes that it stated "
                                             f"for {self._file.name}; run the same command again")
                    file.write(chunk)
                    now = time.monotonic()
                    if now - last_report >= REPORT_EVERY_S or have == remote.size:
                        last_report = now
                        on_bytes(have, remote.size)
        if have < remote.size:
            raise _HubUnreachableError(f"{self._host} ended the transfer of {self._file.name} early")

    def _headers(self, url: str, have: int) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        # The token is for the hub alone, not for the storage host that it points to.
        at_hub = urlsplit(url)[:2] == urlsplit(self._endpoint)[:2]
        if at_hub and (token := get_token()):
            headers["Authorization"] = f"Bearer {token}"
        if have:
            headers["Range"] = f"bytes={have}-"
        return headers

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, _HubUnreachableError):
            return str(error)
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return f"{self._host} cannot be reached for {self._file.name} ({reason})"


class _HubUnreachableError(ModelFileError):
    """The server did not give what was asked for; asking again may help."""
