"""`Tokenizer`: transcripts <-> token ids for CTC. Letters of any script, or sentencepiece units.

Token 0 is the CTC blank. The vocabulary comes from the training text only; letters that it lacks are named, never
dropped in silence. One rule (`normalize`) prepares every transcript: training text, targets and references alike.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from speechssl.errors import UserError
from speechssl.files import write_whole

BLANK = "<blank>"
BOUNDARY = "|"  # the letters' token between two words
SPACE_MARK = "\u2581"  # sentencepiece's own sign for a space
APOSTROPHES = "'\u2019\u02bc\uff07"
JOINERS = "\u200c\u200d"  # zero width, but part of the spelling in Persian and Indic scripts
RULES = {
    "kind": ("letters", "sentencepiece"),
    "case": ("upper", "lower", "keep"),
    "punctuation": ("strip", "keep"),
}


class TokenError(UserError):
    """A text or a vocabulary that cannot be used. The caller adds the utterance's id."""


@dataclass(frozen=True)
class Tokenizer:
    """Transcripts <-> token ids; 0 is the blank. Make one with `train`, `read` or `from_dict`.

    Attributes:
        kind: "letters": one token per code point after NFC, and `|` between words; "sentencepiece": unigram pieces.
        case: "upper", "lower" or "keep".
        punctuation: "strip": every sign but the apostrophes inside words becomes a space; "keep": all signs are tokens
            (choose it where the transcripts are the reference already, as LibriSpeech's are).
        symbols: every token's text, by id.
        model: the sentencepiece model; empty for letters.
    """

    kind: Literal["letters", "sentencepiece"]
    case: Literal["upper", "lower", "keep"]
    punctuation: Literal["strip", "keep"]
    symbols: tuple[str, ...]
    model: bytes = b""

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        kind: Literal["letters", "sentencepiece"] = "letters",
        case: Literal["upper", "lower", "keep"] = "upper",
        punctuation: Literal["strip", "keep"] = "strip",
        size: int = 500,
    ) -> Tokenizer:
        """The vocabulary of the training transcripts.

        size: largest number of tokens, blank included (sentencepiece only; a small text gives fewer).
        Raises TokenError: no letters in the texts, an unknown rule, or a size below the number of letters.
        """
        _check_rules({"kind": kind, "case": case, "punctuation": punctuation}, "vocabulary")
        normalized = [normalize_text(text, case, punctuation) for text in texts]
        letters = sorted(set().union(*normalized) - {" "})
        if not letters:
            raise TokenError("the training texts hold no letters; a vocabulary needs transcripts.")
        if kind == "letters":
            return cls(kind, case, punctuation, (BLANK, BOUNDARY, *letters))
        least = len(letters) + 3  # blank, unknown, the space mark
        if size < least:
            raise TokenError(f"size {size} is too small: {len(letters)} letters need at least {least} tokens.")
        return cls._of_model(_train_pieces(normalized, size), case, punctuation)

    def __len__(self) -> int:
        """Number of tokens, blank included: the width of the CTC head."""
        return len(self.symbols)

    @property
    def boundary(self) -> int:
        """The token between words, or -1: sentencepiece marks words inside its pieces."""
        return self._ids[BOUNDARY] if self.kind == "letters" else -1

    def normalize(self, text: str) -> str:
        """NFC, the case and punctuation rules, one space between words. Normalising twice changes nothing."""
        return normalize_text(text, self.case, self.punctuation)

    def unknown(self, text: str) -> set[str]:
        """The letters of the normalised text that the vocabulary lacks."""
        return set(self.normalize(text)) - self._letters

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, which is normalised first. Raises TokenError naming the letters it does not know."""
        text = self.normalize(text)
        unknown = sorted(set(text) - self._letters)
        if unknown:
            named = ", ".join(f"'{letter}' ({unicodedata.name(letter, f'U+{ord(letter):04X}')})" for letter in unknown)
            raise TokenError(
                f"letters outside the vocabulary: {named}; the vocabulary comes from the training text only: "
                "correct the transcript, leave the utterance out, or train the vocabulary on more text."
            )
        if self.kind == "sentencepiece":
            return self._processor.encode(text)
        return [self._ids[BOUNDARY if letter == " " else letter] for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, after CTC collapse and without blanks."""
        if self.kind == "sentencepiece":
            return " ".join(self._processor.decode([int(i) for i in ids]).split())
        return " ".join("".join(self.symbols[i] for i in ids).replace(BOUNDARY, " ").split())

    def words(self, ids: Sequence[int]) -> list[list[int]]:
        """The places in `ids` of each word's tokens, in order; the boundary token belongs to no word."""
        places: list[list[int]] = [[]]
        for place, token in enumerate(ids):
            if token == self.boundary:
                places.append([])
                continue
            if self.symbols[token].startswith(SPACE_MARK):
                places.append([])
            places[-1].append(place)
        return [word for word in places if word]

    # ------------------------------------------------------------------------------------------------- plain data

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, as it goes into a vocabulary file and into checkpoints."""
        rules = {"kind": self.kind, "case": self.case, "punctuation": self.punctuation}
        if self.kind == "sentencepiece":
            return {**rules, "model": base64.b64encode(self.model).decode("ascii")}
        return {**rules, "symbols": list(self.symbols)}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "vocabulary") -> Tokenizer:
        """The inverse of `to_dict`. Raises TokenError with `source`."""
        if not isinstance(data, Mapping):
            raise TokenError(f"{source}: not a vocabulary; make one with `speechssl vocab`.")
        _check_rules(data, source)
        rules = {"case": data["case"], "punctuation": data["punctuation"]}
        if data["kind"] == "letters":
            return cls(kind="letters", symbols=_check_symbols(data.get("symbols"), source), **rules)
        try:
            return cls._of_model(base64.b64decode(data["model"], validate=True), **rules)
        except (KeyError, TypeError, ValueError, binascii.Error, RuntimeError):
            raise TokenError(f"{source}: its sentencepiece model cannot be read; make the vocabulary again.") from None

    def write(self, path: str | Path) -> None:
        """Writes the vocabulary as JSON, whole or not at all."""
        write_whole(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Tokenizer:
        """Reads a vocabulary file. Raises TokenError with the path."""
        path = Path(path)
        if not path.is_file():
            raise TokenError(f"{path}: no such vocabulary; make one with `speechssl vocab`.")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise TokenError(f"{path}: not a vocabulary (not JSON); make one with `speechssl vocab`.") from None
        return cls.from_dict(data, source=str(path))

    # --------------------------------------------------------------------------------------------------- internals

    @classmethod
    def _of_model(cls, model: bytes, case: Any, punctuation: Any) -> Tokenizer:
        if not model:
            raise ValueError("empty model")
        processor = _load_processor(model)
        symbols = tuple(processor.id_to_piece(i) for i in range(processor.get_piece_size()))
        if not symbols or symbols[0] != BLANK:
            raise ValueError("token 0 is not the blank")
        return cls("sentencepiece", case, punctuation, symbols, model)

    @cached_property
    def _processor(self):
        return _load_processor(self.model)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    @cached_property
    def _letters(self) -> frozenset[str]:
        if self.kind == "letters":
            return frozenset(self.symbols[2:]) | {" "}
        # only whole pieces count: a letter that lives in longer pieces alone cannot be spelled everywhere
        return frozenset(s for s in self.symbols if len(s) == 1 and s != SPACE_MARK) | {" "}


def _check_rules(data: Mapping, source: str) -> None:
    for key, choices in RULES.items():
        if data.get(key) not in choices:
            raise TokenError(f"{source}: {key} is {data.get(key)!r}; choose one of {', '.join(choices)}.")


def _check_symbols(symbols: Any, source: str) -> tuple[str, ...]:
    valid = (
        isinstance(symbols, list)
        and symbols[:2] == [BLANK, BOUNDARY]
        and all(isinstance(symbol, str) and len(symbol) == 1 for symbol in symbols[2:])
        and len(set(symbols)) == len(symbols)
    )
    if not valid:
        raise TokenError(
            f"{source}: its symbols must be '{BLANK}', '{BOUNDARY}' and single letters, each once; "
            "make the vocabulary again with `speechssl vocab`."
        )
    return tuple(symbols)


# -------------------------------------------------------------------------------------------------- normalisation


class _Keep(dict):
    """Code point -> replacement, worked out once per letter: only what cannot be text becomes a space."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        no_text = letter in (BOUNDARY, SPACE_MARK) or unicodedata.category(letter) in ("Cc", "Cs")
        self[code] = " " if no_text else letter
        return self[code]


