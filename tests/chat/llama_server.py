"""Serve a GGUF model with llama-cpp-python's own server, at ``/v1`` and, as Groq does, at ``/openai/v1``.

Run by the tests with a Python that has the server's dependencies: ``llama_server.py MODEL NAME KEY``. Prints the port
once it listens.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn  # type: ignore[import-not-found]  # installed in the side environment that runs this
from fastapi import FastAPI  # type: ignore[import-not-found]  # the same
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings


async def main(model: str, name: str, key: str) -> None:
    inner = create_app(server_settings=ServerSettings(api_key=key),
                       model_settings=[ModelSettings(model=model, model_alias=name, n_ctx=2048, verbose=False)])
    app = FastAPI()
    app.mount("/openai", inner)
    app.mount("/", inner)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started:  # uvicorn has a flag, no event
        await asyncio.sleep(0.02)
    print(listener.getsockname()[1], flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
