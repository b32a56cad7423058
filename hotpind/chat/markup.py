"""Taking away, as the text arrives, what cannot be spoken: thinking, tags, Markdown, addresses, emoji.

Models are asked for plain speech and write Markdown (CommonMark, with GitHub's tables) all the same. Each
stage takes text in pieces of any size, holds back only what the next piece could still change, and gives the
same result however the text was cut into pieces.
"""

from __future__ import annotations

import html
import ipaddress
import re
import unicodedata
from typing import Protocol

BREAK = "\n"
"""The token that ends a heading, a list item, a table row or a paragraph."""
LONGEST_WORD = 60
"""Letters; anything longer is a digest, a file or a loop of letters, not a word."""
LONGEST_HELD = 300
"""Letters of an unbroken run that are looked at: addresses are longer than words."""
DASHES = "-\u2013\u2014"
"""Hyphen, en dash, em dash."""
STOPS = ".!?\u2026\u3002\uff01\uff1f"
"""What ends a sentence: full stop, marks, ellipsis, and the full-width forms of Chinese and Japanese."""
CLOSERS = ")]\"'\u201d\u2019\u00bb"
"""Brackets and quotation marks that may follow the end of a sentence."""

_DOMAINS = ("com|org|net|edu|gov|int|info|io|dev|app|ai|tv|me|co|eu|uk|de|fr|it|es|nl|be|at|ch|se|no|dk|fi|pl|cz|pt|ie|"
            "us|ca|au|nz|jp|cn|kr|in|br|mx|za|ru")
"""Ends of names that make "name/path" an address; "Node.js/React" is none."""
_DOTS = "\u2022\u2023\u25e6\u00b7"  # bullets
_BETWEEN = frozenset("+=%<>/\u00d7\u00f7\u2248\u00b1" + DASHES)  # spoken, or a pause, between two words
_HANGING = STOPS + CLOSERS + ",;:"  # belongs to the word before, even when something between was removed


class Stage(Protocol):
    """One step of the cleaning."""

    def feed(self, text: str) -> str:
        """Take the next piece and return what is certain by now."""

    def finish(self) -> str:
        """Return what was held back; nothing follows."""


class Tags:
    """Removes thinking (``<think>`` or ``\u25c1think\u25b7``, closed or not), HTML tags and models' control tokens such
    as ``<|im_end|>``.
    """

    _TAG = re.compile("[<\u25c1](/?)([a-zA-Z|][^<>\u25c1\u25b7\n]{0,90})[>\u25b7]")
    _BEGUN = re.compile("[<\u25c1]/?(?:[a-zA-Z|][^<>\u25c1\u25b7\n]{0,90})?")
    _MARK = re.compile("[<\u25c1]")
    _THINKING = frozenset({"think", "thinking", "thought", "reasoning"})
    _LINES = frozenset({"br", "br/", "br /", "p", "li", "tr", "div"})

    def __init__(self) -> None:
        self._held = ""
        self._until = ""

    def feed(self, text: str) -> str:
        """Take the next piece and return what is certain by now."""
        return self._take(text, last=False)

    def finish(self) -> str:
        """Return what was held back; thoughts without an end stay away."""
        return self._take("", last=True)

    def _take(self, text: str, *, last: bool) -> str:
        text = self._held + text
        self._held = ""
        out: list[str] = []
        at = 0
        while at < len(text):
            if self._until:
                at = self._skip_thoughts(text, at, last=last)
                continue
            mark = self._MARK.search(text, at)
            if mark is None:
                out.append(text[at:])
                break
            out.append(text[at:mark.start()])
            at = mark.start()
            if tag := self._TAG.match(text, at):
                out.append(self._replacement(tag))
                at = tag.end()
            elif not last and self._BEGUN.fullmatch(text, at):
                self._held = text[at:]
                break
            else:
                out.append(text[at])
                at += 1
        return "".join(out)

    def _skip_thoughts(self, text: str, at: int, *, last: bool) -> int:
        """Return where to read on; keeps the tail in which the closing tag may have begun."""
        end = text.lower().find(self._until, at)
        if end >= 0:
            at = end + len(self._until)
            self._until = ""
            return at
        if not last:
            self._held = text[max(at, len(text) - len(self._until) + 1):]
        return len(text)

    def _replacement(self, tag: re.Match[str]) -> str:
        closing, inside = tag.group(1), tag.group(2)
        name = inside.lower().strip()
        if name in self._THINKING:
            if not closing:
                whole = tag.group(0)
                self._until = f"{whole[0]}/{name}{whole[-1]}"
            return ""
        if name in self._LINES:
            return "\n"
        # <https://example.com> and <someone@example.com> are CommonMark's autolinks.
        return inside if "://" in inside or "@" in inside else ""


