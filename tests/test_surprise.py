"""CPC's surprise against loops over (frame, step); long recordings in windows; what is found, and written."""

import itertools
import math

import numpy as np
import pytest
import soundfile
import torch
from parity import shake
from tiny import tiny_encoder
from tiny_run import RATE, make_corpus, one_sentence, speech, speechssl, tiny_config

from speechssl.build import build_objective
from speechssl.checkpoint import save_model
from speechssl.objectives.cpc import CPC, CPCConfig
from speechssl.surprise import Surprise, surprise, top_segments, write


@pytest.mark.parametrize("heads", ["linear", "transformer"])
@torch.no_grad()
def test_scores_against_loops(heads):
    torch.manual_seed(0)
    objective = CPC(CPCConfig(num_steps=3, heads=heads, head_heads=2, head_ffn_dim=32), tiny_encoder("recurrent"))
    shake(objective)
    encoded = objective.eval().encoder(torch.randn(1, 1500))
    latents, context = encoded.latents[0], encoded.hidden[0]
    pool, own = torch.cat((latents[[2, 9]], torch.randn(3, latents.shape[1]))), torch.full((len(latents),), -1)
    own[2], own[9] = 0, 1
    found = objective.surprise(latents, context, pool, own)

    channels = latents.shape[1]
    assert torch.isnan(found[0])
    for t in range(1, len(latents)):
        losses = []
        for k in range(1, min(t, 3) + 1):
            if heads == "linear":
                prediction = objective.heads[0].weight[(k - 1) * channels : k * channels] @ context[t - k]
            else:
                prediction = objective.heads[k - 1](context[None])[0, t - k]
            others = [pool[n] for n in range(len(pool)) if n != own[t]]
            scores = torch.stack([latents[t], *others]) @ prediction / channels**0.5
            losses.append(-scores.log_softmax(0)[0])
        torch.testing.assert_close(found[t], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run of CPC with random weights, larger than at the start of training."""
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config("cpc", make_corpus(folder / "corpus"), data={"normalize": True})
    objective = build_objective(config)
    shake(objective)
    (folder / "checkpoint").mkdir()
    save_model(objective, config, folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "talk.flac"
    soundfile.write(path, np.concatenate([speech(2.0, seed=i) for i in range(6)]), RATE)
    return path


def test_windows_give_what_the_whole_gives(model, recording):
    """Up to what the context forgets in the two seconds that warm it."""
    whole, windows = (surprise(model, recording, window=seconds, pool=64) for seconds in (60.0, 2.5))
    np.testing.assert_array_equal(whole.times, windows.times)
    np.testing.assert_allclose(whole.scores, windows.scores, atol=1e-3)
    assert whole.chance == pytest.approx(math.log(65))


def test_times_are_the_middle_of_what_a_frame_sees(model, recording):
    found = surprise(model, recording, pool=16)
    np.testing.assert_allclose(np.diff(found.times), 80 / RATE)
    assert found.times[0] == pytest.approx((80 + 85 / 2) / RATE, abs=2e-3)
    assert found.times[-1] < 12.0
    assert np.isfinite(found.scores).all()


def test_another_seed_draws_another_pool_and_the_same_seed_the_same(model, recording):
    first, again, other = (surprise(model, recording, pool=16, seed=seed).scores for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_most_surprising_stretches_do_not_overlap():
    times = np.arange(1000) / 100
    scores = np.ones(1000)
    scores[300:320], scores[700:750], scores[340] = 5.0, 4.0, 9.0
    found = top_segments(Surprise(times, scores, 2.0), 3, seconds=0.5)
    assert found[0].start == pytest.approx(7.0, abs=0.01)
    assert 2.9 <= found[1].start <= 3.0  # wherever it holds all that is high
    assert found[0].score == pytest.approx(4.0)
    edges = sorted((segment.start, segment.end) for segment in found)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(edges))
    assert top_segments(Surprise(times, scores, 2.0), 100, seconds=5.0)[0].end <= 10.0
    assert len(top_segments(Surprise(times[:3], scores[:3], 2.0), 5, seconds=1.0)) == 1


def test_the_command_writes_a_table(model, recording, capsys, monkeypatch):
    status, out, _ = speechssl(
        capsys, monkeypatch, "surprise", recording, "--model", model, "--top", "2", "--pool", "32"
    )
    assert status == 0
    table = recording.with_name("talk.flac.surprise.tsv")
    rows = table.read_text().splitlines()
    found = surprise(model, recording, pool=32)
    assert rows[0] == "seconds\tsurprise"
    assert len(rows) == len(found.scores) + 1
    assert [float(cell) for cell in rows[5].split("\t")] == pytest.approx([found.times[4], found.scores[4]], abs=6e-4)
    assert len(out.splitlines()) == 3
    write(found, table)
    assert table.read_text().splitlines() == rows


def test_what_cannot_be_scored_is_one_sentence(model, recording, tmp_path, capsys, monkeypatch):
    def said(*arguments):
        return one_sentence(speechssl(capsys, monkeypatch, "surprise", *arguments))

    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), RATE)
    assert "no such file" in said(tmp_path / "gone.wav", "--model", model)
    assert "cannot be read" in said(tmp_path / "text.wav", "--model", model)
    assert "too short" in said(tmp_path / "short.wav", "--model", model)
    config = tiny_config("wav2vec2", make_corpus(tmp_path / "corpus"))
    (tmp_path / "w2v").mkdir()
    save_model(build_objective(config), config, tmp_path / "w2v")
    assert "trained by wav2vec2" in said(recording, "--model", tmp_path / "w2v")
