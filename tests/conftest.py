"""What all tests share: one thread, fixed seeds, no network, and the folder of real speech where there is one."""

import os
import random
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports transformers
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest
import tiny_run
import torch
import yaml
from hypothesis import settings

settings.register_profile("speechssl", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("speechssl")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def command(capsys, monkeypatch):
    """The command line in this process, on a wide terminal: exit status, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: tiny_run.speechssl(capsys, monkeypatch, *arguments)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tiny_run.Corpus:
    """Ten utterances of 0.45 to 1.2 s by two speakers, with transcripts."""
    return tiny_run.make_corpus(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> str:
    """A manifest of three utterances to validate on."""
    return str(tiny_run.make_corpus(tmp_path_factory.mktemp("valid"), (0.6, 0.8, 1.1), name="valid").manifest)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, corpus) -> Path:
    """A run of wav2vec 2.0 on `corpus`, of one update."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    tiny_run.train_here(tiny_run.tiny_config("wav2vec2", corpus, train={"updates": 1}), folder)
    return folder


@pytest.fixture
def preset(corpus, tmp_path):
    """Writes a preset of two updates and returns its path."""

    def make(kind: str = "cpc", **parts) -> Path:
        path = tmp_path / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(tiny_run.tiny_plain(kind, corpus, train={"updates": 2}, **parts)))
        return path

    return make


@pytest.fixture(scope="session")
def speech_data() -> Path:
    """The folder of real speech: SPEECHSSL_DATA, or ../shared/data beside the repository. Skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPEECHSSL_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real speech: set SPEECHSSL_DATA to a folder that holds it")
    return folder
