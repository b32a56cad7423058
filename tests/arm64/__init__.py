"""What `scripts/arm64-check` runs in an emulated aarch64 Debian."""
