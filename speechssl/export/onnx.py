"""One ONNX file: the graph of `torch_export`, translated. It runs wherever an ONNX runtime does.

    session = onnxruntime.InferenceSession("encoder.onnx")
    hidden, frame_lengths = session.run(None, {"waveforms": waveforms, "lengths": lengths})

Shapes: B utterances, T samples, F frames, D channels, V tokens with the blank at 0, E of an embedding, N speakers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from speechssl.export.keymaps import ExportError
from speechssl.export.torch_export import Traced, new_file, trace

OPSET = 20  # the first that has GELU
LARGEST = 1_900_000_000  # bytes of weights in the file itself: protobuf ends at 2 GiB


def export_onnx(path: Path, out: Path) -> None:
    """Writes an ONNX model: the encoder, or all of a CTC or speaker model.

    In: `waveforms` (B, T) float32 as they are, at the metadata's `sample_rate`, and `lengths` (B,) int64 in samples.
    Out: `hidden` (B, F, D), or `log_probs` (B, F, V) of a CTC model, and `frame_lengths` (B,); of a speaker model
    `embedding` (B, E), and `scores` (B, N) for the metadata's `speakers`: logits, or cosines after AAM-softmax. Batch
    and time are free; normalisation is part of the graph. Weights beyond 1.9 GB lie in a second file, `<out>.data`.

    Raises:
        ExportError: onnx is not installed, the graph cannot be made or translated, or `out` exists.
        CheckpointError: there is no checkpoint at `path`.
    """
    try:
        import onnxscript  # noqa: F401  torch writes ONNX by it
    except ImportError:
        raise ExportError('onnx is not installed; `pip install "speechssl[onnx]"`.') from None
    with new_file(out) as file:
        traced = trace(path)
        try:
            model = translate(traced)
        except torch.onnx.errors.OnnxExporterError as error:
            lines = str(error).replace("\n", " ").split("## Exception summary")
            raise ExportError(f"{path}: has no translation to ONNX: {lines[-1].strip()}; use torch-export.") from error
        size = sum(tensor.nbytes for tensor in traced.program.state_dict.values())
        model.save(file, external_data=size > LARGEST)


def translate(traced: Traced) -> torch.onnx.ONNXProgram:
    """Raises OnnxExporterError."""
    from onnxscript import ir

    with _quietly():
        model = torch.onnx.export(
            traced.program,
            input_names=["waveforms", "lengths"],
            output_names=list(traced.outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert model is not None, "given no file, torch gives the model"
    waveforms, lengths = model.model.graph.inputs
    waveforms.shape, lengths.shape = ir.Shape(["batch", "samples"]), ir.Shape(["batch"])  # what torch calls s17, ...
    for output in model.model.graph.outputs:
        assert output.shape is not None
        axes: dict[int, list] = {1: ["batch"], 2: ["batch", output.shape[-1]], 3: ["batch", "frames", output.shape[-1]]}
        output.shape = ir.Shape(axes[len(output.shape)])
    facts = traced.facts.items()
    model.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in facts})
    return model


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporter says of packages that are not needed and of its own future."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
