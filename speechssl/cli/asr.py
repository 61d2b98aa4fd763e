"""`speechssl decode`, `rescore`, `score`, `compare`, `align`, and `speechssl lm ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.errors import UserError

lm_app = typer.Typer(help="Word n-gram language models for `decode --lm`.", no_args_is_help=True)


def decode(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a fine-tuned encoder.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSON lines) of what to transcribe.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the texts go: one JSON line per utterance.")],
    decoder: Annotated[
        Literal["greedy", "beam", "flashlight"] | None,
        typer.Option(help="Default: beam with --lm or --words, else greedy. flashlight needs the extra [lm]."),
    ] = None,
    lm: Annotated[Path | None, typer.Option(help="Word n-gram, .arpa or .arpa.gz; only its words are spelt.")] = None,
    words: Annotated[Path | None, typer.Option(help="Spell these words only, one a line.")] = None,
    tune: Annotated[
        Path | None, typer.Option(help="Manifest of a dev set, on which LM weight and word score are chosen.")
    ] = None,
    weights_from: Annotated[
        Path | None, typer.Option(help="Take the weights that this decode file was tuned to.")
    ] = None,
    lm_weight: Annotated[float, typer.Option(min=0, help="Of log10 P(word), as in the wav2vec 2.0 paper.")] = 2.5,
    word_score: Annotated[float, typer.Option(help="Added for each word.")] = -0.5,
    unknown_score: Annotated[
        float | None, typer.Option(help="Let other words be spelt too, and add this for each.")
    ] = None,
    beam: Annotated[int, typer.Option(min=1, help="Prefixes kept.")] = 50,
    nbest: Annotated[int, typer.Option(min=1, help="Texts written for each utterance.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Search processes; 0: one per core.")] = 0,
    seconds_per_batch: Annotated[float, typer.Option(min=0.1, help="Largest batch in seconds of audio.")] = 60.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if any.")] = None,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Arithmetic of the encoder.")] = "fp32",
    window: Annotated[float, typer.Option(help="Seconds; what is longer is read in windows of so many.")] = 60.0,
    context: Annotated[float, typer.Option(help="Seconds at each inner edge of a window that are not used.")] = 5.0,
) -> None:
    """Transcribe a manifest with a fine-tuned encoder: greedy CTC, or a beam search with a language model."""
    from speechssl.asr.beam import BeamConfig
    from speechssl.asr.decode import decode_manifest
    from speechssl.asr.search import Decoding

    if tune and weights_from:
        raise UserError("--tune and --weights-from both choose the weights; give one of them.")
    decoding = Decoding(
        decoder=decoder or ("beam" if lm or words or nbest > 1 else "greedy"),
        lm=str(lm) if lm else None,
        words=str(words) if words else None,
        config=BeamConfig(beam=beam, lm_weight=lm_weight, word_score=word_score, unknown_score=unknown_score),
        nbest=nbest,
    )
    decode_manifest(
        checkpoint,
        manifest,
        output,
        decoding=decoding,
        tune_on=tune,
        weights_from=weights_from,
        seconds_per_batch=seconds_per_batch,
        device=device,
        precision=precision,
        jobs=jobs,
        window=window,
        context=context,
    )
    print(f"Texts: {output}\nnext: speechssl score {output}")


def rescore(
    decoded: Annotated[Path, typer.Argument(help="Output of `speechssl decode --nbest N`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the reordered lists go.")],
    model: Annotated[Path, typer.Option(help="Folder of a causal language model (transformers' save_pretrained).")],
    weight: Annotated[float, typer.Option(min=0, help="Of ln P(text) by that model.")] = 0.5,
    word_bonus: Annotated[float, typer.Option(help="Added for each word.")] = 0.0,
    tune: Annotated[
        Path | None, typer.Option(help="Decode file of a dev set with n-best lists, on which both are chosen.")
    ] = None,
    case: Annotated[Literal["lower", "upper", "keep"], typer.Option(help="How the model likes its text.")] = "lower",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Reorder n-best lists by a neural language model (the extra [hf])."""
    from speechssl.asr.rescore import CausalScorer, rescore_file

    scorer = CausalScorer(model, case=case, device=device)
    tuned = rescore_file(
        decoded, output, scorer, scorer_name=f"{model} ({case} case)", weight=weight, bonus=word_bonus, tune_on=tune
    )
    if tuned is not None:
        print(f"chosen on {tune}: weight {tuned.best.weight:g}, word bonus {tuned.best.bonus:g}")
    print(f"Texts: {output}\nnext: speechssl score {output}")


