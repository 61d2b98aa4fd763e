"""Verification: are two utterances by one speaker? Cosines of embeddings over a list of trials."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.checkpoint import find_checkpoint, load_checkpoint
from speechssl.data.manifest import Manifest
from speechssl.device import pick_device
from speechssl.errors import UserError
from speechssl.files import write_whole
from speechssl.probe.features import extract
from speechssl.probe.probing import RANDOM
from speechssl.speaker.embed import cosines, speaker_sources
from speechssl.speaker.metrics import Detection, Estimate, estimate
from speechssl.speaker.trials import Trial, make_trials, read_trials

MADE_BY = "speechssl speaker verify"


class VerificationError(UserError):
    """A verification that cannot be made. The message names the files and what to do."""


@dataclass(frozen=True)
class VerificationRow:
    """One kind of embedding over all trials.

    features, seed, layer: as in `speechssl.probe.probing.Row`; also "fine-tuned" with its "embedding".
    train_eer: over pairs of training utterances, if speakers are known there. It chooses the layer.
    """

    features: str
    seed: int
    layer: str
    train_eer: float | None
    measures: dict[str, Estimate]


@dataclass(frozen=True)
class Verification:
    """Rows, and what they were made with."""

    rows: tuple[VerificationRow, ...]
    facts: dict[str, Any]

    def chosen(self) -> list[VerificationRow]:
        """Of each kind of features (and seed) the layer with the least error between training utterances."""
        best: dict[tuple[str, int], VerificationRow] = {}
        for row in self.rows:
            kind = row.features, row.seed
            if kind not in best or _error(row) <= _error(best[kind]):
                best[kind] = row
        return list(best.values())


def verify(
    run: str | Path,
    trials: str | Path,
    test: str | Path,
    train: str | Path,
    output: str | Path,
    *,
    random_seeds: int = 3,
    p_targets: Sequence[float] = (0.01, 0.05),
    samples: int = 500,
    seed: int = 0,
    device: str | None = None,
    seconds_per_batch: float = 60.0,
) -> Verification:
    """Scores trials with a run and its baselines; writes `output`/verification.json and scores-<features>.txt.

    Args:
        trials: see `speechssl.speaker.trials`; of utterances of `test`.
        train: gives mean and deviation of the features; where it names speakers, also the choice of the layer.
        samples: of the bootstrap over speakers (over utterances, where `test` does not name speakers).

    Raises:
        VerificationError: the output is not ours, or no trial is left.
        TrialError, FeatureError, ManifestError, CheckpointError.
    """
    output = Path(output)
    path = output / "verification.json"
    if path.exists() and not _is_ours(path):
        raise VerificationError(f"{path}: exists and was not made by this command; choose another --output.")
    manifests = {"train": Manifest.read(train), "test": Manifest.read(test)}
    listed = read_trials(trials, manifests["test"])
    own_pairs = make_trials(manifests["train"], seed=seed) if len(manifests["train"].speakers) > 1 else []
    rows: list[VerificationRow] = []
    problems: dict[str, None] = {}
    used: list[bool] = []
    for features, number, source in speaker_sources(load_checkpoint(run), random_seeds, pick_device(device)):
        title = f"{features} {number}" if features == RANDOM else features
        read = {
            part: extract(
                source, manifest, output / "features", title=f"{title}: {part}", seconds_per_batch=seconds_per_batch
            )
            for part, manifest in manifests.items()
        }
        problems |= dict.fromkeys(p for found in read.values() for p in found.problems)
        for layer, vectors in read["test"].layers.items():
            if layer == "scores":
                continue
            known = read["train"].layers[layer]
            kept, scores = _score(listed, read["test"].ids, vectors, known)
            if len({trial.target for trial in kept}) < 2:
                raise VerificationError(f"{trials}: too few trials are left: {next(iter(problems))}")
            own, own_scores = _score(own_pairs, read["train"].ids, known, known)
            train_eer = Detection(own_scores, [t.target for t in own]).eer() if own else None
            measures = estimate(
                scores,
                [trial.target for trial in kept],
                _clusters(kept, manifests["test"]),
                p_targets=p_targets,
                samples=samples,
                seed=seed,
            )
            rows.append(VerificationRow(features, number, layer, train_eer, measures))
            used = [trial.target for trial in kept]
            if features != RANDOM:
                _write_scores(output / f"scores-{features}-{layer}.txt", kept, scores)
    facts = {
        "made_by": MADE_BY,
        "checkpoint": str(find_checkpoint(run).resolve()),
        **{name: str(Path(p).resolve()) for name, p in (("trials", trials), ("test", test), ("train", train))},
        "num_trials": len(used),
        "num_targets": sum(used),
        "speakers": len(manifests["test"].speakers),
        "p_targets": list(p_targets),
        "samples": samples,
        "seed": seed,
        "problems": list(problems),
    }
    record = facts | {"rows": [asdict(row) for row in rows]}
    write_whole(path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return Verification(tuple(rows), facts)


def _error(row: VerificationRow) -> float:
    return 1.0 if row.train_eer is None else row.train_eer


def _score(
    trials: list[Trial], ids: tuple[str, ...], vectors: np.ndarray, train: np.ndarray
) -> tuple[list[Trial], np.ndarray]:
    """The trials whose two utterances could be read, and their cosines."""
    place = {name: row for row, name in enumerate(ids)}
    kept = [t for t in trials if t.enrol in place and t.test in place]
    left, right = (np.array([place[name] for name in names], dtype=np.int64) for names in _sides(kept))
    return kept, cosines(vectors, train, left, right)


def _sides(trials: list[Trial]) -> tuple[list[str], list[str]]:
    return [trial.enrol for trial in trials], [trial.test for trial in trials]


def _clusters(trials: list[Trial], manifest: Manifest) -> np.ndarray:
    """(N, 2) numbers of the speakers; of the utterances, where not all of them name one."""
    named = all(utterance.speaker is not None for utterance in manifest)
    cluster = {u.id: (u.speaker if named else u.id) for u in manifest}
    numbers = {name: i for i, name in enumerate(sorted({str(name) for name in cluster.values()}))}
    return np.array([[numbers[str(cluster[name])] for name in (t.enrol, t.test)] for t in trials])


def _write_scores(path: Path, trials: list[Trial], scores: np.ndarray) -> None:
    lines = (f"{int(t.target)} {t.enrol} {t.test} {s:.6f}\n" for t, s in zip(trials, scores.tolist(), strict=True))
    write_whole(path, "".join(lines))


def _is_ours(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        return False
