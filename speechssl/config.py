"""Typed configuration: strict YAML presets, `key=value` overrides, one clear `ConfigError`.

Every part is a frozen, keyword-only dataclass that says only numbers and names. `parse` turns plain data into one,
and an unknown key or a wrong value is an error that names the file, the dotted path and the nearest valid key.
There is no interpolation, no eval and no object construction. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from speechssl.errors import UserError
from speechssl.files import write_whole

T = TypeVar("T")
MAX_BYTES = 1_000_000  # of a configuration file; a longer one is something else


class ConfigError(UserError):
    """A configuration that cannot be used. The message names the file, the key, and what to do."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how it becomes batches. Lengths are in seconds of audio."""

    train: str = ""  # manifest (JSON lines) to train on
    valid: str = ""  # manifest to validate on; empty: no validation
    vocabulary: str = ""  # tokens of the transcripts (`speechssl vocab`); empty: no labels are read
    label: str = "speaker"  # column that names the classes of the speaker objectives: label, folder:1, ...
    units: str = ""  # units of the utterances, for training and validation (`speechssl units`); empty: none are read
    sample_rate: int = 16_000  # the rate the encoder hears; everything is resampled to it
    normalize: bool = False  # zero mean, unit variance per utterance
    min_seconds: float = 0.4  # shorter utterances are left out (and counted)
    max_seconds: float = 15.625  # longer ones are cropped (crop: true) or left out (crop: false)
    crop: bool = True  # crop each batch to its shortest utterance: no padding; false: whole utterances, padded
    seconds_per_batch: float = 87.5  # largest micro-batch on one device, padding included
    workers: int | None = None  # reader processes per training process; null: what suits the machine
    max_bad_share: float = 0.1  # a run stops when more than this share of what it asked for cannot be read

    def __post_init__(self):
        _require(self.sample_rate > 0, "sample_rate must be positive")
        _require(0 < self.min_seconds <= self.max_seconds, "min_seconds must be positive and at most max_seconds")
        _require(
            self.seconds_per_batch >= self.max_seconds,
            f"seconds_per_batch ({self.seconds_per_batch:g}) must hold an utterance of max_seconds "
            f"({self.max_seconds:g})",
        )
        _require(self.workers is None or self.workers >= 0, "workers must be 0 or more")
        _require(0 <= self.max_bad_share <= 1, "max_bad_share is a share, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and the learning rate as a function of the step (`speechssl.optim.learning_rate`)."""

    lr: float = 5e-4
    heads_lr_scale: float = 1.0  # what is not the encoder learns this many times faster
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01  # on matrices only
    clip: float = 0.0  # largest gradient norm; 0: no clipping
    schedule: Literal["linear", "tri_stage", "cosine"] = "linear"
    warmup: float = 0.08  # share of the updates in which the rate rises from 0
    hold: float = 0.0  # tri_stage: share at the full rate
    final_scale: float = 0.0  # rate at the end, relative to lr

    def __post_init__(self):
        _require(self.lr > 0, "lr must be positive")
        _require(
            self.warmup >= 0 and self.hold >= 0 and self.warmup + self.hold <= 1, "warmup + hold must be at most 1"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop. Periods are in optimiser updates (steps)."""

    updates: int = 400_000
    seconds_per_update: float = 5600.0  # audio in one optimiser update, over all processes and micro-batches
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the device has it, else fp32
    seed: int = 1
    log_every: int = 50
    valid_every: int = 2500
    save_every: int = 2500
    save_minutes: float = 30.0  # saved too when the last time is this long ago; 0: by updates only
    keep: int = 2  # checkpoints kept besides the best
    max_unsaved: int = 10  # saves in a row that fail (a full disk) before the run stops
    best: str = "loss"  # validation metric that the best checkpoint minimises
    trackers: tuple[str, ...] | None = None  # of accelerate: tensorboard, trackio, wandb, ...; null: tensorboard if any
    compile: bool = False  # torch.compile the encoder
    threads: int = 0  # CPU threads per process; 0: leave it to the environment
    max_skipped: int = 20  # updates in a row whose loss or gradient is not finite, before the run stops
    spike: float = 10.0  # gradient norms above this many times the running median are reported
    on_collapse: Literal["warn", "stop", "ignore"] = "warn"
    collapse_patience: int = 500  # updates in a row that must look collapsed before it is called so
    stall_seconds: float = 600.0  # longest wait for a batch from the reader processes
    rank_seconds: float = 1800.0  # longest wait for another process of the run

    def __post_init__(self):
        _require(self.updates > 0, "updates must be positive")
        _require(min(self.log_every, self.valid_every, self.save_every, self.keep) > 0, "periods must be positive")
        least = min(self.max_skipped, self.collapse_patience, self.max_unsaved)
        _require(least > 0, "max_skipped, collapse_patience, max_unsaved: 1 or more")
        _require(self.save_minutes >= 0, "save_minutes must be 0 or more")
        _require(self.spike > 1, "spike must be more than 1")
        _require(min(self.stall_seconds, self.rank_seconds) > 0, "stall_seconds, rank_seconds must be positive")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. `encoder` and `objective` are plain data until their own classes read them (`speechssl.build`)."""

    name: str = ""
    about: str = ""  # where the numbers come from: paper, configuration
    init: str = ""  # checkpoint to take encoder weights from
    init_part: Literal["encoder", "feature_encoder"] = "encoder"  # feature_encoder: its convolutions alone
    data: DataConfig = field(default_factory=DataConfig)
    encoder: dict = field(default_factory=dict)
    objective: dict = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict:
        """Plain data, as written to the run folder and into every checkpoint."""
        return dataclasses.asdict(self)

    def override(self, **parts: Any) -> Config:
        """A copy with some keys replaced: `config.override(data={"train": path})`."""
        return parse(Config, merge(self.to_dict(), parts), source="override")


# ---------------------------------------------------------------------------------------------- plain data -> dataclass


def parse(cls: type[T], data: Any, *, source: str, path: str = "") -> T:
    """Builds the dataclass `cls` from plain data.

    A field whose type is a union of dataclasses is chosen by the key `name`, compared with each member's
    `name: Literal[...]`. Raises ConfigError with `source` and the dotted path.
    """
    where = f"{source}: " + (f"'{path}' " if path else "")
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}must be a section of keys and values, not {data!r}.")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            dotted = f"{path}.{key}" if path else str(key)
            near = difflib.get_close_matches(str(key), known, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(known)}."
            raise ConfigError(f"{source}: unknown key '{dotted}'; {advice}")
    values = {key: _value(hints[key], value, source, f"{path}.{key}".lstrip(".")) for key, value in data.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}{error}.") from None


def _value(hint: Any, value: Any, source: str, path: str) -> Any:
    members = [m for m in (typing.get_args(hint) or (hint,)) if dataclasses.is_dataclass(m)]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if members and not is_union:
        return parse(hint, value, source=source, path=path)
    if members and not (value is None and type(None) in typing.get_args(hint)):
        names: dict[str, Any] = {typing.get_args(typing.get_type_hints(m)["name"])[0]: m for m in members}
        chosen = value.get("name", next(iter(names))) if isinstance(value, Mapping) else None
        if chosen not in names:
            raise ConfigError(f"{source}: '{path}.name' is {chosen!r}; choose one of {', '.join(names)}.")
        return parse(names[chosen], value, source=source, path=path)
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(f"{source}: '{path}' is {value!r}: {reason[0].lower()}{reason[1:]}.") from None


# ------------------------------------------------------------------------------------------------------ reading presets


def load(preset: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a preset by name, or a YAML file by path, and applies `a.b=value` overrides (values are YAML).

    A file may name one other preset as its `base:`; keys of the file win. Raises ConfigError.
    """
    data, source = _read(preset)
    data.setdefault("name", Path(preset).stem)
    base = data.pop("base", None)
    if base is not None:
        base_data, base_source = _read(base)
        if "base" in base_data:
            raise ConfigError(
                f"{source}: its base '{base}' has a base itself ({base_source}); only one level is allowed."
            )
        data = merge(base_data, data)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"override '{item}': write it as key=value, for example optim.lr=0.001.")
        value = _yaml(text, f"override '{item}'")
        for part in reversed(key.split(".")):
            value = {part: value}
        data = merge(data, value)
    return parse(Config, data, source=source)


def read_run(folder: str | Path) -> Config:
    """The resolved configuration of a run folder."""
    return load(Path(folder) / "config.yaml")


def plain(config: Config) -> dict:
    """The resolved configuration in types that YAML and JSON know (no tuples)."""
    return TypeAdapter(dict).dump_python(config.to_dict(), mode="json")


def write(config: Config, path: str | Path) -> None:
    """Writes the resolved configuration as YAML, whole or not at all."""
    write_whole(path, yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))


def presets() -> dict[str, str]:
    """Names of the shipped presets and their one-line descriptions."""
    folder = resources.files("speechssl") / "presets"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".yaml"))
    return {name[:-5]: str(_yaml((folder / name).read_text(), name).get("about", "")) for name in names}


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict:
    """`changes` over `base`, section by section. A section that picks another `name` replaces the old one whole."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        renamed = (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("name", old.get("name")) != old.get("name")
        )
        nested = isinstance(old, Mapping) and isinstance(value, Mapping) and not renamed
        result[key] = merge(old, value) if nested else value  # type: ignore[arg-type]
    return result


def _read(preset: str | Path) -> tuple[dict, str]:
    """The sections of a preset or file, and what to call it in messages."""
    path = Path(preset)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"{path}: no such configuration file.")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: holds more than {MAX_BYTES} bytes; it is no configuration.")
        source, content = str(path), path.read_bytes()
    else:
        packaged = resources.files("speechssl") / "presets" / f"{preset}.yaml"
        if not packaged.is_file():
            names = list(presets())
            near = difflib.get_close_matches(str(preset), names, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"presets: {', '.join(names)}; or give a .yaml file."
            raise ConfigError(f"no preset '{preset}'; {advice}")
        source, content = f"preset {preset}", packaged.read_bytes()
    try:
        data = _yaml(content.decode(), source)
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: is not UTF-8 text.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: must hold sections of keys and values.")
    return data, source


def _yaml(text: str, source: str) -> Any:
    try:
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:  # a date that is none, a thousand [
        reason = " ".join(str(error).split())
        raise ConfigError(f"{source}: not valid YAML: {reason}") from None
    return {} if data is None and not source.startswith("override") else data


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 5e-4 as a number (YAML 1.1 wants 5.0e-4) and refuses aliases and repeated keys."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key, count in Counter(map(str, keys)).items() if count > 1]
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: key given twice: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    __import__("re").compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
