"""The table of a recipe's runs: word error rates with intervals, and what each cost.

python tools/wer_table.py exp/demo/10min-0 --pretrain exp/demo/pretrain
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from speechssl.config import read_run

COLUMNS = ["system", "set", "WER %", "95% interval", "CER %", "updates", "minutes", "pretrained on", "in minutes"]


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of fine-tuned systems, each with score/SET/score.json.")],
    pretrain: Annotated[Path | None, typer.Option(help="The pretraining run, for its hours and minutes.")] = None,
) -> None:
    """Prints the table and writes it as table.md into FOLDER."""
    rows = [row(path, pretrain) for path in sorted(folder.glob("*/score/*/score.json"))]
    if not rows:
        raise SystemExit(f"error: {folder}: no score is there; run the stages before.")
    rows = sorted(rows + means(rows), key=lambda cells: (cells[1], cells[0]))
    widths = [max(len(cells[i]) for cells in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
    lines = [COLUMNS, ["-" * width for width in widths], *rows]
    padded = ([cell.ljust(width) for cell, width in zip(cells, widths, strict=True)] for cells in lines)
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in padded)
    (folder / "table.md").write_text(text)
    print(f"{text}written to {folder / 'table.md'}")


def row(path: Path, pretrain: Path | None) -> list[str]:
    """The cells of one score."""
    run = path.parents[2]
    score, config = json.loads(path.read_text()), read_run(run)
    learnt = pretrain is not None and config.init
    minutes, _ = cost(run)
    pretrain_minutes, hours = cost(pretrain) if learnt and pretrain else (0.0, 0.0)
    return [
        run.name,
        path.parent.name,
        f"{100 * score['wer']:.1f}",
        f"{100 * score['low']:.1f} - {100 * score['high']:.1f}",
        f"{100 * score['cer']:.1f}",
        str(config.train.updates),
        f"{minutes:.1f}",
        f"{hours:.1f} h heard" if learnt else "-",
        f"{pretrain_minutes:.1f}" if learnt else "-",
    ]


def means(rows: list[list[str]]) -> list[list[str]]:
    """One row per system that has seeds (NAME-seedK): mean WER, and its standard deviation over them."""
    groups: dict[tuple[str, str], list[list[str]]] = {}
    for cells in rows:
        system, marker, _ = cells[0].rpartition("-seed")
        if marker:
            groups.setdefault((system, cells[1]), []).append(cells)
    result = []
    for (system, name), group in groups.items():
        if len(group) == 1:
            continue
        wers, cers = [float(cells[2]) for cells in group], [float(cells[4]) for cells in group]
        spread = f"sd {stdev(wers):.1f}"
        mean_cells = [f"{mean(wers):.1f}", spread, f"{mean(cers):.1f}"]
        result.append([f"{system}, mean of {len(group)}", name, *mean_cells, *group[0][5:]])
    return result


def cost(run: Path) -> tuple[float, float]:
    """Minutes of training and hours of audio that went through it, over all its sessions."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    return sum(line["seconds"] for line in train) / 60, sum(line["hours"] for line in train)


if __name__ == "__main__":
    typer.run(main)
