"""A chain that is asked again and again: run by the cable test inside a network namespace.

``python -m tests.chat.asker ADDRESS DIRECTORY`` prints one line of JSON for each question: when it was asked (monotonic
seconds), how long the first words took, who answered, why, and whether the answer broke off.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from pathlib import Path

from hotpind.chat.chain import Chain
from hotpind.chat.key import Secret, store_key
from hotpind.chat.messages import ChatRequest, Message
from hotpind.config.schema import ChatSection
from hotpind.errors import HotpinError, StreamBroke
from tests.chat.conftest import FakeEngine
from tests.fakes.groq import KEY, FakeGroq

PAUSE_S = 0.2


async def ask(chain: Chain) -> dict[str, object]:
    begun = time.monotonic()
    row: dict[str, object] = {"at": begun, "broke": False, "backend": "nobody", "words": 0}
    try:
        answer = await chain.ask(ChatRequest((Message("user", "What is the capital of France?"),)))
        row |= {"taken": time.monotonic() - begun, "backend": answer.backend, "reason": answer.reason}
        words = 0
        try:
            async for piece in answer:
                words += len(piece.split())
                row["words"] = words
        finally:
            await answer.aclose()
    except StreamBroke:
        row["broke"] = True
    except HotpinError as error:
        row["reason"] = str(error)
    row["over"] = time.monotonic()
    return row


async def main(url: str, directory: Path) -> None:
    store_key(directory, Secret(KEY))
    path = directory / "llama.sock"
    async with FakeGroq(socket=path, key=None) as local:
        local.models = ["tiny"]
        chain = Chain.from_config(ChatSection.model_validate({"groq": {"base_url": url}}), state=directory,
                                  local=FakeEngine(local, path), environ={})
        await chain.start()
        while True:
            print(json.dumps(await ask(chain)), flush=True)
            await asyncio.sleep(PAUSE_S)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(created).2f %(message)s", stream=sys.stderr)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
