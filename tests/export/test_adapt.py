"""Adapting a released model: the first loss is that of transformers, and every command of docs/adapt.md works."""

import json
import shlex
import shutil

import pytest
import soundfile
import torch
from parity import shake
from random_models import noise, their_model
from tiny_run import ROOT, make_corpus, one_sentence, speechssl

from speechssl.batch import Batch
from speechssl.build import build_objective
from speechssl.checkpoint import initialize, load_checkpoint
from speechssl.config import load
from speechssl.export.imports import import_weights
from speechssl.nn.masking import span_mask
from speechssl.nn.negatives import sample_negatives

transformers = pytest.importorskip("transformers")

G, V, K = 2, 3, 7
HEADS = {"num_codevector_groups": G, "num_codevectors_per_group": V, "codevector_dim": 12, "proj_codevector_dim": 10}


@pytest.mark.parametrize(
    ("size", "lengths"), [("base", (8000, 8000)), ("large", (8000, 8000)), ("large", (8000, 5000, 3600))]
)
def test_the_first_loss_is_that_of_transformers(tmp_path, monkeypatch, size, lengths):
    """Same masks, negatives and noise, as `pretrain --init` starts."""
    theirs = their_model("wav2vec2", size, "ForPreTraining", **HEADS, num_negatives=K).train()
    theirs.save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    # transformers knows no feature penalty; it is a number of the run, not of the weights.
    config = load(tmp_path / "ours" / "config.yaml", ["objective.feature_penalty=0"])
    ours = build_objective(config).train()
    shake(ours)  # so that only what is taken can be right
    initialize(ours, tmp_path / "ours")
    ours.before_step(0)
    theirs.set_gumbel_temperature(ours.quantizer.temperature)

    waveforms, present = noise(*lengths)
    frames = ours.encoder.frame_lengths(present.sum(1))
    rows, most = len(lengths), int(frames.max())
    mask = span_mask(frames, most, start_prob=0.2, span=3, min_spans=2)
    counts = mask.sum(1)
    places = sample_negatives(counts[:, None], torch.arange(int(counts.max())).expand(rows, -1), K)
    flat = torch.zeros(rows, most, K, dtype=torch.long)  # theirs are places among all frames of the batch
    for i in range(rows):
        where = mask[i].nonzero().squeeze(1)
        flat[i, where] = i * most + where[places[i, : len(where)]]
    gumbel = -torch.empty(rows, most, G, V).exponential_().log()

    def gumbel_softmax(logits, tau, hard):
        soft = ((logits + gumbel.reshape(logits.shape)) / tau).softmax(-1)
        return torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", gumbel_softmax)
    expected = theirs(
        waveforms.clone(),
        attention_mask=None if present.all() else present.long(),
        mask_time_indices=mask,
        sampled_negative_indices=flat,
    )
    batch = Batch(ids=("",) * rows, waveforms=waveforms, lengths=present.sum(1), padded=not bool(present.all()))
    output = ours(batch, mask=mask, negatives=places, noise=gumbel[mask])
    assert output.num_targets == mask.sum()
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


# ---------------------------------------------------------------------------------------------------- the walk-through

TINY = ["train.updates=2", "train.seconds_per_update=4", "train.precision=fp32", "train.valid_every=1"]
TINY += ["data.seconds_per_batch=2", "data.max_seconds=1.5", "data.min_seconds=0.3", "data.workers=0"]


def commands() -> list[list[str]]:
    """Of docs/adapt.md, in order."""
    lines = (ROOT / "docs" / "adapt.md").read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("    speechssl ")]


def small(command: list[str]) -> list[str]:
    """The same command on a scale that a test can run."""
    if command[0] not in ("pretrain", "finetune"):
        return command
    kept = [part for part in command if not part.startswith(("train.updates=", "train.seconds_per_update="))]
    return [*kept, *TINY, *(["objective.freeze_encoder_updates=1"] if command[0] == "finetune" else [])]


@pytest.mark.slow
def test_every_command_of_the_document(tmp_path, capsys, monkeypatch):
    model = their_model("wav2vec2", "base", "ForPreTraining", **HEADS, num_negatives=K)
    model.save_pretrained(tmp_path / "facebook-wav2vec2-base")
    processor = {"do_normalize": True, "sampling_rate": 16_000}
    (tmp_path / "facebook-wav2vec2-base" / "preprocessor_config.json").write_text(json.dumps(processor))
    for name in ("recordings", "labelled", "held-out"):
        corpus = make_corpus(tmp_path / name, (0.5, 0.7, 0.9, 1.1), name=name)
        texts = [f"{utterance.id}\t{utterance.text}" for utterance in corpus.utterances]
        (tmp_path / name / "transcripts.tsv").write_text("\n".join(texts) + "\n")
    monkeypatch.chdir(tmp_path)
    asked = commands()
    assert [command[0] for command in asked][:3] == ["import", "manifest", "pretrain"]
    for command in asked:
        status, out, err = speechssl(capsys, monkeypatch, *small(command))
        assert status == 0, (command, out, err)

    continued = load_checkpoint(tmp_path / "exp" / "continued")
    assert continued.step > 0
    assert continued.config.data.normalize, "as the released model hears"
    pipe = transformers.pipeline("automatic-speech-recognition", "exp/for-transformers", device="cpu")
    hypotheses = [json.loads(line) for line in (tmp_path / "exp" / "ctc" / "dev.jsonl").read_text().splitlines()]
    hypotheses = [said for said in hypotheses if "id" in said]
    assert len(hypotheses) == 4
    for said in hypotheses:
        waveform, _ = soundfile.read(tmp_path / "held-out" / f"{said['id']}.flac", dtype="float32")
        assert pipe(waveform)["text"] == said["text"]
    assert "license: cc-by-4.0" in (tmp_path / "exp" / "for-transformers" / "README.md").read_text()


def test_presets_of_another_size_are_told_apart(tmp_path, capsys, monkeypatch):
    """A preset that is not the imported model's architecture is one sentence."""
    their_model("wav2vec2", "tiny", "ForPreTraining").save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    corpus = make_corpus(tmp_path / "speech", (0.5, 0.6))
    preset = shutil.copy(tmp_path / "ours" / "config.yaml", tmp_path / "wider.yaml")
    wide = ["encoder.context.ffn_dim=48", *TINY, "--init", tmp_path / "ours", "-o", tmp_path / "run"]
    arguments = ["pretrain", "--preset", preset, "--train", corpus.manifest, *wide]
    assert "its encoder does not fit this configuration" in one_sentence(speechssl(capsys, monkeypatch, *arguments))
