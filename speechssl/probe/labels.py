"""Labels of utterances by the name of a column, and few of them drawn at random."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from speechssl.data.manifest import Manifest
from speechssl.errors import UserError


class LabelError(UserError):
    """Labels that cannot be learnt or tested. The message names the manifest or the labels."""


def labels_of(manifest: Manifest, column: str) -> list[str | None]:
    """One label per utterance; None where it has none.

    Args:
        column: "speaker", "text", any other column of the manifest, or "folder:1": the first folder of the id, which
            is the path below the folder that `speechssl manifest folder` read (a genre, a keyword).

    Raises:
        LabelError: no utterance has one.
    """
    level = re.fullmatch(r"folder:([1-9]\d*)", column)
    found: list[str | None] = []
    for utterance in manifest:
        if level:
            folders = utterance.id.split("/")[:-1]
            number = int(level[1])
            found.append(folders[number - 1] if number <= len(folders) else None)
        elif column in ("speaker", "text"):
            found.append(getattr(utterance, column) or None)
        else:
            value = utterance.extra.get(column)
            found.append(None if value is None else str(value))
    if not any(label is not None for label in found):
        columns = sorted({key for utterance in manifest for key in utterance.extra})
        others = f", {', '.join(columns)}" if columns else ""
        raise LabelError(
            f"no utterance (the first is {manifest[0].id}) has a label '{column}'; "
            f"choose speaker, text, folder:1{others}, or add the column to the manifest."
        )
    return found


def check_same_classes(train: Sequence[str], test: Sequence[str]) -> None:
    """Raises LabelError where train has only one class, or test one that train has not."""
    if len(set(train)) < 2:
        raise LabelError(f"all {len(train)} training utterances have the label '{train[0]}'; two or more are needed.")
    strange = sorted(set(test) - set(train))
    if strange:
        count = sum(label in strange for label in test)
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise LabelError(
            f"{count} test utterances have labels that training does not: {shown}; test on the classes of training "
            "(speakers: hold some utterances of each out with `speechssl speaker split`)."
        )


def draw_per_class(labels: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Indices of `count` utterances of each class (all of a class that has fewer), in ascending order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    taken: dict[str, int] = {}
    kept = []
    for index in order.tolist():
        taken[labels[index]] = taken.get(labels[index], 0) + 1
        if taken[labels[index]] <= count:
            kept.append(index)
    return np.array(sorted(kept))


def draw_in_all(labels: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Indices of `count` utterances, the classes taking turns: one of each, then a second of each, ..."""
    order = np.random.default_rng(seed).permutation(len(labels))
    seen: dict[str, int] = {}
    turns = []
    for place, index in enumerate(order.tolist()):
        turns.append((seen.get(labels[index], 0), place, index))
        seen[labels[index]] = seen.get(labels[index], 0) + 1
    return np.array(sorted(index for _, _, index in sorted(turns)[:count]))
