"""`load_encoder`: features of speech in two lines, of recordings of any length.

    encoder = speechssl.load_encoder("exp/pretrain")
    hidden = encoder.extract("interview.flac")
    fourth, eighth = encoder.extract(samples, layers=[4, 8], sample_rate=44_100)

Shapes: T samples, F frames, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechssl.checkpoint import load_checkpoint
from speechssl.data.batching import plan_epoch
from speechssl.data.recordings import Audio, Recording, open_recording
from speechssl.data.windows import CONTEXT, SECONDS, Cutting, Window
from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder, EncoderConfig


class ExtractError(UserError):
    """Features that cannot be had. The message names the recording or the argument, and what to do."""


def load_encoder(path: str | Path) -> TrainedEncoder:
    """The encoder of a checkpoint or run folder, in eval mode on the CPU. Raises CheckpointError."""
    checkpoint = load_checkpoint(path)
    trained, data = checkpoint.objective.encoder, checkpoint.config.data
    encoder = TrainedEncoder(trained.config, sample_rate=data.sample_rate, normalize=data.normalize)
    encoder.load_state_dict(trained.state_dict(), assign=True)
    return encoder.eval()


class TrainedEncoder(Encoder):
    """An `Encoder` that knows what it was trained to hear. Called, it wants waveforms prepared like that.

    Layers are counted as everywhere here: layers[0] is the input of the context network's first block, layers[i] the
    output of block i after its residual and norm, and `hidden` the context network's output, behind its final norm if
    it has one.

    Attributes:
        sample_rate: Hz.
        normalize: whether each recording gets zero mean and unit variance.
    """

    def __init__(self, config: EncoderConfig, *, sample_rate: int, normalize: bool):
        super().__init__(config)
        self.sample_rate, self.normalize = sample_rate, normalize

    def extra_repr(self) -> str:
        return f"sample_rate={self.sample_rate}, normalize={self.normalize}"

    def extract(
        self,
        audio: Audio | Sequence[Audio],
        layers: int | Sequence[int] | None = None,
        *,
        sample_rate: int | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        device: str | torch.device | None = None,
        window: float = SECONDS,
        context: float = CONTEXT,
        seconds_per_batch: float = 60.0,
    ) -> Any:
        """Features of one recording or of many, each resampled and normalised as in training.

        A recording no longer than `window` is encoded whole: its features are those of `forward`. A longer one is
        encoded in windows, of which `context` at each inner edge is left out. Then:

        - exact: the normalisation of the waveform, by the statistics of the whole recording; convolutions with layer
          norm or none, and so `layers=0` of such an encoder (if `context` covers its positional convolution);
        - approximate: norms over time (group, utterance, log-mel), by the statistics of the window; attention and
          recurrence, which know the window alone; sinusoidal positions, which begin anew in each window.

        Args:
            audio: a waveform (T,) from -1 to 1, the name of a file, or a list of such. An encoder of several channels
                takes arrays (channels, T) in any unit, and files in .npy.
            layers: None for `hidden`, one layer, or several.
            sample_rate: of waveforms, in Hz; None: the encoder's own. Files say theirs.
            precision: of the encoder's products; features are float32 in any case.
            device: where to compute; the encoder moves there. None: where it is.
            window, context: seconds.
            seconds_per_batch: largest batch in seconds of audio, padding included, if one window does not pass it.

        Returns:
            (F, D) float32 on the CPU; frame i begins at sample i * hop. Of several layers a list of them, in the order
            asked for; of a list of recordings a list of either.

        Raises:
            ExtractError: no such layer or device, or a recording too short for one frame.
            WindowError: `window` leaves nothing between `context` on both sides.
            AudioError: a file cannot be read, or a waveform is none.
        """
        many = isinstance(audio, (list, tuple))
        listed: Any = audio if many else [audio]
        wanted = self._wanted(layers)
        if precision not in ("fp32", "bf16"):
            raise ExtractError(f"precision is fp32 or bf16, not {precision!r}.")
        sees = self.feature_encoder.receptive_field
        cutting = Cutting.of(self.hop, sees, self.sample_rate, seconds=window, context=context)
        recordings = [self._open(one, sample_rate, number) for number, one in enumerate(listed)]
        if device is not None:
            self._move(device)
        pieces = [(r, w) for r in recordings for w in cutting.windows(r.total)]
        features: dict[Recording, list[Tensor]] = {}
        for (recording, piece), found in self._encode(pieces, wanted, precision == "bf16", seconds_per_batch):
            if recording not in features:
                frames = self.frame_lengths(recording.total)
                features[recording] = [torch.empty(frames, values.shape[1]) for values in found]
            for rows, values in zip(features[recording], found, strict=True):
                rows[piece.first : piece.stop] = values[piece.kept()]
        results = [features[r] if isinstance(layers, (list, tuple)) else features[r][0] for r in recordings]
        return results if many else results[0]

    @torch.no_grad()
    def _encode(self, pieces: list[tuple[Recording, Window]], wanted: list[int] | None, bf16: bool, seconds: float):
        """Each piece with its layers (F, D), in batches of similar length."""
        where, training = next(self.parameters()).device, self.training
        lengths = np.array([piece.samples for _, piece in pieces])
        budget = round(seconds * self.sample_rate)
        self.eval()
        try:
            for numbers in plan_epoch(lengths, budget, seed=0, epoch=0, crop=False) if pieces else []:
                waveforms = [self._hear(*pieces[number]) for number in numbers]
                count = torch.tensor([len(waveform) for waveform in waveforms])
                padded = count.to(where) if (count != count[0]).any() else None
                together = pad_sequence(waveforms, batch_first=True).to(where)
                with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
                    output = self(together, padded, num_layers=None if wanted is None else max(wanted))
                chosen = [output.hidden] if wanted is None else [output.layers[layer] for layer in wanted]
                values = [layer.float().cpu() for layer in chosen]
                for row, number in enumerate(numbers):
                    yield pieces[number], [layer[row] for layer in values]
        finally:
            self.train(training)

    def _hear(self, recording: Recording, piece: Window) -> Tensor:
        """A window's waveform (T,), or series (T, channels), as the encoder heard them in training."""
        hear = recording.normalized if self.normalize else recording.read
        return hear(piece.start * self.hop, piece.samples)

    def _open(self, audio: Audio, sample_rate: int | None, number: int) -> Recording:
        recording = open_recording(
            audio, self.sample_rate, source_rate=sample_rate, name=f"recording {number}", channels=self.channels
        )
        least = self.feature_encoder.receptive_field
        if recording.total < least:
            raise ExtractError(
                f"{recording.name}: {recording.total} samples are fewer than the {least} that one frame sees; leave it "
                "out."
            )
        return recording

    def _wanted(self, layers: int | Sequence[int] | None) -> list[int] | None:
        if layers is None:
            return None
        numbers: list[Any] = list(layers) if isinstance(layers, (list, tuple)) else [layers]
        for layer in numbers or [None]:
            if type(layer) is not int or not 0 <= layer <= self.num_layers:
                raise ExtractError(f"the encoder has layers 0 to {self.num_layers}, and no layer {layer}.")
        return numbers

    def _move(self, device: str | torch.device) -> None:
        try:
            self.to(device)
        except (RuntimeError, AssertionError):  # torch says "not compiled with CUDA" by an assertion
            raise ExtractError(
                f"device '{device}' is not there; leave it out to compute where the encoder is."
            ) from None
