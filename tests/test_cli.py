"""The command line: quick help for every verb, presets to look at, and the verbs from manifest to score in a row."""

import re
import subprocess
import sys

import pytest
import soundfile
import yaml
from tiny_run import RATE, ROOT, WORDS, make_corpus, one_sentence, speech, tiny_plain

from speechssl import cli
from speechssl.checkpoint import find_checkpoint
from speechssl.config import presets
from speechssl.errors import REQUEUE
from speechssl.stored import WEIGHTS, read_tensors


def test_help_of_every_verb(command):
    assert command("--help")[0] == 0
    verbs = [[c.name or c.callback.__name__] for c in cli.app.registered_commands]
    for group in cli.app.registered_groups:
        verbs += [[group.name], *([group.name, c.callback.__name__] for c in group.typer_instance.registered_commands)]
    assert len(verbs) > 10
    for verb in verbs:
        status, out, err = command(*verb, "--help")
        assert status == 0, err
        assert re.search(f"Usage:.* {' '.join(verb)} ", out), out


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['speechssl', '--help']\n"
        "from speechssl.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'accelerate', 'numpy', 'soundfile', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout


@pytest.mark.parametrize(
    "verb",
    [
        ["manifest", "folder", "{sound}", "-o", "{new}", "-j", "1"],
        ["manifest", "join", "{manifest}", "-o", "{new}"],
        ["vocab", "{manifest}", "-o", "{new}"],
    ],
)
def test_what_is_done_before_training_does_not_import_torch(verb, tmp_path):
    """It takes seconds to load, in each process that listens to the recordings too."""
    corpus = make_corpus(tmp_path / "sound")
    places = {"sound": corpus.manifest.parent, "manifest": corpus.manifest, "new": tmp_path / "new"}
    code = (
        "import sys\n"
        "from speechssl.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    command = [sys.executable, "-c", code, *(word.format(**places) for word in verb)]
    done = subprocess.run(command, cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("new*"))


def test_a_signal_before_the_first_update_is_seen_by_no_import():
    """As an exception it came up inside one, and was a trace instead of a wish to be started again."""
    code = (
        "import os, signal, time\n"
        "from speechssl.cli import train\n"
        "train._may_be_started_again()\n"
        "print('before')\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(20)\n"
        "except BaseException as error:\n    print('caught', repr(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (REQUEUE, "before\n", "")


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "speechssl", "show", "wav2vec3"], cwd=ROOT, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no preset 'wav2vec3'; ")
    assert done.stderr.count("\n") == 1


def test_show_lists_every_preset(command):
    status, out, _ = command("show")
    assert status == 0
    for name, about in presets().items():
        assert name in out
        assert about[:20] in out


def test_show_a_preset(command):
    status, out, _ = command("show", "wav2vec2-tiny-mel", "train.updates=7")
    assert status == 0
    body, _, facts = out.partition("\n\n")
    assert yaml.safe_load(body)["train"]["updates"] == 7
    assert "frame rate: 25 Hz, 40 ms a frame" in facts
    assert "receptive field: 1360 samples, 85 ms" in facts
    assert "7 updates" in facts
    assert " M\n" in facts


def test_show_a_run(command, tmp_path):
    corpus = make_corpus(tmp_path / "sound", (0.5, 0.6))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_plain("ctc", corpus)))
    status, out, _ = command("show", tmp_path)
    assert status == 0
    assert "frame rate: 200 Hz, 5 ms a frame" in out
    assert "in 3 micro-batches" in out


def test_the_verbs_in_a_row(command, tmp_path):
    """Each verb reads what the one before it wrote, and says what comes next."""
    sound, lines = tmp_path / "sound", []
    sound.mkdir()
    for i in range(6):
        soundfile.write(sound / f"{i}.flac", speech(0.5 + 0.05 * i, seed=i), RATE)
        lines.append(f"{i}.flac\t{WORDS[i % 5]} {WORDS[(i + 1) % 5]}\n")
    (tmp_path / "text.tsv").write_text("".join(lines))
    corpus = make_corpus(tmp_path / "other", (0.5,))
    for kind in ("wav2vec2", "ctc"):
        data = tiny_plain(kind, corpus, train={"updates": 2})
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(data))

    def do(*arguments) -> str:
        status, out, err = command(*arguments)
        assert status == 0, err
        assert "next: " in out or arguments[0] in ("score", "vocab"), arguments
        return out

    manifest, vocabulary, texts = tmp_path / "all.jsonl", tmp_path / "vocab.json", tmp_path / "ctc" / "texts.jsonl"
    transcripts = ["--transcripts", tmp_path / "text.tsv"]
    do("manifest", "folder", sound, "-o", manifest, *transcripts, "-j", 1, "--no-segment")
    do("vocab", manifest, "-o", vocabulary)
    do("pretrain", "-p", tmp_path / "wav2vec2.yaml", "--train", manifest, "-o", tmp_path / "pretrain")
    labelled = ["--train", manifest, "--valid", manifest, "--vocabulary", vocabulary]
    tune = ["finetune", "-p", tmp_path / "ctc.yaml", *labelled]
    tuned = do(*tune, "--init", tmp_path / "pretrain", "-o", tmp_path / "ctc")
    assert f"encoder from {tmp_path / 'pretrain'}" in tuned
    scratch = do(*tune, "--like", tmp_path / "pretrain", "-o", tmp_path / "scratch")
    assert "from scratch" in scratch
    do("decode", tmp_path / "ctc", manifest, "-o", texts)
    assert "WER %" in do("score", texts)
    assert (tmp_path / "ctc" / "texts.score" / "score.json").is_file()
    again = do("pretrain", "-p", tmp_path / "wav2vec2.yaml", "--train", manifest, "-o", tmp_path / "pretrain")
    assert "resumed at update 2" in again

    pretrained_only = command("decode", tmp_path / "pretrain", manifest, "-o", tmp_path / "no.jsonl")
    assert "was not fine-tuned" in one_sentence(pretrained_only)


@pytest.mark.parametrize(("asked", "kept"), [([], 0), (["encoder.context.quantize_after=2"], 2)])
def test_labels_are_learnt_in_front_of_the_last_quantizer(command, tmp_path, asked, kept):
    """Not from the codes of VQ-APC, which keep little of what its last layer says."""
    corpus = make_corpus(tmp_path / "sound", (0.5, 0.6, 0.7))
    (tmp_path / "apc.yaml").write_text(yaml.safe_dump(tiny_plain("apc", corpus, train={"updates": 1})))
    assert command("pretrain", "-p", tmp_path / "apc.yaml", "--train", corpus.manifest, "-o", tmp_path / "apc")[0] == 0
    files = ["--train", corpus.manifest, "--vocabulary", corpus.vocabulary, "-o", tmp_path / "ctc"]
    numbers = ["train.updates=1", "data.workers=0", "encoder.dropout=0", *asked]
    status, out, err = command("finetune", "-p", "ctc-tiny", "--init", tmp_path / "apc", *files, *numbers)
    assert status == 0, err
    assert f"encoder from {tmp_path / 'apc'}" in out
    assert ("left out" in out) == (not kept)
    config = yaml.safe_load((tmp_path / "ctc" / "config.yaml").read_text())
    assert config["encoder"]["context"]["quantize_after"] == kept
    names = read_tensors(find_checkpoint(tmp_path / "ctc") / WEIGHTS)
    assert any("quantizer" in name for name in names) == bool(kept)
