"""The commands: `hotpind` and `hotpinctl`."""
