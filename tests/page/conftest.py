"""Runs to look at: pretrained for ten updates, fine-tuned, scored, probed. And a browser, where there is one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_run import make_corpus, tiny_config, train_here

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream"]
FLAGS += ["--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A folder with the runs pretrain and tuned/ctc (scored on the set `test`), and the manifests they came from."""
    from speechssl.asr.decode import decode_manifest
    from speechssl.asr.score import score_files

    folder = tmp_path_factory.mktemp("demo")
    corpus = make_corpus(folder / "corpus")
    valid = make_corpus(folder / "corpus", (0.8, 0.9, 1.0, 0.7, 0.6, 0.9, 0.75), name="valid")
    paths = {"valid": str(valid.manifest)}
    train_here(tiny_config("wav2vec2", corpus, data=paths), folder / "pretrain")
    tuned = folder / "tuned" / "ctc"
    train_here(tiny_config("ctc", corpus, data=paths, init=str(folder / "pretrain")), tuned)
    decode_manifest(tuned, valid.manifest, tuned / "decode/test.jsonl")
    score_files(tuned / "decode/test.jsonl", tuned / "score/test")
    write_probe(folder / "pretrain/probe/speaker.json")
    return folder


def write_probe(path: Path) -> None:
    """A result as `speechssl probe` writes it."""
    row = {
        "seed": 0,
        "classifier": "linear",
        "labels": "all",
        "draw": 0,
        "strength": 1.0,
        "held_out": 0.5,
        "weights": [],
    }
    rows = [row | {"features": "trained", "layer": str(i), "accuracy": 0.5 + i / 10} for i in range(3)]
    rows += [row | {"features": "random weights", "layer": str(i), "accuracy": 0.4} for i in range(3)]
    rows += [row | {"features": "log-mel", "layer": "log-mel", "accuracy": 0.6}]
    rows += [
        row | {"features": "trained", "layer": "2", "labels": f"{k} per class", "accuracy": 0.3 + k / 10}
        for k in (1, 3)
    ]
    settings = {"label": "speaker", "classifiers": ["linear"]}
    facts = {"classes": 2, "chance": 0.5, "num_train": 9, "num_test": 40, "problems": [], "settings": settings}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"made_by": "speechssl probe", **facts, "rows": rows}))


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: SPEECHSSL_CHROMIUM, the system's, or playwright's own. Skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need the extra [browser]")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("SPEECHSSL_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: install one, or name it in SPEECHSSL_CHROMIUM")
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()
