"""The loop: updates that are what the mathematics says, however they are cut into micro-batches; what it reports."""

import itertools

import numpy as np
import pytest
import torch
from tiny_run import (
    RATE,
    assert_same_bits,
    make_corpus,
    metrics,
    tensors,
    tiny_config,
    train_here,
)
from torch.nn.utils import clip_grad_norm_

from speechssl.batch import Batch
from speechssl.build import build_objective, seed_everything
from speechssl.config import ConfigError
from speechssl.data.batching import stream
from speechssl.data.dataset import SpeechDataset
from speechssl.data.manifest import Manifest
from speechssl.data.tokens import Tokenizer
from speechssl.objectives import Metric
from speechssl.optim import build_optimizer, learning_rate, set_learning_rate
from speechssl.report import Tally
from speechssl.system import alone_by_mistake

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
NO_DROPOUT = {"dropout": 0.0, "context": {"dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0}}
NO_MASKS = {"time_mask_start_prob": 0.0, "channel_mask_start_prob": 0.0, "freeze_encoder_updates": 0}
STEADY = {"optim": {"eps": 1e-3}}  # Adam blows up the last bits of gradients that are nearly zero


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Eight utterances, no two of which fit into a micro-batch of 0.9 s."""
    return make_corpus(tmp_path_factory.mktemp("eight"), np.linspace(0.5, 0.9, 8).round(2).tolist())


# ------------------------------------------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize("kind", ["cpc", "ctc", "wav2vec2"])
def test_an_update_is_one_mean_over_all_targets(kind, eight, tmp_path):
    """Eight micro-batches with unequal numbers of targets, against one backward pass by hand."""
    data = {"max_seconds": 0.9, "seconds_per_batch": 0.9}
    config = tiny_config(kind, eight, data=data, train={"updates": 2, "seconds_per_update": 7.2}, **STEADY)
    trained = tensors(train_here(config, tmp_path))

    tokenizer = Tokenizer.read(eight.vocabulary) if kind == "ctc" else None
    data = SpeechDataset(Manifest.read(eight.manifest), config.data, seed=config.train.seed, tokenizer=tokenizer)
    objective = build_objective(config)
    optimizer = build_optimizer(objective, config.optim)
    places = stream(data.lengths, data.budget, seed=config.train.seed, crop=config.data.crop)
    losses = []
    for step in range(2):
        objective.train()
        objective.before_step(step)
        outputs = []
        for number, (epoch, _, indices) in enumerate(itertools.islice(places, 8)):
            assert len(indices) == 1
            batch = data[epoch, indices].batch
            seed_everything(config.train.seed, step, number)
            outputs.append(objective(batch))
        assert len({float(output.num_targets) for output in outputs}) > 2
        loss = sum(output.loss for output in outputs) / sum(output.num_targets for output in outputs)
        losses.append(loss.item())
        loss.backward()
        for parameter in objective.frozen():
            parameter.grad = None
        norm = clip_grad_norm_(objective.parameters(), config.optim.clip)
        set_learning_rate(optimizer, learning_rate(config.optim, step, 2))
        optimizer.step()
        optimizer.zero_grad()
    for name, expected in objective.state_dict().items():
        torch.testing.assert_close(trained[name], expected, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")
    lines = metrics(tmp_path)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert lines[-1]["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)


def test_one_times_eight_is_eight_times_one(eight, tmp_path):
    """CTC on whole utterances: all in one padded micro-batch, or each in its own."""
    runs = []
    for seconds in (7.2, 0.9):
        config = tiny_config(
            "ctc",
            eight,
            data={"max_seconds": 0.9, "seconds_per_batch": seconds},
            encoder=NO_DROPOUT,
            objective=NO_MASKS,
            optim={"eps": 1e-2, "lr": 5e-3},
            train={"updates": 3, "seconds_per_update": 7.2, "save_every": 1, "keep": 3},
        )
        runs.append(tmp_path / f"{seconds}")
        train_here(config, runs[-1])
    left, right = (tensors(run / "checkpoints" / "step-00000001") for run in runs)
    for name in left:
        torch.testing.assert_close(left[name], right[name], **CLOSE, msg=lambda m, name=name: f"{name}: {m}")
    left, right = ([line["loss"] for line in metrics(run)] for run in runs)
    assert left == pytest.approx(right, rel=1e-4)
    assert left[0] != pytest.approx(left[-1], rel=1e-2)  # it did learn


def joint_and_alone(objective, lengths, arguments):
    """Gradients and targets of one padded batch, and of the sum over its utterances one by one.

    `arguments(frames, b)` are forward's for utterance b alone, or for the whole batch where b is None.
    """
    generator = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(length, generator=generator) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    ids = tuple(map(str, range(len(lengths))))
    results = []
    for batches in (
        [(None, Batch(ids, padded, torch.tensor(lengths)))],
        [(b, Batch((ids[b],), w[None], torch.tensor([len(w)]), padded=False)) for b, w in enumerate(waveforms)],
    ):
        objective.zero_grad()
        outputs = [objective(batch, **arguments(b)) for b, batch in batches]
        sum(output.loss for output in outputs).backward()
        gradients = {name: p.grad.clone() for name, p in objective.named_parameters()}
        results.append((gradients, float(sum(output.num_targets for output in outputs))))
    return results


def assert_equal_gradients(results) -> None:
    (joint, joint_targets), (alone, alone_targets) = results
    assert joint_targets == alone_targets > 0
    largest = max(float(gradient.abs().max()) for gradient in joint.values())
    assert largest > 1e-2
    for name in joint:
        torch.testing.assert_close(joint[name], alone[name], rtol=1e-4, atol=1e-6 * largest, msg=name)


def test_cpc_of_a_batch_is_the_sum_over_its_utterances(corpus):
    """Given negatives; unequal lengths."""
    objective = build_objective(tiny_config("cpc", corpus, encoder={"feature_encoder": {"norm": "group"}}))
    lengths, steps, count = [1800, 2500, 1203], 3, 5
    frames = [objective.encoder.frame_lengths(length) for length in lengths]
    longest = max(frames)
    drawn = [torch.randint(0, f, (steps, longest - steps, count)) for f in frames]

    def arguments(b):
        if b is None:
            return {"negatives": torch.stack([drawn[i] + i * longest for i in range(len(frames))])}
        return {"negatives": drawn[b][None, :, : frames[b] - steps]}

    assert_equal_gradients(joint_and_alone(objective, lengths, arguments))


def test_wav2vec2_of_a_batch_is_the_sum_over_its_utterances(corpus):
    """Given masks, negatives and noise. Diversity and penalty are means over a micro-batch, so they are off."""
    numbers = {"diversity_weight": 0.0, "feature_penalty": 0.0, "quantizer_dropout": 0.0}
    objective = build_objective(tiny_config("wav2vec2", corpus, encoder=NO_DROPOUT, objective=numbers))
    lengths, count = [1800, 2500, 1203], 5
    frames = [objective.encoder.frame_lengths(length) for length in lengths]
    mask = torch.zeros(3, max(frames), dtype=torch.bool)
    for row, f in zip(mask, frames, strict=True):
        row[:f] = torch.rand(f) < 0.5
    masked = mask.sum(1).tolist()
    drawn = [torch.randint(0, m, (max(masked), count)) for m in masked]
    noise = -torch.empty(sum(masked), 2, 8).exponential_().log()
    parts = noise.split(masked)

    def arguments(b):
        if b is None:
            return {"mask": mask, "negatives": torch.stack(drawn), "noise": noise}
        return {"mask": mask[b : b + 1, : frames[b]], "negatives": drawn[b][None, : masked[b]], "noise": parts[b]}

    assert_equal_gradients(joint_and_alone(objective, lengths, arguments))


def test_the_first_updates_move_only_the_head(corpus, tmp_path):
    config = tiny_config("ctc", corpus, objective={"freeze_encoder_updates": 2}, train={"updates": 3, "save_every": 2})
    train_here(config, tmp_path)
    start = build_objective(config).state_dict()
    second, third = (tensors(tmp_path / "checkpoints" / f"step-{step:08d}") for step in (2, 3))
    for name, tensor in start.items():
        is_encoder = name.startswith("encoder.")
        assert torch.equal(tensor, second[name]) == is_encoder, name
    moved = [name for name in start if name.startswith("encoder.") and not torch.equal(second[name], third[name])]
    assert len(moved) == len([name for name in start if name.startswith("encoder.")])


# ---------------------------------------------------------------------------------------------------------- validation


def test_validation_is_the_same_each_time_and_changes_nothing(corpus, valid, tmp_path):
    """At a rate too small to matter, masks and crops of validation must be all that could differ; they do not."""
    numbers = {"optim": {"lr": 1e-12}, "train": {"updates": 4, "valid_every": 2}}
    with_valid = tiny_config("wav2vec2", corpus, data={"valid": valid}, objective={"gumbel_decay": 1.0}, **numbers)
    without = tiny_config("wav2vec2", corpus, objective={"gumbel_decay": 1.0}, **numbers)
    first = train_here(with_valid, tmp_path / "with")
    assert_same_bits(first, train_here(without, tmp_path / "without"))
    lines = [line for line in metrics(tmp_path / "with") if line["split"] == "valid"]
    assert [line.pop("step") for line in lines] == [2, 4]
    assert lines[0] == lines[1]
    trained = [line for line in metrics(tmp_path / "with") if line["split"] == "train"]
    assert trained == metrics(tmp_path / "without")


def test_a_loss_that_is_not_a_number_is_never_the_best(corpus, valid, tmp_path, monkeypatch):
    results = iter([float("nan"), 2.0, float("nan"), 1.0])
    real = Tally.reduce

    def reduce(self, accelerator):
        numbers = real(self, accelerator)
        return numbers | {"loss": next(results)} if "ter" in numbers else numbers

    monkeypatch.setattr(Tally, "reduce", reduce)
    config = tiny_config("ctc", corpus, data={"valid": valid}, train={"updates": 4, "valid_every": 1})
    train_here(config, tmp_path)
    assert '"step": 4, "metric": "loss", "value": 1.0' in (tmp_path / "checkpoints" / "best.json").read_text()


# ----------------------------------------------------------------------------------------------------------- reporting


def test_a_tally_adds_before_it_divides():
    tally = Tally()
    tally.add({"loss": Metric.mean(6.0, 2), "codes": Metric(torch.tensor([[4.0, 0.0]]), "perplexity")})
    tally.add({"loss": Metric.mean(1.0, 8), "codes": Metric(torch.tensor([[0.0, 4.0]]), "perplexity")})
    tally.add({"loss": Metric.mean(1e9, 1), "codes": Metric(torch.tensor([[9.0, 0.0]]), "perplexity")}, weight=0.0)
    one_process = type("Accelerator", (), {"device": "cpu", "reduce": staticmethod(lambda x, reduction: x)})
    assert tally.reduce(one_process) == pytest.approx({"loss": 0.7, "codes": 2.0})
    assert tally.reduce(one_process) == {}


def test_the_log_holds_what_a_person_asks_for(corpus, tmp_path, capsys):
    config = tiny_config("cpc", corpus, train={"updates": 4, "log_every": 2})
    train_here(config, tmp_path)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 4]
    assert {"split", "loss", "infonce", "accuracy", "information/1", "gradient_norm", "lr", "hours"} <= lines[0].keys()
    assert lines[0]["lr"] == pytest.approx(learning_rate(config.optim, 1, 4))
    data = SpeechDataset(Manifest.read(corpus.manifest), config.data)
    places = itertools.islice(stream(data.lengths, data.budget, seed=config.train.seed, crop=True), 4 * 3)
    heard = sum(len(indices) * data.lengths[indices].min() for _, _, indices in places)
    assert sum(line["hours"] for line in lines) == pytest.approx(heard / RATE / 3600, rel=1e-4)
    printed = capsys.readouterr().out
    assert "cpc: from scratch" in printed
    assert "data: 10 utterances" in printed
    assert "3 micro-batches of 2.5 s per update" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("train 4/4 | ")]
    assert "(chance 1.79)" in line
    assert "left 0:00:00" in line
    assert "information" not in line


def test_a_preset_on_the_convolutions_of_another_run_asks_for_it(corpus, tmp_path):
    config = tiny_config("wav2vec2", corpus, init_part="feature_encoder")
    with pytest.raises(ConfigError, match="give --init RUN"):
        train_here(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_process_where_several_were_wanted_is_said(monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process that it starts."""
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert alone_by_mistake(1) == ""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert "this one is alone, though accelerate was asked for several" in alone_by_mistake(1)
    assert alone_by_mistake(2) == ""
    monkeypatch.setenv("WORLD_SIZE", "1")  # a launcher that says how many there are means it
    assert alone_by_mistake(1) == ""
