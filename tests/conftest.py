"""What all tests share: one thread, fixed seeds, no network, and the folder of real speech where there is one."""

import os
import random
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports transformers
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest
import torch
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


@pytest.fixture(scope="session")
def speech_data() -> Path:
    """The folder of real speech: SPEECHSSL_DATA, or ../shared/data beside the repository. Skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPEECHSSL_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real speech: set SPEECHSSL_DATA to a folder that holds it")
    return folder
