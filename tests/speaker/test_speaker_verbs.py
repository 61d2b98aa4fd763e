"""Identification and verification from the command line, on voices that anybody can tell apart."""

import json

import numpy as np
import pytest
from tiny_run import one_sentence
from voices import VOICES, make_voices, untrained

from speechssl.data.manifest import Manifest
from speechssl.speaker.embed import cosines
from speechssl.speaker.metrics import Detection
from speechssl.speaker.trials import make_trials, write_trials
from speechssl.speaker.verify import Verification, VerificationRow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    train, test = make_voices(folder, 4), make_voices(folder, 4, name="test", first=50)
    write_trials(make_trials(Manifest.read(test)), folder / "trials.txt")
    return train, test, folder / "trials.txt"


@pytest.fixture(scope="module")
def encoder(data, tmp_path_factory):
    return untrained("wav2vec2", tmp_path_factory.mktemp("encoder") / "run", data[0])


@pytest.fixture(scope="module")
def fine_tuned(data, tmp_path_factory):
    names = {"speakers": list(reversed(VOICES))}  # not in the order of any manifest
    return untrained("speaker", tmp_path_factory.mktemp("tuned") / "run", data[0], objective=names)


@pytest.fixture
def speaker(command):
    return lambda *arguments: command("speaker", *arguments)


def test_cosines_are_of_standardised_features():
    generator = np.random.default_rng(0)
    train, vectors = generator.normal(5, 2, (50, 4)), generator.normal(5, 2, (3, 4))
    found = cosines(vectors, train, np.array([0, 1]), np.array([2, 1]))
    a, b = ((vectors[i] - train.mean(0)) / train.std(0) for i in (0, 2))
    assert found[0] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert found[1] == pytest.approx(1.0)


def test_identify_with_a_frozen_encoder(speaker, data, encoder, tmp_path):
    train, test, _ = data
    arguments = ["identify", encoder, "--train", train, "--test", test, "-o", tmp_path, "--random-seeds", 0]
    status, out, err = speaker(*arguments, "--labels-per-speaker", "1,2", "--labels-in-all", "5", "--draws", 1)
    assert status == 0, err
    rows = json.loads((tmp_path / "speaker.json").read_text())["rows"]
    assert {row["labels"] for row in rows} == {"all", "1 per class", "2 per class", "5 in all"}
    known = {row["labels"]: row["accuracy"] for row in rows if row["features"] == "log-mel"}
    assert known["all"] == 1.0
    assert min(known.values()) > 0.5
    assert "12 test utterances, 3 classes" in out
    assert "give --train" in one_sentence(speaker("identify", encoder, "--test", test, "-o", tmp_path))


def test_identify_with_a_fine_tuned_model(speaker, data, fine_tuned, tmp_path):
    train, test, _ = data
    arguments = ["identify", fine_tuned, "--test", test, "-o", tmp_path]
    status, out, err = speaker(*arguments)
    assert status == 0, err
    record = json.loads((tmp_path / "identification.json").read_text())
    lines = [line.split("\t") for line in (tmp_path / "answers.tsv").read_text().splitlines()[1:]]
    assert {speaker for _, speaker, _ in lines} == set(VOICES)
    assert {answer for _, _, answer in lines} <= set(VOICES)
    right = sum(speaker == answer for _, speaker, answer in lines)
    assert record["accuracy"] == pytest.approx(right / 12)
    assert (record["seed"], record["trained_on"]) == (1, str(train))
    assert record["low"] < record["accuracy"] < record["high"]
    assert f"{100 * right / 12:.1f}% right" in out
    assert "leave out --train" in one_sentence(speaker(*arguments, "--train", train))
    strange = tmp_path / "strange.jsonl"
    manifest = Manifest.read(test)
    lines = [json.dumps({"id": u.id, "audio": u.audio, "num_samples": 10, "sample_rate": 16000}) for u in manifest]
    strange.write_text("\n".join(line[:-1] + ', "speaker": "eve"}' for line in lines))
    sentence = one_sentence(speaker("identify", fine_tuned, "--test", strange, "-o", tmp_path))
    assert "12 test utterances have labels that training does not: eve" in sentence


