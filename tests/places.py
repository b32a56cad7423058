"""Where things are: the repository, and the models."""

from __future__ import annotations

import os
from pathlib import Path

from hotpind.config import Config
from hotpind.config.paths import models_dir

TOP = Path(__file__).parents[1]
"""The repository."""


def models_path() -> Path:
    """The models' directory: the one that the environment names, as scripts/test does, or the default one."""
    return Path(os.environ.get("HOTPIN_PATHS__MODELS") or models_dir(Config()))
