"""Bad input through the command line: one clear sentence, exit status 2, no stack trace, and nothing lost."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile
import yaml
from tiny_run import (
    RATE,
    metrics,
    one_sentence,
    speech,
)

from speechssl.data.manifest import Manifest, Utterance
from speechssl.objectives import Objective

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def manifest_of(path: Path, utterances) -> Path:
    Manifest.of(utterances).write(path)
    return path


def harmed(folder: Path, harm: str) -> Utterance:
    """One second of speech that was sound when its manifest was made."""
    path = folder / f"{harm}.{'wav' if harm == 'nan' else 'flac'}"
    samples = speech(0.85, seed=1)
    if harm == "nan":
        samples[len(samples) // 2] = np.nan
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    else:
        soundfile.write(path, samples, RATE)
        data = path.read_bytes()
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"Dear mother"}[harm])
    return Utterance(harm, str(path), len(samples), RATE)


# -------------------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("harm", ["truncated", "empty", "nan", "text"])
def test_one_bad_file_is_named_and_left_out(command, corpus, preset, tmp_path, harm):
    bad = harmed(tmp_path, harm)
    manifest = manifest_of(tmp_path / "train.jsonl", [bad, *corpus.utterances[:4]])
    # all five in one micro-batch, so that the bad one is never alone
    numbers = {"data": {"seconds_per_batch": 7.5}}
    status, out, err = command("pretrain", "-p", preset(**numbers), "--train", manifest, "-o", tmp_path / "run")
    assert status == 0, err
    named = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert len(named) == 1  # once, though it is met in every epoch
    assert bad.audio in named[0]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    assert np.isfinite([line["loss"] for line in metrics(tmp_path / "run")]).all()


@pytest.mark.parametrize("harm", ["truncated", "empty", "nan"])
def test_nothing_but_a_bad_file(command, preset, tmp_path, harm):
    bad = harmed(tmp_path, harm)
    manifest = manifest_of(tmp_path / "train.jsonl", [bad])
    sentence = one_sentence(command("pretrain", "-p", preset(), "--train", manifest, "-o", tmp_path / "run"))
    assert bad.audio in sentence
    assert "no utterance of a batch can be read" in sentence


def test_all_audio_is_gone(command, corpus, preset, tmp_path):
    gone = [Utterance(u.id, str(tmp_path / "gone" / u.id), u.num_samples, RATE) for u in corpus.utterances]
    manifest = manifest_of(tmp_path / "train.jsonl", gone)
    sentence = one_sentence(command("pretrain", "-p", preset(), "--train", manifest, "-o", tmp_path / "run"))
    assert "no utterance of a batch can be read" in sentence
    assert str(tmp_path / "gone") in sentence


@pytest.mark.parametrize("harm", ["truncated", "empty", "nan"])
def test_a_manifest_says_what_it_left_out(command, tmp_path, harm):
    folder = tmp_path / "sound"
    folder.mkdir()
    harmed(folder, harm)
    soundfile.write(folder / "good.flac", speech(0.8), RATE)
    status, out, _ = command(
        "manifest", "folder", folder, "-o", tmp_path / "all.jsonl", "-j", 1, "--detector", "energy"
    )
    assert status == 0
    assert harm in out
    assert [u.id for u in Manifest.read(tmp_path / "all.jsonl")] == ["good"]
    report = json.loads((tmp_path / "all.jsonl.report.json").read_text())["left_out"]
    assert [item["id"] for items in report.values() for item in items] == [harm]


def test_stereo_at_44100_is_pretrained_on(command, preset, tmp_path):
    (tmp_path / "sound").mkdir()
    for i in range(3):
        both = np.stack((speech(0.8, seed=i, rate=44_100), speech(0.8, seed=9, rate=44_100)), 1)
        soundfile.write(tmp_path / "sound" / f"{i}.wav", both, 44_100)
    made = command("manifest", "folder", tmp_path / "sound", "-o", tmp_path / "all.jsonl", "-j", 1, "--no-segment")
    assert made[0] == 0, made
    result = command("pretrain", "-p", preset(), "--train", tmp_path / "all.jsonl", "-o", tmp_path / "run")
    assert result[0] == 0, result
    assert "3 utterances" in result[1]
    assert "left out" not in result[1]
    assert len(metrics(tmp_path / "run")) == 2


# --------------------------------------------------------------------------------------------------------- transcripts


def test_a_transcript_line_without_audio(command, tmp_path):
    chapter = tmp_path / "corpus" / "84" / "121123"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "84-121123-0000.flac", speech(0.8), RATE)
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO\n84-121123-0001 DO YOU HEAR\n")
    output = tmp_path / "train.jsonl"
    status, out, _ = command("manifest", "librispeech", "--folder", tmp_path / "corpus", "-o", output, "-j", 1)
    assert status == 0
    assert "84-121123-0001" in out
    assert [u.id for u in Manifest.read(output)] == ["84-121123-0000"]
    (item,) = json.loads((tmp_path / "train.jsonl.report.json").read_text())["left_out"]["no audio"]
    assert item["id"] == "84-121123-0001"


def test_letters_outside_the_vocabulary(command, corpus, preset, pretrained, tmp_path):
    foreign = [Utterance(u.id, u.audio, u.num_samples, RATE, text="zwölf") for u in corpus.utterances]
    manifest = manifest_of(tmp_path / "train.jsonl", [*foreign[:1], *corpus.utterances[1:]])
    sentence = one_sentence(command(*finetune(preset(kind="ctc"), pretrained, manifest, corpus, tmp_path)))
    assert "train-0 has letters outside the vocabulary: L Z Ö" in sentence
    assert "correct or remove these lines" in sentence


def test_letters_that_only_validation_has_are_named_and_do_not_stop_the_run(
    command, corpus, preset, pretrained, tmp_path
):
    foreign = Utterance(
        "odd", *(getattr(corpus.utterances[0], k) for k in ("audio", "num_samples")), RATE, text="zwölf"
    )
    valid = manifest_of(tmp_path / "valid.jsonl", [foreign, *corpus.utterances[1:]])
    arguments = finetune(preset(kind="ctc"), pretrained, corpus.manifest, corpus, tmp_path)
    status, out, err = command(*arguments, "--valid", str(valid))
    assert status == 0, err
    assert "1 transcripts have letters outside the vocabulary and do not validate: odd\n" in out
    assert any(line["split"] == "valid" for line in metrics(tmp_path / "run"))


def test_a_label_longer_than_its_frames(command, corpus, preset, pretrained, tmp_path):
    first, *others = corpus.utterances
    long = Utterance("too-much", first.audio, first.num_samples, RATE, text="one two three " * 20)
    manifest = manifest_of(tmp_path / "train.jsonl", [long, *others])
    status, out, err = command(*finetune(preset(kind="ctc"), pretrained, manifest, corpus, tmp_path))
    assert status == 0, err
    assert "1 of 10 transcripts are longer than their audio can spell and are left out: too-much\n" in out
    assert "data: 9 utterances" in out
    assert np.isfinite([line["loss"] for line in metrics(tmp_path / "run")]).all()


def test_a_label_that_fits_but_for_the_speeds_of_training(command, corpus, preset, pretrained, tmp_path):
    first, *others = corpus.utterances
    letters = int(0.85 * ((first.num_samples - 85) // 80 + 1))  # for so many frames
    tight = Utterance("tight", first.audio, first.num_samples, RATE, text=("one two " * letters)[:letters].strip())
    manifest = manifest_of(tmp_path / "train.jsonl", [tight, *others])
    path = preset(kind="ctc", objective={"augment": {"speed": 0.4}})
    status, out, err = command(*finetune(path, pretrained, manifest, corpus, tmp_path), "--valid", manifest)
    assert status == 0, err
    assert out.count("1 of 10 transcripts are longer than their audio can spell") == 1, "validation plays it as it is"


def test_only_labels_longer_than_their_frames(command, corpus, preset, pretrained, tmp_path):
    first = corpus.utterances[0]
    long = Utterance("too-much", first.audio, first.num_samples, RATE, text="one two three " * 20)
    manifest = manifest_of(tmp_path / "train.jsonl", [long])
    sentence = one_sentence(command(*finetune(preset(kind="ctc"), pretrained, manifest, corpus, tmp_path)))
    assert "none of 1 utterances can be used" in sentence


def test_crops_cannot_be_transcribed(command, corpus, preset, pretrained, tmp_path):
    path = preset(kind="ctc", data={"crop": True})
    sentence = one_sentence(command(*finetune(path, pretrained, corpus.manifest, corpus, tmp_path)))
    assert "set data.crop=false" in sentence


def finetune(preset: Path, init: Path, manifest: Path, corpus, folder: Path) -> list:
    paths = ["--init", init, "--train", manifest, "--vocabulary", corpus.vocabulary, "-o", folder / "run"]
    return ["finetune", "-p", preset, *paths]


# ------------------------------------------------------------------------------------------------------- configuration


def test_an_unknown_key(command, corpus, preset, tmp_path):
    path = preset()
    path.write_text(path.read_text().replace("seconds_per_update:", "second_per_update:"))
    sentence = one_sentence(command("pretrain", "-p", path, "--train", corpus.manifest, "-o", tmp_path / "run"))
    assert sentence == f"{path}: unknown key 'train.second_per_update'; did you mean 'seconds_per_update'?"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.num_negativs=5", "unknown key 'objective.num_negativs'; did you mean 'num_negatives'?"),
        ("objective.name=wav2vec3", "no objective 'wav2vec3'; did you mean 'wav2vec'?"),
        ("objective.name=nowhere:Thing", "objective 'nowhere:Thing' cannot be imported"),
        ("data.min_seconds=0.01", "data.min_seconds (0.01) lets in utterances of fewer than the 4 frames"),
        ("train.precision=fp16", "fp16 needs a GPU; choose bf16 or fp32"),
        ("optim.lr", "override 'optim.lr': write it as key=value"),
    ],
)
def test_values_that_cannot_work(command, corpus, preset, tmp_path, override, words):
    short = Utterance("short", corpus.utterances[0].audio, 300, RATE)
    manifest = manifest_of(tmp_path / "train.jsonl", [short, *corpus.utterances])
    result = command("pretrain", "-p", preset(), "--train", manifest, "-o", tmp_path / "run", override)
    assert words in one_sentence(result)
    assert not (tmp_path / "run" / "checkpoints").exists()


@dataclass(frozen=True, kw_only=True)
class NeedsUnitsConfig:
    name: Literal["units"] = "units"


class NeedsUnits(Objective):
    """As HuBERT will be, for a preset that asks for units where there are none."""

    Config = NeedsUnitsConfig
    needs = frozenset({"units"})


def test_a_preset_that_needs_units(command, corpus, preset, tmp_path):
    path = preset()
    data = yaml.safe_load(path.read_text()) | {"objective": {"name": f"{__name__}:NeedsUnits"}}
    path.write_text(yaml.safe_dump(data))
    sentence = one_sentence(command("pretrain", "-p", path, "--train", corpus.manifest, "-o", tmp_path / "run"))
    assert "reads units" in sentence
    assert not (tmp_path / "run").exists()


def test_negatives_of_the_same_speaker_need_speakers(command, corpus, preset, tmp_path):
    nobody = [Utterance(u.id, u.audio, u.num_samples, RATE) for u in corpus.utterances]
    manifest = manifest_of(tmp_path / "train.jsonl", nobody)
    arguments = ["pretrain", "-p", preset(), "--train", manifest, "-o", tmp_path / "run", "objective.negatives=speaker"]
    assert "reads speakers" in one_sentence(command(*arguments))


def test_files_that_are_not_there(command, corpus, preset, pretrained, tmp_path):
    run, nothing = tmp_path / "run", tmp_path / "nothing"
    train = ["--train", corpus.manifest, "-o", run]
    assert "no such manifest" in one_sentence(command("pretrain", "-p", preset(), "--train", nothing, "-o", run))
    assert "no such configuration" in one_sentence(command("pretrain", "-p", "nothing.yaml", *train))
    assert "no preset 'nothing'" in one_sentence(command("pretrain", "-p", "nothing", *train))
    assert "train first" in one_sentence(command("pretrain", "-p", preset(), "--init", nothing, *train))
    ctc = preset(kind="ctc")
    assert "train first" in one_sentence(command(*finetune(ctc, nothing, corpus.manifest, corpus, tmp_path)))
    without = ["finetune", "-p", ctc, "--init", pretrained, "--vocabulary", nothing, *train]
    assert "no such vocabulary" in one_sentence(command(*without))
    both = [
        "finetune",
        "-p",
        ctc,
        "--init",
        pretrained,
        "--like",
        pretrained,
        "--vocabulary",
        corpus.vocabulary,
        *train,
    ]
    assert "give either --init" in one_sentence(command(*both))
