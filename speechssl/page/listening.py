"""Single utterances: sound, spectrogram, CTC posteriors, when each word was said, and what should have been said.

Shapes: T samples, F frames, V tokens with the blank at 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import jiwer
import numpy as np
import torch
from torch import Tensor

from speechssl.data.audio import AudioError, read_waveform
from speechssl.data.dataset import padded_batches
from speechssl.data.manifest import Manifest, ManifestError, Utterance
from speechssl.data.tokens import BOUNDARY, SPACE_MARK, Tokenizer
from speechssl.objectives.transcription import Transcription
from speechssl.page.best_path import Word, words_of
from speechssl.page.pictures import ink, sound, spectrogram
from speechssl.page.runs import RunRecord, Scored, Spoken
from speechssl.page.scores import to_listen_to

LONGEST = 25.0  # seconds of an utterance that are shown
MOST_TOKENS = 40  # rows of a picture of posteriors
LIKELY = 0.1  # a token that never gets so much probability has no row
SYMBOLS = {BOUNDARY: "space"}


@dataclass(frozen=True)
class Heard:
    """What a model made of one waveform: log probabilities (F, V), `step` seconds apart, and the best path's words."""

    log_probs: np.ndarray
    step: float
    words: Sequence[Word]


def listening(runs: Sequence[RunRecord], each: int, budget: int) -> str:
    """The worst and the median utterances of every scored set, folded up but for the first.

    each: how many of both kinds. budget: bytes of HTML, after which sets are named and left out.
    """
    html, size = "", 0
    for run in runs:
        for scored in run.scores:
            title = f"{escape(run.name)} on {escape(scored.set)}"
            body = _of_set(run, scored, each) if size < budget else _absent("The page has grown too large for more.")
            html += f"<details class=set{' open' if not html else ''}><summary>{title}</summary>{body}</details>"
            size += len(body)
    return html


def _absent(why: str) -> str:
    return f'<p class="absent">{escape(why)}</p>'


def _of_set(run: RunRecord, scored: Scored, each: int) -> str:
    worst, median = to_listen_to(scored, each)
    utterances, problem = _find([s.id for s in (*worst, *median)], scored.manifest)
    heard = {} if problem else _hear(run, utterances)
    parts = [_absent(problem)] if problem else []
    for heading, chosen in (("The worst", worst), ("Around the median", median)):
        shown = "".join(_article(run, s, utterances.get(s.id), heard.get(s.id)) for s in chosen)
        parts.append(f"<h4>{heading}</h4>{shown}" if shown else "")
    return "".join(parts)


def _find(ids: Sequence[str], manifest: str) -> tuple[dict[str, Utterance], str]:
    if not manifest:
        return {}, "The score does not say which manifest it is of, so there is no sound; decode and score again."
    try:
        known = {u.id: u for u in Manifest.read(manifest)}
    except ManifestError as error:
        return {}, f"No sound: {error}"
    return {name: known[name] for name in ids if name in known}, ""


def _hear(run: RunRecord, utterances: Mapping[str, Utterance]) -> dict[str, Heard]:
    checkpoint = run.checkpoint
    if checkpoint is None or checkpoint.tokenizer is None or not isinstance(checkpoint.objective, Transcription):
        return {}
    data = replace(checkpoint.config.data, workers=0)
    least = checkpoint.objective.encoder.feature_encoder.receptive_field
    long_enough = [u for u in utterances.values() if u.length_at(data.sample_rate) >= least]
    heard = {}
    batches = padded_batches(Manifest.of(long_enough), data, seconds_per_batch=60.0) if long_enough else ()
    for loaded in batches:
        if loaded.batch is not None:
            with torch.inference_mode():
                log_probs, lengths = checkpoint.objective.log_probs(loaded.batch)
            for name, row, length in zip(loaded.batch.ids, log_probs.numpy(), lengths.tolist(), strict=True):
                heard[name] = hear(row[:length], checkpoint.objective, checkpoint.tokenizer, data.sample_rate)
    return heard


def hear(log_probs: np.ndarray, objective: Any, tokenizer: Tokenizer, sample_rate: int) -> Heard:
    """log_probs (F, V) of a `Transcription` objective, with the words in time."""
    step = objective.encoder.hop / sample_rate / getattr(objective.config, "symbols_per_frame", 1)
    return Heard(log_probs, step, words_of(log_probs, tokenizer, step))


