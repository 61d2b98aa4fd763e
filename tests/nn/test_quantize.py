"""The Gumbel quantizer and perplexity against their formulas."""

import math

import pytest
import torch

from speechssl.nn.quantize import GumbelQuantizer, perplexity

G, V, DIM, CODE_DIM, N = 2, 5, 6, 8, 11


@pytest.fixture
def quantizer():
    module = GumbelQuantizer(DIM, num_codebooks=G, codebook_size=V, code_dim=CODE_DIM)
    torch.nn.init.normal_(module.logits.bias)
    return module


def gumbel(*shape):
    return -torch.empty(*shape).exponential_().log()


def test_what_comes_out_is_looked_up(quantizer):
    quantizer.temperature = 0.7
    latents, noise = torch.randn(N, DIM), gumbel(N, G, V)
    result = quantizer(latents, noise)
    logits = quantizer.logits(latents).view(N, G, V)
    torch.testing.assert_close(result.probs, logits.softmax(-1))
    assert result.codes.equal((logits + noise).argmax(-1))
    for n in range(N):
        looked_up = torch.cat([quantizer.codebooks[g, result.codes[n, g]] for g in range(G)])
        torch.testing.assert_close(result.vectors[n], looked_up)


def test_gradient_is_that_of_the_soft_mixture(quantizer):
    """The codebook learns by what was looked up, the logits as if the codes had been mixed."""
    quantizer.temperature = 0.7
    latents, noise, upstream = torch.randn(N, DIM, requires_grad=True), gumbel(N, G, V), torch.randn(N, CODE_DIM)
    result = quantizer(latents, noise)
    (result.vectors * upstream).sum().backward()
    codebooks = quantizer.codebooks.detach()
    # d vectors / d codebooks[g, v] = 1 where code v was chosen
    expected = torch.zeros_like(codebooks)
    parts = upstream.view(N, G, -1)
    for n in range(N):
        for g in range(G):
            expected[g, result.codes[n, g]] += parts[n, g]
    torch.testing.assert_close(quantizer.codebooks.grad, expected)
    # softmax((logits + noise) / T): dL/dlogit_i = s_i (w_i - sum_j s_j w_j) / T, w = <upstream, code>
    soft = ((quantizer.logits(latents).view(N, G, V) + noise) / 0.7).softmax(-1).detach()
    value = torch.einsum("ngq,gvq->ngv", parts, codebooks)
    to_logits = soft * (value - (soft * value).sum(-1, keepdim=True)) / 0.7
    torch.testing.assert_close(latents.grad, to_logits.flatten(1) @ quantizer.logits.weight.detach())
    torch.testing.assert_close(quantizer.logits.bias.grad, to_logits.flatten(1).sum(0))


def test_codes_are_drawn_by_their_probability(quantizer):
    """The Gumbel-max trick: whatever the temperature, code v is drawn with its softmax probability."""
    draws = 20_000
    quantizer.temperature = 0.5
    with torch.no_grad():
        result = quantizer(torch.zeros(draws, DIM))
    for g in range(G):
        expected = result.probs[0, g] * draws
        counts = result.codes[:, g].bincount(minlength=V)
        assert ((counts - expected).square() / expected).sum() < 18.5  # chi-square, 4 degrees: p = 0.001


def test_evaluation_takes_the_most_probable(quantizer):
    quantizer.eval()
    latents = torch.randn(N, DIM)
    result = quantizer(latents)
    assert result.codes.equal(quantizer.logits(latents).view(N, G, V).argmax(-1))
    torch.testing.assert_close(result.vectors[0, CODE_DIM // G :], quantizer.codebooks[1, result.codes[0, 1]])
    assert quantizer(latents).vectors.equal(result.vectors)


def test_probabilities_stay_wide_under_autocast(quantizer):
    with torch.autocast("cpu", torch.bfloat16):
        result = quantizer(torch.randn(N, DIM))
    assert result.probs.dtype == torch.float32
    assert (result.probs.sum(-1) - 1).abs().max() < 1e-5


def test_code_dim_is_shared_equally():
    with pytest.raises(ValueError, match="multiple"):
        GumbelQuantizer(DIM, num_codebooks=2, codebook_size=4, code_dim=7)


def test_perplexity():
    uniform = torch.full((G, V), 3.0)
    assert float(perplexity(uniform)) == pytest.approx(G * V, rel=1e-4)
    alone = torch.zeros(G, V)
    alone[:, 2] = 17
    assert float(perplexity(alone)) == pytest.approx(G, rel=1e-4)
    counts = torch.tensor([[1.0, 3.0, 0.0], [2.0, 2.0, 4.0]])
    entropies = [-sum(c / sum(row) * math.log(c / sum(row)) for c in row if c) for row in counts.tolist()]
    assert float(perplexity(counts)) == pytest.approx(sum(math.exp(e) for e in entropies), rel=1e-4)
    assert float(perplexity(torch.zeros(G, V))) == pytest.approx(G, rel=1e-4), (
        "nothing counted, nothing divided by zero"
    )
