"""The command line: verbs -> one plain function each. Nothing heavy is imported until a verb runs.

Under `accelerate launch` the same verbs run on several processes: `accelerate launch -m speechssl pretrain ...`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from speechssl.errors import UserError

app = typer.Typer(
    name="speechssl",
    help="Pretrain speech encoders on unlabelled audio and fine-tune them with minutes of labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _register() -> None:
    from speechssl.cli import asr, data, train  # each module imports its verbs' work lazily

    app.add_typer(data.manifest_app, name="manifest")
    app.command("vocab")(data.vocab)
    verbs: list[Callable[..., None]] = [train.pretrain, train.finetune, asr.decode, asr.score, train.show]
    for verb in verbs:
        app.command()(verb)


def main() -> None:
    """Runs a verb. A user's mistake (UserError, a full disk, a missing file) is one sentence and exit status 2."""
    # Read by OpenMP when torch is imported. By default its threads spin at every barrier, and one that has lost its
    # core to other work then holds up all the rest: a run beside another program becomes several times slower.
    # Spinning for some microseconds only costs nothing on a free machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    _register()
    try:
        app()
    except UserError as error:
        sys.exit(_say(str(error)))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_say(f"{where}{error.strerror or error}."))


def _say(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