class _Strip(dict):
    """Code point -> replacement: letters, marks, numbers, apostrophes and joiners stay, every other sign is a space."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        category = unicodedata.category(letter)
        if letter in APOSTROPHES:
            self[code] = "'"
        elif category[0] in "LMN" or letter in JOINERS:
            self[code] = letter
        else:
            self[code] = "" if category == "Cf" else " "  # Cf: soft hyphens, byte-order marks
        return self[code]


_TABLES = {"keep": _Keep(), "strip": _Strip()}


def normalize_text(text: str, case: str, punctuation: str) -> str:
    """NFC, the case rule, the punctuation rule (see `Tokenizer`), one space between words."""
    text = unicodedata.normalize("NFC", text)
    if case != "keep":
        text = text.upper() if case == "upper" else text.lower()
    words = text.translate(_TABLES[punctuation]).split()
    if punctuation == "strip":
        words = [word.strip("'") for word in words if any(map(str.isalnum, word))]
    return unicodedata.normalize("NFC", " ".join(words))  # again: case and stripping can part what NFC composes


# -------------------------------------------------------------------------------------------------- sentencepiece


def _train_pieces(texts: Sequence[str], size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text for text in texts if text]),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,  # every letter of the training text gets a piece of its own
            normalization_rule_name="identity",  # our own rule has been applied
            max_sentence_length=1_000_000,
            pad_id=0,
            pad_piece=BLANK,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,  # the same text gives the same model
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenError(f"sentencepiece cannot learn {size} units from this text: {error}.") from None
    return model.getvalue()


def _load_processor(model: bytes):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)
