"""Files that cannot or must not be read: one clear sentence each, exit status 2, and nothing of them runs."""

import contextlib
import json
import os
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import our_checkpoint
from tiny_run import one_sentence, speechssl

from speechssl.export.hf import export_hf
from speechssl.export.keymaps import ExportError
from speechssl.export.torchaudio import export_torchaudio
from speechssl.export.unpickle import read_pickle


@pytest.fixture
def cli(capsys, monkeypatch):
    return lambda *arguments: one_sentence(speechssl(capsys, monkeypatch, *arguments))


@pytest.fixture
def folder(tmp_path):
    """A sound folder of transformers, to be spoilt."""
    our_checkpoint(tmp_path / "sound", "wav2vec2", "tiny")
    export_hf(tmp_path / "sound", tmp_path / "theirs")
    return tmp_path / "theirs"


class Runs:
    """Makes a file when it is unpickled in the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("layout", ["zip", "old", "plain pickle"])
@pytest.mark.parametrize("name", ["theirs.pt", "folder"])
def test_code_is_refused_and_nothing_runs(tmp_path, cli, folder, layout, name):
    trace, state = tmp_path / "it-ran", {"weight": torch.zeros(2), "bias": torch.zeros(1)}
    bad = {**state, "cfg": Runs(trace), "model": state}
    path = tmp_path / name
    if name == "folder":
        (folder / "model.safetensors").unlink()
        path, file = folder, folder / "pytorch_model.bin"
    else:
        file = path
    if layout == "plain pickle":
        file.write_bytes(pickle.dumps(bad, protocol=2))
    else:
        torch.save(bad, file, _use_new_zipfile_serialization=layout == "zip")
    sentence = cli("import", path, tmp_path / "ours")
    if layout != "plain pickle":
        assert "refused: it names code (posix.mkdir)" in sentence
        assert "nothing has been run" in sentence
    assert not trace.exists()
    assert not (tmp_path / "ours").exists()
    if layout != "plain pickle":  # the file does what it says, where nobody looks
        torch.load(file, weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "torch.hub.load", "subprocess.Popen", "fairseq"])
def test_names_that_could_do_something(tmp_path, name):
    """Whatever a file calls, it is refused, or an inert thing is called in its place."""
    module, _, attribute = name.rpartition(".")
    module, attribute = (module, attribute) if module else ("fairseq.utils", "anything")
    body = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"X" + struct.pack("<I", 3) + b"1+1" + b"\x85R."
    path = tmp_path / "theirs.pt"
    torch.save({}, path, _use_new_zipfile_serialization=False)
    parts = path.read_bytes()
    head = parts[: parts.index(pickle.dumps({}, protocol=2), 40)]  # magic number, protocol, system
    path.write_bytes(head + body + pickle.dumps([], protocol=2))
    if module.startswith("fairseq"):
        assert read_pickle(path) == "1+1", "what it was made from, and not what it would have made"
    else:
        with pytest.raises(ExportError, match=r"refused|cannot be read"):
            read_pickle(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_one_kind_of_error(tmp_path, data):
    """Cut short or with bytes changed, a file is read or refused; it never breaks the reader."""
    path = tmp_path / "theirs.pt"
    new = data.draw(st.booleans())
    torch.save({"model": {"weight": torch.zeros(3)}, "args": None}, path, _use_new_zipfile_serialization=new)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ExportError):
        read_pickle(path)


def test_a_truncated_safetensors(tmp_path, cli, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a whole safetensors file" in cli("import", folder, tmp_path / "ours")


def test_a_config_that_does_not_fit_its_weights(tmp_path, cli, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 41}))
    sentence = cli("import", folder, tmp_path / "ours")
    assert "does not fit this configuration" in sentence
    assert "ffn_in" in sentence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "whisper"}, "is a 'whisper' model, and speechssl knows wav2vec2, hubert, wavlm"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"add_adapter": True}, "add_adapter"),
        ({"hidden_size": "wide"}, "'encoder.context.dim' is 'wide'"),
        ({"num_attention_heads": 3}, "must be a multiple of num_heads"),
        ({"conv_stride": [5]}, "same number of entries"),
    ],
)
def test_an_architecture_that_we_lack(tmp_path, cli, folder, change, said):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert said in cli("import", folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_is_no_json(tmp_path, cli, folder, content):
    (folder / "config.json").write_text(content)
    assert "not a JSON object" in cli("import", folder, tmp_path / "ours")


def test_weights_that_have_no_place(tmp_path, cli, folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "adapter.layers.0.conv.weight": torch.zeros(2)}, folder / "model.safetensors")
    assert "no model of speechssl has a place for: adapter.layers.0" in cli("import", folder, tmp_path / "ours")


def test_weights_that_are_missing(tmp_path, cli, folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "out_proj" not in k}, folder / "model.safetensors")
    assert "attention.out.weight is missing" in cli("import", folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "neither config.json"),
        (lambda path: path.write_text("hello"), "not a file that torch has saved"),
        (lambda path: torch.save([1, 2], path), "arguments.json beside it"),
        (lambda path: torch.save({"model": 3}, path), "no entry 'model' with weights"),
        (lambda path: torch.save({"model": {"a": torch.zeros(1)}}, path), "says nothing about its architecture"),
        (lambda path: torch.save({"model": {"a": 1}, "cfg": {"model": {}}}, path), "no dictionary of tensors"),
    ],
)
def test_things_that_are_no_models(tmp_path, cli, make, said):
    make(tmp_path / "theirs.pt")
    assert said in cli("import", tmp_path / "theirs.pt", tmp_path / "ours")


def test_torchaudio_arguments_that_make_no_sense(tmp_path, cli):
    our_checkpoint(tmp_path / "sound", "wav2vec2", "tiny")
    export_torchaudio(tmp_path / "sound", tmp_path / "theirs")
    arguments = json.loads((tmp_path / "theirs" / "arguments.json").read_text())
    (tmp_path / "theirs" / "arguments.json").write_text(
        json.dumps(arguments | {"extractor_conv_layer_config": [[1, 2]]})
    )
    assert "extractor_conv_layer_config is no list of" in cli("import", tmp_path / "theirs", tmp_path / "ours")


def test_an_import_that_is_there_stays(tmp_path, cli, folder):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "state.json").write_text("mine")
    assert "exists already" in cli("import", folder, tmp_path / "ours")
    assert (tmp_path / "ours" / "state.json").read_text() == "mine"


def test_an_encoder_alone_has_no_loss(tmp_path, cli, folder):
    """Training it as it is says what to do."""
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Wav2Vec2ForPreTraining"]
    from tiny import tiny_batch

    from speechssl.checkpoint import load_checkpoint
    from speechssl.errors import UserError
    from speechssl.export.imports import import_weights

    our_checkpoint(tmp_path / "hubert", "hubert", "tiny")
    export_hf(tmp_path / "hubert", tmp_path / "theirs-hubert")
    import_weights(tmp_path / "theirs-hubert", tmp_path / "ours")
    with pytest.raises(UserError, match="start it from here with --init"):
        load_checkpoint(tmp_path / "ours").objective(tiny_batch(4000))
