"""`speechssl manifest ...` and `speechssl vocab`: from archives and folders to manifests, splits and a vocabulary."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechssl.cli.making import is_made, made_by_command, make, say_next, write
from speechssl.errors import UserError

if TYPE_CHECKING:
    from speechssl.data.corpora import Corpus

manifest_app = typer.Typer(
    help="Make manifests: lists of sound utterances, with a report of what was left out.", no_args_is_help=True
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Manifest to write (.jsonl).")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what another command made.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=0, help="Reader processes; 0: one per core.")]
MinSeconds = Annotated[float, typer.Option(min=0, help="Leave out what is shorter.")]
MaxSeconds = Annotated[float, typer.Option(min=0.1, help="Leave out (folder: cut at silences) what is longer.")]
MaxClipped = Annotated[float, typer.Option(min=0, max=1, help="Largest share of samples at full scale.")]
Root = Annotated[Path | None, typer.Option(help="Where the audio lies now, if not where the list says.")]
LabelLevel = Annotated[
    int | None,
    typer.Option(min=1, help="Which folder names the label (genre, keyword), for a column `label`: 1 = the first."),
]
RequireText = Annotated[bool, typer.Option("--require-text", help="Leave out audio without a transcript.")]


@manifest_app.command()
def librispeech(
    archives: Annotated[
        list[str] | None,
        typer.Argument(
            help="Archives to download (dev-clean, train-clean-5, ...) or groups: mini, 960h, evaluation, "
            "limited (Libri-Light's 10 h), all."
        ),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder that receives archives and speech.")] = Path("data"),
    folder: Annotated[
        Path | None, typer.Option(help="Read this folder in LibriSpeech layout; download nothing.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --folder: the manifest; else a folder (default: DATA/manifests)."),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Address to download from; it holds 12/dev-clean.tar.gz, ...")
    ] = None,
    keep_archives: Annotated[bool, typer.Option(help="Keep archives once they are unpacked.")] = True,
    min_seconds: MinSeconds = 0.1,
    max_seconds: MaxSeconds = 40.0,
    max_clipped: MaxClipped = 0.01,
    jobs: Jobs = 0,
    force: Force = False,
) -> None:
    """LibriSpeech, mini LibriSpeech, Libri-Light's limited set, or any folder in their layout."""
    from speechssl.data.corpora import librispeech as corpus
    from speechssl.data.scan import Rules

    rules = Rules(min_seconds=min_seconds, max_seconds=max_seconds, max_clipped=max_clipped)
    if folder is not None:
        if archives or output is None:
            raise UserError("with --folder give --output FILE.jsonl and no archives.")
        made = make("librispeech", {"folder": folder}, output, rules, lambda: corpus.read(folder), jobs, force)
        say_next(made)
        return
    if not archives:
        raise UserError("name archives to download (for example `mini`), or an existing folder with --folder.")
    last = None
    for name in corpus.expand(archives):
        archive = corpus.ARCHIVES[name]
        if not archive.folder:
            corpus.fetch(name, data, mirror=mirror, keep_archive=keep_archives)
            typer.echo(f"{name}: unpacked below {data}; it holds no utterances, so there is no manifest.")
            continue

        def read(name: str = name) -> Corpus:
            return corpus.read(corpus.fetch(name, data, mirror=mirror, keep_archive=keep_archives))

        path = (output or data / "manifests") / f"{name}.jsonl"
        last = make("librispeech", {"folder": data / archive.folder}, path, rules, read, jobs, force)
    if last is not None:
        say_next(last)


