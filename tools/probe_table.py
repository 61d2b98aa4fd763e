"""One table of many probes: accuracies over labels, of all labels, of the learned sum of layers and of a hidden layer.

    python tools/probe_table.py exp/speakers/cpc exp/speakers/wav2vec2        # from `speechssl speaker identify ... -o`
    python tools/probe_table.py exp/compare/*/speaker -o speakers.md          # from tools/compare_objectives.py

Each folder holds results of `speechssl probe` or `speechssl speaker identify`. A row for the encoder, for random
weights and for log-mel statistics; in brackets 95% intervals over test utterances. The layer is the one that training
utterances held out chose.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from speechssl.cli.probe import percent
from speechssl.files import write_whole
from speechssl.probe.features import LOG_MEL
from speechssl.probe.probing import RANDOM, TRAINED, ProbeResult, read_result

NAMES = {TRAINED: "", RANDOM: ", random weights", LOG_MEL: ", log-mel"}


def rows_of(name: str, result: ProbeResult) -> Iterator[dict[str, str]]:
    """A row for each kind of features: column -> cell."""
    for features, suffix in NAMES.items():
        chosen = [row.layer for seed in result.seeds(features) if (row := result.chosen(features, "linear", seed))]
        if not chosen:
            continue
        curve = {f"{point} %": percent(found) for point, found in result.curve(features).items()}
        yield {
            "features": name + suffix,
            "layer": ", ".join(chosen),
            **curve,
            "all labels %": percent(result.at_chosen(features, "linear")),
            "sum of layers %": percent(result.at_layer(features, "sum", "linear")),
            "hidden layer %": percent(result.at_chosen(features, "hidden")),
        }


def table(found: list[tuple[str, ProbeResult]]) -> str:
    """Markdown. Columns without a cell are left out; below it, what was asked."""
    rows = [row for name, result in found for row in rows_of(name, result)]
    columns = list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))
    columns = [column for column in columns if any(row.get(column) for row in rows)]
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    asked = dict.fromkeys(
        f"{facts['settings']['label']}: {facts['classes']} classes, {facts['num_train']} training and "
        f"{facts['num_test']} test utterances, chance {100 * facts['chance']:.1f}%, "
        f"{facts['settings']['random_seeds']} random encoders, {facts['settings']['draws']} draws of few labels."
        for facts in (result.facts for _, result in found)
    )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + "\n" + "\n".join(asked) + "\n"


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders that a probe or an identification wrote to.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the table here too.")] = None,
) -> None:
    """Prints the table."""
    found = []
    for folder in folders:
        results = [result for path in sorted(folder.glob("*.json")) if (result := read_result(path)) is not None]
        if not results:
            raise SystemExit(f"error: {folder}: holds no result of `speechssl probe` or `speechssl speaker identify`.")
        found += [("/".join(folder.absolute().parts[-2:]), result) for result in results]
    text = table(found)
    if output is not None:
        write_whole(output, text)
    print(text, end="")


if __name__ == "__main__":
    typer.run(main)
