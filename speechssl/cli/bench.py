"""`speechssl bench`."""

from __future__ import annotations

from typing import Annotated

import typer


def bench(
    preset: Annotated[str, typer.Argument(help="Preset, .yaml file or run folder.")] = "wav2vec2-tiny",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Numbers to change.")] = None,
    seconds: Annotated[str, typer.Option(help="Lengths of the utterances, 10x8 or 6.5,8,15; default: a batch.")] = "",
    precision: Annotated[list[str] | None, typer.Option(help="fp32, bf16, fp16; several: give it again.")] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Toolkits beside ours: transformers, torchaudio, fairseq, ...")
    ] = None,
    tuned: Annotated[bool, typer.Option(help="Let the peers' allocator keep its pages, as ours does.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Times that the toolkits take turns.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps in a turn.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as the environment says.")] = 0,
    encode: Annotated[
        bool, typer.Option("--encode", help="Time features from a trained encoder, not training.")
    ] = False,
    largest: Annotated[bool, typer.Option("--largest", help="Also find the largest batch that fits.")] = False,
) -> None:
    """Time a training step by part: seconds of audio per second, peak memory, share of the machine's limit."""
    from speechssl.bench import table

    config = table.read_preset(preset, overrides or [])
    lengths = parse_lengths(seconds)
    device = "cuda" if table.has_gpu() else "cpu"
    print(f"{config.name} on {table.machine()}")
    for kind in precision or [config.train.precision]:
        case = table.case_of(config, lengths, kind, steps, threads, encode=encode)
        total = sum(case.seconds)
        limit = table.gemm_limit(kind, device)
        print(f"\n{kind}: {len(case.seconds)} utterances, {total:g} s a step; GEMM limit {limit:.0f} GFLOP/s\n")
        print(table.markdown(case, table.compare(case, tuple(against or ()), rounds, tuned=tuned), limit), flush=True)
        if largest:
            memory = table.machine_memory_gb()
            count = table.largest_batch(case, memory)
            print(f"\nlargest batch in {memory:.0f} GB: {count} utterances of {case.seconds[0]:g} s")


def parse_lengths(text: str) -> tuple[float, ...]:
    """ "10x8" -> eight of 10 s; "6.5,8" -> these; "" -> none. Raises UserError."""
    from speechssl.errors import UserError

    try:
        if "x" in text:
            length, count = text.split("x")
            lengths = (float(length),) * int(count)
        else:
            lengths = tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        lengths = (-1.0,)
    if any(length <= 0 for length in lengths):
        raise UserError(f"--seconds {text}: write 10x8 (eight of 10 s) or 6.5,8,15.")
    return lengths
