"""`train(config, folder)`: the only loop, for pretraining and fine-tuning. It never asks which objective it runs."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from speechssl import checkpoint
from speechssl.build import seed_everything
from speechssl.checkpoint import CheckpointError
from speechssl.config import Config, ConfigError
from speechssl.data.audio import AudioError
from speechssl.data.batching import plan_epoch
from speechssl.data.dataset import load
from speechssl.objectives import Metric
from speechssl.optim import learning_rate, set_learning_rate
from speechssl.report import Tally
from speechssl.run import Run, start
from speechssl.sharding import whole
from speechssl.system import INTERRUPTED, REQUEUE, return_memory_pages
from speechssl.watch import clear_errors, too_bad


def train(config: Config, folder: str | Path, *, stop_after: int | None = None) -> Path:
    """Runs `config` in `folder` to its last update and returns the last checkpoint.

    The result is the same to the bit however often it was interrupted and resumed.

    Args:
        config: see `speechssl.config`.
        folder: of this run; made if missing.
        stop_after: save and return once this many updates are done (a run in pieces).

    Raises:
        ConfigError, ManifestError, AudioError, CheckpointError: each with one clear sentence.
        NotFiniteError, CollapseError, StallError, HangError: what a watchdog saw (`speechssl.watch`).
        SystemExit: after a signal, once the update is finished and saved: REQUEUE, or INTERRUPTED after Ctrl-C.
    """
    run = start(config, Path(folder))
    try:
        with clear_errors(run.feed, config.train):
            _until(run, min(config.train.updates, stop_after or config.train.updates))
    finally:
        run.close()
    return Path(folder) / "checkpoints" / checkpoint.name_of(run.state.step)


def _until(run: Run, last: int) -> None:
    """Updates up to number `last`, and what is due after each."""
    config, state = run.config, run.state
    tally, clock = Tally(), Clock()
    while state.step < last:
        asked = update(run, tally, clock)
        step = state.step
        ends = step == last or asked.end is not None
        saves = ends or asked.save or step % config.train.save_every == 0
        validates = run.valid is not None and (step % config.train.valid_every == 0 or step == config.train.updates)
        # A line before every save, which a validation may be: a run killed after it then has every line.
        if saves or validates or step % config.train.log_every == 0:
            log(run, tally, clock)
        if validates:
            validate(run)
        if saves:
            save(run, wait=ends)
        if asked.end is not None:
            run.report.say(f"stopped after update {step}, saved; run the same command again to go on")
            raise asked.end
    run.accelerator.wait_for_everyone()


@dataclass(frozen=True)
class Asked:
    """What the processes agreed on after an update: to save, and what to end the run with."""

    save: bool = False
    end: BaseException | None = None


def update(run: Run, tally: Tally, clock: Clock) -> Asked:
    """One optimiser update: gradients of sums, added over micro-batches and ranks, divided once by all targets.

    Where the loss or the gradient is not finite, only the step and the place in the data advance, on all ranks alike.
    """
    state, accelerator, config, feed = run.state, run.accelerator, run.config, run.feed
    objective, step = state.objective, state.step
    objective.train()
    objective.before_step(step)
    buffers = [buffer.clone() for buffer in objective.buffers()]
    sums = torch.zeros(2, device=accelerator.device)
    for round_ in range(feed.rounds):
        batch, weight = feed.next(round_)
        seed_everything(config.train.seed, step, feed.number(round_))
        later = round_ + 1 < feed.rounds  # gradients cross the ranks once per update
        with accelerator.no_sync(run.model) if later else contextlib.nullcontext():
            output = run.model(batch)
            accelerator.backward(output.loss * weight)
        sums += weight * torch.stack((output.num_targets, output.loss.detach()))
        tally.add_finite({"loss": Metric.mean(output.loss, output.num_targets), **output.metrics}, weight=weight)
        clock.seconds_of_audio += weight * batch.waveforms.shape[1] * len(batch.ids) / config.data.sample_rate
    (num_targets, loss), asked = agree(run, sums)
    for parameter in objective.frozen():
        parameter.grad = None
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    # DDP has averaged over the ranks; a mean over all targets is wanted, however unequally the ranks hold them.
    torch._foreach_mul_(gradients, accelerator.num_processes / num_targets.clamp(min=1.0))
    norm = whole(accelerator.clip_grad_norm_(objective.parameters(), config.optim.clip or torch.inf))
    finite = torch.isfinite(norm) & torch.isfinite(loss)  # the same on all ranks; nobody waits for the device
    # As for a GradScaler: 1 leaves weights and moments as they are.
    state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    rate = learning_rate(config.optim, step, config.train.updates)
    set_learning_rate(run.optimizer, rate)
    run.optimizer.step()
    run.optimizer.zero_grad()
    places = feed.places()
    state.step, state.epoch, state.batch_in_epoch = step + 1, places[-1][0], places[-1][1] + 1
    objective.after_step(state.step)
    for buffer, before in zip(objective.buffers(), buffers, strict=True):
        buffer.copy_(torch.where(finite, buffer, before))
    run.gradients.note(step, finite, norm, places)
    clock.noted = {"gradient_norm": norm, "lr": rate}
    return asked if not run.gradients.stuck else Asked(end=run.gradients.error())


def agree(run: Run, sums: torch.Tensor) -> tuple[torch.Tensor, Asked]:
    """Adds up over the ranks, in one go: `sums` (stays on the device), and what each of them asks for."""
    feed, counts, saver = run.feed, run.state.counts, run.saver
    own: list[float] = [run.stop.status == REQUEUE, run.stop.status == INTERRUPTED]
    gives_up = saver is not None and saver.failed >= run.config.train.max_unsaved
    own += [saver is not None and saver.is_due(), feed.asked, feed.unread, gives_up]
    if feed.world > 1:
        everything = run.accelerator.reduce(torch.cat((sums, sums.new_tensor(own))))
        sums, own = everything[:2], everything[2:].tolist()
    requeue, interrupted, due, asked, unread, unsaved = own
    counts.asked, counts.unread = counts.asked + int(asked), counts.unread + int(unread)
    feed.asked = feed.unread = 0
    end: BaseException | None = too_bad(counts, run.config.data, run.folder)
    if unsaved:
        end = CheckpointError("no checkpoint could be saved for too long; make room, then run the same command again.")
    if requeue or interrupted:
        end = SystemExit(INTERRUPTED if interrupted else REQUEUE)
    return sums, Asked(bool(due), end)


def log(run: Run, tally: Tally, clock: Clock) -> None:
    """A line about the updates since the last one. Raises CollapseError."""
    numbers = {**tally.reduce(run.accelerator), **clock.read(run), **run.gradients.numbers()}
    run.report.log("train", run.state.step, numbers)
    run.report.left_out(run.feed.problems)
    run.feed.problems = {}
    run.collapse.look(run.state.step, numbers)


@torch.no_grad()
def validate(run: Run) -> None:
    """Metrics over the validation set, every utterance once, with the same masks and crops each time."""
    assert run.valid is not None
    objective, accelerator, valid, state = run.state.objective, run.accelerator, run.valid, run.state
    planned = plan_epoch(valid.lengths, valid.budget, seed=run.config.train.seed, epoch=0, crop=valid.config.crop)
    mine = range(accelerator.process_index, len(planned), accelerator.num_processes)
    requests = [(0, planned[i]) for i in mine] or [(0, planned[0])]
    objective.eval()
    if run.divided:  # once, and not in every batch, of which the processes have unequal numbers
        run.model.unshard()  # type: ignore[operator]
    tally, problems = Tally(), dict[str, str]()
    timeout = run.config.train.stall_seconds
    batches = load(valid, requests, workers=run.feed.readers, timeout=timeout)
    for number, loaded in zip(mine or [0], batches, strict=True):
        problems |= dict(zip(loaded.unread, loaded.problems, strict=True))
        if loaded.batch is None:
            continue
        seed_everything(run.config.train.seed, 0, number)
        output = objective(loaded.batch.to(accelerator.device))
        metrics = {"loss": Metric.mean(output.loss, output.num_targets), **output.metrics}
        tally.add(metrics, weight=float(bool(mine)))  # a rank without a batch measures one that does not count
    if run.divided:
        run.model.reshard()  # type: ignore[operator]
    for utterance in sorted(problems.keys() - run.feed.named):
        print(f"not validated: {problems[utterance]}", flush=True)
        run.feed.named.add(utterance)
        run.feed.problems[utterance] = problems[utterance]
    if not tally.metrics:
        raise AudioError(f"no utterance to validate on can be read; {next(iter(problems.values()))}")
    numbers = tally.reduce(accelerator)
    run.report.log("valid", state.step, numbers)
    if run.config.train.best not in numbers:
        save(run, wait=True)
        raise ConfigError(f"train.best is '{run.config.train.best}'; validation gives {', '.join(numbers)}.")
    value = numbers[run.config.train.best]
    if math.isfinite(value) and (state.best is None or value < state.best):  # nothing would ever be less than NaN
        state.best, state.best_step = value, state.step
        save(run, best=value)


def save(run: Run, *, best: float | None = None, wait: bool = False) -> None:
    """Rank 0 writes the checkpoint behind the run's back; wait: until it is on the disk, on all ranks.

    Raises CheckpointError if it cannot be written, and wait is True.
    """
    run.gradients.settle()
    if run.saver is not None:
        run.saver.save(run.state, best=best, wait=wait)
    elif run.divided:
        checkpoint.snapshot(run.state, run.config, copy=False)  # hands over its part
    return_memory_pages()
    if wait:
        run.accelerator.wait_for_everyone()


class Clock:
    """Audio per second, share of the time spent waiting for data, and the newest gradient norm and rate."""

    def __init__(self):
        self.noted: dict = {}
        self._restart()

    def _restart(self) -> None:
        self.began, self.seconds_of_audio = time.perf_counter(), 0.0

    def read(self, run: Run) -> dict[str, float]:
        spent = time.perf_counter() - self.began
        own = torch.tensor(self.seconds_of_audio, device=run.accelerator.device)
        audio = float(run.accelerator.reduce(own, reduction="sum"))
        numbers = {k: float(v) for k, v in self.noted.items()}
        numbers |= {"audio_per_second": audio / spent, "wait": run.feed.waited / spent}
        numbers |= {"seconds": spent, "hours": audio / 3600}  # since the last line: sums over a run survive resumes
        run.feed.waited = 0.0
        self._restart()
        return numbers
