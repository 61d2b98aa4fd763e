"""How much frames vary over time: of each utterance by itself, padding left out."""

import torch

from speechssl.nn.variation import variation


def test_against_loops():
    frames, lengths = torch.randn(3, 7, 4) + 1, [7, 4, 0]
    varying = sum(float((frames[i, :n] - frames[i, :n].mean(0)).square().sum()) for i, n in enumerate(lengths) if n)
    total = sum(float(frames[i, :n].square().sum()) for i, n in enumerate(lengths))
    torch.testing.assert_close(variation(frames, torch.tensor(lengths)), (torch.tensor(varying), torch.tensor(total)))
    torch.testing.assert_close(variation(frames[:1], None), variation(frames[:1], torch.tensor([7])))


def test_the_same_vector_in_every_frame():
    frames = torch.randn(3, 1, 16).expand(-1, 50, -1) * 5  # utterances still differ
    varying, total = variation(frames, None)
    assert varying < 1e-6 * total
