"""Labels of utterances by the name of a manifest's column."""

from __future__ import annotations

import re

from speechssl.data.manifest import Manifest, Utterance
from speechssl.errors import UserError


class LabelError(UserError):
    """Labels that cannot be learnt or tested. The message names the manifest or the labels."""


def label_of(utterance: Utterance, column: str) -> str | None:
    """The label of one utterance, None where it has none; `column` as for `labels_of`."""
    if level := re.fullmatch(r"folder:([1-9]\d*)", column):
        folders, number = utterance.id.split("/")[:-1], int(level[1])
        return folders[number - 1] if number <= len(folders) else None
    if column in ("speaker", "text"):
        return getattr(utterance, column) or None
    value = utterance.extra.get(column)
    return None if value is None else str(value)


def classes(manifest: Manifest, column: str) -> list[str]:
    """The labels that there are, sorted; `column` as for `labels_of`."""
    return sorted({label for utterance in manifest if (label := label_of(utterance, column)) is not None})


def labels_of(manifest: Manifest, column: str) -> list[str | None]:
    """One label per utterance; None where it has none.

    Args:
        column: "speaker", "text", any other column of the manifest, or "folder:1": the first folder of the id, which
            is the path below the folder that `speechssl manifest folder` read (a genre, a keyword).

    Raises:
        LabelError: no utterance has one.
    """
    found = [label_of(utterance, column) for utterance in manifest]
    if not any(label is not None for label in found):
        columns = sorted({key for utterance in manifest for key in utterance.extra})
        others = f", {', '.join(columns)}" if columns else ""
        raise LabelError(
            f"no utterance (the first is {manifest[0].id}) has a label '{column}'; "
            f"choose speaker, text, folder:1{others}, or add the column to the manifest."
        )
    return found
