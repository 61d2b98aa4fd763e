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


def run_recipe(folder: Path) -> subprocess.CompletedProcess:
    """The recipe with the interpreter that runs this test."""
    bin_folder = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [ROOT / "recipes/librispeech/run.sh", "--preset", folder / "mine.conf", "--data", folder / "data"]
    command += ["--exp", folder / "exp"]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=400, check=False)


def stamps(folder: Path) -> dict[str, float]:
    """When each checkpoint and each decoded file was written."""
    files = [*folder.rglob("*.safetensors"), *folder.rglob("decode/*.jsonl")]
    return {str(path): path.stat().st_mtime for path in files}
