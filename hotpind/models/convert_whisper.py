"""Turns a Whisper model from CTranslate2's format into the ggml format that whisper.cpp reads.

The input, a ``model.bin`` of CTranslate2's binary version 6, little-endian: u32 version, string name of the
model's specification, u32 revision of it, u32 number of variables; each variable is a string name, u8 rank,
u32 per dimension, u8 element type (0 float32, 1 int8, 2 int16, 3 int32, 4 float16), u32 bytes of data, data;
then a list of aliases. A string is a u16 length, which counts the closing zero byte, and its bytes. Some
matrices are stacked along the first axis: ``self_attention/linear_0`` is query, key and value, the decoder's
``attention/linear_1`` (attention to the audio) key and value, with the query in ``linear_0`` and the output
in ``linear_2``.

The output, as whisper.cpp's loader expects it, little-endian: u32 magic; eleven i32 (tokens; audio context,
width, heads, layers; text context, width, heads, layers; mel bands; element type of the weights); the mel
filter bank (i32 rows, i32 columns, float32 values); the text tokens (i32 count; each an i32 length and its
bytes); then tensors until the end of the file: i32 rank, i32 length of the name, i32 element type, i32 per
dimension (innermost first), name, data. Vectors, positional embeddings and convolution biases, which have a
trailing dimension of one, are float32. Tensors have the names of OpenAI's own checkpoints.

Weights are kept as float16 or quantised to q8_0: blocks of 32 values along a row, a float16 scale (the
largest magnitude / 127) followed by 32 int8.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from hotpind.errors import ModelFileError
from hotpind.models.formats import GGML_MAGIC

Array = npt.NDArray[Any]
WeightFormat = Literal["f16", "q8_0"]

SAMPLE_RATE = 16_000
"""Hz; fixed by Whisper."""
FFT_SIZE = 400
"""Samples of one analysis window; fixed by Whisper."""

_F32, _F16, _Q8_0 = 0, 1, 8
"""Element types of a tensor (ggml_type)."""
_FILE_TYPE: dict[WeightFormat, int] = {"f16": 1, "q8_0": 7 + 2 * 1000}
"""Element type in the header (ggml_ftype), plus 1000 times the version of the quantisation, 2."""
_BLOCK = 32
_ROWS_AT_ONCE = 4096
"""Rows quantised in one go: bounds memory to a few megabytes."""

_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_BINARY_VERSION = 6
_START_OF_TRANSCRIPT = "<|startoftranscript|>"
"""The first token that is not text in Whisper's vocabulary."""


def convert_whisper(weights: Path, vocabulary: Path, out: BinaryIO, weight_format: WeightFormat,
                    report: Callable[[int, int], None] = lambda _done, _total: None) -> None:
    """Write the ggml form of a CTranslate2 Whisper model to ``out``, the same bytes every time.

    ``weights`` is CTranslate2's model.bin with float16 or float32 weights, ``vocabulary`` its vocabulary.txt
    (a token a line, in GPT-2's printable form). ``report`` takes the tensors written and their number.
    Resident memory stays within the size of ``weights`` and some 30 MB. Raises `ModelFileError` when the
    input is not such a model.
    """
    try:
        source = _Source(np.memmap(weights, mode="r", dtype=np.uint8))
        shape = _shape_of(source)
        _write_header(out, shape, _text_tokens(vocabulary), weight_format)
        tensors = list(_tensors(source, shape))
        for number, (name, load) in enumerate(tensors, start=1):
            _write_tensor(out, name, load(), weight_format)
            report(number, len(tensors))
    except (struct.error, KeyError, IndexError, UnicodeDecodeError, ValueError) as error:
        raise ModelFileError(f"{weights} is not a Whisper model of CTranslate2 that can be converted "
                             f"({type(error).__name__}: {error}); remove it and fetch it again") from None


