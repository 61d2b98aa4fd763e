"""torch.export: the same numbers for any batch, from a file that needs nothing of ours."""

import json
import subprocess
import sys
import zipfile
from typing import get_args

import pytest
import torch
from cases import make
from graphs import BATCHES, CLOSE, EACH, FAST, KINDS, expected, noise, save_encoder, traced
from tiny_run import make_corpus, tiny_config

import speechssl
from speechssl.build import build_objective
from speechssl.checkpoint import save_model
from speechssl.data.audio import normalize
from speechssl.export.keymaps import ExportError
from speechssl.export.torch_export import _heard as heard_by_a_graph
from speechssl.export.torch_export import export_program
from speechssl.nn.context import ContextConfig
from speechssl.objectives import OBJECTIVES, find_objective
from speechssl.objectives.ctc import CTC

FINE_TUNING = ("ctc", "ctc_probe", "speaker")  # all of these models is exported: test_onnx


@EACH
def test_every_encoder_gives_the_same_numbers(name):
    encoder, graph = traced(name)
    program = graph.program.module()
    for lengths in BATCHES:
        waveforms, samples = noise(lengths)
        hidden, frames = expected(name, encoder, waveforms, samples)
        with torch.no_grad():
            given, counted = program(waveforms, samples)
        assert counted.tolist() == frames.tolist()
        torch.testing.assert_close(given, hidden, **CLOSE)


@pytest.mark.parametrize("level", [1.0, 0.01])
def test_a_graph_hears_quiet_recordings_as_training_did(level):
    waveforms, lengths = noise([4000, 2500])
    heard = heard_by_a_graph(level * waveforms, lengths, True)
    for row, waveform, length in zip(heard, level * waveforms, lengths, strict=True):
        torch.testing.assert_close(row[:length], normalize(waveform[:length]), **CLOSE)


def test_every_kind_of_context_is_there():
    assert set(FAST) < set(KINDS)
    contexts = {type(make(name).encoder.config.context) for name in KINDS}
    assert contexts == set(get_args(ContextConfig))


def test_every_objective_has_its_encoder_there():
    tested = {type(make(name)) for names in KINDS.values() for name in names}
    assert {find_objective(name) for name in OBJECTIVES if name not in FINE_TUNING} <= tested


RUN = """
import json, sys
sys.modules["speechssl"] = None  # importing it is an error
import torch

facts = {"speechssl.json": ""}
program = torch.export.load(sys.argv[1], extra_files=facts).module()
waveforms = torch.linspace(-1, 1, 3 * 5000).view(3, 5000)
hidden, frames = program(waveforms, torch.tensor([5000, 4000, 3000]))
print(json.dumps([json.loads(facts["speechssl.json"]), frames.tolist(), hidden.double().abs().sum((1, 2)).tolist()]))
"""


def test_the_file_runs_without_speechssl(tmp_path):
    encoder = save_encoder("wav2vec2", tmp_path / "run")
    export_program(tmp_path / "run", tmp_path / "encoder.pt2")
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(tmp_path / "encoder.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    facts, frames, sums = json.loads(done.stdout)
    assert facts["sample_rate"] == 16_000
    assert facts["hop"] == encoder.hop
    assert facts["tokenizer"] is None
    waveforms = torch.linspace(-1, 1, 3 * 5000).view(3, 5000)
    hidden, counted = expected("wav2vec2", encoder, waveforms, torch.tensor([5000, 4000, 3000]))
    assert frames == counted.tolist()
    assert sums == pytest.approx(hidden.double().abs().sum((1, 2)).tolist(), rel=1e-5)


def test_no_folder_of_this_machine_is_in_the_file(tmp_path):
    save_encoder("wav2vec2", tmp_path / "run")
    export_program(tmp_path / "run", tmp_path / "encoder.pt2")
    with zipfile.ZipFile(tmp_path / "encoder.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert str(tmp_path).encode() not in content
    assert speechssl.__path__[0].encode() not in content
    assert sys.prefix.encode() not in content


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.pt2").write_text("Dear mother")
    with pytest.raises(ExportError, match=r"mine\.pt2: exists already"):
        export_program(tmp_path / "run", tmp_path / "mine.pt2")
    assert (tmp_path / "mine.pt2").read_text() == "Dear mother"


def test_a_graph_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    """Code of one's own may look at numbers, which no graph can."""
    config = tiny_config("ctc", make_corpus(tmp_path / "sound", (0.5,)))
    (tmp_path / "run").mkdir()
    save_model(build_objective(config), config, tmp_path / "run")
    monkeypatch.setattr(CTC, "log_probs", lambda self, batch: batch if batch.waveforms.sum() > 0 else None)
    with pytest.raises(ExportError, match=r"run: no graph can be made of its CTC, .*: .+\.$") as error:
        export_program(tmp_path / "run", tmp_path / "ctc.pt2")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*ctc*"))
