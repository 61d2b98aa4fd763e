"""fairseq's layout and WavLM's own, in and out, from the published names; neither package is needed.

The names are written out here once more, from fairseq's and WavLM's model files and not from the package's maps. That
the numbers are right is judged by transformers, whose models these are.
"""

import argparse
import sys
import types

import pytest
import torch
from random_models import (
    CLOSE,
    LETTERS,
    SIZES,
    assert_same_layers,
    assert_same_tensors,
    noise,
    our_checkpoint,
    their_model,
)
from torch import nn

from speechssl.checkpoint import load_checkpoint
from speechssl.export.fairseq import export_fairseq
from speechssl.export.fairseq_read import parse_layers
from speechssl.export.imports import import_weights
from speechssl.export.keymaps import ExportError
from speechssl.extract import load_encoder

pytest.importorskip("transformers")

PUBLISHED = [  # transformers' names, and fairseq's (WavLM's) for the same weights; in this order
    ("feature_projection.layer_norm.", "layer_norm."),
    ("feature_projection.projection.", "post_extract_proj."),
    ("masked_spec_embed", "mask_emb"),
    (".conv.parametrizations.weight.original0", ".conv.weight_g"),
    (".conv.parametrizations.weight.original1", ".conv.weight_v"),
    ("encoder.pos_conv_embed.conv.", "encoder.pos_conv.0."),
    ("encoder.pos_conv_embed.layers.", "encoder.pos_conv."),
    (".attention.rel_attn_embed.", ".self_attn.relative_attention_bias."),
    (".attention.gru_rel_pos_linear.", ".self_attn.grep_linear."),
    (".attention.gru_rel_pos_const", ".self_attn.grep_a"),
    (".attention.", ".self_attn."),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
]


def published(theirs, norm: str) -> dict[str, torch.Tensor]:
    """The weights of a model of transformers in fairseq's layout."""
    state = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in PUBLISHED:
            name = name.replace(old, new)
        if name.startswith("feature_extractor."):
            place = ".2.1." if norm == "layer" else ".2."
            name = name.replace(".conv.", ".0.").replace(".layer_norm.", place)
        elif name.startswith("encoder.pos_conv."):
            name = name.replace(".conv.", ".0.")
        elif name.startswith("encoder.layers."):
            name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        state[name] = tensor.clone()
    return state


def settings(family: str, size: str) -> dict:
    """As fairseq's models are configured."""
    numbers = SIZES[size]
    layers = list(zip(*(numbers[key] for key in ("dims", "kernels", "strides")), strict=True))
    shared = {
        "extractor_mode": "layer_norm" if numbers["norm"] == "layer" or family == "data2vec" else "default",
        "conv_feature_layers": f"{layers[:1]} + {layers[1:]} * 1",
        "conv_bias": numbers["bias"],
        "encoder_layers": numbers["layers"],
        "encoder_embed_dim": numbers["dim"],
        "encoder_ffn_embed_dim": 40,
        "encoder_attention_heads": numbers["heads"],
        "layer_norm_first": size == "large" and family != "data2vec",
        "conv_pos": 8,
        "conv_pos_groups": 4,
        "activation_fn": "gelu",
        "dropout": 0.1,
        "mask_prob": 0.65,
        "mask_length": 10,
    }
    if family == "data2vec":
        shared |= {"conv_pos": 15, "pos_conv_depth": 3, "average_top_k_layers": 2}
    if family == "wavlm":
        shared |= {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 8, "max_distance": 16}
    return shared


