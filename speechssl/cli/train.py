"""`speechssl pretrain`, `finetune` and `show`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from speechssl.errors import REQUEUE, UserError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Numbers to change, for example optim.lr=1e-3 train.updates=5000."),
]
Preset = Annotated[str, typer.Option("--preset", "-p", help="Preset (`speechssl show` lists them) or a .yaml file.")]
Train = Annotated[Path, typer.Option("--train", help="Manifest to train on.")]
Valid = Annotated[Path | None, typer.Option("--valid", help="Manifest to validate on.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Run folder; a run that is there goes on.")]


def pretrain(
    preset: Preset,
    train: Train,
    output: Output,
    valid: Valid = None,
    init: Annotated[Path | None, typer.Option(help="Run or checkpoint whose weights to start from.")] = None,
    overrides: Overrides = None,
) -> None:
    """Pretrain an encoder on unlabelled audio."""
    _may_be_started_again()
    from speechssl.config import load

    config = load(preset, overrides or ()).override(data=_paths(train, valid))
    if init:
        config = config.override(init=str(init.resolve()))
    _run(config, output)
    _next(f"speechssl finetune --init {output} --preset ... --train LABELLED.jsonl --vocabulary vocab.json -o ...")


def finetune(
    preset: Preset,
    train: Train,
    output: Output,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Tokens of the transcripts (`speechssl vocab`), if the objective spells them.")
    ] = None,
    valid: Valid = None,
    init: Annotated[Path | None, typer.Option(help="Pretrained run or checkpoint.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="Random weights of this run's architecture instead: the scratch baseline.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Fine-tune an encoder to transcribe or to tell speakers apart, from a run (--init) or random weights (--like)."""
    _may_be_started_again()
    from speechssl.config import load, merge

    if (init is None) == (like is None):
        raise UserError("give either --init RUN (pretrained) or --like RUN (the same architecture from scratch).")
    config = load(preset, overrides or ())
    source = _source_config(init or like)
    # The architecture and what the encoder hears come from the pretrained run; the preset changes only its numbers.
    # A number that this run's context network does not have (attention dropout of a GRU) is left out.
    numbers = dict(config.encoder)
    if "name" not in numbers.get("context", {}):
        numbers["context"] = _context_numbers(source, numbers.get("context", {}))
    heard = {"sample_rate": source.data.sample_rate, "normalize": source.data.normalize}
    config = config.override(
        data={**_paths(train, valid), **heard, "vocabulary": str(vocabulary.resolve()) if vocabulary else ""},
        encoder=merge(source.encoder, numbers),
        objective=_labels(config, train, vocabulary),
    )
    if init:
        config = config.override(init=str(init.resolve()))
    _run(config, output)
    if vocabulary:
        _next(f"speechssl decode {output} MANIFEST.jsonl -o hypotheses.jsonl")
    else:
        _next(f"speechssl speaker identify {output} --test MANIFEST.jsonl -o ...")


def show(
    preset: Annotated[
        str | None, typer.Argument(help="Preset, .yaml file or run folder; none: list the presets.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print a preset in full, with its size, frame rate, receptive field and batch; or list the presets."""
    import yaml
    from rich.console import Console
    from rich.table import Table

    from speechssl.config import load, plain, presets, read_run

    console = Console()
    if preset is None:
        table = Table("preset", "what it is")
        for name, about in presets().items():
            table.add_row(name, about)
        console.print(table)
        return
    config = read_run(preset) if (Path(preset) / "config.yaml").is_file() else load(preset, overrides or ())
    print(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
    for name, value in describe(config):
        print(f"{name:>18}: {value}")


def describe(config) -> list[tuple[str, str]]:
    """What follows from a configuration: parameters, frames, batch."""
    from speechssl.build import build_objective, without_corpus

    objective = build_objective(without_corpus(config))
    encoder, rate = objective.encoder, config.data.sample_rate
    field = encoder.feature_encoder.receptive_field
    micro = max(1, round(config.train.seconds_per_update / config.data.seconds_per_batch))
    hours = config.train.updates * config.train.seconds_per_update / 3600
    return [
        ("parameters", f"{sum(p.numel() for p in objective.parameters()) / 1e6:.2f} M"),
        ("of the encoder", f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.2f} M"),
        ("frame rate", f"{rate / encoder.hop:g} Hz, {1000 * encoder.hop / rate:g} ms a frame"),
        ("receptive field", f"{field} samples, {1000 * field / rate:g} ms"),
        ("an update", f"{config.train.seconds_per_update:g} s of audio in {micro} micro-batches"),
        ("the run", f"{config.train.updates} updates, {hours:.4g} h of audio"),
        *objective.describe(),
    ]


def _context_numbers(source, wanted: dict) -> dict:
    """What of the wanted `encoder.context` a run's context network has.

    A quantizer behind its last layer is left out unless it is wanted: labels are learnt from what the layer says, of
    which codes keep little (S3PRL's downstream tasks read VQ-APC there too).
    """
    from dataclasses import asdict

    from speechssl.config import parse
    from speechssl.nn.encoder import EncoderConfig

    context = asdict(parse(EncoderConfig, source.encoder, source=source.name, path="encoder").context)
    last = context.get("num_layers")
    if last and context.get("quantize_after") == last and "quantize_after" not in wanted:
        print(f"The quantizer behind the last layer is left out (to keep it: encoder.context.quantize_after={last}).")
        wanted = {**wanted, "quantize_after": 0}
    return {key: value for key, value in wanted.items() if key in context}


def _paths(train: Path, valid: Path | None) -> dict:
    return {"train": str(train.resolve()), "valid": "" if valid is None else str(valid.resolve())}


def _labels(config, train: Path, vocabulary: Path | None) -> dict:
    """What the objective must know of its labels: how many tokens there are, or the speakers' names."""
    from dataclasses import fields

    from speechssl.data.labels import classes, labels_of
    from speechssl.data.manifest import Manifest
    from speechssl.data.tokens import Tokenizer
    from speechssl.objectives import find_objective

    objective = find_objective(config.objective.get("name", ""))
    if "tokens" in objective.needs and vocabulary is None:
        raise UserError("this preset reads transcripts: give --vocabulary (`speechssl vocab` makes it).")
    if "tokens" not in objective.needs and vocabulary is not None:
        raise UserError("this preset reads no transcripts: leave out --vocabulary.")
    if vocabulary is not None:
        tokenizer = Tokenizer.read(vocabulary)
        return {"vocab_size": len(tokenizer), "word_boundary": tokenizer.boundary}
    if "speakers" in {field.name for field in fields(objective.Config)} - config.objective.keys():
        labels_of(manifest := Manifest.read(train), config.data.label)  # or a sentence that names the columns there are
        return {"speakers": classes(manifest, config.data.label)}
    return {}


def _source_config(path):
    from speechssl.checkpoint import find_checkpoint, read_config

    if (Path(path) / "config.yaml").is_file():
        from speechssl.config import read_run

        return read_run(path)
    return read_config(find_checkpoint(path))


def _may_be_started_again() -> None:
    """A scheduler's signal before the first update finds nothing to save: leave at once, and ask for another start."""

    def leave(number, frame) -> None:
        with contextlib.suppress(RuntimeError):  # the signal came while something was printed
            sys.stdout.flush()
        os._exit(REQUEUE)  # an exception may come up inside an import, where somebody catches it or trips over it

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, leave)


def _run(config, output: Path) -> None:
    from speechssl.train import train

    train(config, output)


def _next(sentence: str) -> None:
    from accelerate.state import PartialState

    if PartialState().is_main_process:
        print(f"next: {sentence}")
