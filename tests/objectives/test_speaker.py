"""Telling speakers apart: pooling, margin, classifier, freezing, and a run from the command line."""

import json
import math

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_batch, tiny_encoder
from tiny_run import make_corpus, one_sentence, speechssl, tiny_config, tiny_plain, train_here

from speechssl.build import build_objective
from speechssl.checkpoint import load_checkpoint
from speechssl.config import load
from speechssl.nn.margin import CosineHead, aam_logits
from speechssl.nn.pooling import EPSILON, AttentivePool, Pooling, mean_pool, statistics_pool
from speechssl.objectives.speaker import Speaker, SpeakerConfig

NAMES = ("A", "B", "C")


def speaker(kind: str = "group", **numbers) -> Speaker:
    torch.manual_seed(3)
    return Speaker(SpeakerConfig(**({"speakers": NAMES, "embedding_dim": 8} | numbers)), tiny_encoder(kind))


# ------------------------------------------------------------------------------------------------------------- pooling


def test_pooling_is_that_of_each_utterance_alone():
    x, lengths = torch.randn(3, 9, 4), torch.tensor([9, 5, 1])
    x[1, 5:], x[2, 1:] = float("inf"), float("nan")  # nobody may look there
    for row, length in enumerate(lengths.tolist()):
        alone = x[row, :length].double()
        mean, deviation = alone.mean(0), alone.var(0, correction=0).clamp(min=EPSILON).sqrt()
        torch.testing.assert_close(mean_pool(x, lengths)[row].double(), mean, rtol=1e-5, atol=1e-6)
        expected = torch.cat((mean, deviation))
        torch.testing.assert_close(statistics_pool(x, lengths)[row].double(), expected, rtol=1e-5, atol=1e-6)
    whole = torch.randn(2, 6, 4)
    torch.testing.assert_close(statistics_pool(whole, None), statistics_pool(whole, torch.tensor([6, 6])))