def heads(family: str, size: str) -> dict[str, torch.Tensor]:
    """What lies beside the encoder in a pretrained checkpoint."""
    torch.manual_seed(9)
    dim, latents = SIZES[size]["dim"], SIZES[size]["dims"][-1]
    shapes: dict[str, tuple[int, ...]] = {
        "wav2vec2": {
            "quantizer.vars": (1, 6, 6),
            "quantizer.weight_proj.weight": (6, latents),
            "quantizer.weight_proj.bias": (6,),
            "project_q.weight": (10, 12),
            "project_q.bias": (10,),
            "final_proj.weight": (10, dim),
            "final_proj.bias": (10,),
        },
        "hubert": {"label_embs_concat": (5, 10), "final_proj.weight": (10, dim), "final_proj.bias": (10,)},
        "wavlm": {},
        "data2vec": {"final_proj.weight": (dim, dim), "final_proj.bias": (dim,)},
    }[family]
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def as_saved(family: str, cfg: dict, model: dict, style: str) -> dict:
    """style: "args" (the oldest checkpoints), "cfg" (newer ones); WavLM's are flat dictionaries."""
    if family == "wavlm":
        return {"cfg": {**cfg, "normalize": True}, "model": model}
    if style == "args":
        loss = {"arch": family, "normalize": True, "loss_weights": [0.2, 5.0], "latent_vars": 3, "latent_groups": 2}
        return {"args": argparse.Namespace(**cfg, **loss), "model": model, "optimizer_history": [{"lr": 0.1}]}
    names = {"data2vec": "data2vec_audio"}
    special = {"latent_vars": 3, "latent_groups": 2, "latent_temp": (2, 0.5, 0.999995), "logit_temp": 0.1}
    nested = {
        "model": {"_name": names.get(family, family), **cfg, **special},
        "task": {"normalize": True, "sample_rate": 16000},
        "criterion": {"_name": "wav2vec", "loss_weights": [0.2, 5.0]},
    }
    return {"args": None, "cfg": nested, "model": model, "extra_state": {"val_loss": 1.0}}


@pytest.mark.parametrize("style", ["args", "cfg"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "data2vec"])
def test_their_checkpoints_open_here(tmp_path, family, size, style):
    theirs = their_model(family, size)
    cfg = settings(family, size)
    model = published(theirs, "layer" if cfg["extractor_mode"] == "layer_norm" else "group") | heads(family, size)
    path = tmp_path / "theirs.pt"
    torch.save(as_saved(family, cfg, model, style), path, _use_new_zipfile_serialization=style == "cfg")
    found = import_weights(path, tmp_path / "ours")
    assert not found.left_behind
    ours = load_checkpoint(tmp_path / "ours")
    waveforms, _ = noise(4000, 4000)
    encoder = ours.objective.encoder
    assert_same_layers(encoder, theirs.encoder.layers, lambda x: theirs(x).last_hidden_state, waveforms)
    assert ours.config.data.normalize
    assert torch.equal(ours.objective.mask_embedding, model["mask_emb"])

    objective, numbers = ours.objective, ours.objective.config
    if family == "wavlm":
        assert ours.config.objective["family"] == "wavlm"
        return
    assert ours.config.objective["name"] == family
    assert torch.equal(objective.prediction.weight, model["final_proj.weight"])
    assert numbers.mask_start_prob == pytest.approx(0.065)
    if family == "wav2vec2":
        assert torch.equal(objective.quantizer.codebooks, model["quantizer.vars"].view(2, 3, 6))
        assert (numbers.diversity_weight, numbers.feature_penalty, numbers.final_dim) == (0.2, 5.0, 10)
    if family == "hubert":
        assert torch.equal(objective.unit_embeddings, model["label_embs_concat"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "data2vec"])
def test_there_and_back_are_identical_tensors(tmp_path, family, size):
    ours = our_checkpoint(tmp_path / "ours", family, size, normalize=True)
    export_fairseq(tmp_path / "ours", tmp_path / "theirs.pt")
    saved = torch.load(tmp_path / "theirs.pt", weights_only=True)  # plain data: no allow-list is needed
    norm = "layer" if SIZES[size]["norm"] == "layer" or family == "data2vec" else "group"
    names = published(their_model(family, size), norm).keys() | heads(family, size).keys()
    assert saved["model"].keys() - {"_ema"} == names
    import_weights(tmp_path / "theirs.pt", tmp_path / "back")
    back = load_checkpoint(tmp_path / "back")
    if family == "wavlm":  # released without heads
        assert_same_tensors(back.objective.encoder.state_dict(), ours.encoder.state_dict())
    else:
        assert_same_tensors(back.objective.state_dict(), ours.state_dict())
    assert back.objective.encoder.config == ours.encoder.config


