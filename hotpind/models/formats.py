"""Recognises model files, and sees that they are whole, without loading them.

Only headers are read, so a check takes milliseconds whatever the size of the file. Formats:

- ggml, the whisper.cpp file described in `hotpind.models.convert_whisper`; - GGUF versions 2 and 3 (ggml's
``docs/gguf.md``), little-endian: magic ``GGUF``, u32 version, u64 tensors, u64 key-value pairs; pairs of a
string key, u32 type and value; for each tensor a string name, u32 rank, u64 per dimension, u32 element type,
u64 offset into the data, which begins at the next multiple of the alignment; - ONNX, a protocol-buffers
message ``ModelProto`` whose field 7 is the graph; - the JSON file that belongs to a Piper voice.
"""

from __future__ import annotations

import json
import mmap
import struct
from math import prod
from pathlib import Path

from hotpind.errors import ModelFileError
from hotpind.models.catalogue import Role

GGML_MAGIC = 0x67676D6C

BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1),
    25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66),
    39: (32, 17),
}
"""Values in a block and bytes of it, by element type (ggml_type); other types are not measured."""

_GGUF_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the type of a GGUF pair."""
_GGUF_U32, _GGUF_STRING, _GGUF_ARRAY = 4, 8, 9
_GGUF_ALIGNMENT = 32
_MAX_RANK = 8
_PROJECTOR_ARCHITECTURE = "clip"
_ONNX_GRAPH = 7


def check_model_file(path: Path, role: Role) -> None:
    """See that ``path`` is a whole model file for ``role``. Raises `ModelFileError`."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ModelFileError(f"{path} is empty; fetch it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _CHECKS[role](path, data)
    except FileNotFoundError:
        raise ModelFileError(f"there is no file {path}; check the path in the settings") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    except (struct.error, OverflowError, _NotWholeError):
        raise ModelFileError(
            f"{path} is truncated or damaged: its header promises more than its {path.stat().st_size} bytes; "
            f"fetch it again") from None


def check_voice_config(path: Path) -> None:
    """See that ``path`` is the JSON file of a Piper voice. Raises `ModelFileError`."""
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelFileError(f"there is no file {path}, which belongs beside the voice; fetch it too") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON ({error}); fetch it again") from None
    audio = config.get("audio") if isinstance(config, dict) else None
    if not isinstance(audio, dict) or not isinstance(audio.get("sample_rate"), int) or "phoneme_id_map" not in config:
        raise ModelFileError(f"{path} is not the configuration of a Piper voice: audio.sample_rate or "
                             f"phoneme_id_map is missing; fetch the file that belongs to the voice")


class _NotWholeError(Exception):
    """The file ends before what its header promises."""


def _refuse_magic(path: Path, data: mmap.mmap, wanted: str) -> ModelFileError:
    return ModelFileError(f"{path} is not {wanted}: it begins with {bytes(data[:4])!r}; "
                          f"set a file of that kind or a name of `hotpinctl models list`")


def _check_ggml(path: Path, data: mmap.mmap) -> None:
    if data[:4] != struct.pack("<I", GGML_MAGIC):
        raise _refuse_magic(path, data, "a Whisper model in ggml format (b'lmgg')")
    at = 4 + 11 * 4
    bands, columns = struct.unpack_from("<2i", data, at)
    at += 8 + _positive(bands) * _positive(columns) * 4
    (tokens,) = struct.unpack_from("<i", data, at)
    at += 4
    for _ in range(tokens):
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
    tensors = 0
    while at < len(data):
        rank, name_length, kind = struct.unpack_from("<3i", data, at)
        if not 0 < rank <= _MAX_RANK or not 0 < name_length < 256 or kind not in BLOCKS:
            raise ModelFileError(f"{path} is damaged: there is no tensor at byte {at}; fetch it again")
        shape = struct.unpack_from(f"<{rank}i", data, at + 12)
        at += 12 + 4 * rank + name_length + _bytes_of(shape, kind)
        tensors += 1
    if at != len(data) or tensors == 0:
        raise _NotWholeError


