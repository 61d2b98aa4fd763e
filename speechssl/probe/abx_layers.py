"""The ABX error of every layer of a frozen encoder, beside random weights and log-mel."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechssl.checkpoint import find_checkpoint, load_checkpoint
from speechssl.data.items import Item, ItemsError, read_items
from speechssl.data.manifest import Manifest
from speechssl.device import pick_device
from speechssl.files import write_whole
from speechssl.probe.abx import Context, abx_error, cells_across, cells_within, with_items
from speechssl.probe.features import CHANNELS, LOG_MEL, FrameSource, batches, frames_of
from speechssl.probe.probing import ProbeError, sources

MADE_BY = "speechssl abx"


@dataclass(frozen=True, kw_only=True)
class ABXSettings:
    """
    context, most, speakers, seed: see `speechssl.probe.abx`.
    random_seeds: encoders of the same architecture with random weights to compare with.
    layers: of the encoders, for example "latents" and "3"; none: all.
    """

    context: Context = "within"
    most: int = 10
    speakers: int = 5
    random_seeds: int = 1
    layers: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class ABXRow:
    """Errors of one layer, from 0 to 1; None: the items have no such cells. The rest is as in a probe's `Row`."""

    features: str
    seed: int
    layer: str
    within: float | None
    across: float | None


@dataclass(frozen=True)
class ABXResult:
    """Rows, and what they were made with: `facts` has settings, items, cells_within, cells_across, problems."""

    rows: tuple[ABXRow, ...]
    facts: dict[str, Any]


def abx(
    run: str | Path,
    items_path: str | Path,
    manifest_path: str | Path,
    output: str | Path,
    settings: ABXSettings,
    *,
    device: str | None = None,
    seconds_per_batch: float = 60.0,
) -> ABXResult:
    """Writes the errors of every layer to `output` (JSON); does nothing but read them if they were made before.

    An item is the frames whose middle (of what they see) lies in it, or the nearest one if none does.

    Raises:
        ProbeError: something else lies in `output`, or there is no such layer.
        ItemsError: no item's utterance is in the manifest, or nothing can be compared.
        ManifestError, CheckpointError.
    """
    output, where = Path(output), pick_device(device)
    asked = _describe(run, items_path, manifest_path, settings)
    if output.exists():
        known = _read(output)
        if known.facts["settings"] == asked:
            print(f"{output}: already made, left as it is")
            return known
        raise ProbeError(f"{output}: holds another result; choose another --output.")
    checkpoint = load_checkpoint(run)
    known_layers = ["latents", *map(str, range(checkpoint.objective.encoder.num_layers + 1))]
    if strange := [layer for layer in settings.layers if layer not in known_layers]:
        raise ProbeError(f"{run}: has no layer '{strange[0]}'; choose among {', '.join(known_layers)}.")
    manifest, every = Manifest.read(manifest_path), read_items(items_path)
    here = {u.id for u in manifest}
    items = [item for item in every if item.utterance in here]
    if not items:
        raise ItemsError(
            f"{items_path}: not one of its {len(every)} items is of an utterance in {manifest_path}; the names in its "
            f"first column ({every[0].utterance}) must be ids of the manifest ({manifest[0].id})."
        )
    numbers: dict[str, Any] = {"context": settings.context, "most": settings.most, "seed": settings.seed}
    cells = cells_within(items, **numbers), cells_across(items, speakers=settings.speakers, **numbers)
    if not any(cells):
        raise ItemsError(
            f"{items_path}: no phones can be compared: nobody says a phone twice, and another one, in one context; "
            "use more items, or --context any."
        )
    used = {number for one in cells for cell in one for number in (*cell.a, *cell.b, *cell.x)}
    facts: dict[str, Any] = {"made_by": MADE_BY, "settings": asked}
    facts |= {"items": len(items), "absent": len(every) - len(items)}
    facts |= {"cells_within": len(cells[0]), "cells_across": len(cells[1])}
    rows: list[ABXRow] = []
    problems: list[str] = []
    for features, seed, source in sources(checkpoint, settings.random_seeds, where):
        title = f"{features} {seed}" if seed else features
        unread: list[str] = []
        frames = frames_of_items(
            source, manifest, items, used, settings.layers, unread, title=title, seconds_per_batch=seconds_per_batch
        )
        problems = problems or unread
        for layer, of_items in frames.items():
            have = set(of_items)
            errors = (_known(abx_error(with_items(one, have), of_items, where)) for one in cells)
            rows.append(ABXRow(features, seed, layer, *errors))
    facts["problems"] = problems
    record = facts | {"rows": [asdict(row) for row in rows]}
    write_whole(output, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return ABXResult(tuple(rows), facts)


@torch.inference_mode()
def frames_of_items(
    source: FrameSource,
    manifest: Manifest,
    items: Sequence[Item],
    used: set[int],
    layers: Sequence[str],
    problems: list[str],
    *,
    title: str,
    seconds_per_batch: float,
) -> dict[str, dict[int, np.ndarray]]:
    """Layer -> number of an item -> its frames (S, D), of the items `used`.

    `problems` receives why utterances could not be read.
    """
    of_utterance: dict[str, list[int]] = {}
    for number in sorted(used):
        of_utterance.setdefault(items[number].utterance, []).append(number)
    wanted = manifest.filter(lambda u: u.id in of_utterance)
    found: dict[str, dict[int, np.ndarray]] = {}
    for batch in batches(source, wanted, problems, title=title, seconds_per_batch=seconds_per_batch):
        for name, of_layers in frames_of(source, batch):
            chosen = [layer for layer in of_layers if not layers or layer in (*layers, LOG_MEL, CHANNELS)]
            middles = source.middles(len(next(iter(of_layers.values()))))
            for number in of_utterance[name]:
                inside = _inside(items[number], middles)
                for layer in chosen:
                    found.setdefault(layer, {})[number] = of_layers[layer][inside].copy()
    if not found:
        raise ItemsError(f"not one of {len(wanted)} utterances could be read: {problems[0]}")
    return found


def _inside(item: Item, middles: np.ndarray) -> np.ndarray:
    inside = np.flatnonzero((middles >= item.onset) & (middles <= item.offset))
    if len(inside):
        return inside
    return np.array([np.abs(middles - (item.onset + item.offset) / 2).argmin()])


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error


def _describe(run, items_path, manifest_path, settings: ABXSettings) -> dict[str, Any]:
    files = {"items": Path(items_path), "manifest": Path(manifest_path)}
    record: dict[str, Any] = {"checkpoint": str(find_checkpoint(run).resolve())} | asdict(settings)
    for name, path in files.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        record |= {name: str(path.resolve()), f"{name}_sha256": digest}
    return json.loads(json.dumps(record))  # tuples become lists, as they will be when read


def _read(path: Path) -> ABXResult:
    """What `abx` wrote. Raises ProbeError where something else lies."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["made_by"] != MADE_BY or not isinstance(record["settings"], dict):
            raise ValueError
        return ABXResult(tuple(ABXRow(**row) for row in record.pop("rows")), record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ProbeError(f"{path}: exists and was not made by `speechssl abx`; choose another --output.") from None
