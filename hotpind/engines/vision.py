"""How llama.cpp's vision part (libmtmd) is given pictures and text, where llama-cpp-python's own way loses either.

Imported only in the engine's process: it loads the native library.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import hashlib
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from llama_cpp import (
    LLAMA_FLASH_ATTN_TYPE_DISABLED,
    llama_get_model,
    llama_model_n_embd_inp,
    mtmd_cpp,
)
from llama_cpp._logger import llama_log_callback
from llama_cpp.llama_chat_format import Jinja2ChatFormatter, MTMDChatHandler

TILE_TOKENS = 64
"""What the projectors that cut pictures into tiles (idefics3: SmolVLM) make of one tile of 512 px."""
_ENLARGES = b"clip.projector_type" + struct.pack("<IQ", 8, len("idefics3")) + b"idefics3"
"""That projector's entry in a GGUF file's header: key, type of a string, length, value."""
_HEADER_BYTES = 65536
_PROBE = "A sentence that no template contains."


PICTURES_KEPT = 6
"""Pictures whose embedding is kept: of a few devices, or of a conversation; 150 kB each for SmolVLM."""


class _Remembering:
    """Stands in for `llama_cpp.mtmd_cpp`: an encoded picture is not encoded again.

    llama.cpp's `mtmd_helper_eval_chunk_single` encodes a picture and has the model read the result; here the result is
    kept in between, by the picture's identifier and the number of its tile.
    """

    def __init__(self) -> None:
        self.encoded = 0
        """Tiles encoded so far."""
        self._kept: dict[tuple[bytes, int], Any] = {}
        self._tiles: Counter[bytes] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(mtmd_cpp, name)

    def begin(self) -> None:
        """Begin a request: tiles of its pictures are counted from zero."""
        self._tiles.clear()

    def embedding(self, context: Any, chunk: Any, width: int) -> Any:
        """Return what the projector makes of a chunk, ``width`` floats for each of its tokens; None when it fails."""
        name: bytes = mtmd_cpp.mtmd_input_chunk_get_id(chunk) or b""
        key = name, self._tiles[name]
        self._tiles[name] += 1
        kept = self._kept.pop(key, None)
        if kept is None:
            if mtmd_cpp.mtmd_encode_chunk(context, chunk) != 0:
                return None
            self.encoded += 1
            count = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk) * width
            # The library's own buffer is overwritten by the next chunk.
            kept = (ctypes.c_float * count).from_buffer_copy(
                ctypes.cast(mtmd_cpp.mtmd_get_output_embd(context), ctypes.POINTER(ctypes.c_float * count)).contents)
        if name:
            self._kept[key] = kept
            while len({picture for picture, _ in self._kept}) > PICTURES_KEPT:
                oldest = next(iter(self._kept))[0]
                self._kept = {each: value for each, value in self._kept.items() if each[0] != oldest}
        return kept

    def mtmd_helper_eval_chunk_single(self, context: Any, llama: Any, chunk: Any, n_past: Any, seq_id: Any,
                                      n_batch: Any, _: bool, new_n_past: Any) -> int:
        """Have the model read a chunk that is no text; returns 0 when it did (mtmd-helper.h)."""
        width = llama_model_n_embd_inp(llama_get_model(llama))
        embedding = self.embedding(context, chunk, width)
        if embedding is None:
            return 1
        result: int = mtmd_cpp.mtmd_helper_decode_image_chunk(
            context, llama, chunk, ctypes.cast(embedding, ctypes.POINTER(ctypes.c_float)), n_past, seq_id, n_batch,
            new_n_past, mtmd_cpp.mtmd_helper_post_decode_callback(), None)
        return result


class Eyes(MTMDChatHandler):  # type: ignore[misc]  # llama-cpp-python has no complete types
    """Answers conversations with pictures; takes them from ``data:`` URLs only, and logs no text."""

    def __init__(self, mmproj: str, *, use_gpu: bool) -> None:
        """Read the vision projector ``mmproj`` when the language model is there. Raises ValueError without a file."""
        self.mtmd_ctx: Any = None
        super().__init__(clip_model_path=mmproj, verbose=False, use_gpu=use_gpu)
        self._needs_parts = False
        self._width = 0
        self._mtmd_cpp = self._memory = _Remembering()
        # libmtmd has a log of its own, which writes each prompt to standard error.
        for set_log in (mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
            set_log(llama_log_callback, ctypes.c_void_p(0))

    def attach(self, llm: Any) -> None:
        """Load the projector for ``llm``, a `llama_cpp.Llama`. Raises ValueError when they do not fit."""
        self._init_mtmd_context(llm)
        self._width = llama_model_n_embd_inp(llm.model)
        render = Jinja2ChatFormatter(template=self._get_chat_template(llm), eos_token="", bos_token="")
        try:
            self._needs_parts = _PROBE not in render(messages=[{"role": "user", "content": _PROBE}]).prompt
        except (TemplateError, TypeError):
            self._needs_parts = True

    def _init_mtmd_context(self, llama_model: Any) -> None:
        if self.mtmd_ctx is not None:
            return
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu = self.use_gpu
        params.print_timings = False
        params.n_threads = llama_model.n_threads
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED
        with Path(self.clip_model_path).open("rb") as file:
            if _ENLARGES in file.read(_HEADER_BYTES):
                # Else it scales every picture up to 2048 px: 17 tiles to encode and 1100 tokens to read.
                params.image_max_tokens = TILE_TOKENS
        self.mtmd_ctx = mtmd_cpp.mtmd_init_from_file(self.clip_model_path.encode(), llama_model.model, params)
        if self.mtmd_ctx is None:
            raise ValueError(f"its vision projector {self.clip_model_path} cannot be read")
        llama_model._stack.callback(self._free)
        if not mtmd_cpp.mtmd_support_vision(self.mtmd_ctx):
            raise ValueError(f"its vision projector {self.clip_model_path} has no eyes")

    def _free(self) -> None:
        context, self.mtmd_ctx = self.mtmd_ctx, None
        if context is not None:
            mtmd_cpp.mtmd_free(context)

    def load_image(self, image_url: str) -> bytes:
        """Return the bytes of a ``data:`` URL. Raises ValueError for any other: nothing is fetched here."""
        head, _, data = image_url.partition(",")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise ValueError("a picture must be a data:image/...;base64, URL")
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error:
            raise ValueError("a picture's data is not base64") from None

    def __call__(self, **request: Any) -> Any:
        """Answer; see `MTMDChatHandler`."""
        self._memory.begin()
        return super().__call__(**request)

    def look_at(self, image_url: str) -> int:
        """Encode a picture that a question will come with; returns how many of its tiles were new.

        Raises ValueError for what is no picture.
        """
        before = self._memory.encoded
        self._memory.begin()
        bitmap = self._create_bitmap_from_bytes(self.load_image(image_url))
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        try:
            marker = mtmd_cpp.mtmd_input_text()
            text = mtmd_cpp.mtmd_default_marker()
            marker.text, marker.text_len, marker.add_special, marker.parse_special = text, len(text), False, True
            bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
            if mtmd_cpp.mtmd_tokenize(self.mtmd_ctx, chunks, ctypes.byref(marker), bitmaps, 1) != 0:
                raise ValueError("a picture cannot be cut into tiles")
            for at in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
                chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, at)
                if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                    self._memory.embedding(self.mtmd_ctx, chunk, self._width)
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks)
            mtmd_cpp.mtmd_bitmap_free(bitmap)
        return self._memory.encoded - before

    def _create_bitmap_from_bytes(self, image_bytes: bytes) -> Any:
        try:
            bitmap = super()._create_bitmap_from_bytes(image_bytes)
        except ValueError:
            raise ValueError("a picture cannot be decoded") from None
        mtmd_cpp.mtmd_bitmap_set_id(bitmap, hashlib.sha256(image_bytes).hexdigest().encode())
        return bitmap

    def _get_template_messages(self, messages: list[Any], media_marker: str) -> list[Any]:
        """Give every text as a list of parts to a template that knows only these (SmolVLM's drops a plain string)."""
        converted: list[Any] = super()._get_template_messages(messages, media_marker)
        if self._needs_parts:
            for message in converted:
                if isinstance(message.get("content"), str):
                    message["content"] = [{"type": "text", "text": message["content"]}]
        return converted
