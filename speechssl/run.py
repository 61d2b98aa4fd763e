"""What a run consists of, and how it starts: data, objective, optimiser, and whichever checkpoint it goes on from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import filelock
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)

from speechssl import checkpoint, sharding
from speechssl.build import build_objective
from speechssl.checkpoint import TrainState
from speechssl.claim import LOCK, claim
from speechssl.config import Config, ConfigError, plain, read_run
from speechssl.data.dataset import SpeechDataset
from speechssl.data.labels import label_of
from speechssl.data.manifest import Manifest, ManifestError, Utterance
from speechssl.data.tokens import Tokenizer
from speechssl.data.units import Units
from speechssl.device import native_precision
from speechssl.feed import Feed
from speechssl.objectives import Objective
from speechssl.optim import build_optimizer
from speechssl.report import Report, choose_trackers
from speechssl.saving import Saver
from speechssl.system import StopSignal, alone_by_mistake, check_torch, keep_memory_pages
from speechssl.watch import Collapse, Gradients


@dataclass
class Run:
    config: Config
    folder: Path
    accelerator: Accelerator
    model: torch.nn.Module  # the objective as accelerate wraps it
    optimizer: torch.optim.Optimizer  # the optimiser as accelerate wraps it
    state: TrainState
    report: Report
    valid: SpeechDataset | None
    feed: Feed
    saver: Saver | None  # on the main process
    gradients: Gradients
    collapse: Collapse
    lock: filelock.BaseFileLock
    divided: bool = False  # weights and moments among the processes (`speechssl.sharding`)
    stop: StopSignal = field(default_factory=StopSignal)

    def close(self) -> None:
        """Ends what runs beside the loop: reader processes, the checkpoint that is being written, signal handlers."""
        self.feed.close()
        if self.saver is not None:
            self.saver.settle()
        self.stop.restore()
        self.report.close()
        self.lock.release(force=True)


def start(config: Config, folder: Path) -> Run:
    """Start order: resume this folder, else initialise from `config.init`, else from scratch; the log says which."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        return _start(config, folder, lock)
    except BaseException:
        lock.release(force=True)
        raise


def _start(config: Config, folder: Path, lock: filelock.BaseFileLock) -> Run:
    check_torch()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    memory = keep_memory_pages()
    config = _settled(config, folder)
    with sharding.asked_for() as divided:
        accelerator = _accelerator(config, folder)
    divided = divided and accelerator.num_processes > 1
    if divided and config.train.precision == "fp16":
        raise ConfigError("train.precision: FSDP divides what fp16's loss scaling looks at; choose bf16 or fp32.")
    tokenizer = Tokenizer.read(config.data.vocabulary) if config.data.vocabulary else None
    objective = build_objective(config)
    if config.init_part != "encoder" and not config.init:
        raise ConfigError("this preset starts from the convolutions of another run: give --init RUN (of cpc-tiny).")
    say = partial(print, flush=True) if accelerator.is_main_process else lambda sentence: None
    data = read_dataset(config.data.train, config, objective, tokenizer, say=say)
    valid = None
    if config.data.valid:
        keep = _measurable(config, tokenizer)
        objective.eval()  # which hears every utterance at its own speed
        valid = read_dataset(config.data.valid, config, objective, tokenizer, keep=keep, say=say)
        objective.train()
    if accelerator.is_main_process:
        claim(config, folder, lock)
    accelerator.wait_for_everyone()

    if config.train.compile:
        # One graph per batch shape (rarer shapes run uncompiled): with symbolic shapes inductor fails on these layers.
        objective.encoder.feature_encoder.compile(dynamic=False)
        objective.encoder.context.compile(dynamic=False)
    checkpoints = folder / "checkpoints"
    resumes = bool(checkpoint.list_checkpoints(checkpoints))
    taken = checkpoint.initialize(objective, config.init, config.init_part) if config.init and not resumes else []
    objective.to(accelerator.device)
    if divided:
        sharding.divide(objective, accelerator.device, accelerator.num_processes)
    state = TrainState(objective, build_optimizer(objective, config.optim))
    problems = checkpoint.restore(state, checkpoints, scaler=accelerator.scaler) if resumes else []
    with warnings.catch_warnings():  # torch 2.13 renames an argument that older ones need
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        model = accelerator.prepare_model(objective, evaluation_mode=divided)  # not wrapped once more, by DDP
    optimizer = accelerator.prepare_optimizer(state.optimizer)
    report = Report(folder, accelerator, objective, updates=config.train.updates, step=state.step)
    report.start_trackers(plain(config))
    feed = Feed(data, config, folder, epoch=state.epoch, batch=state.batch_in_epoch, **_place(accelerator))
    if objective.couples_ranks and feed.micro_batches % accelerator.num_processes:
        raise ConfigError(
            f"this objective compares utterances across processes, and {feed.micro_batches} micro-batches per update "
            f"leave some of {accelerator.num_processes} idle; change train.seconds_per_update to fill them."
        )
    saver = None
    if accelerator.is_main_process:
        saver = Saver(checkpoints, config, report.say, tokenizer=tokenizer, scaler=accelerator.scaler)
    gradients = Gradients(config.train, state.counts, feed, report)
    collapse = Collapse(config.train, state.counts, objective, report, step=state.step)
    parts = (model, optimizer, state, report, valid, feed, saver, gradients, collapse, lock, divided)
    run = Run(config, folder, accelerator, *parts)
    alone = alone_by_mistake(accelerator.num_processes)
    for sentence in [*problems, *_greeting(run, resumes, taken), memory, alone]:
        if sentence:
            report.say(sentence)
    return run


