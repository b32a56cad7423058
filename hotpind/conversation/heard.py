"""What of an answer has been heard: pieces of text against the audio played. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Heard:
    """The pieces of one answer with the bytes of audio each takes."""

    _pieces: list[tuple[str, int]] = field(default_factory=list)

    def begin(self, text: str) -> None:
        """Begin a piece of text; its audio follows."""
        self._pieces.append((text, 0))

    def audio(self, size: int) -> None:
        """Count ``size`` bytes of audio sent for the piece begun last."""
        text, had = self._pieces[-1]
        self._pieces[-1] = (text, had + size)

    @property
    def last_has_audio(self) -> bool:
        """Tell whether audio of the piece begun last has been sent."""
        return bool(self._pieces) and self._pieces[-1][1] > 0

    @property
    def sent_text(self) -> str:
        """All text of which audio was sent."""
        return " ".join(text for text, size in self._pieces if size and text)

    def cut_short(self, bytes_per_letter: float) -> None:
        """Note that the piece begun last has no more audio than it has now, so that its last words are not spoken.

        How many is told by the pieces before it; without any, by ``bytes_per_letter``.
        """
        if not self._pieces:
            return
        *before, (text, size) = self._pieces
        letters = sum(len(other) for other, had in before if had)
        if letters:
            bytes_per_letter = sum(had for _, had in before) / letters
        share = min(1.0, size / max(1.0, bytes_per_letter * len(text)))
        words = text.split()
        self._pieces[-1] = " ".join(words[:int(len(words) * share)]), size

    def text_played(self, played_bytes: float) -> str:
        """Return the text heard after ``played_bytes`` of audio; a piece cut short counts by its share of words."""
        heard = []
        for text, size in self._pieces:
            if played_bytes <= 0 or not size:
                break
            if played_bytes >= size:
                heard.append(text)
            else:
                words = text.split()
                heard.append(" ".join(words[:int(len(words) * played_bytes / size)]))
            played_bytes -= size
        return " ".join(filter(None, heard))
