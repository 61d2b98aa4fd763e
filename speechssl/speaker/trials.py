"""Trials: pairs of utterances, by the same speaker or not. One a line: `1 enrol test` or `0 enrol test`."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from speechssl.data.corpora import AUDIO_SUFFIXES
from speechssl.data.manifest import Manifest
from speechssl.errors import UserError
from speechssl.files import write_whole

LABELS = {"1": True, "0": False, "target": True, "nontarget": False}


class TrialError(UserError):
    """Trials that cannot be used. The message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Ids of two utterances of a manifest, and whether one speaker said both."""

    target: bool
    enrol: str
    test: str


def read_trials(path: str | Path, manifest: Manifest) -> list[Trial]:
    """Reads trials of the utterances of `manifest`; a suffix such as .wav that its ids do not have may follow an id.

    Raises TrialError: not a list of trials, an unknown id, or only one kind of trial.
    """
    path = Path(path)
    if not path.is_file():
        raise TrialError(f"{path}: no such list of trials; make one with `speechssl speaker trials`.")
    known = {utterance.id for utterance in manifest}
    trials = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 3 or fields[0].lower() not in LABELS:
                raise TrialError(
                    f"{path}, line {number}: write `1 enrol test` for the same speaker, `0 ...` for another."
                )
            names = [name if name in known else _without_suffix(name) for name in fields[1:]]
            for name, written in zip(names, fields[1:], strict=True):
                if name not in known:
                    raise TrialError(f"{path}, line {number}: the manifest has no utterance '{written}'.")
            trials.append(Trial(LABELS[fields[0].lower()], *names))
    if len({trial.target for trial in trials}) < 2:
        raise TrialError(f"{path}: trials of the same speaker (1) and of two speakers (0) are both needed.")
    return trials


def write_trials(trials: list[Trial], path: str | Path) -> None:
    """Raises TrialError for ids with a space in them."""
    odd = next((name for t in trials for name in (t.enrol, t.test) if len(name.split()) != 1), None)
    if odd is not None:
        raise TrialError(f"utterance '{odd}' has a space in its id, which a list of trials cannot hold; rename it.")
    write_whole(path, "".join(f"{int(t.target)} {t.enrol} {t.test}\n" for t in trials))


def make_trials(manifest: Manifest, *, most: int = 10_000, seed: int = 0) -> list[Trial]:
    """All pairs of utterances with a speaker, or `most` of each kind drawn at random.

    Raises TrialError: fewer than two speakers, or no speaker with two utterances.
    """
    spoken = [u for u in manifest if u.speaker is not None]
    groups: dict[str, list[int]] = defaultdict(list)
    for index, utterance in enumerate(spoken):
        groups[str(utterance.speaker)].append(index)
    number_of_targets = sum(math.comb(len(group), 2) for group in groups.values())
    if len(groups) < 2 or not number_of_targets:
        raise TrialError(
            f"trials need two speakers or more, and one with two utterances; of {len(manifest)} utterances "
            f"{len(spoken)} name a speaker, {len(groups)} different ones."
        )
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(number_of_targets, min(most, number_of_targets), replace=False)).tolist()
    same_speaker = itertools.chain.from_iterable(itertools.combinations(group, 2) for group in groups.values())
    pairs, wanted = [], set(chosen)
    pairs += [(True, pair) for number, pair in enumerate(same_speaker) if number in wanted]
    total = math.comb(len(spoken), 2)
    others = total - number_of_targets
    enough = min(total, math.ceil(1.1 * min(most, others) * total / others) + 100)  # some will be of one speaker
    found = []
    for number in np.sort(generator.choice(total, enough, replace=False)).tolist():
        first, second = _pair(number)
        if spoken[first].speaker != spoken[second].speaker:
            found.append((False, (first, second)))
    keep = np.sort(generator.choice(len(found), min(most, len(found)), replace=False)).tolist()
    pairs += [found[i] for i in keep]
    return [Trial(target, spoken[first].id, spoken[second].id) for target, (first, second) in pairs]


def _pair(number: int) -> tuple[int, int]:
    """Pair `number` of (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    second = (math.isqrt(8 * number + 1) + 1) // 2
    return number - math.comb(second, 2), second


def _without_suffix(name: str) -> str:
    path = PurePosixPath(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in AUDIO_SUFFIXES else name
