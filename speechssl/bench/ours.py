"""Our own step, as the loop runs it."""

from __future__ import annotations

import torch

from speechssl.batch import Batch
from speechssl.bench.step import Candidate, Case, waveforms
from speechssl.build import build_objective
from speechssl.system import keep_memory_pages


def ours(case: Case, device: str) -> Candidate:
    """The objective of the configuration, on made-up sound with made-up labels where it reads some."""
    keep_memory_pages()
    objective = build_objective(case.resolved()).to(device)
    encoder = objective.encoder
    batch = made_up_batch(case, objective).to(device)

    def loss() -> torch.Tensor:
        output = objective(batch)
        return output.loss / output.num_targets

    objective.before_step(0)
    return Candidate(objective, loss, {"convolutions": encoder.feature_encoder, "context": encoder.context})


def made_up_batch(case: Case, objective) -> Batch:
    sound, lengths = waveforms(case)
    count, rate, needs = len(lengths), case.resolved().data.sample_rate, objective.needs
    labels: dict[str, torch.Tensor] = {}
    if "tokens" in needs:  # fourteen letters a second, as in read English
        sizes = (lengths / rate * 14).long()
        letters = torch.randint(1, objective.config.vocab_size, (count, int(sizes.max())))
        labels = {"tokens": letters, "token_lengths": sizes}
    if "units" in needs:
        labels["units"] = torch.randint(0, objective.config.num_units, (count, sound.shape[1] // 320))
    if "speakers" in needs:
        labels["speakers"] = torch.arange(count) % 2
    ids = tuple(f"utterance-{i}" for i in range(count))
    return Batch(ids=ids, waveforms=sound, lengths=lengths, padded=len(set(lengths.tolist())) > 1, **labels)
