"""Vocabularies of CTC heads: transformers' and fairseq's, and ours."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from speechssl.data.tokens import BLANK, BOUNDARY, SPACE_MARK, Tokenizer, normalize_text

SPECIAL = {"<s>", "</s>", "<unk>", "<pad>", "<blank>", "<bos>", "<eos>", "[UNK]", "[PAD]", "[CLS]", "[SEP]"}


def from_symbols(symbols: Sequence[str], *, blank: str, boundary: str = BOUNDARY) -> tuple[Tokenizer, list[int]] | None:
    """A tokenizer of single letters, and which row of their head each of its tokens has.

    Their other special tokens (sentence ends, unknown) are never targets of CTC and are left out.

    Args:
        symbols: by id.
        blank: their name of the CTC blank.
        boundary: their token between words.

    Returns:
        None where a token is no single letter, or blank or boundary are missing: it cannot be spelled here.
    """
    places = {unicodedata.normalize("NFC", symbol): place for place, symbol in enumerate(symbols)}
    letters = [s for s in places if s not in SPECIAL | {blank, boundary}]
    if blank not in places or boundary not in places or any(len(letter) != 1 for letter in letters):
        return None
    case: Any = "keep"
    for rule in ("upper", "lower"):
        if all(getattr(letter, rule)() == letter for letter in letters):
            case = rule
            break
    stays = all(normalize_text(f"a{letter}a", "keep", "strip") == f"a{letter}a" for letter in letters)
    tokenizer = Tokenizer("letters", case, "strip" if stays else "keep", (BLANK, BOUNDARY, *letters))
    return tokenizer, [places[symbol] for symbol in (blank, boundary, *letters)]


def transformers_files(tokenizer: Tokenizer) -> dict[str, dict]:
    """The files, by name, from which transformers builds a tokenizer that spells CTC paths as ours does."""
    common = {"pad_token": BLANK, "processor_class": "Wav2Vec2Processor"}
    if tokenizer.kind == "letters":
        none = {"unk_token": None, "bos_token": None, "eos_token": None}
        rules = {"word_delimiter_token": BOUNDARY, "do_lower_case": False, **none}
        return {
            "vocab.json": {symbol: place for place, symbol in enumerate(tokenizer.symbols)},
            "tokenizer_config.json": {"tokenizer_class": "Wav2Vec2CTCTokenizer", **rules, **common},
        }
    unknown = tokenizer.symbols[1]
    return {
        "tokenizer.json": _pieces(tokenizer),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unknown, **common},
    }


def _pieces(tokenizer: Tokenizer) -> dict:
    """sentencepiece units for the `tokenizers` library; paths are collapsed, and the space mark becomes a space."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    path = {"type": "CTC", "pad_token": BLANK, "word_delimiter_token": SPACE_MARK, "cleanup": True}
    unknown = {"type": "Replace", "pattern": {"String": tokenizer.symbols[1]}, "content": model.decode([1])}
    spaces = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
    ends = {"type": "Strip", "content": " ", "start": 1, "stop": 1}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": BLANK, **special}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [path, {"type": "Fuse"}, unknown, spaces, ends]},
        "model": {
            "type": "Unigram",
            "unk_id": 1,
            "vocab": [[piece, model.get_score(place)] for place, piece in enumerate(tokenizer.symbols)],
            "byte_fallback": False,
        },
    }
