"""Long recordings as windows that overlap: which samples each one reads, and which of its frames are kept.

Arithmetic alone. A window starts at a multiple of the hop, so its frames lie on the grid of the whole: frame i of a
recording begins at sample i * hop, whichever window it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from speechssl.errors import UserError

SECONDS, CONTEXT = 60.0, 5.0  # of a window, and of what is left out at each of its inner edges


class WindowError(UserError):
    """Windows that cannot be. The message names both numbers."""


@dataclass(frozen=True)
class Window:
    """A stretch of a recording.

    start: frame of the recording that it begins with; samples: how many it has.
    first, stop: frames of the recording that are kept of it.
    """

    start: int
    samples: int
    first: int
    stop: int

    def kept(self, rows: int = 1) -> slice:
        """What is kept of the window's own frames, of `rows` rows each."""
        return slice((self.first - self.start) * rows, (self.stop - self.start) * rows)


@dataclass(frozen=True)
class Cutting:
    """How recordings are cut; `Cutting.of` makes one from seconds.

    hop, receptive_field: samples from one frame to the next, and samples that one frame sees.
    size: frames of a window; edge: frames left out at each inner edge.
    """

    hop: int
    receptive_field: int
    size: int
    edge: int

    @classmethod
    def of(
        cls, hop: int, receptive_field: int, sample_rate: int, *, seconds: float = SECONDS, context: float = CONTEXT
    ) -> Cutting:
        """Windows of so many seconds, `context` seconds of them at each inner edge. Raises WindowError."""
        if not (0 <= context < math.inf and 0 < seconds < math.inf):
            raise WindowError(f"windows last more than 0 s and context 0 s or more, not {seconds:g} and {context:g} s.")
        size = (round(seconds * sample_rate) - receptive_field) // hop + 1
        edge = math.ceil(context * sample_rate / hop)
        if size <= 2 * edge:
            raise WindowError(
                f"windows of {seconds:g} s leave nothing between {context:g} s of context on both sides; "
                "take longer windows or less context."
            )
        return cls(hop, receptive_field, size, edge)

    @property
    def samples(self) -> int:
        """Of a window of a long recording."""
        return (self.size - 1) * self.hop + self.receptive_field

    def frames(self, total: int) -> int:
        """Of a recording of `total` samples."""
        return max(0, (total - self.receptive_field) // self.hop + 1)

    def is_long(self, total: int) -> bool:
        """Whether a recording of `total` samples does not fit into one window."""
        return self.frames(total) > self.size

    def windows(self, total: int) -> Iterator[Window]:
        """Windows of a recording of `total` samples: each of its frames is kept once, in order.

        One that is not long is one window, with all its samples. Those of a long one are equally long, so that nothing
        is padded: the last begins early enough, and samples behind the last frame are read by none.
        """
        frames = self.frames(total)
        if frames <= self.size:
            if frames:
                yield Window(0, total, 0, frames)
            return
        done = 0
        while done < frames:
            start = max(0, min(done - self.edge, frames - self.size))
            stop = frames if start + self.size == frames else start + self.size - self.edge
            yield Window(start, self.samples, done, stop)
            done = stop
