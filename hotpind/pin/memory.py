"""What a pin remembers across restarts: its appliance's address, its token, and the certificate's fingerprint."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from hotpind.errors import PinError
from hotpind.files import write_durably


@dataclass(frozen=True, slots=True)
class Memory:
    """One pin's knowledge of its appliance; every field may be empty."""

    address: str = ""
    """Base URL that worked last."""
    appliance_id: str = ""
    name: str = ""
    """The appliance's name, for people."""
    token: str = ""
    fingerprint: str = ""
    """SHA-256 of the appliance's certificate in hexadecimal digits, for https addresses."""


def memory_file(session_id: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the pin of this session keeps its memory: ``$XDG_STATE_HOME/hotpin/pins/<session>.json``."""
    home = environ.get("XDG_STATE_HOME", "")
    state = Path(home) if Path(home).is_absolute() else Path(environ.get("HOME") or "/root") / ".local/state"
    return state / "hotpin" / "pins" / f"{quote(session_id, safe='')}.json"


def load_memory(path: Path) -> Memory:
    """Read a pin's memory; a file that is not there is an empty one. Blocking. Raises `PinError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(Memory)}
        texts = {key: value for key, value in content.items() if key in known and isinstance(value, str)}
        return Memory(**texts)
    except FileNotFoundError:
        return Memory()
    except OSError as error:
        raise PinError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, AttributeError):
        raise PinError(f"{path}: is not what a pin remembered; delete it and pair the pin again.") from None


def save_memory(path: Path, memory: Memory) -> None:
    """Write a pin's memory, for its owner's eyes only (0600). Blocking. Raises `PinError`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, json.dumps(dataclasses.asdict(memory), indent=2).encode() + b"\n", 0o600)
    except OSError as error:
        raise PinError(f"{path}: cannot be written: {error.strerror}.") from None
