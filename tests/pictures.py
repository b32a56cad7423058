"""Pictures for the tests, as JPEG files of a given size."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encoded(image: Image.Image, *, quality: int = 90, kind: str = "JPEG") -> bytes:
    """Return a picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def plain(width: int = 640, height: int = 480, colour: str | tuple[int, int, int] = "red", *,
          quality: int = 90) -> bytes:
    """Make a picture of one colour: small as a file."""
    return encoded(Image.new("RGB", (width, height), colour), quality=quality)


def noise(width: int = 640, height: int = 480, *, seed: int = 1, quality: int = 90) -> bytes:
    """Make a picture of noise, one per seed: large as a file, and with details that a smaller copy cannot have."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(pixels), quality=quality)
