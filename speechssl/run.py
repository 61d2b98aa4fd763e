"""What a run consists of, and how it starts: data, objective, optimiser, and whichever checkpoint it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from speechssl import checkpoint
from speechssl.build import build_objective
from speechssl.checkpoint import TrainState
from speechssl.config import Config, ConfigError, read_run, write
from speechssl.data.batching import stream
from speechssl.data.dataset import SpeechDataset, load
from speechssl.data.manifest import Manifest, ManifestError, Utterance
from speechssl.data.tokens import Tokenizer
from speechssl.objectives import Objective
from speechssl.optim import build_optimizer
from speechssl.report import Report
from speechssl.system import StopSignal, check_torch, keep_memory_pages

HARMLESS = {"data.workers", "train.log_every", "train.valid_every", "train.save_every", "train.keep", "train.threads"}
HARMLESS |= {"train.trackers", "name", "about"}  # keys that may change when a run goes on


@dataclass
class Run:
    config: Config
    folder: Path
    accelerator: Accelerator
    model: torch.nn.Module  # the objective as accelerate wraps it
    optimizer: torch.optim.Optimizer  # the optimiser as accelerate wraps it
    state: TrainState
    report: Report
    tokenizer: Tokenizer | None
    data: SpeechDataset
    valid: SpeechDataset | None
    stop: StopSignal = field(default_factory=StopSignal)
    positions: Iterator = field(init=False)  # where each micro-batch lies in the data
    batches: Iterator = field(init=False)  # this rank's micro-batches, read ahead

    def __post_init__(self):
        config, world = self.config, self.accelerator.num_processes
        # Micro-batches are numbered the same whatever the number of processes, which only share them out: a run
        # continued on fewer or more of them sees the same data in the same updates.
        self.micro_batches = max(1, round(config.train.seconds_per_update / config.data.seconds_per_batch))
        self.rounds = -(-self.micro_batches // world)
        self.positions = self._stream()
        pin = self.accelerator.device.type == "cuda"
        self.batches = load(self.data, _Requests(self), workers=config.data.workers, pin_memory=pin)

    def number(self, round_: int) -> int:
        """Which micro-batch of an update this rank has in a round; `micro_batches` or more: none."""
        return round_ * self.accelerator.num_processes + self.accelerator.process_index

    def close(self) -> None:
        """Ends the reader processes. They ignore signals, so a process that left without this would wait for them."""
        self.batches = iter(())

    def _stream(self) -> Iterator:
        data, seed = self.data, self.config.train.seed
        place = {"epoch": self.state.epoch, "batch": self.state.batch_in_epoch}
        return stream(data.lengths, data.budget, seed=seed, crop=data.config.crop, **place)


class _Requests:
    """This rank's requests to the dataset, in order, without end."""

    def __init__(self, run: Run):
        self.run, self.stream = run, run._stream()

    def __iter__(self):
        run = self.run
        while True:
            of_update = [next(self.stream) for _ in range(run.micro_batches)]
            for round_ in range(run.rounds):
                epoch, _, indices = of_update[min(run.number(round_), run.micro_batches - 1)]
                yield epoch, indices


def start(config: Config, folder: Path) -> Run:
    """Start order: resume this folder, else initialise from `config.init`, else from scratch; the log says which."""
    check_torch()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    memory = keep_memory_pages()
    accelerator = _accelerator(config, folder)
    tokenizer = Tokenizer.read(config.data.vocabulary) if config.data.vocabulary else None
    objective = build_objective(config)
    data = _dataset(config.data.train, config, objective, tokenizer)
    valid = None
    if config.data.valid:
        valid = _dataset(config.data.valid, config, objective, tokenizer, keep=_spellable(tokenizer))
    if accelerator.is_main_process:
        _claim(config, folder)
    accelerator.wait_for_everyone()

    if config.train.compile:
        # One graph per batch shape (rarer shapes run uncompiled): with symbolic shapes inductor fails on these layers.
        objective.encoder.feature_encoder.compile(dynamic=False)
        objective.encoder.context.compile(dynamic=False)
    checkpoints = folder / "checkpoints"
    resumes = bool(checkpoint.list_checkpoints(checkpoints))
    taken = checkpoint.initialize(objective, config.init, config.init_part) if config.init and not resumes else []
    objective.to(accelerator.device)
    state = TrainState(objective, build_optimizer(objective, config.optim))
    problems = checkpoint.restore(state, checkpoints, scaler=accelerator.scaler) if resumes else []
    model, optimizer = accelerator.prepare(objective, state.optimizer)
    report = Report(folder, accelerator, objective, updates=config.train.updates, step=state.step)
    run = Run(config, folder, accelerator, model, optimizer, state, report, tokenizer, data, valid)
    if objective.couples_ranks and run.micro_batches % accelerator.num_processes:
        raise ConfigError(
            f"this objective compares utterances across processes, and {run.micro_batches} micro-batches per update "
            f"leave some of {accelerator.num_processes} idle; change train.seconds_per_update to fill them."
        )
    for sentence in [*problems, *_greeting(run, resumes, taken), memory]:
        if sentence:
            report.say(sentence)
    return run


