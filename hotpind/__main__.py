"""Runs the daemon: ``python -m hotpind``."""

from hotpind.cli.daemon import main

main()