@manifest_app.command()
def folder(
    folder: Annotated[Path, typer.Argument(help="Tree of wav, flac, ogg, opus, mp3, and uncompressed tars of them.")],
    output: Output,
    speaker_level: Annotated[
        int | None, typer.Option(min=1, help="Which folder names the speaker: 1 = the first below FOLDER.")
    ] = None,
    label_level: LabelLevel = None,
    transcripts: Annotated[
        Path | None, typer.Option(help="Table `id or path<TAB>text` (.tsv) or with commas (.csv).")
    ] = None,
    require_text: RequireText = False,
    segment: Annotated[bool, typer.Option(help="Cut recordings longer than --max-seconds at silences.")] = True,
    detector: Annotated[str, typer.Option(help="Finds the silences: silero, energy, or auto.")] = "auto",
    min_seconds: MinSeconds = 0.1,
    max_seconds: MaxSeconds = 30.0,
    max_clipped: MaxClipped = 0.01,
    jobs: Jobs = 0,
    force: Force = False,
) -> None:
    """Any tree of audio files: any rate, any channel count, with or without transcripts."""
    from speechssl.data.corpora import folder as corpus
    from speechssl.data.scan import Rules
    from speechssl.data.segment import pick_detector

    rules = Rules(
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        max_clipped=max_clipped,
        require_text=require_text,
        keep_long=segment,
    )
    arguments = {"folder": folder, "speaker_level": speaker_level, "transcripts": transcripts}
    arguments |= {} if label_level is None else {"label_level": label_level}
    chosen = pick_detector(detector) if segment else None

    def read() -> Corpus:
        return corpus.read(folder, speaker_level=speaker_level, label_level=label_level, transcripts=transcripts)

    say_next(make("folder", arguments, output, rules, read, jobs, force, detector=chosen))


@manifest_app.command()
def series(
    folder: Annotated[Path, typer.Argument(help="Tree of .npy files of shape (channels, time).")],
    output: Output,
    rate: Annotated[int, typer.Option(min=1, help="Steps per second, Hz, of all files.")],
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Cut longer series into pieces of this length; default: never.")
    ] = None,
    min_seconds: MinSeconds = 0.0,
    label_level: LabelLevel = None,
    jobs: Jobs = 0,
    force: Force = False,
) -> None:
    """Series of several channels: sensors, machines, EEG."""
    from speechssl.data.corpora import series as corpus
    from speechssl.data.manifest import Manifest
    from speechssl.data.scan import Rules

    arguments = {"folder": folder, "rate": rate, "cut_seconds": max_seconds, "label_level": label_level}

    def read() -> Corpus:
        return corpus.read(folder, sample_rate=rate, max_seconds=max_seconds, label_level=label_level)

    made = make("series", arguments, output, Rules(min_seconds=min_seconds), read, jobs, force)
    channels = ", ".join(str(n) for n in sorted({u.channels for u in Manifest.read(made)}))
    numbers = f"data.sample_rate={rate} encoder.feature_encoder.channels={channels}"
    typer.echo(f"next: speechssl pretrain --preset cpc-series --train {made} {numbers} -o ...")


@manifest_app.command()
def fairseq(
    tsv: Annotated[Path, typer.Argument(help="fairseq's list; .wrd or .ltr beside it give the transcripts.")],
    output: Output,
    root: Root = None,
    require_text: RequireText = False,
    min_seconds: MinSeconds = 0.1,
    max_seconds: MaxSeconds = 40.0,
    max_clipped: MaxClipped = 0.01,
    jobs: Jobs = 0,
    force: Force = False,
) -> None:
    """A fairseq tsv, with its labels."""
    from speechssl.data.corpora import imports
    from speechssl.data.scan import Rules

    rules = Rules(min_seconds=min_seconds, max_seconds=max_seconds, max_clipped=max_clipped, require_text=require_text)
    arguments = {"tsv": tsv, "root": root}
    say_next(make("fairseq", arguments, output, rules, lambda: imports.read_fairseq(tsv, root=root), jobs, force))


@manifest_app.command()
def lhotse(
    cuts: Annotated[Path, typer.Argument(help="lhotse's cuts, .jsonl or .jsonl.gz.")],
    output: Output,
    root: Root = None,
    require_text: RequireText = False,
    min_seconds: MinSeconds = 0.1,
    max_seconds: MaxSeconds = 40.0,
    max_clipped: MaxClipped = 0.01,
    jobs: Jobs = 0,
    force: Force = False,
) -> None:
    """Cuts made with lhotse (which need not be installed)."""
    from speechssl.data.corpora import imports
    from speechssl.data.scan import Rules

    rules = Rules(min_seconds=min_seconds, max_seconds=max_seconds, max_clipped=max_clipped, require_text=require_text)
    arguments = {"cuts": cuts, "root": root}
    say_next(make("lhotse", arguments, output, rules, lambda: imports.read_lhotse(cuts, root=root), jobs, force))


