"""`speechssl bench`: what is timed adds up, labels are made up where they are read, and peers have our sizes."""

import dataclasses

import pytest
import torch
import yaml
from tiny_run import KINDS, one_sentence, tiny_plain

from speechssl.bench import peers, table
from speechssl.bench.ours import made_up_batch
from speechssl.bench.step import PEERS, Case, count_gflop, measure, waveforms
from speechssl.build import build_objective
from speechssl.cli.bench import parse_lengths
from speechssl.config import Config, parse
from speechssl.errors import UserError
from speechssl.nn.frontend import WaveformConfig, build_feature_encoder


@pytest.fixture
def case(corpus):
    return Case("ours", tiny_plain("wav2vec2", corpus), (0.5, 0.7), steps=2, count_flops=True)


def test_the_parts_are_the_step(case):
    row = measure(case)
    assert row["step"] == pytest.approx(row["forward"] + row["backward"] + row["optimiser"], rel=0.2)
    parts = [row[name] for name in ("convolutions", "context", "heads")]
    assert all(part > 0 for part in parts)
    assert row["step"] == pytest.approx(sum(parts) + row["optimiser"], rel=0.2)
    assert row["peak_gb"] > 0.05
    assert row["data"] > 0
    objective = build_objective(case.resolved())
    assert row["parameters"] == sum(p.numel() for p in objective.parameters())
    longer = measure(dataclasses.replace(case, seconds=(1.0, 1.4), steps=1))
    assert 1.5 < longer["gflop"] / row["gflop"] < 4


def test_convolutions_count_as_what_they_are():
    encoder = build_feature_encoder(WaveformConfig(dims=[64] * 3, kernels=[10, 3, 2], strides=[5, 2, 2], norm="layer"))
    sound, frames = torch.randn(1, 20 * 800), [3200, 1600, 800]
    forward, backward = 0, 0
    for number, (count, kernel, channels) in enumerate(zip(frames, [10, 3, 2], [1, 64, 64], strict=True)):
        product = 2 * count * kernel * channels * 64 / 1e9
        forward, backward = forward + product, backward + (2 if number else 1) * product
    with torch.no_grad():
        assert count_gflop(lambda: encoder(sound)) == pytest.approx(forward, rel=0.05)
    made = count_gflop(lambda: encoder(sound)[0].sum().backward())
    assert made == pytest.approx(forward + backward, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_is_timed(kind, corpus):
    config = table.without_corpus(parse(Config, tiny_plain(kind, corpus), source="test"))
    row = measure(Case("ours", config.to_dict(), (0.9, 0.9), warmup=0, steps=1))
    assert row["context"] > 0
    assert row["convolutions"] > 0, "of objectives that mask the log-mel, too"


@pytest.mark.parametrize("kind", ["ctc", "hubert", "speaker"])
def test_labels_are_made_up(kind, corpus):
    config = table.without_corpus(parse(Config, tiny_plain(kind, corpus), source="test"))
    objective = build_objective(config)
    batch = made_up_batch(Case("ours", config.to_dict(), (0.8, 0.6)), objective)
    assert batch.padded
    output = objective(batch)
    assert output.loss.isfinite()
    assert output.num_targets > 0


def test_the_sound_has_its_lengths(case):
    sound, lengths = waveforms(case)
    assert lengths.tolist() == [8000, 11200]
    assert not sound[0, 8000:].any()
    assert sound[1].std() == pytest.approx(1, abs=0.05)


def test_transformers_has_our_sizes(case, corpus):
    pytest.importorskip("transformers")
    ours = build_objective(case.resolved())
    theirs = peers.transformers(case, "cpu")
    numbers = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs.model)]
    assert numbers[0] == numbers[1]
    assert theirs.run().isfinite()
    with pytest.raises(UserError, match="wav2vec2 and ctc presets"):
        peers.transformers(with_objective(case, "hubert", corpus), "cpu")


def with_objective(case, kind, corpus, **numbers):
    config = table.without_corpus(parse(Config, tiny_plain(kind, corpus), source="test")).to_dict()
    config["encoder"] = case.resolved().to_dict()["encoder"]
    return dataclasses.replace(case, config=config | {"objective": config["objective"] | numbers})


def sizes(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_transformers_fine_tunes_our_sizes(case, corpus):
    pytest.importorskip("transformers")
    case = with_objective(case, "ctc", corpus, freeze_feature_encoder=True, channel_mask_length=4)
    ours, theirs = build_objective(case.resolved()), peers.transformers(case, "cpu")
    assert sizes(ours) == sizes(theirs.model)
    assert not any(p.requires_grad for p in theirs.model.wav2vec2.feature_extractor.parameters())
    loss = theirs.run()
    assert loss.isfinite()
    loss.backward()


def test_torchaudio_pretrains_our_sizes(case, corpus):
    case = with_objective(case, "hubert", corpus)
    ours, theirs = build_objective(case.resolved()), peers.torchaudio_hubert(case, "cpu")
    assert sizes(ours) == sizes(theirs.model)
    loss = theirs.run()
    assert loss.isfinite()
    loss.backward()
    with pytest.raises(UserError, match="torchaudio is compared on hubert"):
        peers.torchaudio_hubert(with_objective(case, "wav2vec2", corpus), "cpu")


@pytest.mark.parametrize("peer", ["ours", "transformers"])
def test_encoding_takes_a_step_and_no_more(case, peer):
    pytest.importorskip("transformers")
    row = measure(
        dataclasses.replace(case, peer=peer, encode=True, seconds=(0.5, 0.9, 0.4), steps=1, count_flops=False)
    )
    assert row["step"] > 0
    assert "backward" not in row


def test_lengths_as_they_are_typed():
    assert parse_lengths("10x3") == (10.0, 10.0, 10.0)
    assert parse_lengths("6.5,8") == (6.5, 8.0)
    assert parse_lengths("") == ()
    for text in ("10x", "a", "-1", "10x2x3"):
        with pytest.raises(UserError, match="write 10x8"):
            parse_lengths(text)


def test_a_batch_is_filled(corpus):
    config = parse(Config, tiny_plain("cpc", corpus), source="test")
    assert table.utterances(config, ()) == (0.9, 0.9)  # 2.5 s at most
    assert table.utterances(config, (3.0,)) == (3.0,)


def test_the_table_compares_with_ours(case):
    rows = {name: dict.fromkeys(table.COLUMNS, 1.0) | {"peak_gb": 2.0, "gflop": 50.0} for name in PEERS}
    rows["transformers"]["step"] = 3.0
    lines = table.markdown(case, rows, 100.0).splitlines()
    assert lines[2].endswith("| 50% | 1.00 x |")
    assert lines[3].endswith("| 3.00 x |")


@pytest.mark.slow
def test_the_verb(command, tmp_path, corpus):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_plain("wav2vec2", corpus)))
    arguments = ["--seconds", "0.5x2", "--steps", 1, "--rounds", 1, "--precision", "fp32", "--threads", 1]
    status, out, err = command("bench", file, *arguments)
    assert status == 0, err
    assert "| ours |" in out
    assert "no toolkit 'espnet'" in one_sentence(command("bench", file, *arguments, "--against", "espnet"))
