"""The recipe from end to end: sound is made, an encoder pretrained, fine-tuned, decoded, scored; then nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PRETRAIN = """
base: wav2vec2-tiny-mel
data: {seconds_per_batch: 6, workers: 0}
encoder:
  feature_encoder: {dims: [32, 32]}
  context: {dim: 32, num_layers: 1, num_heads: 2, ffn_dim: 64}
train: {updates: 4, seconds_per_update: 12, precision: fp32, log_every: 2, valid_every: 4, save_every: 2}
"""
FINE_TUNE = """
base: ctc-tiny
data: {seconds_per_batch: 20, workers: 0}
objective: {symbols_per_frame: 2}
train: {updates: 6, seconds_per_update: 40, precision: fp32, log_every: 3, valid_every: 3, save_every: 3}
"""
CONF = """
pretrain_preset={folder}/pretrain.yaml
demo=$data/demo
manifests=$demo/manifests
pretrain_manifest=$manifests/unlabelled.jsonl
train_manifest=$manifests/train.jsonl
dev_manifest=$manifests/dev.jsonl
test_sets=(test)
systems=(pretrained)
prepare_data() {{
  run python "$tools/make_demo_corpus.py" "$demo" --hours 0.01 --train-minutes 0.5 --dev-minutes 0.2 --test-minutes 0.2
}}
make_manifests() {{
  for subset in unlabelled train dev test; do
    run speechssl manifest librispeech --folder "$demo/$subset" -o "$manifests/$subset.jsonl" --jobs 1
  done
}}
make_split() {{ echo "the whole of train"; }}
fine_tune() {{ tune {folder}/finetune.yaml --init "$exp/pretrain"; }}
"""


@pytest.mark.slow
def test_from_nothing_to_a_table_and_nothing_twice(tmp_path):
    pytest.importorskip("espeakng_loader", reason="the demo corpus needs the extra [demo]")
    (tmp_path / "pretrain.yaml").write_text(PRETRAIN)
    (tmp_path / "finetune.yaml").write_text(FINE_TUNE)
    (tmp_path / "mine.conf").write_text(CONF.format(folder=tmp_path))

    first = run_recipe(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    exp = tmp_path / "exp" / "10min-0"
    score = json.loads((exp / "pretrained/score/test/score.json").read_text())
    assert score["words"] > 10
    assert 0 < score["wer"] <= 2
    assert "| pretrained | test |" in (exp / "table.md").read_text()
    assert f"Page: {exp / 'report.html'}" in first.stdout
    assert "spectrogram of" in (exp / "report.html").read_text()
    steps = [json.loads(line)["step"] for line in (tmp_path / "exp/pretrain/metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 4]

    checkpoints = stamps(tmp_path / "exp")
    second = run_recipe(tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert stamps(tmp_path / "exp") == checkpoints
    assert "already" in second.stdout


# In place of the verbs: what was asked is written down; a fine-tuning waits until another has begun.
VERB = """#!/usr/bin/env bash
echo "$*" >> {folder}/asked
[ "$1" = finetune ] || exit 0
run=$(basename "${{@: -2:1}}") begun={folder}/begun
mkdir -p "$begun" && touch "$begun/$run"
echo "threads $OMP_NUM_THREADS"
for _ in {{1..200}}; do [ "$(ls "$begun" | wc -l)" -gt 1 ] && break; sleep 0.1; done
[ "$(ls "$begun" | wc -l)" -gt 1 ] || {{ echo "alone"; exit 3; }}
[[ $run != broken* ]]
"""


@pytest.fixture
def stand_in(tmp_path):
    """A folder with a preset of four systems and stand-ins for what the recipe calls."""
    conf = CONF.replace("(pretrained)", "(one two)").replace("dev_manifest=$manifests/dev.jsonl", "dev_manifest=")
    (tmp_path / "mine.conf").write_text(conf.format(folder=tmp_path) + "seeds=${seeds:-1 2}\n")
    (tmp_path / "bin").mkdir()
    verb = VERB.format(folder=tmp_path)
    for name, text in {"speechssl": verb, "python": verb, "nproc": "#!/bin/sh\necho 5\n"}.items():
        file = tmp_path / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
    return tmp_path


def test_systems_side_by_side_are_each_done_once(stand_in):
    done = run_recipe(stand_in, "--stage", "5", "--jobs", "2", bin_folder=stand_in / "bin")
    assert done.returncode == 0, done.stdout + done.stderr
    asked = [line.split() for line in (stand_in / "asked").read_text().splitlines()]
    systems = [f"{name}-seed{seed}" for name in ("one", "two") for seed in (1, 2)]
    assert sorted(words[-2].split("/")[-1] for words in asked if words[0] == "finetune") == systems
    assert sorted(words[1].split("/")[-1] for words in asked if words[0] == "decode") == systems
    assert sum(words[0] == "score" for words in asked) == len(systems)
    assert sum(words[0] in ("pretrain", "report") for words in asked) == 2
    assert asked[0][0] == "pretrain"
    assert asked[-1][0] == "report"
    assert "one-seed1: threads 3\n" in done.stdout  # of five cores


@pytest.mark.parametrize("dev", [[], ["dev"]])
def test_units_are_made_before_an_encoder_that_learns_them(stand_in, dev):
    conf = stand_in / "mine.conf"
    text = conf.read_text() + "unit_features=(--mfcc --cmvn) num_units=7\n"
    conf.write_text(text + "dev_manifest=$manifests/dev.jsonl\n" if dev else text)
    done = run_recipe(stand_in, "--stage", "5", "--stop-stage", "5", bin_folder=stand_in / "bin")
    assert done.returncode == 0, done.stdout + done.stderr
    manifests, exp = stand_in / "data/demo/manifests", stand_in / "exp"
    asked = (stand_in / "asked").read_text().splitlines()
    made = [f"features {manifests}/unlabelled.jsonl --mfcc --cmvn -o {exp}/features/train"]
    made += [f"features {manifests}/{part}.jsonl --mfcc --cmvn -o {exp}/features/{part}" for part in dev]
    made += [f"kmeans {exp}/features/train -k 7 -o {exp}/kmeans.safetensors"]
    parts = " ".join(f"{exp}/features/{part}" for part in ["train", *dev])
    made += [f"units {parts} --kmeans {exp}/kmeans.safetensors -o {exp}/units"]
    assert asked[:-1] == made
    assert asked[-1].startswith("pretrain ")
    assert asked[-1].endswith(f" data.units={exp}/units objective.num_units=7")


UNITS = ["features", "kmeans", "units"]  # the verbs that make them


@pytest.mark.parametrize(
    ("preset", "before", "options", "tuned_for"),
    [
        ("hubert-tiny", UNITS, "data.units={exp}/units objective.num_units=100", "ctc-tiny-mel"),
        ("wavlm-tiny", UNITS, "data.units={exp}/units objective.num_units=100", "ctc-tiny-mel"),
        ("wav2vec2-tiny", ["pretrain"], "--init {exp}/warm", "ctc-tiny"),
        ("cpc-tiny", [], "", "ctc-tiny"),
        ("autoencoder-tiny", [], "", "ctc-tiny"),
        ("apc-tiny", [], "", "ctc-tiny-mel"),
    ],
)
def test_real_gives_each_encoder_what_it_needs(stand_in, monkeypatch, preset, before, options, tuned_for):
    monkeypatch.setenv("SPEECHSSL_DATA", str(stand_in))
    monkeypatch.setenv("SYSTEMS", "pretrained")
    monkeypatch.setenv("PRETRAIN", preset)
    (stand_in / "begun").mkdir()
    (stand_in / "begun" / "another").touch()  # so that no fine-tuning waits for one
    stages = ["--stage", "5", "--stop-stage", "6", "--seeds", "1"]
    done = run_recipe(stand_in, *stages, bin_folder=stand_in / "bin", preset="real")
    assert done.returncode == 0, done.stdout + done.stderr
    exp = stand_in / "exp"
    *first, pretrained, tuned = (stand_in / "asked").read_text().splitlines()
    assert [line.split()[0] for line in first] == before
    made = f"pretrain --preset {preset} --train {stand_in}/data/real/manifests/unlabelled.jsonl -o {exp}/pretrain"
    assert pretrained == " ".join([made, *options.format(exp=exp).split()])
    assert tuned.startswith(f"finetune --preset {tuned_for} --init {exp}/pretrain ")


def test_a_broken_system_does_not_stop_the_one_beside_it(stand_in):
    conf = stand_in / "mine.conf"
    conf.write_text(conf.read_text().replace("(one two)", "(one broken)"))
    done = run_recipe(stand_in, "--stage", "6", "--jobs", "2", "--seeds", "1", bin_folder=stand_in / "bin")
    assert done.returncode == 1
    assert "not every system is done" in done.stderr
    asked = (stand_in / "asked").read_text()
    assert "one-seed1/score" in asked
    assert "broken-seed1/score" not in asked
    assert "report" not in asked


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--systems", "three-seed1"], "no system 'three-seed1'; choose from: one-seed1 two-seed1 one-seed2 two-seed2"),
        (["--jobs", "none"], "--jobs needs a number of 1 or more, not 'none'"),
    ],
)
def test_what_the_recipe_refuses(stand_in, options, said):
    done = run_recipe(stand_in, "--stage", "6", *options, bin_folder=stand_in / "bin")
    assert done.returncode == 2
    assert done.stderr == f"error: {said}\n"
    assert not (stand_in / "asked").exists()


def run_recipe(folder: Path, *options: str, bin_folder: Path = Path(sys.executable).parent, preset: str = ""):
    """The recipe with the interpreter that runs this test, or with other programs."""
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env.pop("OMP_NUM_THREADS", None)
    command = [ROOT / "recipes/librispeech/run.sh", "--preset", preset or folder / "mine.conf"]
    command += ["--data", folder / "data", "--exp", folder / "exp", *options]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=400, check=False)


def stamps(folder: Path) -> dict[str, float]:
    """When each checkpoint and each decoded file was written."""
    files = [*folder.rglob("*.safetensors"), *folder.rglob("decode/*.jsonl")]
    return {str(path): path.stat().st_mtime for path in files}
