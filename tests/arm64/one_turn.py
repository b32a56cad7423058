"""Each engine does its work once: a question is spoken, heard and answered, and the answer is spoken.

Run with the directory of the models: the default ones. Only what the appliance itself installs is imported, and each
engine has a process of its own, as in the appliance: two builds of ggml in one would take each other's functions.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

QUESTION = "What is the capital of France?"
RATE = 16_000


def speak(models: Path, text: str, sound: Path) -> str:
    """Speak a text into a file of 16-bit samples at 16 kHz; return how long it is."""
    from hotpind.engines import voice
    from hotpind.speech.audio import resample_16k

    speaker = voice.load(models / "piper-en_US-joe-medium" / "en_US-joe-medium.onnx", 2)
    spoken = np.frombuffer(b"".join(speaker.speak(text, threading.Event())), "<i2")
    sound.write_bytes(resample_16k(spoken, speaker.rate).astype("<i2").tobytes())
    return f"{len(spoken) / speaker.rate:.1f} s of sound"


def hear(models: Path, _: str, sound: Path) -> str:
    """Return what is said in the file."""
    from hotpind.engines.recognizer import recognise
    from hotpind.engines.whisper_bindings import BINDINGS

    ears = BINDINGS["pywhispercpp"](models / "whisper-tiny.en" / "ggml-tiny.en.bin", language="en", threads=2)
    return recognise(ears, np.frombuffer(sound.read_bytes(), "<i2").astype(np.float32) / np.float32(32768))


def answer(models: Path, question: str, _: Path) -> str:
    """Return the language model's answer to what the appliance would ask it."""
    from hotpind.chat.coaching import coached
    from hotpind.chat.messages import Message
    from hotpind.chat.prompts import SYSTEM_PROMPT
    from hotpind.engines import llama

    messages = coached([Message("system", SYSTEM_PROMPT), Message("user", question)], "smollm2-135m-instruct")
    brain = llama.load(models / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf", None, context=1024,
                       threads=2, gpu_layers=0)
    return str(brain.create_chat_completion([{"role": each.role, "content": each.text} for each in messages],
                                            max_tokens=16, temperature=0.0)["choices"][0]["message"]["content"])


PARTS = {"speak": speak, "hear": hear, "answer": answer}


def main() -> None:
    """Take the turn, and say how long each part of it took; or one part, when that is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("text", nargs="?", default="")
    args = parser.parse_args()
    sound = Path(__file__).with_name("sound.raw")
    if args.part:
        print(PARTS[args.part](args.models, args.text, sound))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}", flush=True)

    def part(name: str, text: str = "") -> str:
        began = time.monotonic()
        done = subprocess.run([sys.executable, __file__, str(args.models), name, text], stdout=subprocess.PIPE,
                              text=True, check=True).stdout.strip().splitlines()[-1]
        print(f"{name:8}{time.monotonic() - began:4.0f} s  {done}", flush=True)
        return done

    part("speak", QUESTION)
    heard = part("hear")
    assert heard == QUESTION, heard
    answered = part("answer", heard)
    assert "Paris" in answered, answered
    part("speak", answered)
    # Whether it is speech, and the right one, the ears can tell.
    assert "Paris" in part("hear")


if __name__ == "__main__":
    main()
