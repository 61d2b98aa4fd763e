"""What a masked objective hides, drawn over a spectrogram, and how it guessed each hidden frame.

Shapes: T samples, F frames, N masked frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape

import numpy as np
import torch

from speechssl.batch import Batch
from speechssl.build import seed_everything
from speechssl.checkpoint import Checkpoint
from speechssl.data.dataset import SpeechDataset
from speechssl.data.manifest import Manifest
from speechssl.data.units import Units
from speechssl.errors import UserError
from speechssl.objectives.base import MaskedFrames
from speechssl.page.choosing import examples, own_manifest
from speechssl.page.pictures import ink, sound, spectrogram
from speechssl.page.runs import RunRecord

EXAMPLES = 3


def masks(runs: Sequence[RunRecord]) -> str:
    """Some utterances of every run whose objective hides frames; "" if there is none."""
    html = ""
    for run in runs:
        try:
            figures = [figure for example in _examples(run) if (figure := _figure(*example))]
        except UserError as error:
            figures = [f'<p class="absent">No masks are drawn: {escape(str(error))}</p>']
        if figures:
            html += f"<h3>{escape(run.name)} <small>{escape(run.objective)}</small></h3>{''.join(figures)}"
    return html


def _examples(run: RunRecord) -> Iterator[tuple[Batch, Checkpoint, MaskedFrames]]:
    """Single utterances as training sees them, cropped and masked by its own rules. Raises UserError."""
    checkpoint = run.checkpoint
    if checkpoint is None or checkpoint.objective.needs - {"units"}:  # what reads labels hides nothing
        return
    objective, config = checkpoint.objective, checkpoint.config
    if checkpoint.objective.encoder.channels > 1:
        return  # a series has no spectrogram to lay a mask over
    units = Units(config.data.units) if "units" in objective.needs else None
    manifest = own_manifest(run).filter(lambda u: units is None or u.id in units)
    chosen = Manifest.of(examples(manifest, EXAMPLES))
    dataset = SpeechDataset(chosen, replace(config.data, workers=0), seed=config.train.seed, units=units)
    objective.before_step(checkpoint.step)
    for index in range(len(dataset)):
        batch = dataset[0, np.array([index])].batch
        if batch is None:
            continue
        seed_everything(config.train.seed, checkpoint.step, index)
        with torch.inference_mode():
            masked = objective(batch).masked
        if masked is None:
            return
        yield batch, checkpoint, masked


def _figure(batch: Batch, checkpoint: Checkpoint, masked: MaskedFrames) -> str:
    """Spectrogram under the mask, and a row that says of each hidden frame how well it was guessed."""
    mask, answers = masked.mask[0].numpy(), masked.answers.numpy()
    if len(answers) != mask.sum() or not len(answers):
        return ""
    rate, hop = checkpoint.config.data.sample_rate, checkpoint.objective.encoder.hop
    waveform, name = batch.waveforms[0], escape(batch.ids[0])
    frames, seconds = len(waveform) / hop, len(waveform) / rate
    veil = "".join(f'<rect x="{first}" width="{count}" height="1"/>' for first, count, hidden in _spans(mask) if hidden)
    box = f'viewBox="0 0 {frames:.3f} 1" preserveAspectRatio="none"'
    said = _sentence(mask, answers, checkpoint)
    return (
        f'<figure class="mask"><figcaption><b>{name}</b> <small>{escape(said)}</small></figcaption>'
        f'<audio controls preload="none" src="{sound(waveform, rate)}"></audio>'
        f'<div class="strip" data-seconds="{seconds:.4f}"><div class="now" hidden></div><div class="veiled">'
        f"{ink(spectrogram(waveform, rate), f'spectrogram of {name}, {seconds:.1f} s', 'spectrogram')}"
        f'<svg class="veil" {box} aria-hidden="true">{veil}</svg></div>'
        f'<svg class="answers" {box} role="img" aria-label="{escape(said)}">{_bars(mask, answers, hop / rate)}</svg>'
        "</div>"
        f'<div class="time"><span>0 s</span><span>{seconds:.1f} s</span></div></figure>'
    )


def _spans(values: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """(first, count, value) of each run of equal values."""
    first = 0
    for value, run in itertools.groupby(values.tolist()):
        count = len(list(run))
        yield first, count, value
        first += count


def _bars(mask: np.ndarray, answers: np.ndarray, step: float) -> str:
    """A bar for each hidden frame: high where it was right and low where it was wrong, or as high as it explains."""
    places = np.flatnonzero(mask)
    html = ""
    for place, answer in zip(places.tolist(), answers.tolist(), strict=True):
        if answers.dtype == bool:
            kind, height, text = ("right", 1.0, "right") if answer else ("wrong", 0.45, "wrong")
        else:
            explained = min(max(1 - answer, 0.0), 1.0)
            kind, height, text = "share", max(explained, 0.04), f"{explained:.0%} explained"
        html += (
            f'<rect class="{kind}" x="{place + 0.06:.2f}" width=".88" y="{1 - height:.2f}" height="{height:.2f}">'
            f"<title>frame {place} ({place * step:.2f} s): {text}</title></rect>"
        )
    return html


def _sentence(mask: np.ndarray, answers: np.ndarray, checkpoint: Checkpoint) -> str:
    hidden = f"{mask.mean():.0%} of {len(mask)} frames are hidden"
    if answers.dtype != bool:
        return f"{hidden}; {1 - float(answers.clip(max=1).mean()):.0%} of their energy is guessed, on average"
    chance = checkpoint.objective.chance().get("accuracy")
    beside = f" (chance {chance:.1%})" if chance else ""
    return f"{hidden}; {answers.mean():.0%} of them are guessed right{beside}"
