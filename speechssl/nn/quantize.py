"""Vector quantizers. Shapes: N frames, C channels, G codebooks of V codes each, Q channels of a quantized vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Quantized:
    """
    vectors: (N, Q).
    codes: (N, G) int64, the chosen code of each codebook.
    probs: (N, G, V) float32, softmax of the logits without noise (for the diversity loss).
    """

    vectors: Tensor
    codes: Tensor
    probs: Tensor


class GumbelQuantizer(nn.Module):
    """Product quantization by a straight-through Gumbel softmax (Jang et al. 2017; wav2vec 2.0, equation 1).

    While training a code is drawn, with noise, at `temperature`; otherwise the most probable is taken. The chosen
    vectors are looked up, and the gradient flows as if they had been mixed by the soft probabilities.
    """

    def __init__(self, dim: int, *, num_codebooks: int, codebook_size: int, code_dim: int):
        super().__init__()
        if code_dim % num_codebooks:
            raise ValueError("code_dim must be a multiple of num_codebooks")
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.logits = nn.Linear(dim, num_codebooks * codebook_size)
        self.codebooks = nn.Parameter(torch.rand(num_codebooks, codebook_size, code_dim // num_codebooks))
        nn.init.normal_(self.logits.weight)  # wide logits: at the start the codes follow the input, not the noise
        nn.init.zeros_(self.logits.bias)
        self.temperature = 2.0  # set by the objective, a function of the step

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Quantized:
        """(N, C) -> Quantized. noise: (N, G, V) standard Gumbel noise, drawn here if None while training."""
        logits = self.logits(latents).float().view(-1, self.num_codebooks, self.codebook_size)
        probs = logits.softmax(-1)
        if self.training:
            if noise is None:
                noise = -torch.empty_like(logits).exponential_().log()
            soft = ((logits + noise) / self.temperature).softmax(-1)
            codes = soft.argmax(-1)
            hard = F.one_hot(codes, self.codebook_size).to(soft.dtype)
            weights = hard - soft.detach() + soft
            vectors = torch.einsum("ngv,gvq->ngq", weights, self.codebooks.float())
        else:
            codes = logits.argmax(-1)
            vectors = self.codebooks[torch.arange(self.num_codebooks, device=codes.device), codes]
        return Quantized(vectors.flatten(1), codes, probs)


def perplexity(histogram: Tensor) -> Tensor:
    """exp(entropy), summed over codebooks: from G (one code each) to G * V (all equally used).

    histogram: (G, V) counts or probabilities.
    """
    probs = histogram / histogram.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.exp(-(probs * torch.log(probs + 1e-7)).sum(-1)).sum()
