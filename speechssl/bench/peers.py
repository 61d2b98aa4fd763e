"""Other toolkits' training steps with the sizes of our configuration, run as their own examples run them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechssl.bench.ours import made_up_batch
from speechssl.bench.step import Candidate, Case, waveforms
from speechssl.build import build_objective
from speechssl.errors import UserError

ENCODED_TOGETHER = 8  # recordings in a batch of transformers, in the order in which they come


def transformers(case: Case, device: str) -> Candidate:
    """Wav2Vec2ForPreTraining, Wav2Vec2ForCTC or, to encode, Wav2Vec2Model.

    Raises UserError for a configuration that it cannot express.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("transformers is not installed (pip install transformers).") from None
    objective = build_objective(case.resolved())
    check_known(objective, "transformers", ("wav2vec2", "ctc"), any_task=case.encode)
    if case.encode:
        return _encoding(transformers.Wav2Vec2Model(transformers_config(objective)), case, device)
    if objective.config.name == "ctc":
        return _fine_tuning(transformers.Wav2Vec2ForCTC(transformers_config(objective)), objective, case, device)
    return _pretraining(transformers.Wav2Vec2ForPreTraining(transformers_config(objective)), objective, case, device)


def check_known(objective, toolkit: str, names: tuple[str, ...], *, any_task: bool = False) -> None:
    context = objective.encoder.config
    known = any_task or objective.config.name in names
    if not known or context.feature_encoder.name != "waveform" or context.context.name != "transformer":
        raise UserError(
            f"{toolkit} is compared on {' and '.join(names)} presets with a waveform front end and a Transformer."
        )


def transformers_config(objective):
    """Its configuration with our sizes, and with what the objective says of dropout, masks and heads."""
    from transformers import Wav2Vec2Config

    context, numbers = objective.encoder.config, objective.config
    features, body = context.feature_encoder, context.context
    heads: dict[str, Any] = {}
    if numbers.name == "wav2vec2":
        heads = {
            "feat_quantizer_dropout": numbers.quantizer_dropout,
            "mask_time_prob": numbers.mask_start_prob * numbers.mask_length,
            "mask_time_length": numbers.mask_length,
            "num_codevectors_per_group": numbers.codebook_size,
            "num_codevector_groups": numbers.num_codebooks,
            "codevector_dim": numbers.code_dim,
            "proj_codevector_dim": numbers.final_dim,
            "num_negatives": numbers.num_negatives,
        }
    elif numbers.name == "ctc":
        heads = {
            "vocab_size": numbers.vocab_size,
            "final_dropout": numbers.head_dropout,
            "mask_time_prob": numbers.time_mask_start_prob * numbers.time_mask_length,
            "mask_time_length": numbers.time_mask_length,
            "mask_feature_prob": numbers.channel_mask_start_prob * numbers.channel_mask_length,
            "mask_feature_length": numbers.channel_mask_length,
            "ctc_loss_reduction": "mean",
        }
    return Wav2Vec2Config(  # type: ignore[call-arg]
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
        layerdrop=0.0,
        attn_implementation="sdpa",
        **heads,
    )


def _mask(lengths: Tensor, size: int) -> Tensor | None:
    """(B, size) int64, 1 where an utterance is; None when nothing is padded."""
    return (torch.arange(size) < lengths[:, None]).long() if len(set(lengths.tolist())) > 1 else None


def _pretraining(model, objective, case: Case, device: str) -> Candidate:
    """Masks and negatives are drawn on the host in every step, as its collator does."""
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

    numbers = objective.config
    mask_prob = numbers.mask_start_prob * numbers.mask_length
    model.to(device)
    sound, lengths = waveforms(case)
    frames = objective.encoder.frame_lengths(lengths)
    shape = (len(lengths), int(frames.max()))
    mask, inside = _mask(lengths, sound.shape[1]), _mask(frames, shape[1])
    sound, mask_on_device = sound.to(device), None if mask is None else mask.to(device)

    def loss() -> Tensor:
        masked = _compute_mask_indices(shape, mask_prob, numbers.mask_length, attention_mask=inside)  # type: ignore[arg-type]
        negatives = _sample_negative_indices(shape, numbers.num_negatives, mask_time_indices=masked)
        output = model(
            sound,
            attention_mask=mask_on_device,
            mask_time_indices=torch.tensor(masked, dtype=torch.long, device=device),
            sampled_negative_indices=torch.tensor(negatives, dtype=torch.long, device=device),
        )
        return output.loss / int(masked.sum())

    return Candidate(model, loss, {"convolutions": model.wav2vec2.feature_extractor, "context": model.wav2vec2.encoder})


