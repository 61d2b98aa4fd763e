"""Who may import whom, read from the source of every file. Imports inside functions count too."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import speechssl

PACKAGE = Path(speechssl.__file__).parent
LONGEST = 350  # lines; a file that passes it is two rooms

# Part -> the parts of ours, and the libraries beside Python's own, that it may import (None: any library).
# `files` is standard library only, and every part may import it.
LAYERS: dict[str, tuple[set[str], set[str] | None]] = {
    "errors": (set(), set()),
    "files": (set(), set()),
    "device": ({"errors"}, {"torch"}),
    "config": ({"errors"}, {"pydantic", "yaml"}),
    "batch": (set(), {"torch"}),
    "nn": ({"nn"}, {"numpy", "torch", "torchaudio"}),
    "data": ({"config", "batch", "errors", "data"}, None),
    "objectives": ({"nn", "batch", "errors", "objectives"}, None),
    "units": ({"device", "nn", "data", "checkpoint", "config", "batch", "errors", "units"}, None),
    "probe": (
        {"device", "nn", "objectives", "data", "checkpoint", "build", "config", "batch", "errors", "probe"},
        None,
    ),
    "speaker": (
        {"device", "nn", "objectives", "data", "checkpoint", "config", "batch", "errors", "probe", "speaker"},
        None,
    ),
    "export": (
        {"nn", "objectives", "data", "checkpoint", "build", "config", "batch", "errors", "export"},
        None,
    ),
    "sharding": ({"objectives"}, {"torch"}),
    "page": (
        {"", "objectives", "data", "checkpoint", "build", "config", "batch", "errors", "asr", "probe", "page"},
        None,
    ),
    "listener": (
        {"objectives", "data", "checkpoint", "batch", "errors", "page", "probe", "speaker"},
        None,
    ),
    "serve": ({"data", "errors", "listener", "page"}, None),
    "surprise": ({"data", "checkpoint", "errors"}, None),
    "asr": ({"device", "nn", "objectives", "data", "checkpoint", "batch", "errors", "asr"}, None),
    "extract": ({"device", "nn", "data", "checkpoint", "errors"}, None),
}
SHARED_OBJECTIVES = {"speechssl.objectives", "speechssl.objectives.base", "speechssl.objectives.transcription"}
SHARED_OBJECTIVES |= {"speechssl.objectives.log_mel", "speechssl.objectives.views"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source: str) -> set[str]:
    """Full names of the modules that a file imports, wherever in it; `from package import module` names the module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are written in full, from speechssl on"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in names}
    return found


IMPORTS = {name: imported(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def part(module: str) -> str:
    """speechssl.nn.heads -> nn"""
    return module.partition(".")[2].partition(".")[0]


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "speechssl"


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_imports_are_found():
    source = """
        import torch.nn, json
        from speechssl.nn import heads, losses
        def lazily():
            from speechssl.objectives.base import Objective
    """
    found = imported(textwrap.dedent(source))
    assert found == {"torch.nn", "json", "speechssl.nn.heads", "speechssl.nn.losses", "speechssl.objectives.base"}
    assert "speechssl.nn.losses" in IMPORTS["speechssl.objectives.wav2vec2"]


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer):
    ours, libraries = LAYERS[layer]
    members = [name for name in FILES if part(name) == layer]
    assert members
    for name in members:
        for target in IMPORTS[name]:
            if is_ours(target):
                assert part(target) in ours | {"files"}, f"{name} must not import {target}"
            elif libraries is not None:
                root = target.split(".")[0]
                assert root in libraries | sys.stdlib_module_names, f"{name} must not import {target}"


def test_nobody_imports_a_concrete_objective():
    """They are found by name; only what several of them share is imported, and only by objectives."""
    for name, targets in IMPORTS.items():
        for target in targets:
            if is_under(target, "speechssl.objectives"):
                # WavLM is HuBERT that hears mixed speech.
                is_wavlm = (name, target) == ("speechssl.objectives.wavlm", "speechssl.objectives.hubert")
                assert target in SHARED_OBJECTIVES or is_wavlm, f"{name} must not import {target}"


def test_only_the_command_line_imports_the_command_line():
    for name, targets in IMPORTS.items():
        if not is_under(name, "speechssl.cli") and name != "speechssl.__main__":
            assert not [t for t in targets if is_under(t, "speechssl.cli")], f"{name} must not import the command line"


@pytest.mark.parametrize("module", ["speechssl", "speechssl.config", "speechssl.cli"])
def test_help_and_configuration_errors_are_instant(module):
    """No torch: it takes seconds to load."""
    code = f"import sys, {module}; print([m for m in ('torch', 'torchaudio', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_too_long():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert {name: count for name, count in lengths.items() if count > LONGEST} == {}
