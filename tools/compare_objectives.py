"""All pretext tasks at equal compute: pretrain each for the same minutes, then ask every encoder the same questions.

    python tools/compare_objectives.py exp/compare --minutes 5 \\
        --unlabelled unlabelled.jsonl --tune an4-10min.jsonl --test an4-dev.jsonl --vocabulary vocabulary.json \\
        --speakers an4-speakers-train.jsonl an4-speakers-test.jsonl --words fsdd-train.jsonl fsdd-test.jsonl

Stop it at any time and run it again: what is done is not done twice. `exp/compare/table.md` grows with every answer.
An objective that fails is named at the end, and the others go on. Equal compute means equal minutes on this machine:
the steps of all presets are timed before anything is trained (leave the machine alone for that), their updates follow,
and the learning rate's schedule fits them. For another `--pretrain-seed`, copy `*/plan.json` into its folder first, so
that every encoder gets as many updates as before. `wav2vec2` starts from the convolutions of `cpc`, and `hubert-2`
learns units of a layer of `hubert`: their minutes come on top of those.

Random weights of the same architecture stand beside every encoder: with the encoder frozen, and, as `scratch`, with all
of it fine-tuned. Objectives that share an architecture share these, in `exp/compare/random`. The row `log-mel` is the
frozen set-up without an encoder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from speechssl.errors import REQUEUE, UserError
from speechssl.files import write_whole

PRESETS = ["cpc", "wav2vec", "wav2vec2", "wav2vec2-tiny-mel", "apc", "vq-apc", "hubert", "hubert-2", "wavlm"]
PRESETS += ["data2vec", "best-rq", "masked-spectrogram", "masked-autoencoder", "autoencoder", "simclr", "moco", "byol"]
PRESETS += ["barlow-twins", "temporal-order"]
LOG_MEL = "log-mel"  # no pretext task: log-mel in place of an encoder
COLUMNS = ["objective", "minutes", "hours heard", "updates", "frozen WER %", "random, frozen WER %"]
COLUMNS += ["fine-tuned WER %", "scratch WER %"]
COLUMNS += ["speaker %", "random speaker %", "log-mel speaker %", "word %", "random word %", "log-mel word %"]
HUBERT_2 = {"layer": 3, "units": 200}  # of the first iteration's four layers, and how many clusters of it


@dataclass(frozen=True)
class Plan:
    """What every objective gets."""

    out: Path
    minutes: float
    unlabelled: Path
    tune: Path
    test: Path
    vocabulary: Path
    speakers: tuple[Path, Path]
    words: tuple[Path, Path]
    seeds: int
    probe_updates: int
    tune_updates: int
    pretrain_seed: int = 1


class Failed(Exception):
    """A verb did not do its work; it has said why."""


def run(*arguments: Any) -> None:
    """One verb, echoed; its output goes to the console. It is stopped with this script. Raises Failed."""
    words = [str(a) for a in arguments]
    print(f"+ speechssl {shlex.join(words)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "speechssl", *words])
    try:
        status = process.wait()
    except BaseException:
        process.terminate()  # training saves before it leaves
        process.wait()
        raise
    if status == REQUEUE:
        raise SystemExit(REQUEUE)
    if status:
        raise Failed(f"status {status} from: speechssl {shlex.join(words)}")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lets another run of this script wait for what it shares with this one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def plan_file(plan: Plan, name: str) -> Path:
    return plan.out / name / "plan.json"


def updates_for(plan: Plan, name: str) -> int:
    """As many updates as fit into the minutes, by a timed step; decided once and written down.

    Raises UserError if other minutes were written down before.
    """
    note = plan_file(plan, name)
    if note.exists():
        written = json.loads(note.read_text())
        if written["minutes"] != plan.minutes:
            raise UserError(f"{note} is of {written['minutes']:g} minutes, not {plan.minutes:g}; give another folder.")
        return written["updates"]
    from speechssl.bench import table
    from speechssl.bench.step import run_apart

    config = table.read_preset(preset_of(name), [])
    case = table.case_of(config, (), config.train.precision, steps=3, threads=0)
    step = run_apart(case)["step"] * config.train.seconds_per_update / sum(case.seconds)
    updates = max(20, int(60 * plan.minutes / step))
    write_whole(note, json.dumps({"updates": updates, "minutes": plan.minutes, "seconds_per_update": step}))
    return updates


def time_steps(plan: Plan, names: list[str]) -> None:
    """Of all of them before anything is trained: no step is timed beside a run. What fails, fails again in its turn.

    What was timed before is not waited for: another run of this script may be training there.
    """
    for name in names:
        if name != LOG_MEL and not plan_file(plan, name).exists():
            with alone_in(plan.out / name), contextlib.suppress(UserError):
                print(f"{name}: {updates_for(plan, name)} updates in {plan.minutes:g} minutes", flush=True)


def make_units(plan: Plan, folder: Path, num_units: int, *features_of: Any) -> Path:
    """Units of the unlabelled speech, once; features_of: options of `speechssl features`."""
    with alone_in(folder):
        run("features", plan.unlabelled, *features_of, "-o", folder / "features")
        run("kmeans", folder / "features", "-k", num_units, "-o", folder / "kmeans.safetensors")
        run("units", folder / "features", "--kmeans", folder / "kmeans.safetensors", "-o", folder / "units")
    return folder / "units"


def preset_of(name: str) -> str:
    return name if "-tiny" in name else f"{name.removesuffix('-2')}-tiny"


def pretrain(plan: Plan, name: str) -> Path:
    """The run folder of an objective's encoder."""
    folder, preset = plan.out / name, preset_of(name)
    extra: list[str] = []
    if name in ("hubert", "wavlm"):
        extra = [f"data.units={make_units(plan, plan.out / 'units', 100, '--mfcc', '--cmvn')}"]
    elif name == "hubert-2":  # one unit for each of its own frames
        layer = ["--checkpoint", pretrain(plan, "hubert"), "--layer", HUBERT_2["layer"]]
        units = make_units(plan, plan.out / "units-2", HUBERT_2["units"], *layer)
        extra = [f"data.units={units}", f"objective.num_units={HUBERT_2['units']}", "objective.targets_per_frame=1"]
    elif name == "wav2vec2":  # on the waveform it starts from the convolutions of CPC, which has had its own minutes
        extra = ["--init", str(pretrain(plan, "cpc"))]
    with alone_in(folder):
        if name == LOG_MEL:
            preset, updates = "apc-tiny", 1
            extra = ["encoder.context.num_layers=0"]
        else:
            updates = updates_for(plan, name)
        numbers = [f"train.updates={updates}", f"train.log_every={max(1, updates // 20)}"]
        numbers += [f"train.seed={plan.pretrain_seed}", *extra]
        run("pretrain", "--preset", preset, "--train", plan.unlabelled, "-o", folder / "pretrain", *numbers)
    return folder / "pretrain"


