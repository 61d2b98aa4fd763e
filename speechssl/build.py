"""Configuration -> objective, with its own config classes deciding what is valid."""

from __future__ import annotations

import random
from typing import Any

import torch

from speechssl.config import Config, ConfigError, parse
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.objectives import OBJECTIVES, Objective, find_objective


def build_objective(config: Config) -> Objective:
    """A fresh objective with its encoder; its random weights are a function of `train.seed` alone.

    Raises ConfigError for keys and values that its classes refuse.
    """
    if "name" not in config.objective:
        raise ConfigError("no objective is named; choose a preset, or set objective.name=...")
    cls = find_objective(config.objective["name"])
    numbers = {k: v for k, v in config.objective.items() if ":" not in str(v) or k != "name"}
    source = config.name or "configuration"
    parsed: Any = parse(cls.Config, numbers, source=source, path="objective")
    encoder = parse(EncoderConfig, config.encoder, source=source, path="encoder")
    channels = getattr(encoder.feature_encoder, "channels", 1)
    if channels > 1 and not cls.takes_channels:
        able = ", ".join(name for name in OBJECTIVES if find_objective(name).takes_channels)
        raise ConfigError(
            f"{source}: objective {config.objective['name']} learns from one channel, and "
            f"encoder.feature_encoder.channels is {channels}; these learn from several: {able}."
        )
    seed_everything(config.train.seed)
    return cls(parsed, Encoder(encoder))


def without_corpus(config: Config) -> Config:
    """`config` with labels made up where its objective must know of some (32 tokens, two speakers): to look at it."""
    name, given = config.objective.get("name", ""), config.objective
    if name.startswith("ctc") and "vocab_size" not in given:
        return config.override(objective={"vocab_size": 32})
    if name == "speaker" and "speakers" not in given:
        return config.override(objective={"speakers": ["A", "B"]})
    return config


def seed_everything(*numbers: int) -> None:
    """Seeds torch (every device) with all of `numbers`, and Python's generator with all but the last.

    Called as (seed, step, micro-batch): masks, dropout and noise differ between micro-batches, while what must be the
    same everywhere in an update (LayerDrop, from Python's generator) depends on the step alone.
    """
    mixed = 0
    for number in numbers:  # splitmix64, so that neighbouring numbers give unrelated streams
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        mixed ^= mixed >> 31
    torch.manual_seed(mixed >> 1)
    random.seed(str(numbers[:-1] or numbers))
