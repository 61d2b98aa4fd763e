"""The file that `decode` writes and `score` reads: JSON lines of id, text, reference; settings beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from speechssl.errors import UserError


class DecodedFileError(UserError):
    """A decode file that cannot be used. The message names the file, the line and the reason."""


def settings_path(decoded_path: str | Path) -> Path:
    """Where the settings lie that a decode file was made with."""
    return Path(f"{decoded_path}.settings.json")


def text_rule(decoded_path: str | Path) -> dict[str, str]:
    """The vocabulary's rule (case, punctuation) by which the texts of a decode file are written."""
    path = settings_path(decoded_path)
    try:
        rule = json.loads(path.read_text(encoding="utf-8"))["text_rule"]
        return {"case": rule["case"], "punctuation": rule["punctuation"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise DecodedFileError(
            f"{path}: missing or unreadable, so nobody knows by which rule the hypotheses are written; "
            "give --vocabulary."
        ) from None


def read_decoded(path: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """Hypotheses and (where they are known) references by utterance id. Raises DecodedFileError."""
    path = Path(path)
    if not path.is_file():
        raise DecodedFileError(f"{path}: no such file; make it with `speechssl decode`.")
    hypotheses: dict[str, str] = {}
    references: dict[str, str] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = _parse(line)
            if row is None:
                raise DecodedFileError(f"{path}, line {number}: not a JSON object with the texts id and text.")
            if "audio" in row:  # its text is the reference: a perfect score that means nothing
                raise DecodedFileError(f"{path}: is a manifest, not the output of `speechssl decode`.")
            if row["id"] in hypotheses:
                raise DecodedFileError(
                    f"{path}, line {number}: utterance '{row['id']}' was there before; remove one of them."
                )
            hypotheses[row["id"]] = row["text"]
            if row.get("reference") is not None:
                references[row["id"]] = row["reference"]
    if not hypotheses:
        raise DecodedFileError(f"{path}: holds no hypotheses.")
    return hypotheses, references


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
    )
    return row if valid else None


def write_whole(path: Path, content: str) -> None:
    """Writes a text file whole or not at all (temporary file, then rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
