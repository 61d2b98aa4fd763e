"""The table of a recipe's runs: word error rates with intervals, and what each cost; means over seeds and folds.

python tools/wer_table.py exp/demo/10min-0 --pretrain exp/demo/pretrain
python tools/wer_table.py exp/demo/10min-? --pretrain exp/demo/pretrain          # six folds

The interval of one run is the bootstrap's over its utterances. That of a mean is Student's t over the folds (over the
seeds where there is one fold): it says how much another ten minutes of labels, or another seed, would change.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from speechssl.config import read_run
from speechssl.files import write_whole

COLUMNS = ["system", "set", "WER %", "95% interval", "CER %", "updates", "minutes", "pretrained on", "in minutes"]
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # two-sided 95%, for 1 to 9 degrees of freedom


@dataclass(frozen=True)
class Result:
    """One score of one run. `system` is its name without the seed; rates in percent."""

    fold: str
    system: str
    run: str
    set: str
    wer: float
    cer: float
    interval: str
    cost: tuple[str, ...]


def main(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of fine-tuned systems, each with score/SET/score.json; one per fold.")
    ],
    pretrain: Annotated[Path | None, typer.Option(help="The pretraining run, for its hours and minutes.")] = None,
) -> None:
    """Prints the table and writes it as table.md: into the folder, or beside the folders if they are several."""
    results = []
    for folder in folders:
        paths = sorted(folder.glob("*/score/*/score.json"))
        if not paths:
            raise SystemExit(f"error: {folder}: no score is there; run the stages before.")
        results += [result(path, folder.name, pretrain) for path in paths]
    rows = means(results) + singles(results, named=len(folders) > 1)
    rows.sort(key=lambda cells: (cells[1], ", mean of " not in cells[0], cells[0]))
    widths = [max(len(cells[i]) for cells in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
    lines = [COLUMNS, ["-" * width for width in widths], *rows]
    padded = ([cell.ljust(width) for cell, width in zip(cells, widths, strict=True)] for cells in lines)
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in padded)
    where = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.absolute() for folder in folders]))
    write_whole(where / "table.md", text)
    print(f"{text}written to {where / 'table.md'}")


def result(path: Path, fold: str, pretrain: Path | None) -> Result:
    """Reads one score.json."""
    run = path.parents[2]
    score, config = json.loads(path.read_text()), read_run(run)
    learnt = pretrain is not None and config.init
    minutes, _ = cost(run)
    pretrain_minutes, hours = cost(pretrain) if learnt and pretrain else (0.0, 0.0)
    return Result(
        fold=fold,
        system=run.name.partition("-seed")[0],
        run=run.name,
        set=path.parent.name,
        wer=100 * score["wer"],
        cer=100 * score["cer"],
        interval=f"{100 * score['low']:.1f} - {100 * score['high']:.1f}",
        cost=(
            str(config.train.updates),
            f"{minutes:.1f}",
            f"{hours:.1f} h heard" if learnt else "-",
            f"{pretrain_minutes:.1f}" if learnt else "-",
        ),
    )


def singles(results: list[Result], *, named: bool) -> list[list[str]]:
    """A row per run; `named` puts its fold before it."""
    return [
        [f"{r.fold}/{r.run}" if named else r.run, r.set, f"{r.wer:.1f}", r.interval, f"{r.cer:.1f}", *r.cost]
        for r in results
    ]


def means(results: list[Result]) -> list[list[str]]:
    """A row per system that ran more than once: the mean over its folds of the mean over its seeds."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        groups.setdefault((r.system, r.set), []).append(r)
    rows = []
    for (system, name), group in groups.items():
        if len(group) == 1:
            continue
        folds: dict[str, list[Result]] = {}
        for r in group:
            folds.setdefault(r.fold, []).append(r)
        wers, cers = ([mean(getattr(r, what) for r in fold) for fold in folds.values()] for what in ("wer", "cer"))
        drawn = wers if len(folds) > 1 else [r.wer for r in group]
        label = f"{system}, mean of {len(group)}" + (f" ({len(folds)} folds)" if len(folds) > 1 else "")
        rows.append([label, name, f"{mean(wers):.1f}", interval(drawn), f"{mean(cers):.1f}", *group[0].cost])
    return rows


def interval(values: list[float]) -> str:
    """Student's 95% interval of the mean of two or more values."""
    half = STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * stdev(values) / len(values) ** 0.5
    return f"{max(mean(values) - half, 0.0):.1f} - {mean(values) + half:.1f}"


def cost(run: Path) -> tuple[float, float]:
    """Minutes of training and hours of audio that went through it, over all its sessions."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    return sum(line["seconds"] for line in train) / 60, sum(line["hours"] for line in train)


if __name__ == "__main__":
    typer.run(main)
