"""Typed, validated settings from TOML, the environment and systemd's directories."""

from hotpind.config.load import load_config, load_config_file
from hotpind.config.schema import Config

__all__ = ["Config", "load_config", "load_config_file"]