def word_error_rates(plan: Plan, encoder: Path, kind: str, folder: Path) -> None:
    """kind: frozen or tuned; random or scratch are the same with random weights. Every seed tuned, decoded, scored."""
    suffix = "-mel" if slow_frames(encoder) else ""
    for seed in range(1, plan.seeds + 1):
        place = folder / f"{kind}-seed{seed}"
        if (place / "score" / "score.json").exists():
            continue
        whole = kind in ("tuned", "scratch")
        preset = f"ctc-tiny{suffix}" if whole else f"ctc-probe-tiny{suffix}"
        updates = plan.tune_updates if whole else plan.probe_updates
        source = "--init" if kind in ("frozen", "tuned") else "--like"
        numbers = [f"train.seed={seed}", f"train.updates={updates}", f"train.save_every={updates}"]
        files = ["--train", plan.tune, "--vocabulary", plan.vocabulary, "-o", place / "run"]
        run("finetune", "--preset", preset, source, encoder, *files, *numbers)
        run("decode", place / "run", plan.test, "-o", place / "decode.jsonl")
        run("score", place / "decode.jsonl", "-o", place / "score")


def random_folder(plan: Plan, encoder: Path) -> Path:
    """Where the answers of random weights lie: one folder for each architecture and what it hears."""
    from speechssl.config import plain, read_run

    config = plain(read_run(encoder))
    said = json.dumps([config["encoder"], config["data"]["sample_rate"], config["data"]["normalize"]], sort_keys=True)
    return plan.out / "random" / hashlib.sha256(said.encode()).hexdigest()[:12]


def answer(plan: Plan, name: str) -> None:
    """Everything that is asked of one objective's encoder, and of random weights like it."""
    encoder = pretrain(plan, name)
    folder, random = plan.out / name, random_folder(plan, encoder)
    asked = {"speaker": ("speaker", plan.speakers), "word": ("text", plan.words)}
    frozen, tuned = {"frozen": folder, "random": random}, {"tuned": folder, "scratch": random}
    if name == LOG_MEL:  # it has no weights
        asked, frozen, tuned = {}, {"frozen": folder}, {}
    kinds = (frozen if plan.probe_updates else {}) | (tuned if plan.tune_updates else {})
    for what, (label, manifests) in asked.items():
        with alone_in(folder):
            probe(encoder, folder / what, label, manifests, 0)
        with alone_in(random):
            probe(encoder, random / what, label, manifests, plan.seeds)
    for kind, place in kinds.items():
        with alone_in(place):
            word_error_rates(plan, encoder, kind, place)


