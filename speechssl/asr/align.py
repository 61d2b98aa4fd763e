"""Forced alignment: where a fine-tuned encoder hears each letter and word of a known transcript (torchaudio's Viterbi).

CTC names a letter in a frame or two and says blank until the next, so a letter is widened into the blanks beside it: up
to the middle of the gap to its neighbour, and by `reach` seconds at most.

Shapes: F frames (a frame of the encoder may spell several tokens: then F counts tokens), V tokens, 0 = blank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchaudio.functional import TokenSpan, forced_align, merge_tokens

from speechssl.asr.files import read_settings, settings_path
from speechssl.asr.model import Model
from speechssl.asr.search import sha256
from speechssl.checkpoint import load_checkpoint
from speechssl.data.alignment import Interval, write_textgrid
from speechssl.data.items import items_of, write_items
from speechssl.data.manifest import Manifest
from speechssl.data.tokens import Tokenizer
from speechssl.device import pick_device
from speechssl.errors import UserError
from speechssl.files import write_whole
from speechssl.nn.heads import frames_needed
from speechssl.objectives.transcription import Transcription


class AlignError(UserError):
    """Transcripts that cannot be aligned. The message names the checkpoint or the manifest and what to do."""


@dataclass(frozen=True)
class Aligned:
    """An utterance's labels (letters or pieces) and words, and the geometric mean probability of its tokens."""

    labels: list[Interval]
    words: list[Interval]
    score: float


def align(log_probs: Tensor, tokens: Sequence[int]) -> list[TokenSpan]:
    """The most probable way to spell `tokens` in log_probs (F, V): each one's frames and mean log probability there.

    There must be `frames_needed(tokens)` frames at least.
    """
    targets = torch.tensor([list(tokens)], device=log_probs.device)
    path, scores = forced_align(log_probs[None], targets)
    return merge_tokens(path[0], scores[0])


def widened(edges: Sequence[tuple[float, float]], reach: float, seconds: float) -> list[tuple[float, float]]:
    """Stretches of time, in order, each grown on both sides by `reach` or half the way to its neighbour, if less.

    The first and the last grow no further than the utterance, which lasts `seconds`.
    """
    ends, starts = [0.0, *(end for _, end in edges)], [*(start for start, _ in edges), seconds]
    grown = []
    for i, (start, end) in enumerate(edges):
        before = (start - ends[i]) / (2 if i else 1)
        after = (starts[i + 1] - end) / (2 if i + 1 < len(edges) else 1)
        grown.append((start - min(reach, max(before, 0.0)), end + min(reach, max(after, 0.0))))
    return grown


def intervals(spans: Sequence[TokenSpan], tokenizer: Tokenizer, edges: Sequence[tuple[float, float]]) -> Aligned:
    """Names and scores for token spans that were said within `edges`, in seconds."""

    def one(label: str, places: Sequence[int]) -> Interval:
        parts = [spans[place] for place in places]
        mean = sum(part.score * len(part) for part in parts) / sum(map(len, parts))
        return Interval(edges[places[0]][0], edges[places[-1]][1], label, round(math.exp(mean), 4))

    tokens = [span.token for span in spans]
    words = [(tokenizer.decode([tokens[place] for place in places]), places) for places in tokenizer.words(tokens)]
    return Aligned(
        [one(tokenizer.symbols[tokens[place]], [place]) for _, places in words for place in places],
        [one(text, places) for text, places in words if text],
        round(math.exp(sum(span.score for span in spans) / len(spans)), 4),
    )


