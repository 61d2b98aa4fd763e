"""`speechssl features`, `kmeans` and `units`: what HuBERT and WavLM predict. Three commands, in this order.

Iteration 1, from MFCC every 20 ms (one for each frame of the waveform convolutions, two for a log-mel frame of 40 ms):

    speechssl features train.jsonl --mfcc -o units1/train          # and the same for valid.jsonl -o units1/valid
    speechssl kmeans units1/train -k 100 -o units1/kmeans.safetensors
    speechssl units units1/train units1/valid --kmeans units1/kmeans.safetensors -o units1/units
    speechssl pretrain --preset hubert-tiny --train train.jsonl --valid valid.jsonl -o hubert1 data.units=units1/units

`--mfcc --cmvn` takes level and microphone out of the units, where recordings differ in them; the paper did without.

Iteration 2, from a layer of iteration 1 (Base: layer 6 of 12, 500 units; the tiny twin: layer 2 of 4, 100 units, one
for each of its own frames):

    speechssl features train.jsonl --checkpoint hubert1 --layer 2 -o units2/train     # and for valid.jsonl
    speechssl kmeans units2/train -k 100 -o units2/kmeans.safetensors
    speechssl units units2/train units2/valid --kmeans units2/kmeans.safetensors -o units2/units
    speechssl pretrain --preset hubert-tiny --train train.jsonl --valid valid.jsonl -o hubert2 \\
        data.units=units2/units objective.targets_per_frame=1

Each can be stopped and run again: it goes on where it was, and does nothing where it was done.
Layer 0 is the input of the context network's first block, layer i the output of block i after residual and norm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.errors import UserError

Folders = Annotated[list[Path], typer.Argument(metavar="FEATURES...", help="Folders made by `speechssl features`.")]


def features(
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSON lines) of the speech.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the features; half-made ones go on.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Run or checkpoint whose encoder says them.")] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            help="Its layer: 0 = input of the first block, i = output of block i after residual and norm. It is the "
            "i of transformers' hidden_states, and i - 1 of torchaudio's extract_features (from 0)."
        ),
    ] = None,
    mfcc: Annotated[bool, typer.Option("--mfcc", help="MFCC with deltas (39 numbers), no checkpoint.")] = False,
    cmvn: Annotated[
        bool, typer.Option("--cmvn", help="With --mfcc: mean 0, variance 1 in every utterance; for mixed recordings.")
    ] = False,
    hop_ms: Annotated[int, typer.Option(help="With --mfcc: ms from frame to frame, 10 or a multiple.")] = 20,
    sample_rate: Annotated[int, typer.Option(min=4000, help="With --mfcc: Hz that audio is resampled to.")] = 16_000,
    shard_hours: Annotated[float, typer.Option(min=1e-4, help="Hours of audio per file.")] = 0.5,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes on this machine.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if any.")] = None,
    seconds_per_batch: Annotated[float, typer.Option(min=0.1, help="Largest batch of an encoder.")] = 60.0,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Arithmetic of an encoder.")] = "fp32",
    window: Annotated[float, typer.Option(help="Seconds; what is longer is read in windows of so many.")] = 60.0,
    context: Annotated[float, typer.Option(help="Seconds at each inner edge of a window that are not used.")] = 5.0,
) -> None:
    """Write features of every frame: MFCC, or a layer of a checkpoint. `accelerate launch` shares the work out."""
    if mfcc == (checkpoint is not None) or (checkpoint is None) != (layer is None):
        raise UserError("give either --mfcc, or --checkpoint RUN with --layer N.")
    if cmvn and not mfcc:
        raise UserError("--cmvn is for --mfcc; the layers of a checkpoint stay as they are.")
    from speechssl.units.extract import extract_layer, extract_mfcc

    if checkpoint is None or layer is None:
        rates = {"hop_ms": hop_ms, "sample_rate": sample_rate}
        extract_mfcc(manifest, output, **rates, cmvn=cmvn, shard_hours=shard_hours, jobs=jobs)
    else:
        extract_layer(
            checkpoint,
            layer,
            manifest,
            output,
            shard_hours=shard_hours,
            jobs=jobs,
            device=device,
            seconds_per_batch=seconds_per_batch,
            precision=precision,
            window=window,
            context=context,
        )
    if layer is not None:
        place = f"output of block {layer} after residual and norm" if layer else "input of the first block"
        print(f"Layer {layer}: {place}.")
    print(f"Features: {output}\nnext: speechssl kmeans {output} -k 100 -o kmeans.safetensors")


def kmeans(
    folders: Folders,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the clusters (.safetensors).")],
    num_units: Annotated[int, typer.Option("-k", "--num-units", min=2, help="How many clusters.")],
    hours: Annotated[float, typer.Option(min=1e-4, help="Hours of speech to cluster, drawn at random.")] = 100.0,
    starts: Annotated[int, typer.Option(min=1, help="k-means++ starts, of which the best is taken.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="Most passes over these hours.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw and of the starts.")] = 1,
) -> None:
    """Cluster features by mini-batch k-means (scikit-learn)."""
    from speechssl.units.kmeans import KMeansConfig, fit_to_file

    config = KMeansConfig(num_units=num_units, hours=hours, starts=starts, epochs=epochs, seed=seed)
    made_with = fit_to_file(folders, output, config).made_with
    print(
        f"Clusters: {output}, from {made_with['frames']} frames in {made_with['passes']} passes, mean squared distance "
        f"{made_with['mean_squared_distance']:.4g}\nnext: speechssl units FEATURES... --kmeans {output} -o units"
    )


def units(
    folders: Folders,
    kmeans: Annotated[Path, typer.Option(help="Clusters made by `speechssl kmeans`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the units.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="Where letters or phones are said (of `speechssl align`, or a .ctm file): print purity."),
    ] = None,
) -> None:
    """Give every frame the number of its cluster; with labels, say how well the two agree."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from speechssl.data.alignment import read_alignment
    from speechssl.units.assign import count_labels, make_units, purity, usage

    aligned = None if labels is None else read_alignment(labels)
    made = make_units(folders, kmeans, output)
    counts = usage(made)
    share = counts[counts > 0] / max(counts.sum(), 1)
    record = made.record
    print(
        f"Units: {output}, {len(made)} utterances, one every {1000 * record.hop / record.sample_rate:g} ms; "
        f"{(counts > 0).sum()} of {record.num_units} used, perplexity {np.exp(-(share * np.log(share)).sum()):.1f}"
    )
    if aligned is not None:
        result = purity(count_labels(made, aligned))
        table = Table("label purity", "cluster purity", "information / entropy of the labels", "frames")
        table.add_row(f"{result.label:.3f}", f"{result.unit:.3f}", f"{result.information:.3f}", str(result.frames))
        Console().print(table)
    print(f"next: speechssl pretrain --preset hubert-tiny --train TRAIN.jsonl -o RUN data.units={output}")