def _settled(config: Config, folder: Path) -> Config:
    """`config` with the precision that "auto" stands for: of this device, or of the run that goes on."""
    if config.train.precision != "auto":
        return config
    if (folder / "config.yaml").exists():
        precision: str = read_run(folder).train.precision
    else:
        on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
        precision = native_precision("cuda" if on_gpu else "cpu")
    return config.override(train={"precision": precision})


def _accelerator(config: Config, folder: Path) -> Accelerator:
    precision = {"fp32": "no"}.get(config.train.precision, config.train.precision)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.rank_seconds))
    trackers = choose_trackers(config.train.trackers)
    try:
        accelerator = Accelerator(
            mixed_precision=precision, log_with=trackers or None, project_dir=folder, kwargs_handlers=[ddp, group]
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"train.precision: {error}") from None
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"accelerate is configured for {accelerator.distributed_type.value}; choose MULTI_GPU (whole weights on "
            "every GPU, 16 bytes per parameter) or FSDP (`accelerate config`)."
        )
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would go on in fp32 and say nothing
        raise ConfigError("train.precision: fp16 needs a GPU; choose bf16 or fp32.")
    return accelerator


def _place(accelerator: Accelerator) -> dict:
    return {
        "rank": accelerator.process_index,
        "world": accelerator.num_processes,
        "device": accelerator.device,
    }


def _measurable(config: Config, tokenizer: Tokenizer | None) -> Callable[[Utterance], bool]:
    """Whether the model can be right about an utterance: minutes of training may lack a rare letter, or a speaker."""
    names = set(config.objective.get("speakers", ()))

    def known(utterance: Utterance) -> bool:
        spellable = tokenizer is None or utterance.text is None or not tokenizer.unknown(utterance.text)
        return spellable and (not names or label_of(utterance, config.data.label) in names)

    return known


