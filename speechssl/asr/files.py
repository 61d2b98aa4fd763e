"""The file that `decode` writes and `score` reads: JSON lines of id, text, reference, ...; settings beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speechssl.errors import UserError


class DecodedFileError(UserError):
    """A decode file that cannot be used. The message names the file, the line and the reason."""


def settings_path(decoded_path: str | Path) -> Path:
    """Where the settings lie that a decode file was made with."""
    return Path(f"{decoded_path}.settings.json")


def read_settings(decoded_path: str | Path) -> dict[str, Any]:
    """What a decode file was made with; empty if that cannot be read (another program made it)."""
    try:
        record = json.loads(settings_path(decoded_path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def text_rule(decoded_path: str | Path) -> dict[str, str]:
    """The vocabulary's rule (case, punctuation) by which the texts of a decode file are written."""
    try:
        rule = read_settings(decoded_path)["text_rule"]
        return {"case": rule["case"], "punctuation": rule["punctuation"]}
    except (KeyError, TypeError):
        raise DecodedFileError(
            f"{settings_path(decoded_path)}: missing or unreadable, so nobody knows by which rule the hypotheses are "
            "written; give --vocabulary."
        ) from None


def read_decoded(path: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """Hypotheses and (where they are known) references by utterance id. Raises DecodedFileError."""
    rows = read_rows(path)
    hypotheses = {row["id"]: row["text"] for row in rows}
    return hypotheses, {row["id"]: row["reference"] for row in rows if row.get("reference") is not None}


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a decode file, each with id and text at least. Raises DecodedFileError with file and line."""
    path = Path(path)
    if not path.is_file():
        raise DecodedFileError(f"{path}: no such file; make it with `speechssl decode`.")
    rows: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = _parse(line)
            if row is None:
                raise DecodedFileError(f"{path}, line {number}: not a JSON object with the texts id and text.")
            if "audio" in row:  # its text is the reference: a perfect score that means nothing
                raise DecodedFileError(f"{path}: is a manifest, not the output of `speechssl decode`.")
            if row["id"] in rows:
                raise DecodedFileError(
                    f"{path}, line {number}: utterance '{row['id']}' was there before; remove one of them."
                )
            rows[row["id"]] = row
    if not rows:
        raise DecodedFileError(f"{path}: holds no hypotheses.")
    return list(rows.values())


def _parse(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = (
        isinstance(row, dict)
        and isinstance(row.get("id"), str)
        and isinstance(row.get("text"), str)
        and isinstance(row.get("reference"), str | None)
        and isinstance(row.get("speaker"), str | None)
        and isinstance(row.get("seconds"), int | float | None)
        and _are_hypotheses(row.get("nbest", []))
    )
    return row if valid else None


def _are_hypotheses(nbest: Any) -> bool:
    numbers = ("score", "acoustic", "lm")
    return isinstance(nbest, list) and all(
        isinstance(item, dict)
        and isinstance(item.get("text"), str)
        and all(isinstance(item.get(name), int | float) for name in numbers)
        for item in nbest
    )
