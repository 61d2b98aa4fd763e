"""What `speechssl probe` found: accuracy layer by layer, and over the number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from speechssl.page.charts import Chart, Series, draw
from speechssl.page.runs import PageError, RunRecord
from speechssl.probe.features import CHANNELS, LOG_MEL
from speechssl.probe.probing import RANDOM, TRAINED, Interval, ProbeResult, read_result

COLOURS = {TRAINED: 0, RANDOM: 1, LOG_MEL: 2, CHANNELS: 2}


def find_probes(runs: Sequence[RunRecord], folders: Sequence[Path]) -> list[tuple[str, ProbeResult]]:
    """Results in these folders, and in a folder `probe` of each run. Raises PageError: a folder without a result."""
    found: list[tuple[str, ProbeResult]] = []
    places = [(run.folder / "probe", f"{run.name}: ") for run in runs]
    for folder, name in [*places, *((folder, f"{folder.name}: ") for folder in folders)]:
        results = [(path.stem, read_result(path)) for path in sorted(folder.glob("*.json"))]
        if not results and folder in folders:
            raise PageError(f"{folder}: holds no result of `speechssl probe`; give the folder that it wrote to.")
        found += [(f"{name}{label}", result) for label, result in results if result is not None]
    return found


def probes(found: Sequence[tuple[str, ProbeResult]]) -> str:
    """Charts of every result; "" if there is none."""
    charts = ""
    for place, (name, result) in enumerate(found):
        for kind in result.facts["settings"]["classifiers"]:
            charts += draw(_layers(place, name, kind, result))
        if curve := _curve(place, name, result):
            charts += draw(curve)
    shown = dict.fromkeys(kind for _, result in found for kind in result.kinds)
    key = "".join(f'<span><i class="swatch c{COLOURS[kind]}"></i>{escape(kind)}</span>' for kind in shown)
    return (
        f'<div class="legend">{key}<small>bars: 95%</small></div><div class="charts">{charts}</div>' if charts else ""
    )


def _layers(place: int, name: str, kind: str, result: ProbeResult) -> Chart:
    rows = [row for row in result.rows if row.features == TRAINED and row.labels == "all"]
    layers = list(dict.fromkeys(row.layer for row in rows))
    series = [
        _series(features, {i: result.at_layer(features, layer, kind) for i, layer in enumerate(layers)})
        for features in (TRAINED, RANDOM)
    ]
    levels = [("chance", 100 * result.facts["chance"])]
    for baseline in (LOG_MEL, CHANNELS):
        if (level := result.at_layer(baseline, baseline, kind)) is not None:
            levels.append((baseline, 100 * level.mean))
    label = result.facts["settings"]["label"]
    things = result.facts.get("examples", "utterances")
    note = f"{result.facts['classes']} classes, {result.facts['num_test']} test {things}; {kind} classifier"
    title = f"{name}: {label} %, layer by layer" if label not in name else f"{name} %, layer by layer"
    return Chart(f"probe-{place}-{kind}", title, series, "layer", note, levels, x_names=layers)


def _curve(place: int, name: str, result: ProbeResult) -> Chart | None:
    curves = {features: result.curve(features) for features in result.kinds}
    points = list(next(iter(curves.values())))
    if not points:
        return None
    series = [_series(f, {i: curve.get(p) for i, p in enumerate(points)}) for f, curve in curves.items()]
    levels = [("chance", 100 * result.facts["chance"])]
    return Chart(f"probe-{place}-labels", f"{name} %, over labels", series, "labels", "", levels, x_names=points)


def _series(features: str, intervals: dict[int, Interval | None]) -> Series:
    known = {i: interval for i, interval in intervals.items() if interval is not None}
    return Series(
        features,
        COLOURS[features],
        [(i, 100 * interval.mean) for i, interval in known.items()],
        "dots",
        [(100 * interval.low, 100 * interval.high) for interval in known.values()],
    )
