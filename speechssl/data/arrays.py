"""Arrays that are longer than memory: written row by row into a .npy file that can be memory-mapped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def growing_array(path: str | Path, kind: type, columns: tuple[int, ...] = ()) -> Iterator[Callable[[np.ndarray], int]]:
    """A .npy file of shape (rows, *columns); yields a function that appends rows and returns the first one's number.

    The file takes its name when all is written, or not at all. Raises OSError.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    rows = 0
    with contextlib.ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)  # whatever is raised on the way
        file = stack.enter_context(temporary.open("wb"))

        def write_header() -> None:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, *columns)})

        def append(values: np.ndarray) -> int:
            nonlocal rows
            assert values.shape[1:] == columns, f"rows of shape {values.shape[1:]}, not {columns}"
            file.write(np.ascontiguousarray(values, dtype=kind).tobytes())
            rows += len(values)
            return rows - len(values)

        write_header()
        start = file.tell()
        yield append
        file.seek(0)
        write_header()  # now with the number of rows, for which numpy leaves room
        assert file.tell() == start, "numpy leaves no room for the number of rows"
        file.close()
        temporary.replace(path)
