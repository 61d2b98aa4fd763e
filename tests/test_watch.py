"""Watchdogs: updates that are not finite are skipped by all, collapse is named in time, and a hang says what it is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_run import (
    CPC_ENCODER,
    ENCODER,
    RATE,
    assert_same_bits,
    make_corpus,
    metrics,
    speech,
    talkative,
    tensors,
    tiny_config,
    train_here,
)

from speechssl import checkpoint
from speechssl.config import TrainConfig
from speechssl.data.manifest import Manifest, Utterance
from speechssl.replay import replay_update
from speechssl.watch import (
    CollapseError,
    Counts,
    Gradients,
    HangError,
    NotFiniteError,
    StallError,
    clear_errors,
    too_bad,
)

ONE = {"seconds_per_update": 0.9}  # one micro-batch of one utterance


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """Five utterances; the samples of one are finite, and so large that no encoder's output is."""
    folder = tmp_path_factory.mktemp("loud")
    corpus = make_corpus(folder, (0.6, 0.65, 0.7, 0.75, 0.8))
    samples = speech(0.85)
    soundfile.write(folder / "loud.wav", samples / np.abs(samples).max() * np.float32(3.4e38), RATE, subtype="FLOAT")
    utterances = [*corpus.utterances, Utterance("loud", str(folder / "loud.wav"), round(0.85 * RATE), RATE, text="one")]
    Manifest.of(utterances).write(folder / "loud.jsonl")
    return folder / "loud.jsonl"


def alone(kind: str, corpus, manifest=None, **parts):
    """A run whose updates hold one utterance each."""
    data = {"max_seconds": 0.9, "seconds_per_batch": 0.9, "train": str(manifest or corpus.manifest)}
    return tiny_config(kind, corpus, **{**parts, "data": data, "train": ONE | parts.get("train", {})})


def incidents(folder: Path) -> list[dict]:
    path = folder / "incidents.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---------------------------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("kind", ["cpc", "wav2vec2", "ctc", "moco"])
def test_an_update_that_is_not_finite_changes_nothing_but_the_step(corpus, loud, tmp_path, kind):
    """A teacher goes on averaging the student, which has not moved."""
    parts = {"objective": {"freeze_encoder_updates": 0}} if kind == "ctc" else {}
    train = {"updates": 8, "save_every": 1, "keep": 9}
    with talkative():  # gradients large enough to overflow in CTC, too
        train_here(alone(kind, corpus, loud, train=train, **parts), tmp_path)
    lines = metrics(tmp_path)
    bad = [line["step"] for line in lines if line["skipped"]]
    assert 1 <= len(bad) <= 2  # each utterance comes once or twice in eight updates
    for line in lines:
        assert (line["step"] in bad) == (line["gradient_norm"] in ("nan", "inf"))  # some losses of it are finite
        assert line["step"] in bad or line["loss"] != "nan"
    folder = tmp_path / "checkpoints"
    for step in bad:
        after = tensors(folder / f"step-{step:08d}")
        assert all(tensor.isfinite().all() for tensor in after.values())
        before = tensors(folder / f"step-{step - 1:08d}")
        assert [k for k in after if not k.startswith("teacher.") and not after[k].equal(before[k])] == []
    found = incidents(tmp_path)
    assert [(record["step"], record["kind"]) for record in found] == [(step, "not finite") for step in bad]
    assert all([batch["ids"] for batch in record["micro_batches"]] == [["loud"]] for record in found)


def test_the_data_goes_on_as_if_nothing_had_happened(corpus, loud, tmp_path, monkeypatch):
    """Whoever is skipped, every update sees the batch that it would have seen: a function of the step."""
    ids = {}
    for manifest in (loud, corpus.manifest):
        seen, forward = [], torch.nn.Module.__call__

        def call(self, *arguments, seen=seen, forward=forward, **named):
            if arguments and hasattr(arguments[0], "ids"):
                seen.append(arguments[0].ids)
            return forward(self, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Module, "__call__", call)
            folder = tmp_path / Path(manifest).stem
            for stop in (3, None):
                train_here(alone("cpc", corpus, manifest, train={"updates": 8}), folder, stop_after=stop)
        ids[manifest] = seen
    assert [len(seen) for seen in ids.values()] == [8, 8]
    assert len({name for (name,) in ids[loud][:6]}) == 6  # one epoch, whatever was skipped in it


def test_resumes_are_exact_whatever_was_skipped(corpus, loud, tmp_path):
    config = alone("moco", corpus, loud, train={"updates": 10})
    whole = train_here(config, tmp_path / "whole")
    for stop in (2, 3, 5, 7, None):
        last = train_here(config, tmp_path / "pieces", stop_after=stop)
    assert_same_bits(last, whole)
    assert str(metrics(tmp_path / "pieces")) == str(metrics(tmp_path / "whole"))
    assert incidents(tmp_path / "pieces") == incidents(tmp_path / "whole")


