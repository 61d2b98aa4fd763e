"""The table of decoders on a run of seconds: same weights for both searches, nothing twice, means over runs."""

import shutil
import sys

from tiny_run import ROOT, make_corpus, tiny_config, train_here

sys.path.insert(0, str(ROOT / "tools"))

import lm_table

from speechssl.asr.files import read_settings
from speechssl.asr.kneser_ney import train


def test_rows_are_scores_of_equal_settings_and_nothing_is_done_twice(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "sound", (0.5, 1.3, 0.7, 0.9))
    tune = make_corpus(tmp_path / "tune", (0.6, 0.8), name="tune").manifest
    run = tmp_path / "a-seed1"
    train_here(tiny_config("ctc", corpus, train={"updates": 1}), run)
    shutil.copytree(run, tmp_path / "a-seed2")
    lm = tmp_path / "lm.arpa"
    train([u.text.upper().split() for u in corpus.utterances], 2).model.write(lm)
    arguments = {"tune": tune, "test": corpus.manifest, "lm": lm, "device": "cpu"}
    lm_table.main([run, tmp_path / "a-seed2"], **arguments)
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in (run / "lm-train.md").read_text().splitlines()[2:]]
    kinds = list(dict.fromkeys(row[0] for row in rows))
    assert kinds[:2] == ["greedy", "own beam + LM"]
    assert [row[1] for row in rows] == ["mean of 2", "a-seed1", "a-seed2"] * len(kinds)
    for kind in kinds:
        mean, *own = [row for row in rows if row[0] == kind]
        assert own[0][2:6] == own[1][2:6]  # the same run under two names
        assert mean[2] == own[0][2]
    tuning = read_settings(run / "decode/train-beam.jsonl")["tuning"]
    said = f"{tuning['lm_weight']:g}, {tuning['word_score']:g}"
    assert [row[5] for row in rows if row[1] == "a-seed1"] == ["", said, said][: len(kinds)]
    if len(kinds) == 3:  # flashlight is installed
        assert read_settings(run / "decode/train-flashlight.jsonl")["tuning"] == tuning
    capsys.readouterr()
    lm_table.main([run], **arguments)
    assert capsys.readouterr().out.count("already decoded") == len(kinds)


def test_without_flashlight_its_rows_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lm_table.importlib.util, "find_spec", lambda name: None)
    asked = []
    monkeypatch.setattr(lm_table, "measure", lambda *arguments: asked.append(arguments[4]) or [])
    lm_table.main([tmp_path], tune=tmp_path, test=tmp_path / "t.jsonl", lm=tmp_path)
    assert asked == [["greedy", "beam"]]
    assert "flashlight-text is not installed" in capsys.readouterr().out
