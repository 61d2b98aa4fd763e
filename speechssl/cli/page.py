"""`speechssl report`, `serve` and `surprise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.errors import UserError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")],
    probe: Annotated[
        list[Path] | None, typer.Option(help="Folder of a probe's results, beside RUN/probe; several: give it again.")
    ] = None,
    colour_by: Annotated[
        str, typer.Option(help="Column of the manifest that colours the embeddings: speaker, text, folder:1, ...")
    ] = "speaker",
    map: Annotated[
        Literal["tsne", "umap"], typer.Option(help="How embeddings come to the plane; umap needs umap-learn.")
    ] = "tsne",
    each: Annotated[int, typer.Option(min=1, max=20, help="Worst and median utterances shown of each scored set.")] = 3,
    title: Annotated[str, typer.Option(help="Of the page; default: the names of the runs.")] = "",
) -> None:
    """Write one HTML page about runs: curves, scores, utterances with sound, masks, embeddings, probes."""
    from speechssl.page.write import write_page

    size = write_page(runs, output, probe_folders=probe or [], colour_by=colour_by, method=map, each=each, title=title)
    print(f"Page: {output} ({size / 1e6:.1f} MB; open it in a browser)")


def serve(
    model: Annotated[Path, typer.Argument(help="Run folder or checkpoint, fine-tuned to transcribe.")],
    speakers: Annotated[Path | None, typer.Option(help="Manifest with speakers: show the nearest of them.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="Address; anything but this machine's own lets others in.")] = "127.0.0.1",
    megabytes: Annotated[float, typer.Option(min=0.01, help="Largest upload.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="Longest sound.")] = 60.0,
) -> None:
    """Serve a page on this machine that transcribes a file or the microphone; it needs the extra serve."""
    from speechssl.listener import Listener

    try:
        from speechssl import serve as server
    except ImportError:
        raise UserError("serve needs starlette and uvicorn: pip install 'speechssl[serve]'.") from None

    limits = server.Limits(megabytes=megabytes, seconds=seconds)
    server.serve(Listener(model, speakers), host=host, port=port, limits=limits)


def surprise(
    file: Annotated[Path, typer.Argument(help="Recording of any length.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Run folder or checkpoint pretrained by cpc.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Table to write; default: FILE.surprise.tsv.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Most surprising stretches to print.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.05, help="Length of a stretch.")] = 1.0,
    window: Annotated[float, typer.Option(min=1.0, help="Seconds that are read at a time.")] = 20.0,
    pool: Annotated[int, typer.Option(min=2, help="Frames of the recording that each frame is compared with.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of these.")] = 0,
) -> None:
    """Score each frame of a recording by how little a CPC model expected it."""
    from speechssl import surprise as scoring

    found = scoring.surprise(model, file, window=window, pool=pool, seed=seed)
    path = output or file.with_name(file.name + ".surprise.tsv")
    scoring.write(found, path)
    for segment in scoring.top_segments(found, top, seconds=seconds):
        print(f"{segment.start:9.2f} - {segment.end:9.2f} s  {segment.score:.2f}")
    print(f"Mean {found.scores.mean():.2f}, chance {found.chance:.2f} nats; every frame: {path}")
