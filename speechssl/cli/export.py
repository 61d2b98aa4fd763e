"""`speechssl export` and `speechssl import`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

WRITERS = {
    "hf": "speechssl.export.hf:export_hf",
    "torchaudio": "speechssl.export.torchaudio:export_torchaudio",
    "fairseq": "speechssl.export.fairseq:export_fairseq",
    "onnx": "speechssl.export.onnx:export_onnx",
    "torch-export": "speechssl.export.torch_export:export_program",
}
CARDS = ("hf", "torchaudio", "fairseq")  # formats that say under which licence they are


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint.")],
    output: Annotated[Path, typer.Argument(help="What to make: a folder, or a file for fairseq, onnx, torch-export.")],
    format: Annotated[
        Literal["hf", "torchaudio", "fairseq", "onnx", "torch-export"],
        typer.Option("--format", "-f", help="Who is to open it; hf: transformers."),
    ],
    licence: Annotated[str, typer.Option("--licence", "--license", help="Of the weights, for the model card.")] = "",
) -> None:
    """Give a trained encoder to transformers, torchaudio, fairseq, ONNX or plain torch."""
    module, _, function = WRITERS[format].partition(":")
    write = getattr(import_module(module), function)
    said = write(checkpoint, output, licence=licence) if format in CARDS else write(checkpoint, output)
    print(f"Written: {output}")
    if said:
        print(said)


def import_(
    source: Annotated[
        Path, typer.Argument(help="Folder of transformers or torchaudio, or a .pt file of fairseq, WavLM or CPC.")
    ],
    output: Annotated[Path, typer.Argument(help="Checkpoint folder to make.")],
) -> None:
    """Take in a released model: wav2vec 2.0, HuBERT, WavLM, data2vec, wav2vec, CPC; nothing in it is run."""
    from speechssl.export.imports import import_weights
    from speechssl.export.keymaps import some

    found = import_weights(source, output)
    name = found.objective["name"].rsplit(":", 1)[-1]
    print(f"{found.about}: {len(found.tensors)} tensors, objective {name}")
    if found.left_behind:
        print(f"left behind, for want of a place: {some(found.left_behind, 6)}")
    if name == "ctc":
        print(f"next: speechssl decode {output} MANIFEST.jsonl -o hypotheses.jsonl")
        return
    print(
        f"next: speechssl finetune --init {output} --preset ... --train LABELLED.jsonl --vocabulary vocab.json -o ..."
    )
    if name != "EncoderAlone":
        print(f"or:   speechssl pretrain --preset {output}/config.yaml --init {output} --train OWN.jsonl -o ...")
