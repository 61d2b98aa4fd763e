"""Utterances as points: pooled features of some layers, mapped to the plane by t-SNE (or UMAP), coloured by a label.

Shapes: N utterances, D features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from speechssl.data.manifest import Manifest
from speechssl.errors import UserError
from speechssl.page.choosing import balanced, own_manifest
from speechssl.page.runs import RunRecord
from speechssl.probe.features import Source, baseline_source, encoder_source, extract

Mapping2D = Literal["tsne", "umap"]
CLASSES = 10  # colours in page.css
MOST = 300  # utterances
RUNS = 4  # that are shown
NAMES = {"tsne": "t-SNE", "umap": "UMAP"}


def embeddings(runs: Sequence[RunRecord], column: str, method: Mapping2D) -> str:
    """Maps for every pretrained encoder (of every encoder, if no run is a pretraining run); "" if there is none."""
    usable = [run for run in runs if run.checkpoint is not None]
    pretrained = [run for run in usable if run.checkpoint and not run.checkpoint.objective.needs - {"units"}]
    html = ""
    for run in (pretrained or usable)[:RUNS]:
        try:
            html += f"<h3>{escape(run.name)}</h3>{_maps(run, column, method)}"
        except UserError as error:
            html += f'<h3>{escape(run.name)}</h3><p class="absent">No map is drawn: {escape(str(error))}</p>'
    return html


def _maps(run: RunRecord, column: str, method: Mapping2D) -> str:
    assert run.checkpoint is not None
    chosen = balanced(own_manifest(run), column, classes=CLASSES, most=MOST)
    labels = {u.id: label for u, label in chosen}
    encoder, cpu = run.checkpoint.objective.encoder, torch.device("cpu")
    middle, last = str(-(-encoder.num_layers // 2)), str(encoder.num_layers)
    hears = replace(run.checkpoint.config.data, workers=0)
    name, baseline = baseline_source(hears, encoder.channels, cpu)
    sources: list[tuple[Source, dict[str, str]]] = [
        (baseline, {name: f"{name} statistics, for comparison"}),
        (encoder_source(encoder, hears, cpu), {middle: f"layer {middle} of {last}", last: f"layer {last}, the last"}),
    ]
    html = ""
    with tempfile.TemporaryDirectory() as cache:
        for source, layers in sources:
            features = extract(
                source, Manifest.of(u for u, _ in chosen), Path(cache), title="embed", seconds_per_batch=60.0
            )
            found = np.array([labels[name] for name in features.ids])
            for layer, title in layers.items():
                html += _figure(run, layer, title, features.layers[layer], found, features.ids, column, method)
    names = list(dict.fromkeys(label for _, label in chosen))
    key = "".join(
        f'<button type="button" aria-pressed="false" data-class="{i}">'
        f'<i class="swatch c{i}"></i>{escape(name)}</button>'
        for i, name in enumerate(names)
    )
    return f'<div class="maps"><div class="legend classes">{key}</div><div class="charts">{html}</div></div>'


def _figure(
    run: RunRecord,
    layer: str,
    title: str,
    features: np.ndarray,
    labels: np.ndarray,
    ids: Sequence[str],
    column: str,
    method: Mapping2D,
) -> str:
    vectors = (features - features.mean(0)) / features.std(0).clip(min=1e-6)
    places = _fitted(_plane(vectors, method))
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    dots = "".join(
        f'<circle class="c{numbers[label]}" data-class="{numbers[label]}" cx="{x:.1f}" cy="{y:.1f}" r="1.3">'
        f"<title>{escape(label)}: {escape(name)}</title></circle>"
        for (x, y), label, name in zip(places.tolist(), labels.tolist(), ids, strict=True)
    )
    share, chance = neighbours(vectors, labels)
    note = f"the nearest other utterance has the same {column} in {share:.0%} (by chance {chance:.0%})"
    label = f"{NAMES[method]} of {len(ids)} utterances, {title}: {note}"
    return (
        f'<figure class="map" id="map-{run.colour}-{escape(layer)}"><figcaption><b>{escape(title)}</b> '
        f"<small>{NAMES[method]}, {len(ids)} utterances; {escape(note)}</small></figcaption>"
        f'<svg viewBox="0 0 100 100" role="img" aria-label="{escape(label)}">{dots}</svg></figure>'
    )


def _plane(vectors: np.ndarray, method: Mapping2D) -> np.ndarray:
    """(N, D) -> (N, 2). Raises UserError: a library is missing, or there are too few utterances."""
    if len(vectors) < 5:
        raise UserError(f"{len(vectors)} utterances are too few for a map.")
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise UserError("UMAP needs umap-learn: pip install 'speechssl[umap]'.") from None
        return UMAP(n_neighbors=min(15, len(vectors) - 1), random_state=0, n_jobs=1).fit_transform(vectors)
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("maps need scikit-learn: pip install 'speechssl[report]'.") from None
    return TSNE(perplexity=min(30.0, (len(vectors) - 1) / 4), init="pca", random_state=0).fit_transform(vectors)


def _fitted(places: np.ndarray) -> np.ndarray:
    """Into the square from 3 to 97, both axes on one scale."""
    centred = places - (places.max(0) + places.min(0)) / 2
    return 50 + 47 * centred / max(float(np.abs(centred).max()), 1e-9)


def neighbours(vectors: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Share of rows whose nearest other row (Euclid) has the same label, and that share for a random other row."""
    square = (vectors**2).sum(1)
    distances = square[:, None] + square[None] - 2 * vectors @ vectors.T
    np.fill_diagonal(distances, np.inf)
    same = labels[distances.argmin(1)] == labels
    counts = np.unique(labels, return_counts=True)[1]
    return float(same.mean()), float((counts * (counts - 1)).sum() / max(len(labels) * (len(labels) - 1), 1))
