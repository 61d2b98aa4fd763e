"""wav2vec 2.0: what transformers cannot tell us (penalty, gradient scale, masks, corner cases)."""

import math
from dataclasses import replace

import pytest
import torch
from parity import shake
from tiny import tiny_batch, tiny_encoder

from speechssl.objectives.wav2vec2 import Wav2Vec2, Wav2Vec2Config

G, V, K = 2, 4, 5
PLAIN = {"feature_penalty": 0.0, "diversity_weight": 0.0, "feature_gradient": 1.0}


def model(kind="group", **numbers) -> Wav2Vec2:
    torch.manual_seed(3)
    sizes = {"num_codebooks": G, "codebook_size": V, "code_dim": 8, "final_dim": 8, "num_negatives": K}
    config = Wav2Vec2Config(**({"mask_length": 3, "quantizer_dropout": 0.0} | sizes | numbers))
    objective = Wav2Vec2(config, tiny_encoder(kind))
    shake(objective)
    return objective


def test_masks_are_as_wide_as_what_the_context_reads():
    objective = model("recurrent")
    assert objective.encoder.projected_dim != objective.encoder.dim
    assert objective(tiny_batch(3000, 2400)).loss.isfinite()
    assert objective.mask_embedding.shape == (objective.encoder.projected_dim,)


def drawn(objective, batch):
    """A mask, negatives and noise for a batch."""
    frames = objective.encoder.frame_lengths(batch.lengths)
    mask = objective.draw_mask(frames, int(frames.max()))
    counts = mask.sum(1)
    negatives = torch.stack([torch.randint(0, int(c), (int(counts.max()), K)) for c in counts])
    own = torch.arange(int(counts.max()))[None, :, None]
    negatives = torch.where(negatives == own, (own + 1) % counts[:, None, None], negatives)
    noise = -torch.empty(int(counts.sum()), G, V).exponential_().log()
    return {"mask": mask, "negatives": negatives, "noise": noise}


@torch.no_grad()
def test_loss_against_loops():
    objective = model(diversity_weight=0.3, feature_penalty=2.0).eval()
    batch = tiny_batch(3000, 2200)
    random = drawn(objective, batch)
    mask, negatives = random["mask"], random["negatives"]
    output = objective(batch, **random)

    encoder = objective.encoder
    latents, frames = encoder.feature_encoder(batch.waveforms, batch.lengths)
    total, count, probs = 0.0, 0, []
    for b in range(2):
        projected, normed = encoder.project(latents[b : b + 1, : frames[b]])
        masked = projected[0].clone()
        places = mask[b].nonzero().squeeze(1).tolist()
        for t in places:
            masked[t] = objective.mask_embedding
        hidden, _ = encoder.context(masked[None])
        predictions = objective.prediction(hidden[0])
        quantized = objective.quantizer(normed[0])
        targets = objective.target_projection(quantized.vectors)
        probs.append(quantized.probs[places])
        for m, t in enumerate(places):
            others = [places[n] for n in negatives[b, m]]
            others = [n for n in others if not quantized.codes[n].equal(quantized.codes[t])]
            scores = torch.stack([torch.cosine_similarity(predictions[t], targets[n], dim=0) for n in (t, *others)])
            total -= float((scores / 0.1).log_softmax(0)[0])
            count += 1
    mean = torch.cat(probs).mean(0)
    diversity = float((G * V - torch.exp(-(mean * mean.log()).sum(-1)).sum()) / (G * V))
    valid = torch.cat([latents[b, : frames[b]] for b in range(2)])
    total += count * (0.3 * diversity + 2.0 * float(valid.square().mean()))
    assert output.num_targets == count
    assert float(output.loss) == pytest.approx(total, rel=1e-4)


def test_gradient_into_the_feature_encoder_is_scaled():
    batch, gradients = tiny_batch(3000), {}
    for scale in (1.0, 0.1):
        objective = model(**(PLAIN | {"feature_gradient": scale}))
        torch.manual_seed(5)
        objective(batch).loss.backward()
        gradients[scale] = {name: p.grad.clone() for name, p in objective.named_parameters()}
    for name, gradient in gradients[1.0].items():
        factor = 0.1 if name.startswith("encoder.feature_encoder") else 1.0
        torch.testing.assert_close(gradients[0.1][name], factor * gradient, atol=1e-5, rtol=1e-3)


def test_the_penalty_is_scaled_too():
    """feature_gradient tames all that reaches the feature encoder, the penalty on the latents too, as published."""
    batch = tiny_batch(3000)
    for scale in (1.0, 0.1):
        objective = model(feature_penalty=1.0, diversity_weight=0.0, feature_gradient=scale).eval()
        random = drawn(objective, batch)
        parameters = list(objective.encoder.feature_encoder.parameters())
        loss = objective(batch, **random).loss
        objective.config = Wav2Vec2Config(**(vars(objective.config) | {"feature_penalty": 0.0}))
        without = torch.autograd.grad(objective(batch, **random).loss, parameters)
        penalty = [a - b for a, b in zip(torch.autograd.grad(loss, parameters), without, strict=True)]
        latents, _ = objective.encoder.feature_encoder(batch.waveforms)
        count = random["mask"].sum()
        expected = torch.autograd.grad(scale * count * latents.square().mean(), parameters)
        for mine, theirs in zip(penalty, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)


def test_masked_latents_are_not_seen():
    """Latents behind the mask change the targets, and nothing that the context network hears."""
    objective = model().eval()
    latents = torch.randn(1, 30, 16)
    mask = torch.zeros(1, 30, dtype=torch.bool)
    mask[:, 10:15] = True
    heard = []
    objective.encoder.context.register_forward_hook(lambda module, args, out: heard.append(args[0]))
    objective.encoder.feature_encoder.forward = lambda waveforms, lengths: (latents, None)
    for change in (0.0, 1.0):
        latents = latents + change * mask[..., None]
        objective(tiny_batch(3000), mask=mask)
    assert heard[0].equal(heard[1])
    assert heard[0][0, 10:15].equal(objective.mask_embedding.expand(5, -1))


