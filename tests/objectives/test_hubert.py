"""HuBERT: loss and gradients against torchaudio, which frames are scored, units that do not fit, collapse."""

import math
from dataclasses import replace

import pytest
import torch
from parity import encoder_tensors, shake
from tiny import tiny_batch, tiny_encoder

from speechssl.batch import Batch
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import WaveformConfig
from speechssl.nn.transformer import TransformerConfig
from speechssl.objectives.hubert import HuBERT, HuBERTConfig

V, FINAL = 7, 12


def model(kind: str = "group", **numbers) -> HuBERT:
    torch.manual_seed(0)
    numbers = {"num_units": V, "final_dim": FINAL, "mask_length": 3, "mask_start_prob": 0.15} | numbers
    return HuBERT(HuBERTConfig(**numbers), tiny_encoder(kind))


def with_units(objective: HuBERT, *lengths: int) -> Batch:
    batch = tiny_batch(*lengths)
    frames = objective.encoder.frame_lengths(batch.waveforms.shape[1]) * objective.config.targets_per_frame
    return replace(batch, units=torch.randint(V, (len(lengths), frames)))


def test_masks_are_as_wide_as_what_the_context_reads():
    objective = model("recurrent")
    assert objective.encoder.projected_dim != objective.encoder.dim
    assert objective(with_units(objective, 3000, 2400)).loss.isfinite()
    assert objective.mask_embedding.shape == (objective.encoder.projected_dim,)


# -------------------------------------------------------------------------------------------------------------- parity


def their_model(skip_nomask: bool):
    models = pytest.importorskip("torchaudio.models")
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    return models.hubert_pretrain_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=[(32, k, s) for k, s in zip(kernels, strides, strict=True)],
        extractor_conv_bias=False,
        encoder_embed_dim=48,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=16,
        encoder_pos_conv_groups=4,
        encoder_num_layers=3,
        encoder_num_heads=4,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=64,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=False,
        encoder_layer_drop=0.0,
        mask_prob=0.8,
        mask_selection="static",
        mask_other=0.0,
        mask_length=10,
        no_mask_overlap=False,
        mask_min_space=1,
        mask_channel_prob=0.0,
        mask_channel_selection="static",
        mask_channel_other=0.0,
        mask_channel_length=10,
        no_mask_channel_overlap=False,
        mask_channel_min_space=1,
        skip_masked=False,
        skip_nomask=skip_nomask,
        num_classes=V,
        final_dim=FINAL,
        feature_grad_mult=0.1,
    ).train()


def our_model(unmasked_weight: float) -> HuBERT:
    context = TransformerConfig(
        dim=48,
        num_layers=3,
        num_heads=4,
        ffn_dim=64,
        position_kernel=16,
        position_groups=4,
        dropout=0.0,
        attention_dropout=0.0,
        layer_drop=0.0,
    )
    encoder = EncoderConfig(feature_encoder=WaveformConfig(dims=(32,) * 7), context=context, dropout=0.0)
    config = HuBERTConfig(num_units=V, final_dim=FINAL, unmasked_weight=unmasked_weight)
    return HuBERT(config, Encoder(encoder)).train()