def test_a_fine_tuned_model_answers_by_its_own_names(data, fine_tuned, tmp_path):
    """The answer is the name at the place of the largest score, whatever the test manifest's order."""
    from speechssl.checkpoint import load_checkpoint
    from speechssl.data.dataset import padded_batches
    from speechssl.speaker.identify import identify

    checkpoint = load_checkpoint(fine_tuned)
    identify(checkpoint, data[1], tmp_path)
    answers = dict(line.split("\t")[::2] for line in (tmp_path / "answers.tsv").read_text().splitlines()[1:])
    for loaded in padded_batches(Manifest.read(data[1]), checkpoint.config.data, seconds_per_batch=1.0):
        places = checkpoint.objective.head(checkpoint.objective.embed(loaded.batch)).argmax(-1).tolist()
        for name, place in zip(loaded.batch.ids, places, strict=True):
            assert answers[name] == list(reversed(VOICES))[place]


@pytest.mark.parametrize("kind", ["frozen", "fine-tuned"])
def test_verify(speaker, data, encoder, fine_tuned, tmp_path, kind):
    train, test, trials = data
    run = encoder if kind == "frozen" else fine_tuned
    arguments = ["verify", run, "--trials", trials, "--test", test, "--train", train, "-o", tmp_path]
    arguments += ["--random-seeds", 1, "--samples", 100]
    status, out, err = speaker(*arguments)
    assert status == 0, err
    record = json.loads((tmp_path / "verification.json").read_text())
    layers = {(row["features"], row["layer"]) for row in record["rows"]}
    if kind == "frozen":
        assert layers == {(f, x) for f in ("trained", "random weights") for x in ("latents", "0", "1", "2")} | {
            ("log-mel", "log-mel")
        }
    else:
        assert layers == {("fine-tuned", "embedding"), ("log-mel", "log-mel")}
    known = next(row for row in record["rows"] if row["features"] == "log-mel")
    assert known["measures"]["eer"]["value"] < 0.05
    assert known["train_eer"] < 0.05
    assert record["num_trials"] == 66
    assert record["num_targets"] == 18
    lines = [line.split() for line in (tmp_path / "scores-log-mel-log-mel.txt").read_text().splitlines()]
    again = Detection([float(line[3]) for line in lines], [line[0] == "1" for line in lines])
    assert again.eer() == pytest.approx(known["measures"]["eer"]["value"], abs=1e-6)
    assert "minDCF 0.01" in out
    assert "66 trials, 18 of them by one speaker; 3 speakers" in out
    assert speaker(*arguments)[0] == 0  # once more, over its own


def test_what_verify_refuses(speaker, data, encoder, tmp_path):
    train, test, trials = data
    common = ["verify", encoder, "--test", test, "--train", train, "-o", tmp_path, "--random-seeds", 0]
    assert "no such list of trials" in one_sentence(speaker(*common, "--trials", tmp_path / "none.txt"))
    (tmp_path / "bad.txt").write_text("1 a b\n")
    assert "the manifest has no utterance 'a'" in one_sentence(speaker(*common, "--trials", tmp_path / "bad.txt"))
    assert "shares between 0 and 1" in one_sentence(speaker(*common, "--trials", trials, "--p-target", "2"))
    (tmp_path / "verification.json").write_text("[]")
    assert "was not made by this command" in one_sentence(speaker(*common, "--trials", trials))


def test_the_layer_is_chosen_by_training_utterances():
    def row(layer, train_eer):
        return VerificationRow("trained", 0, layer, train_eer, {})

    assert Verification((row("0", 0.0), row("1", 0.2)), {}).chosen() == [row("0", 0.0)]
    assert Verification((row("0", 0.2), row("1", 0.2)), {}).chosen() == [row("1", 0.2)]
    assert Verification((row("0", None), row("1", None)), {}).chosen() == [row("1", None)]