def test_the_teacher_comes_along(tmp_path):
    """data2vec keeps the average of its blocks; its positional convolutions are the student's."""
    theirs = their_model("data2vec", "tiny")
    model = published(theirs, "layer") | heads("data2vec", "tiny")
    inside = {k.removeprefix("encoder."): v for k, v in model.items() if k.startswith("encoder.")}
    model["_ema"] = {k: v + 1 for k, v in inside.items() if not k.startswith("pos_conv")}
    torch.save(as_saved("data2vec", settings("data2vec", "tiny"), model, "cfg"), tmp_path / "theirs.pt")
    import_weights(tmp_path / "theirs.pt", tmp_path / "ours")
    objective = load_checkpoint(tmp_path / "ours").objective
    teacher, student = objective.teacher.module, objective.encoder.context
    torch.testing.assert_close(teacher.blocks[1].ffn_in.weight, student.blocks[1].ffn_in.weight + 1)
    torch.testing.assert_close(teacher.positions.layers[0].weight, student.positions.layers[0].weight)


@pytest.mark.parametrize("where", ["inside", "beside"])
@torch.no_grad()
def test_fine_tuned_models_decode_here(tmp_path, where):
    """Settings of the pretrained model inside those of the fine-tuned one; the dictionary in the task or in a file."""
    theirs = their_model("wav2vec2", "large")
    model = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in published(theirs, "layer").items()}
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "|", "E", "T"]
    head = nn.Linear(SIZES["large"]["dim"], len(symbols))
    model |= {f"w2v_encoder.proj.{name}": tensor for name, tensor in head.state_dict().items()}
    inner = argparse.Namespace(**settings("wav2vec2", "large"), arch="wav2vec2", normalize=True)
    saved = {"args": argparse.Namespace(arch="wav2vec_ctc", w2v_args=inner, normalize=True), "model": model}
    if where == "inside":
        saved["task_state"] = {"target_dictionary": {"symbols": symbols, "count": [1] * 7}}
    else:
        (tmp_path / "dict.ltr.txt").write_text("| 94802\nE 51860\nT 38431\n")
    torch.save(saved, tmp_path / "theirs.pt")
    import_weights(tmp_path / "theirs.pt", tmp_path / "ours")
    ours = load_checkpoint(tmp_path / "ours")
    assert ours.tokenizer.symbols == ("<blank>", "|", "E", "T")
    waveforms, _ = noise(4000)
    hidden = ours.objective.encoder(waveforms).hidden
    log_probs, _ = ours.objective.head(hidden, torch.tensor([hidden.shape[1]]))
    expected = head(theirs(waveforms).last_hidden_state)[..., [0, 4, 5, 6]].log_softmax(-1)
    torch.testing.assert_close(log_probs, expected, **CLOSE)


@pytest.mark.parametrize("family", ["wav2vec2", "data2vec"])
def test_our_fine_tuned_models_go_there_and_back(tmp_path, family):
    ours = our_checkpoint(tmp_path / "ours", family, "base", name="ctc")
    export_fairseq(tmp_path / "ours", tmp_path / "theirs.pt")
    letters = (tmp_path / "dict.ltr.txt").read_text().splitlines()
    assert letters[:2] == ["| 1", "' 1"]
    head = torch.load(tmp_path / "theirs.pt", weights_only=True)["model"]["w2v_encoder.proj.weight"]
    assert len(head) == len(letters) + 4, "fairseq puts <s>, <pad>, </s> and <unk> before them"
    import_weights(tmp_path / "theirs.pt", tmp_path / "back")
    back = load_checkpoint(tmp_path / "back")
    assert back.tokenizer == LETTERS
    assert_same_tensors(back.objective.state_dict(), ours.state_dict())