def test_too_many_in_a_row_stop_the_run_and_replay_says_where(corpus, loud, tmp_path, capsys):
    """Two good updates, then only the loud utterance."""
    config = alone("cpc", corpus, loud, train={"updates": 20, "max_skipped": 3, "save_every": 2})
    train_here(config, tmp_path, stop_after=2)
    good = Path(loud).read_bytes()
    only = [line for line in good.decode().splitlines() if '"loud"' in line]
    try:
        loud.write_text("\n".join(only) + "\n")
        with pytest.raises(NotFiniteError, match=r"not finite for 3 updates in a row.*speechssl replay"):
            train_here(config, tmp_path)
        steps = [path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
        assert steps == ["step-00000005", "step-00000004"]
        assert [record["step"] for record in incidents(tmp_path)][-3:] == [3, 4, 5]
        sentences = list(replay_update(tmp_path))
        assert sentences[0] == "update 5, not finite, with the weights of step-00000005"
        assert sentences[1].startswith("micro-batch 0 (loud): the first value that is not finite comes out of ")
        assert "encoder.feature_encoder." in sentences[1]
        assert "(its inputs are finite)" in sentences[1]
        with pytest.raises(NotFiniteError, match="4 updates in a row"):  # one more try, and no better
            train_here(config, tmp_path)
    finally:
        loud.write_bytes(good)
    train_here(config, tmp_path)  # the utterances are back: it goes on
    assert metrics(tmp_path)[-1]["step"] == 20


@pytest.mark.parametrize("kind", ["wav2vec2", "cpc", "ctc", "data2vec", "hubert", "best_rq", "moco"])
def test_replay_of_a_sound_update_finds_nothing(corpus, tmp_path, kind):
    """No module gives infinities in its normal work, so what `replay` names is the culprit."""
    from tiny_run import KINDS

    if kind not in KINDS:
        pytest.skip("not here yet")
    train_here(tiny_config(kind, corpus, train={"updates": 1}), tmp_path)
    batch = {"number": 0, "epoch": 0, "batch": 0, "ids": ["train-1", "train-2"]}
    record = {"step": 2, "kind": "gradient spike", "seed": 1, "micro_batches": [batch]}
    (tmp_path / "incidents.jsonl").write_text(json.dumps(record) + "\n")
    assert list(replay_update(tmp_path))[1].startswith("micro-batch 0 (train-1, train-2): finite; loss ")


# -------------------------------------------------------------------------------------------------------------- spikes


class Recorder:
    folder = Path("run")

    def __init__(self):
        self.incidents = []

    def incident(self, kind, step, sentence, **facts):
        self.incidents.append((kind, step, sentence))


def told(norms, **numbers) -> tuple[list, Gradients]:
    report, feed = Recorder(), type("Feed", (), {"data": type("Data", (), {"utterances": []})})
    watch = Gradients(TrainConfig(**numbers), Counts(), feed, report)
    for step, norm in enumerate(norms):
        norm = torch.tensor(float(norm))
        watch.note(step, norm.isfinite(), norm, [])
    watch.settle()
    return report.incidents, watch


def test_spikes_are_told_from_noise():
    noise = np.random.default_rng(0).uniform(0.5, 2.0, 200)
    assert told(noise)[0] == []
    noise[150] = 40.0
    (found,), watch = told(noise)
    assert found[:2] == ("gradient spike", 151)
    assert "gradient norm 40" in found[2]
    assert watch.numbers() == {"skipped": 0, "spikes": 1}
    assert watch.numbers() == {"skipped": 0, "spikes": 0}
    assert len(watch.counts.norms) == 100
    assert told([1.0] * 5 + [1e6])[0] == []  # too few to say what is usual


def test_only_a_whole_row_is_stuck():
    bad = float("nan")
    assert not told([1, bad, bad, 1, bad, bad, 1], max_skipped=3)[1].stuck
    assert told([1, bad, bad, bad], max_skipped=3)[1].stuck
    assert told([bad], max_skipped=1)[1].stuck


# ------------------------------------------------------------------------------------------------------------ collapse

LAYER_NORM = {"feature_encoder": ENCODER["feature_encoder"] | {"bias": True, "norm": "layer"}}
FADING = {"optim": {"weight_decay": 900.0}}  # every matrix goes to zero; only biases stay
COLLAPSES = {
    "codes": ("wav2vec2", {"objective": {"diversity_weight": -20.0}, "optim": {"lr": 0.03}}, "the same code"),
    "latents": ("wav2vec2", {"encoder": LAYER_NORM, **FADING}, "the same vector in every frame"),
    "cpc": ("cpc", {"encoder": CPC_ENCODER, **FADING}, "the same vector in every frame"),
    "teacher": ("data2vec", {"objective": {"decay_start": 0.1, "decay_end": 0.1}, **FADING}, "teacher has collapsed"),
    "blank": (
        "ctc",
        {"objective": {"freeze_encoder_updates": 0}, "optim": {"lr": 0.02, "weight_decay": 40.0}},
        "blank collapse",
    ),
}


@pytest.mark.parametrize("name", COLLAPSES)
def test_collapse_is_named_in_time(corpus, tmp_path, name, capsys):
    """Driven into it on purpose; named when it has lasted for 5 updates, counted from the first that looks so."""
    kind, parts, words = COLLAPSES[name]
    numbers = {"updates": 50, "collapse_patience": 5, "seconds_per_update": 2.5, "save_every": 100}
    config = tiny_config(kind, corpus, **parts, train=numbers)
    train_here(config, tmp_path)
    (found,) = [record for record in incidents(tmp_path) if record["kind"] == "collapse"]
    assert words in found["sentence"]
    assert found["sentence"] in capsys.readouterr().out
    objective = checkpoint.load_checkpoint(tmp_path).objective
    looks = [bool(objective.diagnose({k: float(v) for k, v in x.items() if k != "split"})) for x in metrics(tmp_path)]
    first = next(step for step in range(1, 51) if all(looks[step - 1 : step + 4]))
    assert found["step"] == first + 4
    assert sum(looks) > 6  # it stays so, and is not named again


@pytest.mark.parametrize("kind", ["wav2vec2", "cpc", "data2vec"])
def test_a_healthy_run_is_never_named(corpus, tmp_path, kind):
    """Not even at the start, where the accuracy is at chance, and not with the least patience."""
    train_here(tiny_config(kind, corpus, train={"updates": 30, "collapse_patience": 1, "valid_every": 99}), tmp_path)
    lines = metrics(tmp_path)
    assert kind == "data2vec" or lines[0]["accuracy"] == pytest.approx(1 / 6, abs=0.06)
    assert incidents(tmp_path) == []


def test_collapse_may_stop_a_run_or_be_ignored(corpus, tmp_path):
    kind, parts, _ = COLLAPSES["cpc"]
    numbers = {"updates": 20, "collapse_patience": 5, "seconds_per_update": 2.5, "on_collapse": "stop", "save_every": 4}
    config = tiny_config(kind, corpus, **parts, train=numbers)
    with pytest.raises(CollapseError, match=r"collapsed for 5 updates: .*\. Then start again in another folder"):
        train_here(config, tmp_path)
    stopped = metrics(tmp_path)[-1]["step"]
    assert stopped < 20
    with pytest.raises(CollapseError, match=rf"update {stopped}: "):  # counted on from the checkpoint
        train_here(config, tmp_path)
    train_here(config.override(train={"on_collapse": "ignore"}), tmp_path)
    assert metrics(tmp_path)[-1]["step"] == 20


def test_patience_is_in_updates_however_seldom_a_line_is_written(corpus, tmp_path):
    kind, parts, _ = COLLAPSES["cpc"]
    numbers = {"updates": 40, "collapse_patience": 15, "seconds_per_update": 2.5, "log_every": 6, "save_every": 100}
    train_here(tiny_config(kind, corpus, **parts, train=numbers), tmp_path)
    (found,) = incidents(tmp_path)
    assert "collapsed for 18 updates" in found["sentence"]


# --------------------------------------------------------------------------------------------------- audio, and stalls


def test_a_share_needs_enough_to_be_one():
    config = tiny_data = type("Data", (), {"max_bad_share": 0.1})
    assert too_bad(Counts(asked=20, unread=10), config, Path("run")) is None
    assert too_bad(Counts(asked=1000, unread=100), tiny_data, Path("run")) is None
    sentence = str(too_bad(Counts(asked=1000, unread=101), config, Path("run")))
    assert "101 of 1000 utterances" in sentence
    assert "left_out.jsonl" in sentence


def test_a_reader_that_stalls(corpus, tmp_path):
    """A pipe that nobody writes to: reading it never ends, as on a network disk that is gone."""
    pipe = tmp_path / "hangs.flac"
    os.mkfifo(pipe)
    manifest = tmp_path / "train.jsonl"
    Manifest.of([Utterance("hangs", str(pipe), RATE // 2, RATE)]).write(manifest)
    config = tiny_config(
        "cpc", corpus, data={"train": str(manifest), "workers": 1}, train={"updates": 3, "stall_seconds": 1.0}
    )
    with pytest.raises(StallError, match=r"no batch for 1 s \(train.stall_seconds\) while reading hangs; ") as caught:
        train_here(config, tmp_path / "run")
    assert caught.value.status == 75


@pytest.mark.parametrize(
    ("library_says", "words"),
    [
        ("[gloo/transport] Timed out waiting 3000ms for recv operation to complete", "has not answered for 3 s"),
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4)", "has not answered for 3 s"),
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711", "another one has ended"),
    ],
)
def test_what_another_process_did_is_said(library_says, words):
    """tools/faults.py stops and kills one for real; these are what gloo and NCCL then say."""
    feed = type("Feed", (), {"rank": 0, "world": 2})
    with (
        pytest.raises(HangError, match=rf"process 0 of 2 cannot go on: .*{words}") as caught,
        clear_errors(feed, TrainConfig(rank_seconds=3.0)),
    ):
        raise RuntimeError(library_says)
    assert caught.value.status == 75
    with pytest.raises(RuntimeError, match="shape"), clear_errors(feed, TrainConfig()):
        raise RuntimeError("the shape of the mask is wrong")  # a mistake of ours keeps its stack trace
