"""Every layer of a frozen encoder under small classifiers, beside random weights and log-mel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechssl.build import build_objective
from speechssl.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from speechssl.config import Config
from speechssl.data.labels import labels_of
from speechssl.data.manifest import Manifest
from speechssl.device import pick_device
from speechssl.errors import UserError
from speechssl.files import write_whole
from speechssl.probe.classify import Answer, Kind, classify, classify_layer_sum, wilson
from speechssl.probe.features import Features, FrameSource, Moments, baseline_source, encoder_source, extract
from speechssl.probe.labels import check_same_classes, draw_in_all, draw_per_class
from speechssl.probe.moments import Alignments, train_and_test

TRAINED, RANDOM = "trained", "random weights"
MADE_BY = "speechssl probe"


class ProbeError(UserError):
    """A probe that cannot be made. The message names the files and what to do."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """
    label: see `labels_of`.
    classifiers: "linear", "hidden" (one hidden layer).
    random_seeds: encoders of the same architecture with random weights to compare with.
    labels_per_class, labels_in_all: points of the learning curve, `draws` random choices of labels each.
    """

    label: str = "speaker"
    classifiers: tuple[Kind, ...] = ("linear", "hidden")
    random_seeds: int = 3
    labels_per_class: tuple[int, ...] = ()
    labels_in_all: tuple[int, ...] = ()
    draws: int = 3
    hidden_dim: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One classifier on one layer.

    features: "trained", "random weights" (then `seed` says which), or the baseline: "log-mel", of series "channels".
    layer: "latents", "0" (input of the context network), "1", ..., "sum" (of 0, 1, ...), or the baseline's name.
    labels: "all", or a point of the learning curve ("3 per class", "100 in all"), of which `draw` is one choice.
    """

    features: str
    seed: int
    layer: str
    classifier: str
    labels: str
    draw: int
    accuracy: float
    strength: float
    held_out: float | None
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A mean accuracy, its 95% interval over test utterances (Wilson), and the range over seeds and draws."""

    mean: float
    low: float
    high: float
    least: float
    most: float


@dataclass(frozen=True)
class ProbeResult:
    """Rows, and what they were made with: `facts` has classes, chance, num_train, num_test, problems, settings.

    With `alignments` they also say "examples": "frames", and "note", a sentence about labels that were left out.
    """

    rows: tuple[Row, ...]
    facts: dict[str, Any]

    @property
    def kinds(self) -> list[str]:
        """The features that there are: trained, random weights, the baseline."""
        return list(dict.fromkeys(row.features for row in self.rows))

    def seeds(self, features: str) -> list[int]:
        return sorted({row.seed for row in self.rows if row.features == features})

    def chosen(self, features: str, classifier: str, seed: int) -> Row | None:
        """The layer with the best held-out accuracy (the later one of equals): test had no say in it."""
        rows = [r for r in self._all(features, classifier) if r.seed == seed and r.layer != "sum"]
        return max(reversed(rows), key=lambda row: row.held_out or 0.0, default=None)

    def at_layer(self, features: str, layer: str, classifier: str) -> Interval | None:
        """Mean accuracy over seeds."""
        return self.interval([r.accuracy for r in self._all(features, classifier) if r.layer == layer])

    def at_chosen(self, features: str, classifier: str) -> Interval | None:
        """Mean over seeds of the accuracy at each one's chosen layer."""
        rows = [self.chosen(features, classifier, seed) for seed in self.seeds(features)]
        return self.interval([row.accuracy for row in rows if row is not None])

    def curve(self, features: str) -> dict[str, Interval]:
        """Points of the learning curve: mean over draws (and seeds)."""
        points: dict[str, list[float]] = {}
        for row in self.rows:
            if row.features == features and row.labels != "all":
                points.setdefault(row.labels, []).append(row.accuracy)
        return {labels: self.interval(found) for labels, found in points.items()}  # type: ignore[misc]

    def interval(self, accuracies: list[float]) -> Interval | None:
        if not accuracies:
            return None
        mean = float(np.mean(accuracies))
        return Interval(mean, *wilson(mean, self.facts["num_test"]), min(accuracies), max(accuracies))

    def _all(self, features: str, classifier: str) -> list[Row]:
        return [r for r in self.rows if (r.features, r.classifier, r.labels) == (features, classifier, "all")]


