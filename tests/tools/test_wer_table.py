"""The table of runs: means over seeds and folds with their intervals, and the recipe's loop over six folds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import wer_table


def make_run(folder: Path, wer: float, *, init: str = "") -> None:
    folder.mkdir(parents=True)
    config = {"objective": {"name": "ctc", "vocab_size": 30}, "data": {"train": "train.jsonl", "vocabulary": "v.json"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | ({"init": init} if init else {})))
    (folder / "metrics.jsonl").write_text(json.dumps({"split": "train", "seconds": 90, "hours": 0.5}) + "\n")
    score = folder / "score" / "test" / "score.json"
    score.parent.mkdir(parents=True)
    score.write_text(json.dumps({"wer": wer, "low": wer - 0.02, "high": wer + 0.02, "cer": wer / 2}))


def cells(path: Path) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in path.read_text().splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def test_one_folder_with_seeds(tmp_path):
    for seed, wer in enumerate((0.20, 0.30, 0.31), 1):
        make_run(tmp_path / f"a-seed{seed}", wer)
    make_run(tmp_path / "b", 0.5)
    wer_table.main([tmp_path])
    table = cells(tmp_path / "table.md")
    assert list(table) == ["a, mean of 3", "a-seed1", "a-seed2", "a-seed3", "b"]
    half = 4.30 * 6.0828 / 3**0.5  # Student, 2 degrees of freedom
    assert table["a, mean of 3"][1:4] == ["27.0", f"{27 - half:.1f} - {27 + half:.1f}", "13.5"]
    assert table["b"][1:3] == ["50.0", "48.0 - 52.0"]
    assert wer_table.interval([1.0, 9.0]).startswith("0.0 - ")  # no rate is below 0
    assert table["b"][-3:] == ["1.5", "-", "-"]


def test_folds_and_seeds(tmp_path):
    """The unit of the interval is the fold; seeds are averaged before."""
    for fold, wers in enumerate(((0.2, 0.3), (0.22, 0.3))):
        for seed, wer in enumerate(wers):
            make_run(tmp_path / f"10min-{fold}" / f"a-seed{seed}", wer, init="pre")
    make_run(tmp_path / "pretrain", 0.0)
    wer_table.main([tmp_path / "10min-0", tmp_path / "10min-1"], tmp_path / "pretrain")
    table = cells(tmp_path / "table.md")
    half = 12.71 * 0.70711 / 2**0.5
    assert table["a, mean of 4 (2 folds)"][1:3] == ["25.5", f"{25.5 - half:.1f} - {25.5 + half:.1f}"]
    assert len(table) == 5
    assert table["10min-1/a-seed0"][1] == "22.0"
    assert table["10min-1/a-seed0"][-2:] == ["0.5 h heard", "1.5"]


def test_a_folder_without_scores_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no score is there"):
        wer_table.main([tmp_path])


CONF = """
pretrain_preset=none
manifests=$data
pretrain_manifest=$data/all.jsonl
train_manifest=$data/$split.jsonl
dev_manifest=
test_sets=(test)
systems=(a)
prepare_data() { :; }
make_manifests() { :; }
make_split() { echo "split $split"; }
fine_tune() { tune "tiny-$1" --like pre; }
"""


def test_the_recipe_goes_through_all_folds_and_then_makes_one_table(tmp_path):
    """`speechssl` and `python` are replaced by scripts that write down what they were asked for."""
    (tmp_path / "mine.conf").write_text(CONF)
    for name in ("speechssl", "python"):
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/asked"\n')
        fake.chmod(0o755)
    command = [ROOT / "recipes/librispeech/run.sh", "--preset", tmp_path / "mine.conf", "--data", tmp_path / "my data"]
    command += ["--exp", tmp_path / "exp", "--folds", "all"]
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    for verb in ("vocab", "finetune", "decode", "score"):
        lines = [line for line in asked if line.split()[1] == verb]
        assert [f"10min-{k}" in line for k, line in enumerate(lines)] == [True] * 6, verb
    tables = [line for line in asked if "wer_table.py" in line]
    folds = [str(tmp_path / "exp" / f"10min-{k}") for k in range(6)]
    assert [[word for word in line.split() if word in folds] for line in tables] == [*([f] for f in folds), folds]
    refused = subprocess.run([*command[:-1], "some"], capture_output=True, text=True, env=env, check=False)
    assert (refused.returncode, refused.stderr) == (2, "error: --folds all, and only with --labels 10min\n")


def test_the_recipe_tunes_with_every_seed(tmp_path):
    (tmp_path / "mine.conf").write_text(CONF.replace("systems=(a)", "systems=(a b)"))
    (tmp_path / "speechssl").write_text(f'#!/bin/sh\necho "$*" >> "{tmp_path}/asked"\n')
    (tmp_path / "speechssl").chmod(0o755)
    command = [ROOT / "recipes/librispeech/run.sh", "--preset", tmp_path / "mine.conf", "--exp", tmp_path / "exp"]
    command += ["--seeds", "3,11", "--stage", "6", "--stop-stage", "7"]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    tuned = [line.split() for line in asked if line.startswith("finetune")]
    names = ["a-seed3", "b-seed3", "a-seed11", "b-seed11"]
    assert [Path(words[words.index("-o") + 1]).name for words in tuned] == names
    assert [words[words.index("--preset") + 1] for words in tuned] == ["tiny-a", "tiny-b"] * 2
    assert [words[-1] for words in tuned] == ["train.seed=3"] * 2 + ["train.seed=11"] * 2
    assert [Path(line.split()[1]).name for line in asked if line.startswith("decode")] == names
