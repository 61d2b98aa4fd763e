"""`speechssl speaker ...`: who speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechssl.cli.probe import (
    Batch,
    Device,
    Draws,
    Force,
    InAll,
    OutputFolder,
    PerClass,
    RandomSeeds,
    RunFolder,
    Seed,
    numbers,
    show,
)
from speechssl.errors import UserError

speaker_app = typer.Typer(help="Who speaks: identification, verification, and splits for both.", no_args_is_help=True)

Test = Annotated[Path, typer.Option("--test", help="Manifest to measure on.")]


@speaker_app.command()
def identify(
    run: RunFolder,
    test: Test,
    output: OutputFolder,
    train: Annotated[
        Path | None, typer.Option("--train", help="Manifest with the same speakers; not for a fine-tuned model.")
    ] = None,
    hidden: Annotated[bool, typer.Option(help="Also a classifier with one hidden layer.")] = False,
    random_seeds: RandomSeeds = 3,
    labels_per_speaker: PerClass = "1,3,5",
    labels_in_all: InAll = "",
    draws: Draws = 3,
    seed: Seed = 0,
    device: Device = None,
    seconds_per_batch: Batch = 60.0,
    force: Force = False,
) -> None:
    """Which of the speakers it is: by a fine-tuned model, or by classifiers on a frozen encoder with few labels."""
    from speechssl.checkpoint import load_checkpoint
    from speechssl.probe.probing import ProbeSettings, probe
    from speechssl.speaker.embed import speaker_names
    from speechssl.speaker.identify import identify as ask

    checkpoint = load_checkpoint(run)
    if speaker_names(checkpoint):
        if train is not None:
            raise UserError(f"{run}: was fine-tuned to tell speakers apart and answers itself; leave out --train.")
        answer = ask(checkpoint, test, output, device=device, seconds_per_batch=seconds_per_batch)
        low, high = (f"{100 * x:.1f}" for x in (answer.low, answer.high))
        print(
            f"{100 * answer.accuracy:.1f}% right (95% interval {low} - {high}) of {answer.num_test} utterances, "
            f"{answer.classes} speakers"
        )
        if answer.problems:
            print(f"{len(answer.problems)} utterances could not be used: {answer.problems[0]}")
        print(f"Answers: {output / 'answers.tsv'}")
        return
    if train is None:
        raise UserError(f"{run}: is not fine-tuned to tell speakers apart; give --train to learn classifiers on it.")
    settings = ProbeSettings(
        label="speaker",
        classifiers=("linear", "hidden") if hidden else ("linear",),
        random_seeds=random_seeds,
        labels_per_class=numbers(labels_per_speaker, "--labels-per-speaker"),
        labels_in_all=numbers(labels_in_all, "--labels-in-all"),
        draws=draws,
        seed=seed,
    )
    show(probe(run, train, test, output, settings, device=device, seconds_per_batch=seconds_per_batch, force=force))
    print(f"All rows: {output}")


@speaker_app.command()
def verify(
    run: RunFolder,
    trials: Annotated[Path, typer.Option(help="Lines `1 enrol test` and `0 enrol test` (`speechssl speaker trials`).")],
    test: Test,
    train: Annotated[Path, typer.Option(help="Manifest for mean and deviation; with speakers, to choose a layer.")],
    output: OutputFolder,
    random_seeds: RandomSeeds = 3,
    p_target: Annotated[str, typer.Option(help="Shares of target trials in the detection cost.")] = "0.01,0.05",
    samples: Annotated[int, typer.Option(min=100, help="Bootstrap samples for the 95% intervals.")] = 500,
    seed: Seed = 0,
    device: Device = None,
    seconds_per_batch: Batch = 60.0,
) -> None:
    """Whether two utterances are by one speaker: equal error rate and least detection cost over trials."""
    from rich.console import Console
    from rich.table import Table

    from speechssl.speaker.verify import verify as run_verify

    result = run_verify(
        run,
        trials,
        test,
        train,
        output,
        random_seeds=random_seeds,
        p_targets=_shares(p_target),
        samples=samples,
        seed=seed,
        device=device,
        seconds_per_batch=seconds_per_batch,
    )
    names = list(result.rows[0].measures)
    table = Table(
        "features", "layer", "EER % (95%)", *(f"minDCF {n.removeprefix('min_dcf_')} (95%)" for n in names[1:])
    )
    chosen = result.chosen()
    for row in result.rows:
        eer, *costs = (row.measures[name] for name in names)
        cells = [f"{100 * eer.value:.1f} ({100 * eer.low:.1f} - {100 * eer.high:.1f})"]
        cells += [f"{cost.value:.3f} ({cost.low:.3f} - {cost.high:.3f})" for cost in costs]
        who = f"{row.features} {row.seed}" if row.seed else row.features
        table.add_row(who, f"{row.layer} *" if row in chosen else row.layer, *cells)
    Console().print(table)
    facts = result.facts
    print(
        f"{facts['num_trials']} trials, {facts['num_targets']} of them by one speaker; {facts['speakers']} speakers. "
        "*: the layer that training utterances choose. Chance: EER 50%, minDCF 1."
    )
    if facts["problems"]:
        print(f"{len(facts['problems'])} utterances could not be used: {facts['problems'][0]}")
    print(f"Scores and rows: {output}")


@speaker_app.command()
def trials(
    manifest: Annotated[Path, typer.Argument(help="Manifest that names speakers.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="List of trials to write.")],
    most: Annotated[int, typer.Option(min=1, help="Pairs of each kind, at most.")] = 10_000,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite another file.")] = False,
) -> None:
    """Make a list of trials: pairs of utterances by one speaker and by two."""
    from speechssl.data.manifest import Manifest
    from speechssl.speaker.trials import make_trials, read_trials, write_trials

    whole = Manifest.read(manifest)
    made = make_trials(whole, most=most, seed=seed)
    if output.exists() and not force and read_trials(output, whole) != made:
        raise UserError(f"{output}: exists and holds other trials; choose another name or give --force.")
    write_trials(made, output)
    targets = sum(trial.target for trial in made)
    print(f"{output}: {targets} pairs of one speaker, {len(made) - targets} of two")
    print(f"next: speechssl speaker verify RUN --trials {output} --test {manifest} --train ... -o ...")


@speaker_app.command()
def split(
    manifest: Annotated[Path, typer.Argument(help="Manifest with labels.")],
    taken: Annotated[Path, typer.Option(help="Manifest of what is taken (the test set, or the few labels).")],
    rest: Annotated[Path, typer.Option(help="Manifest of the others.")],
    per_class: Annotated[int | None, typer.Option(min=1, help="Utterances of each speaker to take.")] = None,
    in_all: Annotated[int | None, typer.Option(min=1, help="Utterances to take, the speakers in turn.")] = None,
    matching: Annotated[
        str | None, typer.Option(help="Take the ids in which this regular expression is found.")
    ] = None,
    label: Annotated[str, typer.Option(help="speaker, text, another column, or folder:1.")] = "speaker",
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite other files.")] = False,
) -> None:
    """Take some utterances of every speaker: a test set of the same speakers, or few labels to learn from."""
    from speechssl.data.manifest import Manifest
    from speechssl.speaker.split import take

    parts = take(Manifest.read(manifest), per_class=per_class, in_all=in_all, matching=matching, label=label, seed=seed)
    for part, path in zip(parts, (taken, rest), strict=True):
        if path.exists() and not force and Manifest.read(path) != part:
            raise UserError(f"{path}: exists and holds other utterances; choose another name or give --force.")
        part.write(path)
        print(f"{path}: {len(part)} utterances, {part.hours * 60:.1f} minutes")
    print(f"next: speechssl speaker identify RUN --train {rest} --test {taken} -o ...")


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share < 1 for share in shares):
        raise UserError(f"--p-target {text}: write shares between 0 and 1 with commas, for example 0.01,0.05.")
    return shares
