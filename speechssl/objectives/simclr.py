"""SimCLR (Chen et al. 2020): tell an utterance's other view from both views of all other utterances.

Shapes: B utterances, D hidden channels, P channels of the projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechssl.nn.encoder import Encoder
from speechssl.nn.view_losses import nt_xent
from speechssl.objectives.views import Compared, TwoViews, View, ViewsConfig, perceptron


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(ViewsConfig):
    """The paper's numbers for ResNet-50 (section 2, appendix B); its best temperature for large batches is 0.1."""

    name: Literal["simclr"] = "simclr"
    hidden_dim: int = 2048  # of the projection
    projection_dim: int = 128
    temperature: float = 0.1


class SimCLR(TwoViews):
    """The projection has no batch norm, so that utterances meet in the loss alone."""

    Config = SimCLRConfig
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.projection = perceptron((encoder.dim, config.hidden_dim, config.projection_dim), norm=False)

    def compare(self, first: View, second: View) -> Compared:
        """The sum over utterances of NT-Xent, with the other utterances of all processes as negatives."""
        (pooled, one), (_, two) = self.student(first), self.student(second)
        loss = nt_xent(one, two, self.config.temperature, couple=self.training).sum()
        return Compared(loss, pooled, one, two)
