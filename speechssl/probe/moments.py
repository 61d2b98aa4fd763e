"""Single moments of utterances as examples: the middle of each letter or phone of an alignment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.data.alignment import Interval, read_alignment
from speechssl.data.labels import LabelError
from speechssl.data.manifest import Manifest

ALIGNED = "aligned"  # what the label of such a probe is called


@dataclass(frozen=True)
class Alignments:
    """Files of labels in time, and how many labels of a manifest are used at most, drawn at random by `seed`."""

    paths: tuple[Path, ...]
    most: int = 10_000
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """What a result depends on, as plain data."""
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in self.paths]
        return {"alignments": [str(path.resolve()) for path in self.paths], "sha256": hashes, "most": self.most}

    def read(self) -> dict[str, list[Interval]]:
        """Labels by utterance, of all files. Raises AlignmentError."""
        labels: dict[str, list[Interval]] = {}
        for path in self.paths:
            labels |= read_alignment(path)
        return labels


@dataclass(frozen=True)
class Examples:
    """
    labels: by the name of the example, `utterance#number`.
    moments: utterance -> example -> seconds, the middle of its label.
    """

    labels: dict[str, str]
    moments: dict[str, dict[str, float]]

    def of(self, manifest: Manifest) -> Manifest:
        """The utterances that have an example."""
        return manifest.filter(lambda u: u.id in self.moments)

    def with_labels(self, known: set[str]) -> Examples:
        """Those whose label is among these."""
        labels = {name: label for name, label in self.labels.items() if label in known}
        kept = {u: {name: time for name, time in names.items() if name in labels} for u, names in self.moments.items()}
        return Examples(labels, {u: names for u, names in kept.items() if names})


def examples_of(
    manifest: Manifest, labels: Mapping[str, Sequence[Interval]], path: str | Path, *, most: int, seed: int
) -> Examples:
    """One example for each label of the manifest's utterances, or `most` drawn at random. Raises LabelError: none."""
    every = [(u.id, number) for u in manifest for number in range(len(labels.get(u.id, ())))]
    if not every:
        raise LabelError(
            f"{path}: not one of {len(manifest)} utterances is in the alignment; align this manifest "
            "(`speechssl align`) and give that file with --alignment, once more for a second one."
        )
    drawn = sorted(np.random.default_rng(seed).permutation(len(every))[:most].tolist())
    examples = Examples({}, {})
    for utterance, number in (every[place] for place in drawn):
        interval, name = labels[utterance][number], f"{utterance}#{number}"
        examples.labels[name] = interval.label
        examples.moments.setdefault(utterance, {})[name] = (interval.start + interval.end) / 2
    return examples


def train_and_test(
    manifests: Sequence[Manifest], paths: Sequence[str | Path], alignments: Alignments
) -> tuple[tuple[Examples, Examples], str]:
    """Examples of both, and a sentence about test labels that train lacks, which are left out ("": none).

    Raises LabelError: a manifest without labels, or no label that both have.
    """
    labels, most, seed = alignments.read(), alignments.most, alignments.seed
    train, test = (
        examples_of(manifest, labels, path, most=most, seed=seed)
        for manifest, path in zip(manifests, paths, strict=True)
    )
    known = set(train.labels.values())
    strange = sorted(set(test.labels.values()) - known)
    if not strange:
        return (train, test), ""
    kept = test.with_labels(known)
    if not kept.labels:
        raise LabelError(f"{paths[1]}: has no label that training has; give alignments with the same kind of labels.")
    left_out = len(test.labels) - len(kept.labels)
    return (train, kept), f"{left_out} test labels that do not occur in training are left out: {', '.join(strange)}."
