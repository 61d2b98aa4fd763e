"""Forced alignment: the best path by trying all, times by hand, whole runs, and what cannot be aligned."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import RATE, make_corpus, one_sentence, tiny_config, train_here
from torchaudio.functional import TokenSpan

from speechssl.asr.align import align, intervals, widened
from speechssl.data.alignment import Interval, read_alignment
from speechssl.data.items import read_items
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.tokens import Tokenizer
from speechssl.extract import load_encoder
from speechssl.nn.heads import frames_needed

LETTERS = Tokenizer.train(["AB BA"])  # blank, |, A, B


@settings(max_examples=30)
@given(data=st.data(), frames=st.integers(2, 6))
def test_the_path_is_the_best_of_all_that_spell_it(data, frames):
    tokens = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=frames))
    if frames_needed(tokens) > frames:
        return
    seed = data.draw(st.integers(0, 1000))
    log_probs = torch.randn(frames, 3, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    spans = align(log_probs, tokens)
    assert [span.token for span in spans] == tokens
    path = torch.zeros(frames, dtype=torch.long)
    for span in spans:
        path[span.start : span.end] = span.token
        assert span.score == pytest.approx(log_probs[span.start : span.end, span.token].mean().item(), abs=1e-5)
    paths = itertools.product(range(3), repeat=frames)
    spelled = [p for p in paths if [token for token, _ in itertools.groupby(p) if token] == tokens]
    best = max(sum(log_probs[f, v].item() for f, v in enumerate(p)) for p in spelled)
    assert log_probs.gather(1, path[:, None]).sum().item() == pytest.approx(best, abs=1e-4)


def test_names_and_times_by_hand():
    spans = [TokenSpan(2, 1, 3, -0.5), TokenSpan(3, 4, 5, -2.0), TokenSpan(1, 5, 7, 0.0), TokenSpan(3, 8, 9, 0.0)]
    found = intervals(spans, LETTERS, [(0.1, 0.3), (0.4, 0.5), (0.5, 0.7), (0.8, 0.9)])
    e = torch.tensor([-0.5, -2.0, -1.0, -0.6]).exp().tolist()  # of a word and of all: over frames, over tokens
    assert [(i.label, i.start, i.end) for i in found.labels] == [("A", 0.1, 0.3), ("B", 0.4, 0.5), ("B", 0.8, 0.9)]
    assert [i.score for i in found.labels] == pytest.approx([e[0], e[1], 1.0], abs=1e-4)
    assert [(i.label, i.start, i.end) for i in found.words] == [("AB", 0.1, 0.5), ("B", 0.8, 0.9)]
    assert found.words[0].score == pytest.approx(e[2], abs=1e-4)
    assert found.score == pytest.approx(torch.tensor(-2.5 / 4).exp().item(), abs=1e-4)


def test_labels_grow_into_the_blanks_and_no_further():
    edges = [(0.02, 0.1), (0.14, 0.2), (0.9, 1.0)]
    grown = [edge for pair in widened(edges, 0.05, 1.02) for edge in pair]
    assert grown == pytest.approx([0.0, 0.12, 0.12, 0.25, 0.85, 1.02])
    assert widened(edges, 0.0, 1.02) == edges
    assert widened([(0.5, 1.1)], 0.05, 1.0) == [(0.45, 1.1)]  # a frame may see beyond the end: nothing shrinks


@given(st.lists(st.floats(0.01, 0.3), min_size=2, max_size=12), st.floats(0, 0.2))
def test_grown_labels_keep_their_order(steps, reach):
    times = list(itertools.accumulate(steps[: len(steps) // 2 * 2]))
    edges = list(zip(times[::2], times[1::2], strict=True))
    grown = widened(edges, reach, times[-1] + 0.1)
    flat = [edge for pair in grown for edge in pair]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(flat))
    for (start, end), (left, right) in zip(edges, grown, strict=True):
        assert start - reach - 1e-9 <= left <= start
        assert end <= right <= end + reach + 1e-9


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run whose encoder frames spell two tokens each, and its corpus."""
    folder = tmp_path_factory.mktemp("tuned")
    corpus = make_corpus(folder / "sound", (0.6, 0.8, 1.0))
    config = tiny_config("ctc", corpus, objective={"symbols_per_frame": 2}, train={"updates": 1})
    return corpus, train_here(config, folder / "run")


