"""A quantizer that is never trained. Shapes: N vectors, C channels, Q channels of a code vector, V codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RandomProjection(nn.Module):
    """Frozen targets of BEST-RQ (Chiu et al. 2022, section 3.1): a random projection, then the nearest random code.

    The projection is Xavier-uniform, the codes are standard normal. Both are buffers: drawn once from torch's global
    generator, saved with the objective, never trained.
    """

    projection: Tensor  # (Q, C)
    codebook: Tensor  # (V, Q), of unit length

    def __init__(self, dim: int, *, code_dim: int, codebook_size: int):
        super().__init__()
        self.register_buffer("projection", nn.init.xavier_uniform_(torch.empty(code_dim, dim)))
        self.register_buffer("codebook", F.normalize(torch.randn(codebook_size, code_dim), dim=-1))

    @torch.no_grad()
    def forward(self, vectors: Tensor) -> Tensor:
        """(N, C) -> (N,) int64: argmin over v of |normalize(A x) - c_v|, in float32 (paper, equation 1)."""
        with torch.autocast(vectors.device.type, enabled=False):
            projected = vectors.float() @ self.projection.T
            # Between unit vectors the nearest is the one of the largest product; the length of A x changes no order.
            return (projected @ self.codebook.T).argmax(-1)
