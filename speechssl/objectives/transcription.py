"""What every objective that spells tokens with CTC shares: the loss, its metrics, and which labels cannot fit.

Shapes: B utterances, F frames of log probabilities, L tokens, V tokens in all with the blank at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from speechssl.batch import Batch
from speechssl.nn.heads import ctc_loss, frames_needed
from speechssl.objectives.base import LossOutput, Metric, Objective


class Transcription(Objective):
    """A subclass gives `log_probs`; its config has vocab_size, word_boundary and symbols_per_frame."""

    needs = frozenset({"tokens"})
    encoder_is_frozen = False  # in this update, although it may learn in a later one

    @property
    def fastest(self) -> int:
        """Percent of its speed at which training may play an utterance, at most."""
        return 100

    def log_probs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, F, V), float32, and their lengths (B,)."""
        raise NotImplementedError

    def chance(self) -> dict[str, float]:
        return {"ctc": math.log(self.config.vocab_size)}

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        """Only blanks are normal for some hundred updates, and while the head learns alone: not for longer."""
        if numbers.get("blank", 0.0) > 0.999 and not self.encoder_is_frozen:
            return (
                "every frame is spelled as blank, so the transcripts are empty (blank collapse); wait if training has "
                "only begun, else lower optim.lr, lengthen optim.warmup, or check that the transcripts fit the audio"
            )
        return ""

    def forward(self, batch: Batch) -> LossOutput:
        """The sum of CTC losses; num_targets counts tokens. In eval mode also token and word error rates."""
        assert batch.tokens is not None, "`needs` is checked before training"
        assert batch.token_lengths is not None
        log_probs, lengths = self.log_probs(batch)
        loss = ctc_loss(log_probs, lengths, batch.tokens, batch.token_lengths).sum()
        count = batch.token_lengths.sum().float()
        best = log_probs.detach().argmax(-1)  # (B, F)
        inside = torch.arange(best.shape[1], device=best.device) < lengths[:, None]
        metrics = {
            "ctc": Metric.mean(loss, count),
            "blank": Metric.mean(((best == 0) & inside).sum(), inside.sum()),
        }
        if not self.training:
            boundary = self.config.word_boundary
            metrics |= error_rates(best, lengths, batch.tokens, batch.token_lengths, boundary)
        return LossOutput(loss, count, metrics)

    def impossible_targets(self, lengths: Tensor, tokens: list[list[int]]) -> list[int]:
        if self.training:
            lengths = lengths * 100 // self.fastest
        available = self.encoder.frame_lengths(lengths) * self.config.symbols_per_frame
        needed = (frames_needed(ids) for ids in tokens)
        return [i for i, (have, need) in enumerate(zip(available.tolist(), needed, strict=True)) if need > have]


def error_rates(
    best: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, word_boundary: int
) -> dict[str, Metric]:
    """Token ("ter") and word ("wer") error rates of the best path (B, F) against tokens (B, L), by edit distance."""
    splits = {"ter": lambda ids: ids}
    if word_boundary >= 0:
        splits["wer"] = lambda ids: _words(ids, word_boundary)
    errors, totals = dict.fromkeys(splits, 0.0), dict.fromkeys(splits, 0.0)
    rows = zip(best.tolist(), lengths.tolist(), tokens.tolist(), token_lengths.tolist(), strict=True)
    for path, frames, reference, count in rows:
        path, reference = path[:frames], reference[:count]
        said = [token for before, token in zip([0, *path], path, strict=False) if token and token != before]
        for name, split in splits.items():
            errors[name] += Levenshtein.distance(split(said), split(reference))
            totals[name] += len(split(reference))
    return {name: Metric.mean(errors[name], totals[name]) for name in splits}


def _words(ids: list[int], boundary: int) -> list[tuple[int, ...]]:
    words: list[list[int]] = [[]]
    for token in ids:
        if token == boundary:
            words.append([])
        else:
            words[-1].append(token)
    return [tuple(word) for word in words if word]