def test_every_utterance_of_a_manifest(command, tuned, tmp_path):
    corpus, run = tuned
    out, items, grids = tmp_path / "a.jsonl", tmp_path / "a.item", tmp_path / "grids"
    arguments = ["align", run, corpus.manifest, "-o", out, "--items", items, "--textgrids", grids]
    status, _, err = command(*arguments)
    assert status == 0, err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [u.id for u in corpus.utterances]
    for row, utterance in zip(rows, corpus.utterances, strict=True):
        assert [word["label"] for word in row["words"]] == utterance.text.upper().split()
        assert "".join(label["label"] for label in row["labels"]) == utterance.text.upper().replace(" ", "")
        times = [edge for label in row["labels"] for edge in (label["start"], label["end"])]
        assert all(a <= b + 1e-3 for a, b in itertools.pairwise(times))
        assert times[0] >= 0
        assert times[-1] <= utterance.seconds + 0.01
        assert all(0 < part["score"] <= 1 for part in [*row["labels"], *row["words"], row])
    assert len(read_items(items)) == sum(len(row["labels"]) for row in rows)
    grid = (grids / f"{rows[0]['id']}.TextGrid").read_text()
    assert 'name = "letters"' in grid
    assert 'text = "ONE"' in grid
    assert "already aligned" in command(*arguments)[1]

    # without reach: the middles of symbols lie half a frame apart, the first half-way in what the first frame sees
    bare = tmp_path / "bare.jsonl"
    assert command("align", run, corpus.manifest, "-o", bare, "--reach", 0)[0] == 0
    encoder = load_encoder(run)
    step = encoder.hop / RATE / 2
    first = (encoder.feature_encoder.receptive_field - encoder.hop) / 2 / RATE
    for labels in read_alignment(bare).values():
        for interval in labels:
            place = (interval.start - first) / step
            assert place == pytest.approx(round(place), abs=0.05)
            assert (interval.end - interval.start) / step > 0.9


def test_what_cannot_be_aligned_is_named(command, tuned, tmp_path):
    corpus, run = tuned
    good = corpus.utterances[0]

    def other(name, text, samples=good.num_samples):
        return Utterance(name, good.audio, samples, RATE, text=text)

    bad = [other("dutch", "één"), other("none", None), other("empty", "..."), other("fast", "one two three four", 400)]
    bad.append(Utterance("gone", str(tmp_path / "gone.flac"), 8000, RATE, text="one"))
    path, out = tmp_path / "mixed.jsonl", tmp_path / "out.jsonl"
    Manifest.of([*bad, good]).write(path)
    status, said, err = command("align", run, path, "-o", out)
    assert status == 0, err
    assert list(read_alignment(out)) == [good.id]
    assert "5 of 6 utterances could not be aligned and are left out" in said
    assert "dutch: letters outside the vocabulary: É." in said
    assert "none: has no transcript." in said
    assert "empty: its transcript holds no letters." in said
    assert "fast: its transcript needs 19 frames and its audio has " in said
    assert "gone.flac" in said

    Manifest.of(bad[:2]).write(path)
    assert "not one of 2 utterances can be aligned" in one_sentence(command("align", run, path, "-o", tmp_path / "no"))
    silent = one_sentence(command("align", run, path, "-o", tmp_path / "no", "--items", tmp_path / "i.item"))
    assert "dutch has no speaker" in silent
    strange = tmp_path / "strange.jsonl"
    strange.write_text("mine\n")
    assert "was not made by `speechssl align`" in one_sentence(command("align", run, path, "-o", strange))
    assert strange.read_text() == "mine\n"


def test_a_pretrained_run_knows_no_letters(command, pretrained, corpus, tmp_path):
    assert "was not fine-tuned" in one_sentence(command("align", pretrained, corpus.manifest, "-o", tmp_path / "a"))


def test_labels_are_intervals():
    assert Interval(0.0, 1.0, "A").record() == {"start": 0.0, "end": 1.0, "label": "A"}