def score(
    hypotheses: Annotated[Path, typer.Argument(help="Output of `speechssl decode`.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for score.json, per_utterance.tsv and worst.txt; default: beside it."
        ),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Take the references from this manifest, not from the decode file.")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Normalise both sides by this vocabulary's rule (texts of other programs).")
    ] = None,
    samples: Annotated[int, typer.Option(min=100, help="Bootstrap samples for the 95% interval.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Word and character error rates with a 95% interval, per utterance, and the worst utterances aligned."""
    from rich.console import Console
    from rich.table import Table

    from speechssl.asr.score import score_files

    out = output or hypotheses.with_suffix(".score")
    result = score_files(hypotheses, out, manifest=manifest, vocabulary=vocabulary, samples=samples, seed=seed)
    table = Table("WER %", "95% interval", "CER %", "sub", "ins", "del", "words", "utterances")
    table.add_row(
        f"{100 * result.wer:.2f}",
        f"{100 * result.low:.2f} - {100 * result.high:.2f}",
        f"{100 * result.cer:.2f}",
        *map(str, (result.substitutions, result.insertions, result.deletions, result.words, result.utterances)),
    )
    Console().print(table)
    if result.lengths:
        print("By length: " + ", ".join(f"{name} {100 * part['wer']:.1f} %" for name, part in result.lengths.items()))
    if len(result.speakers) > 1:
        (worst, most), *_, (best, least) = result.speakers.items()
        print(
            f"By speaker ({len(result.speakers)}): from {100 * least['wer']:.1f} % ({best}) "
            f"to {100 * most['wer']:.1f} % ({worst})"
        )
    if result.warning:
        print(f"Warning: {result.warning}")
    print(f"Per utterance: {out / 'per_utterance.tsv'}\nThe worst, aligned: {out / 'worst.txt'}")


def compare(
    a: Annotated[Path, typer.Argument(help="Output of `speechssl decode`: the system to compare with.")],
    b: Annotated[Path, typer.Argument(help="Another system's output for the same manifest.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the numbers as JSON.")] = None,
    by_speaker: Annotated[
        bool, typer.Option("--by-speaker", help="Draw whole speakers, not utterances: a wider, safer interval.")
    ] = False,
    samples: Annotated[int, typer.Option(min=100, help="Bootstrap samples.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Is B better than A? Paired bootstrap of the difference of their word error rates."""
    import json

    from speechssl.asr.compare import compare_files
    from speechssl.files import write_whole

    result, record = compare_files(a, b, by_speaker=by_speaker, samples=samples, seed=seed)
    print(f"A: WER {100 * result.wer_a:.2f} %  {a}\nB: WER {100 * result.wer_b:.2f} %  {b}")
    print(
        f"B - A: {100 * result.difference:+.2f} points, 95% interval {100 * result.low:+.2f} to "
        f"{100 * result.high:+.2f}; B is better on {100 * result.b_better:.1f} % of {samples} sets of "
        f"{result.draws} {result.drawn}s (p = {result.p_value:.2g})"
    )
    if result.low <= 0 <= result.high:
        print("The interval holds 0: these utterances do not tell which system is better.")
    if output is not None:
        write_whole(output, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        print(f"Numbers: {output}")


def align(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint of a fine-tuned encoder.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSON lines) with transcripts.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the times go: one JSON line per utterance.")],
    reach: Annotated[
        float, typer.Option(min=0, help="Seconds that a letter grows into the blanks on either side.")
    ] = 0.05,
    textgrids: Annotated[Path | None, typer.Option(help="Folder for TextGrids as well, one per utterance.")] = None,
    items: Annotated[Path | None, typer.Option(help="Item file as well, for `speechssl abx`.")] = None,
    seconds_per_batch: Annotated[float, typer.Option(min=0.1, help="Largest batch in seconds of audio.")] = 60.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if any.")] = None,
) -> None:
    """When each letter and word of known transcripts was said, by a fine-tuned encoder."""
    from speechssl.asr.align import align_manifest

    align_manifest(
        checkpoint,
        manifest,
        output,
        reach=reach,
        textgrids=textgrids,
        items=items,
        seconds_per_batch=seconds_per_batch,
        device=device,
    )
    print(f"Alignment: {output}\nnext: speechssl probe RUN --alignment {output} --train TRAIN --test TEST -o PROBE")


@lm_app.command()
def train(
    texts: Annotated[
        list[Path], typer.Argument(help="Text, a sentence a line (.gz too), or manifests (.jsonl) with transcripts.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="ARPA file to write.")],
    order: Annotated[int, typer.Option(min=1, max=6, help="Words in the longest n-gram.")] = 3,
    case: Annotated[Literal["upper", "lower", "keep"], typer.Option(help="As the vocabulary's.")] = "upper",
    punctuation: Annotated[Literal["strip", "keep"], typer.Option(help="As the vocabulary's.")] = "strip",
) -> None:
    """Estimate a modified Kneser-Ney n-gram from text."""
    from speechssl.asr.kneser_ney import FALLBACK, read_texts
    from speechssl.asr.kneser_ney import train as estimate

    if output.suffix != ".arpa":
        raise UserError(f"{output}: give the language model a name that ends in .arpa.")
    trained = estimate(read_texts(texts, case=case, punctuation=punctuation), order)
    trained.model.write(output)
    starts = trained.model.starts
    counts = ", ".join(f"{starts[k] - starts[k - 1]} {k}-grams" for k in range(1, len(starts)))
    print(f"{output}: {counts}")
    if trained.guessed:
        print(
            f"Note: too little text to estimate the discounts of order {', '.join(map(str, trained.guessed))}; "
            f"they are {', '.join(map(str, FALLBACK))}."
        )
    print(f"next: speechssl decode CHECKPOINT MANIFEST --lm {output} --tune DEV_MANIFEST -o texts.jsonl")


@lm_app.command()
def librispeech(
    which: Annotated[
        str, typer.Option(help="3-gram, 3-gram.pruned.1e-7, 3-gram.pruned.3e-7 or 4-gram.")
    ] = "3-gram.pruned.1e-7",
    data: Annotated[Path, typer.Option(help="Folder that receives lm/.")] = Path("data"),
    mirror: Annotated[str | None, typer.Option(help="Address that holds 11/4-gram.arpa.gz, ...")] = None,
) -> None:
    """Fetch one of LibriSpeech's own language models (OpenSLR 11)."""
    from speechssl.asr.librispeech_lm import fetch

    path = fetch(which, data, mirror=mirror)
    print(f"{path}: whole (length and gzip's own checksum; OpenSLR publishes none for it)")
    print(f"next: speechssl decode CHECKPOINT MANIFEST --lm {path} --tune DEV_MANIFEST -o texts.jsonl")
