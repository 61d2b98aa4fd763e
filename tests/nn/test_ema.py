"""The teacher against its formula."""

import pytest
import torch
from torch import nn

from speechssl.nn.ema import Teacher, linear_decay


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def test_it_is_a_moving_average():
    net, expected = student(), {}
    teacher = Teacher(net)
    for name, parameter in net.named_parameters():
        expected[name] = parameter.detach().clone()
    for decay in (0.9, 0.99, 0.5):
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter += torch.randn_like(parameter)
                expected[name] = decay * expected[name] + (1 - decay) * parameter
        teacher.update(net, decay)
    for name, parameter in teacher.module.named_parameters():
        torch.testing.assert_close(parameter, expected[name])


def test_no_decay_is_a_copy_and_buffers_are_copied():
    net, other = student(), student()
    net(torch.randn(8, 4))  # moves its running statistics
    teacher = Teacher(other)
    teacher.update(net, 0.0)
    for name, value in net.state_dict().items():
        assert teacher.module.state_dict()[name].equal(value), name
    net(torch.randn(8, 4))
    teacher.update(net, 1.0)
    assert teacher.module[0].weight.equal(net[0].weight)
    assert teacher.module[1].running_mean.equal(net[1].running_mean)


def test_it_does_not_learn_and_never_trains():
    net = student().train()
    teacher = nn.ModuleDict({"teacher": Teacher(net)}).train()["teacher"]
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    x = torch.randn(5, 4, requires_grad=True)
    assert not teacher(x).requires_grad
    assert teacher(x).equal(teacher(x))
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net.training


def test_small_steps_are_not_lost_to_half_precision():
    net = nn.Linear(4, 3).bfloat16()
    teacher = Teacher(net)
    before = teacher.module.weight.clone()
    assert before.dtype == torch.float32
    with torch.no_grad():
        net.weight += 1.0
    teacher.update(net, 0.9999)
    torch.testing.assert_close(teacher.module.weight - before, torch.full((3, 4), 1e-4), rtol=0.02, atol=0)


def test_decay_rises_in_a_line():
    numbers = {"start": 0.999, "end": 0.9999, "updates": 30_000}
    assert linear_decay(0, **numbers) == 0.999
    assert linear_decay(10_000, **numbers) == pytest.approx(0.9993)
    assert linear_decay(30_000, **numbers) == linear_decay(10**6, **numbers) == 0.9999
