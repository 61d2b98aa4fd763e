"""Frames that are made of a constant and of so many directions are told so; and every layer of an encoder has a row."""

import sys

import pytest
import torch
from tiny_run import ROOT, make_corpus, tiny_config

from speechssl.build import build_objective
from speechssl.checkpoint import save_model

sys.path.insert(0, str(ROOT / "tools"))

from layer_spread import Spread, main


def test_constant_and_directions():
    """Orthogonal sines in two of five channels, twice as strong in one, on a constant as strong as both."""
    time = torch.arange(1000) * 2 * torch.pi / 100
    frames = torch.zeros(1000, 5)
    frames[:, 0], frames[:, 1] = 2**0.5 * 2 * time.sin(), 2**0.5 * time.cos()  # energies 4 and 1
    frames[:, 2] = 5**0.5
    found = Spread.of(frames)
    assert found.size == pytest.approx(10**0.5, rel=1e-5)
    assert found.constant == pytest.approx(0.5, rel=1e-5)
    assert found.directions == pytest.approx((4 + 1) ** 2 / (4**2 + 1**2), rel=1e-5)


def test_a_row_for_each_layer(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "sound", (0.5, 1.3, 0.7))
    config = tiny_config("wav2vec2", corpus)
    objective = build_objective(config)
    (tmp_path / "run").mkdir()
    save_model(objective, config, tmp_path / "run")
    main(tmp_path / "run", corpus.manifest, 1)
    one = capsys.readouterr().out
    main(tmp_path / "run", corpus.manifest, 2)
    two = capsys.readouterr().out
    assert one != two  # as many utterances as asked for
    rows = [line.split(" | ") for line in two.splitlines()[2:]]
    layers = 1 + objective.encoder.num_layers
    assert [row[:2] for row in rows] == [[f"| {name}", str(n)] for name in ("trained", "random") for n in range(layers)]
    with torch.no_grad():  # every frame of the last layer becomes its norm's bias
        last = objective.encoder.context.blocks[-1].ffn_norm
        last.weight.zero_(), last.bias.fill_(1.0)
    save_model(objective, config, tmp_path / "run")
    main(tmp_path / "run", corpus.manifest, 2)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows[layers - 1][3] == "100%"
    assert all(row[3] != "100%" for row in rows[: layers - 1] + rows[layers:])


def test_no_such_run_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*none"):
        main(tmp_path / "none", tmp_path / "none.jsonl", 2)