def _article(run: RunRecord, spoken: Spoken, utterance: Utterance | None, heard: Heard | None) -> str:
    facts = [f"{spoken.errors} errors in {spoken.words} words"]
    body = ""
    if utterance is not None:
        facts = [f"{utterance.seconds:.1f} s", *([f"speaker {utterance.speaker}"] if utterance.speaker else []), *facts]
        rate = run.config.data.sample_rate
        try:
            count = min(utterance.length_at(rate), round(LONGEST * rate))
            waveform = read_waveform(utterance, rate, count=count)
            tokenizer = run.checkpoint.tokenizer if run.checkpoint else None
            body = player(waveform, rate, heard, tokenizer, spoken.id)
        except AudioError as error:
            body = _absent(str(error))
        if utterance.seconds > LONGEST:
            facts.append(f"the first {LONGEST:g} s are shown")
    return (
        f'<article class="utterance"><h5>{escape(spoken.id)} <small>{escape(" · ".join(facts))}</small></h5>'
        f"{alignment(spoken.reference, spoken.hypothesis)}{body}</article>"
    )


def alignment(reference: str, hypothesis: str) -> str:
    """Reference over hypothesis, word by word; errors are marked by letters and not by colour alone."""
    if not reference:
        return ""
    meant, said = reference.split(), hypothesis.split()
    pairs: list[tuple[str, str, str]] = []
    for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
        left, right = meant[chunk.ref_start_idx : chunk.ref_end_idx], said[chunk.hyp_start_idx : chunk.hyp_end_idx]
        rows = max(len(left), len(right))
        left, right = left + [""] * (rows - len(left)), right + [""] * (rows - len(right))
        pairs += [(chunk.type, a, b) for a, b in zip(left, right, strict=True)]
    names = {"equal": "", "substitute": "S", "insert": "I", "delete": "D"}
    cells = "".join(
        f'<li class="{kind}"><span>{escape(a) or "·"}</span><span>{escape(b) or "·"}</span><b>{names[kind]}</b></li>'
        for kind, a, b in pairs
    )
    return f'<ol class="aligned" aria-label="reference above, hypothesis below">{cells}</ol>'


def player(waveform: Tensor, sample_rate: int, heard: Heard | None, tokenizer: Tokenizer | None, name: str) -> str:
    """Sound, and under it what lies along time: spectrogram, words, posteriors."""
    seconds = len(waveform) / sample_rate
    controls = f'<audio controls preload="none" src="{sound(waveform, sample_rate)}"></audio>'
    label = f"spectrogram of {escape(name)}, {seconds:.1f} s, low frequencies at the bottom"
    rows = ink(spectrogram(waveform, sample_rate), label, "spectrogram")
    if heard is not None and tokenizer is not None:
        rows += f'<div class="words">{"".join(_word(word, seconds) for word in heard.words)}</div>'
        rows += posteriors(heard, tokenizer, seconds, name)
    return (
        f'{controls}<div class="strip" data-seconds="{seconds:.4f}"><div class="now" hidden></div>{rows}</div>'
        f'<div class="time"><span>0 s</span><span>{seconds:.1f} s</span></div>'
    )


def _word(word: Word, seconds: float) -> str:
    left, width = 100 * word.start / seconds, 100 * (word.end - word.start) / seconds
    if left >= 100:
        return ""
    times = f"{word.start:.2f} to {word.end:.2f} s"
    return (
        f'<button type="button" style="left:{left:.2f}%;min-width:{width:.2f}%" data-at="{word.start:.3f}" '
        f'title="{times}" aria-label="play {escape(word.text)}, {times}">{escape(word.text)}</button>'
    )


def posteriors(heard: Heard, tokenizer: Tokenizer, seconds: float, name: str) -> str:
    """Probability of every token that is ever likely, over the first `seconds`; the blank at the bottom."""
    probs = np.exp(heard.log_probs[: max(1, round(seconds / heard.step))])
    peaks = probs.max(0)
    likely = [token for token in (np.argsort(-peaks[1:]) + 1).tolist() if peaks[token] >= LIKELY]
    rows = [*sorted(likely[:MOST_TOKENS]), 0]
    names = [SYMBOLS.get(tokenizer.symbols[row], tokenizer.symbols[row].replace(SPACE_MARK, "␣")) for row in rows[:-1]]
    labels = "".join(f"<i>{escape(symbol)}</i>" for symbol in [*names, "blank"])
    picture = ink(probs[:, rows].T, f"CTC posteriors of {escape(name)}: {len(names)} tokens and the blank over time")
    width = min(100.0, 100 * len(probs) * heard.step / seconds)
    return (
        f'<div class="posteriors" style="--rows:{len(rows)}"><div class="tokens">{labels}</div>'
        f'<div style="width:{width:.2f}%">{picture}</div></div>'
    )