@manifest_app.command()
def join(
    manifests: Annotated[list[Path], typer.Argument(help="Manifests with different utterances.")],
    output: Output,
    force: Force = False,
) -> None:
    """One manifest of several, for example all of LibriSpeech's training sets."""
    from speechssl.data.manifest import Manifest
    from speechssl.data.scan import ScanReport

    made_by = made_by_command("join", {"manifests": [str(path.resolve()) for path in manifests]})
    if not is_made(output, made_by, force):
        whole = Manifest.of(utterance for path in manifests for utterance in Manifest.read(path))
        if len({utterance.id for utterance in whole}) < len(whole):
            raise UserError(f"{', '.join(map(str, manifests))}: some hold the same utterances; join others.")
        write(whole, ScanReport.of(whole, made_by=made_by), output)
        typer.echo(f"{output}: {len(whole)} utterances, {whole.hours:.2f} h")
    say_next(output)


@manifest_app.command()
def split(
    manifest: Annotated[Path, typer.Argument(help="Manifest with transcripts.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for 10min-0.jsonl, ..., 1h.jsonl, 10h.jsonl.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(help="10min, 1h, 10h, 100h, or any as 3min or 5h; repeat it. Default: those four."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the order of speakers and utterances.")] = 0,
    libri_light: Annotated[
        Path | None, typer.Option(help="Unpacked librispeech_finetuning: use its published lists.")
    ] = None,
    force: Force = False,
) -> None:
    """Labelled splits: six folds of 10 minutes, 1 hour, 10 hours, 100 hours, or other lengths."""
    from speechssl.data import splits as rule
    from speechssl.data.manifest import Manifest
    from speechssl.data.scan import ScanReport

    whole = Manifest.read(manifest)
    arguments = {"manifest": manifest, "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}
    if libri_light is None:
        parts, missing = rule.seeded(whole, seed=seed, labels=labels or ())
        arguments |= {"seed": seed}
    else:
        parts, missing = rule.libri_light(whole, libri_light)
        arguments |= {"libri_light": libri_light}
    done = None
    for label in labels or list(rule.SECONDS):
        wanted = rule.names(label)
        if libri_light is not None and label not in rule.SECONDS:
            raise rule.SplitError(f"Libri-Light has no list of {label}, only of {', '.join(rule.SECONDS)}.")
        if labels and not any(name in parts for name in wanted):
            raise rule.SplitError(missing[wanted[0]])
        for name in wanted:
            if name not in parts:
                typer.echo(f"not made: {missing[name]}")
                continue
            path = output / f"{name}.jsonl"
            made_by = made_by_command("split", arguments | {"split": name})
            if not is_made(path, made_by, force):
                write(parts[name], ScanReport.of(parts[name], made_by=made_by), path)
                typer.echo(f"{path}: {len(parts[name])} utterances, {parts[name].hours * 60:.1f} minutes")
            done = path
    if done is None:
        raise rule.SplitError(next(iter(missing.values())))
    typer.echo(f"next: speechssl vocab {done} --output vocabulary.json, then speechssl finetune --train {done} ...")


def vocab(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the training set, with transcripts.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Vocabulary to write (.json).")],
    kind: Annotated[str, typer.Option(help="letters, or sentencepiece units.")] = "letters",
    case: Annotated[str, typer.Option(help="upper, lower or keep.")] = "upper",
    punctuation: Annotated[str, typer.Option(help="strip or keep.")] = "strip",
    size: Annotated[int, typer.Option(min=1, help="Largest number of sentencepiece units.")] = 500,
    force: Force = False,
) -> None:
    """Learn the tokens of the transcripts, from the training set only."""
    from speechssl.data.manifest import Manifest
    from speechssl.data.tokens import Tokenizer

    texts = [utterance.text for utterance in Manifest.read(manifest) if utterance.text]
    tokenizer = Tokenizer.train(texts, kind=kind, case=case, punctuation=punctuation, size=size)  # type: ignore[arg-type]
    if output.exists() and not force:
        if Tokenizer.read(output).to_dict() != tokenizer.to_dict():
            raise UserError(f"{output}: exists and is another vocabulary; choose another name or give --force.")
        typer.echo(f"{output}: already there, left as it is.")
    else:
        tokenizer.write(output)
        typer.echo(f"{output}: {len(tokenizer)} tokens from {len(texts)} transcripts")
    typer.echo(f"next: speechssl finetune --vocabulary {output} --train {manifest} ...")
