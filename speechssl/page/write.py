"""The page as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import speechssl
from speechssl.files import write_whole
from speechssl.page.embeddings import Mapping2D, embeddings
from speechssl.page.frame import frame
from speechssl.page.learning import learning, runs_table
from speechssl.page.listening import listening
from speechssl.page.masks import masks
from speechssl.page.probes import find_probes, probes
from speechssl.page.runs import PageError, read_runs
from speechssl.page.scores import spread, wer_table

MADE_BY = "speechssl report"
BUDGET = 9_000_000  # bytes of single utterances; the whole page stays below 15 MB


def write_page(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    probe_folders: Sequence[Path] = (),
    colour_by: str = "speaker",
    method: Mapping2D = "tsne",
    each: int = 3,
    title: str = "",
) -> int:
    """Writes one HTML file about runs, or about the runs in folders, and returns its size in bytes.

    Args:
        probe_folders: results of `speechssl probe`, beside those in RUN/probe.
        colour_by: column of the manifest that colours the maps of embeddings.
        method: of the maps.
        each: worst and median utterances that are shown of every scored set.

    Raises:
        PageError: no runs, a score or probe that cannot be read, or a file of somebody else at `output`.
    """
    output = Path(output)
    if output.exists() and f'content="{MADE_BY} ' not in _beginning(output):
        raise PageError(f"{output}: exists and was not made by `speechssl report`; choose another --output.")
    runs = read_runs(paths)
    found = find_probes(runs, probe_folders)
    sections = [
        ("runs", "Runs", "", runs_table(runs)),
        ("scores", "Scores", "", wer_table(runs) + spread(runs)),
        ("learning", "Learning", "", learning(runs)),
        ("listening", "Listening", LISTENING, listening(runs, each, BUDGET)),
        ("masks", "Masks", MASKS, masks(runs)),
        ("embeddings", "Embeddings", EMBEDDINGS, embeddings(runs, colour_by, method)),
        ("probes", "Probes", "", probes(found)),
    ]
    html = page(title or ", ".join(run.name for run in runs[:4]), sections)
    write_whole(output, html)
    return len(html.encode())


LISTENING = (
    "Utterances with the most errors, and those around the median error rate. A word in the row under the spectrogram "
    "plays from there; a click on a picture does, too."
)
MASKS = "Shaded: hidden from the model. Below: a full bar was guessed right, a low one wrong."
EMBEDDINGS = "Means and deviations over time. A map keeps neighbours together; distances between groups say little."


def page(title: str, sections: Sequence[tuple[str, str, str, str]]) -> str:
    """HTML of sections (id, heading, explanation, content); those without content are left out."""
    shown = [section for section in sections if section[3]]
    body = "".join(
        f'<section id="{name}"><h2>{heading}</h2>{f"<p>{text}</p>" if text else ""}{content}</section>'
        for name, heading, text, content in shown
    )
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return frame(
        title,
        body,
        nav="".join(f'<a href="#{name}">{heading}</a>' for name, heading, _, _ in shown),
        footer=f"speechssl {speechssl.__version__}, {now}",
        generator=MADE_BY,
    )


def _beginning(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(2000)