def _fine_tuning(model, objective, case: Case, device: str) -> Candidate:
    if objective.config.freeze_feature_encoder:
        model.freeze_feature_encoder()
    model.to(device)
    batch = made_up_batch(case, objective)
    assert batch.tokens is not None
    assert batch.token_lengths is not None
    told = torch.arange(batch.tokens.shape[1]) < batch.token_lengths[:, None]
    labels = batch.tokens.masked_fill(~told, -100).to(device)
    mask = _mask(batch.lengths, batch.waveforms.shape[1])
    sound, mask = batch.waveforms.to(device), None if mask is None else mask.to(device)
    parts = {"convolutions": model.wav2vec2.feature_extractor, "context": model.wav2vec2.encoder}
    return Candidate(model, lambda: model(sound, attention_mask=mask, labels=labels).loss, parts)


def _encoding(model, case: Case, device: str) -> Candidate:
    """Recordings in the order in which they come, padded in batches with a mask."""
    model.to(device)
    sound, lengths = waveforms(case)
    batches = []
    for rows, sizes in zip(sound.split(ENCODED_TOGETHER), lengths.split(ENCODED_TOGETHER), strict=True):
        padded = pad_sequence([row[:n] for row, n in zip(rows, sizes.tolist(), strict=True)], batch_first=True)
        mask = _mask(sizes, padded.shape[1])
        batches.append((padded.to(device), None if mask is None else mask.to(device)))
    return Candidate(model, lambda: [model(padded, attention_mask=mask).last_hidden_state for padded, mask in batches])


def torchaudio_hubert(case: Case, device: str) -> Candidate:
    """hubert_pretrain_model with the loss of its recipe.

    Raises UserError for a configuration that it cannot express.
    """
    from torch.nn.functional import cross_entropy
    from torchaudio.models import hubert_pretrain_model

    objective = build_objective(case.resolved())
    check_known(objective, "torchaudio", ("hubert",))
    numbers, context = objective.config, objective.encoder.config
    features: Any = context.feature_encoder
    body: Any = context.context
    mask = {"mask_selection": "static", "mask_other": 0.0, "no_mask_overlap": False, "mask_min_space": 1}
    no_channel_mask = {"mask_channel_prob": 0.0, "mask_channel_selection": "static", "mask_channel_other": 0.0}
    no_channel_mask |= {"mask_channel_length": 10, "no_mask_channel_overlap": False, "mask_channel_min_space": 1}
    model = hubert_pretrain_model(
        extractor_mode=f"{features.norm}_norm",
        extractor_conv_layer_config=list(zip(features.dims, features.kernels, features.strides, strict=True)),
        extractor_conv_bias=features.bias,
        encoder_embed_dim=body.dim,
        encoder_projection_dropout=context.dropout,
        encoder_pos_conv_kernel=body.position_kernel,
        encoder_pos_conv_groups=body.position_groups,
        encoder_num_layers=body.num_layers,
        encoder_num_heads=body.num_heads,
        encoder_attention_dropout=body.attention_dropout,
        encoder_ff_interm_features=body.ffn_dim,
        encoder_ff_interm_dropout=body.activation_dropout,
        encoder_dropout=body.dropout,
        encoder_layer_norm_first=body.norm_first,
        encoder_layer_drop=0.0,
        mask_prob=numbers.mask_start_prob * numbers.mask_length,
        mask_length=numbers.mask_length,
        skip_masked=False,
        skip_nomask=not numbers.unmasked_weight,
        num_classes=numbers.num_units,
        final_dim=numbers.final_dim,
        feature_grad_mult=numbers.feature_gradient,
        **mask,
        **no_channel_mask,
    ).to(device)
    sound, lengths = waveforms(case)
    frames = objective.encoder.frame_lengths(lengths)
    units = torch.randint(0, numbers.num_units, (len(lengths), int(frames.max())), device=device)
    sizes = lengths.to(device) if len(set(lengths.tolist())) > 1 else None
    sound = sound.to(device)

    def loss() -> Tensor:
        logits, _, penalty = model(sound, units, sizes)  # the right unit comes first
        wanted = torch.zeros(len(logits), dtype=torch.long, device=device)
        return cross_entropy(logits.float(), wanted) + numbers.feature_penalty * penalty

    parts = {"convolutions": model.wav2vec2.feature_extractor, "context": model.wav2vec2.encoder.transformer}
    return Candidate(model, loss, parts)
