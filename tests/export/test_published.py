"""Every tensor of the largest released models has its place and its shape here, and the other way round.

Nothing is downloaded and no weight takes memory: models of these sizes, without contents.
"""

import json

import pytest
import torch

from speechssl.build import build_objective
from speechssl.config import Config, parse
from speechssl.export import hf
from speechssl.export import keymaps as maps

transformers = pytest.importorskip("transformers")

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
XLARGE = {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120}
FIRST = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}  # norms before the blocks
RELEASED = {  # what their config.json says beside its class's defaults, which are those of the base models
    "wav2vec2-base": ("Wav2Vec2", "ForPreTraining", {}),
    "wav2vec2-large-960h": ("Wav2Vec2", "ForCTC", LARGE),
    "wav2vec2-xls-r-2b": (
        "Wav2Vec2",
        "ForPreTraining",
        XLARGE | FIRST | {"conv_bias": True, "hidden_size": 1920, "intermediate_size": 7680, "codevector_dim": 1024},
    ),
    "hubert-xlarge-ll60k": ("Hubert", "Model", XLARGE | FIRST | {"conv_bias": True}),
    "wavlm-large": ("WavLM", "Model", LARGE | FIRST),
    "data2vec-audio-large": ("Data2VecAudio", "Model", LARGE),
}


@pytest.mark.parametrize("name", RELEASED)
def test_every_tensor_has_its_place(tmp_path, monkeypatch, name):
    class_, kind, numbers = RELEASED[name]
    config = getattr(transformers, f"{class_}Config")(**numbers)
    with torch.device("meta"):
        theirs = getattr(transformers, class_ + kind)(config).state_dict()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.setattr(hf, "_weights", lambda folder: theirs)
    found = hf.read_hf(tmp_path)
    plain = {"encoder": found.encoder, "objective": found.objective}
    with torch.device("meta"):
        ours = build_objective(parse(Config, plain, source=name)).state_dict()
    shapes = {key: tensor.shape for key, tensor in ours.items()}
    assert {key: t.shape for key, t in maps.reshape_like(found.tensors, ours).items()} == shapes
    assert set(found.left_behind) <= {"head.linear.weight", "head.linear.bias"}  # no vocabulary lies beside it

    inside = f"{next(t for _, start, t in hf.CLASSES.values() if start == class_)}."
    back = maps.to_theirs(ours, maps.TRANSFORMERS + maps.TRANSFORMERS_HEADS)
    wanted = {key.removeprefix(inside): t.shape for key, t in theirs.items() if not key.startswith("lm_head.")}
    given = {key: tensor.shape for key, tensor in back.items()}
    for new, old in maps.WEIGHT_NORM.items():
        wanted = {key.replace(new, old): shape for key, shape in wanted.items()}
    assert given == wanted
