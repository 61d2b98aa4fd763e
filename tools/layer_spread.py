"""How an encoder's layers use their room: how large frames are, how constant, and over how many directions they spread.

    python tools/layer_spread.py exp/pretrain dev.jsonl

A row for each layer, of the encoder and of random weights like it, over the first utterances of a manifest:

- size: root mean square of a frame's length.
- constant: the share of their energy that is the same vector in all frames. A head has to find what varies beside it.
- directions: the participation ratio of the eigenvalues of their covariance, (sum e)^2 / sum e^2: 1 if frames vary
  along one line, the number of channels if equally along all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from speechssl import load_encoder
from speechssl.data.audio import read_waveform
from speechssl.data.manifest import Manifest
from speechssl.errors import UserError
from speechssl.extract import TrainedEncoder


@dataclass(frozen=True)
class Spread:
    size: float
    constant: float
    directions: float

    @classmethod
    def of(cls, frames: Tensor) -> Spread:
        """frames: (N, D), of all utterances."""
        frames = frames.double()
        energy, mean = frames.square().sum(1).mean(), frames.mean(0)
        covariance = torch.cov(frames.T)  # its trace is the sum of e, its squares add up to that of e^2
        directions = covariance.trace() ** 2 / covariance.square().sum()
        return cls(float(energy.sqrt()), float(mean.square().sum() / energy), float(directions))


def spreads(encoder: TrainedEncoder, waveforms: list[Tensor]) -> list[Spread]:
    """Of layer 0, the input of the first block, and of every block's output."""
    layers = list(range(encoder.num_layers + 1))
    found = encoder.extract(waveforms, layers, sample_rate=encoder.sample_rate)
    return [Spread.of(torch.cat([features[layer] for features in found])) for layer in layers]


def table(rows: dict[str, list[Spread]]) -> str:
    lines = ["| weights | layer | size | constant | directions |", "|---|---|---|---|---|"]
    for name, layers in rows.items():
        for number, spread in enumerate(layers):
            cells = f"{spread.size:.1f} | {spread.constant:.0%} | {spread.directions:.1f}"
            lines.append(f"| {name} | {number} | {cells} |")
    return "\n".join(lines)


def main(
    encoder: Annotated[Path, typer.Argument(help="A run folder or checkpoint.")],
    manifest: Annotated[Path, typer.Argument(help="Whose speech it hears.")],
    utterances: Annotated[int, typer.Option(min=1, help="How many of it, from the first on.")] = 40,
) -> None:
    """A row per layer: size of its frames, how much of them is constant, and how many directions they vary along."""
    try:
        trained = load_encoder(encoder)
        heard = [read_waveform(u, trained.sample_rate) for u in Manifest.read(manifest)[:utterances]]
        torch.manual_seed(0)
        random = TrainedEncoder(trained.config, sample_rate=trained.sample_rate, normalize=trained.normalize)
        print(table({"trained": spreads(trained, heard), "random": spreads(random, heard)}))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    typer.run(main)
