"""How llama.cpp's vision part (libmtmd) is given pictures and text, where llama-cpp-python's own way loses either.

Imported only in the engine's process: it loads the native library.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import struct
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from llama_cpp import LLAMA_FLASH_ATTN_TYPE_DISABLED, mtmd_cpp
from llama_cpp._logger import llama_log_callback
from llama_cpp.llama_chat_format import Jinja2ChatFormatter, MTMDChatHandler

TILE_TOKENS = 64
"""What the projectors that cut pictures into tiles (idefics3: SmolVLM) make of one tile of 512 px."""
_ENLARGES = b"clip.projector_type" + struct.pack("<IQ", 8, len("idefics3")) + b"idefics3"
"""That projector's entry in a GGUF file's header: key, type of a string, length, value."""
_HEADER_BYTES = 65536
_PROBE = "A sentence that no template contains."


class Eyes(MTMDChatHandler):  # type: ignore[misc]  # llama-cpp-python has no complete types
    """Answers conversations with pictures; takes them from ``data:`` URLs only, and logs no text."""

    def __init__(self, mmproj: str, *, use_gpu: bool) -> None:
        """Read the vision projector ``mmproj`` when the language model is there. Raises ValueError without a file."""
        self.mtmd_ctx: Any = None
        super().__init__(clip_model_path=mmproj, verbose=False, use_gpu=use_gpu)
        self._needs_parts = False
        # libmtmd has a log of its own, which writes each prompt to standard error.
        for set_log in (mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
            set_log(llama_log_callback, ctypes.c_void_p(0))

    def attach(self, llm: Any) -> None:
        """Load the projector for ``llm``, a `llama_cpp.Llama`. Raises ValueError when they do not fit."""
        self._init_mtmd_context(llm)
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

    def _create_bitmap_from_bytes(self, image_bytes: bytes) -> Any:
        try:
            return super()._create_bitmap_from_bytes(image_bytes)
        except ValueError:
            raise ValueError("a picture cannot be decoded") from None

    def _get_template_messages(self, messages: list[Any], media_marker: str) -> list[Any]:
        """Give every text as a list of parts to a template that knows only these (SmolVLM's drops a plain string)."""
        converted: list[Any] = super()._get_template_messages(messages, media_marker)
        if self._needs_parts:
            for message in converted:
                if isinstance(message.get("content"), str):
                    message["content"] = [{"type": "text", "text": message["content"]}]
        return converted
