"""Cutting a model's text, as it arrives, down to what can be spoken.

The first sentence is given out word by word, since somebody is waiting for it; every later one when it is
whole, since it is spoken as a whole anyway. So a sentence that was said before is never said again, and a
last sentence that the model did not finish is left away.
"""

from __future__ import annotations

import re
from enum import StrEnum

from hotpind.chat.markup import BREAK, CLOSERS, DASHES, STOPS, Fences, Links, Stage, Tags, Tokens

WORDS_PAST_LIMIT = 60
"""Words that the last sentence may take past the limit before it is cut inside."""
HELD_WORDS = 25
"""From this length on a held sentence is given out at its next comma, so that speech does not run dry."""
HELD_WORDS_MOST = 50
SHORT_SENTENCE = 2
"""Words; a sentence this short ("Yes.", "Of course.") may come again."""
SHORT_REPEATS = 3
LONGEST_LOOP = 12
"""Words of a phrase whose repetition inside a sentence is noticed."""
ENOUGH_WORDS = 8
"""With this much said, a last sentence that was not finished is not missed."""


class Cut(StrEnum):
    """Why an answer was cut."""

    NO = ""
    LENGTH = "length"
    REPETITION = "repetition"


class Speakable:
    """Filters one answer; `done` tells that nothing more will come out, so the model can be stopped."""

    def __init__(self, max_words: int) -> None:
        self._stages: tuple[Stage, ...] = (Tags(), Fences(), Links())
        self._tokens = Tokens()
        self._sentences = _Sentences(max_words)

    @property
    def done(self) -> bool:
        """Whether the answer was cut."""
        return self._sentences.cut is not Cut.NO

    @property
    def cut(self) -> Cut:
        """Why it was cut."""
        return self._sentences.cut

    @property
    def spoke(self) -> bool:
        """Whether anything was given out yet."""
        return self._sentences.spoke

    @property
    def words(self) -> int:
        """Words taken in so far, given out or held."""
        return self._sentences.words

    @property
    def echoed(self) -> bool:
        """Whether the model's answer began with the introduction."""
        return self._sentences.echoed

    def introduce(self, sentence: str) -> None:
        """Leave ``sentence`` out, which is said before the answer anyway: small models like to say it again."""
        self._sentences.introduce([plain for word in sentence.split() if (plain := _plain(word))])

    def feed(self, text: str) -> str:
        """Take the next piece of the model's text and return what can be spoken now, often nothing."""
        if self.done:
            return ""
        for stage in self._stages:
            text = stage.feed(text)
        return self._sentences.take(self._tokens.feed(text))

    def release(self) -> str:
        """Return the whole words of a sentence that is held until it is complete: its listener waits in silence."""
        return "" if self.done else self._sentences.release()

    def finish(self, *, truncated: bool = False) -> str:
        """Return the rest. ``truncated``: the model was stopped by a limit, not by having said everything."""
        if self.done:
            return ""
        rest = ""
        for stage in self._stages:
            rest = stage.feed(rest) + stage.finish()
        out = self._sentences.take(self._tokens.feed(rest) + self._tokens.finish())
        return out + self._sentences.finish(truncated=truncated)


