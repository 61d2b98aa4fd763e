"""The verbs from text to a comparison of two systems, as they are typed."""

import json

from test_rescore import gpt2  # noqa: F401  (a fixture)
from tiny_run import make_corpus, one_sentence, talkative, tiny_config, train_here

from speechssl.asr.ngram import Ngram


def test_from_text_to_a_comparison(command, tmp_path, gpt2):  # noqa: F811
    corpus = make_corpus(tmp_path / "sound", (0.5, 0.7, 0.9))
    with talkative():
        train_here(tiny_config("ctc", corpus, train={"updates": 1}, optim={"lr": 1e-9}), tmp_path / "run")

    def do(*arguments) -> str:
        status, out, err = command(*arguments)
        assert status == 0, err
        return out

    arpa, texts = tmp_path / "lm.arpa", {name: tmp_path / f"{name}.jsonl" for name in ("greedy", "lm", "again")}
    said = do("lm", "train", corpus.manifest, "-o", arpa, "--order", 2)
    assert "1-grams" in said
    assert "too little text to estimate the discounts of order 1, 2" in said
    assert Ngram.read(arpa).order == 2
    do("decode", tmp_path / "run", corpus.manifest, "-o", texts["greedy"], "--device", "cpu")
    flags = ["--lm", arpa, "--beam", 10, "--nbest", 4, "--lm-weight", 1, "--device", "cpu", "-j", 1]
    do("decode", tmp_path / "run", corpus.manifest, "-o", texts["lm"], *flags)
    assert "nbest" in json.loads(texts["lm"].read_text().splitlines()[0])
    said = do("rescore", texts["lm"], "-o", texts["again"], "--model", gpt2[0], "--tune", texts["lm"])
    assert "chosen on" in said
    scored = do("score", texts["lm"])
    assert "By length: shortest" in scored
    assert "By speaker (2): from" in scored
    compared = do("compare", texts["greedy"], texts["lm"], "-o", tmp_path / "compared.json", "--samples", 200)
    assert "B - A: " in compared
    record = json.loads((tmp_path / "compared.json").read_text())
    assert record["b"]["made_with"]["decoding"]["lm"]["path"] == str(arpa)
    assert record["utterances"] == 3


def test_refusals_are_one_sentence(command, tmp_path):
    (tmp_path / "text.txt").write_text("some words\n")
    bad_name = command("lm", "train", tmp_path / "text.txt", "-o", tmp_path / "lm.bin")
    assert "ends in .arpa" in one_sentence(bad_name)
    assert "no such text" in one_sentence(command("lm", "train", tmp_path / "none", "-o", tmp_path / "lm.arpa"))
    assert "choose one of 3-gram" in one_sentence(command("lm", "librispeech", "--which", "9-gram"))
    both = ["--lm", "a.arpa", "--tune", "dev.jsonl", "--weights-from", "b.jsonl"]
    assert "give one of them" in one_sentence(command("decode", "run", "m.jsonl", "-o", tmp_path / "o.jsonl", *both))
