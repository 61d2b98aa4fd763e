"""The switch to the plain way, of which graphs for other programs are made: padded batches, torch's operations alone.

`torch.compiler.is_exporting` is no such switch: in some versions it is also true under torch.compile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_plainly = False


def exporting() -> bool:
    """Whether a graph for other programs is being made."""
    return _plainly


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Inside, encoders compute the plain way."""
    global _plainly
    before, _plainly = _plainly, True
    try:
        yield
    finally:
        _plainly = before