class _Sentences:
    """Builds sentences of words and decides which are given out, and when."""

    def __init__(self, max_words: int) -> None:
        self.cut = Cut.NO
        self.spoke = False
        self.echoed = False
        self._introduction: list[str] = []
        """Words of a sentence that is left out at the beginning."""
        self._max_words = max_words
        self._words = 0
        self._whole = 0
        self._said: dict[str, int] = {}
        self._sentence: list[str] = []
        self._plain: list[str] = []
        self._given = 0
        """Pieces of `_sentence` given out, and words of `_plain`."""
        self._given_plain = 0

    @property
    def words(self) -> int:
        """Words taken in."""
        return self._words + len(self._plain)

    def introduce(self, words: list[str]) -> None:
        """Note the sentence that comes before all others."""
        self._introduction = words
        self._said[" ".join(words)] = 1

    def release(self) -> str:
        """Give out what is held, unless it may become a sentence that was said before."""
        begun = " ".join(self._plain)
        again = len(self._plain) > SHORT_SENTENCE and any(said.startswith(begun) for said in self._said)
        if len(self._plain) <= self._given_plain or ((again or self._echoes()) and not self._given):
            return ""
        return self._give()

    def _echoes(self) -> bool:
        """Tell whether the sentence so far is the introduction's beginning."""
        return bool(self._introduction) and self._plain == self._introduction[:len(self._plain)]

    def take(self, tokens: list[str]) -> str:
        """Take words and return what is to be spoken now."""
        out = []
        for token in tokens:
            if self.cut:
                break
            out.append(self._add(token))
        return "".join(out)

    def finish(self, *, truncated: bool) -> str:
        """Return the rest of the last sentence, unless it is not wanted."""
        if self.cut or not self._plain:
            return ""
        if not truncated:
            return self._end()
        if self._given or self._words < ENOUGH_WORDS:
            return self._give(self._full_stop())
        return ""

    def _add(self, token: str) -> str:
        if token == BREAK:
            if not self._plain:
                self._sentence.clear()
                return ""
            return self._end(self._full_stop())
        plain = _plain(token)
        if not plain and not self._sentence:
            return ""  # punctuation left over from something removed
        self._sentence.append(token)
        if plain:
            self._plain.append(plain)
            if (length := _loop(self._plain)) is not None:
                return self._end_loop(length)
        if _ends_sentence(token) and self._plain:
            return self._end()
        if self._echoes():
            return ""
        if self._words + len(self._plain) >= self._max_words + WORDS_PAST_LIMIT:
            self.cut = Cut.LENGTH
            return self._give(self._full_stop())
        held = len(self._sentence) - self._given
        if self._plain and (not self._whole or self._given or held >= HELD_WORDS_MOST
                            or (held >= HELD_WORDS and token[-1] in ",;:")):
            return self._give()
        return ""

    def _end(self, closing: str = "") -> str:
        """End the sentence; it is given out unless it was said before."""
        words = len(self._plain)
        if self._plain == self._introduction:
            self.echoed = True
            self._sentence, self._plain = [], []
            return ""
        self._introduction = []
        plain = " ".join(self._plain)
        before = self._said.get(plain, 0)
        if before and not self._given and (words > SHORT_SENTENCE or before >= SHORT_REPEATS):
            self.cut = Cut.REPETITION
            return ""
        self._said[plain] = before + 1
        out = self._give(closing)
        self._words += words
        self._whole += 1
        self._sentence, self._plain, self._given, self._given_plain = [], [], 0, 0
        if self._words >= self._max_words:
            self.cut = Cut.LENGTH
        return out

    def _end_loop(self, length: int) -> str:
        """End the answer in a sentence whose last ``length`` words are repetitions of those before."""
        self.cut = Cut.REPETITION
        while length and len(self._sentence) > max(self._given, 1):
            if any(letter.isalnum() for letter in self._sentence.pop()):
                length -= 1
        return self._give(self._full_stop())

    def _full_stop(self) -> str:
        if not self._sentence or self._sentence[-1][-1] in STOPS + ":":
            return ""
        if self._sentence[-1][-1] in ",;" + DASHES:
            if len(self._sentence) == self._given:
                return ""  # given out already; a full stop after a comma would be read as an ellipsis
            self._sentence[-1] = self._sentence[-1].rstrip(" ,;" + DASHES)
        return "."

    def _give(self, closing: str = "") -> str:
        text = "".join(self._sentence[self._given:]) + closing
        self._given, self._given_plain = len(self._sentence), len(self._plain)
        if not self.spoke:
            text = text.lstrip()
            self.spoke = bool(text)
        return text


def _plain(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum() or letter == " ").strip()


_END = re.compile(f"[{STOPS}][{re.escape(CLOSERS)}]*$")
_ABBREVIATIONS = frozenset(["mr.", "mrs.", "ms.", "dr.", "st.", "prof.", "vs.", "e.g.", "i.e.", "etc.", "approx."])


def _ends_sentence(token: str) -> bool:
    if not _END.search(token):
        return False
    word = token.strip(" " + CLOSERS + "([").lower()
    return word not in _ABBREVIATIONS and not re.fullmatch(r"[a-z]\.", word)


def _loop(words: list[str]) -> int | None:
    """Return how many of the last words repeat what stands before them; None when they do not."""
    for length in range(1, min(LONGEST_LOOP, len(words) // 3) + 1):
        times = 3
        if length <= 2:
            # "Very, very, very good" and "bye bye" are speech; telephone numbers have equal digits.
            times = (12 if words[-1].isdigit() else 5) if length == 1 else 4
        if len(words) < length * times:
            continue
        phrase = words[-length:]
        if all(words[-length * (turn + 1):-length * turn] == phrase for turn in range(1, times)):
            return length * (times - 1)
    return None
