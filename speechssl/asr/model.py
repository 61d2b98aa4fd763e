"""A fine-tuned model, and the log probabilities that it gives to a manifest.

Shapes: B utterances, F frames (each frame may spell several tokens: then F counts tokens), V tokens, 0 = blank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from speechssl.batch import Batch
from speechssl.checkpoint import Checkpoint
from speechssl.data.audio import AudioError
from speechssl.data.dataset import padded_batches
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.recordings import Segment, window_batches
from speechssl.data.tokens import Tokenizer
from speechssl.data.windows import CONTEXT, SECONDS, Cutting

Keep = Callable[[Tensor], Tensor]  # log probabilities (B, F, V) -> what is needed of them, (B, F, ...)


class Model:
    """A fine-tuned checkpoint on its device.

    Args:
        precision: "fp32", or an autocast type: "bf16", "fp16".
        seconds_per_batch: largest batch in seconds of audio, padding included, if one window does not pass it.
        window, context: seconds; an utterance longer than `window` is read in such windows, of which `context` at each
            inner edge is left out.

    Raises:
        WindowError: `window` leaves nothing between `context` on both sides.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        device: torch.device,
        precision: str,
        seconds_per_batch: float,
        *,
        window: float = SECONDS,
        context: float = CONTEXT,
    ):
        self.objective: Any = checkpoint.objective.to(device)
        self.data, self.tokenizer = checkpoint.config.data, tokenizer
        self.device, self.seconds_per_batch = device, seconds_per_batch
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        encoder, rate = self.objective.encoder, self.data.sample_rate
        sees = encoder.feature_encoder.receptive_field
        self.cutting = Cutting.of(encoder.hop, sees, rate, seconds=window, context=context)

    def log_probs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, F, V) and lengths (B,), on the device."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.objective.log_probs(batch.to(self.device))

    def is_long(self, utterance: Utterance) -> bool:
        """Whether it is read in windows."""
        return self.cutting.is_long(utterance.length_at(self.data.sample_rate))

    def run(
        self,
        manifest: Manifest,
        transcribe: Callable[[Sequence[str], list[Tensor]], list[Any]],
        *,
        keep: Keep = lambda log_probs: log_probs.float(),
        title: str = "decode",
    ) -> tuple[dict[str, Any], list[str]]:
        """What `transcribe` makes of each utterance, by id, and the sentences about those that could not be read.

        Args:
            transcribe: gets the ids and the (F, ...) of some utterances, on the CPU: those of a batch, or a long one
                alone.
            keep: what is wanted of the log probabilities, taken on the device.
        """
        frames = {u.id: self.cutting.frames(u.length_at(self.data.sample_rate)) for u in manifest}
        problems = [f"{u.id}: too short for one frame ({u.seconds:.3f} s)." for u in manifest if not frames[u.id]]
        long_enough = manifest.filter(lambda u: frames[u.id] > 0)
        results: dict[str, Any] = {}
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=sum(u.seconds for u in long_enough))
            for ids, rows, unread in self._encode(long_enough, keep, lambda seconds: progress.advance(task, seconds)):
                results.update(zip(ids, transcribe(ids, rows) if rows else [], strict=True))
                problems += unread
        return results, problems

    def _encode(
        self, manifest: Manifest, keep: Keep, advance: Callable[[float], None]
    ) -> Iterator[tuple[tuple[str, ...], list[Tensor], tuple[str, ...]]]:
        """Ids, their rows (F, ...), and problems."""
        seconds = {u.id: u.seconds for u in manifest}
        short = manifest.filter(lambda u: not self.is_long(u))
        batches = padded_batches(short, self.data, seconds_per_batch=self.seconds_per_batch) if short else ()
        for loaded in batches:
            if loaded.batch is None:
                yield (), [], loaded.problems
                continue
            log_probs, lengths = self.log_probs(loaded.batch)
            kept = keep(log_probs).cpu()
            ids = loaded.batch.ids
            yield ids, [row[:length] for row, length in zip(kept, lengths.tolist(), strict=True)], loaded.problems
            advance(sum(seconds[name] for name in (*ids, *loaded.unread)))
        for utterance in manifest.filter(self.is_long):
            try:
                rows = self._in_windows(utterance, keep, advance)
            except AudioError as error:
                yield (), [], (str(error),)
            else:
                yield (utterance.id,), [rows], ()

    def _in_windows(self, utterance: Utterance, keep: Keep, advance: Callable[[float], None]) -> Tensor:
        """(F, ...) of a long utterance. Raises AudioError."""
        rate = self.data.sample_rate
        batches = window_batches(
            Segment(utterance, rate),
            self.cutting,
            normalize=self.data.normalize,
            seconds_per_batch=self.seconds_per_batch,
        )
        rows = []
        for batch, windows in batches:
            log_probs, _ = self.log_probs(batch)
            spelt = log_probs.shape[1] // self.cutting.frames(windows[0].samples)  # tokens of a frame
            kept = keep(log_probs).cpu()
            rows += [row[window.kept(spelt)] for row, window in zip(kept, windows, strict=True)]
            advance(sum(window.stop - window.first for window in windows) * self.cutting.hop / rate)
        return torch.cat(rows)

    def cannot_fit(self, manifest: Manifest) -> list[str]:
        """Ids of references that need more tokens than their audio has frames: no decoder can spell them."""
        texts = {u.id: u.text for u in manifest if u.text is not None and not self.tokenizer.unknown(u.text)}
        if not texts:
            return []
        known = [u for u in manifest if u.id in texts]
        lengths = torch.tensor([u.length_at(self.data.sample_rate) for u in known])
        tokens = [self.tokenizer.encode(text) for text in texts.values()]
        return [known[i].id for i in self.objective.impossible_targets(lengths, tokens)]
