"""What masked objectives tell of their hidden frames agrees with their own metrics."""

import pytest
import torch
from tiny_run import tiny_config

from speechssl.build import build_objective, seed_everything
from speechssl.data.dataset import SpeechDataset
from speechssl.data.manifest import Manifest
from speechssl.data.units import Units
from speechssl.page.masks import _bars, _spans

KINDS = ("wav2vec2", "hubert", "wavlm", "best_rq", "data2vec", "masked_autoencoder")


@pytest.mark.parametrize("kind", KINDS)
def test_one_answer_for_each_hidden_frame(kind, corpus):
    config = tiny_config(kind, corpus)
    objective = build_objective(config).eval()
    units = Units(config.data.units) if config.data.units else None
    dataset = SpeechDataset(Manifest.read(corpus.manifest), config.data, units=units)
    batch = dataset[0, torch.arange(3).numpy()].batch
    seed_everything(1, 2, 3)
    with torch.no_grad():
        output = objective(batch)
    mask, answers = output.masked.mask, output.masked.answers
    assert mask.dtype == torch.bool
    assert mask.shape[0] == 3
    assert not answers.requires_grad
    if units is None:  # some frames have no unit, and no answer counts for them
        assert answers.shape == (int(mask.sum()),)
    if answers.dtype == torch.bool:
        assert kind in ("wav2vec2", "hubert", "wavlm", "best_rq")
        known = output.metrics["accuracy"].values[1]
        missing = len(answers) - int(known)
        assert float(answers.sum()) - missing == pytest.approx(float(output.metrics["accuracy"].values[0]))
    else:
        assert (answers >= 0).all()


def test_spans_and_bars():
    mask = torch.tensor([False, True, True, False, True]).numpy()
    assert list(_spans(mask)) == [(0, 1, False), (1, 2, True), (3, 1, False), (4, 1, True)]
    html = _bars(mask, torch.tensor([True, False, True]).numpy(), 0.02)
    assert html.count("<rect") == 3
    assert html.count('class="right"') == 2
    assert "frame 2 (0.04 s): wrong" in html
    html = _bars(mask, torch.tensor([0.25, 3.0, 0.0]).numpy(), 0.02)
    assert "75% explained" in html
    assert "0% explained" in html
