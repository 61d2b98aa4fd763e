"""How large the page of a long run is and how soon it opens: runs are stretched, their page is written and opened.

    python tools/long_page.py exp/demo/pretrain exp/demo/10min-0/pretrained

The copies have the curves of 400,000 updates and scores of 3,000 utterances, each with its sound; nothing is trained.
The time is the browser's own, from the start of the navigation to the second frame that is painted after loading, in
headless Chromium through playwright (the extra [browser]): SPEECHSSL_CHROMIUM, the system's, or playwright's own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from speechssl.data.manifest import Manifest
from speechssl.page.write import write_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"  # ms


def stretch(run: Path, copy: Path, *, updates: int = 400_000, every: int = 50, utterances: int = 3000) -> Path:
    """Copies a run as if it had lasted so many updates, logged `every` so many, and been scored on so many utterances.

    Numbers are those of the run with noise, so that thinning has something to do.
    """
    shutil.copytree(run, copy)
    generator = random.Random(0)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    with (copy / "metrics.jsonl").open("w") as file:
        for split, apart in (("train", every), ("valid", 100 * every)):
            known = [row for row in rows if row["split"] == split]
            for place, step in enumerate(range(apart, updates + 1, apart) if known else ()):
                row = known[place * apart * len(known) // updates % len(known)]
                noisy = {k: v * generator.uniform(0.9, 1.1) if isinstance(v, float) else v for k, v in row.items()}
                file.write(json.dumps(noisy | {"step": step}) + "\n")
    for folder in sorted(path.parent for path in copy.glob("score/*/score.json")):
        _repeat_score(folder, utterances)
    return copy


def _repeat_score(folder: Path, utterances: int) -> None:
    """Copies of the scored utterances under new names, and a manifest that knows the sound of each."""
    score = json.loads((folder / "score.json").read_text())
    known = {u.id: u for u in Manifest.read(score["made_with"]["manifest"])}
    head, *lines = (folder / "per_utterance.tsv").read_text().splitlines()
    listed, table = [], [head]
    for number in range(utterances):
        name, rest = lines[number % len(lines)].split("\t", 1)
        copy = f"{name}-copy{number // len(lines)}"
        table.append(f"{copy}\t{rest}")
        listed.append(replace(known[name], id=copy))
    (folder / "per_utterance.tsv").write_text("\n".join(table) + "\n")
    Manifest.of(listed).write(folder / "stretched.jsonl")
    score["made_with"]["manifest"] = str(folder / "stretched.jsonl")
    (folder / "score.json").write_text(json.dumps(score))


def opening_times(page: Path, tries: int) -> list[float]:
    """Seconds until the page is painted, each in a fresh context of one browser."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("SPEECHSSL_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(tries):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            opened = context.new_page()
            opened.goto(page.absolute().as_uri())
            times.append(opened.evaluate(PAINTED) / 1000)
            context.close()
        browser.close()
    return times


def main(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; those with score/SET/ are scored on more.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Keep the page here.")] = None,
    updates: Annotated[int, typer.Option(min=100, help="Of every run.")] = 400_000,
    every: Annotated[int, typer.Option(min=1, help="Updates between two lines of metrics.")] = 50,
    utterances: Annotated[int, typer.Option(min=1, help="Scored.")] = 3000,
    each: Annotated[int, typer.Option(min=1, max=20, help="Worst and median utterances shown of each set.")] = 3,
    tries: Annotated[int, typer.Option(min=0, help="How often the page is opened.")] = 5,
) -> None:
    """Prints the size of the page, how long writing it took, and how long each opening took."""
    with tempfile.TemporaryDirectory() as folder:
        copies = [
            stretch(run, Path(folder) / str(place) / run.name, updates=updates, every=every, utterances=utterances)
            for place, run in enumerate(runs)
        ]
        page = output or Path(folder) / "page.html"
        began = time.monotonic()
        size = write_page(copies, page, each=each)
        print(f"{size / 1e6:.2f} MB, written in {time.monotonic() - began:.1f} s")
        if tries:
            times = sorted(opening_times(page, tries))
            print(f"opened {tries} times: median {times[tries // 2]:.2f} s, slowest {times[-1]:.2f} s")


if __name__ == "__main__":
    typer.run(main)
