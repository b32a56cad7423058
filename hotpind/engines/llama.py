"""The local language model: an OpenAI-compatible chat server around llama.cpp, one process on a unix socket.

``POST /v1/chat/completions`` (streaming or not), ``GET /v1/models``, ``GET /health``. Requests are answered one
after the other; the key-value cache keeps the longest prefix shared with the request before, so a conversation's
system prompt and history are evaluated once. A client that leaves stops its generation at the next token.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web

from hotpind.engines.child import cores, report, run_engine
from hotpind.errors import ModelFileError

WAITING = 16
"""Requests that may wait for the model; the appliance bounds its turns below this."""
LARGEST_REQUEST = 8_000_000
"""Bytes: a conversation and a few base64 pictures of 512 px."""
PASSED_ON = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty",
             "seed", "stop", "max_tokens")

TOO_LONG = ("context window", "Prompt exceeds n_ctx")
"""What llama-cpp-python's errors say of a prompt that does not fit, without and with a vision projector."""
OPENING = 12
"""Tokens of an answer that all cores work on, about its first clause; nothing can be spoken before."""
BATCH = 128
"""Tokens of a prompt evaluated at once."""
STUCK_S = 40.0
"""A job that shows no progress for so long (a token, a batch of its prompt, a picture) hangs: a Pi 4 with a 1.5 B model
needs half of it for a batch, and a turn has 50 s."""
WARM_STEP = 96
"""Tokens evaluated at a time while warming; on a PC that takes 0.1 s."""
LEAST_WARM_STEP = 8
WARM_PATIENCE_S = 0.15
"""A real request waits for a step of warming, so a step that takes longer makes the next ones smaller."""

Prompt = Callable[[list[dict[str, Any]]], list[int]]
"""Turns messages into the tokens of the model's chat template, without the opening of an answer."""


class Pulse:
    """When the worker last showed that it gets on. Written by its thread, read by the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without work."""
        self._clock = clock
        self._last: float | None = None

    def beat(self) -> None:
        """Note that a job has begun or got on."""
        self._last = self._clock()

    def rest(self) -> None:
        """Note that no job is under way."""
        self._last = None

    def silent_s(self) -> float:
        """Return the seconds since the last sign of progress; 0 while there is nothing to do."""
        last = self._last
        return 0.0 if last is None else self._clock() - last


