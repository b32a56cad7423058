"""Many turns in a row through the whole appliance: random faults of its cloud and engines, or the same for its memory.

Run by hand with ``scripts/soak``; `test_random_faults` runs a short one.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from hotpind.conversation.memory import DROPPED_SHARE
from hotpind.conversation.prompts import BROKEN_OFF, NO_ANSWER
from hotpind.pin.client import Pin
from hotpind.pin.result import PinTurn
from tests.appliance.clouded import QUESTION, Clouded, clouded, history
from tests.appliance.harness import Daemon
from tests.appliance.pins import breaches
from tests.appliance.recordings import cards
from tests.waiting import until

DEADLINES = {"CHAT__FIRST_TOKEN_DEADLINE_S": "1.0", "CHAT__NEXT_TOKEN_DEADLINE_S": "1.0",
             "CHAT__MAX_ANSWER_WORDS": "24"}
"""Short, for many turns; the real ones are tested by test_cloud_faults."""
SEED_VARIABLE = "HOTPIN_TEST_SEED"
"""Repeats a run of the tests."""
HISTORY_TURNS = 10
LONGEST_TURN_S = 60.0
SETTLED_S = 45.0
MORE_FDS, MORE_THREADS, MORE_TASKS = 8, 4, 6
"""Allowed after the turns: kept connections, the reader of pictures, threads that started on first use, and tasks that
wait for something, each of a kind."""
PICTURES = 0.12
"""Chance that a question comes with pictures."""
GROWTH_MB = 30.0
"""Of the daemon and its engines, after the first fifth of the turns."""

ENDLESS = ("I am a helpful assistant and I am here to help you. " * 3, "and then the cat and then " * 60,
           " ".join(f"Sentence number {index} is about thing {index}." for index in range(10)))
"""What the kinds ``repeat``, ``loop`` and ``long`` say."""

WELL: list[tuple[str, dict[str, Any]]] = [("ok", {})] * 10 + [
    ("gzip", {}), ("late", {"after": 0.4}), ("stall_at_end", {}), ("reset_at_end", {}),
    ("reset_at_end", {"closing_mark": True})]
ILL: list[tuple[str, dict[str, Any]]] = [
    ("late", {}), ("silent", {}), ("think_aloud", {}), ("drip", {"every": 1.5}), ("stall", {"words": 9}),
    ("reset", {"words": 0}), ("reset", {"words": 6}), ("truncated", {"words": 6}), ("malformed", {}),
    ("malformed", {"words": 6}), ("error_in_stream", {}), ("error_in_stream", {"words": 6}),
    ("huge", {}), ("huge", {"status": 500}), ("rate_limited", {"retry_after": 2}),
    ("rate_limited", {"retry_after": 2, "as_date": True}), ("retired", {}), ("decommissioned", {}), ("too_large", {}),
    ("unauthorized", {}), ("forbidden", {}), ("error", {"status": 500}), ("error", {"status": 503}),
    ("error", {"status": 498}), ("bad_request", {}), ("html", {}), ("garbage", {}), ("empty", {}), ("think", {}),
    ("repeat", {}), ("loop", {}), ("long", {}), ("redirect", {"to": "http://127.0.0.1:9/openai/v1/chat/completions"}),
    ("think_aloud", {"words": 9}), ("huge", {"shape": "bomb"}), ("forbidden", {"model": True})]


@dataclass
class Soak:
    """What is remembered of the conversation, and what was found wrong."""

    appliance: Clouded
    chance: random.Random
    heard: list[tuple[str, str]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    kind: str = "ok"
    answers: int = 0
    given: list[str] = field(default_factory=list)
    """What the cloud began to say in this turn."""

    def say(self, _: dict[str, Any]) -> str:
        """Give the cloud an answer that it never gave before."""
        self.answers += 1
        colours = ["red", "green", "blue", "black", "white", "brown", "pink", "grey"]
        words = [self.chance.choice(colours) for _ in range(5)]
        answer = f"Cloud answer {self.answers} is {' and '.join(words[:3])}. It is {words[3]}, then {words[4]}."
        self.given.append(answer)
        return answer

    async def misbehave(self) -> None:
        """Choose what the cloud does next, now and then something worse."""
        fake, daemon = self.appliance.fake, self.appliance.daemon
        if self.chance.random() < 0.4:
            await self.appliance.fresh()
        kind, options = self.chance.choice(WELL if self.chance.random() < 0.4 else ILL)
        if self.chance.random() < 0.05:
            kind, options = "unplugged", {}
            if not fake.unplugged:
                await fake.unplug()
        else:
            if fake.unplugged:
                await fake.plug()
            fake.behave(kind, **options)
        if self.chance.random() < 0.04 and (llama := daemon.engines().get("llama")) is not None:
            kind += " without a local model"
            llama.kill()
        self.kind = kind.split()[0]
        self.kinds[kind] += 1

    async def turn(self, pin: Pin) -> None:
        """Ask once, and check everything that must be true whatever happens."""
        fake = self.appliance.fake
        shown = self.chance.choice((1, 1, 2)) if self.chance.random() < PICTURES else 0
        for _ in range(shown):
            # More of them in a minute than `limits.images_per_minute` are refused, which is no fault either.
            if (await pin.send_image(photo(self.chance))).status == 200:
                self.kinds["pictures"] += 1
        asked = len(fake.questions)
        self.given.clear()
        try:
            async with asyncio.timeout(LONGEST_TURN_S):
                turn = await pin.ask(QUESTION.pcm, realtime=False, tail_silence_s=0.3)
        except TimeoutError:
            raise AssertionError(f"a turn did not end\n{self.appliance.daemon.log}") from None
        assert not breaches(turn.violations), turn.violations
        assert turn.answered or turn.error, turn
        assert pin.model.ready, "the pin is unlocked"
        for request in fake.questions[asked:]:
            told = history(request.body["messages"])
            # What was refused as too large is asked once more on its own.
            assert told == self.heard or (not told and self.kind == "too_large"), (self.kind, told, self.heard)
        self._note(turn)

    def _note(self, turn: PinTurn) -> None:
        if not turn.answered:
            self.outcomes["error"] += 1
            return
        backend = str(turn.extra["backend"])
        self.outcomes[f"{backend}, broken off" if turn.response.endswith(BROKEN_OFF) else backend or "apology"] += 1
        sentences = [each for each in re.split(r"(?<=[.!?]) ", turn.response) if len(each.split()) > 2]
        assert len(sentences) == len(set(sentences)), turn.response
        assert turn.playback is not None
        assert turn.playback.received_s > 0.12 * len(turn.response.split()), "all of it was sent as sound"
        said = turn.response.removesuffix(BROKEN_OFF).strip()
        if backend == "groq":
            # A sentence that was cut gets a full stop.
            assert any(answer.startswith(said.rstrip(".")) for answer in [*self.given, *ENDLESS]), (said, self.given)
        else:
            # The local model imitates what was said before, but it cannot know what this answer was to be.
            assert not [answer for answer in self.given if answer[:30] in said], (said, self.given)
        if not backend:
            assert turn.response == NO_ANSWER
            return
        self.heard.append((turn.transcript, turn.response))
        if len(self.heard) > HISTORY_TURNS:
            del self.heard[:1 + int(HISTORY_TURNS * DROPPED_SHARE)]


@dataclass(frozen=True)
class Left:
    """What the daemon holds."""

    fds: int
    threads: int
    connections: int
    tasks: int

    @classmethod
    async def of(cls, appliance: Clouded) -> Left:
        """Count."""
        main = appliance.daemon.main
        figures = (await asyncio.to_thread(appliance.daemon.fetch, "GET", "/metrics")).decode()
        tasks = int(float(figures.partition("\nhotpin_tasks ")[2].partition("\n")[0]))
        return cls(main.num_fds(), main.num_threads(), appliance.fake.open_connections, tasks)


async def settle(appliance: Clouded, before: Left) -> Left:
    """Wait until no more is held than before, give or take; returns what is."""
    end = time.monotonic() + SETTLED_S
    while True:
        left = await Left.of(appliance)
        if (left.fds <= before.fds + MORE_FDS and left.threads <= before.threads + MORE_THREADS
                and left.tasks <= before.tasks + MORE_TASKS
                and left.connections <= 4 and all(each.finished or each.dropped for each in appliance.fake.chats)):
            return left
        assert time.monotonic() < end, (before, left, appliance.daemon.main.net_connections())
        await asyncio.sleep(0.2)


async def faults(turns: int, seed: int, *, show: bool = False) -> Soak:
    """Ask ``turns`` questions of an appliance whose cloud and local model fail at random."""
    print(f"{turns} turns, seed {seed}", flush=True)
    async with clouded(DEADLINES) as appliance:
        soak = Soak(appliance, random.Random(seed))
        appliance.fake.answer = soak.say
        async with Pin(appliance.daemon.url, "soaked") as pin:
            await appliance.fresh()
            await soak.turn(pin)
            before = await Left.of(appliance)
            for number in range(1, turns):
                await soak.misbehave()
                await soak.turn(pin)
                if show and number % 20 == 0:
                    print(f"{number}: {dict(soak.outcomes)} {await Left.of(appliance)}", flush=True)
            # At the end everything is well again, and nothing was forgotten.
            await appliance.fresh()
            await until(lambda: "llama" in appliance.daemon.engines(), 60)
            await soak.turn(pin)
            assert soak.heard[-1][1].startswith("Cloud answer"), soak.heard[-1]
            left = await settle(appliance, before)
        print(f"outcomes {dict(soak.outcomes)}; faults {dict(soak.kinds)}; before {before}, after {left}", flush=True)
        return soak


def megabytes(daemon: Daemon) -> dict[str, float]:
    """Return the memory of each process that is its own: what it shares with other programs' files comes and goes."""
    processes: dict[str, psutil.Process] = {"hotpind": daemon.main, **daemon.engines()}
    return {name: _own_kilobytes(process.pid) / 1e3 for name, process in processes.items()}


