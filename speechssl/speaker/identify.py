"""Identification by a model that was fine-tuned for it: its own answer for every utterance."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from speechssl.checkpoint import Checkpoint
from speechssl.data.labels import labels_of
from speechssl.data.manifest import Manifest
from speechssl.device import pick_device
from speechssl.errors import UserError
from speechssl.files import write_whole
from speechssl.probe.classify import wilson
from speechssl.probe.features import extract
from speechssl.probe.labels import check_same_classes
from speechssl.speaker.embed import fine_tuned_source, speaker_names

MADE_BY = "speechssl speaker identify"


class IdentificationError(UserError):
    """An identification that cannot be made."""


@dataclass(frozen=True)
class Identification:
    """
    accuracy, low, high: share of right answers and its 95% interval over utterances (Wilson).
    classes, num_test: speakers that the model tells apart, utterances tested.
    problems: sentences about utterances that could not be used; they count as nothing.
    """

    accuracy: float
    low: float
    high: float
    classes: int
    num_test: int
    problems: tuple[str, ...]


def identify(
    checkpoint: Checkpoint,
    test: str | Path,
    output: str | Path,
    *,
    device: str | None = None,
    seconds_per_batch: float = 60.0,
) -> Identification:
    """Asks a fine-tuned model who speaks; writes `output`/identification.json and answers.tsv.

    Raises:
        IdentificationError: the model was not fine-tuned to tell speakers apart, or the output is not ours.
        LabelError: a test speaker that it does not know.
    """
    output = Path(output)
    names = speaker_names(checkpoint)
    if not names:
        raise IdentificationError("this model was not fine-tuned to tell speakers apart; give --train to probe it.")
    path = output / "identification.json"
    if path.exists() and MADE_BY not in path.read_text(encoding="utf-8", errors="replace"):
        raise IdentificationError(f"{path}: exists and was not made by this command; choose another --output.")
    manifest = Manifest.read(test)
    found = labels_of(manifest, checkpoint.config.data.label)
    speakers = {u.id: s for u, s in zip(manifest, found, strict=True) if s is not None}
    check_same_classes(names, list(speakers.values()))
    source = fine_tuned_source(checkpoint, pick_device(device))
    features = extract(source, manifest, output / "features", title="identify", seconds_per_batch=seconds_per_batch)
    features = features.of([name for name in features.ids if name in speakers])
    answers = [names[i] for i in features.layers["scores"].argmax(1).tolist()]
    truth = [speakers[name] for name in features.ids]
    accuracy = float(np.mean([a == t for a, t in zip(answers, truth, strict=True)]))
    result = Identification(
        accuracy, *wilson(accuracy, len(truth)), len(names), num_test=len(truth), problems=features.problems
    )
    rows = ("\t".join(row) + "\n" for row in zip(features.ids, truth, answers, strict=True))
    write_whole(output / "answers.tsv", "id\tspeaker\tanswer\n" + "".join(rows))
    config = checkpoint.config
    made_with = {
        "step": checkpoint.step,
        "seed": config.train.seed,
        "trained_on": config.data.train,
        "init": config.init,
    }
    record = {"made_by": MADE_BY, **made_with, "test": str(Path(test).resolve()), **asdict(result)}
    write_whole(path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return result
