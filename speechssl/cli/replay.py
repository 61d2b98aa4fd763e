"""`speechssl replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def replay(
    run: Annotated[Path, typer.Argument(help="Run folder with an incidents.jsonl.")],
    update: Annotated[int | None, typer.Option(help="Which update; none: the last one that went wrong.")] = None,
) -> None:
    """Run an update again that went wrong, and say where the first value that is not finite appears."""
    from speechssl.replay import replay_update

    for sentence in replay_update(run, update):
        print(sentence)