def _own_kilobytes(pid: int) -> float:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return float(next(row.split()[1] for row in rows if row.startswith("Pss_Anon:")))


def photo(chance: random.Random) -> bytes:
    """Make a picture of noise: large as a file, and never the same."""
    small = Image.frombytes("RGB", (80, 60), chance.randbytes(80 * 60 * 3))
    buffer = io.BytesIO()
    small.resize((800, 600)).save(buffer, "JPEG")
    return buffer.getvalue()


async def memory(turns: int, seed: int) -> None:
    """Ask ``turns`` questions, with pictures and offline times between, and fail when memory grows."""
    print(f"{turns} turns, seed {seed}; megabytes of their own", flush=True)
    chance = random.Random(seed)
    sounds = [card.pcm for card in cards()]
    async with clouded() as appliance:
        soak = Soak(appliance, chance)
        appliance.fake.answer = soak.say
        settled: dict[str, float] = {}
        for number in range(turns):
            if number % 10 == 5:
                appliance.fake.behave("error", times=1)
            elif number % 10 == 9:
                await appliance.fresh()
            # Every turn is another conversation of a few: tables of devices are bounded as well.
            async with Pin(appliance.daemon.url, f"pin {number % 100}") as pin:
                if number % 7 == 3:
                    await pin.send_image(photo(chance))
                turn = await pin.ask(chance.choice(sounds), realtime=False, tail_silence_s=0.3)
            assert turn.answered or turn.error, turn
            now = await asyncio.to_thread(megabytes, appliance.daemon)
            if number == max(10, turns // 5):
                settled = now
            if number % max(1, turns // 20) == 0:
                print(f"{number:5}  " + "  ".join(f"{name} {size:6.1f}" for name, size in now.items()), flush=True)
        now = await asyncio.to_thread(megabytes, appliance.daemon)
        grown = {name: round(now[name] - size, 1) for name, size in settled.items()}
        print(f"grown since turn {max(10, turns // 5)}: {grown}, {sum(grown.values()):.1f} MB in all", flush=True)
        assert sum(grown.values()) < GROWTH_MB


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Many turns through the whole appliance.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, turns, text in (("faults", 300, "the cloud and the local model fail at random"),
                              ("memory", 500, "memory must not grow")):
        kind = kinds.add_parser(name, help=text, description=text)
        kind.add_argument("--turns", type=int, default=turns, help=f"default {turns}")
        kind.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000),
                          help="repeats a run; printed")
    options = parser.parse_args()
    if options.turns < 2:
        parser.error("--turns must be at least 2")
    try:
        if options.kind == "faults":
            asyncio.run(faults(options.turns, options.seed, show=True))
        else:
            asyncio.run(memory(options.turns, options.seed))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
