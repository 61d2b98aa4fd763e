"""Other toolkits' training steps with the sizes of our configuration, run as their own examples run them."""

from __future__ import annotations

import torch

from speechssl.bench.step import Candidate, Case, waveforms
from speechssl.errors import UserError


def transformers_wav2vec2(case: Case, device: str) -> Candidate:
    """Wav2Vec2ForPreTraining; masks and negatives are drawn on the host in every step, as its collator does.

    Raises UserError for a configuration that it cannot express.
    """
    try:
        from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
        from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices
    except ImportError:
        raise UserError("transformers is not installed (pip install transformers).") from None
    from speechssl.build import build_objective

    config = case.resolved()
    objective = build_objective(config)
    numbers, features, context = objective.config, objective.encoder.config.feature_encoder, objective.encoder.config
    if config.objective["name"] != "wav2vec2" or features.name != "waveform" or context.context.name != "transformer":
        raise UserError("transformers is compared on wav2vec 2.0 presets with a waveform front end and a Transformer.")
    body = context.context
    mask_prob = numbers.mask_start_prob * numbers.mask_length
    theirs = Wav2Vec2Config(  # type: ignore[call-arg]
        hidden_size=body.dim,
        num_hidden_layers=body.num_layers,
        num_attention_heads=body.num_heads,
        intermediate_size=body.ffn_dim,
        conv_dim=features.dims,
        conv_kernel=features.kernels,
        conv_stride=features.strides,
        conv_bias=features.bias,
        feat_extract_norm=features.norm,
        do_stable_layer_norm=body.norm_first,
        num_conv_pos_embeddings=body.position_kernel,
        num_conv_pos_embedding_groups=body.position_groups,
        hidden_dropout=body.dropout,
        attention_dropout=body.attention_dropout,
        activation_dropout=body.activation_dropout,
        feat_proj_dropout=context.dropout,
        feat_quantizer_dropout=numbers.quantizer_dropout,
        layerdrop=0.0,
        mask_time_prob=mask_prob,
        mask_time_length=numbers.mask_length,
        num_codevectors_per_group=numbers.codebook_size,
        num_codevector_groups=numbers.num_codebooks,
        codevector_dim=numbers.code_dim,
        proj_codevector_dim=numbers.final_dim,
        num_negatives=numbers.num_negatives,
        attn_implementation="sdpa",
    )
    model = Wav2Vec2ForPreTraining(theirs)
    model.to(torch.device(device))  # type: ignore[arg-type]
    sound, lengths = waveforms(case)
    frames = objective.encoder.frame_lengths(lengths)
    shape = (len(lengths), int(frames.max()))
    mask = (torch.arange(sound.shape[1]) < lengths[:, None]).long() if len(set(lengths.tolist())) > 1 else None
    inside = None if mask is None else (torch.arange(shape[1]) < frames[:, None]).long()
    sound, mask_on_device = sound.to(device), None if mask is None else mask.to(device)

    def loss() -> torch.Tensor:
        masked = _compute_mask_indices(shape, mask_prob, numbers.mask_length, attention_mask=inside)
        negatives = _sample_negative_indices(shape, numbers.num_negatives, mask_time_indices=masked)
        output = model(
            sound,
            attention_mask=mask_on_device,
            mask_time_indices=torch.tensor(masked, dtype=torch.long, device=device),
            sampled_negative_indices=torch.tensor(negatives, dtype=torch.long, device=device),
        )
        return output.loss / int(masked.sum())

    parts = {"convolutions": model.wav2vec2.feature_extractor, "context": model.wav2vec2.encoder}
    return Candidate(model, loss, parts)
