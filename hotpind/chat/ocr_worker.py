"""The child process that reads text in pictures; see `hotpind.chat.ocr` for the protocol."""

from __future__ import annotations

import os
import struct
import sys
from typing import BinaryIO

LARGEST_PICTURE = 16_000_000
LEAST_CONFIDENCE = 0.6
"""Below this the reader guesses at textures."""


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer each JPEG with its text until the input ends; an empty picture is answered with no text."""
    from rapidocr_onnxruntime import RapidOCR

    engine = RapidOCR(intra_op_num_threads=2, inter_op_num_threads=1)
    while len(head := source.read(4)) == 4:
        (size,) = struct.unpack("!I", head)
        if size > LARGEST_PICTURE:
            return
        jpeg = source.read(size)
        if len(jpeg) < size:
            return
        text = b""
        if jpeg:
            try:
                lines, _ = engine(jpeg)
            except Exception:  # noqa: BLE001  # what no decoder understands has no text; loading anew would take seconds
                lines = None
            text = "\n".join(line for _, line, confidence in lines or []
                             if float(confidence) >= LEAST_CONFIDENCE).encode("utf-8", "replace")[:60_000]
        sink.write(struct.pack("!I", len(text)) + text)
        sink.flush()


def main() -> None:
    """Serve on the standard streams; whatever the libraries print goes nowhere."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Speaking and hearing come first.
    os.nice(10)
    serve(sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
