"""Checkpoints: exact, whole or not at all, and none is lost: not to damage, not to pruning, not to a full disk."""

import errno
import json
import resource
from pathlib import Path

import pytest
import torch
from parity import shake
from safetensors import SafetensorError
from tiny_run import assert_same_bits, make_corpus, tiny_config, train_here

from speechssl import checkpoint, stored
from speechssl.build import build_objective
from speechssl.checkpoint import CheckpointError, TrainState, load_checkpoint
from speechssl.claim import LOCK
from speechssl.data.tokens import Tokenizer
from speechssl.extract import load_encoder
from speechssl.optim import build_optimizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), (0.5, 0.6, 0.7, 0.8))


def fresh(config, *, step: int = 0, seed: int = 1) -> TrainState:
    """A state; with a step, after that many updates with made-up gradients."""
    objective = build_objective(config.override(train={"seed": seed}))
    state = TrainState(objective, build_optimizer(objective, config.optim), step, epoch=3, batch_in_epoch=2, best=0.25)
    for _ in range(min(step, 1)):
        for parameter in objective.parameters():
            parameter.grad = torch.randn_like(parameter)
        state.optimizer.step()
    return state


@pytest.fixture
def config(corpus):
    return tiny_config("cpc", corpus)


@pytest.fixture
def saved(config, tmp_path):
    """Checkpoints of steps 10, 20 and 30, of which 10 is the best."""
    for step in (10, 20, 30):
        checkpoint.save(fresh(config, step=step, seed=step), config, tmp_path)
    checkpoint.mark_best(tmp_path, 10, "loss", 0.25)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


# --------------------------------------------------------------------------------------------------------- round trip


def test_round_trip(config, tmp_path):
    state = fresh(config, step=7)
    path = checkpoint.save(state, config, tmp_path)
    again = fresh(config, seed=9)
    assert checkpoint.restore(again, tmp_path) == []
    assert (again.step, again.epoch, again.batch_in_epoch, again.best) == (7, 3, 2, 0.25)
    for name, tensor in state.objective.state_dict().items():
        assert torch.equal(tensor, again.objective.state_dict()[name]), name
    for left, right in zip(state.objective.parameters(), again.objective.parameters(), strict=True):
        moments, restored = state.optimizer.state[left], again.optimizer.state[right]
        assert moments.keys() == restored.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(moments[key], restored[key]) for key in moments)
    assert_same_bits(checkpoint.save(again, config, tmp_path / "again"), path)


def test_for_use(corpus, tmp_path):
    config, tokenizer = tiny_config("ctc", corpus), Tokenizer.read(corpus.vocabulary)
    state = fresh(config, step=7)
    path = checkpoint.save(state, config, tmp_path / "checkpoints", tokenizer=tokenizer)
    for place in (path, tmp_path):  # a checkpoint, or the run that holds it
        loaded = load_checkpoint(place)
        assert (loaded.config, loaded.tokenizer, loaded.step) == (config, tokenizer, 7)
        assert not loaded.objective.training
        assert torch.equal(loaded.objective.head.linear.weight, state.objective.head.linear.weight)
        encoder = load_encoder(place)
        for name, tensor in state.objective.encoder.state_dict().items():
            assert torch.equal(tensor, encoder.state_dict()[name])
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        load_checkpoint(tmp_path / "elsewhere")


def test_no_pickles_and_nothing_temporary(corpus, tmp_path):
    train_here(tiny_config("ctc", corpus, train={"updates": 2}), tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != LOCK]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".yaml"}
    for path in files:
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zip, pickle


