"""The appliance's own identity: an id made once, and the administrator's secret.

Each is a file of the state directory.
"""

from __future__ import annotations

import logging
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from hotpind.devices.device import TOKEN_BYTES
from hotpind.errors import StateError
from hotpind.files import write_durably

ID_FILE = "appliance-id"
SECRET_FILE = "admin-secret"  # noqa: S105 - a file's name

_ID_BYTES = 6
_ID = re.compile(rf"[0-9a-f]{{{2 * _ID_BYTES}}}")
_SECRET = re.compile(r"[\x21-\x7e]{16,256}")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this appliance is."""

    appliance_id: str
    """Twelve hexadecimal digits; survives updates, reinstallation and changes of name."""
    admin_secret: str
    """Bearer token of the administrator over TCP.

    A person may put another one in the file: 16 to 256 ASCII characters without spaces.
    """

    @property
    def host_name(self) -> str:
        """Own name for mDNS, without the closing dot; never the machine's, which avahi may hold."""
        return f"hotpin-{self.appliance_id}.local"


def load_identity(directory: Path) -> Identity:
    """Read the identity from the state directory, making what is missing. Blocking.

    A file that holds nothing usable (a power cut while another program wrote it) is made anew, with a
    warning. Raises `StateError` when the directory cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Identity(_text(directory / ID_FILE, _ID, _ID_BYTES, 0o644),
                        _text(directory / SECRET_FILE, _SECRET, TOKEN_BYTES, 0o600))
    except OSError as error:
        raise StateError(f"{error.filename or directory}: cannot be used ({error.strerror}); "
                         "check the state directory's owner, mode and free space") from None


def _text(path: Path, expected: re.Pattern[str], random_bytes: int, mode: int) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            text = file.read(1024).strip()
    except FileNotFoundError:
        pass
    else:
        if expected.fullmatch(text):
            if path.stat().st_mode & 0o777 & ~mode:
                path.chmod(mode)
            return text
        _LOGGER.warning("%s: does not hold what it should; a new one is made", path)
    text = secrets.token_hex(random_bytes)
    write_durably(path, (text + "\n").encode("ascii"), mode)
    return text