def our_tensors(theirs: dict) -> dict:
    """HuBERTPretrainModel of torchaudio -> HuBERT."""
    inner = {k.removeprefix("wav2vec2."): v for k, v in theirs.items() if k.startswith("wav2vec2.")}
    return {f"encoder.{name}": tensor for name, tensor in encoder_tensors(inner).items()} | {
        "mask_embedding": theirs["mask_generator.mask_embedding"],
        "prediction.weight": theirs["logit_generator.final_proj.weight"],
        "prediction.bias": theirs["logit_generator.final_proj.bias"],
        "unit_embeddings": theirs["logit_generator.label_embeddings"],
    }


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.3])
def test_loss_and_gradients_are_torchaudios(unmasked_weight):
    theirs, ours = their_model(skip_nomask=not unmasked_weight), our_model(unmasked_weight)
    shake(theirs, 0.05)
    ours.load_state_dict(our_tensors(theirs.state_dict()))
    batch = replace(tiny_batch(16_000, 16_000), units=torch.randint(V, (2, ours.encoder.frame_lengths(16_000))))
    masks = []
    theirs.mask_generator.register_forward_hook(lambda module, args, out: masks.append(out[1]))
    masked, unmasked, penalty = theirs(batch.waveforms, batch.units)

    def cross_entropy(logits):
        return torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")

    seen = unmasked_weight * cross_entropy(unmasked) if unmasked_weight else 0.0
    count = len(masked) + (len(unmasked) if unmasked_weight else 0)
    expected = cross_entropy(masked) + seen + 10 * penalty * count
    expected.backward()
    output = ours(batch, mask=masks[0])
    output.loss.backward()

    assert output.num_targets == count
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    right = (masked[:, 0] > masked[:, 1:].amax(1)).float().mean().item()  # they leave out the right one of the others
    assert output.metrics["accuracy"].result() == pytest.approx(right, abs=1e-6)
    gradients = our_tensors({name: p.grad for name, p in theirs.named_parameters()})
    assert gradients.keys() == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3, msg=name)


# ---------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(("kind", "per_frame"), [("group", 1), ("logmel", 2), ("logmel", 3)])
@torch.no_grad()
def test_loss_by_loops(kind, per_frame):
    objective = model(kind, targets_per_frame=per_frame, feature_penalty=0.0).eval()
    batch = with_units(objective, 8000, 6000)
    frames = objective.encoder.frame_lengths(batch.lengths)
    units = batch.units.masked_fill(torch.rand(batch.units.shape) < 0.2, -1)  # some are unknown
    mask = torch.rand(2, int(frames.max())) < 0.5
    output = objective(replace(batch, units=units), mask=mask)

    latents, lengths = objective.encoder.feature_encoder(batch.waveforms, batch.lengths)
    projected = objective.encoder.project(latents)[0]
    projected[mask] = objective.mask_embedding
    hidden, _ = objective.encoder.context(projected, lengths)
    total, count = 0.0, 0
    for i in range(2):
        for frame in range(int(frames[i])):
            vectors = objective.prediction(hidden[i, frame]).view(per_frame, FINAL)
            for r in range(per_frame):
                unit = int(units[i, frame * per_frame + r])
                if mask[i, frame] and unit >= 0:
                    scores = torch.cosine_similarity(vectors[r][None], objective.unit_embeddings) / 0.1
                    total += -scores.log_softmax(0)[unit].item()
                    count += 1
    assert output.num_targets == count
    assert output.loss.item() == pytest.approx(total, rel=1e-4)


def test_what_lies_behind_a_mask_is_not_heard():
    objective = model()
    batch = with_units(objective, 3000)
    mask = torch.zeros(1, objective.encoder.frame_lengths(3000), dtype=torch.bool)
    mask[0, 10:15] = True
    heard = []
    objective.encoder.context.register_forward_pre_hook(lambda module, args: heard.append(args[0].detach()))
    latents, _ = objective.encoder.feature_encoder(batch.waveforms)
    objective.encoder.feature_encoder.forward = lambda waveforms, lengths: (latents, None)
    for change in (0.0, 1.0):
        latents = latents + change * mask[..., None]
        objective(batch, mask=mask)
    assert heard[0].equal(heard[1])
    assert heard[0][0, 10:15].equal(objective.mask_embedding.expand(5, -1))


def test_frames_that_are_seen_do_not_count_as_published():
    objective = model().eval()
    batch = with_units(objective, 3000)
    mask = torch.zeros(1, objective.encoder.frame_lengths(3000), dtype=torch.bool)
    mask[0, 10:15] = True
    expected = objective(batch, mask=mask)
    other = batch.units.where(mask, (batch.units + 1) % V)
    assert objective(replace(batch, units=other), mask=mask).loss.equal(expected.loss)
    assert expected.num_targets == 5
    assert "unmasked_accuracy" not in expected.metrics
    both = model(unmasked_weight=0.5).eval()
    assert "unmasked_accuracy" in both(batch, mask=mask).metrics
    assert not both(replace(batch, units=other), mask=mask).loss.equal(both(batch, mask=mask).loss)