def test_temperature_is_a_function_of_the_step():
    objective = model(gumbel_start=2.0, gumbel_end=0.5, gumbel_decay=0.9)
    temperatures = []
    for step in (0, 1, 1, 100):  # twice the same update: the same temperature
        objective.before_step(step)
        temperatures.append(objective.quantizer.temperature)
    assert temperatures == pytest.approx([2.0, 1.8, 1.8, 0.5])


def test_chance():
    assert model().chance() == {"contrastive": pytest.approx(math.log(K + 1)), "accuracy": pytest.approx(1 / (K + 1))}
    # An untrained model that ignores its input is at chance: here all scores are equal.
    objective = model(**PLAIN).eval()
    with torch.no_grad():
        objective.prediction.weight.zero_()
        objective.prediction.bias.zero_()
        objective.quantizer.codebooks.normal_()
        output = objective(tiny_batch(3000), **drawn(objective, tiny_batch(3000)))
    share = output.metrics["equal_codes"].result()
    assert math.log(K * (1 - share) + 1) - 0.3 < output.metrics["contrastive"].result() <= math.log(K + 1)


def test_equal_codes_are_no_negatives():
    """When the quantizer has collapsed every negative is the positive: no loss, and the metrics say so."""
    objective = model(**PLAIN)
    with torch.no_grad():
        objective.quantizer.logits.weight.zero_()
        objective.quantizer.logits.bias.copy_(torch.tensor([50.0, 0, 0, 0] * G))
    output = objective(tiny_batch(3000, 2000))
    assert output.loss == 0
    assert output.metrics["equal_codes"].result() == pytest.approx(1)
    assert output.metrics["code_perplexity"].result() == pytest.approx(G, rel=1e-4)


def test_an_utterance_that_is_not_masked_and_a_lone_masked_frame_do_not_count():
    objective = model(**PLAIN)
    batch = tiny_batch(3000, 3000, 3000)
    frames = objective.encoder.frame_lengths(3000)
    mask = torch.zeros(3, frames, dtype=torch.bool)
    mask[0, 3:9] = True
    mask[1, 5] = True
    output = objective(batch, mask=mask)
    output.loss.backward()
    assert output.num_targets == 6
    assert output.loss.isfinite()
    assert output.metrics["masked"].result() == pytest.approx(7 / (3 * frames))
    assert output.metrics["code_perplexity"].values.sum(1).tolist() == [7] * G, "masked frames only are quantized"
    assert all(p.grad.isfinite().all() for p in objective.parameters())


def test_a_batch_with_nothing_but_a_lone_masked_frame():
    mask = torch.zeros(1, model().encoder.frame_lengths(3000), dtype=torch.bool)
    mask[0, 5] = True
    output = model()(tiny_batch(3000), mask=mask)
    assert output.num_targets == 0
    assert output.loss == 0


def test_every_utterance_keeps_two_masked_frames():
    objective = model(mask_start_prob=0.0)
    least = objective.min_frames
    mask = objective.draw_mask(torch.tensor([least, least + 1, 50]), 50)
    assert (mask.sum(1) >= 2).all()


def test_perplexities_add_over_micro_batches():
    """Histograms are added, and only then made a perplexity."""
    objective = model()
    first, second = (objective(batch).metrics for batch in (tiny_batch(3000), tiny_batch(4000)))
    for name in ("code_perplexity", "prob_perplexity"):
        both = (first[name] + second[name]).result()
        assert G <= both <= G * V
        assert both >= min(first[name].result(), second[name].result()) - 1e-4
    total = first["contrastive"] + second["contrastive"]
    assert total.values[1] == first["contrastive"].values[1] + second["contrastive"].values[1]


@torch.no_grad()
def test_hard_negatives_against_loops():
    """The nearest drawn; one with the very codes of the right answer only where nothing else was drawn."""
    objective, counts = model(hard_pool=3), torch.tensor([9, 5])
    targets, codes = torch.randn(2, 9, 8), torch.randint(0, 3, (2, 9))
    torch.manual_seed(5)
    hard = objective._draw(targets, codes, counts)
    objective.config = replace(objective.config, hard_pool=0, num_negatives=3 * K)
    torch.manual_seed(5)
    every = objective._draw(targets, codes, counts)
    for b, count in enumerate(counts.tolist()):
        for m in range(count):
            pool = every[b, m].tolist()
            likeness = [float(torch.cosine_similarity(targets[b, m], targets[b, n], dim=0)) for n in pool]
            right = [n != m and codes[b, n] != codes[b, m] for n in pool]
            order = sorted(range(3 * K), key=lambda i, right=right, likeness=likeness: (not right[i], -likeness[i]))
            chosen = [pool[i] for i in order[:K]]
            assert sum(right) == 0 or chosen[0] == hard[b, m, 0]
            used = min(sum(right), K)
            assert hard[b, m, :used].tolist() == chosen[:used]
            assert (hard[b, m] < count).all()
            assert (hard[b, m] != m).all()
    with pytest.raises(ValueError, match="hard_pool must be 0 or more"):
        Wav2Vec2Config(hard_pool=-1)


def test_at_scale_0_the_feature_encoder_stays():
    """It must not count as trainable: on several processes its gradients would be waited for."""
    objective = model(feature_gradient=0.0)
    assert not any(p.requires_grad for p in objective.encoder.feature_encoder.parameters())
    objective(tiny_batch(3000)).loss.backward()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
