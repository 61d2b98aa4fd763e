"""Does a fine-tuned run say the same in other programs? Exports it, transcribes a manifest there, compares the texts.

    python tools/check_export.py exp/demo-raw/10min-0/pretrained data/demo/manifests/test.jsonl

Three texts for each utterance: of `speechssl decode` (greedy, in batches), of transformers' pipeline on the folder that
`export --format hf` makes, and of onnxruntime on the file of `--format onnx`, the best token of each frame collapsed as
`decode` does it. Exit status 1 if one of them has other words. All on the CPU, in float32.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from speechssl.asr.decode import decode_manifest, greedy
from speechssl.asr.files import read_decoded
from speechssl.checkpoint import load_checkpoint
from speechssl.data.audio import read_waveform
from speechssl.data.manifest import Manifest
from speechssl.data.tokens import Tokenizer
from speechssl.errors import UserError
from speechssl.export.hf import export_hf
from speechssl.export.onnx import export_onnx

Transcribe = Callable[[torch.Tensor], str]  # a waveform (T,) -> its text


def in_transformers(run: Path, folder: Path) -> Transcribe:
    import transformers

    export_hf(run, folder / "hf")
    pipe: Any = transformers.pipeline("automatic-speech-recognition", model=str(folder / "hf"), device="cpu")
    return lambda waveform: pipe(waveform.numpy())["text"]


def in_onnxruntime(run: Path, folder: Path) -> Transcribe:
    import onnxruntime

    export_onnx(run, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    tokenizer = Tokenizer.from_dict(json.loads(facts["tokenizer"]), source="model.onnx")

    def transcribe(waveform: torch.Tensor) -> str:
        lengths = torch.tensor([len(waveform)])
        given = session.run(None, {"waveforms": waveform[None].numpy(), "lengths": lengths.numpy()})
        log_probs, frames = map(torch.from_numpy, given)
        return greedy(log_probs, frames, tokenizer)[0]

    return transcribe


PROGRAMS = {"transformers": in_transformers, "onnxruntime": in_onnxruntime}


def compare(run: Path, manifest_path: Path) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """For each program its name, and by utterance `decode`'s text and its own.

    Utterances too short for one frame are left out: there is nothing to transcribe.

    Raises:
        UserError: the run does not transcribe with one token per frame, or cannot be read or exported; the manifest
            cannot be read.
    """
    checkpoint, manifest = load_checkpoint(run), Manifest.read(manifest_path)
    if checkpoint.config.objective["name"] != "ctc":
        name = checkpoint.config.objective["name"].rsplit(":", 1)[-1]
        raise UserError(f"{run}: is a {name} model, and transformers takes models of the objective ctc alone.")
    rate, encoder = checkpoint.config.data.sample_rate, checkpoint.objective.encoder
    heard = manifest.filter(lambda utterance: encoder.frame_lengths(utterance.length_at(rate)) > 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        decode_manifest(run, manifest_path, folder / "texts.jsonl", device="cpu")
        ours, _ = read_decoded(folder / "texts.jsonl")
        for program, prepare in PROGRAMS.items():
            transcribe = prepare(run, folder)
            yield program, {u.id: (ours[u.id], transcribe(read_waveform(u, rate))) for u in heard}


def report(program: str, texts: dict[str, tuple[str, str]]) -> int:
    """Prints how many texts are the same and every other one; returns how many have other words."""
    same = sum(mine == theirs for mine, theirs in texts.values())
    others = {name: pair for name, pair in texts.items() if pair[0].split() != pair[1].split()}
    spaces, empty = len(texts) - same - len(others), sum(not mine for mine, _ in texts.values())
    notes = f", {spaces} but for spaces" * bool(spaces) + f" ({empty} of decode's are empty)" * bool(empty)
    print(f"{program}: {same} of {len(texts)} texts are those of decode{notes}")
    for name, (mine, theirs) in others.items():
        print(f"  {name}\n    decode        {mine}\n    {program:<13} {theirs}")
    return len(others)


def main(
    run: Annotated[Path, typer.Argument(help="Run folder or checkpoint of a fine-tuned CTC model.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSON lines) of what is to be transcribed.")],
) -> None:
    """Compare the texts of an exported model in transformers and onnxruntime with those of `speechssl decode`."""
    try:
        different = [report(program, texts) for program, texts in compare(run, manifest)]
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(any(different))


if __name__ == "__main__":
    typer.run(main)
