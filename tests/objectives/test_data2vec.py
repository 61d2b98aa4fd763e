"""data2vec: its targets and loss against loops, its teacher, its encoder against transformers, and its collapse."""

import math

import pytest
import torch
from parity import encoder_tensors, shake
from tiny import tiny_batch, tiny_encoder, tiny_transformer

from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import WaveformConfig
from speechssl.nn.transformer import TransformerConfig
from speechssl.objectives.data2vec import Data2Vec, Data2VecConfig


def model(kind="group", encoder=None, **numbers) -> Data2Vec:
    torch.manual_seed(3)
    config = Data2VecConfig(**({"mask_length": 3, "mask_start_prob": 0.2, "top_layers": 2} | numbers))
    return Data2Vec(config, encoder or tiny_encoder(kind))


def ffn(block, x):
    inner = torch.nn.functional.gelu(block.ffn_in(x))
    return torch.nn.functional.linear(inner, block.ffn_out.weight, block.ffn_out.bias)


@pytest.mark.parametrize(("beta", "top"), [(0.0, 2), (0.7, 1)])
@torch.no_grad()
def test_loss_against_loops(beta, top):
    """One utterance at a time; the teacher's post-norm blocks are written out."""
    objective = model(beta=beta, top_layers=top).eval()
    shake(objective)  # teacher and student differ
    batch = tiny_batch(3000, 2200)
    encoder, teacher = objective.encoder, objective.teacher.module
    lengths = encoder.frame_lengths(batch.lengths)
    mask = torch.rand(2, int(lengths[0])) < 0.4
    mask &= torch.arange(mask.shape[1]) < lengths[:, None]
    output = objective(batch, mask=mask)

    total = 0.0
    for b, frames in enumerate(lengths.tolist()):
        latents, _ = encoder.feature_encoder(batch.waveforms[b : b + 1, : batch.lengths[b]])
        whole, _ = encoder.project(latents)
        x = teacher.norm(whole + teacher.positions(whole))
        outputs = []
        for block in teacher.blocks:
            x = block.attention_norm(x + block.attention(x, None))
            outputs.append(ffn(block, x)[0])
            x = block.ffn_norm(x + outputs[-1][None])
        normed = [(o - o.mean(0)) / (o.var(0, correction=0) + 1e-5).sqrt() for o in outputs[-top:]]
        targets = sum(normed) / top
        masked = whole.clone()
        masked[0, mask[b, :frames]] = objective.mask_embedding
        predictions = objective.prediction(encoder.context(masked)[0][0])
        for t in mask[b].nonzero().squeeze(1).tolist():
            for d in range(encoder.dim):
                error = abs(float(predictions[t, d] - targets[t, d]))
                if beta == 0:
                    total += error**2 / math.sqrt(encoder.dim)
                else:
                    huber = error**2 / (2 * beta) if error < beta else error - beta / 2
                    total += huber / math.sqrt(encoder.dim)
    assert output.num_targets == mask.sum()
    assert float(output.loss) == pytest.approx(total, rel=1e-4)


def test_the_teacher_sees_everything_and_the_student_what_is_not_masked():
    objective = model()
    heard = {}
    objective.encoder.context.register_forward_hook(lambda module, args, out: heard.update(student=args[0]))
    objective.teacher.module.register_forward_hook(lambda module, args, out: heard.update(teacher=args[0]))
    batch = tiny_batch(3000)
    mask = torch.zeros(1, objective.encoder.frame_lengths(3000), dtype=torch.bool)
    mask[0, 5:9] = True
    objective(batch, mask=mask)
    assert heard["student"][~mask].equal(heard["teacher"][~mask])
    assert heard["student"][mask].equal(objective.mask_embedding.expand(4, -1))
    assert not heard["teacher"][mask].equal(heard["student"][mask])


