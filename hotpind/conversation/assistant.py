"""What all devices share: the ears, the brain and the voice, and how many turns may run at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

from hotpind.chat.messages import Brain, ChatRequest
from hotpind.chat.prompts import SYSTEM_PROMPT
from hotpind.config import Config
from hotpind.conversation.memory import Conversation, Memory
from hotpind.conversation.prompts import CANNED
from hotpind.conversation.turn import Canned, Ear, Turn, TurnRecord
from hotpind.errors import EngineError
from hotpind.speech.listener import Listener
from hotpind.speech.stt import Transcriber
from hotpind.speech.tts import Synthesizer
from hotpind.system.logs import fields

_LOG = logging.getLogger(__name__)

CANNED_AFTER_S = 5.0
"""Seconds after the start when they are made; one that is needed before is made then."""


@dataclass
class Assistant:
    """Serves every device's turns."""

    config: Config
    brain: Brain
    transcriber: Transcriber
    voice: Synthesizer
    workers: Executor
    """Threads for voice activity and pictures."""
    memory: Memory
    new_turn_id: Callable[[], str]
    clock: Callable[[], float] = time.monotonic
    on_turn: list[Callable[[TurnRecord], None]] = field(default_factory=list)
    """Called with each turn's record when it has ended."""
    on_expected: Callable[[ChatRequest], None] = lambda _: None
    """Told of a question that is being asked, complete or not."""
    on_ended: Callable[[ChatRequest | None], None] = lambda _: None
    """Told, when a turn has ended, what the next question of its device would be without its words; None when others
    are asking or being answered."""
    reads_ahead: Callable[[], bool] = lambda: False
    """Whether the beginning of a question is of use to the brain before its end."""
    refusals_running: int = 0
    """How many of them only say that there are too many."""
    stopping: bool = False
    _under_way: list[TurnRecord] = field(default_factory=list)
    _canned: dict[str, bytes] = field(default_factory=dict)
    _turn_ended: asyncio.Event = field(default_factory=asyncio.Event)
    _asking: dict[str, float] = field(default_factory=dict)
    """Devices whose question is being asked, with the time of the last sign of it."""
    _left: set[asyncio.Task[None]] = field(default_factory=set)
    """Requests to a voice that hangs, whose turns are over; they have deadlines."""

    @property
    def system_prompt(self) -> str:
        """Instructions to the models."""
        return self.config.chat.system_prompt or SYSTEM_PROMPT

    async def prepare_canned(self) -> None:
        """Synthesise the sentences that must be speakable when all else fails. Raises `EngineError`."""
        for text in CANNED:
            self._canned[text] = await self.voice.read_out(text)

    def listen(self, on_progress: Callable[[Listener, str], None], *, partials: bool = False) -> Listener:
        """Begin to listen to a recording."""
        stt = self.config.stt
        return Listener(self.transcriber, self.workers, ahead=stt.ahead, pause_s=stt.pause_s,
                        partials=partials, glances=self.reads_ahead(), on_progress=on_progress)

    def expect_question(self, device: str, text: str = "") -> None:
        """Get the brain ready while the question is still being asked; ``text`` is what was understood so far."""
        self._asking[device] = self.clock()
        self._get_ready(device, text)

    def _get_ready(self, device: str, text: str, conversation: Conversation | None = None) -> None:
        self.on_expected(self._request(device, text, conversation or self.conversation(device)))

    def _request(self, device: str, text: str, conversation: Conversation) -> ChatRequest:
        pictures = conversation.pictures(self.clock())
        return ChatRequest(conversation.messages(self.system_prompt, text, pictures), device=device)

    def _get_ready_for_more(self, record: TurnRecord, conversation: Conversation | None = None) -> None:
        """Have the local model read a conversation's new end ahead, unless somebody else needs it to read theirs.

        ``conversation`` is given while the device still plays the answer, which is not in its own yet.
        """
        long_ago = self.clock() - self.config.limits.recording_s
        self._asking = {device: at for device, at in self._asking.items() if at > long_ago}
        if conversation is not None and not self.reads_ahead():
            return
        others = self.turns_running - (conversation is not None)
        alone = not (others or self._asking or self.stopping)
        if record.outcome == "answered" and alone:
            self._get_ready(record.device, "", conversation)
        if conversation is None and not self.stopping:
            self.on_ended(self._request(record.device, "", self.conversation(record.device)) if alone else None)

    def record(self, device: str) -> TurnRecord:
        """Begin a turn's record at the end of speech."""
        self._asking.pop(device, None)
        return TurnRecord(self.new_turn_id(), device, self.clock())

    def turn(self, ear: Ear, record: TurnRecord) -> Turn:
        """Prepare the answer to a device's question."""
        return Turn(brain=self.brain, voice=self.voice, canned=Canned(self._canned), ear=ear,
                    conversation=self.conversation(record.device), record=record, system_prompt=self.system_prompt,
                    deadline_s=self.config.speaking.turn_deadline_s, clock=self.clock,
                    on_spoken=lambda text: self.log_words(record, "answered", text), on_left=self._take_over,
                    on_made=lambda conversation: self._get_ready_for_more(record, conversation),
                    others_wait=lambda: self._others_wait(record))

    def _others_wait(self, record: TurnRecord) -> bool:
        """Tell whether anybody but this turn's device has asked and hears nothing yet."""
        return any(other is not record and "first_audio" not in other.stages for other in self._under_way)

    def _take_over(self, task: asyncio.Task[None]) -> None:
        """Keep a task that outlives its turn until it has ended."""
        self._left.add(task)
        task.add_done_callback(self._left.discard)

    def log_words(self, record: TurnRecord, what: str, text: str) -> None:
        """Write what was said to the log, only when the user asked for it."""
        if self.config.privacy.log_transcripts:
            _LOG.info("turn %s, %s %s: %s", record.turn, record.device, what, text,
                      extra=fields(turn=record.turn, device=record.device))

    def conversation(self, device: str) -> Conversation:
        """Return a device's conversation, begun anew after a long silence."""
        conversation = self.memory.of(device)
        conversation.forget_if_idle(self.clock(), self.config.chat.history_idle_minutes * 60)
        conversation.forget_old_pictures(self.clock())
        return conversation

    @property
    def turns_running(self) -> int:
        """Turns under way, those that only say that there are too many included."""
        return len(self._under_way)

    @contextlib.contextmanager
    def running(self, record: TurnRecord) -> Iterator[None]:
        """Count a turn while it runs, and report it when it has ended."""
        self._under_way.append(record)
        try:
            yield
        finally:
            self._under_way = [other for other in self._under_way if other is not record]
            self._turn_ended.set()
            for observer in self.on_turn:
                observer(record)
            self._get_ready_for_more(record)

    @property
    def overloaded(self) -> bool:
        """Tell whether more turns are under way than `server.busy_turns`."""
        return self.turns_running - self.refusals_running > self.config.server.busy_turns

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Do not count the turn that is running against others while it is being refused."""
        self.refusals_running += 1
        try:
            yield
        finally:
            self.refusals_running -= 1

    async def drain(self, grace_s: float) -> None:
        """Refuse new turns, and give those under way ``grace_s`` seconds to finish speaking."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.turns_running:
                    self._turn_ended.clear()
                    await self._turn_ended.wait()
        left = list(self._left)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def keep_canned(self, after_s: float = CANNED_AFTER_S, retry_s: float = 5.0) -> None:
        """Prepare the canned sentences, trying again until the voice works.

        Not at once: the first seconds are needed to load models, and for the first question.
        """
        await asyncio.sleep(after_s)
        while True:
            try:
                await self.prepare_canned()
                return
            except EngineError as error:
                _LOG.debug("canned sentences have to wait: %s", error)
                await asyncio.sleep(retry_s)
