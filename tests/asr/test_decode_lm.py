"""Decoding a manifest with a language model: batches, processes, tuning, n-best lists, and what is written about it."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_run import WORDS, make_corpus, talkative, tiny_config, train_here

from speechssl.asr.beam import BeamConfig
from speechssl.asr.decode import decode_manifest
from speechssl.asr.kneser_ney import train
from speechssl.asr.lexicon import LexiconError
from speechssl.asr.score import score_files
from speechssl.asr.search import DecodeError, Decoding, Search, Searchers
from speechssl.data.manifest import Manifest
from speechssl.data.tokens import Tokenizer

LENGTHS = (0.5, 1.3, 0.7, 0.9, 0.45, 1.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose weights are all but random, its corpus, and a language model."""
    folder = tmp_path_factory.mktemp("decode")
    corpus = make_corpus(folder / "sound", LENGTHS)
    with talkative():
        train_here(tiny_config("ctc", corpus, train={"updates": 1}, optim={"lr": 1e-9}), folder / "run")
    train([u.text.upper().split() for u in corpus.utterances], 2).model.write(folder / "lm.arpa")
    return folder / "run", corpus, str(folder / "lm.arpa")


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def settings(path) -> dict:
    return json.loads((path.parent / f"{path.name}.settings.json").read_text())


def beam(lm, **options) -> Decoding:
    return Decoding(decoder="beam", lm=lm, **options)


def test_batched_is_one_by_one_and_only_words_of_the_model_are_spelt(trained, tmp_path):
    run, corpus, lm = trained
    decoded = {}
    for seconds in (0.1, 60.0):
        out = tmp_path / f"{seconds}.jsonl"
        decode_manifest(run, corpus.manifest, out, decoding=beam(lm), seconds_per_batch=seconds, device="cpu")
        decoded[seconds] = rows(out)
    assert decoded[0.1] == decoded[60.0]
    assert set(" ".join(row["text"] for row in decoded[0.1]).split()) <= {word.upper() for word in WORDS}
    assert any(row["text"] for row in decoded[0.1])
    first = decoded[0.1][0]
    assert (first["speaker"], first["seconds"], first["reference"]) == ("speaker0", 0.5, "ONE")


def test_lists_and_settings(trained, tmp_path, capsys):
    run, corpus, lm = trained
    out = tmp_path / "texts.jsonl"
    decoding = beam(lm, nbest=5, config=BeamConfig(lm_weight=1.0, beam=20))
    decode_manifest(run, corpus.manifest, out, decoding=decoding, device="cpu")
    for row in rows(out):
        assert 1 < len(row["nbest"]) <= 5
        assert row["text"] == row["nbest"][0]["text"]
        scores = [item["score"] for item in row["nbest"]]
        assert scores == sorted(scores, reverse=True)
        assert len({item["text"] for item in row["nbest"]}) == len(scores)
    record = settings(out)
    assert (record["seed"], record["trained_on"]) == (1, str(corpus.manifest))
    assert record["decoding"]["lm_weight"] == 1.0
    assert record["decoding"]["lm"]["path"] == lm
    assert len(record["decoding"]["lm"]["sha256"]) == 64
    assert record["search"]["processes"] == 1
    assert record["search"]["seconds"] > 0
    assert record["search"]["audio_seconds"] == pytest.approx(sum(LENGTHS), abs=0.01)
    capsys.readouterr()
    decode_manifest(run, corpus.manifest, out, decoding=decoding, device="cpu")
    assert "already decoded" in capsys.readouterr().out
    decode_manifest(run, corpus.manifest, out, decoding=replace(decoding, nbest=2), device="cpu")
    assert len(rows(out)[0]["nbest"]) == 2
    score_files(out, tmp_path / "score")
    made_with = json.loads((tmp_path / "score" / "score.json").read_text())["made_with"]
    assert made_with == settings(out)


