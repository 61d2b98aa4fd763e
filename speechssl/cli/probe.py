"""`speechssl probe` and `abx`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from speechssl.errors import UserError

if TYPE_CHECKING:
    from speechssl.probe.probing import Interval, ProbeResult

RunFolder = Annotated[Path, typer.Argument(help="Run folder or checkpoint.")]
TrainManifest = Annotated[Path, typer.Option("--train", help="Manifest with labels to learn from.")]
TestManifest = Annotated[Path, typer.Option("--test", help="Manifest with labels to measure on.")]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the result and the features.")]
RandomSeeds = Annotated[
    int, typer.Option(min=0, help="Encoders of the same architecture with random weights, to compare with.")
]
PerClass = Annotated[str, typer.Option(help="Learning curve: labels of each class, for example 1,3,5,10.")]
InAll = Annotated[str, typer.Option(help="Learning curve: labels in all, for example 60,100.")]
Draws = Annotated[int, typer.Option(min=1, help="Random choices of labels for each point of the curve.")]
Seed = Annotated[int, typer.Option(min=0, help="Of choices and classifiers.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if any.")]
Batch = Annotated[float, typer.Option(min=0.1, help="Largest batch in seconds of audio.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the result of another probe.")]


def probe(
    run: RunFolder,
    train: TrainManifest,
    test: TestManifest,
    output: OutputFolder,
    label: Annotated[
        str | None,
        typer.Option(
            help="speaker, text, another column, or folder:1 (the first folder of the id).", show_default="speaker"
        ),
    ] = None,
    alignment: Annotated[
        list[Path] | None,
        typer.Option(
            help="Probe single frames for letters or phones: a file of `speechssl align`, or a .ctm file; "
            "once more for a second one."
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=2, help="With --alignment: most letters of each manifest, drawn at random.")
    ] = 10_000,
    hidden: Annotated[bool, typer.Option(help="Also a classifier with one hidden layer.")] = True,
    random_seeds: RandomSeeds = 3,
    labels_per_class: PerClass = "",
    labels_in_all: InAll = "",
    draws: Draws = 3,
    seed: Seed = 0,
    device: Device = None,
    seconds_per_batch: Batch = 60.0,
    force: Force = False,
) -> None:
    """What a frozen encoder knows of a label: every layer, beside random weights and log-mel."""
    from speechssl.probe.moments import ALIGNED, Alignments
    from speechssl.probe.probing import ProbeSettings
    from speechssl.probe.probing import probe as run_probe

    if label and alignment:
        raise UserError("--label names a column and --alignment a file of labels; give one of them.")
    alignments = Alignments(tuple(alignment), most=examples, seed=seed) if alignment else None
    settings = ProbeSettings(
        label=ALIGNED if alignment else label or "speaker",
        classifiers=("linear", "hidden") if hidden else ("linear",),
        random_seeds=random_seeds,
        labels_per_class=numbers(labels_per_class, "--labels-per-class"),
        labels_in_all=numbers(labels_in_all, "--labels-in-all"),
        draws=draws,
        seed=seed,
    )
    result = run_probe(
        run,
        train,
        test,
        output,
        settings,
        device=device,
        seconds_per_batch=seconds_per_batch,
        force=force,
        alignments=alignments,
    )
    show(result)
    print(f"All rows: {output}")


def numbers(text: str, option: str) -> tuple[int, ...]:
    """ "1,3,5" -> (1, 3, 5); "all" is always measured and may be named. Raises UserError."""
    parts = [part.strip() for part in text.split(",") if part.strip() and part.strip() != "all"]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option} {text}: write whole numbers from 1 with commas, for example 1,3,5,10.")
    return tuple(int(part) for part in parts)


def show(result: ProbeResult) -> None:
    """The table of layers, the table of the learning curve, and what they mean."""
    from rich.console import Console
    from rich.table import Table

    from speechssl.probe.probing import RANDOM

    facts, console = result.facts, Console()
    classifiers = facts["settings"]["classifiers"]
    table = Table("features", "layer", *(f"{kind} % (95%)" for kind in classifiers))
    for features in result.kinds:
        seeds = result.seeds(features)
        for layer in dict.fromkeys(row.layer for row in result.rows if row.features == features):
            cells = [percent(result.at_layer(features, layer, kind)) for kind in classifiers]
            table.add_row(f"{features} x {len(seeds)}" if features == RANDOM else features, layer, *cells)
        if seeds:
            cells = [percent(result.at_chosen(features, kind)) for kind in classifiers]
            table.add_row(features, "chosen", *cells, style="bold", end_section=True)
    console.print(table)
    if any(row.labels != "all" for row in result.rows):
        curves = {features: result.curve(features) for features in result.kinds}
        named = [features for features, points in curves.items() if points]
        table = Table("labels", *(f"{features} % (95%)" for features in named))
        for point in curves[named[0]]:
            table.add_row(point, *(percent(curves[features][point]) for features in named))
        table.add_row("all", *(percent(result.at_chosen(features, classifiers[0])) for features in named))
        console.print(table)
    things = facts.get("examples", "utterances")
    print(
        f"{facts['num_test']} test {things}, {facts['classes']} classes, {facts['num_train']} training {things}; "
        f"always the commonest label: {100 * facts['chance']:.1f}%.\n"
        f"Chosen: the layer that is best on {facts['held_out']} of train held out. Intervals are over test {things}; "
        "where these come from few speakers, other speakers may differ by more."
    )
    if facts.get("note"):
        print(facts["note"])
    if facts["problems"]:
        print(f"{len(facts['problems'])} utterances could not be used: {facts['problems'][0]}")


def percent(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.mean:.1f} ({100 * interval.low:.1f} - {100 * interval.high:.1f})"


def abx(
    run: RunFolder,
    items: Annotated[Path, typer.Argument(help="Item file (of ZeroSpeech, or of `speechssl align --items`).")],
    manifest: Annotated[Path, typer.Option(help="Manifest with the utterances that the items name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the result (.json).")],
    context: Annotated[
        Literal["within", "any"], typer.Option(help="Compare phones between the same neighbours, or between any.")
    ] = "within",
    layer: Annotated[
        list[str] | None, typer.Option(help="latents, 0, 1, ...; once more for another; none: all.")
    ] = None,
    most: Annotated[int, typer.Option(min=2, help="Items of one phone, context and speaker, at random.")] = 10,
    speakers: Annotated[int, typer.Option(min=1, help="Other speakers for each phone and context, at random.")] = 5,
    random_seeds: RandomSeeds = 1,
    seed: Seed = 0,
    device: Device = None,
    seconds_per_batch: Batch = 60.0,
) -> None:
    """How often a phone is nearer to another kind than to its own (ABX), by every layer; no labels are learnt."""
    from rich.console import Console
    from rich.table import Table

    from speechssl.probe.abx_layers import ABXSettings
    from speechssl.probe.abx_layers import abx as run_abx

    settings = ABXSettings(
        context=context,
        most=most,
        speakers=speakers,
        random_seeds=random_seeds,
        layers=tuple(layer or ()),
        seed=seed,
    )
    result = run_abx(run, items, manifest, output, settings, device=device, seconds_per_batch=seconds_per_batch)
    table, facts = Table("features", "layer", "within speaker %", "across speakers %"), result.facts
    for row in result.rows:
        name = f"{row.features} {row.seed}" if row.seed else row.features
        table.add_row(name, row.layer, *("" if e is None else f"{100 * e:.1f}" for e in (row.within, row.across)))
    Console().print(table)
    print(
        f"ABX error, chance 50: {facts['items']} items, {facts['cells_within']} cells within a speaker and "
        f"{facts['cells_across']} across, {'the same' if context == 'within' else 'any'} context.\nAll rows: {output}"
    )
    if facts["absent"]:
        print(f"{facts['absent']} items are left out: the manifest has no utterance of that name.")
    if facts["problems"]:
        print(f"{len(facts['problems'])} utterances could not be used: {facts['problems'][0]}")
