"""N-best lists reordered by a second language model: any causal one of transformers (the extra `[hf]`), or any
function from texts to ln P(text).

new score = score of the first pass + weight * ln P(text) + bonus * words. Both numbers are chosen on a dev set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from speechssl.asr.files import read_rows, read_settings, settings_path
from speechssl.asr.search import DecodeError, sha256
from speechssl.asr.tune import Tuned, tune
from speechssl.files import write_whole

Scorer = Callable[[Sequence[str]], list[float]]  # texts -> ln P of each
WEIGHTS = (0.0, 0.25, 0.5, 1.0)
BONUSES = (0.0, 1.0, 2.0)
STEPS = (0.25, 0.125)
CASES: dict[str, Callable[[str], str]] = {"lower": str.lower, "upper": str.upper, "keep": str}


class CausalScorer:
    """ln P of texts by a causal language model from a local folder, end of text included where the model has one.

    Args:
        folder: what `save_pretrained` wrote, model and tokenizer. Nothing is downloaded.
        case: how the model likes its text: "lower", "upper" or "keep".
        batch_size: texts scored at once; the scores do not depend on it.

    Raises:
        DecodeError: transformers is not installed, or no causal model is in the folder.
    """

    def __init__(self, folder: str | Path, *, case: str = "lower", batch_size: int = 32, device: str = "cpu"):
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise DecodeError("transformers is not installed: pip install speechssl[hf].") from None
        if not Path(folder).is_dir():
            raise DecodeError(f"{folder}: no such folder; give one that transformers' save_pretrained wrote.")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
            self.model = model.to(device).eval()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DecodeError(f"{folder}: holds no causal language model with its tokenizer ({reason}).") from None
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if first is None and last is None:
            raise DecodeError(f"{folder}: its tokenizer has no token for the begin or end of a text.")
        self.first, self.last = last if first is None else first, last
        self.case, self.batch_size, self.device = CASES[case], batch_size, device

    def __call__(self, texts: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            scores += self._score([self.case(text) for text in texts[start : start + self.batch_size]])
        return scores

    @torch.inference_mode()
    def _score(self, texts: list[str]) -> list[float]:
        encoded = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        rows = [[self.first, *ids, *([] if self.last is None else [self.last])] for ids in encoded]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.first] * (longest - len(row)) for row in rows], device=self.device)
        real = torch.arange(longest, device=self.device) < torch.tensor([[len(r)] for r in rows], device=self.device)
        logits = self.model(input_ids=ids, attention_mask=real.long()).logits
        log_probs = logits[:, :-1].float().log_softmax(-1)  # of the token after each
        taken = log_probs.gather(-1, ids[:, 1:, None])[..., 0]
        return taken.masked_fill(~real[:, 1:], 0.0).sum(1).tolist()


def rescore_file(
    decoded_path: str | Path,
    out_path: str | Path,
    scorer: Scorer,
    *,
    scorer_name: str,
    weight: float = 0.5,
    bonus: float = 0.0,
    tune_on: str | Path | None = None,
) -> Tuned | None:
    """Reorders the n-best lists of a decode file and writes another one, with its own settings beside it.

    Args:
        scorer: the second model; `scorer_name` says in the settings which.
        weight, bonus: of ln P(text), and for each word.
        tune_on: a decode file of a dev set with n-best lists and references, on which both are chosen instead.

    Raises:
        DecodeError: no n-best lists, no references to tune on, or an output that something else wrote.
    """
    out_path = Path(out_path)
    if out_path.exists() and "rescored" not in read_settings(out_path):
        raise DecodeError(f"{out_path}: exists and was not made by `speechssl rescore`; give another --output.")
    rows = _with_lists(decoded_path)
    tuned = None
    if tune_on is not None:
        tuned = _tune(tune_on, scorer)
        weight, bonus = tuned.best.weight, tuned.best.bonus
    scores = _scores(rows, scorer)
    lines = [json.dumps(_reordered(row, scores, weight, bonus), ensure_ascii=False) + "\n" for row in rows]
    record: dict[str, Any] = {"by": scorer_name, "weight": weight, "word_bonus": bonus, "decoded": str(decoded_path)}
    if tuned is not None and tune_on is not None:
        record["tuning"] = {"decoded": str(tune_on), "sha256": sha256(tune_on), **tuned.record()}
    settings = {**read_settings(decoded_path), "rescored": record}
    write_whole(settings_path(out_path), json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
    write_whole(out_path, "".join(lines))
    return tuned


def _with_lists(path: str | Path) -> list[dict]:
    rows = read_rows(path)
    if not any("nbest" in row for row in rows):
        raise DecodeError(f"{path}: holds no n-best lists; make them with `speechssl decode --nbest 50`.")
    return rows


def _scores(rows: list[dict], scorer: Scorer) -> dict[str, float]:
    """Text -> ln P, each text once."""
    texts = list(dict.fromkeys(item["text"] for row in rows for item in row.get("nbest", ())))
    return dict(zip(texts, scorer(texts), strict=True))


def _tune(path: str | Path, scorer: Scorer) -> Tuned:
    rows = _with_lists(path)
    if any(row.get("reference") is None for row in rows):
        raise DecodeError(f"{path}: not every line has a reference, so no weights can be chosen on it.")
    scores = _scores(rows, scorer)

    def texts(weight: float, bonus: float) -> list[str]:
        return [_reordered(row, scores, weight, bonus)["text"] for row in rows]

    references = [row["reference"] for row in rows]
    return tune(texts, references, weights=WEIGHTS, bonuses=BONUSES, steps=STEPS)


def _reordered(row: dict, scores: dict[str, float], weight: float, bonus: float) -> dict:
    nbest = [
        {
            **item,
            "rescored": item["score"] + weight * scores[item["text"]] + bonus * len(item["text"].split()),
            "second_lm": scores[item["text"]],
        }
        for item in row.get("nbest", ())
    ]
    nbest.sort(key=lambda item: -item["rescored"])
    return {**row, "text": nbest[0]["text"], "nbest": nbest} if nbest else row
