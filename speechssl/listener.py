"""What `speechssl serve` knows: a model that spells, voices to compare with, and how both are shown.

Shapes: T samples, N utterances, S speakers, D features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.batch import Batch
from speechssl.checkpoint import Checkpoint, load_checkpoint
from speechssl.data.audio import normalize
from speechssl.data.manifest import Manifest
from speechssl.errors import UserError
from speechssl.objectives.transcription import Transcription
from speechssl.page.choosing import balanced
from speechssl.page.listening import hear, player
from speechssl.probe.features import Source, encoder_source, extract
from speechssl.speaker.embed import fine_tuned_source, speaker_names

PER_SPEAKER = 20  # utterances
NEAREST = 5  # speakers shown


class Voices:
    """The speakers of a manifest as mean directions of their utterances' vectors, each feature standardised."""

    def __init__(self, checkpoint: Checkpoint, manifest: str | Path):
        cpu = torch.device("cpu")
        self.source: Source
        if speaker_names(checkpoint):
            self.source, self.layer = fine_tuned_source(checkpoint, cpu), "embedding"
        else:
            encoder = checkpoint.objective.encoder
            self.source, self.layer = encoder_source(encoder, checkpoint.config.data, cpu), str(encoder.num_layers)
        self.source = replace(self.source, hears=replace(self.source.hears, workers=0))
        listed = Manifest.read(manifest)
        speakers = len(listed.speakers)
        chosen = balanced(listed, "speaker", classes=speakers, most=PER_SPEAKER * max(speakers, 1))
        labels = {u.id: speaker for u, speaker in chosen}
        with tempfile.TemporaryDirectory() as cache:
            found = extract(
                self.source,
                Manifest.of(u for u, _ in chosen),
                Path(cache),
                title="learn the voices",
                seconds_per_batch=60.0,
            )
        vectors = found.layers[self.layer]
        self.mean, self.scale = vectors.mean(0), vectors.std(0).clip(min=1e-6)
        units, named = self._directions(vectors), np.array([labels[name] for name in found.ids])
        self.names = sorted(set(named.tolist()))
        centres = np.stack([units[named == name].mean(0) for name in self.names])  # (S, D)
        self.centres = centres / np.linalg.norm(centres, axis=1, keepdims=True).clip(min=1e-12)

    def _directions(self, vectors: np.ndarray) -> np.ndarray:
        centred = (vectors - self.mean) / self.scale
        return centred / np.linalg.norm(centred, axis=-1, keepdims=True).clip(min=1e-12)

    def nearest(self, batch: Batch) -> list[tuple[str, float]]:
        """The nearest speakers to one utterance and their cosines, the nearest first."""
        with torch.inference_mode():
            vector = self.source.pool(batch)[self.layer].float().numpy()
        cosines = self.centres @ self._directions(vector)[0]
        return [(self.names[i], float(cosines[i])) for i in np.argsort(-cosines)[:NEAREST]]


class Listener:
    """A checkpoint in use: `listen` tells what it hears in a waveform.

    Args:
        model: run folder or checkpoint.
        speakers: manifest whose speakers are compared with; None: no speakers are named.

    Raises:
        UserError: it neither spells nor is given speakers.
    """

    def __init__(self, model: str | Path, speakers: str | Path | None = None):
        self.checkpoint = load_checkpoint(model)
        self.spells = self.checkpoint.tokenizer is not None and isinstance(self.checkpoint.objective, Transcription)
        if not self.spells and speakers is None:
            raise UserError(
                f"{model}: was not fine-tuned to transcribe; fine-tune it first (`speechssl finetune`), or give "
                "--speakers MANIFEST to be shown the nearest voices."
            )
        self.voices = None if speakers is None else Voices(self.checkpoint, speakers)
        self.data = self.checkpoint.config.data
        self.sample_rate = self.data.sample_rate
        self.least = self.checkpoint.objective.encoder.feature_encoder.receptive_field  # samples
        what = ["transcribes"] * self.spells + ["names the nearest voices"] * (self.voices is not None)
        self.about = f"<b>{escape(Path(model).name)}</b> {' and '.join(what)}."

    def listen(self, waveform: Tensor) -> dict[str, Any]:
        """(T,) -> plain data: seconds, text, words (text, start, end), speakers (name, cosine), and `html` of these."""
        heard_as = normalize(waveform) if self.data.normalize else waveform
        batch = Batch(("upload",), heard_as[None], torch.tensor([len(waveform)]), padded=False)
        answer: dict[str, Any] = {"seconds": len(waveform) / self.sample_rate}
        heard, html = None, ""
        tokenizer = self.checkpoint.tokenizer
        if self.spells and tokenizer is not None:
            objective: Any = self.checkpoint.objective
            with torch.inference_mode():
                log_probs, _ = objective.log_probs(batch)
            heard = hear(log_probs[0].numpy(), objective, tokenizer, self.sample_rate)
            answer["text"] = " ".join(word.text for word in heard.words)
            answer["words"] = [vars(word) for word in heard.words]
            html = f'<p class="text" lang="">{escape(answer["text"]) or "(nothing)"}</p>'
        html += f"<div>{player(waveform, self.sample_rate, heard, tokenizer, 'the sound')}</div>"
        if self.voices is not None:
            answer["speakers"] = [{"name": name, "cosine": value} for name, value in self.voices.nearest(batch)]
            html += _speakers(answer["speakers"])
        return answer | {"html": html}


def _speakers(nearest: list[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(row['name'])}</th><td>{row['cosine']:.2f}</td>"
        f'<td><meter min="-1" max="1" value="{row["cosine"]:.3f}"></meter></td></tr>'
        for row in nearest
    )
    return (
        "<h3>Nearest voices</h3><table><thead><tr><th scope=col>speaker</th><th scope=col>cosine</th><th></th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
    )
