"""Curves of training: what was learnt beside chance, codebooks, gradients, throughput."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from speechssl.page.charts import COLOURS, Chart, Point, Series, draw, number
from speechssl.page.runs import RunRecord

OPTIMISER = {"gradient_norm": "gradient norm", "lr": "learning rate", "skipped": "updates skipped", "spikes": "spikes"}
SPEED = {"audio_per_second": "seconds of audio per second", "wait": "share of time waiting for data"}
UNSEEN = {"seconds", "hours", "unread"}  # summed up in the table of runs
LOGARITHMIC = {"gradient_norm"}
LINES = "line: training · dots: validation · dashes: chance"
FIRST = ("loss", "accuracy", "wer", "ter")  # of the other metrics, in this order


def runs_table(runs: Sequence[RunRecord]) -> str:
    """What each run is and what it cost."""
    head = ("run", "objective", "updates", "audio heard", "time", "audio s/s", "seed", "started from")
    rows = "".join(f"<tr>{_cells(run)}</tr>" for run in runs)
    return (
        f'<div class="wide"><table id="runs-table"><thead><tr>{"".join(f"<th scope=col>{h}</th>" for h in head)}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>{_incidents(runs)}"
    )


def _cells(run: RunRecord) -> str:
    total = {name: sum(value for _, value in run.train.get(name, ())) for name in ("seconds", "hours")}
    speed = [value for _, value in run.train.get("audio_per_second", ())]
    steps = [points[-1][0] for points in run.train.values() if points]
    minutes = total["seconds"] / 60
    cells = (
        run.objective,
        f"{max(steps, default=0):,} of {run.config.train.updates:,}",
        f"{total['hours']:,.1f} h",
        f"{minutes / 60:,.1f} h" if minutes >= 100 else f"{minutes:.1f} min",
        number(sum(speed) / len(speed)) if speed else "",
        str(run.config.train.seed),
        "/".join(Path(run.config.init).parts[-2:]) or "random weights",
    )
    swatch = f'<i class="swatch c{run.colour % COLOURS}"></i>'
    return f"<th scope=row>{swatch}{escape(run.name)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _incidents(runs: Sequence[RunRecord], most: int = 30) -> str:
    """What went wrong, if anything did."""
    html = ""
    for run in runs:
        if run.incidents:
            items = "".join(
                f"<li>update {row.get('step', '?')}: {escape(str(row['sentence']))}</li>"
                for row in run.incidents[:most]
            )
            more = f"<li>and {len(run.incidents) - most} more in incidents.jsonl</li>" if run.incidents[most:] else ""
            html += (
                f"<details><summary>{escape(run.name)}: {len(run.incidents)} incidents</summary>"
                f"<ul>{items}{more}</ul></details>"
            )
    return html


def learning(runs: Sequence[RunRecord]) -> str:
    """A block of charts for each group of runs that log the same metrics."""
    groups: dict[frozenset[str], list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(frozenset(name for name in run.train if _is_metric(name)), []).append(run)
    return "".join(_group(number, group) for number, group in enumerate(groups.values()))


def _is_metric(name: str) -> bool:
    return "/" not in name and name not in UNSEEN | OPTIMISER.keys() | SPEED.keys()


def _group(place: int, runs: list[RunRecord]) -> str:
    names = dict.fromkeys(name for run in runs for name in [*run.train, *run.valid] if _is_metric(name))
    ordered = sorted(names, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n))
    if any(all(_same(run, "loss", name) for run in runs) for name in ordered if name != "loss"):
        ordered.remove("loss")  # of one term, which has a chart
    codes = [name for name in ordered if "perplexity" in name]
    title = ", ".join(dict.fromkeys(run.objective for run in runs))
    parts = [
        ("Learning", [_chart(place, name, name.replace("_", " "), runs) for name in ordered if name not in codes]),
        ("Codebook use", [_chart(place, name, name.replace("_", " "), runs) for name in codes]),
        ("By step", list(_profiles(place, runs))),
        ("Optimiser", [_chart(place, name, text, runs) for name, text in OPTIMISER.items() if _any(name, runs)]),
        ("Throughput", [_chart(place, name, text, runs) for name, text in SPEED.items() if _any(name, runs)]),
    ]
    charts = "".join(
        f'<h4>{heading}</h4><div class="charts">{"".join(map(draw, of_part))}</div>'
        for heading, of_part in parts
        if of_part
    )
    return f"<section class=group><h3>{escape(title)}</h3>{legend(runs, LINES)}{charts}</section>"


def legend(runs: Iterable[RunRecord], note: str = "") -> str:
    """Buttons that show and hide runs in every chart."""
    buttons = "".join(
        f'<button type="button" class="run" aria-pressed="true" data-run="{run.colour}">'
        f'<i class="swatch c{run.colour % COLOURS}"></i>{escape(run.name)}</button>'
        for run in runs
    )
    return f'<div class="legend">{buttons}<small>{escape(note)}</small></div>'


def _any(name: str, runs: list[RunRecord]) -> bool:
    """Whether it was ever anything but 0."""
    return any(value for run in runs for _, value in run.train.get(name, ()))


def _same(run: RunRecord, one: str, other: str) -> bool:
    return all(curves.get(one) == curves.get(other) for curves in (run.train, run.valid))


def _chart(place: int, name: str, title: str, runs: list[RunRecord]) -> Chart:
    series = [Series(run.name, run.colour, run.train.get(name, ())) for run in runs]
    series += [Series(f"{run.name}, validation", run.colour, run.valid.get(name, ()), "dots") for run in runs]
    levels = {("chance", run.chance[name]): None for run in runs if name in run.chance}
    if name == "code_perplexity":
        levels |= {("all codes", float(codes)): None for run in runs if (codes := _codes(run))}
    return Chart(
        id=f"curve-{place}-{name}",
        title=title,
        series=series,
        levels=list(levels),
        log=name in LOGARITHMIC,
    )


def _codes(run: RunRecord) -> int:
    """How many codes there are, over all codebooks; 0: the objective has none of its own."""
    numbers = run.config.objective
    return int(numbers.get("num_codebooks", 1)) * int(numbers.get("codebook_size", 0))


def _profiles(place: int, runs: list[RunRecord]) -> Iterable[Chart]:
    """Metrics with a number in their name (information/1, information/2, ...) over that number, as they are now."""
    found: dict[str, dict[int, dict[int, float]]] = {}  # what -> place of the run -> number -> value
    for index, run in enumerate(runs):
        for name, points in run.train.items():
            if match := re.fullmatch(r"(.+)/(\d+)", name):
                found.setdefault(match[1], {}).setdefault(index, {})[int(match[2])] = points[-1][1]
    for name, of_runs in found.items():
        series = []
        for index, values in of_runs.items():
            dots: list[Point] = sorted(values.items())
            series.append(Series(runs[index].name, runs[index].colour, dots, "dots"))
        yield Chart(f"profile-{place}-{name}", f"{name} at the end", series, x_label="step")
