"""torchaudio, in and out: the same tensors back, and the same numbers in every layer."""

import json

import pytest
import torch
from parity import shake
from random_models import (
    CLOSE,
    LETTERS,
    SIZES,
    assert_padding_is_unheard,
    assert_same_layers,
    assert_same_tensors,
    noise,
    our_checkpoint,
    torchaudio_arguments,
)

from speechssl.checkpoint import load_checkpoint
from speechssl.export.imports import import_weights
from speechssl.export.keymaps import ExportError
from speechssl.export.torchaudio import export_torchaudio
from speechssl.extract import load_encoder

models = pytest.importorskip("torchaudio.models")

ALL = pytest.mark.parametrize("size", SIZES)
EACH = pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])


def their_model(family: str, size: str, labels: int | None = None):
    function = models.wavlm_model if family == "wavlm" else models.wav2vec2_model
    model = function(**torchaudio_arguments(family, size, labels)).eval()
    torch.manual_seed(8)
    shake(model)
    return model


def save_theirs(folder, family: str, size: str, labels: int | None = None):
    model = their_model(family, size, labels)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "arguments.json").write_text(json.dumps(torchaudio_arguments(family, size, labels)))
    return model


@EACH
@ALL
def test_theirs_open_here(tmp_path, family, size):
    theirs = save_theirs(tmp_path / "theirs", family, size)
    found = import_weights(tmp_path / "theirs" / "model.pt", tmp_path / "ours")
    assert not found.left_behind
    encoder = load_encoder(tmp_path / "ours")
    waveforms, _ = noise(4000, 4000)
    assert_same_layers(encoder, theirs.encoder.transformer.layers, lambda x: theirs(x)[0], waveforms)
    assert_padding_is_unheard(encoder)


@EACH
@ALL
def test_ours_open_there_strictly(tmp_path, family, size):
    ours = our_checkpoint(tmp_path / "ours", family, size)
    export_torchaudio(tmp_path / "ours", tmp_path / "theirs")
    arguments = json.loads((tmp_path / "theirs" / "arguments.json").read_text())
    function = models.wavlm_model if family == "wavlm" else models.wav2vec2_model
    theirs = function(**arguments).eval()
    theirs.load_state_dict(torch.load(tmp_path / "theirs" / "model.pt", weights_only=True), strict=True)
    waveforms, _ = noise(4000, 4000)
    assert_same_layers(ours.encoder, theirs.encoder.transformer.layers, lambda x: theirs(x)[0], waveforms)


@EACH
@ALL
def test_there_and_back_are_identical_tensors(tmp_path, family, size):
    ours = our_checkpoint(tmp_path / "ours", family, size, normalize=True)
    export_torchaudio(tmp_path / "ours", tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "back")
    back = load_checkpoint(tmp_path / "back")
    assert_same_tensors(back.objective.encoder.state_dict(), ours.encoder.state_dict())
    assert back.objective.encoder.config == ours.encoder.config
    assert back.config.data.normalize


@pytest.mark.parametrize("size", ["large", "tiny"])
@torch.no_grad()
def test_padded_batches_where_theirs_do_not_mind(tmp_path, size):
    theirs = save_theirs(tmp_path / "theirs", "wav2vec2", size)
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    waveforms, present = noise(4000, 3100, 2000)
    output = load_encoder(tmp_path / "ours")(waveforms, present.sum(1))
    expected, lengths = theirs(waveforms, present.sum(1))
    assert lengths.tolist() == output.lengths.tolist()
    for mine, theirs_, frames in zip(output.hidden, expected, lengths, strict=True):
        torch.testing.assert_close(mine[:frames], theirs_[:frames], **CLOSE)


@torch.no_grad()
def test_a_ctc_head_goes_there_and_back(tmp_path):
    ours = our_checkpoint(tmp_path / "ours", "wav2vec2", "large", name="ctc")
    export_torchaudio(tmp_path / "ours", tmp_path / "theirs")
    arguments = json.loads((tmp_path / "theirs" / "arguments.json").read_text())
    theirs = models.wav2vec2_model(**arguments).eval()
    theirs.load_state_dict(torch.load(tmp_path / "theirs" / "model.pt", weights_only=True), strict=True)
    waveforms, _ = noise(4000)
    hidden = ours.encoder(waveforms).hidden
    expected, _ = ours.head(hidden, torch.tensor([hidden.shape[1]]))
    torch.testing.assert_close(theirs(waveforms)[0].log_softmax(-1), expected, **CLOSE)
    import_weights(tmp_path / "theirs", tmp_path / "back")
    back = load_checkpoint(tmp_path / "back")
    assert back.tokenizer == LETTERS
    assert_same_tensors(back.objective.head.state_dict(), ours.head.state_dict())


def test_labels_of_a_bundle(tmp_path):
    """A bundle's labels are named in processing.json; its blank is "-"."""
    folder = tmp_path / "theirs"
    theirs = save_theirs(folder, "wav2vec2", "tiny", labels=4)
    (folder / "processing.json").write_text(json.dumps({"labels": ["-", "|", "E", "T"]}))
    import_weights(folder, tmp_path / "ours")
    ours = load_checkpoint(tmp_path / "ours")
    assert ours.tokenizer.symbols == ("<blank>", "|", "E", "T")
    assert torch.equal(ours.objective.head.linear.weight, theirs.aux.weight)


def test_a_state_dict_alone_does_not_say_enough(tmp_path):
    torch.save(their_model("wav2vec2", "tiny").state_dict(), tmp_path / "model.pt")
    with pytest.raises(ExportError, match=r"how many heads and strides.*arguments\.json beside it"):
        import_weights(tmp_path / "model.pt", tmp_path / "ours")


def test_what_torchaudio_lacks_is_one_sentence(tmp_path):
    our_checkpoint(tmp_path / "ours", "data2vec", "tiny")
    with pytest.raises(ExportError, match="more than one positional convolution, which torchaudio lacks"):
        export_torchaudio(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("family", ["wav2vec2", "wavlm"])
def test_the_card_s_code_runs(tmp_path, monkeypatch, family):
    our_checkpoint(tmp_path / "ours", family, "tiny")
    export_torchaudio(tmp_path / "ours", tmp_path / "theirs", licence="mit")
    card = (tmp_path / "theirs" / "README.md").read_text()
    assert "license: mit" in card
    monkeypatch.chdir(tmp_path / "theirs")
    names: dict = {"waveforms": noise(4000)[0]}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert len(names["layers"]) == SIZES["tiny"]["layers"]
