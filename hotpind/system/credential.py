"""The credential that systemd hands to the service: a copy, made at the start.

systemd 252 makes it anew for a reload as well; not every version does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

CREDENTIAL = "groq_api_key"
PACKAGED_KEY = Path("/etc/hotpin/groq_api_key")
"""What the unit's LoadCredential= copies."""


def waits_for_restart(file: Path, state: Path, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether somebody has written ``file`` by hand since the service got its copy.

    `hotpinctl key set` writes the file and after it the one in the directory ``state``, which a running service reads.
    Looks at times only: the service may not read the file itself. Blocks.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return False
    changed = _changed(file)
    return changed > max(_changed(Path(directory) / CREDENTIAL), _changed(state / CREDENTIAL))


def _changed(path: Path) -> int:
    """Return when a file was changed in nanoseconds since 1970, or 0 when there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
