"""transformers, in and out: the same tensors back, and the same numbers in every layer."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from parity import shake
from random_models import (
    CLOSE,
    FAMILIES,
    LETTERS,
    SIZES,
    assert_padding_is_unheard,
    assert_same_layers,
    assert_same_tensors,
    encoder_section,
    noise,
    objective_section,
    our_checkpoint,
    their_model,
)
from tiny_run import speech, talkative

from speechssl.build import build_objective
from speechssl.checkpoint import load_checkpoint, save_model
from speechssl.config import Config, parse
from speechssl.data.tokens import Tokenizer
from speechssl.export.bare import NAME
from speechssl.export.hf import export_hf
from speechssl.export.imports import import_weights
from speechssl.export.keymaps import ExportError
from speechssl.extract import load_encoder

transformers = pytest.importorskip("transformers")

ALL = pytest.mark.parametrize("size", SIZES)
EACH = pytest.mark.parametrize("family", FAMILIES)


@EACH
@ALL
def test_released_models_open_here(tmp_path, family, size):
    theirs = their_model(family, size)
    theirs.save_pretrained(tmp_path / "theirs")
    found = import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert not found.left_behind
    encoder = load_encoder(tmp_path / "ours")
    waveforms, _ = noise(4000, 4000)
    assert_same_layers(encoder, theirs.encoder.layers, lambda x: theirs(x).last_hidden_state, waveforms)
    assert_padding_is_unheard(encoder)


@EACH
@ALL
def test_ours_open_there(tmp_path, family, size):
    ours = our_checkpoint(tmp_path / "ours", family, size)
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    theirs, report = transformers.AutoModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert type(theirs).__name__.removesuffix("Model").lower() == family.replace("data2vec", "data2vecaudio")
    assert not report["missing_keys"]
    waveforms, _ = noise(4000, 4000)
    assert_same_layers(ours.encoder, theirs.eval().encoder.layers, lambda x: theirs(x).last_hidden_state, waveforms)


@EACH
@ALL
def test_there_and_back_are_identical_tensors(tmp_path, family, size):
    ours = our_checkpoint(tmp_path / "ours", family, size, normalize=True, sample_rate=8000)
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "back")
    back = load_checkpoint(tmp_path / "back")
    assert_same_tensors(back.objective.encoder.state_dict(), ours.encoder.state_dict())
    assert torch.equal(back.objective.mask_embedding, ours.mask_embedding)
    assert back.objective.encoder.config == ours.encoder.config
    assert (back.config.data.normalize, back.config.data.sample_rate) == (True, 8000)
    if family == "wav2vec2":
        assert_same_tensors(back.objective.state_dict(), ours.state_dict())
    else:
        assert back.config.objective["family"] == family


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
@torch.no_grad()
def test_padded_batches_where_theirs_do_not_mind(tmp_path, family):
    """With layer norm in the convolutions; each frame of each layer."""
    theirs = their_model(family, "large")
    theirs.save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    waveforms, present = noise(4000, 3100, 2000)
    lengths = present.sum(1)
    output = load_encoder(tmp_path / "ours")(waveforms, lengths)
    expected = theirs(waveforms, attention_mask=present.long()).last_hidden_state
    for mine, theirs_, frames in zip(output.hidden, expected, output.lengths, strict=True):
        torch.testing.assert_close(mine[:frames], theirs_[:frames], **CLOSE)


@pytest.mark.parametrize("naming", ["plain", "parametrized"])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "shards"])
def test_files_and_namings(tmp_path, naming, kind):
    """pytorch_model.bin and shards too; weight norm under its old names and its new ones."""
    theirs = their_model("hubert", "tiny")
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = dict(theirs.state_dict())
    old = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    for short, long in old.items():
        for name in [name for name in state if name.endswith((short, long))]:
            new = name.replace(long, short) if naming == "plain" else name.replace(short, long)
            state[new] = state.pop(name)
    assert any(name.endswith("weight_g" if naming == "plain" else "original0") for name in state)
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "safetensors":
        _save(state, folder / "model.safetensors")
    else:
        half = len(state) // 2
        shards = {"a.safetensors": dict(list(state.items())[:half]), "b.safetensors": dict(list(state.items())[half:])}
        for name, part in shards.items():
            _save(part, folder / name)
        index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    import_weights(folder, tmp_path / "ours")
    waveforms, _ = noise(2000)
    encoder = load_encoder(tmp_path / "ours")
    assert_same_layers(encoder, theirs.encoder.layers, lambda x: theirs(x).last_hidden_state, waveforms)


def _save(tensors: dict, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


# ------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("size", ["base", "large"])
def test_pretraining_heads_come_along(tmp_path, size):
    numbers = {"num_codevector_groups": 2, "num_codevectors_per_group": 3, "codevector_dim": 12}
    theirs = their_model("wav2vec2", size, "ForPreTraining", **numbers, proj_codevector_dim=10, num_negatives=9)
    theirs.save_pretrained(tmp_path / "theirs")
    found = import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert not found.left_behind
    ours = load_checkpoint(tmp_path / "ours")
    assert ours.config.objective["name"] == "wav2vec2"
    assert (ours.objective.config.num_negatives, ours.objective.config.code_dim) == (9, 12)
    assert torch.equal(ours.objective.quantizer.codebooks.flatten(0, 1), theirs.quantizer.codevectors[0])
    export_hf(tmp_path / "ours", tmp_path / "again")
    again, report = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same_tensors(dict(again.state_dict()), dict(theirs.state_dict()))


def test_the_temperature_is_that_of_the_end(tmp_path):
    """A released model is not asked to draw its codes as if it knew nothing."""
    their_model("wav2vec2", "tiny", "ForPreTraining").save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    objective = load_checkpoint(tmp_path / "ours").objective
    objective.before_step(0)
    assert objective.quantizer.temperature == 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fine_tuned_model_transcribes_in_a_pipeline(tmp_path, family):
    ours = our_checkpoint(tmp_path / "ours", family, "large", name="ctc", normalize=True)
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    pipe = transformers.pipeline("automatic-speech-recognition", str(tmp_path / "theirs"), device="cpu")
    theirs = {"wavlm": "WavLM", "data2vec": "Data2VecAudio"}.get(family, "Wav2Vec2")
    assert type(pipe.model).__name__ == f"{theirs}ForCTC"
    texts = []
    for seed in range(3):
        waveform = speech(0.5, seed=seed)
        texts.append(pipe(waveform)["text"])
        assert texts[-1] == _our_text(ours, LETTERS, torch.from_numpy(waveform))
    assert any(texts), "random weights say something"


@pytest.mark.parametrize("level", [0.1, 1e-2, 1e-3, 1e-4])
def test_a_quiet_recording_is_normalised_as_there(level):
    from speechssl.data.audio import normalize

    waveform = level * torch.randn(4000, generator=torch.Generator().manual_seed(1)) + level
    theirs = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)(waveform.numpy(), sampling_rate=16_000)
    expected = torch.from_numpy(theirs.input_values[0])
    torch.testing.assert_close(normalize(waveform), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def _our_text(objective, tokenizer: Tokenizer, waveform: torch.Tensor) -> str:
    from speechssl.data.audio import normalize

    with torch.no_grad():
        hidden = objective.encoder(normalize(waveform[None])).hidden
        path = objective.head(hidden, torch.tensor([hidden.shape[1]]))[0].argmax(-1)[0].tolist()
    said = [token for before, token in zip([0, *path], path, strict=False) if token and token != before]
    return tokenizer.decode(said)


def test_sentencepiece_transcribes_in_a_pipeline(tmp_path):
    tokenizer = Tokenizer.train(["it is a test of letters and of pieces"] * 4, kind="sentencepiece", size=24)
    plain = {"encoder": encoder_section("wav2vec2", "large"), "objective": objective_section("ctc")}
    plain["objective"] |= {"vocab_size": len(tokenizer), "word_boundary": -1}
    config = parse(Config, plain | {"data": {"normalize": True}}, source="test")
    with talkative():
        ours = build_objective(config).eval()
    shake(ours)
    (tmp_path / "ours").mkdir()
    save_model(ours, config, tmp_path / "ours", tokenizer=tokenizer)
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    pipe = transformers.pipeline("automatic-speech-recognition", str(tmp_path / "theirs"), device="cpu")
    waveform = speech(0.7, seed=1)
    expected = _our_text(ours, tokenizer, torch.from_numpy(waveform))
    assert expected
    assert pipe(waveform)["text"] == expected


@torch.no_grad()
def test_a_released_ctc_model_decodes_here(tmp_path):
    """Its vocabulary is put in our order; sentence ends and unknown, which CTC never aims at, are left out."""
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "'", "A"]
    theirs = their_model("hubert", "large", "ForCTC", vocab_size=len(symbols))
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    import_weights(folder, tmp_path / "ours")
    ours = load_checkpoint(tmp_path / "ours")
    assert ours.tokenizer.symbols == ("<blank>", "|", "E", "T", "'", "A")
    assert (ours.tokenizer.case, ours.tokenizer.punctuation) == ("upper", "strip")
    assert ours.objective.config.word_boundary == 1
    waveforms, _ = noise(4000)
    logits = theirs(waveforms).logits[..., [0, 4, 5, 6, 7, 8]]
    hidden = ours.objective.encoder(waveforms).hidden
    log_probs, _ = ours.objective.head(hidden, torch.tensor([hidden.shape[1]]))
    torch.testing.assert_close(log_probs, logits.log_softmax(-1), **CLOSE)


def test_a_head_of_phones_is_left_behind(tmp_path):
    theirs = their_model("wav2vec2", "tiny", "ForCTC", vocab_size=4)
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "aɪ": 2, "t": 3}))
    found = import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert set(found.left_behind) == {"head.linear.weight", "head.linear.bias"}
    assert load_checkpoint(tmp_path / "ours").config.objective["family"] == "wav2vec2"


def test_hubert_fine_tuned_stays_hubert(tmp_path):
    """wav2vec 2.0 and HuBERT are one network; the run that it came from tells them apart."""
    our_checkpoint(tmp_path / "pretrained", "hubert", "tiny")
    objective = our_checkpoint(tmp_path / "ours", "hubert", "tiny", name="ctc")
    checkpoint = load_checkpoint(tmp_path / "ours")
    config = checkpoint.config.override(init=str(tmp_path / "pretrained"))
    save_model(objective, config, tmp_path / "ours", tokenizer=LETTERS)
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["architectures"] == ["HubertForCTC"]


def test_heads_without_a_place_are_named_in_the_card(tmp_path):
    our_checkpoint(tmp_path / "ours", "hubert", "tiny")
    said = export_hf(tmp_path / "ours", tmp_path / "theirs")
    assert said == "Stays behind, for want of a place there: unit_embeddings, prediction."
    card = (tmp_path / "theirs" / "README.md").read_text()
    assert "| not in here | unit_embeddings, prediction" in card


# -------------------------------------------------------------------------------------------------- card, and refusals


def test_the_card_says_what_it_is(tmp_path):
    our_checkpoint(
        tmp_path / "run" / "checkpoints" / "step-00000000", "wav2vec2", "tiny", train="/far/away/corpus.jsonl"
    )
    lines = [{"split": "train", "step": 0, "loss": 9}, {"split": "valid", "step": 0, "loss": 4.25}]
    lines.append({"split": "valid", "step": 10, "loss": 3.0})
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    export_hf(tmp_path / "run", tmp_path / "theirs", licence="cc-by-4.0")
    card = (tmp_path / "theirs" / "README.md").read_text()
    head = card.split("---")[1]
    assert "license: cc-by-4.0" in head
    assert "library_name: transformers" in head
    assert "| data | corpus.jsonl |" in card
    assert "/far/away" not in card, "a path of the machine it was trained on is nobody's business"
    assert "| loss | 4.25 |" in card, "the last validation up to this step"


@pytest.mark.parametrize(("name", "made"), [("wav2vec2", "hidden"), ("ctc", "transcribe")])
def test_the_card_s_code_runs(tmp_path, monkeypatch, name, made):
    our_checkpoint(tmp_path / "ours", "wav2vec2", "tiny", name=name)
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    code = (tmp_path / "theirs" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "theirs")
    waveform = speech(0.5)
    soundfile.write("speech.wav", waveform, 16_000)
    names: dict = {"waveform": waveform}
    exec(code, names)
    assert made in names


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ({"feature_encoder": {"name": "logmel"}}, "filterbank"),
        ({"context": {"name": "recurrent"}, "project": False, "latent_norm": False}, "'recurrent'"),
        ({"feature_encoder": {"name": "waveform", "norm": "none"}}, "convolutions"),
        ({"latent_norm": False}, "projection"),
    ],
)
def test_what_transformers_lacks_is_one_sentence(tmp_path, encoder, reason):
    section = {"context": encoder_section("wav2vec2", "tiny")["context"]} | encoder
    config = parse(Config, {"encoder": section, "objective": {"name": NAME}}, source="test")
    objective = build_objective(config)
    (tmp_path / "ours").mkdir()
    save_model(objective, config, tmp_path / "ours")
    with pytest.raises(ExportError, match=reason) as error:
        export_hf(tmp_path / "ours", tmp_path / "theirs")
    assert "transformers lacks; export it with --format onnx or torch-export" in str(error.value)
    assert not (tmp_path / "theirs").exists()


def test_several_tokens_per_frame_have_no_place(tmp_path):
    plain = {"encoder": encoder_section("wav2vec2", "tiny"), "objective": objective_section("ctc")}
    config = parse(Config, plain, source="test").override(objective={"symbols_per_frame": 2})
    (tmp_path / "ours").mkdir()
    save_model(build_objective(config), config, tmp_path / "ours", tokenizer=LETTERS)
    with pytest.raises(ExportError, match="2 tokens per frame"):
        export_hf(tmp_path / "ours", tmp_path / "theirs")


def test_nothing_is_overwritten(tmp_path):
    our_checkpoint(tmp_path / "ours", "wav2vec2", "tiny")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        export_hf(tmp_path / "ours", tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]
