"""ABX: is a phone nearer to another of its kind than to one of another kind? (Schatz et al. 2013; ZeroSpeech's rules.)

A and X are the same phone, B is another; all three share their neighbours ("within" context) or need not ("any").
Within speaker all are by one speaker; across speakers A and B are by one, X by another. The error of a cell (A's phone,
B's phone, context, speakers) is the share of triples in which X is nearer to B, ties counting half. Cells are averaged
over contexts (and X's speakers), then over speakers, then over pairs of phones. 0.5 is chance.

The distance of two stretches of frames: dynamic time warping over angles between frames, divided by the path's length.

Shapes: N items, F frames of all items, D channels, P pairs, S frames of an item.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from speechssl.data.items import Item

Context = Literal["within", "any"]
TIE = 1e-6  # distances that differ by less are equal: what rounding makes of the same frames
ELEMENTS = 1 << 22  # numbers in memory at a time


@dataclass(frozen=True)
class Cell:
    """Items that are compared with each other; `x` is `a` within a speaker, and an item is not compared with itself.

    phones: of A and of B; speaker: of A and B.
    """

    phones: tuple[str, str]
    speaker: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    x: tuple[int, ...]


def cells_within(items: Sequence[Item], *, context: Context = "within", most: int = 10, seed: int = 0) -> list[Cell]:
    """A, B and X by the same speaker.

    Args:
        most: items of one phone, context and speaker that are used, drawn at random by `seed`.
    """
    groups = _groups(items, context, most, np.random.default_rng(seed))
    cells = []
    for (_, speaker), phones in groups.items():
        for phone, a in phones.items():
            if len(a) > 1:
                cells += [Cell((phone, other), speaker, a, b, a) for other, b in phones.items() if other != phone]
    return cells


def cells_across(
    items: Sequence[Item], *, context: Context = "within", most: int = 10, speakers: int = 5, seed: int = 0
) -> list[Cell]:
    """A and B by one speaker, X by another.

    Args:
        most: as in `cells_within`.
        speakers: how many X are taken from for each phone, context and speaker, drawn at random by `seed`.
    """
    generator = np.random.default_rng(seed)
    groups = _groups(items, context, most, generator)
    who: dict[tuple, list[str]] = defaultdict(list)  # context, phone -> speakers
    for (where, speaker), phones in groups.items():
        for phone in phones:
            who[where, phone].append(speaker)
    cells = []
    for (where, speaker), phones in groups.items():
        for phone, a in phones.items():
            if len(phones) < 2:
                continue
            others = [other for other in who[where, phone] if other != speaker]
            for number in generator.permutation(len(others))[:speakers].tolist():
                x = groups[where, others[number]][phone]
                cells += [Cell((phone, other), speaker, a, b, x) for other, b in phones.items() if other != phone]
    return cells


def _groups(
    items: Sequence[Item], context: Context, most: int, generator: np.random.Generator
) -> dict[tuple[tuple, str], dict[str, tuple[int, ...]]]:
    """(context, speaker) -> phone -> numbers of items."""
    groups: dict[tuple[tuple, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, item in enumerate(items):
        where = (item.before, item.after) if context == "within" else ()
        groups[where, item.speaker][item.phone].append(number)
    return {
        key: {
            phone: tuple(numbers[i] for i in sorted(generator.permutation(len(numbers))[:most].tolist()))
            for phone, numbers in phones.items()
        }
        for key, phones in groups.items()
    }


def with_items(cells: Iterable[Cell], have: set[int]) -> list[Cell]:
    """The cells without items that are not among these; what is left empty goes."""
    kept = []
    for cell in cells:
        a, b, x = (tuple(i for i in part if i in have) for part in (cell.a, cell.b, cell.x))
        if b and x and a and (cell.a != cell.x or len(a) > 1):
            kept.append(Cell(cell.phones, cell.speaker, a, b, x))
    return kept


def abx_error(cells: Sequence[Cell], frames: Mapping[int, np.ndarray], device: torch.device | None = None) -> float:
    """The ABX error, from 0 to 1; of no cells it is NaN.

    Args:
        frames: item number -> (S, D), S from 1.
    """
    if not cells:
        return math.nan
    size = max(frames) + 1
    codes = [_codes(cell.x, part, size).ravel() for cell in cells for part in (cell.a, cell.b)]
    pairs = np.unique(np.concatenate(codes))
    near = distances(frames, pairs // size, pairs % size, device)

    def look_up(x: Sequence[int], others: Sequence[int]) -> np.ndarray:
        return near[np.searchsorted(pairs, _codes(x, others, size))]

    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        to_a, to_b = look_up(cell.x, cell.a), look_up(cell.x, cell.b)  # (X, A), (X, B)
        difference = to_a[:, :, None] - to_b[:, None, :]  # (X, A, B)
        wrong = np.where(np.abs(difference) < TIE, 0.5, difference > 0)
        itself = np.equal.outer(cell.x, cell.a)
        scores[cell.phones][cell.speaker].append(float(wrong[~itself].mean()))
    by_phones = [np.mean([np.mean(one) for one in by_speaker.values()]) for by_speaker in scores.values()]
    return float(np.mean(by_phones))


def _codes(x: Sequence[int], others: Sequence[int], size: int) -> np.ndarray:
    """(X, A): one number for each unordered pair of items."""
    left, right = np.meshgrid(np.array(x, np.int64), np.array(others, np.int64), indexing="ij")
    return np.minimum(left, right) * size + np.maximum(left, right)


def distances(
    frames: Mapping[int, np.ndarray], left: np.ndarray, right: np.ndarray, device: torch.device | None = None
) -> np.ndarray:
    """(P,) distances of items `left` to items `right`, both (P,)."""
    numbers = sorted(frames)
    place = {number: i for i, number in enumerate(numbers)}
    counts = np.array([len(frames[number]) for number in numbers])
    starts = np.concatenate(([0], counts.cumsum()[:-1]))
    units = torch.from_numpy(np.concatenate([frames[number] for number in numbers])).to(device)
    units = torch.nn.functional.normalize(units.float(), dim=-1)
    rows, columns = (np.array([place[number] for number in side.tolist()], dtype=np.int64) for side in (left, right))
    order = np.lexsort((counts[columns], counts[rows]))  # pairs of equal sizes are beside each other: little padding
    found, first = np.empty(len(order)), 0
    while first < len(order):
        ahead = order[first : first + ELEMENTS // 64]
        longest = [np.maximum.accumulate(counts[side[ahead]]) for side in (rows, columns)]
        size = np.maximum(longest[0] * longest[1], (longest[0] + longest[1]) * units.shape[1])
        fits = np.searchsorted(size * np.arange(1, len(ahead) + 1), ELEMENTS, side="right")
        chosen = ahead[: max(1, fits)]
        first += len(chosen)
        sides = []
        for side in (rows[chosen], columns[chosen]):
            index = starts[side][:, None] + np.minimum(np.arange(counts[side].max()), counts[side][:, None] - 1)
            sides.append(units[torch.from_numpy(index).to(units.device)].double())  # (P, S, D)
        angles = torch.bmm(sides[0], sides[1].transpose(1, 2)).clamp(-1, 1).acos() / math.pi
        ends = (torch.from_numpy(counts[side[chosen]]) - 1 for side in (rows, columns))
        found[chosen] = warped(angles, *ends).cpu().numpy()
    return found


def warped(cost: Tensor, last_row: Tensor, last_column: Tensor) -> Tensor:
    """(P,) mean cost along the cheapest path through cost (P, S, S') from its first to its last row and column (P,).

    A path goes to the next row, the next column, or both at once; where the ways there cost the same, both at once.
    """
    pairs, height, width = cost.shape
    row = torch.arange(height, device=cost.device)
    total, length = [], []  # of each diagonal, (P, S): the cell in each row, infinite outside
    nothing = cost.new_full((pairs, height), math.inf)
    for diagonal in range(height + width - 1):
        column = diagonal - row
        here = cost[:, row, column.clamp(0, width - 1)].masked_fill((column < 0) | (column >= width), math.inf)
        if not diagonal:
            total.append(here)
            length.append(torch.ones_like(here))
            continue
        best, steps = (_row_before(of[-2]) if diagonal > 1 else nothing for of in (total, length))
        for cheaper, longer in ((total[-1], length[-1]), (_row_before(total[-1]), _row_before(length[-1]))):
            better = cheaper < best
            best, steps = torch.where(better, cheaper, best), torch.where(better, longer, steps)
        total.append(here + best)
        length.append(steps + 1)
    last_row, last_column = last_row.to(cost.device), last_column.to(cost.device)
    end = (last_row + last_column, torch.arange(pairs, device=cost.device), last_row)
    return torch.stack(total)[end] / torch.stack(length)[end]


def _row_before(diagonal: Tensor) -> Tensor:
    """(P, S) -> (P, S): in each row what was in the one before."""
    return torch.nn.functional.pad(diagonal[:, :-1], (1, 0), value=math.inf)
