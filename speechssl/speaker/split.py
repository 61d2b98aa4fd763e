"""Utterances held out within each speaker, and few labels to learn from: a manifest in two parts."""

from __future__ import annotations

import re

from speechssl.data.labels import labels_of
from speechssl.data.manifest import Manifest
from speechssl.errors import UserError
from speechssl.probe.labels import draw_in_all, draw_per_class


class SplitError(UserError):
    """A split that leaves one part empty. The message says why."""


def take(
    manifest: Manifest,
    *,
    per_class: int | None = None,
    in_all: int | None = None,
    matching: str | None = None,
    label: str = "speaker",
    seed: int = 0,
) -> tuple[Manifest, Manifest]:
    """(taken, the rest): so many utterances of each class, so many in all with the classes in turn, or by their ids.

    Args:
        per_class, in_all, matching: one of the three; `matching` is a regular expression searched in the id.
        label: see `labels_of`; utterances without it are in neither part.

    Raises:
        SplitError: not exactly one of the three, not a regular expression, or a part is empty.
        LabelError: no utterance has the label.
    """
    if sum(choice is not None for choice in (per_class, in_all, matching)) != 1:
        raise SplitError("say one of: how many per class, how many in all, or which ids.")
    found = labels_of(manifest, label)
    labelled = [(u, name) for u, name in zip(manifest, found, strict=True) if name is not None]
    names = [name for _, name in labelled]
    if matching is not None:
        try:
            pattern = re.compile(matching)
        except re.error as error:
            raise SplitError(f"'{matching}' is no regular expression: {error}.") from None
        chosen = {i for i, (u, _) in enumerate(labelled) if pattern.search(u.id)}
    elif per_class is not None:
        chosen = set(draw_per_class(names, per_class, seed).tolist())
    else:
        chosen = set(draw_in_all(names, in_all or 0, seed).tolist())
    if not 0 < len(chosen) < len(labelled):
        raise SplitError(f"{len(chosen)} of {len(labelled)} utterances would be taken, so one part would be empty.")
    parts = ([u for i, (u, _) in enumerate(labelled) if (i in chosen) == wanted] for wanted in (True, False))
    taken, rest = (Manifest.of(part) for part in parts)
    return taken, rest
