"""wav2vec 2.0: loss and every gradient against transformers, with the same mask, negatives and Gumbel noise."""

import pytest
import torch
from parity import pretraining_tensors, shake

from speechssl.batch import Batch
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import WaveformConfig
from speechssl.nn.lengths import padding_mask
from speechssl.nn.masking import span_mask
from speechssl.nn.negatives import sample_negatives
from speechssl.nn.transformer import TransformerConfig
from speechssl.objectives.wav2vec2 import Wav2Vec2, Wav2Vec2Config

transformers = pytest.importorskip("transformers")

DIMS, DIM, LAYERS, HEADS, FFN, KERNEL, GROUPS = (32,) * 7, 48, 3, 4, 64, 16, 4
G, V, CODE_DIM, FINAL_DIM, K, TEMPERATURE = 2, 3, 12, 16, 10, 1.3


def their_model(norm: str):
    config = transformers.Wav2Vec2Config(
        conv_dim=DIMS,
        feat_extract_norm=norm,
        conv_bias=norm == "layer",
        do_stable_layer_norm=norm == "layer",
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        num_conv_pos_embeddings=KERNEL,
        num_conv_pos_embedding_groups=GROUPS,
        num_codevector_groups=G,
        num_codevectors_per_group=V,
        codevector_dim=CODE_DIM,
        proj_codevector_dim=FINAL_DIM,
        diversity_loss_weight=0.1,
        contrastive_logits_temperature=0.1,
        mask_feature_prob=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        feat_quantizer_dropout=0.0,
        layerdrop=0.0,
    )
    model = transformers.Wav2Vec2ForPreTraining(config).train()
    model.set_gumbel_temperature(TEMPERATURE)
    return model


def our_model(norm: str) -> Wav2Vec2:
    context = TransformerConfig(
        dim=DIM,
        num_layers=LAYERS,
        num_heads=HEADS,
        ffn_dim=FFN,
        norm_first=norm == "layer",
        position_kernel=KERNEL,
        position_groups=GROUPS,
        dropout=0.0,
        attention_dropout=0.0,
        layer_drop=0.0,
    )
    features = WaveformConfig(dims=DIMS, norm=norm, bias=norm == "layer")
    numbers = Wav2Vec2Config(
        num_codebooks=G,
        codebook_size=V,
        code_dim=CODE_DIM,
        final_dim=FINAL_DIM,
        num_negatives=K,
        diversity_weight=0.1,
        feature_penalty=0.0,  # transformers knows neither the penalty nor the scaled gradient
        feature_gradient=1.0,
        quantizer_dropout=0.0,
    )
    model = Wav2Vec2(numbers, Encoder(EncoderConfig(feature_encoder=features, context=context, dropout=0.0))).train()
    model.quantizer.temperature = TEMPERATURE
    return model


@pytest.mark.parametrize(
    ("norm", "lengths"),
    [("group", (8000, 8000)), ("layer", (8000, 8000)), ("layer", (8000, 5000, 3600))],
    ids=["base", "large", "large-padded"],
)
def test_loss_and_gradients(monkeypatch, norm, lengths):
    theirs, ours = their_model(norm), our_model(norm)
    shake(theirs, 0.05)
    ours.load_state_dict(pretraining_tensors(theirs.state_dict(), G))
    lengths = torch.tensor(lengths)
    present = ~padding_mask(lengths, int(lengths.max()))
    waveforms = torch.randn(present.shape) * present
    frames = ours.encoder.frame_lengths(lengths)
    size = int(frames.max())

    # What is random, once for both. Theirs works on all frames, ours on the masked ones.
    mask = span_mask(frames, size, start_prob=0.2, span=3, min_spans=2)
    counts = mask.sum(1)
    own = torch.arange(int(counts.max())).expand(len(lengths), -1)
    places = sample_negatives(counts[:, None], own, K)  # among an utterance's masked frames
    flat = torch.zeros(len(lengths), size, K, dtype=torch.long)  # among all frames of the batch
    for i in range(len(lengths)):
        where = mask[i].nonzero().squeeze(1)
        flat[i, where] = i * size + where[places[i, : len(where)]]
    noise = -torch.empty(len(lengths), size, G, V).exponential_().log()

    def gumbel_softmax(logits, tau, hard):
        soft = ((logits + noise.reshape(logits.shape)) / tau).softmax(-1)
        one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return one_hot - soft.detach() + soft

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", gumbel_softmax)
    expected = theirs(
        waveforms.clone(),
        attention_mask=None if present.all() else present.long(),
        mask_time_indices=mask,
        sampled_negative_indices=flat,
    )
    expected.loss.backward()
    batch = Batch(ids=("",) * len(lengths), waveforms=waveforms, lengths=lengths, padded=not present.all())
    output = ours(batch, mask=mask, negatives=places, noise=noise[mask])
    output.loss.backward()

    count = int(mask.sum())
    assert output.num_targets == count
    assert output.metrics["equal_codes"].result() > 0, "some negatives are the positive, and are masked out in both"
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)
    numbers = {
        "contrastive": expected.contrastive_loss.item() / count,
        "diversity": expected.diversity_loss.item() / count,
        "prob_perplexity": expected.codevector_perplexity.item(),
    }
    for name, number in numbers.items():
        assert output.metrics[name].result() == pytest.approx(number, rel=1e-4), name

    gradients = pretraining_tensors({name: p.grad for name, p in theirs.named_parameters()}, G)
    assert gradients.keys() == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        error, norm_of = (parameter.grad - gradients[name]).norm(), gradients[name].norm()
        assert error <= 1e-4 * norm_of + 1e-7, f"{name}: {error:.2e} of {norm_of:.2e}"
