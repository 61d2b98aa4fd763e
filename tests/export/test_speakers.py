"""Speaker models of transformers, in and out: the same scores, and one sentence about what has no place there."""

import json

import pytest
import soundfile
import torch
from random_models import (
    CLOSE,
    FAMILIES,
    SPEAKERS,
    assert_same_tensors,
    noise,
    our_checkpoint,
    their_model,
)
from tiny_run import speech, speechssl

from speechssl.batch import Batch
from speechssl.checkpoint import load_checkpoint
from speechssl.data.audio import normalize
from speechssl.export.hf import export_hf
from speechssl.export.imports import import_weights

transformers = pytest.importorskip("transformers")

CLASS = "ForSequenceClassification"


@torch.no_grad()
def our_scores(objective, waveforms, lengths):
    batch = Batch(ids=("",) * len(lengths), waveforms=waveforms, lengths=lengths)
    return objective.head(objective.embed(batch))


@torch.no_grad()
def their_scores(model, waveforms, present):
    mask = None if present.all() else present.long()
    return model(waveforms.clone(), attention_mask=mask).logits


@pytest.mark.parametrize(
    ("family", "numbers"),
    [*((family, {"pooled_norm": "batch"}) for family in FAMILIES), ("wav2vec2", {"embedding_dim": 0})],
)
def test_ours_open_there(tmp_path, family, numbers):
    ours = our_checkpoint(tmp_path / "ours", family, "tiny", name="speaker", numbers=numbers)
    assert export_hf(tmp_path / "ours", tmp_path / "theirs") == ""
    folder = tmp_path / "theirs"
    theirs, report = transformers.AutoModelForAudioClassification.from_pretrained(folder, output_loading_info=True)
    # Nothing but the run that it came from tells HuBERT's network from wav2vec 2.0's, and this one came from none.
    assert type(theirs).__name__ == {"wavlm": "WavLM", "data2vec": "Data2VecAudio"}.get(family, "Wav2Vec2") + CLASS
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.id2label == dict(enumerate(SPEAKERS))
    for lengths in ((4000, 4000), (4000, 3100, 2000)):
        waveforms, present = noise(*lengths)
        if present.all() or family != "data2vec":  # whose positional convolutions hear padding
            expected = their_scores(theirs.eval(), waveforms, present)
            torch.testing.assert_close(our_scores(ours, waveforms, present.sum(1)), expected, **CLOSE)
            assert expected.std() > 1e-2, "a comparison of constants says nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_theirs_open_here_and_go_back(tmp_path, family):
    labels = {"id2label": {0: "yes", 1: "no", 2: "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}}
    theirs = their_model(family, "tiny", CLASS, **labels, classifier_proj_size=6, mask_time_prob=0.0)
    theirs.save_pretrained(tmp_path / "theirs")
    found = import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert not found.left_behind
    ours = load_checkpoint(tmp_path / "ours").objective
    assert tuple(ours.config.speakers) == ("yes", "no", "perhaps")
    waveforms, present = noise(4000, 4000)
    expected = their_scores(theirs, waveforms, present)
    torch.testing.assert_close(our_scores(ours, waveforms, present.sum(1)), expected, **CLOSE)
    export_hf(tmp_path / "ours", tmp_path / "again")
    again = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path / "again")
    plain = [
        {name.removeprefix(f"{m.base_model_prefix}."): t for name, t in m.state_dict().items()} for m in (again, theirs)
    ]
    assert_same_tensors(*plain)  # HuBERT comes back as a wav2vec 2.0, which is the same network
    assert again.config.id2label == theirs.config.id2label


def test_the_card_s_pipeline_names_the_speaker(tmp_path, monkeypatch):
    ours = our_checkpoint(tmp_path / "ours", "wav2vec2", "tiny", name="speaker", normalize=True)
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    card = (tmp_path / "theirs" / "README.md").read_text()
    assert "pipeline_tag: audio-classification" in card
    assert "not in here" not in card
    waveform = speech(0.5)
    monkeypatch.chdir(tmp_path / "theirs")
    soundfile.write("speech.wav", waveform, 16_000, subtype="FLOAT")
    names: dict = {}
    exec(card.split("```python\n")[1].split("```")[0].replace("print(", "said = ("), names)
    heard = normalize(torch.from_numpy(waveform))[None]
    expected = our_scores(ours, heard, torch.tensor([heard.shape[1]])).softmax(-1)[0]
    assert {one["label"]: one["score"] for one in names["said"]} == pytest.approx(
        dict(zip(SPEAKERS, expected.tolist(), strict=True)), abs=1e-5
    )


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"classifier": "aam"}, "it has classifier=aam,"),
        ({"pooling": "statistics", "features": "sum"}, "it has features=sum, pooling=statistics,"),
    ],
)
def test_other_heads_stay_behind_and_it_is_said(tmp_path, capsys, monkeypatch, numbers, said):
    our_checkpoint(tmp_path / "ours", "hubert", "tiny", name="speaker", numbers=numbers)
    arguments = ["export", tmp_path / "ours", tmp_path / "theirs", "--format", "hf"]
    status, out, _ = speechssl(capsys, monkeypatch, *arguments)
    assert status == 0
    assert out.splitlines()[-1].startswith("The head stays behind: ")
    assert said in out
    theirs, report = transformers.AutoModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not report["missing_keys"]
    assert not hasattr(theirs, "classifier")
    assert "| not in here | " in (tmp_path / "theirs" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (CLASS, {"use_weighted_layer_sum": True}),
        ("ForXVector", {"tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 5}),
        ("ForAudioFrameClassification", {}),
    ],
)
def test_heads_that_we_lack_are_left_behind_and_named(tmp_path, kind, more):
    theirs = their_model("wav2vec2", "tiny", kind, **more)
    theirs.save_pretrained(tmp_path / "theirs")
    found = import_weights(tmp_path / "theirs", tmp_path / "ours")
    heads = {name for name in theirs.state_dict() if not name.startswith("wav2vec2.")}
    assert set(found.left_behind) == heads
    assert load_checkpoint(tmp_path / "ours").config.objective["family"] == "wav2vec2"


def test_names_that_do_not_fit_the_classifier(tmp_path):
    """Then the encoder comes alone: nobody is to be called by another's name."""
    their_model("wavlm", "tiny", CLASS, num_labels=3).save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    config = json.loads(file.read_text())
    for number, labels in enumerate([{"0": "A", "1": "B"}, {"0": "A", "1": "A", "2": "B"}, ["A", "B", "C"]]):
        file.write_text(json.dumps(config | {"id2label": labels}))
        found = import_weights(tmp_path / "theirs", tmp_path / f"ours-{number}")
        assert "classifier.weight" in found.left_behind
