"""Which utterances of a run's own data to look at."""

from __future__ import annotations

from collections import Counter

import numpy as np

from speechssl.data.labels import labels_of
from speechssl.data.manifest import Manifest, Utterance
from speechssl.page.runs import RunRecord

BEST_LENGTH = 5.0  # seconds of an example that is easy to look at


def own_manifest(run: RunRecord) -> Manifest:
    """What the run validates on, else what it learns from. Raises ManifestError."""
    return Manifest.read(run.config.data.valid or run.config.data.train)


def examples(manifest: Manifest, count: int) -> list[Utterance]:
    """Utterances of about five seconds, of as many speakers as there are."""
    ordered = sorted(manifest, key=lambda u: (abs(u.seconds - BEST_LENGTH), u.id))
    firsts: dict[str | None, Utterance] = {}
    for utterance in ordered:
        firsts.setdefault(utterance.speaker, utterance)
    chosen = list(firsts.values())[:count]
    rest = [u for u in ordered if u not in chosen]
    return (chosen + rest)[:count]


def balanced(manifest: Manifest, column: str, *, classes: int, most: int) -> list[tuple[Utterance, str]]:
    """Utterances of the commonest labels of a column, about equally many of each, with the label; at most `most`.

    The same manifest gives the same choice. Raises LabelError.
    """
    labelled = [(u, name) for u, name in zip(manifest, labels_of(manifest, column), strict=True) if name is not None]
    ranks = Counter(label for _, label in labelled).most_common(classes)
    generator = np.random.default_rng(0)
    chosen: list[tuple[Utterance, str]] = []
    for label, _ in ranks:
        members = [(u, name) for u, name in labelled if name == label]
        order = generator.permutation(len(members))[: max(1, most // len(ranks))]
        chosen += [members[i] for i in sorted(order.tolist())]
    return chosen