def test_a_batch_without_units_has_no_loss():
    objective = model()
    batch = with_units(objective, 3000, 2000)
    output = objective(replace(batch, units=torch.full_like(batch.units, -1)))
    output.loss.backward()
    assert output.num_targets == 0
    assert output.loss == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


def test_too_few_units_are_no_error():
    objective = model()
    batch = with_units(objective, 3000)
    mask = torch.ones(1, objective.encoder.frame_lengths(3000), dtype=torch.bool)
    assert objective(replace(batch, units=batch.units[:, :4]), mask=mask).num_targets == 4
    assert objective(replace(batch, units=batch.units[:, :0]), mask=mask).num_targets == 0


# ------------------------------------------------------------------------------------------------- units, and collapse


def test_units_must_fit():
    objective = model(targets_per_frame=2)  # frames of 80 samples
    assert objective.wrong_units(40, V) == ""
    assert "wants one every 40; set objective.targets_per_frame=1" in objective.wrong_units(80, V)
    assert "wants one every 40; set objective.targets_per_frame=4" in objective.wrong_units(20, V)
    assert objective.wrong_units(30, V).endswith("make units with another hop")
    assert objective.wrong_units(160, V).endswith("make units with another hop")
    assert objective.wrong_units(40, V + 1).endswith(f"set objective.num_units={V + 1}")
    with pytest.raises(ValueError, match="num_units must be 2 or more"):
        HuBERTConfig(num_units=1)


def test_chance_is_what_a_model_that_hears_nothing_gets():
    objective = model().eval()
    chance = objective.chance()
    assert chance == {"cross_entropy": pytest.approx(math.log(V)), "accuracy": pytest.approx(1 / V)}
    with torch.no_grad():
        objective.unit_embeddings.copy_(torch.ones(V, FINAL))  # all scores are equal
    output = objective(with_units(objective, 8000))
    assert output.metrics["cross_entropy"].result() == pytest.approx(chance["cross_entropy"], rel=1e-5)


def test_collapse_is_named():
    objective = model()
    healthy = {"unit_perplexity": 5.5, "predicted_perplexity": 4.0, "cross_entropy": 1.2}
    assert objective.diagnose(healthy) == ""
    assert objective.diagnose({}) == ""
    assert "units themselves have collapsed" in objective.diagnose(healthy | {"unit_perplexity": 1.1})
    stuck = healthy | {"predicted_perplexity": 1.01, "cross_entropy": math.log(5.5)}
    assert "predictions have collapsed to one unit" in objective.diagnose(stuck)


def test_a_run_without_input_is_named():
    """On noise whose units have nothing to do with it, the network learns their frequencies and no more."""
    objective = model(num_units=4)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    frames = objective.encoder.frame_lengths(4000)
    for _ in range(60):
        units = torch.multinomial(torch.tensor([0.55, 0.15, 0.15, 0.15]), 4 * frames, replacement=True).view(4, -1)
        batch = replace(tiny_batch(4000, 4000, 4000, 4000), units=units)
        output = objective(replace(batch, waveforms=torch.randn(4, 4000)))
        optimizer.zero_grad()
        (output.loss / output.num_targets).backward()
        optimizer.step()
    assert objective.diagnose({name: metric.result() for name, metric in output.metrics.items()})


def test_at_scale_0_the_feature_encoder_stays():
    """It must not count as trainable: on several processes its gradients would be waited for."""
    objective = model(feature_gradient=0.0)
    assert not any(p.requires_grad for p in objective.encoder.feature_encoder.parameters())
    objective(with_units(objective, 3000)).loss.backward()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
