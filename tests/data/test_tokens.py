"""The vocabulary: any script goes through encode and decode unchanged, and what is unknown is named."""

import json
import pickle
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.data.tokens import BLANK, BOUNDARY, TokenError, Tokenizer
from speechssl.errors import UserError

SENTENCES = ["the cat sat on the mat", "a dog ran over the hill", "hello world again", "don't go there"] * 5
cases = st.sampled_from(["upper", "lower", "keep"])
punctuations = st.sampled_from(["strip", "keep"])


@given(text=st.text(), case=cases, punctuation=punctuations)
@settings(max_examples=400)
def test_letters_round_trip_any_script(text, case, punctuation):
    tokenizer = Tokenizer.train([text, "a"], case=case, punctuation=punctuation)
    normalized = tokenizer.normalize(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == normalized
    assert all(0 < i < len(tokenizer) for i in ids)  # never the blank
    assert len(ids) == len(normalized)
    assert tokenizer.unknown(text) == set()


@given(text=st.text(), case=cases, punctuation=punctuations)
@settings(max_examples=400)
def test_normalize_is_nfc_and_changes_nothing_the_second_time(text, case, punctuation):
    tokenizer = Tokenizer.train(["a"], case=case, punctuation=punctuation)
    once = tokenizer.normalize(text)
    assert tokenizer.normalize(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == " ".join(once.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "HELLO WORLD"),
        ("don\u2019t 'quoted' rock 'n' roll", "DON'T QUOTED ROCK N ROLL"),
        ("stop\u2014x-ray_two", "STOP X RAY TWO"),
        ("e\u0301te\u0301 na\u00efve", "\u00c9T\u00c9 NA\u00cfVE"),  # decomposed and composed are one
        ("\u0939\u093f\u0928\u094d\u0926\u0940!", "\u0939\u093f\u0928\u094d\u0926\u0940"),  # marks stay
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("so\u00adft\ufeff", "SOFT"),
        ("\u65e5\u672c\u3001\u8a9e\u3002", "\u65e5\u672c \u8a9e"),
        ("a|b \u2581 \x00c ' \u0301", "A B C"),
    ],
)
def test_strip_rule(text, expected):
    assert Tokenizer.train(["a"]).normalize(text) == expected


def test_keep_rule_makes_signs_tokens():
    tokenizer = Tokenizer.train(["Yes, it's!"], case="keep", punctuation="keep")
    assert tokenizer.decode(tokenizer.encode("it's,  Yes!")) == "it's, Yes!"
    assert {"!", ",", "'"} <= set(tokenizer.symbols)


def test_letters_vocabulary_is_sorted_and_only_from_the_text():
    tokenizer = Tokenizer.train(["ba", "c a"])
    assert tokenizer.symbols == (BLANK, BOUNDARY, "A", "B", "C")
    assert tokenizer.encode("ab c") == [2, 3, 1, 4]
    assert tokenizer.decode([1, 1, 2, 1, 1, 3, 1]) == "A B"  # stray boundaries are no words


@pytest.mark.parametrize("kind", ["letters", "sentencepiece"])
def test_unknown_letters_are_named(kind):
    tokenizer = Tokenizer.train(SENTENCES, kind=kind, size=60)
    assert tokenizer.unknown("zone qat") == {"Q", "Z"}
    with pytest.raises(TokenError, match=r"'Q' \(LATIN CAPITAL LETTER Q\), 'Z' \(LATIN CAPITAL LETTER Z\);") as caught:
        tokenizer.encode("zone qat")
    assert isinstance(caught.value, UserError)
    assert tokenizer.encode("") == []


@pytest.fixture(scope="module")
def pieces():
    return Tokenizer.train(SENTENCES, kind="sentencepiece", case="lower", size=60)


def test_sentencepiece_blank_is_0_and_pieces_are_longer_than_letters(pieces):
    assert pieces.symbols[0] == BLANK
    assert len(pieces) <= 60
    ids = pieces.encode("The cat ran.")
    assert 0 not in ids
    assert len(ids) < len("the cat ran")
    assert pieces.decode(ids) == "the cat ran"


@given(text=st.text(alphabet="acdeghilmnorstvw' ", max_size=30))
@settings(max_examples=100)
def test_sentencepiece_round_trip(pieces, text):
    if not pieces.unknown(text):
        assert pieces.decode(pieces.encode(text)) == pieces.normalize(text)


def test_sentencepiece_other_scripts():
    text = "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u4f60\u597d \u00e9t\u00e9"
    tokenizer = Tokenizer.train([text] * 3, kind="sentencepiece", case="keep", size=100)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_is_deterministic_and_its_size_is_checked(pieces):
    assert Tokenizer.train(SENTENCES, kind="sentencepiece", case="lower", size=60) == pieces
    with pytest.raises(TokenError, match="size 5 is too small"):
        Tokenizer.train(SENTENCES, kind="sentencepiece", size=5)


@pytest.mark.parametrize("kind", ["letters", "sentencepiece"])
def test_plain_data_file_and_pickle_give_the_same_tokenizer(kind, tmp_path):
    tokenizer = Tokenizer.train(SENTENCES, kind=kind, case="lower", size=60)
    assert Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer
    tokenizer.write(tmp_path / "new" / "vocabulary.json")
    assert Tokenizer.read(tmp_path / "new" / "vocabulary.json") == tokenizer
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["vocabulary.json"]
    tokenizer.encode("the")  # fills its caches
    assert pickle.loads(pickle.dumps(tokenizer)).encode("the hill") == tokenizer.encode("the hill")


@pytest.mark.parametrize("texts", [[], ["", " ", "?!"]])
def test_no_letters_is_an_error(texts):
    with pytest.raises(TokenError, match="no letters"):
        Tokenizer.train(texts)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "not JSON"),
        ("[1]", "not a vocabulary"),
        ('{"kind": "phones"}', "kind is 'phones'"),
        ('{"kind": "letters", "case": "upper", "punctuation": "strip", "symbols": ["A"]}', "single letters"),
        (
            '{"kind": "letters", "case": "upper", "punctuation": "strip", "symbols": ["<blank>", "|", "A", "A"]}',
            "each once",
        ),
        ('{"kind": "sentencepiece", "case": "upper", "punctuation": "strip", "model": "%%"}', "sentencepiece model"),
        (
            '{"kind": "sentencepiece", "case": "upper", "punctuation": "strip", "model": "YWJj"}',
            "sentencepiece model",
        ),
    ],
)
def test_broken_files_give_one_sentence_with_the_path(content, reason, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(TokenError, match=reason) as caught:
        Tokenizer.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(TokenError, match="no such vocabulary"):
        Tokenizer.read(tmp_path / "none.json")