def align_manifest(
    checkpoint_path: str | Path,
    manifest_path: str | Path,
    out_path: str | Path,
    *,
    reach: float = 0.05,
    textgrids: str | Path | None = None,
    items: str | Path | None = None,
    seconds_per_batch: float = 60.0,
    device: str | None = None,
) -> None:
    """Writes one JSON line per utterance, in the manifest's order (see `speechssl.data.alignment`).

    Utterances that cannot be aligned are left out: each is named, with the reason, at the end and in
    `<out>.settings.json`, which says what the file was made with.

    Args:
        checkpoint_path: of a fine-tuned encoder.
        reach: seconds that a label grows into the blanks on either side; 0: the frames that spell it, no more.
        textgrids: a folder for one TextGrid per utterance.
        items: an item file to write for `speechssl abx`; all utterances need a speaker.

    Raises:
        AlignError: the checkpoint has no vocabulary, no utterance can be aligned, or a file lies in the way.
        ItemsError: items of utterances without a speaker, or names with spaces.
        ManifestError: the manifest cannot be used.
    """
    out_path = Path(out_path)
    manifest, checkpoint = Manifest.read(manifest_path), load_checkpoint(checkpoint_path)
    tokenizer = checkpoint.tokenizer
    if tokenizer is None or not isinstance(checkpoint.objective, Transcription):
        raise AlignError(
            f"{checkpoint_path}: was not fine-tuned, so it knows no letters; fine-tune it first (`speechssl finetune`)."
        )
    settings: dict[str, Any] = {
        "made_by": "speechssl align",
        "checkpoint": str(checkpoint_path),
        "step": checkpoint.step,
        "manifest": str(manifest_path),
        "manifest_sha256": sha256(manifest_path),
        "labels": "letters" if tokenizer.kind == "letters" else "pieces",
        "reach": reach,
        "textgrids": None if textgrids is None else str(textgrids),
        "items": None if items is None else str(items),
    }
    if _is_made(out_path, settings):
        print(f"{out_path}: already aligned with this checkpoint and these settings, left as it is")
        return
    if items is not None and (silent := [u.id for u in manifest if u.speaker is None]):
        raise AlignError(f"{manifest_path}: {silent[0]} has no speaker, and an item file needs one; leave out --items.")

    model = Model(checkpoint, tokenizer, pick_device(device), "fp32", seconds_per_batch)
    tokens, problems = _alignable(manifest, model)
    known = manifest.filter(lambda u: u.id in tokens)
    seconds = {u.id: u.seconds for u in known}
    encoder, rate = model.objective.encoder, model.data.sample_rate
    step = encoder.hop / rate / model.objective.config.symbols_per_frame
    first = (encoder.feature_encoder.receptive_field - encoder.hop) / 2 / rate  # a frame is said in the middle it sees

    def align_all(ids: Sequence[str], rows: list[Tensor]) -> list[Aligned]:
        found = []
        for name, row in zip(ids, rows, strict=True):
            spans = align(row, tokens[name])
            edges = [(first + span.start * step, first + span.end * step) for span in spans]
            found.append(intervals(spans, tokenizer, widened(edges, reach, seconds[name])))
        return found

    aligned: dict[str, Aligned] = {}
    if len(known):
        aligned, unread = model.run(known, align_all, title="align")
        problems += unread
    if not aligned:
        raise AlignError(f"{manifest_path}: not one of {len(manifest)} utterances can be aligned: {problems[0]}")

    if items is not None:
        speakers = {u.id: str(u.speaker) for u in known}
        write_items(items, items_of({u.id: aligned[u.id].labels for u in known if u.id in aligned}, speakers))
    lines = []
    for u in known:
        if u.id not in aligned:
            continue
        found = aligned[u.id]
        if textgrids is not None:
            tiers = {str(settings["labels"]): found.labels, "words": found.words}
            write_textgrid(Path(textgrids) / (u.id.replace("/", "%2F") + ".TextGrid"), u.seconds, tiers)
        row: dict[str, Any] = {"id": u.id} | ({} if u.speaker is None else {"speaker": u.speaker})
        row |= {"seconds": round(u.seconds, 3), "score": found.score}
        row |= {"labels": [i.record() for i in found.labels], "words": [i.record() for i in found.words]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_whole(settings_path(out_path), json.dumps(settings | {"problems": problems}, ensure_ascii=False, indent=1))
    write_whole(out_path, "".join(lines))
    _report(problems, len(manifest))


def _alignable(manifest: Manifest, model: Model) -> tuple[dict[str, list[int]], list[str]]:
    """Tokens by utterance, and a sentence about each utterance that cannot be aligned."""
    tokens: dict[str, list[int]] = {}
    problems = []
    for u in manifest:
        if u.text is None:
            problems.append(f"{u.id}: has no transcript.")
        elif unknown := model.tokenizer.unknown(u.text):
            problems.append(f"{u.id}: letters outside the vocabulary: {' '.join(sorted(unknown))}.")
        elif not (ids := model.tokenizer.encode(u.text)):
            problems.append(f"{u.id}: its transcript holds no letters.")
        else:
            frames = model.objective.encoder.frame_lengths(u.length_at(model.data.sample_rate))
            have = frames * model.objective.config.symbols_per_frame
            if frames_needed(ids) > have:
                problems.append(
                    f"{u.id}: its transcript needs {frames_needed(ids)} frames and its audio has {have} "
                    f"({u.seconds:.2f} s)."
                )
            else:
                tokens[u.id] = ids
    return tokens, problems


def _is_made(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` is the result of these very settings. Raises AlignError where another program's file lies."""
    known = {key: value for key, value in read_settings(out).items() if key != "problems"}
    if out.exists() and known == settings:
        return True
    mine = {str(out)} if known.get("made_by") == settings["made_by"] else set()
    mine |= {str(known.get("items")), str(known.get("textgrids"))}
    for path in (str(out), settings["items"], settings["textgrids"]):
        if path is not None and path not in mine and Path(path).exists():
            raise AlignError(f"{path}: exists and was not made by `speechssl align` for {out}; choose another name.")
    return False


def _report(problems: list[str], total: int) -> None:
    if problems:
        shown = "\n".join(f"  {sentence}" for sentence in problems[:10])
        more = f"\n  and {len(problems) - 10} more (all are in the settings file)" if len(problems) > 10 else ""
        print(f"{len(problems)} of {total} utterances could not be aligned and are left out:\n{shown}{more}")