def _accelerator(config: Config, folder: Path) -> Accelerator:
    precision = {"fp32": "no"}.get(config.train.precision, config.train.precision)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    trackers = list(config.train.trackers)
    try:
        accelerator = Accelerator(
            mixed_precision=precision, log_with=trackers or None, project_dir=folder, kwargs_handlers=[ddp]
        )
        if trackers:
            accelerator.init_trackers("speechssl", config={"preset": config.name})
    except (ValueError, ImportError) as error:
        raise ConfigError(f"train.precision or train.trackers: {error}") from None
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would go on in fp32 and say nothing
        raise ConfigError("train.precision: fp16 needs a GPU; choose bf16 or fp32.")
    return accelerator


def _spellable(tokenizer: Tokenizer | None) -> Callable[[Utterance], bool]:
    """Whether the vocabulary has every letter: few minutes of training text may lack a rare one."""
    return lambda utterance: tokenizer is None or utterance.text is None or not tokenizer.unknown(utterance.text)


def _dataset(
    path: str,
    config: Config,
    objective: Objective,
    tokenizer: Tokenizer | None,
    keep: Callable[[Utterance], bool] | None = None,
) -> SpeechDataset:
    """A manifest as batches, after every check that can be made before training starts.

    keep: what validation can measure; the rest is counted and named, not an error.
    """
    if not path:
        raise ConfigError("data.train is not set; give a manifest (`speechssl manifest`).")
    if "tokens" in objective.needs and tokenizer is None:
        raise ConfigError("this objective reads transcripts: set data.vocabulary (`speechssl vocab`).")
    if "tokens" in objective.needs and config.data.crop:
        raise ConfigError("this objective reads transcripts of whole utterances: set data.crop=false.")
    if "units" in objective.needs:
        raise ConfigError("this objective reads units, and data holds none; make them first.")
    manifest = Manifest.read(path)
    if keep is not None:
        odd = [utterance.id for utterance in manifest if not keep(utterance)]
        manifest = manifest.filter(keep)
        if odd:
            print(
                f"{path}: {len(odd)} transcripts have letters outside the vocabulary and do not validate: {_some(odd)}"
            )
    dataset = SpeechDataset(manifest, config.data, seed=config.train.seed, tokenizer=tokenizer)
    if "speakers" in objective.needs and dataset.speakers is None:
        raise ManifestError(f"{path}: this objective reads speakers, and some utterances name none.")
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
            print(
                f"{path}: {len(names)} of {len(dataset)} transcripts are longer than their audio can spell and are "
                f"left out: {_some(names)}",
                flush=True,
            )
            dataset.leave_out(impossible)
    return dataset


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")


def _claim(config: Config, folder: Path) -> None:
    """Makes the run folder, or checks that the run in it is this one. Raises ConfigError."""
    if (folder / "config.yaml").exists():
        old, new = _flat(read_run(folder).to_dict()), _flat(config.to_dict())
        changed = [k for k in new if old.get(k) != new[k] and k not in HARMLESS]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"{folder}: holds a run with another configuration ({key} is {old.get(key)!r} there and {new[key]!r} "
                f"here{f', and {len(changed) - 1} more' if len(changed) > 1 else ''}); choose another folder."
            )
    elif folder.exists() and any(path.suffix != ".part" for path in folder.iterdir()):
        raise ConfigError(f"{folder}: holds files, and no run of speechssl; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "config.yaml.part"  # a full disk must not cost the configuration of a run that goes on
    write(config, temporary)
    temporary.replace(folder / "config.yaml")


def _flat(data: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: _plain(value)}
    return flat


def _plain(value):
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _greeting(run: Run, resumes: bool, taken: list[str]) -> list[str]:
    """What starts, on what, with how much audio."""
    config, data, step = run.config, run.data, run.state.step
    if resumes:
        origin = f"resumed at update {step}"
    elif config.init:
        origin = f"{config.init_part} from {config.init}" + (f" (and {', '.join(taken[:4])})" if taken else "")
    else:
        origin = "from scratch"
    hours = sum(u.seconds for u in data.utterances) / 3600
    size = sum(p.numel() for p in run.state.objective.parameters()) / 1e6
    left_out = f", {data.left_out} too short or too long left out" if data.left_out else ""
    world = run.accelerator.num_processes
    idle = run.rounds * world - run.micro_batches
    advice = f"; {idle} of {run.rounds * world} micro-batch places are idle, choose seconds_per_batch to fill them"
    return [
        f"{config.name or config.objective['name']}: {origin}; {size:.2f} M parameters",
        f"data: {len(data)} utterances, {hours:.2f} h{left_out}",
        f"device: {run.accelerator.device} x {world}, {config.train.precision}; "
        f"{run.micro_batches} micro-batches of {config.data.seconds_per_batch:g} s per update{advice if idle else ''}",
    ]
