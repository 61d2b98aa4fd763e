"""All pretext tasks at equal compute: pretrain each for the same minutes, then ask every encoder the same questions.

    python tools/compare_objectives.py exp/compare --minutes 5 \\
        --unlabelled unlabelled.jsonl --tune an4-10min.jsonl --test an4-dev.jsonl --vocabulary vocabulary.json \\
        --speakers an4-speakers-train.jsonl an4-speakers-test.jsonl --words fsdd-train.jsonl fsdd-test.jsonl

Stop it at any time and run it again: what is done is not done twice. `exp/compare/table.md` grows with every answer.
Equal compute means equal minutes on this machine: each preset's step is timed first, and its updates follow. The
learning rate's schedule fits them. Random weights of the same architecture stand beside every encoder.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

PRESETS = ["cpc", "wav2vec", "wav2vec2", "wav2vec2-tiny-mel", "apc", "vq-apc", "hubert", "wavlm", "data2vec"]
PRESETS += ["best-rq", "masked-spectrogram", "masked-autoencoder", "autoencoder", "simclr", "moco", "byol"]
PRESETS += ["barlow-twins", "temporal-order"]
COLUMNS = ["objective", "hours heard", "updates", "frozen WER %", "random, frozen WER %", "fine-tuned WER %"]
COLUMNS += ["speaker %", "random speaker %", "log-mel speaker %", "word %", "random word %", "log-mel word %"]


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


def run(*arguments: Any) -> None:
    """One verb, echoed; its output goes to the console. Ends the script if it fails."""
    words = [str(a) for a in arguments]
    print(f"+ speechssl {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "speechssl", *words], check=False).returncode
    if status:
        raise SystemExit(status)


def updates_for(plan: Plan, preset: str, folder: Path) -> int:
    """As many updates as fit into the minutes, by a timed step; decided once and written down."""
    note = folder / "plan.json"
    if note.exists():
        return json.loads(note.read_text())["updates"]
    from speechssl.bench import table
    from speechssl.bench.step import run_apart

    config = table.read_preset(preset, [])
    case = table.case_of(config, (), config.train.precision, steps=3, threads=0)
    step = run_apart(case)["step"] * config.train.seconds_per_update / sum(case.seconds)
    updates = max(20, int(60 * plan.minutes / step))
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"updates": updates, "seconds_per_update": step}))
    return updates


def make_units(plan: Plan) -> Path:
    """MFCC units for HuBERT and WavLM, once."""
    folder = plan.out / "units"
    run("features", plan.unlabelled, "--mfcc", "-o", folder / "mfcc")
    run("kmeans", folder / "mfcc", "-k", 100, "-o", folder / "kmeans.safetensors")
    run("units", folder / "mfcc", "--kmeans", folder / "kmeans.safetensors", "-o", folder / "units")
    return folder / "units"


def pretrain(plan: Plan, name: str, preset: str) -> Path:
    folder = plan.out / name
    extra = [f"data.units={make_units(plan)}"] if name in ("hubert", "wavlm") else []
    if name == "wav2vec2":  # on the waveform it starts from the convolutions of CPC, which has had its own minutes
        extra = ["--init", str(pretrain(plan, "cpc", "cpc-tiny"))]
    updates = updates_for(plan, preset, folder)
    numbers = [f"train.updates={updates}", f"train.log_every={max(1, updates // 20)}", *extra]
    run("pretrain", "--preset", preset, "--train", plan.unlabelled, "-o", folder / "pretrain", *numbers)
    return folder / "pretrain"


def word_error_rates(plan: Plan, encoder: Path, kind: str) -> None:
    """Frozen and random, or fine-tuned: every seed tuned, decoded and scored."""
    suffix = "-mel" if slow_frames(encoder) else ""
    for seed in range(1, plan.seeds + 1):
        folder = encoder.parent / f"{kind}-seed{seed}"
        if (folder / "score" / "score.json").exists():
            continue
        preset = f"ctc-tiny{suffix}" if kind == "tuned" else f"ctc-probe-tiny{suffix}"
        updates = plan.tune_updates if kind == "tuned" else plan.probe_updates
        source = "--like" if kind == "random" else "--init"
        numbers = [f"train.seed={seed}", f"train.updates={updates}", f"train.save_every={updates}"]
        files = ["--train", plan.tune, "--vocabulary", plan.vocabulary, "-o", folder / "run"]
        run("finetune", "--preset", preset, source, encoder, *files, *numbers)
        run("decode", folder / "run", plan.test, "-o", folder / "decode.jsonl")
        run("score", folder / "decode.jsonl", "-o", folder / "score")


def slow_frames(run_folder: Path) -> bool:
    """Whether a frame is so long (over 30 ms) that it must spell two letters."""
    from speechssl.build import build_objective
    from speechssl.config import read_run

    config = read_run(run_folder)
    return build_objective(config).encoder.hop > 0.03 * config.data.sample_rate


def probe(plan: Plan, encoder: Path, what: str, label: str, manifests: tuple[Path, Path]) -> None:
    folder = encoder.parent / what
    if not list(folder.glob("*.json")):
        train, test = manifests
        files = ["--train", train, "--test", test, "-o", folder]
        run("probe", encoder, *files, "--label", label, "--no-hidden", "--random-seeds", 1)


def table(plan: Plan, names: list[str]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for name in names:
        folder = plan.out / name
        if (folder / "pretrain" / "metrics.jsonl").exists():
            lines.append("| " + " | ".join(row(folder, name)) + " |")
    return "\n".join(lines) + "\n"


def row(folder: Path, name: str) -> list[str]:
    records = [json.loads(line) for line in (folder / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["split"] == "train"]
    cells = [name, f"{sum(record['hours'] for record in train):.1f}", str(train[-1]["step"])]
    cells += [mean_wer(folder, kind) for kind in ("frozen", "random", "tuned")]
    for what in ("speaker", "word"):
        cells += accuracies(folder / what)
    return cells


def mean_wer(folder: Path, kind: str) -> str:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}-seed*/score/score.json"))]
    rates = [100 * score["wer"] for score in found]
    if not rates:
        return ""
    spread = f" (sd {statistics.stdev(rates):.1f}, {len(rates)} seeds)" if len(rates) > 1 else " (1 seed)"
    return f"{statistics.mean(rates):.1f}{spread}"


def accuracies(folder: Path) -> list[str]:
    """Of the linear probe on the layer that held-out training labels chose: this encoder, random weights, log-mel."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        return ["", "", ""]
    rows = [r for r in json.loads(paths[0].read_text())["rows"] if (r["classifier"], r["labels"]) == ("linear", "all")]
    cells = []
    for who in ("trained", "random weights", "log-mel"):
        own = [r for r in rows if r["features"] == who and r["layer"] != "sum"]
        best = max(own, key=lambda r: r["held_out"] or 0.0, default=None)
        cells.append("" if best is None else f"{100 * best['accuracy']:.1f}")
    return cells


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
    probe_updates: Annotated[int, typer.Option(min=1, help="Of the frozen encoder's CTC head.")] = 800,
    tune_updates: Annotated[int, typer.Option(min=0, help="Of full fine-tuning; 0: none.")] = 0,
) -> None:
    """One row per pretext task: error rates and accuracies of its encoder, beside random weights and log-mel."""
    plan = Plan(out, minutes, unlabelled, tune, test, vocabulary, speakers, words, seeds, probe_updates, tune_updates)
    out.mkdir(parents=True, exist_ok=True)
    names = only or PRESETS
    for name in names:
        encoder = pretrain(plan, name, name if "-tiny" in name else f"{name}-tiny")
        probe(plan, encoder, "speaker", "speaker", speakers)
        probe(plan, encoder, "word", "text", words)
        for kind in ["frozen", "random", *(["tuned"] if tune_updates else [])]:
            word_error_rates(plan, encoder, kind)
        (out / "table.md").write_text(table(plan, list(PRESETS)))
    print(table(plan, list(names)))


if __name__ == "__main__":
    typer.run(main)
