"""Everyday questions, a judge of their answers, and asking them of a language model as the appliance does."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotpind.chat.messages import Message
from hotpind.chat.speakable import Cut, Speakable

QUESTIONS = Path(__file__).parent.parent / "data" / "everyday_questions.toml"
LONGEST_WORDS = 40
"""Words of an answer that a wearer listens to; about 15 s of speech."""
MOST_SENTENCES = 2
_FORMATTING = re.compile(r"\n|\*\*|^#|^\s*(?:[-*]|\d+[.)]) |```|\||https?:", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?][\"')]*(?:\s|$)")
_NO_END = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|vs|e\.g|i\.e)\.", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its judge; see the data file."""

    ask: str
    kind: str
    accept: tuple[str, ...]
    reject: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    check: bool = False
    easy: bool = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """What came before, and the question."""
        before = [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(self.history)]
        return (*before, Message("user", self.ask))

    def right(self, spoken: str) -> bool:
        """Judge what was spoken."""
        return (any(re.search(pattern, spoken, re.IGNORECASE) for pattern in self.accept)
                and not any(re.search(pattern, spoken, re.IGNORECASE) for pattern in self.reject))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, as generated and as it is spoken."""

    raw: str
    spoken: str
    cut: Cut
    truncated: bool
    """It ran into the limit of tokens."""
    first_s: float
    """Seconds to the first token."""
    whole_s: float
    tokens: int

    @property
    def words(self) -> int:
        """Spoken words."""
        return len(self.spoken.split())

    @property
    def speakable(self) -> bool:
        """One or two short sentences, whole, without formatting, not a loop."""
        sentences = len(_SENTENCE_END.findall(_NO_END.sub("", self.spoken)))
        return (0 < self.words <= LONGEST_WORDS and sentences <= MOST_SENTENCES and not self.truncated
                and self.cut is Cut.NO and not _FORMATTING.search(self.raw.strip()))


def load_questions(path: Path = QUESTIONS) -> list[Question]:
    """Read the data file."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["question"]
    return [Question(table["ask"], table["kind"], tuple(table["accept"]), tuple(table.get("reject", ())),
                     tuple(table.get("history", ())), table.get("check", False), table.get("easy", False))
            for table in tables]


def answer(llm: Any, messages: Sequence[Message], options: dict[str, Any], *, max_words: int = 120,
           clock: Callable[[], float] = time.perf_counter) -> Answer:
    """Ask a `llama_cpp.Llama`; ``options`` are those of its ``create_chat_completion``."""
    filtered = Speakable(max_words)
    raw: list[str] = []
    spoken: list[str] = []
    began = clock()
    first = 0.0
    reason = None
    for piece in llm.create_chat_completion([{"role": message.role, "content": message.text} for message in messages],
                                            stream=True, **options):
        choice = piece["choices"][0]
        text = choice["delta"].get("content") or ""
        reason = choice.get("finish_reason") or reason
        if text:
            first = first or clock() - began
            raw.append(text)
            spoken.append(filtered.feed(text))
        if filtered.done:
            break
    truncated = reason == "length"
    spoken.append(filtered.finish(truncated=truncated))
    return Answer("".join(raw), "".join(spoken).strip(), filtered.cut, truncated, first, clock() - began, len(raw))