def test_the_best_is_taken_else_the_newest(saved):
    run = saved.parent / "run"
    run.mkdir()
    saved.rename(run / "checkpoints")
    assert checkpoint.find_checkpoint(run).name == "step-00000010"
    (run / "checkpoints" / "best.json").unlink()
    assert checkpoint.find_checkpoint(run).name == "step-00000030"


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("file", ["objective.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over(saved, config, file, harm):
    victim = saved / "step-00000030" / file
    if harm == "flip" and file == "state.json":
        victim.write_text("{" + victim.read_text())
    elif harm == "flip":
        flip_a_byte(victim)
    elif harm == "cut":
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    else:
        victim.unlink()
    state = fresh(config)
    (sentence,) = checkpoint.restore(state, saved)
    assert "step-00000030" in sentence
    assert "older" in sentence
    assert state.step == 20


def test_a_damaged_checkpoint_never_displaces_a_sound_one(saved, config):
    flip_a_byte(saved / "step-00000030" / "objective.safetensors")
    state = fresh(config)
    checkpoint.restore(state, saved)
    state.step = 25
    checkpoint.save(state, config, saved)
    checkpoint.prune(saved, 1)
    assert names(saved) == ["best.json", "damaged-step-00000030", "step-00000010", "step-00000025"]
    state.step = 30
    checkpoint.save(state, config, saved)  # the step that was damaged is saved again
    assert checkpoint.restore(fresh(config), saved) == []


def test_all_damaged(saved, config):
    for path in saved.glob("step-*"):
        flip_a_byte(path / "objective.safetensors")
    for _ in range(2):  # and it is no better the second time: nothing starts from scratch over them
        with pytest.raises(CheckpointError, match=r"no checkpoint can be read: .*step-00000030.*step-00000010"):
            checkpoint.restore(fresh(config), saved)


def test_a_run_goes_on_from_an_older_checkpoint(corpus, tmp_path, capsys):
    config = tiny_config("cpc", corpus, train={"save_every": 2, "updates": 6})
    whole = train_here(config, tmp_path / "whole")
    train_here(config, tmp_path / "run", stop_after=4)
    flip_a_byte(tmp_path / "run/checkpoints/step-00000004/objective.safetensors")
    capsys.readouterr()
    assert_same_bits(train_here(config, tmp_path / "run"), whole)
    printed = capsys.readouterr().out
    assert "step-00000004: objective.safetensors is damaged (its hash differs); use an older checkpoint." in printed
    assert "resumed at update 2" in printed


def test_half_a_checkpoint_is_no_checkpoint(saved, config):
    (saved / ".step-00000040.part").mkdir()  # what a killed process leaves
    assert checkpoint.list_checkpoints(saved)[0].name == "step-00000030"
    state = fresh(config, step=40)
    checkpoint.save(state, config, saved)
    assert not list(saved.glob(".*"))


# ------------------------------------------------------------------------------------------------------------ pruning


def test_pruning_keeps_the_best_and_the_newest(saved):
    checkpoint.prune(saved, 1)
    assert names(saved) == ["best.json", "step-00000010", "step-00000030"]
    checkpoint.mark_best(saved, 30, "loss", 0.2)
    checkpoint.prune(saved, 1)
    assert names(saved) == ["best.json", "step-00000030"]


def test_pruning_without_a_best(saved):
    (saved / "best.json").unlink()
    checkpoint.prune(saved, 2)
    assert names(saved) == ["step-00000020", "step-00000030"]


def test_a_run_keeps_its_best(corpus, tmp_path):
    numbers = {"updates": 6, "save_every": 1, "valid_every": 2, "keep": 1}
    config = tiny_config("ctc", corpus, data={"valid": str(corpus.manifest)}, train=numbers, optim={"lr": 3.0})
    train_here(config, tmp_path)  # at this rate it only gets worse
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: float(line["loss"]) for line in lines if line["split"] == "valid"}
    assert best["step"] == min(losses, key=losses.__getitem__)
    kept = {path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")}
    assert kept == {f"step-{best['step']:08d}", "step-00000006"}


# ------------------------------------------------------------------------------------------------------ another shape


def test_another_shape(saved, corpus):
    other = tiny_config("cpc", corpus, encoder={"context": {"dim": 24}})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(fresh(other), saved)
    text = str(caught.value)
    assert "step-00000030: does not fit this configuration: " in text
    assert "encoder.context.blocks.0.weight_ih_l0 has shape (48, 16), not (72, 16)" in text
    assert "more" in text
    assert "\n" not in text


def test_initialize_takes_the_encoder_and_what_else_fits(corpus, tmp_path):
    source = tiny_config("wav2vec2", corpus)
    pretrained = fresh(source, step=5, seed=5)
    checkpoint.save(pretrained, source, tmp_path / "checkpoints")
    objective = build_objective(tiny_config("ctc", corpus))
    head = objective.head.linear.weight.clone()
    assert checkpoint.initialize(objective, tmp_path) == ["mask_embedding"]
    for name, tensor in pretrained.objective.encoder.state_dict().items():
        assert torch.equal(objective.encoder.state_dict()[name], tensor), name
    assert torch.equal(objective.mask_embedding, pretrained.objective.mask_embedding)
    assert torch.equal(objective.head.linear.weight, head)

    smaller = build_objective(tiny_config("wav2vec2", corpus, objective={"codebook_size": 4}))
    codebooks = smaller.quantizer.codebooks.clone()
    taken = checkpoint.initialize(smaller, tmp_path)
    assert "prediction.weight" in taken
    assert not [name for name in taken if name.startswith("quantizer.codebooks")]
    assert torch.equal(smaller.quantizer.codebooks, codebooks)


def test_initialize_with_another_encoder(corpus, tmp_path):
    source = tiny_config("wav2vec2", corpus)
    checkpoint.save(fresh(source, step=5), source, tmp_path / "checkpoints")
    deeper = build_objective(tiny_config("ctc", corpus, encoder={"context": {"num_layers": 3}}))
    with pytest.raises(CheckpointError, match=r"its encoder does not fit this configuration: encoder\..* is missing"):
        checkpoint.initialize(deeper, tmp_path)


@pytest.mark.parametrize(
    ("kind", "source", "other"),
    [
        *((kind, kind, {}) for kind in ("data2vec", "byol", "moco")),  # the teacher came along, ...
        *((kind, "wav2vec2", {}) for kind in ("data2vec", "byol", "moco")),  # ... there was none, ...
        *((kind, kind, {"hidden_dim": 12}) for kind in ("byol", "moco")),  # ... or half of it has no place here
    ],
)
def test_a_teacher_that_came_along_stays(corpus, tmp_path, kind, source, other):
    """Any other becomes the copy of a student that has just got another run's weights."""
    config = tiny_config(source, corpus, objective=other)
    pretrained = fresh(config, step=5, seed=5)
    if source == kind:
        shake(pretrained.objective.teacher)
    checkpoint.save(pretrained, config, tmp_path / "checkpoints")
    objective = fresh(tiny_config(kind, corpus), seed=6).objective
    checkpoint.initialize(objective, tmp_path)
    objective.before_step(0)
    student = objective.encoder.context if kind == "data2vec" else objective.student
    expected = pretrained.objective.teacher.module if (source, other) == (kind, {}) else student
    for name, tensor in objective.teacher.module.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


# ---------------------------------------------------------------------------------------------------------- full disk


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["os", "safetensors"])
@pytest.mark.parametrize("file", ["objective", "optimizer"])
def test_a_full_disk_leaves_the_last_good_checkpoint(saved, config, monkeypatch, error, file):
    before = names(saved)
    real = stored.save_file

    def save_file(tensors, path):
        if path.name.startswith(file):
            path.write_bytes(b"half")
            raise error
        real(tensors, path)

    monkeypatch.setattr(stored, "save_file", save_file)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.save(fresh(config, step=40), config, saved)
    text = str(caught.value)
    assert "step-00000040: cannot be saved: " in text
    assert "No space left on device" in text
    assert "the last good checkpoint is intact" in text
    assert "\n" not in text
    assert names(saved) == before
    state = fresh(config)
    assert checkpoint.restore(state, saved) == []
    assert state.step == 30


def test_a_real_refusal_of_the_system(saved, config):
    """The system's limit on the size of a file: every write beyond it fails, as on a full disk."""
    before = names(saved)
    state = fresh(config, step=40)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        with pytest.raises(CheckpointError, match="File too large"):
            checkpoint.save(state, config, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(saved) == before
    assert checkpoint.save(state, config, saved).name == "step-00000040"  # there is room again