def test_the_teacher_follows():
    objective = model(encoder=tiny_encoder("group", position_layers=2), decay_start=0.5, decay_end=0.9, decay_updates=4)
    student, teacher = objective.encoder.context, objective.teacher.module
    shake(objective)
    objective.initialized(())  # weights have come, and no teacher
    objective.before_step(0)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    assert all(p.equal(before[name]) for name, p in teacher.named_parameters())
    shake(student)
    objective.after_step(1)
    for name, parameter in teacher.named_parameters():
        new = dict(student.named_parameters())[name]
        decay = 0.0 if name.startswith("positions.") else 0.6  # positional convolutions are shared, as published
        torch.testing.assert_close(parameter, decay * before[name] + (1 - decay) * new)
    objective.before_step(3)
    assert objective.decay == pytest.approx(0.9)


def test_the_teacher_is_in_the_state():
    objective, other = model(), model()
    shake(objective.teacher)
    other.load_state_dict(objective.state_dict())
    weights = zip(objective.teacher.parameters(), other.teacher.parameters(), strict=True)
    assert all(mine.equal(theirs) for mine, theirs in weights)


@pytest.mark.parametrize("kind", ["group", "layer"])
def test_targets_are_before_the_residual_and_leave_no_hooks(kind):
    objective = model(kind, top_layers=1).eval()
    whole = torch.randn(1, 12, 32)
    inputs = []
    hook = objective.teacher.module.blocks[-1].ffn_in.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    targets = objective.targets(whole, None)
    hook.remove()
    expected = ffn(objective.teacher.module.blocks[-1], inputs[0])
    expected = torch.nn.functional.instance_norm(expected.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(targets, expected, atol=1e-5, rtol=1e-5)
    assert not any(block.ffn_out._forward_hooks for block in objective.teacher.module.blocks)


def numbers_of(objective, batch) -> dict[str, float]:
    return {name: metric.result() for name, metric in objective(batch).metrics.items()}


def test_a_collapsed_teacher_is_named():
    objective, batch = model().eval(), tiny_batch(8000, 6000)
    healthy = numbers_of(objective, batch)
    assert 0.1 < healthy["target_variance"] <= 1.1
    assert objective.diagnose(healthy) == ""
    with torch.no_grad():
        for block in objective.teacher.module.blocks:
            block.ffn_out.weight.mul_(1e-6)
    assert "teacher has collapsed" in objective.diagnose(numbers_of(objective, batch))


def test_equal_predictions_are_named():
    objective, batch = model().eval(), tiny_batch(8000, 6000)
    with torch.no_grad():
        objective.prediction.weight.mul_(1e-4)
    numbers = numbers_of(objective, batch)
    assert "all predictions are equal" in objective.diagnose(numbers)
    assert numbers["explained"] == pytest.approx(objective.chance()["explained"], abs=0.2)


def test_it_needs_a_transformer_with_enough_blocks():
    with pytest.raises(UserError, match=r"encoder\.context\.name=transformer"):
        model("recurrent")
    with pytest.raises(UserError, match="has 2 blocks"):
        model(top_layers=3)


@torch.no_grad()
def test_encoder_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    dims, kernel, groups, depth = (16,) * 7, 5, 4, 3
    theirs = transformers.Data2VecAudioModel(
        transformers.Data2VecAudioConfig(
            conv_dim=dims,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            conv_pos_kernel_size=kernel,
            num_conv_pos_embeddings=depth,
            num_conv_pos_embedding_groups=groups,
        )
    ).eval()
    shake(theirs)
    context = tiny_transformer(position_kernel=kernel, position_groups=groups, position_layers=depth)
    assert isinstance(context, TransformerConfig)
    ours = Encoder(EncoderConfig(feature_encoder=WaveformConfig(dims=dims, norm="layer"), context=context)).eval()
    tensors = {
        name.replace("encoder.pos_conv_embed.layers.", "context.positions.layers.").replace(".conv.", "."): tensor
        for name, tensor in encoder_tensors(theirs.state_dict()).items()
    }
    ours.load_state_dict(tensors)
    waveforms = torch.randn(2, 8000)
    expected = theirs(waveforms, output_hidden_states=True)
    output = ours(waveforms)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(output.hidden, expected.last_hidden_state, **close)
    for mine, theirs_ in zip(output.layers, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs_, **close)
