"""An answer's clean text while it is still being written."""

from __future__ import annotations

import logging
import re

from segue.models.protocol import Parse
from segue.requests import until_stop

log = logging.getLogger(__name__)

_LOOSE = re.compile(r"[\s,;:，、；：.!?…。！？]*$")
"""What a mark that follows may take away."""
_NEAR = 16
"""Letters after a mark from which on nothing around it is tidied any more."""
_BEGUN = re.compile(r"(<[^<>]{0,16}|\[[^\[\]]{0,8}|<(box|quad)>((?!</\2>).)*)$", re.DOTALL)
"""A mark, or a place, that is not complete."""


class CleanText:
    """The text of an answer in pieces: joined they are the text of the whole answer, and none is taken back.

    Marks, and what is tidied around them, wait until they are complete. `stops` are the texts that an answer ends at.
    """

    def __init__(self, parse: Parse, stops: tuple[str, ...] = ()):
        self._parse, self._stops = parse, stops
        self._raw = self._told = ""

    def add(self, raw: str) -> str:
        """What is certain to be said, now that this came to what was generated."""
        self._raw += raw
        whole = until_stop(self._raw, self._stops)
        whole = whole[: len(whole) - max((_overlap(whole, stop) for stop in self._stops), default=0)]
        whole = _BEGUN.sub("", whole)
        clean = self._parse(whole, None, None)[0]
        last = max(whole.rfind(closing) for closing in ">]")
        is_near = last >= 0 and len(whole) - last <= _NEAR
        return self._tell(clean[:-_NEAR] if is_near else _LOOSE.sub("", clean))

    def finish(self, text: str | None = None) -> str:
        """The rest, given the text of the whole answer; without it, what was generated is the whole."""
        if text is None:
            text = self._parse(until_stop(self._raw, self._stops), None, None)[0]
        if not text.startswith(self._told):
            log.warning("a streamed answer of %d letters does not begin as the whole one does", len(self._told))
        return self._tell(text)

    def _tell(self, text: str) -> str:
        if len(text) <= len(self._told):
            return ""
        piece = text[len(self._told) :]
        self._told = text
        return piece


def _overlap(text: str, stop: str) -> int:
    """How many letters at the end of a text are the beginning of another."""
    return next((length for length in range(len(stop) - 1, 0, -1) if text.endswith(stop[:length])), 0)
