"""Stop strings: text passes through until one of them appears, and no part of it gets out before."""

from collections.abc import Sequence


class StopFilter:
    """Push text in pieces, get back what is safe to show; `hit` once a stop string was completed.

    Text that might be the beginning of a stop string is held back until it is clear whether it is.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops, self.held, self.hit = stops, "", False

    def push(self, piece: str) -> str:
        """What may be shown now: text before the first stop string, if one is complete."""
        text = self.held + piece
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.held, self.hit = "", True
            return text[: min(places)]
        keep = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back for nothing."""
        held, self.held = self.held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning of stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