class Fences:
    """Removes code blocks, which nobody wants to hear."""

    _FENCE = "```"

    def __init__(self) -> None:
        self._held = ""
        self._inside = False

    def feed(self, text: str) -> str:
        """Take the next piece and return what is certain by now."""
        text = self._held + text
        out: list[str] = []
        at = 0
        while (fence := text.find(self._FENCE, at)) >= 0:
            if not self._inside:
                out.append(text[at:fence])
            out.append("\n")
            self._inside = not self._inside
            at = fence + len(self._FENCE)
        rest = text[at:]
        kept = len(rest.rstrip("`"))
        self._held = rest[kept:]
        if not self._inside:
            out.append(rest[:kept])
        return "".join(out)

    def finish(self) -> str:
        """Return what was held back; a block without an end stays away."""
        return "" if self._inside else self._held


class Links:
    """Turns ``[text](address)`` and ``![text](address)`` into the text, and removes citations: ``[1]``,
    ``【1†x】``.
    """

    _LABEL = re.compile(r"!?\[([^\[\]\n]{0,200})\]")
    _LABEL_BEGUN = re.compile(r"!?(?:\[[^\[\]\n]{0,200})?")
    _ADDRESS = re.compile(r"\((?:[^()\n]|\([^()\n]{0,100}\)){0,500}\)")
    _ADDRESS_BEGUN = re.compile(r"(?:\((?:[^()\n]|\([^()\n]{0,100}\)){0,500}(?:\([^()\n]{0,100})?)?")
    _SOURCE = re.compile(r"【[^】\n]{0,60}】")
    _SOURCE_BEGUN = re.compile(r"【[^】\n]{0,60}")
    _UNSPOKEN = re.compile(r"[\d\s,^xX-]*")
    _MARK = re.compile(r"[!\[\]【]")

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Take the next piece and return what is certain by now."""
        return self._take(text, last=False)

    def finish(self) -> str:
        """Return what was held back."""
        return self._take("", last=True)

    def _take(self, text: str, *, last: bool) -> str:
        text = self._held + text
        self._held = ""
        out: list[str] = []
        at = 0
        while mark := self._MARK.search(text, at):
            out.append(text[at:mark.start()])
            at = mark.start()
            if not last and self._undecided(text, at):
                self._held = text[at:]
                return "".join(out)
            words, at = self._resolve(text, at)
            out.append(words)
        out.append(text[at:])
        return "".join(out)

    def _undecided(self, text: str, at: int) -> bool:
        """Whether what begins at ``at`` runs to the end of the text, so that its meaning depends on what
        follows.
        """
        if self._SOURCE_BEGUN.fullmatch(text, at) or self._LABEL_BEGUN.fullmatch(text, at):
            return True
        label = self._LABEL.match(text, at)
        return label is not None and self._ADDRESS_BEGUN.fullmatch(text, label.end()) is not None

    def _resolve(self, text: str, at: int) -> tuple[str, int]:
        """Return what is said for the mark at ``at``, and where to read on."""
        if source := self._SOURCE.match(text, at):
            return "", source.end()
        exclaimed = "!" if text[at] == "!" else ""
        label = self._LABEL.match(text, at)
        if label is None:
            return exclaimed, at + 1
        words = label.group(1)
        if address := self._ADDRESS.match(text, label.end()):
            return words, address.end()
        # "Look![1]": the mark belongs to the sentence, not to a picture.
        return exclaimed + ("" if self._UNSPOKEN.fullmatch(words) else words), label.end()


class Tokens:
    """Cuts the text into words fit to be spoken: each with the space before it, and `BREAK` after a block."""

    _REST = r"(?:[^\s()<>\"']|\([^\s()<>\"']*\))*"
    _URL = re.compile(rf"(?:[a-z][a-z0-9+-]{{1,20}}://|www\.)([^\s/?#()<>\"']*){_REST}"
                      rf"|(?<![\w@./-])((?:[a-z0-9-]+\.)+(?:{_DOMAINS}))/{_REST}", re.IGNORECASE)
    _MAILTO = re.compile(r"mailto:([^\s?<>\"']+)(?:\?[^\s()<>\"']*)?", re.IGNORECASE)
    _BULLET = re.compile(f"[*+{_DOTS}{re.escape(DASHES)}]")
    _HEADING = re.compile(r"#{1,6}")
    _NUMBER = re.compile(r"(\d{1,2})[.)]")
    _RULE = re.compile(r"[-*_=]{3,}")
    _TABLE_RULE = re.compile(r"[|:+-]+")

    def __init__(self) -> None:
        self._word = ""
        self._space = ""
        self._line = 0
        self._block = False
        self._table = False
        self._since_break = 0
        self._number = 0
        self._digit_before = False

    def feed(self, text: str) -> list[str]:
        """Take the next piece and return the words completed by it."""
        out: list[str] = []
        for letter in text:
            if letter == "\n":
                self._end_word(out)
                self._end_line(out)
            elif letter.isspace():
                self._end_word(out)
                self._space = " "
            else:
                if len(self._word) < LONGEST_HELD:
                    self._word += letter
                if _unspaced(letter):
                    self._end_word(out)
        return out

    def finish(self) -> list[str]:
        """Return the last word."""
        out: list[str] = []
        self._end_word(out, last=True)
        return out

    def _end_word(self, out: list[str], *, last: bool = False) -> None:
        word, self._word = self._word, ""
        if not word:
            return
        self._line += 1
        if self._line == 1 and not last:
            marker = self._begin_line(word, out)
            if marker is not None:
                if marker:
                    self._give(f"{marker},", out)
                return
        if self._line == 1:
            word = word.lstrip(">" + _DOTS)
        if self._table:
            if self._TABLE_RULE.fullmatch(word):
                self._give_joined(",", out)
                return
            word = word.strip("|").replace("|", ", ")
        spoken = self._clean(word)
        if spoken:
            if any(letter.isalnum() or unicodedata.category(letter) == "Sc" for letter in spoken) or (
                    spoken in _BETWEEN):
                self._give(spoken, out)
            else:
                self._give_joined(spoken, out)

    def _begin_line(self, word: str, out: list[str]) -> str | None:
        """Recognise a block by its marker; returns what is said in the marker's place, None when it is a
        word.
        """
        said: str | None = None
        bare = word.strip("*_")
        if self._HEADING.fullmatch(word) or self._BULLET.fullmatch(word):
            said = ""
        elif word.strip(">") == "" or self._RULE.fullmatch(word):
            self._line = 0  # what follows on the line is like a line of its own
            return ""
        elif (number := self._NUMBER.fullmatch(bare)) and int(number.group(1)) in (1, self._number + 1):
            self._number = int(number.group(1))
            said = number.group(1)
        self._table = word.startswith("|")
        if said is None and not self._table:
            return None
        self._break(out)
        self._block = True
        return said

    def _end_line(self, out: list[str]) -> None:
        if self._block or not self._line:
            self._break(out)
        self._line, self._block, self._table, self._space = 0, False, False, " "

    def _break(self, out: list[str]) -> None:
        if self._since_break:
            out.append(BREAK)
        self._since_break, self._digit_before = 0, False

    def _give(self, word: str, out: list[str]) -> None:
        out.append(self._space + word)
        self._space = ""
        self._since_break += 1
        self._digit_before = word[-1].isdigit()

    def _give_joined(self, mark: str, out: list[str]) -> None:
        """Give punctuation that stands alone, as after a removed emoji: it belongs to the word before."""
        if self._since_break and mark[0] in _HANGING:
            out.append(mark)

    def _clean(self, word: str) -> str:
        if word == "*":
            return "times" if self._digit_before else ""
        if "&" in word:
            word = html.unescape(word)
            word = "and" if word == "&" else word
        if ":" in word or "/" in word or "www." in word.lower():
            word = self._URL.sub(_spoken_address, self._MAILTO.sub(r"\1", word))
        word = re.sub(r"\\(.)", r"\1", word) if "\\" in word else word
        word = word.replace("`", "").replace("~", "")
        word = re.sub(r"(?<=\d)\*(?=\d)", " times ", word).replace("*", "")
        word = word.strip("_").replace("_", " ")
        word = re.sub(r"^(\W*)#(?=\d)", r"\1number ", word)
        word = re.sub(r"^(\W*)#+(?=\w)", r"\1", word)
        word = _without_symbols(word)
        word = re.sub(r"([^\W\d_])\1{4,}", r"\1\1\1", word)
        word = re.sub(r"([!?,;:])\1+", r"\1", word)
        word = re.sub(r"\.{4,}", "...", word)
        word = re.sub(f"([{re.escape(DASHES)}=/])\\1{{2,}}", "", word)
        longest = max((len(part) for part in word.split()), default=0)
        return word.strip() if longest <= LONGEST_WORD else ""



def _spoken_address(match: re.Match[str]) -> str:
    """Say an address by its host's name, as people do; "a link" when that would be gibberish."""
    host = (match.group(1) or match.group(2) or "").lower().rpartition("@")[2].removeprefix("www.")
    whole = match.group(0)
    tail = whole[len(whole.rstrip(".,;:!?*_`")):]
    host = re.sub(r":\d+$", "", host.rstrip(".,;:!?*_`"))
    try:
        ipaddress.ip_address(host)
    except ValueError:
        named = re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}", host) and len(host) <= LONGEST_WORD // 2
    else:
        named = None
    return (host if named else "a link") + tail


