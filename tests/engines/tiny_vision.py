"""Makes a vision model of a megabyte: random weights, but a real file for each part that llama.cpp loads.

The language model has the llama architecture and a byte-level vocabulary; the projector is an idefics3 one with
SmolVLM's geometry: the picture is cut into tiles, and each tile becomes 64 embeddings. Names and shapes are those
that llama.cpp's loaders ask for (src/llama-model.cpp, tools/mtmd/clip.cpp).
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from numpy.typing import NDArray

SEED = 1
EMBEDDING = 64
HEADS = 4
FEED_FORWARD = 128
LAYERS = 2
CONTEXT = 4096
TILE = 512
"""Pixels of a tile's side."""
PATCH = 16
MERGED = 4
"""Patches of a square's side that become one embedding."""
LONGEST_SIDE = 2048
"""Pixels a picture is scaled to before it is cut, if nothing forbids that: 16 tiles and an overview for a square."""

SPECIAL = ("<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<global-img>")
MERGES = ("Ċ Ċ", "t h", "Ġ t")
TYPED_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}")
"""Knows content only as a list of parts, as SmolVLM's own template: text given as a plain string is left out."""
PLAIN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for line in message['content'] %}{{ line['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
"""Knows both forms of content, as most templates."""


@dataclass(frozen=True, slots=True)
class VisionModel:
    """The two files."""

    model: Path
    mmproj: Path


def make_vision_model(directory: Path, template: str = TYPED_TEMPLATE) -> VisionModel:
    """Write both files; always the same bytes. Its answers at temperature 0 are lower-case letters and spaces."""
    files = VisionModel(directory / "tiny-vision.gguf", directory / "mmproj-tiny-vision.gguf")
    _write_language_model(files.model, template)
    _write_projector(files.mmproj)
    return files


class _Weights:
    """Random tensors in numpy's order of axes: the reverse of ggml's."""

    def __init__(self, writer: GGUFWriter, seed: int) -> None:
        self._writer = writer
        self._random = np.random.default_rng(seed)

    def random(self, *shape: int, scale: float) -> NDArray[np.float32]:
        return self._random.normal(0.0, scale, shape).astype(np.float32)

    def add(self, name: str, values: NDArray[np.float32]) -> None:
        self._writer.add_tensor(name, values)

    def linear(self, name: str, inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = False) -> None:
        """Make vectors ``gain`` times as long."""
        self.add(f"{name}.weight", self.random(outputs, inputs, scale=gain * inputs ** -0.5))
        if bias:
            self.add(f"{name}.bias", np.zeros(outputs, np.float32))

    def norm(self, name: str, size: int, *, bias: bool = False) -> None:
        self.add(f"{name}.weight", np.ones(size, np.float32))
        if bias:
            self.add(f"{name}.bias", np.zeros(size, np.float32))


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _byte_letters() -> list[str]:
    """Return the printable letter that stands for each byte in GPT-2's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _write_language_model(path: Path, template: str) -> None:
    tokens = [*_byte_letters(), *(merge.replace(" ", "") for merge in MERGES), *SPECIAL]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny vision")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (len(tokens) - len(SPECIAL)) + [TokenType.CONTROL] * len(SPECIAL))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)

    weights = _Weights(writer, SEED)
    weights.add("token_embd.weight", weights.random(len(tokens), EMBEDDING, scale=1.0))
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        weights.norm(f"{block}.attn_norm", EMBEDDING)
        # What is attended to outweighs the token itself: each answer depends on all that came before.
        for name, gain in (("attn_q", 3.0), ("attn_k", 3.0), ("attn_v", 1.0), ("attn_output", 4.0)):
            weights.linear(f"{block}.{name}", EMBEDDING, EMBEDDING, gain=gain)
        weights.norm(f"{block}.ffn_norm", EMBEDDING)
        weights.linear(f"{block}.ffn_gate", EMBEDDING, FEED_FORWARD)
        weights.linear(f"{block}.ffn_up", EMBEDDING, FEED_FORWARD)
        weights.linear(f"{block}.ffn_down", FEED_FORWARD, EMBEDDING)
    weights.norm("output_norm", EMBEDDING)
    # Everything but letters and the space gets the score 0, which the best of 27 random scores is above.
    output = np.zeros((len(tokens), EMBEDDING), np.float32)
    for letter in [*string.ascii_lowercase, "Ġ"]:
        output[tokens.index(letter)] = weights.random(EMBEDDING, scale=1.0)
    weights.add("output.weight", output)
    _finish(writer)


def _write_projector(path: Path) -> None:
    writer = GGUFWriter(path, "clip")
    writer.add_name("tiny vision")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("idefics3")
    writer.add_vision_projection_dim(EMBEDDING)
    writer.add_vision_image_size(TILE)
    writer.add_uint32("clip.vision.preproc_image_size", LONGEST_SIDE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(EMBEDDING)
    writer.add_vision_feed_forward_length(FEED_FORWARD)
    writer.add_vision_block_count(LAYERS)
    writer.add_vision_head_count(HEADS)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    writer.add_vision_projector_scale_factor(MERGED)
    writer.add_vision_use_gelu(True)

    weights = _Weights(writer, SEED + 1)
    inputs = 3 * PATCH * PATCH
    weights.add("v.patch_embd.weight", weights.random(EMBEDDING, 3, PATCH, PATCH, scale=4 * inputs ** -0.5))
    weights.add("v.patch_embd.bias", np.zeros(EMBEDDING, np.float32))
    weights.add("v.position_embd.weight", weights.random((TILE // PATCH) ** 2, EMBEDDING, scale=0.5))
    for layer in range(LAYERS):
        block = f"v.blk.{layer}"
        for name in ("ln1", "ln2"):
            weights.norm(f"{block}.{name}", EMBEDDING, bias=True)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            weights.linear(f"{block}.{name}", EMBEDDING, EMBEDDING, bias=True)
        weights.linear(f"{block}.ffn_up", EMBEDDING, FEED_FORWARD, bias=True)
        weights.linear(f"{block}.ffn_down", FEED_FORWARD, EMBEDDING, bias=True)
    weights.norm("v.post_ln", EMBEDDING, bias=True)
    weights.linear("mm.model.fc", EMBEDDING * MERGED ** 2, EMBEDDING)
    _finish(writer)
