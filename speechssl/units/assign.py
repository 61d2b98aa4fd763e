"""Features and clusters -> a units folder, and how well units agree with labels of the same speech.

Shapes: P labels, V units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechssl.data.alignment import AlignmentError, Interval
from speechssl.data.units import Units, UnitsError, UnitsRecord, read_record, write_units
from speechssl.units.features import Features
from speechssl.units.kmeans import KMeans, open_features, read_kmeans


def make_units(folders: Sequence[Path], kmeans_path: Path, output: Path) -> Units:
    """Writes the units of the utterances of one or several features folders; those made before are left as they are.

    Raises:
        UnitsError: the features are not those that were clustered, or `output` holds something else.
    """
    sets, kmeans = open_features(folders), read_kmeans(kmeans_path)
    own = sets[0].record.source()
    different = [name for name in kmeans.source | own if kmeans.source.get(name) != own.get(name)]
    if different:
        raise UnitsError(
            f"{folders[0]}: its features are not of the kind that {kmeans_path} clusters ({different[0]} is "
            f"{own.get(different[0])!r} and {kmeans.source.get(different[0])!r} there); make them with its settings."
        )
    checkpoints = {f"checkpoint {features.record.checkpoint}" for features in sets if features.record.checkpoint}
    record = UnitsRecord(
        hop=own["hop"],
        sample_rate=own["sample_rate"],
        num_units=len(kmeans.centroids),
        source={
            "features": own,
            "from": sorted(checkpoints),
            "manifests": [features.record.manifest for features in sets],
            "kmeans": kmeans.made_with,
        },
        sees=sets[0].record.sees,
    )
    if output.exists():
        if read_record(output) != record:
            raise UnitsError(f"{output}: holds units made otherwise; choose another folder.")
        print(f"{output}: made before with these settings, left as it is")
    else:
        write_units(output, record, _assigned(sets, kmeans))
    return Units(output)


def _assigned(sets: list[Features], kmeans: KMeans) -> Iterator[tuple[str, np.ndarray]]:
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("units", total=sum(map(len, sets)))
        for features in sets:
            for utterance, frames in features.utterances():
                yield utterance, kmeans.assign(frames)
                progress.advance(task)


def usage(units: Units) -> np.ndarray:
    """(V,) how often each unit occurs."""
    counts = np.zeros(units.record.num_units, dtype=np.int64)
    for utterance in units.ids:
        counts += np.bincount(units.read(utterance), minlength=len(counts))
    return counts


# -------------------------------------------------------------------------------------------------------------- purity


@dataclass(frozen=True)
class Purity:
    """Agreement of units with labels over frames (HuBERT, section V-A).

    frames: that have both.
    label: phone (or letter) purity: how often the label is the most frequent one of its unit.
    unit: cluster purity: how often the unit is the most frequent one of its label.
    information: mutual information over the entropy of the labels (PNMI): 0 = nothing, 1 = the unit tells the label.
    """

    frames: int
    label: float
    unit: float
    information: float


def purity(counts: np.ndarray) -> Purity:
    """counts: (P, V), how often a label meets a unit."""
    total = counts.sum()
    joint = counts / max(total, 1)
    of_label, of_unit = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = np.nansum(joint * np.log(joint / (of_label * of_unit)))
        entropy = -np.nansum(of_label * np.log(of_label))
    return Purity(
        frames=int(total),
        label=float(joint.max(0).sum()),
        unit=float(joint.max(1).sum()),
        information=float(shared / entropy) if entropy > 0 else 0.0,
    )


def count_labels(units: Units, labels: Mapping[str, Iterable[Interval]]) -> np.ndarray:
    """(P, V): how often each label meets each unit; a unit's time is the middle of what its frame sees.

    Raises AlignmentError: not one labelled utterance has units.
    """
    names = {name: i for i, name in enumerate(sorted({i.label for row in labels.values() for i in row}))}
    counts = np.zeros((len(names), units.record.num_units), dtype=np.int64)
    for utterance, intervals in labels.items():
        numbers = units.read(utterance)
        middle = units.record.middles(len(numbers))
        for interval in intervals:
            inside = numbers[(middle >= interval.start) & (middle < interval.end)]
            counts[names[interval.label]] += np.bincount(inside, minlength=counts.shape[1])
    if not counts.any():
        raise AlignmentError(f"not one labelled utterance has units in {units.folder}; its ids must be the manifest's.")
    return counts
