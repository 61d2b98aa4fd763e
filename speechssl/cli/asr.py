"""`speechssl decode` and `speechssl score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def decode(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a fine-tuned encoder.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSON lines) of what to transcribe.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the texts go: one JSON line per utterance.")],
    seconds_per_batch: Annotated[float, typer.Option(min=0.1, help="Largest batch in seconds of audio.")] = 60.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if any.")] = None,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Arithmetic of the encoder.")] = "fp32",
) -> None:
    """Transcribe a manifest with a fine-tuned encoder (greedy CTC)."""
    from speechssl.asr.decode import decode_manifest

    decode_manifest(
        checkpoint, manifest, output, seconds_per_batch=seconds_per_batch, device=device, precision=precision
    )
    print(f"Texts: {output}\nnext: speechssl score {output}")


def score(
    hypotheses: Annotated[Path, typer.Argument(help="Output of `speechssl decode`.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for score.json, per_utterance.tsv and worst.txt; default: beside it."
        ),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Take the references from this manifest, not from the decode file.")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Normalise both sides by this vocabulary's rule (texts of other programs).")
    ] = None,
    samples: Annotated[int, typer.Option(min=100, help="Bootstrap samples for the 95% interval.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Word and character error rates with a 95% interval, per utterance, and the worst utterances aligned."""
    from rich.console import Console
    from rich.table import Table

    from speechssl.asr.score import score_files

    out = output or hypotheses.with_suffix(".score")
    result = score_files(hypotheses, out, manifest=manifest, vocabulary=vocabulary, samples=samples, seed=seed)
    table = Table("WER %", "95% interval", "CER %", "sub", "ins", "del", "words", "utterances")
    table.add_row(
        f"{100 * result.wer:.2f}",
        f"{100 * result.low:.2f} - {100 * result.high:.2f}",
        f"{100 * result.cer:.2f}",
        *map(str, (result.substitutions, result.insertions, result.deletions, result.words, result.utterances)),
    )
    Console().print(table)
    if result.warning:
        print(f"Warning: {result.warning}")
    print(f"Per utterance: {out / 'per_utterance.tsv'}\nThe worst, aligned: {out / 'worst.txt'}")