def probe(
    run: str | Path,
    train: str | Path,
    test: str | Path,
    output: str | Path,
    settings: ProbeSettings,
    *,
    device: str | None = None,
    seconds_per_batch: float = 60.0,
    force: bool = False,
    alignments: Alignments | None = None,
) -> ProbeResult:
    """Probes a run and its baselines; writes `output`/<label>.json, and features into `output`/features.

    Does nothing but read the result if this very probe was made there before.

    Args:
        alignments: probe single frames for the labels of these files, and not whole utterances for a column.

    Raises:
        ProbeError: another probe lies there (and `force` is not given), or test utterances are in train.
        LabelError, AlignmentError, FeatureError, ManifestError, CheckpointError.
    """
    output = Path(output)
    path = output / f"{settings.label.replace(':', '-').replace('/', '-')}.json"
    asked = describe(run, train, test, settings) | ({} if alignments is None else alignments.record())
    if (known := read_result(path)) is not None and not force:
        if known.facts.get("settings") == asked:
            print(f"{path}: already made, left as it is")
            return known
        raise ProbeError(f"{path}: holds another probe; choose another --output or give --force.")
    manifests = Manifest.read(train), Manifest.read(test)
    check_apart(*manifests, str(test))
    groups = speakers_apart(*manifests) if settings.label != "speaker" else {}
    facts: dict[str, Any] = {"made_by": MADE_BY, "settings": asked, "held_out": "speakers" if groups else "utterances"}
    if alignments is None:
        moments: Sequence[Moments | None] = (None, None)
        labels = [
            {u.id: label for u, label in zip(m, labels_of(m, settings.label), strict=True) if label is not None}
            for m in manifests
        ]
    else:
        examples, note = train_and_test(manifests, (train, test), alignments)
        labels, moments = [part.labels for part in examples], [part.moments for part in examples]
        groups = {name: groups.get(u, u) for part in examples for u, names in part.moments.items() for name in names}
        manifests = examples[0].of(manifests[0]), examples[1].of(manifests[1])
        facts |= {"examples": "frames", "note": note}
    check_same_classes(*(list(of.values()) for of in labels))
    rows: list[Row] = []
    problems: dict[str, None] = {}
    for features, seed, source in sources(load_checkpoint(run), settings.random_seeds, pick_device(device)):
        title = features if features != RANDOM else f"{RANDOM} {seed}"
        read = [
            extract(
                source,
                m,
                output / "features",
                title=f"{title}: {part}",
                seconds_per_batch=seconds_per_batch,
                moments=times,
            )
            for m, part, times in zip(manifests, ("train", "test"), moments, strict=True)
        ]
        parts = [labelled(found, of, groups) for found, of in zip(read, labels, strict=True)]
        if features == TRAINED:  # what it could not read is left out of the baselines as well
            facts |= count(*parts)
            labels = [
                {name: of[name] for name in found.ids if name in of} for found, of in zip(read, labels, strict=True)
            ]
        problems |= dict.fromkeys(problem for found in read for problem in found.problems)
        rows += _probe_source(features, seed, parts[0], parts[1], settings)
    facts["problems"] = list(problems)
    result = ProbeResult(tuple(rows), facts)
    write_whole(path, json.dumps(facts | {"rows": [asdict(row) for row in rows]}, ensure_ascii=False, indent=1) + "\n")
    return result


