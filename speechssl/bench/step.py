"""Times training steps of one model. Run as a program, it is one case in a process of its own, so peaks are its own."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.config import Config, parse
from speechssl.errors import UserError

PEERS = {
    "ours": "speechssl.bench.ours:ours",
    "transformers": "speechssl.bench.peers:transformers",
    "torchaudio": "speechssl.bench.peers:torchaudio_hubert",
    "fairseq": "speechssl.bench.checkouts:fairseq",
    "cpc_audio": "speechssl.bench.checkouts:cpc_audio",
    "minimal_hubert": "speechssl.bench.checkouts:minimal_hubert",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Candidate:
    """What is timed.

    run: one forward pass with everything it draws, to a loss; or, of a case that encodes, to features.
    parts: modules timed apart.
    read: reads the batch from files, as a data loader's worker does.
    """

    model: nn.Module
    run: Callable[[], Any]
    parts: Mapping[str, nn.Module] = field(default_factory=dict)
    read: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Case:
    """
    peer: a name in PEERS.
    config: the preset, as plain data.
    seconds: length of each utterance; unequal ones are padded by who needs padding.
    threads: of the CPU; 0: leave it to the environment.
    """

    peer: str
    config: dict
    seconds: tuple[float, ...]
    precision: str = "fp32"
    steps: int = 5
    warmup: int = 1
    threads: int = 0
    count_flops: bool = False
    encode: bool = False  # features of each utterance from a trained encoder, instead of a training step

    def resolved(self) -> Config:
        return parse(Config, self.config, source="bench")


def waveforms(case: Case) -> tuple[Tensor, Tensor]:
    """Noise under syllables, (B, T) with unit variance and zeros behind each end, and lengths (B,) in samples."""
    rate = case.resolved().data.sample_rate
    lengths = torch.tensor([round(s * rate) for s in case.seconds])
    sound = torch.zeros(len(lengths), int(lengths.max()))
    generator = torch.Generator().manual_seed(1)
    for row, length in zip(sound, lengths.tolist(), strict=True):
        syllables = 0.2 + torch.sin(torch.arange(length) / rate * 2.5 * 2 * torch.pi).abs()
        wave = torch.randn(length, generator=generator) * syllables
        row[:length] = (wave - wave.mean()) / wave.std()
    return sound, lengths


def measure(case: Case) -> dict[str, float]:
    """Medians in seconds: step, forward, backward, optimiser and each part, both ways; peak memory in GB; GFLOP.

    cpu: CPU time of a step, all threads: what to compare on a machine that has other work.
    data: seconds to read a batch from files, which a worker does meanwhile. Of a case that encodes: the step alone.
    """
    if case.threads:
        torch.set_num_threads(case.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if case.peer not in PEERS:
        raise UserError(f"no toolkit '{case.peer}'; choose one of {', '.join(PEERS)}.")
    module, _, builder = PEERS[case.peer].partition(":")
    torch.manual_seed(1)
    candidate: Candidate = getattr(import_module(module), builder)(case, device)
    watch = Stopwatch(candidate.parts, device)
    work = (_encoding if case.encode else _training)(candidate, case.precision, device, watch)

    def step() -> dict[str, float]:
        began = time.process_time()
        return work() | {"cpu": time.process_time() - began}

    for _ in range(case.warmup):
        step()
    rows = [step() for _ in range(case.steps)]
    result = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    result["peak_gb"] = _peak_gb(device)
    result["parameters"] = float(sum(p.numel() for p in candidate.model.parameters()))
    if candidate.read is not None:
        result["data"] = min(_seconds(candidate.read) for _ in range(3))
    if case.count_flops:
        result["gflop"] = count_gflop(step)
    return result


def count_gflop(work: Callable[[], Any]) -> float:
    """Of all matrix products and convolutions; what is made again in the backward pass counts again."""
    from torch.utils.flop_counter import FlopCounterMode

    def added_product(total, a, b, *_, out_shape=None, **__) -> int:  # of shapes; torch's counter does not know it
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product}) as counter:
        work()
    return counter.get_total_flops() / 1e9


def _training(candidate: Candidate, precision: str, device: str, watch: Stopwatch) -> Callable[[], dict[str, float]]:
    model = candidate.model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step() -> dict[str, float]:
        watch.restart()
        with torch.autocast(device, DTYPES[precision], enabled=precision != "fp32"):
            loss = candidate.run()
        watch.mark("forward")
        loss.backward()
        watch.mark("backward")
        optimizer.step()
        optimizer.zero_grad()
        watch.mark("optimiser")
        return watch.read()

    return step


def _encoding(candidate: Candidate, precision: str, device: str, watch: Stopwatch) -> Callable[[], dict[str, float]]:
    candidate.model.eval()

    def step() -> dict[str, float]:
        watch.restart()
        with torch.inference_mode(), torch.autocast(device, DTYPES[precision], enabled=precision != "fp32"):
            candidate.run()
        watch.mark("end")
        return {"step": watch.moments["end"] - watch.moments["start"]}

    return step


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Stopwatch:
    """Marks moments of a step; splits it by modules: forward around each, backward between their gradients' arrivals.

    The parts are given in the order in which the forward pass runs them.
    """

    def __init__(self, parts: Mapping[str, nn.Module], device: str):
        self.device, self.names = device, list(parts)
        self.moments: dict[str, float] = {}
        for name, module in parts.items():
            module.register_forward_pre_hook(lambda *_, n=name: self._note(f"{n} begins"))
            module.register_forward_hook(lambda _m, _i, out, n=name: self._after(n, out))

    def restart(self) -> None:
        self.moments = {}
        self._note("start")

    def mark(self, name: str) -> None:
        self._note(name)

    def _note(self, name: str) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.moments[name] = time.perf_counter()

    def _after(self, name: str, output) -> None:
        self._note(f"{name} ends")
        while not isinstance(output, Tensor):
            output = output[0]
        if output.requires_grad:
            output.register_hook(lambda gradient: self._note(f"{name} backward"))

    def read(self) -> dict[str, float]:
        at = self.moments
        times = {
            "step": at["optimiser"] - at["start"],
            "forward": at["forward"] - at["start"],
            "backward": at["backward"] - at["forward"],
            "optimiser": at["optimiser"] - at["backward"],
        }
        # The gradient of a part's output arrives when everything behind it is done: the part itself comes next.
        arrivals = [at.get(f"{n} backward") for n in self.names]
        for i, name in enumerate(self.names):
            spent = at[f"{name} ends"] - at[f"{name} begins"]
            began = arrivals[i]
            if began is not None:
                ended = arrivals[i - 1] if i else at["backward"]
                spent += (ended or at["backward"]) - began
            times[name] = spent
        times["heads"] = times["step"] - times["optimiser"] - sum(times[n] for n in self.names)
        return times


def _peak_gb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def gemm_limit(precision: str, device: str) -> float:
    """GFLOP/s of large matrix products, the best of some sizes: what no training step can exceed."""
    dtype = DTYPES[precision]
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for _ in range(4):
            began = time.perf_counter()
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def run_apart(case: Case, environment: dict[str, str] | None = None) -> dict[str, float]:
    """`measure` in a process of its own. Raises UserError with the last line that it printed."""
    command = [sys.executable, "-m", "speechssl.bench.step", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}), check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{case.peer} in {case.precision} cannot be timed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