def mel_filters(bands: int) -> npt.NDArray[np.float32]:
    """Compute Whisper's mel filter bank: float32, ``bands`` x 201 frequencies from 0 to 8 kHz.

    Triangles whose corners lie evenly on Slaney's mel scale (linear to 1 kHz, 200/3 Hz a mel, then
    logarithmic, 27 steps from 1 to 6.4 kHz), each divided by half its width in Hz so that all have the same
    area.
    """
    hz_per_mel, knee_hz, log_step = 200.0 / 3, 1000.0, np.log(6.4) / 27
    knee_mel = knee_hz / hz_per_mel
    top_mel = knee_mel + np.log(SAMPLE_RATE / 2 / knee_hz) / log_step
    mels = np.linspace(0.0, top_mel, bands + 2)
    corners = np.where(mels < knee_mel, mels * hz_per_mel, knee_hz * np.exp(log_step * (mels - knee_mel)))
    distance = corners[:, None] - np.linspace(0.0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)[None, :]
    widths = np.diff(corners)[:, None]
    rising, falling = -distance[:-2] / widths[:-1], distance[2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    # The outermost corners: all triangles are 0 there, but rounding might leave a trace of a machine's own.
    triangles[:, [0, -1]] = 0
    area: Array = 2.0 / (corners[2:] - corners[:-2])
    return (triangles * area[:, None]).astype(np.float32)


def quantise_q8_0(rows: Array) -> npt.NDArray[np.uint8]:
    """Quantise float rows (n x a multiple of 32) to ggml's q8_0: uint8, n x (34 bytes for each 32 values)."""
    count, width = rows.shape
    if width % _BLOCK:
        raise ValueError(f"rows of {width} values cannot be cut into blocks of {_BLOCK}")
    blocks = rows.astype(np.float32).reshape(-1, _BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = blocks * inverse
    # C's roundf: halves away from zero, where numpy rounds them to even.
    whole = np.trunc(scaled)
    rounded = whole + np.trunc(2 * (scaled - whole))
    packed = np.empty((len(blocks), 2 + _BLOCK), np.uint8)
    packed[:, :2] = scale.astype("<f2").view(np.uint8)
    packed[:, 2:] = rounded.astype(np.int8).view(np.uint8)
    return packed.reshape(count, -1)


class _Source:
    """The variables of a CTranslate2 file, read in place."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self._data = data.data
        self._at = 0
        (version,) = self._take("I")
        if version != _BINARY_VERSION:
            raise ValueError(f"binary version {version} instead of {_BINARY_VERSION}")
        if (spec := self._string()) != "WhisperSpec":
            raise ValueError(f"specification {spec[:40]!r} instead of 'WhisperSpec'")
        _revision, count = self._take("II")
        self._places: dict[str, tuple[tuple[int, ...], str, int]] = {}
        for _ in range(count):
            name = self._string()
            (rank,) = self._take("B")
            shape = self._take(f"{rank}I")
            kind, size = self._take("BI")
            dtype = _DTYPES[kind]
            if size != int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize:
                raise ValueError(f"variable {name} has {size} bytes, which does not fit its shape {shape}")
            if self._at + size > len(data):
                raise ValueError(f"variable {name} goes past the end of the file")
            self._places[name] = (shape, dtype, self._at)
            self._at += size

    def __getitem__(self, name: str) -> Array:
        shape, dtype, offset = self._places[name]
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._data, dtype, count, offset).reshape(shape)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def weight(self, name: str) -> Array:
        """Return a variable that must be floating point: int8 weights would need their scales."""
        values = self[name]
        if values.dtype.kind != "f":
            raise ValueError(f"variable {name} is {values.dtype}, but only floating point can be converted")
        return values

    def _take(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(f"<{layout}", self._data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def _string(self) -> str:
        (length,) = self._take("H")
        raw = self._data[self._at:self._at + length].tobytes()
        if length == 0 or len(raw) != length or raw[-1] != 0:
            raise ValueError(f"no string at byte {self._at}")
        self._at += length
        return raw[:-1].decode()


@dataclass(frozen=True, slots=True)
class _Shape:
    """What whisper.cpp calls the hyper-parameters, but for the element type."""

    tokens: int
    audio_context: int
    audio_width: int
    audio_heads: int
    audio_layers: int
    text_context: int
    text_width: int
    text_heads: int
    text_layers: int
    mel_bands: int


def _shape_of(source: _Source) -> _Shape:
    tokens, text_width = source["decoder/embeddings/weight"].shape
    audio_context, audio_width = source["encoder/position_encodings/encodings"].shape
    return _Shape(
        tokens=tokens,
        audio_context=audio_context,
        audio_width=audio_width,
        audio_heads=int(source["encoder/num_heads"]),
        audio_layers=_layers(source, "encoder"),
        text_context=source["decoder/position_encodings/encodings"].shape[0],
        text_width=text_width,
        text_heads=int(source["decoder/num_heads"]),
        text_layers=_layers(source, "decoder"),
        mel_bands=source["encoder/conv1/weight"].shape[1],
    )


def _layers(source: _Source, side: str) -> int:
    count = 0
    while f"{side}/layer_{count}/ffn/layer_norm/gamma" in source:
        count += 1
    return count


def _text_tokens(vocabulary: Path) -> list[bytes]:
    """Read the tokens that stand for text, as the bytes they stand for."""
    lines = vocabulary.read_text(encoding="utf-8").split("\n")
    byte_of = _gpt2_bytes()
    return [bytes(byte_of[char] for char in token) for token in lines[:lines.index(_START_OF_TRANSCRIPT)]]


def _gpt2_bytes() -> dict[str, int]:
    """Undo GPT-2's way of writing arbitrary bytes as printable characters.

    Printable Latin-1 bytes stand for themselves; the others, in order, are the characters from U+0100 on.
    """
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in themselves]
    shifted = {chr(0x100 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in themselves} | shifted


def _write_header(out: BinaryIO, shape: _Shape, tokens: list[bytes], weight_format: WeightFormat) -> None:
    out.write(struct.pack(
        "<I11i", GGML_MAGIC, shape.tokens, shape.audio_context, shape.audio_width, shape.audio_heads,
        shape.audio_layers, shape.text_context, shape.text_width, shape.text_heads, shape.text_layers,
        shape.mel_bands, _FILE_TYPE[weight_format]))
    filters = mel_filters(shape.mel_bands)
    out.write(struct.pack("<2i", *filters.shape))
    out.write(filters.astype("<f4").tobytes())
    out.write(struct.pack("<i", len(tokens)))
    out.write(b"".join(struct.pack("<i", len(token)) + token for token in tokens))


def _write_tensor(out: BinaryIO, name: str, values: Array, weight_format: WeightFormat) -> None:
    vector = values.ndim == 1 or values.shape[-1] == 1 or name.endswith("positional_embedding")
    if vector:
        kind = _F32
    elif weight_format == "q8_0" and values.ndim == 2:
        kind = _Q8_0
    else:
        kind = _F16
    encoded = name.encode()
    out.write(struct.pack("<3i", values.ndim, len(encoded), kind))
    out.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    out.write(encoded)
    if kind == _Q8_0:
        for start in range(0, len(values), _ROWS_AT_ONCE):
            out.write(quantise_q8_0(values[start:start + _ROWS_AT_ONCE]).tobytes())
    else:
        out.write(np.ascontiguousarray(values, "<f4" if kind == _F32 else "<f2").data.cast("B"))


_Load = Callable[[], Array]


def _tensors(source: _Source, shape: _Shape) -> Iterator[tuple[str, _Load]]:
    """Name every tensor of the output, with a way to get its values when its turn comes."""
    def plain(name: str) -> _Load:
        return lambda: source.weight(name)

    def column(name: str) -> _Load:
        return lambda: source.weight(name)[:, None]

    yield "encoder.positional_embedding", plain("encoder/position_encodings/encodings")
    for number in (1, 2):
        yield f"encoder.conv{number}.weight", plain(f"encoder/conv{number}/weight")
        yield f"encoder.conv{number}.bias", column(f"encoder/conv{number}/bias")
    yield from _blocks(source, "encoder", shape.audio_layers)
    yield from _norm(source, "encoder.ln_post", "encoder/layer_norm")
    yield "decoder.positional_embedding", plain("decoder/position_encodings/encodings")
    yield "decoder.token_embedding.weight", plain("decoder/embeddings/weight")
    yield from _blocks(source, "decoder", shape.text_layers)
    yield from _norm(source, "decoder.ln", "decoder/layer_norm")


def _blocks(source: _Source, side: str, layers: int) -> Iterator[tuple[str, _Load]]:
    for number in range(layers):
        to, of = f"{side}.blocks.{number}", f"{side}/layer_{number}"
        own = f"{of}/self_attention"
        yield from _attention(source, f"{to}.attn", query=(f"{own}/linear_0", 0, 3),
                              key=(f"{own}/linear_0", 1, 3), value=(f"{own}/linear_0", 2, 3),
                              out=(f"{own}/linear_1", 0, 1))
        yield from _norm(source, f"{to}.attn_ln", f"{own}/layer_norm")
        if side == "decoder":
            cross = f"{of}/attention"
            yield from _attention(source, f"{to}.cross_attn", query=(f"{cross}/linear_0", 0, 1),
                                  key=(f"{cross}/linear_1", 0, 2), value=(f"{cross}/linear_1", 1, 2),
                                  out=(f"{cross}/linear_2", 0, 1))
            yield from _norm(source, f"{to}.cross_attn_ln", f"{cross}/layer_norm")
        for layer, place in (("linear_0", 0), ("linear_1", 2)):
            for kind in ("weight", "bias"):
                yield f"{to}.mlp.{place}.{kind}", _part(source, (f"{of}/ffn/{layer}", 0, 1), kind)
        yield from _norm(source, f"{to}.mlp_ln", f"{of}/ffn/layer_norm")


_Part = tuple[str, int, int]
"""A stacked variable, which part of it, of how many."""


def _attention(source: _Source, to: str, *, query: _Part, key: _Part, value: _Part,
               out: _Part) -> Iterator[tuple[str, _Load]]:
    if np.any(_part(source, key, "bias")()):
        # Whisper's keys have none; the zeros are there only because the matrices are stacked.
        raise ValueError(f"the keys of {to} have a bias, which Whisper's have not")
    for name, part in (("query", query), ("key", key), ("value", value), ("out", out)):
        yield f"{to}.{name}.weight", _part(source, part, "weight")
        if name != "key":
            yield f"{to}.{name}.bias", _part(source, part, "bias")


def _part(source: _Source, part: _Part, kind: str) -> _Load:
    variable, place, parts = part

    def load() -> Array:
        stacked = source.weight(f"{variable}/{kind}")
        if len(stacked) % parts:
            raise ValueError(f"{variable}/{kind} has {len(stacked)} rows, which are not {parts} equal parts")
        size = len(stacked) // parts
        return stacked[place * size:(place + 1) * size]

    return load


def _norm(source: _Source, to: str, of: str) -> Iterator[tuple[str, _Load]]:
    yield f"{to}.weight", lambda: source.weight(f"{of}/gamma")
    yield f"{to}.bias", lambda: source.weight(f"{of}/beta")
