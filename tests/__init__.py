"""Tests, by area. Packages, so that modules of different areas may have the same name."""
