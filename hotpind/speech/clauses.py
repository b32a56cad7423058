"""Cuts a streamed answer into pieces to speak: the first clause at once, then whole sentences.

Pure. The first piece ends at a comma, dash, semicolon or colon, or after a handful of words when no mark comes; it
decides the time to the first audio. Sentence ends are found by `sentence_stream`, which knows abbreviations; it waits
for the next sentence's beginning, which here need not be waited for, because words come whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sentence_stream import SentenceBoundaryDetector

FIRST_WORDS = 6
"""Words after which the first piece is spoken without a mark: almost two seconds of speech."""
LEAST_FIRST_CHARS = 4
"""A first piece shorter than this ("A,") sounds chopped."""
LEAST_FIRST_WORDS = 4
"""How many are enough when the model is slow: a second of speech, in which the next piece is made."""
LEAST_HURRIED_WORDS = 3
"""Fewer words than these last no longer than it takes to speak them."""
LONGEST_PIECE = 160
"""Characters (ten seconds) of a sentence beyond which it is cut at a clause mark or space: a Pi 4 needs three seconds
to speak so much, and nobody's first word can come meanwhile."""

ABBREVIATIONS = frozenset({"mr.", "mrs.", "ms.", "dr.", "st.", "prof.", "vs.", "e.g.", "i.e.", "etc.", "approx."})

_MARK = re.compile("(?:[,;:](?=\\s|$)|\\s[\u2013\u2014-](?=\\s)|\u2014|[.!?](?=\\s))")
_SENTENCE_END = re.compile("(\\S*[.!?])[\"')\\]\u2019\u201d]*$")


class ClauseSplitter:
    """Takes text as it streams, in whole words, and gives back the pieces that are complete."""

    def __init__(self, *, hurried: bool = True) -> None:
        """Begin an answer; one that is not ``hurried`` has whole sentences from its beginning."""
        self._opening = ""
        self._opened = not hurried
        self._sentences = SentenceBoundaryDetector()

    def feed(self, text: str) -> list[str]:
        """Take more text; return the pieces that are complete, in order."""
        if not self._opened:
            self._opening += text
            first = self._first_piece()
            if first is None:
                return []
            self._opened = True
            rest, self._opening = self._opening[len(first):], ""
            return [*self._tidy([first]), *self.feed(rest)]
        pieces = self._tidy(self._sentences.add_chunk(text))
        return [*pieces, *self._tidy([self._sentences.finish()])] if _ends_sentence(text) else pieces

    def first_words(self) -> list[str]:
        """Give out the words of an answer that has not begun, without waiting for a mark, if they are enough."""
        text = self._opening
        if self._opened or len(text.split()) < LEAST_FIRST_WORDS or is_abbreviation(text.split()[-1]):
            return []
        self._opened, self._opening = True, ""
        return self._tidy([text])

    def hurry(self) -> list[str]:
        """Give out what there is up to the last clause mark or whole word: playback is about to run dry."""
        pending = self._sentences.current_sentence + self._sentences.remaining_text if self._opened else self._opening
        marks = [mark.end() for mark in _MARK.finditer(pending)]
        cut = marks[-1] if marks else pending.rstrip().rfind(" ") + 1
        if len(pending[:cut].split()) < LEAST_HURRIED_WORDS:
            return []
        if self._opened:
            self._sentences = SentenceBoundaryDetector()
            pieces = [*self._tidy(self._sentences.add_chunk(pending[cut:]))]
        else:
            self._opening, pieces = pending[cut:], []
        return [*self._tidy([pending[:cut]]), *pieces]

    def finish(self) -> list[str]:
        """Return what is left at the end of the answer."""
        if not self._opened:
            self._opened = True
            rest, self._opening = self._opening, ""
            return [*self._tidy(self._sentences.add_chunk(rest)), *self._tidy([self._sentences.finish()])]
        return self._tidy([self._sentences.finish()])

    def _first_piece(self) -> str | None:
        text = self._opening
        for mark in _MARK.finditer(text):
            first = text[:mark.end()]
            if len(first.strip()) >= LEAST_FIRST_CHARS and not is_abbreviation(first.split()[-1]):
                return first
        if _ends_sentence(text) and len(text.strip()) >= LEAST_FIRST_CHARS:
            return text
        words = list(re.finditer(r"\S+\s*", text))
        if len(words) >= FIRST_WORDS:
            return text[:words[FIRST_WORDS - 1].end()]
        return None

    def _tidy(self, pieces: Iterable[str]) -> list[str]:
        found = []
        for piece in pieces:
            text = " ".join(piece.split())
            while len(text) > LONGEST_PIECE:
                cut = max(text.rfind(mark, 0, LONGEST_PIECE) for mark in (", ", "; ", ": ")) + 1 \
                    or text.rfind(" ", 0, LONGEST_PIECE) or LONGEST_PIECE
                cut = cut if cut > 0 else LONGEST_PIECE
                found.append(text[:cut].strip())
                text = text[cut:].strip()
            if any(character.isalnum() for character in text):
                found.append(text)
        return found


def sentences(text: str) -> list[str]:
    """Cut a whole text into sentences to speak, none longer than `LONGEST_PIECE` characters."""
    splitter = ClauseSplitter(hurried=False)
    return [*splitter.feed(text), *splitter.finish()]


def _ends_sentence(text: str) -> bool:
    """Tell whether the last word, which is whole, ends a sentence; "U.S." may or may not, so it does not."""
    end = _SENTENCE_END.search(text)
    return end is not None and not is_abbreviation(end[1]) and "." not in end[1][:-1]


def is_abbreviation(word: str) -> bool:
    """Tell whether a word is a title, an initial or the like, whose full stop ends no sentence."""
    return word.lower() in ABBREVIATIONS or re.fullmatch(r"[A-Za-z]\.", word) is not None