def test_settings_pickled_as_objects(tmp_path, monkeypatch):
    """omegaconf's nodes, an enumeration and fairseq's dictionary are read as plain data; none of them is imported."""
    made = {
        name: types.ModuleType(name) for name in ("omegaconf", "omegaconf.dictconfig", "omegaconf.nodes", "fairseq")
    }

    def stand_in(module: str, name: str):
        cls = type(name, (), {"__module__": module})
        setattr(made[module], name, cls)
        return cls

    config, node = stand_in("omegaconf.dictconfig", "DictConfig"), stand_in("omegaconf.nodes", "AnyNode")
    mode, dictionary = stand_in("fairseq", "Mode"), stand_in("fairseq", "Dictionary")
    mode.__init__ = lambda self, value: None
    mode.__reduce__ = lambda self: (mode, ("layer_norm",))

    def wrap(value):
        if isinstance(value, dict):
            made_of = config()
            made_of.__dict__.update(_metadata=None, _parent=None, _content={k: wrap(v) for k, v in value.items()})
            return made_of
        leaf = node()
        leaf.__dict__.update(_metadata=None, _parent=None, _val=value)
        return leaf

    theirs = their_model("hubert", "large")
    cfg = settings("hubert", "large") | {"extractor_mode": mode("layer_norm")}
    words = dictionary()
    words.__dict__.update(symbols=["a"], count=[1])
    saved = as_saved("hubert", cfg, published(theirs, "layer") | heads("hubert", "large"), "cfg")
    saved |= {"cfg": wrap(saved["cfg"]), "task_state": {"dictionaries": [words]}}
    with monkeypatch.context() as patched:
        for name, module in made.items():
            patched.setitem(sys.modules, name, module)
        torch.save(saved, tmp_path / "theirs.pt")
    assert "fairseq" not in sys.modules
    import_weights(tmp_path / "theirs.pt", tmp_path / "ours")
    assert "fairseq" not in sys.modules
    waveforms, _ = noise(4000)
    encoder = load_encoder(tmp_path / "ours")
    assert_same_layers(encoder, theirs.encoder.layers, lambda x: theirs(x).last_hidden_state, waveforms)


@pytest.mark.parametrize(
    "text",
    ["__import__('os').getcwd()", "[(512, 10)]", "[(1, 2, 3)] * 1000000000", "", "[" * 1000, "[(512, 10, 5)", "5"],
)
def test_convolutions_are_read_and_never_evaluated(tmp_path, text):
    with pytest.raises(ExportError, match="no list of"):
        parse_layers(tmp_path, text)


def test_convolutions_as_published(tmp_path):
    stack = parse_layers(tmp_path, "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]")
    assert stack == {"dims": (512,) * 7, "kernels": (10, 3, 3, 3, 3, 2, 2), "strides": (5, 2, 2, 2, 2, 2, 2)}


def test_letters_of_another_model_are_not_overwritten(tmp_path):
    our_checkpoint(tmp_path / "ours", "wav2vec2", "tiny", name="ctc")
    (tmp_path / "dict.ltr.txt").write_text("other")
    with pytest.raises(ExportError, match=r"dict\.ltr\.txt: exists already"):
        export_fairseq(tmp_path / "ours", tmp_path / "theirs.pt")
    assert not (tmp_path / "theirs.pt").exists()


def test_what_fairseq_lacks_is_one_sentence(tmp_path):
    our_checkpoint(tmp_path / "ours", "wavlm", "tiny", name="ctc")
    with pytest.raises(ExportError, match="WavLM model with a CTC head, which its release lacks"):
        export_fairseq(tmp_path / "ours", tmp_path / "theirs.pt")
