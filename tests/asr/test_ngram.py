"""ARPA files: back-off by hand arithmetic, what is written is read again, and broken files are named."""

import gzip
import math

import pytest

from speechssl.asr.ngram import ArpaError, Ngram

ARPA = """made by hand

\\data\\
ngram 1=5
ngram 2=4
ngram 3=1

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-0.6\t</s>
-0.5\tA\t-0.2
-0.4\tB\t-0.1

\\2-grams:
-0.2\t<s> A\t-0.05
-0.3\tA B\t-0.15
-0.25\tB </s>
-0.9\tB A

\\3-grams:
-0.1\t<s> A B

\\end\\
"""
EXPECTED = {  # log10 P of each word and of the end
    "A": -0.2 + (-0.05 - 0.2 - 0.6),  # <s> A; then </s> after backing off from <s> A and from A
    "A B": -0.2 - 0.1 + (-0.15 - 0.25),  # <s> A B; </s> after A B backs off to B </s>
    "B A": (-0.3 - 0.4) - 0.9 + (-0.2 - 0.6),
    "A B A": -0.2 - 0.1 + (-0.15 - 0.9) + (-0.2 - 0.6),
    "A C B": -0.2 + (-0.05 - 0.2 - 1.0) - 0.4 - 0.25,  # C is unknown, after which nothing is backed off from
    "": -0.3 - 0.6,
}


@pytest.fixture
def arpa(tmp_path):
    path = tmp_path / "hand.arpa"
    path.write_text(ARPA)
    return path


@pytest.mark.parametrize(("text", "log_prob"), EXPECTED.items())
def test_back_off_by_hand(arpa, text, log_prob):
    assert Ngram.read(arpa).sentence(text.split()) == pytest.approx(log_prob, abs=1e-6)


def test_gzip_and_writing_again(arpa, tmp_path):
    packed = tmp_path / "hand.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.encode()))
    model = Ngram.read(packed)
    assert model.order == 3
    model.write(tmp_path / "again.arpa")
    again = Ngram.read(tmp_path / "again.arpa")
    for text, log_prob in EXPECTED.items():
        assert again.sentence(text.split()) == pytest.approx(log_prob, abs=1e-6)
    again.write(tmp_path / "third.arpa")
    assert (tmp_path / "third.arpa").read_bytes() == (tmp_path / "again.arpa").read_bytes()


def test_a_model_whose_lower_orders_were_pruned(tmp_path):
    """`B A` is no bigram though `A B A` is a trigram: the state after it is `A` alone."""
    text = ARPA.replace("ngram 2=4", "ngram 2=3").replace("-0.9\tB A\n", "").replace("<s> A B\n", "A B A\n")
    (tmp_path / "pruned.arpa").write_text(text)
    expected = -0.2 + (-0.05 - 0.3) - 0.1 + (-0.2 - 0.6)
    assert Ngram.read(tmp_path / "pruned.arpa").sentence(["A", "B", "A"]) == pytest.approx(expected, abs=1e-6)


def test_unigrams_only_and_a_closed_vocabulary(tmp_path):
    (tmp_path / "one.arpa").write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-99 <s>\n-0.3 </s>\n-0.3 A\n\n\\end\\\n")
    model = Ngram.read(tmp_path / "one.arpa")
    assert model.sentence(["A", "A"]) == pytest.approx(-0.9, abs=1e-6)
    assert model.sentence(["X"]) == pytest.approx(-99.3, abs=1e-4)


def test_kenlm_agrees(arpa):
    kenlm = pytest.importorskip(
        "flashlight.lib.text.decoder.kenlm", reason="flashlight-text (the [lm] extra) is missing"
    )
    from flashlight.lib.text.dictionary import create_word_dict

    names = create_word_dict({word: [[word]] for word in ("A", "B", "<unk>")})
    arpa.write_text(ARPA[ARPA.index("\\data") :])  # KenLM wants nothing before it
    theirs = kenlm.KenLM(str(arpa), names)
    ours = Ngram.read(arpa)
    for text in EXPECTED:
        state, total = theirs.start(False), 0.0
        for word in text.split():
            state, log_prob = theirs.score(state, names.get_index(word if word in "AB" else "<unk>"))
            total += log_prob
        assert ours.sentence(text.split()) == pytest.approx(total + theirs.finish(state)[1], abs=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("\\data\\", "data", "line 24: the file ends"),
        ("ngram 2=4", "ngram 3=4", "line 5: expected 'ngram 2=COUNT'"),
        ("ngram 1=5", "ngram 1=6", "line 15: 6 1-grams were announced, 5 are there"),
        ("-0.3\tA B\t-0.15", "-0.3\tA X\t-0.15", "line 17: the word 'X' has no unigram"),
        ("-0.3\tA B\t-0.15", "-0.3\tA", "line 17: expected a number, 2 words"),
        ("-0.3\tA B\t-0.15", "x\tA B", "line 17: expected a number, 2 words"),
        ("-0.9\tB A", "-0.9\tA B", "a 2-gram is there twice"),
        ("-0.4\tB", "-0.4\tA", "a word has two unigrams"),
        ("-0.6\t</s>", "-0.6\t<e>", "no unigram of </s>"),
        ("-0.1\t<s> A B", "-0.1\tB B A", "the history of 'B B A' is not in the file"),
        ("\\end\\", "", "the file ends before"),
        ("\\3-grams:", "\\4-grams:", "expected \\\\3-grams:, found"),
    ],
)
def test_broken_files(tmp_path, old, new, reason):
    assert old in ARPA
    (tmp_path / "broken.arpa").write_text(ARPA.replace(old, new))
    with pytest.raises(ArpaError, match=reason):
        Ngram.read(tmp_path / "broken.arpa")


def test_broken_archives_and_no_file(tmp_path):
    path = tmp_path / "cut.arpa.gz"
    path.write_bytes(gzip.compress(ARPA.encode())[:-20])
    with pytest.raises(ArpaError, match="damaged or cut short"):
        Ngram.read(path)
    path.write_bytes(ARPA.encode())
    with pytest.raises(ArpaError, match="damaged or cut short"):
        Ngram.read(path)
    (tmp_path / "binary.arpa").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ArpaError, match="not UTF-8"):
        Ngram.read(tmp_path / "binary.arpa")
    with pytest.raises(ArpaError, match="speechssl lm train"):
        Ngram.read(tmp_path / "none.arpa")


def test_scores_are_probabilities(arpa):
    model = Ngram.read(arpa)
    assert all(-math.inf < model.score(0, word)[0] <= 0 for word in model.words)
