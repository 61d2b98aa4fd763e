"""Reading what others have saved: tensors and plain data, and never code.

torch's restricted unpickler reads `.pt` and `.bin` files. Settings that fairseq pickles as objects (argparse's
Namespace, omegaconf's nodes, its own dictionaries and enumerations) are read as `Inert`, a class of ours that keeps
what it is given and does nothing; no module that a file names is ever imported for it. Any other name is refused.
"""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speechssl.export.keymaps import ExportError, some

INERT_MODULES = ("argparse", "omegaconf", "fairseq", "typing", "enum")  # and what lies below them
INERT_NAMES = {
    f"{m}.{n}" for m in ("builtins", "__builtin__") for n in ("dict", "list", "tuple", "int", "float", "str", "bool")
}
NUMPY_NAMES = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")} | {"numpy.dtype"}
DEFAULTDICT = "collections.defaultdict"
KNOWN_TO_TORCH = ("torch", "collections.OrderedDict", "collections.Counter", "_codecs.encode")


class Inert:
    """Stands in for an object of another program: keeps its arguments and its state, and does nothing."""

    args: tuple
    state: Any

    def __new__(cls, *args):
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state):
        self.state = state


def _plain_dict(*_) -> dict:
    return {}


def read_pickle(path: Path) -> Any:
    """The tensors and plain data of a file that torch saved; objects of other programs as dictionaries of their fields.

    Raises:
        ExportError: the file cannot be read, or names code that has no business in a checkpoint; nothing of it has run.
    """
    try:
        names = _globals(path)
    except OSError:
        raise
    except Exception:  # whatever a broken or hostile file makes the parser stumble over
        raise ExportError(f"{path}: not a file that torch has saved, or a damaged one; download it again.") from None
    inert = [name for name in names if name.split(".")[0] in INERT_MODULES or name in INERT_NAMES | NUMPY_NAMES]
    strange = [n for n in names if n not in inert and n != DEFAULTDICT and not _is_under(n, KNOWN_TO_TORCH)]
    if strange:
        raise ExportError(
            f"{path}: refused: it names code ({some(strange)}) where tensors and settings belong; nothing has been "
            "run. Do not open it with other programs unless you trust who made it."
        )
    allowed: list = [(Inert, name) for name in inert] + [(_plain_dict, DEFAULTDICT)]
    try:
        with torch.serialization.safe_globals(allowed):
            return plain(torch.load(path, map_location="cpu", weights_only=True))
    except OSError:
        raise
    except Exception as error:  # torch's own errors for damaged files are of many kinds
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{path}: cannot be read as tensors and plain data: {reason}") from None


def _is_under(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _globals(path: Path) -> list[str]:
    """Every name that the pickles of a file ask for; they are scanned, not run."""
    names: set[str] = set()
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                members = [name for name in archive.namelist() if name.endswith("data.pkl")]
                if not members:
                    raise ValueError
                for member in members:
                    names |= _names(io.BytesIO(archive.read(member)))
        else:  # before torch 1.6: magic number, protocol, system, then the object, one pickle behind the other
            file.seek(0)
            for _ in range(4):
                names |= _names(file)
    return sorted(names)


def _names(file) -> set[str]:
    return {
        str(argument).replace(" ", ".") for opcode, argument, _ in pickletools.genops(file) if opcode.name == "GLOBAL"
    }


def plain(value: Any) -> Any:
    """`Inert` objects as what they hold: a dictionary of fields, or the value that an omegaconf node wraps."""
    if isinstance(value, Inert):
        if not isinstance(value.state, dict):
            return plain(value.args[0]) if value.args else None  # a member of an enumeration is made from its value
        for content in ("_content", "_val", "_value_"):
            if content in value.state:
                return plain(value.state[content])
        return plain(value.state)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Raises ExportError for a file that is cut short or damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ExportError(f"{path}: not a whole safetensors file ({error}); download or copy it again.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Raises ExportError for a file that is no JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ExportError(f"{path}: not a JSON object; download or copy it again.")
    return data


def only_tensors(data: Any, path: Path) -> dict[str, Tensor]:
    """A state dict as float32 where it holds floating numbers. Raises ExportError if it is none."""
    if not isinstance(data, dict) or not data or not all(isinstance(tensor, Tensor) for tensor in data.values()):
        raise ExportError(f"{path}: holds no dictionary of tensors by name; give the file of a model's weights.")
    return {str(name): tensor.float() if tensor.is_floating_point() else tensor for name, tensor in data.items()}
