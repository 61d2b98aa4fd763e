"""CPC_audio's layout, written here by its published names: the same latents, and soon the same hidden frames."""

import pytest
import torch
import torch.nn.functional as F
from parity import shake
from torch import nn

from speechssl.checkpoint import load_checkpoint
from speechssl.export.imports import import_weights
from speechssl.export.keymaps import ExportError

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SHIFT = 7  # samples from our frames back to theirs: 160 a frame, less the 153 that its paddings add up to


class ChannelNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, dim, 1)), nn.Parameter(torch.zeros(1, dim, 1))

    def forward(self, x):
        return (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True) + 1e-5) * self.weight + self.bias


class Convolutions(nn.Module):
    def __init__(self, dim):
        super().__init__()
        rows = ((1, 10, 5, 3), (dim, 8, 4, 2), *[(dim, 4, 2, 1)] * 3)
        for i, (channels, kernel, stride, padding) in enumerate(rows):
            self.add_module(f"conv{i}", nn.Conv1d(channels, dim, kernel, stride, padding))
            self.add_module(f"batchNorm{i}", ChannelNorm(dim))

    def forward(self, x):
        for i in range(5):
            x = F.relu(getattr(self, f"batchNorm{i}")(getattr(self, f"conv{i}")(x)))
        return x.transpose(1, 2)


def theirs(kind=nn.LSTM, dim: int = 12, hidden: int = 10) -> nn.ModuleDict:
    torch.manual_seed(3)
    memory = nn.ModuleDict({"baseNet": kind(dim, hidden, num_layers=2, batch_first=True)})
    model = nn.ModuleDict({"gEncoder": Convolutions(dim), "gAR": memory})
    shake(model)
    return model


@pytest.mark.parametrize(("kind", "entry"), [(nn.LSTM, "weights"), (nn.GRU, "gEncoder")])
@torch.no_grad()
def test_their_encoder_opens_here(tmp_path, kind, entry):
    model = theirs(kind)
    config = {"hiddenEncoder": 12, "hiddenGar": 10, "nLevelsGRU": 2}
    torch.save({"config": config, entry: model.state_dict(), "epoch": 4}, tmp_path / "60k.pt")
    found = import_weights(tmp_path / "60k.pt", tmp_path / "ours")
    assert not found.left_behind
    checkpoint = load_checkpoint(tmp_path / "ours")
    assert not checkpoint.config.data.normalize
    waveform = torch.randn(1, 32_000)
    latents = model.gEncoder(waveform[:, None])
    hidden = model.gAR.baseNet(latents)[0]
    ours = checkpoint.objective.encoder(waveform[:, SHIFT:])
    frames = slice(2, 190)  # of theirs: those that hear no padding
    mine = slice(frames.start - 1, frames.stop - 1)
    torch.testing.assert_close(ours.latents[:, mine], latents[:, frames], **CLOSE)
    torch.testing.assert_close(ours.hidden[:, 149:189], hidden[:, 150:190], **CLOSE)
    assert hidden[:, 150:190].std(1).min() > 1e-3, "a comparison of constants says nothing"


def test_what_has_no_place_is_one_sentence(tmp_path):
    state = theirs().state_dict()
    torch.save({"weights": {**state, "gEncoder.conv5.1.weight": torch.zeros(2)}}, tmp_path / "more.pt")
    with pytest.raises(ExportError, match=r"has a place for: gEncoder\.conv5\.1\.weight\.$"):
        import_weights(tmp_path / "more.pt", tmp_path / "ours")
    convolutions = {name: tensor for name, tensor in state.items() if name.startswith("gEncoder.")}
    torch.save({"weights": convolutions}, tmp_path / "less.pt")
    with pytest.raises(ExportError, match="no recurrent network behind its convolutions"):
        import_weights(tmp_path / "less.pt", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
