"""A graph of torch's own operations, for any number of utterances of any length. It runs without speechssl.

    program = torch.export.load("encoder.pt2").module()
    hidden, frame_lengths = program(waveforms, lengths)

Shapes: B utterances, T samples, F frames, D channels, V tokens with the blank at 0, E of an embedding, N speakers.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from speechssl.batch import Batch
from speechssl.checkpoint import Checkpoint, load_checkpoint
from speechssl.data.audio import QUIET
from speechssl.export.keymaps import ExportError
from speechssl.export.output import refuse_to_overwrite
from speechssl.export.speakers import NAME as SPEAKER
from speechssl.nn.encoder import Encoder
from speechssl.nn.exporting import plainly
from speechssl.nn.lengths import zero_padding
from speechssl.nn.norms import utterance_norm
from speechssl.objectives.transcription import Transcription


class EncoderGraph(nn.Module):
    """Waveforms (B, T) and lengths (B,) in samples -> hidden (B, F, D), zero on padding, and lengths (B,) in frames."""

    def __init__(self, encoder: Encoder, normalize: bool):
        super().__init__()
        self.encoder, self.normalize = encoder, normalize

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        output = self.encoder(_heard(waveforms, lengths, self.normalize), lengths)
        return zero_padding(output.hidden, output.lengths), output.lengths


class TokenGraph(nn.Module):
    """Waveforms (B, T) and lengths (B,) in samples -> log probabilities (B, F, V) and their lengths (B,)."""

    def __init__(self, objective: Transcription, normalize: bool):
        super().__init__()
        self.objective, self.normalize = objective, normalize

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        heard = _heard(waveforms, lengths, self.normalize)
        return self.objective.log_probs(Batch(ids=(), waveforms=heard, lengths=lengths))


class SpeakerGraph(nn.Module):
    """Waveforms (B, T) and lengths (B,) in samples -> embeddings (B, E), and what the head scores of them (B, N)."""

    def __init__(self, objective: Any, normalize: bool):
        super().__init__()
        self.objective, self.normalize = objective, normalize

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        heard = _heard(waveforms, lengths, self.normalize)
        embeddings = self.objective.embed(Batch(ids=(), waveforms=heard, lengths=lengths))
        return embeddings, self.objective.head(embeddings)


def _heard(waveforms: Tensor, lengths: Tensor, normalize: bool) -> Tensor:
    """As the encoder heard them in training: `data.audio.normalize` of each utterance's own samples, if it did."""
    if not normalize:
        return waveforms
    one = waveforms.new_ones(1)
    return utterance_norm(waveforms[..., None], lengths, one, one - 1, eps=QUIET)[..., 0]


@dataclass(frozen=True)
class Traced:
    """
    program: the graph.
    outputs: names of what it gives.
    facts: plain data that its user must know: sample rate, frames, tokens or speakers.
    """

    program: ExportedProgram
    outputs: tuple[str, str]
    facts: dict[str, Any]


def export_program(path: Path, out: Path) -> None:
    """Writes a .pt2 file: the encoder, or all of a CTC or speaker model. Batch and time are free.

    Waveforms go in as they are, at the sample rate that `speechssl.json` inside the file says (torch.export.load gives
    it as `extra_files`); normalisation is part of the graph. A batch must be long enough for two frames; zeros behind
    an utterance's end do no harm. The graph is the CPU's: `torch.export.passes.move_to_device_pass` makes another's.

    Raises:
        ExportError: the graph cannot be made, or `out` exists.
        CheckpointError: there is no checkpoint at `path`.
    """
    with new_file(out) as file:
        traced = trace(path)
        torch.export.save(traced.program, file, extra_files={"speechssl.json": json.dumps(traced.facts)})


def trace(path: Path) -> Traced:
    """Raises ExportError, CheckpointError."""
    checkpoint = load_checkpoint(path)
    if (channels := checkpoint.objective.encoder.channels) > 1:
        raise ExportError(f"{path}: reads series of {channels} channels, and graphs are made of waveforms alone.")
    objective, normalize = checkpoint.objective, checkpoint.config.data.normalize
    graph: nn.Module = EncoderGraph(objective.encoder, normalize)
    outputs = ("hidden", "frame_lengths")
    if isinstance(objective, Transcription):
        graph, outputs = TokenGraph(objective, normalize), ("log_probs", "frame_lengths")
    elif checkpoint.config.objective["name"] == SPEAKER:
        graph, outputs = SpeakerGraph(objective, normalize), ("embedding", "scores")
    size = 20 * objective.encoder.hop + objective.encoder.feature_encoder.receptive_field
    example = (torch.zeros(2, size), torch.tensor([size, size - 1]))
    free = {"waveforms": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "lengths": {0: Dim.DYNAMIC}}
    try:
        with torch.no_grad(), plainly():
            program = torch.export.export(graph.eval(), example, dynamic_shapes=free, strict=False)
    except Exception as error:  # whatever the code of an objective outside speechssl makes torch say
        name, reason = type(objective).__name__, str(error).strip().partition("\n")[0].rstrip(".")
        raise ExportError(
            f"{path}: no graph can be made of its {name}, which may use torch's operations alone: {reason}."
        ) from error
    for part in program.graph_module.modules():  # files that are given away name no folders of this machine
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return Traced(program, outputs, _facts(checkpoint))


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    encoder, tokenizer = checkpoint.objective.encoder, checkpoint.tokenizer
    return {
        "objective": checkpoint.config.objective["name"],
        "preset": checkpoint.config.name,
        "step": checkpoint.step,
        "sample_rate": checkpoint.config.data.sample_rate,
        "hop": encoder.hop,
        "receptive_field": encoder.feature_encoder.receptive_field,
        "tokenizer": None if tokenizer is None else tokenizer.to_dict(),
        "speakers": getattr(checkpoint.objective.config, "speakers", None),
    }


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A file to write, with others beside it, that takes the name `out` at the end, or vanishes. Raises ExportError."""
    refuse_to_overwrite(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        yield Path(folder) / out.name
        if out.is_dir():
            out.rmdir()
        for file in sorted(Path(folder).iterdir(), reverse=True):  # what lies beside it comes first
            file.replace(out.with_name(file.name))
