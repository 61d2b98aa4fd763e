"""ONNX: onnxruntime gives torch's numbers for any batch, and our decoder's texts."""

import json
import sys

import pytest
import torch
from graphs import BATCHES, CLOSE, EACH, expected, noise, save_encoder, traced
from parity import shake
from tiny_run import RATE, make_corpus, talkative, tiny_config
from torch.nn.utils.rnn import pad_sequence

from speechssl.asr.decode import decode_manifest, greedy
from speechssl.batch import Batch
from speechssl.build import build_objective
from speechssl.checkpoint import save_model
from speechssl.data.audio import normalize, read_waveform
from speechssl.data.tokens import Tokenizer
from speechssl.export import onnx as ours
from speechssl.export.keymaps import ExportError
from speechssl.export.onnx import export_onnx, translate
from speechssl.export.torch_export import trace

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def run(session, waveforms: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
    given = session.run(None, {"waveforms": waveforms.numpy(), "lengths": lengths.numpy()})
    return [torch.from_numpy(array) for array in given]


@EACH
def test_every_encoder_gives_the_same_numbers(tmp_path, name):
    encoder, graph = traced(name)
    translate(graph).save(tmp_path / "encoder.onnx")
    session = runtime.InferenceSession(tmp_path / "encoder.onnx")
    for lengths in BATCHES:
        waveforms, samples = noise(lengths)
        hidden, frames = expected(name, encoder, waveforms, samples)
        given, counted = run(session, waveforms, samples)
        assert counted.tolist() == frames.tolist()
        torch.testing.assert_close(given, hidden, **CLOSE)


@pytest.fixture(scope="module", params=["ctc", pytest.param("ctc_probe", marks=pytest.mark.slow)])
def speller(request, tmp_path_factory):
    """A CTC model with random weights, its corpus, and its ONNX file."""
    folder = tmp_path_factory.mktemp(request.param)
    corpus = make_corpus(folder / "sound", (0.5, 1.3, 0.7, 0.9))
    config = tiny_config(request.param, corpus, data={"normalize": True})
    tokenizer = Tokenizer.read(corpus.vocabulary)
    with talkative():
        objective = build_objective(config).eval()
    shake(objective)
    (folder / "run").mkdir()
    save_model(objective, config, folder / "run", tokenizer=tokenizer)
    export_onnx(folder / "run", folder / "model.onnx")
    return folder, corpus


def test_the_texts_are_those_of_our_decoder(speller):
    folder, corpus = speller
    decode_manifest(folder / "run", corpus.manifest, folder / "texts.jsonl", device="cpu")
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    session = runtime.InferenceSession(folder / "model.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    tokenizer = Tokenizer.from_dict(json.loads(facts["tokenizer"]), source="model.onnx")
    waveforms = [read_waveform(u, int(facts["sample_rate"])) for u in corpus.utterances]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    log_probs, frames = run(session, pad_sequence(waveforms, batch_first=True), lengths)
    assert greedy(log_probs, frames, tokenizer) == texts
    assert len(set(texts)) == len(texts)  # something is spelt, and every utterance is another
    assert all(texts)


def test_a_file_is_valid_and_says_what_it_wants(speller):
    folder, _ = speller
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    tokens = len(Tokenizer.read(folder / "sound" / "vocabulary.json"))
    assert axes == {
        "waveforms": ["batch", "samples"],
        "lengths": ["batch"],
        "log_probs": ["batch", "frames", tokens],
        "frame_lengths": ["batch"],
    }
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["sample_rate"] == str(RATE)
    assert facts["hop"] == "80"
    content = (folder / "model.onnx").read_bytes()
    assert ours.__file__.rpartition("/export/")[0].encode() not in content  # no folder of this machine
    assert sys.prefix.encode() not in content


OTHER = {"features": "last", "pooling": "statistics", "pooled_norm": "none", "classifier": "softmax"}


@pytest.mark.parametrize("numbers", [{}, pytest.param(OTHER, marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_speaker_model_gives_embeddings_and_scores(tmp_path, numbers):
    corpus = make_corpus(tmp_path / "sound", (0.5,))
    config = tiny_config("speaker", corpus, objective=numbers, data={"normalize": True})
    objective = build_objective(config).eval()
    shake(objective)
    (tmp_path / "run").mkdir()
    save_model(objective, config, tmp_path / "run")
    graph = trace(tmp_path / "run")
    translate(graph).save(tmp_path / "speaker.onnx")
    session = runtime.InferenceSession(tmp_path / "speaker.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["speakers"]) == list(objective.config.speakers)
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("embedding", ["batch", objective.size]),
        ("scores", ["batch", 2]),
    ]
    for lengths in ([9000, 7000], [8001], [12_345, 6000, 700]):
        waveforms, samples = noise(lengths)
        heard = [normalize(waveform[:length]) for waveform, length in zip(waveforms, lengths, strict=True)]
        alone = [objective.embed(Batch(("",), one[None], torch.tensor([len(one)]), padded=False)) for one in heard]
        expected = torch.cat(alone), objective.head(torch.cat(alone))
        for given in (run(session, waveforms, samples), graph.program.module()(waveforms, samples)):
            torch.testing.assert_close(given[0], expected[0], **CLOSE)
            torch.testing.assert_close(given[1], expected[1], **CLOSE)


def test_large_weights_lie_beside_it(tmp_path, monkeypatch):
    encoder, graph = traced("wav2vec2")
    monkeypatch.setattr(ours, "LARGEST", 1000)
    monkeypatch.setattr(ours, "trace", lambda path: graph)
    export_onnx(tmp_path / "run", tmp_path / "large.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    waveforms, lengths = noise([4000])
    given, _ = run(runtime.InferenceSession(tmp_path / "large.onnx"), waveforms, lengths)
    torch.testing.assert_close(given, expected("wav2vec2", encoder, waveforms, lengths)[0], **CLOSE)


def test_what_cannot_be_done_is_one_sentence(tmp_path, monkeypatch):
    save_encoder("wav2vec2", tmp_path / "run")
    (tmp_path / "mine.onnx").write_text("Dear mother")
    with pytest.raises(ExportError, match=r"mine\.onnx: exists already"):
        export_onnx(tmp_path / "run", tmp_path / "mine.onnx")

    def refuse(graph):
        raise torch.onnx.errors.OnnxExporterError("Failed.\nNext steps:\n## Exception summary\n\nNo such operation")

    monkeypatch.setattr(ours, "trace", lambda path: traced("wav2vec2")[1])
    monkeypatch.setattr(ours, "translate", refuse)
    with pytest.raises(ExportError, match=r"run: has no translation to ONNX: No such operation; use torch-export\.$"):
        export_onnx(tmp_path / "run", tmp_path / "out.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r'pip install "speechssl\[onnx\]"'):
        export_onnx(tmp_path / "run", tmp_path / "out.onnx")
    assert not list(tmp_path.glob("*out*"))