def _check_gguf(path: Path, data: mmap.mmap, *, projector: bool) -> None:
    wanted = "a vision projector in GGUF format" if projector else "a language model in GGUF format"
    if data[:4] != b"GGUF":
        raise _refuse_magic(path, data, f"{wanted} (b'GGUF')")
    version, tensors, pairs = struct.unpack_from("<IQQ", data, 4)
    if version not in {2, 3}:
        raise ModelFileError(f"{path} is GGUF version {version}, but only 2 and 3 can be used; fetch a newer file")
    at, alignment, architecture = 24, _GGUF_ALIGNMENT, ""
    for _ in range(pairs):
        key, at = _gguf_string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        value_at, at = at + 4, _gguf_skip(data, at + 4, kind)
        if key == "general.alignment" and kind == _GGUF_U32:
            (alignment,) = struct.unpack_from("<I", data, value_at)
        elif key == "general.architecture" and kind == _GGUF_STRING:
            architecture, _ = _gguf_string(data, value_at)
    if (architecture == _PROJECTOR_ARCHITECTURE) != projector:
        raise ModelFileError(f"{path} is not {wanted}: its architecture is {architecture[:40]!r}; "
                             f"check which of the two files the setting names")
    if tensors == 0 or alignment == 0:
        raise ModelFileError(f"{path} is damaged: it has no tensors; fetch it again")
    at, size = _gguf_tensors(path, data, at, tensors)
    if -(-at // alignment) * alignment + size > len(data):
        raise _NotWholeError


def _gguf_tensors(path: Path, data: mmap.mmap, at: int, count: int) -> tuple[int, int]:
    """Read the tensors' descriptions; return where they end and the bytes of data that they need."""
    size = 0
    for _ in range(count):
        _, at = _gguf_string(data, at)
        (rank,) = struct.unpack_from("<I", data, at)
        if rank > _MAX_RANK:
            raise ModelFileError(f"{path} is damaged: there is no tensor at byte {at}; fetch it again")
        shape = struct.unpack_from(f"<{rank}Q", data, at + 4)
        kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * rank)
        at += 16 + 8 * rank
        size = max(size, offset + _bytes_of(shape, kind))
    return at, size


def _gguf_string(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise _NotWholeError
    return data[at + 8:end].decode(errors="replace"), end


def _gguf_skip(data: mmap.mmap, at: int, kind: int) -> int:
    """Return where the value of type ``kind`` at ``at`` ends."""
    if kind in _GGUF_SCALARS:
        return at + _GGUF_SCALARS[kind]
    if kind == _GGUF_STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        return int(at + 8 + length)
    if kind != _GGUF_ARRAY:
        raise _NotWholeError
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _GGUF_SCALARS:
        return int(at + count * _GGUF_SCALARS[inner])
    if inner != _GGUF_STRING:
        raise _NotWholeError
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
    return at


def _bytes_of(shape: tuple[int, ...], kind: int) -> int:
    """Return the bytes of a tensor; 0 when its element type is not known."""
    values, size = BLOCKS.get(kind, (1, 0))
    return prod(map(_positive, shape)) // values * size


def _positive(value: int) -> int:
    if value <= 0:
        raise _NotWholeError
    return value


def _check_onnx(path: Path, data: mmap.mmap) -> None:
    at, graph = 0, False
    # ir_version, the first field that every exporter writes.
    if data[0] != 0x08:
        raise _refuse_magic(path, data, "a voice in ONNX format (b'\\x08')")
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(data, at)
                at += length
                graph = graph or tag >> 3 == _ONNX_GRAPH
            case 5:
                at += 4
            case _:
                raise _NotWholeError
    if at != len(data) or not graph:
        raise _NotWholeError


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _NotWholeError
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _NotWholeError


def _check_language_model(path: Path, data: mmap.mmap) -> None:
    _check_gguf(path, data, projector=False)


def _check_projector(path: Path, data: mmap.mmap) -> None:
    _check_gguf(path, data, projector=True)


_CHECKS = {
    Role.STT: _check_ggml,
    Role.TTS: _check_onnx,
    Role.LLM: _check_language_model,
    Role.VISION_PROJECTOR: _check_projector,
}