def _without_symbols(word: str) -> str:
    """Remove emoji, their modifiers, arrows, control characters and lone surrogates; keep money and
    arithmetic.
    """
    if word.isascii() and word.isprintable():
        return word
    kept: list[str] = []
    for letter in word:
        category = unicodedata.category(letter)
        if letter in "°\u200c":
            kept.append(letter)
        elif letter == "\u200d":
            # Joins emoji, which are gone, but also letters of Indic scripts.
            if kept and unicodedata.category(kept[-1])[0] in "LM":
                kept.append(letter)
        elif "\ufe00" <= letter <= "\ufe0f" or letter == "\u20e3" or "\u2190" <= letter <= "\u21ff":
            continue
        elif category[0] in "LNPM" or category in ("Sc", "Sm") or letter == "^" or letter in "`~":
            kept.append(letter)
    return "".join(kept)


def _unspaced(letter: str) -> bool:
    """Whether the letter's script is written without spaces, so that every letter counts as a word."""
    return letter > "\u0dff" and ("\u2e80" <= letter <= "\u9fff" or "\uf900" <= letter <= "\ufaff"
                                  or "\uff00" <= letter <= "\uffef" or "\U00020000" <= letter <= "\U0003ffff"
                                  or "\u0e00" <= letter <= "\u0eff" or "\u1780" <= letter <= "\u17ff")
