"""BYOL: the symmetric loss against its formula, and a teacher that follows without ever learning."""

import math
from dataclasses import replace

import pytest
import torch
from cases import make, two_utterances
from tiny import tiny_batch

from speechssl.nn.distributed import BatchNorm
from speechssl.nn.ema import Teacher
from speechssl.objectives.byol import cosine_decay
from speechssl.objectives.views import View


@torch.no_grad()
def test_loss_against_loops():
    objective = make("byol").eval()
    for parameter in objective.teacher.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    first, second = torch.randn(4, 3000), torch.randn(4, 3000)
    output = objective(tiny_batch(1), views=(View(first, None), View(second, None)))
    teacher = objective.teacher.module
    total = 0.0
    for mine, other in ((first, second), (second, first)):
        predicted = objective.prediction(objective.projection(objective.encoder(mine).hidden.mean(1)))
        targets = teacher.projection(teacher.encoder(other).hidden.mean(1))
        for p, t in zip(predicted, targets, strict=True):
            total += 2 - 2 * float(p @ t / (p.norm() * t.norm()))
    assert output.num_targets == 4
    assert output.loss.item() == pytest.approx(total, rel=1e-4)
    assert output.metrics["distance"].result() == pytest.approx(total / 8, rel=1e-4)


def test_the_decay_rises_to_one():
    assert cosine_decay(0, start=0.99, updates=100) == pytest.approx(0.99)
    assert cosine_decay(50, start=0.99, updates=100) == pytest.approx(0.995)
    assert cosine_decay(25, start=0.99, updates=100) == pytest.approx(1 - 0.01 * (math.cos(math.pi / 4) + 1) / 2)
    assert cosine_decay(100, start=0.99, updates=100) == cosine_decay(10**6, start=0.99, updates=100) == 1


def test_the_teacher_follows():
    objective = make("byol")
    student, teacher = objective.projection[0].weight, objective.teacher.module.projection[0].weight
    assert teacher.equal(student)
    before = teacher.clone()
    with torch.no_grad():
        student.add_(1.0)
    objective.after_step(1)
    torch.testing.assert_close(teacher, 0.99 * before + 0.01 * student)
    frozen = teacher.clone()
    objective.after_step(objective.config.decay_updates + 1)
    assert teacher.equal(frozen)


def test_the_teachers_batch_norms_see_the_batch():
    """But dropout never falls on it, and validation takes the running statistics."""
    objective = make("byol", dropout=0.5)
    norms = [module for module in objective.teacher.modules() if isinstance(module, BatchNorm)]
    rest = [m for m in objective.teacher.modules() if not isinstance(m, BatchNorm)]
    assert len(norms) == 1
    assert all(norm.training for norm in norms)
    assert not any(module.training for module in rest)
    objective.eval()
    assert not any(module.training for module in objective.modules())


def test_without_prediction_batch_norm_and_a_slow_teacher_it_collapses_and_says_so():
    objective, batch = make("byol"), two_utterances("byol")
    objective.config = replace(objective.config, teacher_decay=0.0)
    objective.projection, objective.prediction = torch.nn.Linear(32, 8), torch.nn.Identity()
    objective.teacher = Teacher(objective.student)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=0.03)
    waveforms = torch.randn(6, 2000)
    views = View(waveforms, None), View(waveforms.roll(200, 1), None)
    for step in range(40):
        objective.before_step(step)
        output = objective(batch, views=views)
        optimizer.zero_grad()
        (output.loss / output.num_targets).backward()
        optimizer.step()
        objective.after_step(step + 1)
    assert output.loss.item() / 6 == pytest.approx(0, abs=1e-3), "the loss alone would look like a triumph"
    assert "all point the same way" in objective.diagnose({k: m.result() for k, m in output.metrics.items()})


def test_agreement_has_no_loss():
    objective = make("byol").eval()
    objective.prediction = torch.nn.Identity()
    view = View(torch.randn(6, 4000), None)
    output = objective(two_utterances("byol"), views=(view, view))
    assert output.loss.item() == pytest.approx(0, abs=1e-4)
