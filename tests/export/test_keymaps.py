"""The key maps as data: one row for every name, and the same way back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.export import keymaps as maps
from speechssl.export.fairseq import rows_of
from speechssl.export.keymaps import Rows, numbers_to_ours, numbers_to_theirs, to_ours, to_theirs

TABLES: dict[str, Rows] = {
    "transformers": maps.TRANSFORMERS + maps.TRANSFORMERS_HEADS + maps.TRANSFORMERS_SPEAKERS,
    "torchaudio": maps.TORCHAUDIO,
    "torchaudio-wavlm": maps.TORCHAUDIO_WAVLM,
    "fairseq-group": rows_of("group"),
    "fairseq-layer": rows_of("layer"),
    "fairseq-wav2vec": maps.FAIRSEQ_WAV2VEC,
    "cpc": maps.CPC,
}
EACH = pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
NUMBERS = {name: table for name, table in vars(maps).items() if name.endswith(("_NUMBERS", "_PRETRAINING", "_HUBERT"))}


def names(template) -> list[str]:
    parts = (template,) if isinstance(template, str) else template
    return [part.replace("#", "7").replace("*", "bias") for part in parts]


@EACH
def test_every_name_has_one_row(rows):
    theirs = [name for row in rows for name in names(row[0])]
    ours = [name for row in rows for name in names(row[1])]
    assert len(set(theirs)) == len(theirs)
    assert len(set(ours)) == len(ours)
    for row in rows:
        for name in names(row[0]):
            found, unknown = to_ours({name: torch.zeros(1)}, rows)
            assert list(found) == names(row[1])
            assert not unknown


@EACH
def test_there_and_back(rows):
    shaped = {pattern.replace("#", "7"): shape for pattern, shape in maps.SHAPES.items()}
    tensors = {
        name: torch.randn(6, 2, 4) if name in shaped else torch.randn(6, 4) for row in rows for name in names(row[1])
    }
    theirs = to_theirs(tensors, rows)
    assert set(theirs) == {name for row in rows for name in names(row[0])}
    back, unknown = to_ours(theirs, rows)
    assert not unknown
    back = maps.reshape_like(back, tensors)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_three_projections_are_one():
    parts = {f"encoder.layers.2.attention.{p}_proj.weight": torch.full((2, 2), i) for i, p in enumerate("vqk")}
    ours, _ = to_ours(parts, maps.TRANSFORMERS)
    expected = torch.tensor([1, 1, 2, 2, 0, 0])  # query, key, value, whatever their order in the file
    assert torch.equal(ours["encoder.context.blocks.2.attention.qkv.weight"][:, 0], expected)


@given(st.text(alphabet="encodr.lays0123_weightbi#*", max_size=40))
def test_strange_names_are_unknown_and_never_lost(name):
    found, unknown = to_ours({name: torch.zeros(1)}, maps.TRANSFORMERS)
    assert len(found) + len(unknown) == 1


@pytest.mark.parametrize("table", NUMBERS.values(), ids=NUMBERS)
def test_numbers_there_and_back(table):
    theirs = {key: i for i, (key, _) in enumerate(table)}
    assert numbers_to_theirs(numbers_to_ours(theirs, table), table) == theirs


def test_numbers_that_are_not_said_stay_ours():
    assert numbers_to_ours({"hidden_size": None}, maps.TRANSFORMERS_NUMBERS) == {}