def slow_frames(run_folder: Path) -> bool:
    """Whether a frame is so long (over 30 ms) that it must spell two letters."""
    from speechssl.build import build_objective
    from speechssl.config import read_run

    config = read_run(run_folder)
    return build_objective(config).encoder.hop > 0.03 * config.data.sample_rate


def probe(encoder: Path, folder: Path, label: str, manifests: tuple[Path, Path], random_seeds: int) -> None:
    if not list(folder.glob("*.json")):
        train, test = manifests
        files = ["--train", train, "--test", test, "-o", folder]
        run("probe", encoder, *files, "--label", label, "--no-hidden", "--random-seeds", random_seeds)


def table(plan: Plan, names: list[str]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for name in names:
        if cells := row(plan, name):
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def row(plan: Plan, name: str) -> list[str]:
    """Cells of an objective; none while it has not begun."""
    folder = plan.out / name
    metrics = folder / "pretrain" / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    train = [record for record in records if record["split"] == "train"]
    if not train:
        return []
    random = random_folder(plan, folder / "pretrain")
    cells = [name, f"{sum(r['seconds'] for r in train) / 60:.1f}", f"{sum(r['hours'] for r in train):.1f}"]
    cells = [name, "", "", ""] if name == LOG_MEL else [*cells, str(train[-1]["step"])]
    for kind, place in (("frozen", folder), ("random", random), ("tuned", folder), ("scratch", random)):
        cells.append(mean_wer(place, kind))
    for what in ("speaker", "word"):
        cells += [accuracy(folder / what, "trained"), accuracy(random / what, "random weights")]
        cells.append(accuracy(folder / what, "log-mel"))
    return cells


def mean_wer(folder: Path, kind: str) -> str:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}-seed*/score/score.json"))]
    rates = [100 * score["wer"] for score in found]
    if not rates:
        return ""
    spread = f" (sd {statistics.stdev(rates):.1f}, {len(rates)} seeds)" if len(rates) > 1 else " (1 seed)"
    return f"{statistics.mean(rates):.1f}{spread}"


def accuracy(folder: Path, who: str) -> str:
    """Of the linear probe on the layer that held-out training labels chose; of several seeds, the mean."""
    for path in sorted(folder.glob("*.json")):
        from speechssl.probe.probing import read_result

        result = read_result(path)
        found = result.at_chosen(who, "linear") if result else None
        return "" if found is None else f"{100 * found.mean:.1f}"
    return ""


Manifests = tuple[Path, Path]


def main(
    out: Annotated[Path, typer.Argument(help="Folder for all runs and the table.")],
    unlabelled: Annotated[Path, typer.Option(help="Manifest to pretrain on.")],
    tune: Annotated[Path, typer.Option(help="Manifest of the labelled minutes.")],
    test: Annotated[Path, typer.Option(help="Manifest whose words are counted.")],
    vocabulary: Annotated[Path, typer.Option(help="Of the labelled minutes.")],
    speakers: Annotated[Manifests, typer.Option(help="Two manifests: speakers to learn, and to tell apart.")],
    words: Annotated[Manifests, typer.Option(help="Two manifests of single words, by other speakers.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="Of pretraining, for each.")] = 5.0,
    only: Annotated[list[str] | None, typer.Option(help="Some objectives or presets instead of all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of each word error rate.")] = 3,
    probe_updates: Annotated[int, typer.Option(min=0, help="Of the frozen encoder's CTC head; 0: none.")] = 1000,
    tune_updates: Annotated[int, typer.Option(min=0, help="Of full fine-tuning, pretrained and scratch; 0: none.")] = 0,
    pretrain_seed: Annotated[int, typer.Option(help="Of every pretraining; each wants a folder of its own.")] = 1,
) -> None:
    """One row per pretext task: error rates and accuracies of its encoder, beside random weights and log-mel."""
    files = (unlabelled, tune, test, vocabulary, speakers, words)
    plan = Plan(out, minutes, *files, seeds, probe_updates, tune_updates, pretrain_seed)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(REQUEUE))
    names = only or [LOG_MEL, *PRESETS]
    failed = []
    time_steps(plan, names)
    for name in names:
        try:
            answer(plan, name)
        except (Failed, UserError) as error:
            failed.append(f"{name}: {error}")
            print(f"{failed[-1]}; going on with the others", flush=True)
        write_whole(out / "table.md", table(plan, [LOG_MEL, *PRESETS]))
    print(table(plan, list(names)))
    if failed:
        print("not finished:", *failed, sep="\n", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
