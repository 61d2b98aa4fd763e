"""Writing what is exported, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from speechssl.export.keymaps import ExportError


def refuse_to_overwrite(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out}: exists already; remove it or choose another name.")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write to that takes the name `out` at the end, or vanishes. Raises ExportError if `out` is taken."""
    refuse_to_overwrite(out)
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """safetensors, every tensor with memory of its own."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
