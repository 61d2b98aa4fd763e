"""Word error rates with their intervals, how they spread over utterances, and which utterances to listen to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from speechssl.page.charts import COLOURS, Chart, Series, draw
from speechssl.page.learning import legend
from speechssl.page.runs import RunRecord, Scored, Spoken

THIRDS = ("shortest", "middle", "longest")


def wer_table(runs: Sequence[RunRecord]) -> str:
    """Every run and test set: rates, interval in numbers and as a bar on one scale."""
    found = [(run, scored) for run in runs for scored in run.scores]
    if not found:
        return ""
    low = math.floor(20 * min(scored.numbers["low"] for _, scored in found)) / 20
    high = math.ceil(20 * max(scored.numbers["high"] for _, scored in found)) / 20
    head = ["run", "set", "WER %", "95% interval", f"{100 * low:.0f} to {100 * high:.0f} %", "CER %"]
    head += ["sub", "ins", "del", "words", "utterances", "decoder", *(f"{name} third" for name in THIRDS)]
    lines = [_cells(run, scored, low, high) for run, scored in sorted(found, key=lambda pair: pair[1].set)]
    kept = [place for place in range(len(head)) if any(line[place] for line in lines)]
    rows = "".join(f"<tr>{''.join(line[place] for place in kept)}</tr>" for line in lines)
    columns = "".join(f"<th scope=col{' class=text' if place == 1 else ''}>{head[place]}</th>" for place in kept)
    warnings = "".join(
        f'<p class="warning"><b>{escape(run.name)}, {escape(scored.set)}:</b> {escape(scored.numbers["warning"])}</p>'
        for run, scored in found
        if scored.numbers.get("warning")
    )
    return (
        '<figure id="wer-table"><figcaption><b>Word error rates</b> <small>Intervals: bootstrap over utterances. '
        "Thirds: by length of the utterance.</small></figcaption>"
        f'<div class="wide"><table><thead><tr>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{warnings}</figure>"
    )


def _cells(run: RunRecord, scored: Scored, low: float, high: float) -> list[str]:
    """The cells of a row, "" where nothing is known; the bar of the interval spans `low` to `high`."""
    numbers = scored.numbers
    left, right, at = (100 * (numbers[name] - low) / max(high - low, 1e-9) for name in ("low", "high", "wer"))
    colour = f"c{run.colour % COLOURS}"
    bar = (
        f'<svg class="interval {colour}" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="track" d="M0 5H100"/><path d="M{left:.2f} 5H{right:.2f}"/>'
        f'<path class="at" d="M{at:.2f} 5h0"/></svg>'
    )
    lengths = numbers.get("lengths") or {}
    values = (
        f"<b>{100 * numbers['wer']:.1f}</b>",
        f"{100 * numbers['low']:.1f} – {100 * numbers['high']:.1f}",
        bar,
        f"{100 * numbers['cer']:.1f}",
        *(
            f"{numbers[name]:,}" if name in numbers else ""
            for name in ("substitutions", "insertions", "deletions", "words", "utterances")
        ),
        escape(_decoder(scored)),
        *(f"{100 * lengths[name]['wer']:.1f}" if name in lengths else "" for name in THIRDS),
    )
    named = f'<th scope=row><i class="swatch {colour}"></i>{escape(run.name)}</th>'
    return [
        named,
        f"<td class=text>{escape(scored.set)}</td>",
        *(f"<td>{value}</td>" if value else "" for value in values),
    ]


def _decoder(scored: Scored) -> str:
    decoding = scored.made_with.get("decoding") or {}
    name = str(decoding.get("decoder", ""))
    lm = decoding.get("lm") or {}
    return name + (f" + {str(lm.get('path', '')).rsplit('/', 1)[-1]}" if lm else "")


def spread(runs: Sequence[RunRecord]) -> str:
    """Share of utterances up to each error rate, a chart per set."""
    sets = sorted({scored.set for run in runs for scored in run.scores})
    charts = []
    for name in sets:
        series = [
            Series(run.name, run.colour, _cumulative([s.rate for s in scored.utterances]))
            for run in runs
            for scored in run.scores
            if scored.set == name
        ]
        note = "the higher, the better; at 0: utterances without an error"
        title = f"{name}: share of utterances up to an error rate"
        charts.append(
            draw(Chart(f"spread-{name}", title, series, x_label="word error rate of an utterance", note=note))
        )
    scored_runs = [run for run in runs if run.scores]
    if not charts:
        return ""
    return f'<section class=group>{legend(scored_runs)}<div class="charts">{"".join(charts)}</div></section>'


def _cumulative(rates: Sequence[float], most: float = 1.5) -> list[tuple[float, float]]:
    """Points (rate, share of utterances with at most that rate), every 2 percent."""
    ordered = sorted(rates)
    points, place = [], 0
    for step in range(round(most * 50) + 1):
        while place < len(ordered) and ordered[place] <= step / 50 + 1e-9:
            place += 1
        points.append((step / 50, place / len(ordered)))
    return points


def to_listen_to(scored: Scored, each: int) -> tuple[list[Spoken], list[Spoken]]:
    """The worst utterances (most errors, as in worst.txt) and those around the median error rate."""
    ordered = sorted(scored.utterances, key=lambda s: (-s.errors, s.words, s.id))
    worst = [s for s in ordered if s.errors][:each]
    rest = sorted((s for s in scored.utterances if s not in worst), key=lambda s: (s.rate, s.id))
    by_rate = sorted(s.rate for s in scored.utterances)
    middle = by_rate[len(by_rate) // 2]
    nearest = sorted(rest, key=lambda s: (abs(s.rate - middle), -s.words, s.id))[:each]
    return worst, nearest
