"""wav2vec (2019) in fairseq's layout, by its published names."""

import argparse

import torch
from random_models import CLOSE, noise
from torch import nn

from speechssl.checkpoint import load_checkpoint
from speechssl.export.imports import import_weights


@torch.no_grad()
def test_the_first_wav2vec(tmp_path):
    """Its encoder and heads by their published names, against its layers written out with torch's own."""
    torch.manual_seed(0)
    convolutions = [
        nn.Sequential(nn.Conv1d(i, 6, k, s, bias=False), nn.Dropout(0.0), nn.GroupNorm(1, 6), nn.ReLU())
        for i, k, s in ((1, 10, 5), (6, 8, 4))
    ]
    aggregator = [
        nn.Sequential(
            nn.ReplicationPad1d((k - 1, 0)), nn.Conv1d(6, 6, k), nn.Dropout(0.0), nn.GroupNorm(1, 6), nn.ReLU()
        )
        for k in (2, 3)
    ]
    for block in (*convolutions, *aggregator):
        for parameter in block.parameters():
            nn.init.normal_(parameter, 0.2, 0.5)
    parts = {"feature_extractor": convolutions, "feature_aggregator": aggregator}
    model = {
        f"{part}.conv_layers.{i}.{name}": tensor
        for part, blocks in parts.items()
        for i, block in enumerate(blocks)
        for name, tensor in block.state_dict().items()
    }
    steps = nn.ConvTranspose2d(6, 6, (1, 4))
    model |= {f"wav2vec_predictions.project_to_steps.{name}": tensor for name, tensor in steps.state_dict().items()}
    args = {"conv_feature_layers": "[(6, 10, 5), (6, 8, 4)]", "conv_aggregator_layers": "[(6, 2, 1), (6, 3, 1)]"}
    args |= {"arch": "wav2vec", "num_negatives": 10, "skip_connections_agg": True, "log_compression": True}
    torch.save({"args": argparse.Namespace(**args), "model": model}, tmp_path / "theirs.pt")
    found = import_weights(tmp_path / "theirs.pt", tmp_path / "ours")
    assert not found.left_behind
    objective = load_checkpoint(tmp_path / "ours").objective

    waveforms, _ = noise(2000, 2000)
    latents = waveforms[:, None]
    for block in convolutions:
        latents = block(latents)
    latents = latents.abs().add(1).log()
    context = latents
    for block in aggregator:
        context = (block(context) + context) * 0.5**0.5
    output = objective.encoder(waveforms)
    torch.testing.assert_close(output.latents, latents.transpose(1, 2), **CLOSE)
    torch.testing.assert_close(output.hidden, context.transpose(1, 2), **CLOSE)
    predictions = steps(context[..., None]).permute(0, 2, 3, 1)  # (B, F, K, C)
    mine = objective.heads(output.hidden).unflatten(-1, (4, -1))
    torch.testing.assert_close(mine, predictions, **CLOSE)
    assert objective.steps == range(3, 7), "a frame sees 45 samples and comes every 20: the third does not overlap"