@dataclass(frozen=True)
class Part:
    """Train or test: features (N, D) by layer, labels (N,), and speakers (N,) if these are held out whole."""

    layers: Mapping[str, np.ndarray]
    labels: np.ndarray
    groups: np.ndarray | None = None

    def at(self, layer: str, rows: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        return self.layers[layer][rows], self.labels[rows]


def sources(checkpoint: Checkpoint, random_seeds: int, device: torch.device) -> Iterator[tuple[str, int, FrameSource]]:
    """(what, seed, source) of the trained encoder, of random ones like it, and of the baseline, one at a time."""
    config, hears = checkpoint.config, checkpoint.config.data
    yield TRAINED, 0, encoder_source(checkpoint.objective.encoder, hears, device)
    for seed in range(1, random_seeds + 1):
        yield RANDOM, seed, encoder_source(random_encoder(config, seed), hears, device)
    name, source = baseline_source(hears, checkpoint.objective.encoder.channels, device)
    yield name, 0, source


def random_encoder(config: Config, seed: int):
    """The architecture of a run with fresh weights."""
    return build_objective(config.override(train={"seed": seed})).encoder


def labelled(features: Features, labels: Mapping[str, str], groups: Mapping[str, str]) -> Part:
    """The features of the utterances that have a label, and the labels."""
    chosen = features.of([name for name in features.ids if name in labels])
    speakers = np.array([groups[name] for name in chosen.ids]) if groups else None
    return Part(chosen.layers, np.array([labels[name] for name in chosen.ids]), speakers)


def speakers_apart(train: Manifest, test: Manifest) -> dict[str, str]:
    """Speakers by utterance, if test has none of train's: then strength and layer are chosen on speakers held out.

    A choice by other utterances of the same speakers would favour what only helps with these.
    """
    everyone = [u for manifest in (train, test) for u in manifest]
    if any(u.speaker is None for u in everyone) or len(train.speakers) < 2:
        return {}
    return {} if set(train.speakers) & set(test.speakers) else {u.id: str(u.speaker) for u in everyone}


def count(train: Part, test: Part) -> dict[str, Any]:
    """How many there are, and how often the commonest label of train is right."""
    names, numbers = np.unique(train.labels, return_counts=True)
    return {
        "classes": len(names),
        "num_train": len(train.labels),
        "num_test": len(test.labels),
        "chance": float((test.labels == names[numbers.argmax()]).mean()),
    }


def check_apart(train: Manifest, test: Manifest, path: str) -> None:
    """Raises ProbeError where a test utterance is in train."""
    places = {(u.audio, u.start, u.byte_range) for u in train}
    both = [u.id for u in test if (u.audio, u.start, u.byte_range) in places]
    if both:
        raise ProbeError(f"{path}: {len(both)} utterances are in the training manifest too, for example {both[0]}.")


def _probe_source(features: str, seed: int, train: Part, test: Part, settings: ProbeSettings) -> Iterator[Row]:
    """Rows of one source: every layer, the layers' sum, and the learning curve at the layer that train chooses."""
    numbers: dict[str, Any] = {"hidden_dim": settings.hidden_dim, "seed": settings.seed}
    best: tuple[float, str] = (-1.0, "")
    for layer in train.layers:
        for kind in settings.classifiers:
            answer = classify(kind, train.at(layer), test.at(layer), groups=train.groups, **numbers)
            yield _row(features, seed, layer, kind, "all", 0, answer)
            if kind == settings.classifiers[0] and (answer.held_out or 0.0) >= best[0]:
                best = (answer.held_out or 0.0, layer)
    summed = same_size(train.layers)
    if len(summed) > 1:
        learnt, measured = (({layer: part.layers[layer] for layer in summed}, part.labels) for part in (train, test))
        answer = classify_layer_sum(learnt, measured, groups=train.groups, seed=settings.seed)
        yield _row(features, seed, "sum", "linear", "all", 0, answer)
    points = [(f"{k} per class", draw_per_class, k) for k in settings.labels_per_class]
    points += [(f"{n} in all", draw_in_all, n) for n in settings.labels_in_all]
    layer, kind = best[1], settings.classifiers[0]
    for name, draw, size in points:
        for number in range(settings.draws):
            few = draw(train.labels.tolist(), size, settings.seed + number)
            groups = None if train.groups is None else train.groups[few]
            answer = classify(kind, train.at(layer, few), test.at(layer), groups=groups, **numbers)
            yield _row(features, seed, layer, kind, name, number, answer)


def same_size(layers: Mapping[str, np.ndarray]) -> list[str]:
    """Layers of the context network that can be added up: those of the last one's size."""
    numbered = [layer for layer in layers if layer.isdigit()]
    return [layer for layer in numbered if layers[layer].shape[1] == layers[numbered[-1]].shape[1]]


def _row(features: str, seed: int, layer: str, kind: str, labels: str, draw: int, answer: Answer) -> Row:
    return Row(features, seed, layer, kind, labels, draw, **asdict(answer))


# -------------------------------------------------------------------------------------------------------------- records


def describe(run: str | Path, train: str | Path, test: str | Path, settings: ProbeSettings) -> dict[str, Any]:
    """What a result depends on, as plain data."""
    record = {
        "checkpoint": str(find_checkpoint(run).resolve()),
        **{name: str(Path(path).resolve()) for name, path in (("train", train), ("test", test))},
        **{f"{name}_sha256": _sha256(path) for name, path in (("train", train), ("test", test))},
        **asdict(settings),
    }
    return json.loads(json.dumps(record))  # tuples become lists, as they will be when read


def read_result(path: Path) -> ProbeResult | None:
    """What `probe` wrote; None where there is nothing. Raises ProbeError where something else lies."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("made_by") != MADE_BY:
            raise ValueError
        rows = tuple(Row(**row | {"weights": tuple(row["weights"])}) for row in record.pop("rows"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ProbeError(f"{path}: exists and was not made by a probe; choose another --output.") from None
    return ProbeResult(rows, record | {"made_by": MADE_BY})


def _sha256(path: str | Path) -> str:
    path = Path(path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
