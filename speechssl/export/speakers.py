"""Speaker models as transformers has them, ...ForSequenceClassification: projector, mean over frames, classifier.

A linear map of a mean is the mean of the linear map, so our embedding of the pooled frames is their projector; batch
norm of the pooled features, which at inference is linear as well, is multiplied into it.

Shapes: D channels of the encoder, E of the embedding, N speakers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoint import Checkpoint

NAME = "speaker"  # of the objective
FITTING = {"features": "last", "pooling": "mean", "classifier": "softmax"}  # the only kind of head that they have


def misfit(checkpoint: Checkpoint) -> str:
    """Why the head of a speaker model is none of theirs, a sentence; empty: it is one, or there is no such head.

    ForXVector is no home for the rest: between encoder and statistics it has convolutions with a ReLU, and we have
    none. Nor is `use_weighted_layer_sum` one for a sum of layers: ours are normalised before they are added.
    """
    if checkpoint.config.objective["name"] != NAME:
        return ""
    needed = ", ".join(f"objective.{key}={value}" for key, value in FITTING.items())
    own = {key: getattr(checkpoint.objective.config, key) for key in FITTING}
    wrong = ", ".join(f"{key}={own[key]}" for key in FITTING if own[key] != FITTING[key])
    if not wrong:
        return ""
    return (
        f"The head stays behind: it has {wrong}, and transformers' classifier is that of {needed}; --format onnx or "
        "torch-export takes all of it."
    )


@torch.no_grad()
def head(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A head that fits, as one linear map to the embedding and one to the speakers, under our names."""
    objective: Any = checkpoint.objective
    D = objective.encoder.dim
    weight, bias = torch.eye(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    if isinstance(objective.embedding, torch.nn.Linear):
        weight, bias = objective.embedding.weight.double(), objective.embedding.bias.double()  # (E, D), (E,)
    norm = objective.pooled_norm
    if objective.config.pooled_norm == "batch":
        scale = norm.weight.double() * (norm.running_variance.double() + norm.eps).rsqrt()
        bias = bias + weight @ (norm.bias.double() - norm.running_mean.double() * scale)
        weight = weight * scale
    scores = {f"head.{name}": tensor for name, tensor in objective.head.state_dict().items()}  # (N, E), (N,)
    return {"embedding.weight": weight.float(), "embedding.bias": bias.float(), **scores}


def numbers(checkpoint: Checkpoint) -> dict[str, Any]:
    """What their config says of it."""
    objective: Any = checkpoint.objective
    names = objective.config.speakers
    return {
        "classifier_proj_size": objective.size,
        "use_weighted_layer_sum": False,
        "id2label": {str(place): name for place, name in enumerate(names)},
        "label2id": {name: place for place, name in enumerate(names)},
    }


def section(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Our objective section for their model; None: it is no ...ForSequenceClassification, or another kind of it."""
    names = {f"{part}.{kind}" for part in ("projector", "classifier") for kind in ("weight", "bias")}
    if not names <= tensors.keys() or any(name.startswith(("tdnn.", "layer_weights")) for name in tensors):
        return None
    count = len(tensors["classifier.bias"])
    labels = config.get("id2label") or {str(place): f"LABEL_{place}" for place in range(count)}  # their default
    speakers = [str(labels.get(str(place))) for place in range(count)] if isinstance(labels, dict) else []
    if len(labels) != count or not 2 <= count == len(set(speakers)):
        return None
    return {"name": NAME, "speakers": speakers, "embedding_dim": len(tensors["projector.bias"]), **FITTING}
