"""`train(config, folder)`: the only loop, for pretraining and fine-tuning. It never asks which objective it runs."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

import torch

from speechssl import checkpoint
from speechssl.build import seed_everything
from speechssl.config import Config, ConfigError
from speechssl.data.audio import AudioError
from speechssl.data.batching import plan_epoch
from speechssl.data.dataset import load
from speechssl.objectives import Metric
from speechssl.optim import learning_rate, set_learning_rate
from speechssl.report import Tally
from speechssl.run import Run, start
from speechssl.system import REQUEUE


def train(config: Config, folder: str | Path, *, stop_after: int | None = None) -> Path:
    """Runs `config` in `folder` to its last update and returns the last checkpoint.

    The result is the same to the bit however often it was interrupted and resumed.

    Args:
        config: see `speechssl.config`.
        folder: of this run; made if missing.
        stop_after: save and return once this many updates are done (a run in pieces).

    Raises:
        ConfigError, ManifestError, AudioError, CheckpointError: each with one clear sentence.
        SystemExit: with status REQUEUE, after SIGTERM or SIGUSR1, once the update is finished and saved.
    """
    run = start(config, Path(folder))
    try:
        _until(run, min(config.train.updates, stop_after or config.train.updates))
    finally:
        run.close()
    return Path(folder) / "checkpoints" / f"step-{run.state.step:08d}"


def _until(run: Run, last: int) -> None:
    """Updates up to number `last`, and what is due after each."""
    config, state, report, accelerator = run.config, run.state, run.report, run.accelerator
    tally, clock = Tally(), Clock()
    while state.step < last:
        signalled = update(run, tally, clock)
        step, ends = state.step, state.step == last
        if step % config.train.log_every == 0 or ends:
            report.log("train", step, {**tally.reduce(accelerator), **clock.read(run)})
        if run.valid is not None and (step % config.train.valid_every == 0 or step == config.train.updates):
            validate(run)
        if step % config.train.save_every == 0 or ends or signalled:
            save(run)
        if signalled:
            report.say(f"stopped by a signal after update {step}, saved; run the same command again to go on")
            raise SystemExit(REQUEUE)
    accelerator.wait_for_everyone()


def update(run: Run, tally: Tally, clock: Clock) -> bool:
    """One optimiser update: gradients of sums, added over micro-batches and ranks, divided once by all targets.

    Returns whether a rank was told to stop by a signal.
    """
    state, accelerator, config = run.state, run.accelerator, run.config
    objective, step = state.objective, state.step
    objective.train()
    objective.before_step(step)
    num_targets = torch.zeros((), device=accelerator.device)
    for round_ in range(run.rounds):
        number = run.number(round_)
        counts = float(number < run.micro_batches)  # 0: only keeps this rank in step with the others
        batch = clock.wait_for(run)
        seed_everything(config.train.seed, step, number)
        later = round_ + 1 < run.rounds  # gradients cross the ranks once per update
        with accelerator.no_sync(run.model) if later else contextlib.nullcontext():
            output = run.model(batch)
            accelerator.backward(output.loss * counts)
        num_targets += output.num_targets * counts
        tally.add({"loss": Metric.mean(output.loss, output.num_targets), **output.metrics}, weight=counts)
        clock.seconds_of_audio += counts * batch.waveforms.shape[1] * len(batch.ids) / config.data.sample_rate
    world = accelerator.num_processes
    total, signalled = num_targets, bool(run.stop)
    if world > 1:
        stop = num_targets.new_tensor(float(signalled))
        total, stops = accelerator.reduce(torch.stack((num_targets, stop))).unbind()
        signalled = bool(stops > 0)
    for parameter in objective.frozen():
        parameter.grad = None
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    # DDP has averaged over the ranks; a mean over all targets is wanted, however unequally the ranks hold them.
    torch._foreach_mul_(gradients, world / total.clamp(min=1.0))
    norm = accelerator.clip_grad_norm_(objective.parameters(), config.optim.clip or torch.inf)
    rate = learning_rate(config.optim, step, config.train.updates)
    set_learning_rate(run.optimizer, rate)
    run.optimizer.step()
    run.optimizer.zero_grad()
    state.step = step + 1
    for _ in range(run.micro_batches):
        state.epoch, in_epoch, _ = next(run.positions)
        state.batch_in_epoch = in_epoch + 1
    objective.after_step(state.step)
    clock.note(gradient_norm=norm, lr=rate)
    return signalled


@torch.no_grad()
def validate(run: Run) -> None:
    """Metrics over the validation set, every utterance once, with the same masks and crops each time."""
    assert run.valid is not None
    objective, accelerator, valid = run.state.objective, run.accelerator, run.valid
    planned = plan_epoch(valid.lengths, valid.budget, seed=run.config.train.seed, epoch=0, crop=valid.config.crop)
    mine = range(accelerator.process_index, len(planned), accelerator.num_processes)
    requests = [(0, planned[i]) for i in mine] or [(0, planned[0])]
    objective.eval()
    tally, named = Tally(), set[str]()
    for number, loaded in zip(mine or [0], load(valid, requests, workers=run.config.data.workers), strict=True):
        named.update(loaded.problems)
        if loaded.batch is None:
            raise AudioError("; ".join(loaded.problems))
        seed_everything(run.config.train.seed, 0, number)
        output = objective(loaded.batch.to(accelerator.device))
        metrics = {"loss": Metric.mean(output.loss, output.num_targets), **output.metrics}
        tally.add(metrics, weight=float(bool(mine)))  # a rank without a batch measures one that does not count
    for problem in sorted(named):
        print(f"not validated: {problem}", flush=True)
    numbers, state = tally.reduce(accelerator), run.state
    run.report.log("valid", state.step, numbers)
    if run.config.train.best not in numbers:
        save(run)
        raise ConfigError(f"train.best is '{run.config.train.best}'; validation gives {', '.join(numbers)}.")
    value = numbers[run.config.train.best]
    if math.isfinite(value) and (state.best is None or value < state.best):  # nothing would ever be less than NaN
        state.best = value
        save(run)
        if accelerator.is_main_process:
            checkpoint.mark_best(run.folder / "checkpoints", state.step, run.config.train.best, value)


def save(run: Run) -> None:
    """Rank 0 writes the checkpoint; the others wait."""
    if run.accelerator.is_main_process:
        folder = run.folder / "checkpoints"
        checkpoint.save(run.state, run.config, folder, tokenizer=run.tokenizer, scaler=run.accelerator.scaler)
        checkpoint.prune(folder, run.config.train.keep)
    run.accelerator.wait_for_everyone()


class Clock:
    """Audio per second, share of the time spent waiting for data, and the newest gradient norm and rate."""

    def __init__(self):
        self.noted: dict = {}
        self.problems: set[str] = set()
        self._restart()

    def _restart(self) -> None:
        self.began, self.waited, self.seconds_of_audio = time.perf_counter(), 0.0, 0.0

    def wait_for(self, run: Run):
        """The next micro-batch, on the device; unreadable utterances are named once and left out."""
        began = time.perf_counter()
        loaded = next(run.batches)
        self.waited += time.perf_counter() - began
        for problem in loaded.problems:
            if problem not in self.problems:
                print(f"left out: {problem}", flush=True)
                self.problems.add(problem)
        if loaded.batch is None:
            raise AudioError(f"no utterance of a batch can be read; {loaded.problems[0]}")
        return loaded.batch.to(run.accelerator.device)

    def note(self, **numbers) -> None:
        self.noted |= numbers

    def read(self, run: Run) -> dict[str, float]:
        spent = time.perf_counter() - self.began
        own = torch.tensor(self.seconds_of_audio, device=run.accelerator.device)
        audio = float(run.accelerator.reduce(own, reduction="sum"))
        numbers = {k: float(v) for k, v in self.noted.items()}
        numbers |= {"audio_per_second": audio / spent, "wait": self.waited / spent}
        numbers |= {"seconds": spent, "hours": audio / 3600}  # since the last line: sums over a run survive resumes
        self._restart()
        return numbers
