"""A mistake in a configuration is one sentence with file, dotted path and advice; presets load, build, survive YAML."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from tiny_run import ROOT

from speechssl.build import build_objective, without_corpus
from speechssl.config import Config, ConfigError, load, merge, parse, plain, presets, read_run, write


def refused(path, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    def make(text: str, name: str = "mine.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return make


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("optin: {lr: 1}", "optin", "optim"),
        ("optim: {lrr: 1}", "optim.lrr", "lr"),
        ("data: {second_per_batch: 90}", "data.second_per_batch", "seconds_per_batch"),
    ],
)
def test_an_unknown_key(file, text, key, near):
    path = file(text)
    assert refused(path) == f"{path}: unknown key '{key}'; did you mean '{near}'?"


def test_an_unknown_key_that_resembles_nothing(file):
    path = file("optim: {zzz: 1}")
    assert refused(path).startswith(f"{path}: unknown key 'optim.zzz'; valid keys: lr, ")


@pytest.mark.parametrize(
    ("text", "dotted"),
    [
        ("optim: {lr: fast}", "'optim.lr' is 'fast'"),
        ("train: {updates: 1.5}", "'train.updates' is 1.5"),
        ("train: {updates: [1]}", "'train.updates' is [1]"),
        ("train: {precision: fp64}", "'train.precision' is 'fp64'"),
        ("optim: {betas: [0.9]}", "'optim.betas' is [0.9]"),
        ("data: {crop: perhaps}", "'data.crop' is 'perhaps'"),
        ("optim: 5", "'optim' must be a section of keys and values, not 5"),
        ("data: {min_seconds: -1}", "'data' min_seconds must be positive"),
        ("data: {seconds_per_batch: 1}", "'data' seconds_per_batch (1) must hold an utterance of max_seconds (15.625)"),
        ("optim: {warmup: 0.7, hold: 0.7}", "'optim' warmup + hold must be at most 1"),
        ("train: {keep: 0}", "'train' periods must be positive"),
    ],
)
def test_a_wrong_value(file, text, dotted):
    path = file(text)
    assert refused(path).startswith(f"{path}: {dotted}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("optim: {lr: 1", "not valid YAML"),
        ("optim: &o {lr: 1}\ntrain: *o", "aliases (*name) are not allowed"),
        ("name: a\nname: b", "line 1: key given twice: name"),
        ("optim:\n  lr: 1\n  lr: 2", "key given twice: lr"),
        ("name: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_yaml_that_is_refused(file, text, reason):
    path = file(text)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_only_one_base(file):
    middle = file("base: cpc", "middle.yaml")
    path = file(f"base: {middle}")
    assert "has a base itself" in refused(path)
    assert "only one level is allowed" in refused(path)


def test_missing_files_and_presets(tmp_path):
    assert refused(tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: no such configuration file."
    assert refused("wav2vec2-bas") == "no preset 'wav2vec2-bas'; did you mean 'wav2vec2-base'?"
    assert ", cpc, " in refused("zzzzzz")


def test_keys_of_objective_and_encoder_are_checked_when_they_are_built():
    for override, dotted in [
        ("objective.num_negativs=5", "unknown key 'objective.num_negativs'; did you mean 'num_negatives'?"),
        ("encoder.context.dimm=5", "unknown key 'encoder.context.dimm'; did you mean 'dim'?"),
        ("encoder.context.name=mamba", "'encoder.context.name' is 'mamba'; choose one of transformer, recurrent"),
        ("encoder.context.num_heads=7", "'encoder.context' dim must be a multiple of num_heads"),
    ]:
        with pytest.raises(ConfigError) as caught:
            build_objective(load("wav2vec2-small", [override]))
        assert dotted in str(caught.value)


# ----------------------------------------------------------------------------------------------- merging and overrides


def test_merge_goes_section_by_section():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 5}}) == {"a": {"b": 1, "c": 5}, "d": 3}


def test_a_section_that_picks_another_name_replaces_the_old_one():
    base = {"context": {"name": "transformer", "num_heads": 4}}
    assert merge(base, {"context": {"name": "recurrent"}}) == {"context": {"name": "recurrent"}}
    kept = merge(base, {"context": {"name": "transformer", "dim": 8}})
    assert kept == {"context": {"name": "transformer", "num_heads": 4, "dim": 8}}
    assert base == {"context": {"name": "transformer", "num_heads": 4}}  # not changed


def test_a_base_and_what_a_file_changes(file):
    config = load(file("base: cpc\noptim: {lr: 1e-3}\nobjective: {num_steps: 5}"))
    original = load("cpc")
    assert config.optim.lr == 1e-3
    assert config.objective == original.objective | {"num_steps": 5}
    assert config.encoder == original.encoder


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("optim.lr=5e-4", lambda c: c.optim.lr, 5e-4),
        ("optim.lr=1_000e-6", lambda c: c.optim.lr, 1e-3),
        ("train.updates=7", lambda c: c.train.updates, 7),
        ("data.crop=false", lambda c: c.data.crop, False),
        ("optim.betas=[0.5, 0.6]", lambda c: c.optim.betas, (0.5, 0.6)),
        ("train.trackers=[tensorboard]", lambda c: c.train.trackers, ("tensorboard",)),
        ("objective.num_steps=3", lambda c: c.objective["num_steps"], 3),
        ("about=a=b", lambda c: c.about, "a=b"),
        ("data.valid=''", lambda c: c.data.valid, ""),
    ],
)
def test_overrides(override, read, value):
    assert read(load("cpc", [override])) == value


def test_numbers_in_yaml(file):
    data = {"a": "5e-4", "b": "-1E3", "c": "1.e+2", "d": "+0.1", "e": "1e", "f": "e5", "g": "12", "h": "0x1F"}
    text = "objective: {" + ", ".join(f"{k}: {v}" for k, v in data.items()) + "}"
    expected = {"a": 5e-4, "b": -1000.0, "c": 100.0, "d": 0.1, "e": "1e", "f": "e5", "g": 12, "h": 31}
    assert load(file(text)).objective == expected


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("optim.lr", "write it as key=value"),
        ("=5", "write it as key=value"),
        ("optim.lr=[", "not valid YAML"),
        ("optim.lrr=1", "unknown key 'optim.lrr'"),
        ("optim.lr.x=1", "'optim.lr' is {'x': 1}"),
        ("base=cpc", "unknown key 'base'"),
    ],
)
def test_wrong_overrides(override, reason):
    assert reason in refused("cpc", override)


# -------------------------------------------------------------------------------------------------------------- unions


@dataclass(frozen=True, kw_only=True)
class Round:
    name: Literal["round"] = "round"
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square:
    name: Literal["square"] = "square"
    side: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Round | Square = Round()
    maybe: Round | None = None


def test_a_union_is_chosen_by_name():
    assert parse(Drawing, {"shape": {"name": "square", "side": 2}}, source="x").shape == Square(side=2.0)
    assert parse(Drawing, {"shape": {"radius": 2}}, source="x").shape == Round(radius=2.0)  # the first is the default
    assert parse(Drawing, {"maybe": None}, source="x").maybe is None
    with pytest.raises(ConfigError, match=r"x: 'shape.name' is 'oval'; choose one of round, square\."):
        parse(Drawing, {"shape": {"name": "oval"}}, source="x")
    with pytest.raises(ConfigError, match=r"x: unknown key 'shape.radius'"):
        parse(Drawing, {"shape": {"name": "square", "radius": 2}}, source="x")


# ------------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("name", list(presets()))
def test_every_preset_builds_and_survives_yaml(name, tmp_path):
    config = load(name)
    assert config.about, "a preset says where its numbers come from"
    write(config, tmp_path / "config.yaml")
    assert read_run(tmp_path) == config
    assert parse(Config, config.to_dict(), source="again") == config
    is_small = config.encoder.get("feature_encoder", {}).get("name") == "logmel"  # torchaudio's filters want numbers
    with torch.device("cpu" if is_small else "meta"):  # meta: sizes without memory, so that Large fits
        objective = build_objective(without_corpus(config))
    assert sum(p.numel() for p in objective.parameters()) > 50_000  # those of sensors are the smallest
    assert "tokens" not in objective.needs or not config.data.crop


def test_the_published_sizes():
    with torch.device("meta"):
        encoders = {name: build_objective(load(f"wav2vec2-{name}")).encoder for name in ("base", "large")}
    sizes = {name: sum(p.numel() for p in encoder.parameters()) / 1e6 for name, encoder in encoders.items()}
    assert sizes["base"] == pytest.approx(94.4, abs=0.1)  # 95 M in the paper, with the pretraining heads
    assert sizes["large"] == pytest.approx(315.4, abs=0.1)  # 317 M
    assert [encoders[name].hop for name in sizes] == [320, 320]


def test_plain_data_is_plain():
    config = load("cpc", ["optim.betas=[0.9, 0.99]"])
    assert plain(config)["optim"]["betas"] == [0.9, 0.99]
    assert plain(config)["encoder"] == config.encoder


def test_reading_a_configuration_does_not_import_torch():
    code = (
        "import sys; from speechssl.config import load, presets; [load(name) for name in presets()]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("content", "reason"), [(b"- a\n- b\n", "sections"), (b"name: \xff\xfe", "UTF-8"), (b"text", "sections")]
)
def test_a_file_that_is_no_configuration(tmp_path, content, reason):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)