def test_attentive_pooling_is_the_formula():
    pool, x, lengths = AttentivePool(4, hidden=5), torch.randn(2, 7, 4), torch.tensor([7, 3])
    for row, length in enumerate(lengths.tolist()):
        scores = [pool.score(torch.tanh(pool.inner(x[row, t]))).item() for t in range(length)]
        total = sum(math.exp(e) for e in scores)
        weights = [math.exp(e) / total for e in scores]
        mean = sum(a * x[row, t] for t, a in enumerate(weights))
        square = sum(a * x[row, t] ** 2 for t, a in enumerate(weights))
        expected = torch.cat((mean, (square - mean**2).clamp(min=EPSILON).sqrt()))
        torch.testing.assert_close(pool(x, lengths)[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mean", "statistics", "attentive"])
def test_an_utterance_without_a_frame_is_zero_and_harmless(name):
    x = torch.randn(2, 3, 4, requires_grad=True)
    pooled = Pooling(name, 4)(x, torch.tensor([2, 0]))
    assert pooled.shape == (2, 4 if name == "mean" else 8)
    assert not pooled[1].any()
    pooled.sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()
    assert x.grad[0, :2].any()
    assert not x.grad[0, 2].any()


def test_the_gradient_of_a_constant_is_finite():
    x = torch.ones(1, 5, 3, requires_grad=True)
    statistics_pool(x, None).sum().backward()
    assert x.grad.isfinite().all()


# -------------------------------------------------------------------------------------------------------------- margin


@given(st.floats(-0.999, 0.999), st.floats(0, 1.2), st.floats(1, 60))
def test_aam_is_the_cosine_of_a_wider_angle(cosine, margin, scale):
    cosines = torch.tensor([[cosine, 0.3], [0.1, cosine]], dtype=torch.float64)
    logits = aam_logits(cosines, torch.tensor([0, 1]), margin=margin, scale=scale)
    angle = math.acos(cosine)
    expected = math.cos(angle + margin) if angle + margin < math.pi else cosine - margin * math.sin(margin)
    for row in (0, 1):
        assert logits[row, row].item() == pytest.approx(scale * expected, abs=2e-3 * scale)
        assert logits[row, 1 - row].item() == pytest.approx(scale * (0.3, 0.1)[row])


def test_aam_falls_with_the_angle_and_has_finite_gradients():
    cosine = torch.linspace(-1, 1, 501, requires_grad=True)
    target = aam_logits(cosine[:, None], torch.zeros(501, dtype=torch.long), margin=0.2, scale=30.0)[:, 0]
    assert (target.diff() > 0).all()
    target.sum().backward()
    assert cosine.grad.isfinite().all()


def test_no_margin_is_a_scaled_cosine():
    head = CosineHead(4, 3)
    x = torch.randn(5, 4)
    expected = torch.nn.functional.cosine_similarity(x[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(aam_logits(head(x), torch.tensor([0, 1, 2, 0, 1]), margin=0.0, scale=7.0), 7 * expected)


# ----------------------------------------------------------------------------------------------------------- objective


def test_softmax_loss_by_hand():
    objective = speaker(pooling="mean").eval()
    batch = tiny_batch(2000, 1500, speakers=[2, 0])
    output = objective(batch)
    encoded = objective.encoder(batch.waveforms, batch.lengths)
    loss, right = 0.0, 0
    for row, target in enumerate([2, 0]):
        logits = objective.head(objective.embedding(encoded.hidden[row, : encoded.lengths[row]].mean(0)))
        loss -= logits.log_softmax(-1)[target].item()
        right += int(logits.argmax() == target)
    assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    assert output.num_targets == 2
    assert output.metrics["accuracy"].result() == right / 2
    assert objective.chance() == {"accuracy": pytest.approx(1 / 3), "cross_entropy": pytest.approx(math.log(3))}


def test_aam_loss_by_hand():
    objective = speaker(pooling="statistics", embedding_dim=0, classifier="aam", margin=0.3, scale=9.0).eval()
    batch = tiny_batch(2000, 1500, speakers=[2, 0])
    encoded = objective.encoder(batch.waveforms, batch.lengths)
    loss = 0.0
    for row, target in enumerate([2, 0]):
        frames = encoded.hidden[row, : encoded.lengths[row]]
        vector = torch.cat((frames.mean(0), frames.var(0, correction=0).sqrt()))
        cosines = torch.nn.functional.cosine_similarity(vector, objective.head.weight, dim=-1)
        logits = [9 * math.cos(math.acos(c) + 0.3 * (n == target)) for n, c in enumerate(cosines.tolist())]
        loss += math.log(sum(math.exp(x) for x in logits)) - logits[target]
    assert objective(batch).loss.item() == pytest.approx(loss, rel=1e-4)
    assert objective.embed(batch).shape == (2, 2 * objective.encoder.dim)
    assert "cross_entropy" not in objective.chance()


@pytest.mark.parametrize(("freeze", "learns"), [("encoder", False), ("feature_encoder", True), ("nothing", True)])
def test_what_is_frozen(freeze, learns):
    objective = speaker(freeze=freeze).train()
    objective(tiny_batch(2000, 1500, speakers=[2, 0])).loss.backward()
    moved = {
        name.split(".")[1] for name, p in objective.named_parameters() if p.grad is not None and "encoder." in name
    }
    assert ("context" in moved) == learns
    assert ("feature_encoder" in moved) == (freeze == "nothing")
    assert objective.encoder.training == (freeze != "encoder")
    assert objective.head.weight.grad.any()


def test_at_first_only_the_head_learns():
    objective = speaker(freeze_encoder_updates=2)
    counts = []
    for step in range(3):
        objective.before_step(step)
        counts.append(len(list(objective.frozen())))
    assert counts[0] == counts[1] == len(list(objective.encoder.parameters()))
    assert counts[2] == 0


@pytest.mark.parametrize("kind", ["group", "recurrent"])  # the recurrent context reads latents of other channels
def test_a_sum_of_layers_of_any_encoder(kind):
    objective = speaker(kind, features="sum")
    objective(tiny_batch(2000, 1500, speakers=[2, 0])).loss.backward()
    assert objective.layer_sum.weights.grad is not None


def test_pooled_features_are_normalised_over_utterances():
    objective = speaker(pooled_norm="batch", embedding_dim=0)
    assert objective.couples_ranks
    assert not speaker().couples_ranks
    batch = tiny_batch(2000, 1500, 1800, speakers=[2, 0, 1])
    trained = objective.train().embed(batch)
    torch.testing.assert_close(trained.mean(0), torch.zeros(objective.encoder.dim), atol=1e-5, rtol=0)
    alone = objective.eval().embed(tiny_batch(2000))  # by what training has seen, whoever is beside it
    torch.testing.assert_close(objective.embed(batch)[:1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"speakers": ("A",)}, "two or more"),
        ({"speakers": ("A", "B", "A")}, "twice"),
        ({"margin": 2.0}, "margin"),
    ],
)
def test_bad_numbers(numbers, reason):
    with pytest.raises(ValueError, match=reason):
        SpeakerConfig(**({"speakers": NAMES} | numbers))


@pytest.mark.parametrize("name", ["speaker-softmax", "speaker-aam", "speaker-softmax-tiny", "speaker-aam-tiny"])
def test_presets_are_complete(name):
    config = load(name)
    tiny = load("wav2vec2-tiny-mel").encoder
    objective = build_objective(config.override(encoder=tiny, objective={"speakers": ["A", "B"]}))
    assert isinstance(objective, Speaker)
    assert config.about


# ----------------------------------------------------------------------------------------------------- from end to end


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speaker")
    corpus = make_corpus(folder / "train", (0.5, 0.6, 0.7, 0.8))
    train_here(tiny_config("wav2vec2", corpus, train={"updates": 1}), folder / "run")
    return folder, corpus


def test_finetune_without_a_vocabulary(pretrained, capsys, monkeypatch, tmp_path):
    folder, corpus = pretrained
    # validation has one known speaker, whom its own numbering would call the first, and a stranger
    valid = [u for u in corpus.utterances if u.speaker == "speaker1"]
    lines = [{"id": f"{u.id}v", "audio": u.audio, "num_samples": u.num_samples, "sample_rate": 16000} for u in valid]
    lines = [lines[0] | {"speaker": "speaker1"}, lines[1] | {"speaker": "stranger"}]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = tiny_plain("speaker", corpus, train={"updates": 2, "valid_every": 1})
    del plain["objective"]["speakers"]
    preset = tmp_path / "speaker.yaml"
    preset.write_text(yaml.safe_dump(plain))
    run = tmp_path / "run"
    arguments = ["finetune", "-p", preset, "--train", corpus.manifest, "--init", folder / "run", "-o", run]
    status, out, err = speechssl(capsys, monkeypatch, *arguments, "--valid", tmp_path / "valid.jsonl")
    assert status == 0, err
    assert "1 utterances have a speaker that training does not and do not validate: train-3v" in out
    assert "encoder from" in out
    assert "speechssl speaker identify" in out
    checkpoint = load_checkpoint(run)
    assert checkpoint.config.objective["speakers"] == ["speaker0", "speaker1"]
    assert checkpoint.tokenizer is None


def test_genres_by_folder_instead_of_speakers(pretrained, capsys, monkeypatch, tmp_path):
    """A tree of class folders, through manifest, fine-tuning, identification and the probe."""
    folder, corpus = pretrained
    for number, utterance in enumerate(corpus.utterances):
        path = tmp_path / "genres" / ("jazz" if number % 3 else "polka") / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(utterance.audio)

    def answer(*arguments):
        status, out, err = speechssl(capsys, monkeypatch, *arguments)
        assert status == 0, err
        return out

    manifest, run = tmp_path / "genres.jsonl", tmp_path / "run"
    answer("manifest", "folder", tmp_path / "genres", "-o", manifest, "--label-level", 1, "--jobs", 1)
    plain = tiny_plain("speaker", corpus, train={"updates": 1})
    del plain["objective"]["speakers"]
    preset = tmp_path / "genre.yaml"
    preset.write_text(yaml.safe_dump(plain))
    arguments = ["finetune", "-p", preset, "--train", manifest, "--init", folder / "run"]
    assert "'speaker'; choose speaker, text, folder:1, label" in one_sentence(
        speechssl(capsys, monkeypatch, *arguments, "-o", tmp_path / "x")
    )
    answer(*arguments, "-o", run, "data.label=label")
    assert load_checkpoint(run).config.objective["speakers"] == ["jazz", "polka"]
    answer("speaker", "identify", run, "--test", manifest, "-o", tmp_path / "answers")
    rows = (tmp_path / "answers" / "answers.tsv").read_text().splitlines()
    assert {row.split("\t")[1] for row in rows[1:]} == {"jazz", "polka"}


def test_labels_that_do_not_fit_the_preset(pretrained, capsys, monkeypatch, tmp_path):
    folder, corpus = pretrained

    def sentence(preset, *more):
        arguments = [
            "finetune",
            "-p",
            preset,
            "--train",
            corpus.manifest,
            "--init",
            folder / "run",
            "-o",
            tmp_path / "x",
        ]
        return one_sentence(speechssl(capsys, monkeypatch, *arguments, *more))

    assert "give --vocabulary" in sentence("ctc-tiny")
    assert "leave out --vocabulary" in sentence("speaker-aam-tiny", "--vocabulary", corpus.vocabulary)
    strange = sentence("speaker-aam-tiny", "objective.speakers=[speaker0, B]")
    assert "speaker speaker1 is not among the 2 that the model tells apart" in strange