def read_dataset(
    path: str,
    config: Config,
    objective: Objective,
    tokenizer: Tokenizer | None,
    keep: Callable[[Utterance], bool] | None = None,
    say: Callable[[str], None] = print,
) -> SpeechDataset:
    """A manifest as batches, after every check that can be made before training starts.

    keep: what validation can measure; the rest is counted and named, not an error.
    say: is given a sentence about whatever is left out.
    """
    if not path:
        raise ConfigError("data.train is not set; give a manifest (`speechssl manifest`).")
    if "tokens" in objective.needs and tokenizer is None:
        raise ConfigError("this objective reads transcripts: set data.vocabulary (`speechssl vocab`).")
    if "tokens" in objective.needs and config.data.crop:
        raise ConfigError("this objective reads transcripts of whole utterances: set data.crop=false.")
    units = _units(config, objective)
    manifest = Manifest.read(path)
    if keep is not None:
        odd = [utterance.id for utterance in manifest if not keep(utterance)]
        manifest = manifest.filter(keep)
        if odd:
            spelling = "transcripts have letters outside the vocabulary"
            why = spelling if tokenizer else f"utterances have a {config.data.label} that training does not"
            say(f"{path}: {len(odd)} {why} and do not validate: {_some(odd)}")
        if not manifest:
            raise ManifestError(f"{path}: nothing to validate on, for all its {len(odd)} {why}.")
    speakers = config.objective.get("speakers", ())  # numbered as training numbers them
    dataset = SpeechDataset(
        manifest,
        config.data,
        seed=config.train.seed,
        tokenizer=tokenizer,
        speakers=speakers,
        units=units,
        channels=objective.encoder.channels,
    )
    if "speakers" in objective.needs and dataset.speakers is None:
        raise ManifestError(
            f"{path}: this objective reads speakers from the column '{config.data.label}', and some utterances have "
            "none; remove them, or name another column by data.label."
        )
    if units is not None:
        missing = [i for i, utterance in enumerate(dataset.utterances) if utterance.id not in units]
        if len(missing) == len(dataset):
            raise ConfigError(f"{path}: not one of its utterances is in {config.data.units}; make units of it, too.")
        if missing:
            names = [dataset.utterances[i].id for i in missing]
            say(f"{path}: {len(names)} of {len(dataset)} utterances have no units and are left out: {_some(names)}")
            dataset.leave_out(missing)
    least = objective.min_frames
    if objective.encoder.frame_lengths(int(dataset.lengths.min())) < least:
        seconds = objective.encoder.hop * least / config.data.sample_rate
        raise ConfigError(
            f"data.min_seconds ({config.data.min_seconds:g}) lets in utterances of fewer than the {least} frames that "
            f"this objective needs; set it to {seconds + 0.05:.2f} or more."
        )
    if dataset.tokens is not None:
        impossible = objective.impossible_targets(torch.from_numpy(dataset.lengths), dataset.tokens)
        if impossible:
            names = [dataset.utterances[i].id for i in impossible]
            say(
                f"{path}: {len(names)} of {len(dataset)} transcripts are longer than their audio can spell and are "
                f"left out: {_some(names)}"
            )
            dataset.leave_out(impossible)
    return dataset


def _units(config: Config, objective: Objective) -> Units | None:
    """`data.units`, if the objective reads units; then they must fit it. Raises ConfigError, UnitsError."""
    if "units" not in objective.needs:
        return None
    if not config.data.units:
        raise ConfigError("this objective reads units: set data.units=FOLDER (`speechssl units` makes it).")
    units = Units(config.data.units)
    if problem := objective.wrong_units(units.record.hop, units.record.num_units):
        raise ConfigError(f"{config.data.units}: these units do not fit the objective: {problem}.")
    return units


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")


def _greeting(run: Run, resumes: bool, taken: list[str]) -> list[str]:
    """What starts, on what, with how much audio."""
    config, feed, data, step = run.config, run.feed, run.feed.data, run.state.step
    if resumes:
        origin = f"resumed at update {step}"
    elif config.init:
        origin = f"{config.init_part} from {config.init}" + (f" (and {', '.join(taken[:4])})" if taken else "")
    else:
        origin = "from scratch"
    hours = sum(u.seconds for u in data.utterances) / 3600
    size = sum(p.numel() for p in run.state.objective.parameters()) / 1e6
    left_out = f", {data.left_out} too short or too long left out" if data.left_out else ""
    places = feed.rounds * feed.world
    idle = places - feed.micro_batches
    advice = f"; {idle} of {places} micro-batch places are idle, choose seconds_per_batch to fill them"
    return [
        f"{config.name or config.objective['name']}: {origin}; {size:.2f} M parameters",
        f"data: {len(data)} utterances, {hours:.2f} h{left_out}; reader processes: {feed.readers}",
        f"device: {feed.device} x {feed.world}{' (FSDP)' if run.divided else ''}, {config.train.precision}; "
        f"{feed.micro_batches} micro-batches of {config.data.seconds_per_batch:g} s per update{advice if idle else ''}",
    ]
