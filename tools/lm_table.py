"""The table of decoders: greedy, our own beam search with a language model, and flashlight's at the same settings.

    python tools/lm_table.py exp/real/10min-0/pretrained-seed1 exp/real/10min-0/pretrained-seed2 \\
        --tune data/real/splits/10min-1.jsonl --test data/real/manifests/an4-dev.jsonl --lm an4.arpa

The weights are chosen on --tune with our search; both searches use them. What is done is not done twice. Texts and
scores go to RUN/decode and RUN/score, where `speechssl report` finds them, and the table to --output. Both searches
run in one process; their speeds are of the search alone, without the encoder.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from wer_table import interval

from speechssl.asr.compare import compare_files
from speechssl.asr.decode import decode_manifest
from speechssl.asr.score import score_files
from speechssl.asr.search import Decoding
from speechssl.files import write_whole

COLUMNS = ["decoder", "run", "WER %", "95% interval", "CER %", "LM weight, word score", "audio s/s", "WER less beam's"]
NAMES = {"greedy": "greedy", "beam": "own beam + LM", "flashlight": "flashlight + LM"}


@dataclass(frozen=True)
class Result:
    """One decoder on one run; rates in percent. `less` is the WER less that of our own search, with its interval."""

    decoder: str
    run: str
    wer: float
    cer: float
    interval: str
    weights: str
    speed: float
    difference: float
    less: str


def measure(run: Path, tune: Path, test: Path, lm: Path, decoders: Sequence[str], device: str | None) -> list[Result]:
    """Decodes and scores what was not yet, and reads the numbers. `decoders` begins with greedy and beam."""
    names = {name: test.stem if name == "greedy" else f"{test.stem}-{name}" for name in decoders}
    files = {name: run / "decode" / f"{stem}.jsonl" for name, stem in names.items()}
    weights: dict[str, dict[str, Any]] = {"beam": {"tune_on": tune}, "flashlight": {"weights_from": files["beam"]}}
    for name in decoders:
        print(f"{run.name}: {NAMES[name]}", flush=True)
        decoding = Decoding(decoder=name, lm=None if name == "greedy" else str(lm))  # type: ignore[arg-type]
        decode_manifest(run, test, files[name], decoding=decoding, jobs=1, device=device, **weights.get(name, {}))
        score_files(files[name], run / "score" / names[name])
    return [_result(name, run, files[name], files["beam"]) for name in decoders]


def _result(name: str, run: Path, decoded: Path, beam: Path) -> Result:
    score = json.loads((run / "score" / decoded.stem / "score.json").read_text())
    made_with = score["made_with"]
    difference, less = 0.0, ""
    if name != "beam":
        found, record = compare_files(beam, decoded)
        write_whole(run / "score" / decoded.stem / "against-beam.json", json.dumps(record, indent=1) + "\n")
        difference = 100 * found.difference
        less = f"{difference:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
    search, tuning = made_with.get("search"), made_with.get("tuning")
    return Result(
        decoder=name,
        run=run.name,
        wer=100 * score["wer"],
        cer=100 * score["cer"],
        interval=f"{100 * score['low']:.1f} - {100 * score['high']:.1f}",
        weights=f"{tuning['lm_weight']:g}, {tuning['word_score']:g}" if tuning else "",
        speed=search["audio_seconds"] / search["seconds"] if search else 0.0,
        difference=difference,
        less=less,
    )


def table(results: Sequence[Result], runs: int) -> str:
    """Markdown: of several runs the mean first, with Student's interval over them."""
    rows = []
    for decoder in dict.fromkeys(result.decoder for result in results):
        own = [result for result in results if result.decoder == decoder]
        if runs > 1:
            wers = [result.wer for result in own]
            cells = [NAMES[decoder], f"mean of {runs}", f"{mean(wers):.1f}", interval(wers)]
            cells += [f"{mean(result.cer for result in own):.1f}", "", _speed(mean(result.speed for result in own))]
            rows.append([*cells, "" if decoder == "beam" else f"{mean(r.difference for r in own):+.2f}"])
        for r in own:
            cells = [NAMES[r.decoder], r.run, f"{r.wer:.1f}", r.interval, f"{r.cer:.1f}", r.weights, _speed(r.speed)]
            rows.append([*cells, r.less])
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _speed(audio_per_second: float) -> str:
    return f"{audio_per_second:,.0f}" if audio_per_second else ""


def main(
    runs: Annotated[list[Path], typer.Argument(help="Fine-tuned run folders, for example one for each seed.")],
    tune: Annotated[Path, typer.Option(help="Manifest on which the weights are chosen; in neither LM nor test.")],
    test: Annotated[Path, typer.Option(help="Manifest that is scored.")],
    lm: Annotated[Path, typer.Option(help="Word n-gram (.arpa, .arpa.gz).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Table; default: lm-TEST.md in the first run.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if any.")] = None,
) -> None:
    """Prints the table and writes it."""
    decoders = ["greedy", "beam"]
    if importlib.util.find_spec("flashlight") is None:
        print("flashlight-text is not installed, so its rows are left out: pip install 'speechssl[lm]'")
    else:
        decoders.append("flashlight")
    results = [result for run in runs for result in measure(run, tune, test, lm, decoders, device)]
    text = table(results, len(runs))
    path = output or runs[0] / f"lm-{test.stem}.md"
    write_whole(path, text)
    print(f"{text}written to {path}")


if __name__ == "__main__":
    typer.run(main)
