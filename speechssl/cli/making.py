"""A manifest from a corpus, made once: what the commands of `speechssl manifest` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from speechssl.errors import UserError

if TYPE_CHECKING:
    from speechssl.data.corpora import Corpus
    from speechssl.data.manifest import Manifest
    from speechssl.data.scan import Rules, ScanReport


def make(
    command: str,
    arguments: dict,
    output: Path,
    rules: Rules,
    read: Callable[[], Corpus],
    jobs: int,
    force: bool,
    *,
    detector: str | None = None,
) -> Path:
    """Reads, scans, cuts (with a detector), reports, writes; does nothing if that was done. Returns the manifest."""
    from dataclasses import asdict, replace

    from rich.console import Console

    from speechssl.data.scan import ScanReport, scan
    from speechssl.data.segment import segment_long

    made_by = made_by_command(command, arguments | asdict(rules) | {"detector": detector})
    if is_made(output, made_by, force):
        return output
    corpus = read()
    if command == "librispeech":  # transcripts are expected, unless there are none at all
        rules = replace(rules, require_text=any(candidate.text for candidate in corpus.candidates))
    manifest, left_out = scan(corpus, rules, jobs=jobs)
    if detector is not None:
        manifest, silent = segment_long(manifest, max_seconds=rules.max_seconds, detector=detector, jobs=jobs)
        left_out += silent
    report = ScanReport.of(manifest, left_out, made_by)
    report.show(Console())
    if not manifest:
        why = ", ".join(f"{len(items)} {reason}" for reason, items in report.by_reason().items())
        raise UserError(f"{output}: not written, no utterance is left ({why}).")
    write(manifest, report, output)
    typer.echo(f"wrote {output} and {_report_path(output)}")
    return output


def made_by_command(command: str, arguments: dict) -> dict:
    plain = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in arguments.items()}
    return {"command": f"manifest {command}", "arguments": plain}


def is_made(output: Path, made_by: dict, force: bool) -> bool:
    """True if this very command made the manifest. Raises UserError if something else did and `force` is not given."""
    if force or not output.exists():
        return False
    try:
        record = json.loads(_report_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if not isinstance(record, dict) or record.get("made_by") != made_by:
        raise UserError(
            f"{output}: exists and was not made by this command with these arguments; "
            "choose another name or give --force."
        )
    typer.echo(f"{output}: already made, left as it is (--force makes it again)")
    return True


def write(manifest: Manifest, report: ScanReport, output: Path) -> None:
    """The report first: a manifest with a report beside it is a finished one."""
    output.unlink(missing_ok=True)
    report.write(_report_path(output))
    manifest.write(output)


def _report_path(output: Path) -> Path:
    return output.with_name(output.name + ".report.json")


def say_next(manifest: Path) -> None:
    typer.echo(f"next: speechssl pretrain --train {manifest} ..., or speechssl manifest split {manifest} ...")
