"""The command line: verbs -> one plain function each. Nothing heavy is imported until a verb runs.

Under `accelerate launch` the same verbs run on several processes: `accelerate launch -m speechssl pretrain ...`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache

import typer

from speechssl.errors import UserError

app = typer.Typer(
    name="speechssl",
    help="Pretrain speech encoders on unlabelled audio and fine-tune them with minutes of labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@cache
def _register() -> None:
    # Each module imports its verbs' work lazily.
    from speechssl.cli import asr, bench, data, export, page, probe, replay, speaker, train, units

    app.add_typer(data.manifest_app, name="manifest")
    app.add_typer(asr.lm_app, name="lm")
    app.add_typer(speaker.speaker_app, name="speaker")
    app.command("vocab")(data.vocab)
    verbs: list[Callable[..., None]] = [train.pretrain, train.finetune, asr.decode, asr.score, train.show]
    verbs += [asr.compare, asr.rescore, asr.align]
    verbs += [probe.probe, probe.abx, bench.bench, replay.replay]
    verbs += [units.features, units.kmeans, units.units]
    verbs += [page.report, page.serve, page.surprise]
    for verb in verbs:
        app.command()(verb)
    app.command("export")(export.export)
    app.command("import")(export.import_)


def main() -> None:
    """Runs a verb. A user's mistake (UserError, a full disk, a missing file) is one sentence and exit status 2.

    75 says: start the same command again (see `speechssl.errors.REQUEUE`).
    """
    # Read by OpenMP when torch is imported. By default its threads spin at every barrier, and one that has lost its
    # core to other work then holds up all the rest: a run beside another program becomes several times slower.
    # Spinning for some microseconds only costs nothing on a free machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    _register()
    try:
        app()
    except UserError as error:
        sys.exit(_say(str(error), error.status))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_say(f"{where}{error.strerror or error}."))


def _say(sentence: str, status: int = UserError.status) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status
