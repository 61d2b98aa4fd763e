"""`speechssl pretrain`, `finetune` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechssl.errors import UserError

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
    vocabulary: Annotated[Path, typer.Option(help="Tokens of the transcripts (`speechssl vocab`).")],
    valid: Valid = None,
    init: Annotated[Path | None, typer.Option(help="Pretrained run or checkpoint.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="Random weights of this run's architecture instead: the scratch baseline.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Fine-tune an encoder to transcribe, from a pretrained run (--init) or from random weights (--like)."""
    from speechssl.config import load, merge
    from speechssl.data.tokens import Tokenizer

    if (init is None) == (like is None):
        raise UserError("give either --init RUN (pretrained) or --like RUN (the same architecture from scratch).")
    tokenizer = Tokenizer.read(vocabulary)
    config = load(preset, overrides or ())
    source = _source_config(init or like)
    # The architecture and what the encoder hears come from the pretrained run; the preset changes only its numbers.
    heard = {"sample_rate": source.data.sample_rate, "normalize": source.data.normalize}
    config = config.override(
        data={**_paths(train, valid), **heard, "vocabulary": str(vocabulary.resolve())},
        encoder=merge(source.encoder, config.encoder),
        objective={"vocab_size": len(tokenizer), "word_boundary": tokenizer.boundary},
    )
    if init:
        config = config.override(init=str(init.resolve()))
    _run(config, output)
    _next(f"speechssl decode {output} MANIFEST.jsonl -o hypotheses.jsonl")


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
    from speechssl.build import build_objective

    if "vocab_size" not in config.objective and config.objective.get("name", "").startswith("ctc"):
        config = config.override(objective={"vocab_size": 32})  # any vocabulary, to count parameters
    objective = build_objective(config)
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


def _paths(train: Path, valid: Path | None) -> dict:
    return {"train": str(train.resolve()), "valid": "" if valid is None else str(valid.resolve())}


def _source_config(path):
    from speechssl.checkpoint import find_checkpoint, read_config

    if (Path(path) / "config.yaml").is_file():
        from speechssl.config import read_run

        return read_run(path)
    return read_config(find_checkpoint(path))


def _run(config, output: Path) -> None:
    from speechssl.train import train

    train(config, output)


def _next(sentence: str) -> None:
    from accelerate.state import PartialState

    if PartialState().is_main_process:
        print(f"next: {sentence}")
