"""From CTranslate2 to ggml: every value in its place, the same bytes every time."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants

from hotpind.errors import ModelFileError
from hotpind.models.convert_whisper import Array, WeightFormat, convert_whisper, mel_filters, quantise_q8_0
from tests.models.samples import TEXT_TOKENS, TINY, a_ctranslate2

WIDTH, LAYERS = TINY["width"], TINY["layers"]


def convert(directory: Path, weights: bytes, vocabulary: bytes, weight_format: WeightFormat = "f16") -> bytes:
    (directory / "model.bin").write_bytes(weights)
    (directory / "vocabulary.txt").write_bytes(vocabulary)
    out = io.BytesIO()
    convert_whisper(directory / "model.bin", directory / "vocabulary.txt", out, weight_format)
    return out.getvalue()


class Ggml:
    """An independent reader of the output, written from the loader's point of view."""

    def __init__(self, content: bytes) -> None:
        file = io.BytesIO(content)

        def ints(count: int) -> tuple[int, ...]:
            return struct.unpack(f"<{count}i", file.read(4 * count))

        self.magic, *self.parameters = ints(12)
        rows, columns = ints(2)
        self.filters = np.frombuffer(file.read(4 * rows * columns), "<f4").reshape(rows, columns)
        (count,) = ints(1)
        self.tokens = [file.read(ints(1)[0]) for _ in range(count)]
        self.tensors: dict[str, Array] = {}
        self.kinds: dict[str, int] = {}
        while head := file.read(12):
            rank, length, kind = struct.unpack("<3i", head)
            shape = ints(rank)[::-1]
            name = file.read(length).decode()
            self.kinds[name] = kind
            values = int(np.prod(shape))
            match kind:
                case 0:
                    self.tensors[name] = np.frombuffer(file.read(4 * values), "<f4").reshape(shape)
                case 1:
                    self.tensors[name] = np.frombuffer(file.read(2 * values), "<f2").reshape(shape)
                case 8:
                    raw = np.frombuffer(file.read(values // 32 * 34), np.uint8).reshape(shape[0], -1)
                    self.tensors[name] = quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0)
                case _:
                    pytest.fail(f"element type {kind}")


def test_the_header_has_the_models_sizes(tmp_path: Path) -> None:
    weights, vocabulary, _ = a_ctranslate2()
    model = Ggml(convert(tmp_path, weights, vocabulary))
    assert model.magic == 0x67676D6C
    assert model.parameters == [TINY["tokens"], TINY["audio_context"], WIDTH, TINY["heads"], LAYERS,
                                TINY["text_context"], WIDTH, TINY["heads"], LAYERS, TINY["bands"], 1]
    assert model.filters.shape == (TINY["bands"], 201)
    assert model.tokens == TEXT_TOKENS


def expected_tensors(variables: dict[str, Array]) -> dict[str, Array]:
    """Spell out, without the converter's help, which variable or part of it each tensor is."""
    expected = {
        "encoder.positional_embedding": variables["encoder/position_encodings/encodings"],
        "decoder.positional_embedding": variables["decoder/position_encodings/encodings"],
        "decoder.token_embedding.weight": variables["decoder/embeddings/weight"],
        "encoder.conv1.weight": variables["encoder/conv1/weight"],
        "encoder.conv2.weight": variables["encoder/conv2/weight"],
        "encoder.conv1.bias": variables["encoder/conv1/bias"].reshape(-1, 1),
        "encoder.conv2.bias": variables["encoder/conv2/bias"].reshape(-1, 1),
        "encoder.ln_post.weight": variables["encoder/layer_norm/gamma"],
        "encoder.ln_post.bias": variables["encoder/layer_norm/beta"],
        "decoder.ln.weight": variables["decoder/layer_norm/gamma"],
        "decoder.ln.bias": variables["decoder/layer_norm/beta"],
    }
    for side in ("encoder", "decoder"):
        for layer in range(LAYERS):
            to, of = f"{side}.blocks.{layer}", f"{side}/layer_{layer}"
            for number, name in enumerate(("query", "key", "value")):
                rows = slice(number * WIDTH, (number + 1) * WIDTH)
                expected[f"{to}.attn.{name}.weight"] = variables[f"{of}/self_attention/linear_0/weight"][rows]
                if name != "key":
                    expected[f"{to}.attn.{name}.bias"] = variables[f"{of}/self_attention/linear_0/bias"][rows]
            plain = {"attn.out": "self_attention/linear_1", "mlp.0": "ffn/linear_0", "mlp.2": "ffn/linear_1"}
            norms = {"attn_ln": "self_attention", "mlp_ln": "ffn"}
            if side == "decoder":
                plain |= {"cross_attn.query": "attention/linear_0", "cross_attn.out": "attention/linear_2"}
                norms["cross_attn_ln"] = "attention"
                both = f"{of}/attention/linear_1"
                expected[f"{to}.cross_attn.key.weight"] = variables[f"{both}/weight"][:WIDTH]
                expected[f"{to}.cross_attn.value.weight"] = variables[f"{both}/weight"][WIDTH:]
                expected[f"{to}.cross_attn.value.bias"] = variables[f"{both}/bias"][WIDTH:]
            for name, variable in plain.items():
                for kind in ("weight", "bias"):
                    expected[f"{to}.{name}.{kind}"] = variables[f"{of}/{variable}/{kind}"]
            for name, variable in norms.items():
                expected[f"{to}.{name}.weight"] = variables[f"{of}/{variable}/layer_norm/gamma"]
                expected[f"{to}.{name}.bias"] = variables[f"{of}/{variable}/layer_norm/beta"]
    return expected


def test_every_value_is_where_whisper_cpp_looks_for_it(tmp_path: Path) -> None:
    weights, vocabulary, variables = a_ctranslate2()
    model = Ggml(convert(tmp_path, weights, vocabulary))
    expected = expected_tensors(variables)
    assert set(model.tensors) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(model.tensors[name], values, err_msg=name)
        vector = values.ndim == 1 or values.shape[-1] == 1 or "positional" in name
        assert model.kinds[name] == (0 if vector else 1), name


def test_q8_0_is_close_and_only_for_matrices(tmp_path: Path) -> None:
    weights, vocabulary, variables = a_ctranslate2()
    model = Ggml(convert(tmp_path, weights, vocabulary, "q8_0"))
    assert model.parameters[-1] == 2007
    for name, values in expected_tensors(variables).items():
        matrix = values.ndim == 2 and values.shape[-1] > 1 and "positional" not in name
        assert (model.kinds[name] == 8) == matrix, name
        np.testing.assert_allclose(model.tensors[name], values, atol=np.abs(values).max() / 200 if matrix else 0,
                                   err_msg=name)


def test_q8_0_is_bit_for_bit_what_ggmls_own_library_makes() -> None:
    random = np.random.default_rng(3)
    rows = random.standard_normal((50, 96)).astype(np.float32) * 10.0 ** random.integers(-6, 3, (50, 1))
    rows[7] = 0
    # Halves, where C and numpy round differently.
    rows[8, :32] = np.linspace(-127, 127, 32).round() + 0.5
    rows[8, 0] = 127
    theirs = quants.quantize(rows.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(quantise_q8_0(rows.astype(np.float32)), theirs)


def test_rows_that_do_not_fill_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 40 values"):
        quantise_q8_0(np.zeros((2, 40), np.float32))


def slaney_mel(hz: np.longdouble) -> np.longdouble:
    """Slaney's scale as it is defined, one frequency at a time."""
    if hz < 1000:
        return hz * 3 / 200
    return np.longdouble(15 + 27 * np.log(hz / 1000) / np.log(np.longdouble("6.4")))


def test_the_mel_filters_are_slaneys_and_do_not_hang_on_the_last_bit() -> None:
    """Computed again with 64 bits of mantissa: were one value on the edge, machines would differ in the
    file."""
    bands = 80
    top = slaney_mel(np.longdouble(8000))
    mels = [top * band / (bands + 1) for band in range(bands + 2)]
    corners = [mel * 200 / 3 if mel < 15 else 1000 * np.exp(np.log(np.longdouble("6.4")) * (mel - 15) / 27)
               for mel in mels]
    filters = mel_filters(bands)
    assert filters.shape == (bands, 201)
    assert filters.dtype == np.float32
    for band in range(bands):
        low, middle, high = corners[band:band + 3]
        assert (filters[band, 0], filters[band, 200]) == (0, 0)
        for place in range(1, 200):
            hz = np.longdouble(40 * place)
            triangle = np.float32(max(np.longdouble(0), min((hz - low) / (middle - low),
                                                            (high - hz) / (high - middle))))
            assert filters[band, place] == np.float32(np.longdouble(triangle) * (2 / (high - low))), (band, place)


def test_int8_weights_and_other_models_are_refused(tmp_path: Path) -> None:
    weights, vocabulary, _ = a_ctranslate2()
    for content, told in [
        (weights[:len(weights) // 2], "past the end"),
        (b"", "empty"),
        (b"\x05" + weights[1:], "binary version 5 instead of 6"),
        (weights.replace(b"WhisperSpec", b"WhoeverSpec"), "specification 'WhoeverSpec'"),
        (weights.replace(b"encoder/conv1/bias", b"encoder/conv9/bias"), "KeyError: 'encoder/conv1/bias'"),
    ]:
        with pytest.raises(ModelFileError, match=told) as caught:
            convert(tmp_path, content, vocabulary)
        assert str(tmp_path / "model.bin") in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_key_with_a_bias_is_not_silently_dropped(tmp_path: Path) -> None:
    weights, vocabulary, _ = a_ctranslate2(key_bias=0.25)
    with pytest.raises(ModelFileError, match="have a bias"):
        convert(tmp_path, weights, vocabulary)
