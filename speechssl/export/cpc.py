"""Modified CPC as CPC_audio saves it (Riviere et al. 2020) and fairseq's speech-to-unit reader opens it: the encoder.

Theirs pads its convolutions and ours does not. Their frame i + 1 begins at sample 160 i + 7, so of a waveform without
its first 7 samples our latents are theirs from their second frame on, save where theirs hears padding; the recurrent
layers, which begin a frame later here, are equal once they have forgotten it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from speechssl.export import keymaps as maps
from speechssl.export import source
from speechssl.export.keymaps import ExportError, some
from speechssl.export.source import Imported
from speechssl.export.unpickle import only_tensors

STACK = {"kernels": (10, 8, 4, 4, 4), "strides": (5, 4, 2, 2, 2)}


def weights_of(state: Any) -> Any:
    """The encoder's entry of such a checkpoint: of a released one, or of a training run. None: it is another file."""
    found = state.get("weights", state.get("gEncoder")) if isinstance(state, dict) else None
    return found if isinstance(found, dict) and "gEncoder.conv0.weight" in found else None


def read_cpc(path: Path, weights: Any) -> Imported:
    """Reads what `weights_of` found; every size is that of a tensor. Raises ExportError."""
    tensors = only_tensors(weights, path)
    ours, unknown = maps.to_ours(tensors, maps.CPC)
    if unknown:
        raise ExportError(f"{path}: has weights that no model of speechssl has a place for: {some(unknown)}.")
    layers = [tensor for name, tensor in tensors.items() if re.fullmatch(r"gAR\.baseNet\.weight_hh_l\d+", name)]
    if not layers or layers[0].ndim != 2:
        raise ExportError(f"{path}: has no recurrent network behind its convolutions, and here it can only be one.")
    width, dim = tensors["gEncoder.conv0.weight"].shape[0], layers[0].shape[1]
    gates = len(layers[0]) // dim
    if gates not in (3, 4):
        raise ExportError(f"{path}: its recurrent network is neither a GRU nor an LSTM, which speechssl lacks.")
    for name in [name for name in ours if ".norm_" in name]:
        # Their norm divides by the variance with C - 1 in it, and layer norm by that with C.
        scale = math.sqrt((width - 1) / width) if name.endswith("weight") else 1.0
        ours[name] = ours[name].flatten() * scale  # (1, C, 1) there
    return Imported(
        about=f"modified CPC in CPC_audio's layout, from {path.name}",
        encoder={
            "feature_encoder": {
                "dims": [width] * len(STACK["kernels"]),
                **STACK,
                "bias": True,
                "norm": "layer",
                "activation": "relu",
            },
            "context": {
                "name": "recurrent",
                "kind": {3: "gru", 4: "lstm"}[gates],
                "dim": dim,
                "num_layers": len(layers),
            },
            "latent_norm": False,
            "project": False,
        },
        objective=source.alone("cpc"),
        tensors=ours,
        normalize=False,
    )
