"""What parity tests share: the package's key maps on dictionaries of parameters or gradients, and noise in weights."""

import torch
from torch import Tensor

from speechssl.export.keymaps import TORCHAUDIO, TRANSFORMERS, TRANSFORMERS_HEADS, to_ours


def encoder_tensors(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model of transformers or torchaudio -> Encoder."""
    rows = TORCHAUDIO if any(name.startswith("encoder.transformer.") for name in theirs) else TRANSFORMERS
    ours, unknown = to_ours(theirs, rows)
    assert not unknown
    return {k.removeprefix("encoder."): v for k, v in ours.items() if k.startswith("encoder.")}


def pretraining_tensors(theirs: dict[str, Tensor], num_codebooks: int) -> dict[str, Tensor]:
    """Wav2Vec2ForPreTraining of transformers -> Wav2Vec2."""
    plain = {name.removeprefix("wav2vec2."): tensor for name, tensor in theirs.items()}
    ours, unknown = to_ours(plain, TRANSFORMERS + TRANSFORMERS_HEADS)
    assert not unknown
    codes = ours["quantizer.codebooks"]  # (1, G * V, Q / G)
    ours["quantizer.codebooks"] = codes.reshape(num_codebooks, -1, codes.shape[-1])
    return ours


@torch.no_grad()
def shake(module: torch.nn.Module, amount: float = 0.1) -> None:
    """Adds noise to every parameter, so that no norm is the identity and no bias is zero."""
    for parameter in module.parameters():
        parameter += amount * torch.randn_like(parameter)