class ChatServer:
    """The HTTP face of one loaded model."""

    def __init__(self, llm: Any, name: str, *, sees_images: bool, prompt: Prompt | None = None,
                 pulse: Pulse | None = None, clock: Callable[[], float] = time.time,
                 timer: Callable[[], float] = time.monotonic) -> None:
        """Serve ``llm``, a `llama_cpp.Llama`, under ``name``; ``prompt`` makes tokens of messages, for warming.

        ``pulse`` is also told of each batch of a prompt by the model that `load` makes.
        """
        self._prompt = prompt
        self._llm = llm
        self._name = name
        self._sees_images = sees_images
        self._clock = clock
        self._timer = timer
        self._warm_step = WARM_STEP
        self._pulse = pulse or Pulse()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="llama")
        self._waiting = 0

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=LARGEST_REQUEST)
        app.add_routes([web.get("/health", self._health), web.get("/v1/models", self._models),
                        web.post("/v1/chat/completions", self._chat), web.post("/hotpind/warm", self._warm)])
        return app

    async def _health(self, _: web.Request) -> web.Response:
        silent = self._pulse.silent_s()
        if silent >= STUCK_S:
            return _problem(503, f"a request has shown no progress for {silent:.0f} s")
        return web.json_response({"status": "ok"})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{
            "id": self._name, "object": "model", "owned_by": "hotpind",
            "capabilities": ["completion", "multimodal"] if self._sees_images else ["completion"]}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
        except ValueError:
            body = None
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not messages:
            return _problem(400, "the request must be a JSON object with a list of messages")
        if self._waiting >= WAITING:
            return _problem(503, f"{WAITING} requests are waiting for the model already")
        options = {name: body[name] for name in PASSED_ON if body.get(name) is not None}
        gone = threading.Event()
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def give(piece: dict[str, Any] | Exception | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, piece)

        self._waiting += 1
        job = self._worker.submit(self._generate, messages, options, gone, give)
        # A job whose client has left still keeps the worker until its next token, and counts until then.
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        try:
            if body.get("stream"):
                return await self._stream(request, queue)
            return await self._whole(queue)
        finally:
            gone.set()
            # One that has not begun leaves the queue at once.
            job.cancel()

    def _ended(self) -> None:
        self._waiting -= 1

    async def _warm(self, request: web.Request) -> web.Response:
        """Evaluate the beginning of a conversation that will be asked about soon; gives way to real requests."""
        try:
            body = await request.json()
        except ValueError:
            body = None
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not messages:
            return _problem(400, "the request must be a JSON object with a list of messages")
        if self._waiting or (self._prompt is None and not self._sees_images):
            return web.json_response({"warm": False})
        if self._sees_images:
            tiles = await asyncio.get_running_loop().run_in_executor(self._worker, self._look, messages)
            return web.json_response({"warm": True, "tiles": tiles})
        evaluated = await asyncio.get_running_loop().run_in_executor(self._worker, self._evaluate, messages)
        return web.json_response({"warm": True, "tokens": evaluated})

    def _look(self, messages: list[dict[str, Any]]) -> int:
        """Encode the pictures of the messages; returns how many tiles of them were new."""
        eyes, tiles = self._llm.chat_handler, 0
        try:
            for url in eyes.get_image_urls(messages):
                self._pulse.beat()
                tiles += eyes.look_at(url)
        except (ValueError, TypeError, KeyError):
            # The question that comes with it will be told.
            return tiles
        finally:
            self._pulse.rest()
        return tiles

    def _evaluate(self, messages: list[dict[str, Any]]) -> int:
        """Put the messages' tokens into the key-value cache, some at a time; returns how many are there."""
        self._pulse.beat()
        try:
            return self._evaluate_tokens(messages)
        finally:
            self._pulse.rest()

    def _evaluate_tokens(self, messages: list[dict[str, Any]]) -> int:
        assert self._prompt is not None
        tokens = self._prompt(messages)
        if len(tokens) + 64 > self._llm.n_ctx():
            return 0
        known: int = self._llm.longest_token_prefix(self._llm.input_ids[:self._llm.n_tokens], tokens)
        while known < len(tokens) and not self._waiting:
            self._pulse.beat()
            end = min(known + self._warm_step, len(tokens))
            began = self._timer()
            generation = self._llm.generate(tokens[:end], temp=0.0)
            next(generation, None)
            generation.close()
            if self._timer() - began > WARM_PATIENCE_S:
                self._warm_step = max(LEAST_WARM_STEP, self._warm_step // 2)
            known = end
        return known

    async def _stream(self, request: web.Request, queue: asyncio.Queue[dict[str, Any] | Exception | None]
                      ) -> web.StreamResponse:
        first = await queue.get()
        if isinstance(first, Exception):
            return _problem(400, str(first))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        piece: dict[str, Any] | Exception | None = first
        while piece is not None:
            if isinstance(piece, Exception):
                piece = {"error": {"message": str(piece), "type": "server_error"}}
            await response.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
            piece = await queue.get()
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _whole(self, queue: asyncio.Queue[dict[str, Any] | Exception | None]) -> web.Response:
        text, reason = [], "stop"
        while (piece := await queue.get()) is not None:
            if isinstance(piece, Exception):
                return _problem(400, str(piece))
            choice = piece["choices"][0]
            text.append(choice["delta"].get("content") or "")
            reason = choice.get("finish_reason") or reason
        return web.json_response({
            "id": "chatcmpl-local", "object": "chat.completion", "created": int(self._clock()), "model": self._name,
            "choices": [{"index": 0, "finish_reason": reason,
                         "message": {"role": "assistant", "content": "".join(text)}}]})

    def _generate(self, messages: list[dict[str, Any]], options: dict[str, Any], gone: threading.Event,
                  give: Callable[[dict[str, Any] | Exception | None], None]) -> None:
        """Generate in the worker thread; each piece, an error, and a closing None are given to the event loop."""
        self._pulse.beat()
        try:
            if not gone.is_set():
                for piece in self._pieces(messages, options):
                    self._pulse.beat()
                    if gone.is_set():
                        break
                    piece["model"] = self._name
                    give(piece)
        except Exception as error:  # noqa: BLE001 - whatever the library raises must reach the client
            give(error)
        finally:
            give(None)
            # llama-cpp-python leaves a megabyte in reference cycles with each request; nobody waits for this.
            gc.collect()
            self._pulse.rest()

    def _pieces(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Stream a completion; the oldest turns are left out until the rest fits the context window."""
        while True:
            begun = False
            try:
                for piece in self._llm.create_chat_completion(messages, stream=True, **options):
                    begun = True
                    yield piece
                return
            except ValueError as error:
                shorter = without_oldest_turn(messages)
                if begun or shorter is None or not any(sign in str(error) for sign in TOO_LONG):
                    raise
                messages = shorter


def without_oldest_turn(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Drop the oldest question and its answer, never the system prompt or the last message; None when none is left."""
    first = 1 if messages and messages[0].get("role") == "system" else 0
    if len(messages) - first < 2:
        return None
    drop = 2 if len(messages) - first > 2 and messages[first + 1].get("role") == "assistant" else 1
    return messages[:first] + messages[first + drop:]


def load(model: Path, mmproj: Path | None, *, context: int, threads: int, gpu_layers: int,
         pulse: Pulse | None = None) -> Any:
    """Load a GGUF model, with its vision projector when given; ``pulse`` is told of each batch it has evaluated.

    Raises `ModelFileError` when llama.cpp cannot read a file.
    """
    from llama_cpp import Llama

    class WatchedLlama(Llama):  # type: ignore[misc]  # llama-cpp-python has no complete types
        single = 0
        """Tokens of the answer that were evaluated."""

        def generate(self, *args: Any, **options: Any) -> Any:
            self.single = 0
            self._ctx.set_n_threads(threads, threads)
            return super().generate(*args, **options)

        def eval(self, tokens: Sequence[int]) -> None:
            self.single += len(tokens) == 1
            if self.single == OPENING:
                self._ctx.set_n_threads(max(1, threads - 1), threads)
            for at in range(0, len(tokens), BATCH):
                super().eval(tokens[at:at + BATCH])
                if pulse is not None:
                    pulse.beat()

    eyes = None
    try:
        if mmproj:
            from hotpind.engines.vision import Eyes

            eyes = Eyes(str(mmproj), use_gpu=gpu_layers != 0)
        # The first clause has use for all cores, as a prompt has; one is left to the voice while it is spoken and the
        # rest is generated. Measured on two cores: 12 ms a token with both, 18 with one.
        # Buffers grow with the batch: 512 tokens times the vocabulary would be 100 MB that fill up turn by turn.
        llm = WatchedLlama(str(model), n_ctx=context, n_batch=BATCH, n_ubatch=BATCH,
                           n_threads=threads, n_threads_batch=threads, n_gpu_layers=gpu_layers,
                           chat_handler=eyes, verbose=False)
        if eyes is not None:
            eyes.attach(llm)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelFileError(f"{model}: llama.cpp cannot load this model ({error}); fetch it again with "
                             "`hotpinctl models pull`") from None
    return llm


def prompt_of(llm: Any) -> Prompt | None:
    """Make the function that turns messages into tokens as the model's own chat template does, if it has one."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = llm.metadata.get("tokenizer.chat_template")
    if llm.chat_handler is not None or not template:
        return None

    def text_of(token: int) -> str:
        return llm._model.token_get_text(token) if token != -1 else ""

    formatter = Jinja2ChatFormatter(template=template, eos_token=text_of(llm.token_eos()),
                                    bos_token=text_of(llm.token_bos()), add_generation_prompt=False)

    def prompt(messages: list[dict[str, Any]]) -> list[int]:
        result = formatter(messages=messages)
        tokens: list[int] = llm.tokenize(result.prompt.encode(), add_bos=not result.added_special, special=True)
        return tokens

    return prompt


def _problem(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": {"message": sentence, "type": "invalid_request_error"}}, status=status)


def main() -> None:
    """Load the model and serve."""
    parser = argparse.ArgumentParser()
    for name in ("socket", "model"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args()

    async def serve() -> None:
        pulse = Pulse()
        llm = await asyncio.to_thread(load, args.model, args.mmproj, context=args.context,
                                      threads=args.threads or cores(), gpu_layers=args.gpu_layers, pulse=pulse)
        server = ChatServer(llm, args.model.stem, sees_images=args.mmproj is not None, prompt=prompt_of(llm),
                            pulse=pulse)
        runner = web.AppRunner(server.application(), access_log=None, handler_cancellation=True)
        await runner.setup()
        before = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(args.socket)).start()
        finally:
            os.umask(before)
        # What is here now stays: the collections after each request need not look at it.
        gc.collect()
        gc.freeze()
        report(ready=True, model=args.model.stem, sees_images=args.mmproj is not None)
        await asyncio.Event().wait()

    run_engine(serve, parent=args.parent)


if __name__ == "__main__":
    main()