def test_weights_are_tuned_on_dev_stored_and_taken_over(trained, tmp_path, capsys):
    run, corpus, lm = trained
    other = make_corpus(tmp_path / "dev", (0.6, 0.8, 1.0), name="dev")
    small = BeamConfig(beam=5)
    out, second = tmp_path / "test.jsonl", tmp_path / "second.jsonl"
    decode_manifest(run, corpus.manifest, out, decoding=beam(lm, config=small), tune_on=other.manifest, device="cpu")
    said = capsys.readouterr().out
    assert "optimistic" not in said
    tuning = settings(out)["tuning"]
    assert f"chosen: LM weight {tuning['lm_weight']:g}" in said
    best = min(tuning["trials"], key=lambda t: (t["word_errors"], t["letter_errors"]))
    assert (best["weight"], best["bonus"]) == (tuning["lm_weight"], tuning["word_score"])
    assert (tuning["utterances"], tuning["manifest"]) == (3, str(other.manifest))
    assert settings(out)["decoding"]["lm_weight"] == "tuned"

    fixed = replace(small, lm_weight=tuning["lm_weight"], word_score=tuning["word_score"])
    by_hand = tmp_path / "hand.jsonl"
    decode_manifest(run, corpus.manifest, by_hand, decoding=beam(lm, config=fixed), device="cpu")
    assert rows(by_hand) == rows(out)
    decode_manifest(run, other.manifest, second, decoding=beam(lm, config=small), weights_from=out, device="cpu")
    assert settings(second)["tuning"] == tuning
    assert "chosen on 3 of these 3 utterances: the score is optimistic" in capsys.readouterr().out
    decode_manifest(run, corpus.manifest, out, decoding=beam(lm, config=small), tune_on=other.manifest, device="cpu")
    assert "already decoded" in capsys.readouterr().out


def test_processes_give_the_same_texts(trained, monkeypatch):
    _, corpus, lm = trained
    monkeypatch.setattr("speechssl.asr.search.WORTH_A_PROCESS", 1)
    tokenizer = Tokenizer.read(corpus.vocabulary)
    search, config = Search(tokenizer, beam(lm)), BeamConfig()
    generator = torch.Generator().manual_seed(0)
    items = [(3 * torch.randn(20, len(tokenizer), generator=generator)).log_softmax(-1).numpy() for _ in range(6)]
    found = []
    for jobs in (1, 2):
        with Searchers(search, jobs=jobs, utterances=6) as searchers:
            assert (searchers.pool is None) == (jobs == 1)
            found.append(searchers.decode(items, config, 3))
    assert found[0] == found[1]


def test_references_that_cannot_fit_are_named(trained, tmp_path, capsys):
    run, corpus, _ = trained
    long = replace(corpus.utterances[0], id="long", text="one two three four five " * 20)
    Manifest.of([long, *corpus.utterances[1:]]).write(tmp_path / "some.jsonl")
    decode_manifest(run, tmp_path / "some.jsonl", tmp_path / "texts.jsonl", device="cpu")
    assert settings(tmp_path / "texts.jsonl")["cannot_fit"] == ["long"]
    assert "1 of 6 references need more tokens than their audio has frames" in capsys.readouterr().out


def test_refusals(trained, tmp_path):
    run, corpus, lm = trained
    out = tmp_path / "texts.jsonl"
    with pytest.raises(DecodeError, match="greedy knows one text"):
        Decoding(nbest=3)
    with pytest.raises(DecodeError, match="needs a --beam at least as large"):
        beam(lm, nbest=60)
    with pytest.raises(DecodeError, match="without a language model"):
        decode_manifest(run, corpus.manifest, out, decoding=beam(None), tune_on=corpus.manifest)
    with pytest.raises(DecodeError, match="no such file"):
        decode_manifest(run, corpus.manifest, out, decoding=beam(str(tmp_path / "none.arpa")))
    unlabelled = Manifest.of(replace(u, text=None) for u in corpus.utterances)
    unlabelled.write(tmp_path / "unlabelled.jsonl")
    with pytest.raises(DecodeError, match="holds no transcripts"):
        decode_manifest(run, corpus.manifest, out, decoding=beam(lm), tune_on=tmp_path / "unlabelled.jsonl")
    decode_manifest(run, corpus.manifest, out, device="cpu")
    with pytest.raises(DecodeError, match="holds no tuned weights"):
        decode_manifest(run, corpus.manifest, tmp_path / "b.jsonl", decoding=beam(lm), weights_from=out)
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    with pytest.raises(LexiconError, match=r"not one of 2 words \(one, two, \.\.\.\) can be spelt"):
        decode_manifest(run, corpus.manifest, out, decoding=Decoding(decoder="beam", words=str(tmp_path / "words.txt")))
    nothing = torch.full((3, 20), float("nan")).numpy()
    with (
        Searchers(Search(Tokenizer.read(corpus.vocabulary), beam(lm)), jobs=1, utterances=1) as searchers,
        pytest.raises(DecodeError, match="its training diverged"),
    ):
        searchers.decode([nothing], BeamConfig())
