"""Decoding of a manifest: greedy CTC, or a beam search with a language model (`search`).

Shapes: B utterances, F frames (each frame may spell several tokens: then F counts tokens), V tokens, 0 = blank.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from speechssl.asr.beam import BeamConfig
from speechssl.asr.files import read_settings, settings_path
from speechssl.asr.model import Model
from speechssl.asr.search import DecodeError, Decoding, Search, Searchers, sha256
from speechssl.asr.tune import Trial, tune
from speechssl.checkpoint import Checkpoint, load_checkpoint
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.tokens import Tokenizer
from speechssl.data.windows import CONTEXT, SECONDS
from speechssl.device import pick_device
from speechssl.files import write_whole
from speechssl.objectives.transcription import Transcription

FOUND = ("problems", "cannot_fit", "tuning", "search")  # in the settings file, but not what was asked for


def collapse(ids: Tensor) -> list[int]:
    """CTC's rule on the best token of each frame (F,): repeats become one, then blanks go."""
    merged = torch.unique_consecutive(ids)
    return merged[merged != 0].tolist()


def greedy(log_probs: Tensor, lengths: Tensor, tokenizer: Tokenizer) -> list[str]:
    """The text of the best token of each frame: log_probs (B, F, V), lengths (B,) -> B texts."""
    best = log_probs.argmax(-1).cpu()  # one small transfer; the rest is cheap on the host
    return [tokenizer.decode(collapse(row[:length])) for row, length in zip(best, lengths.tolist(), strict=True)]


def decode_manifest(
    checkpoint_path: str | Path,
    manifest_path: str | Path,
    out_path: str | Path,
    *,
    decoding: Decoding | None = None,
    tune_on: str | Path | None = None,
    weights_from: str | Path | None = None,
    seconds_per_batch: float = 60.0,
    device: str | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    jobs: int = 1,
    window: float = SECONDS,
    context: float = CONTEXT,
) -> None:
    """Writes one JSON line per utterance, in the manifest's order: id, text, and what is known of reference, speaker
    and seconds; with n-best lists also `nbest`.

    References are normalised by the vocabulary's rule, so that they can be compared with the texts. What the
    file was made with goes to `<out>.settings.json`. Utterances that cannot be read get an empty text; they are
    reported at the end and listed in the settings.

    Args:
        checkpoint_path: of a fine-tuned encoder.
        decoding: how texts are found; None: greedy.
        tune_on: a manifest of other speakers, on which lm_weight and word_score are chosen first.
        weights_from: a decode file whose tuned weights are taken instead.
        seconds_per_batch: largest batch in seconds of audio, padding included. In fp32 the texts do not depend on it.
        device: "cpu", "cuda", "cuda:1", ...; None: a GPU where there is one.
        precision: fp32 or an autocast type.
        jobs: processes that search; 0: one per core.
        window, context: seconds. What lasts longer than `window` is read in such windows, of which `context` at each
            inner edge is left out; the search runs over the whole. Such texts are approximate: see docs/long.md.

    Raises:
        DecodeError: the checkpoint has no vocabulary, no utterance could be read, or options that do not fit.
        ManifestError: the manifest cannot be used.
        WindowError: `window` leaves nothing between `context` on both sides.
    """
    out_path, decoding = Path(out_path), decoding or Decoding()
    if out_path.exists() and not settings_path(out_path).exists():
        raise DecodeError(f"{out_path}: exists and was not made by `speechssl decode`; give another --output.")
    if (tune_on or weights_from) and decoding.lm is None:
        raise DecodeError("there are no weights to choose without a language model; give --lm.")
    manifest = Manifest.read(manifest_path)
    checkpoint = load_checkpoint(checkpoint_path)
    tokenizer = checkpoint.tokenizer
    if tokenizer is None or not isinstance(checkpoint.objective, Transcription):
        raise DecodeError(
            f"{checkpoint_path}: was not fine-tuned, so it spells nothing; fine-tune it first (`speechssl finetune`)."
        )
    model = Model(
        checkpoint, tokenizer, pick_device(device), precision, seconds_per_batch, window=window, context=context
    )
    settings = _settings(checkpoint, decoding, tune_on, weights_from) | {
        "checkpoint": str(checkpoint_path),
        "manifest": str(manifest_path),
        "manifest_sha256": sha256(manifest_path),
        "utterances": len(manifest),
        "text_rule": {"case": tokenizer.case, "punctuation": tokenizer.punctuation},
        "seconds_per_batch": seconds_per_batch,
        "precision": precision,
        "device": model.device.type,
    }
    if long := len(manifest.filter(model.is_long)):
        settings["windows"] = {"seconds": window, "context": context, "utterances": long}
    if out_path.exists() and _asked_for(read_settings(out_path)) == settings:
        print(f"{out_path}: already decoded with this checkpoint and these settings, left as it is")
        return

    if long:
        print(f"{long} of {len(manifest)} utterances last longer than {window:g} s: they are read in windows")
    found: dict[str, Any] = {"cannot_fit": model.cannot_fit(manifest)}
    searching = 0.0  # seconds
    with contextlib.ExitStack() as stack:
        config, searchers = decoding.config, None
        if decoding.decoder != "greedy":
            utterances = max(len(Manifest.read(path)) for path in (manifest_path, tune_on) if path)
            searchers = stack.enter_context(Searchers(Search(tokenizer, decoding), jobs=jobs, utterances=utterances))
            if tune_on:
                found["tuning"] = _tune(model, searchers, tune_on, config)
            elif weights_from:
                found["tuning"] = _tuning_of(weights_from)
            if "tuning" in found:
                config = replace(config, **{name: found["tuning"][name] for name in ("lm_weight", "word_score")})
                _warn_of_overlap(manifest, found["tuning"]["manifest"])

        def spell(ids: Sequence[str], best: list[Tensor]) -> list[dict]:
            return [{"text": tokenizer.decode(collapse(row))} for row in best]

        def search(ids: Sequence[str], log_probs: list[Tensor]) -> list[dict]:
            nonlocal searching
            assert searchers is not None
            items = [rows.numpy() for rows in log_probs]
            began = time.perf_counter()
            lists = searchers.decode(items, config, decoding.nbest)
            searching += time.perf_counter() - began
            nbests = [[asdict(hypothesis) for hypothesis in hypotheses] for hypotheses in lists]
            return [{"text": nbest[0]["text"], **({"nbest": nbest} if decoding.nbest > 1 else {})} for nbest in nbests]

        if searchers is None:  # of each frame its best token is enough: one small transfer, and little to keep
            rows, found["problems"] = model.run(manifest, spell, keep=lambda log_probs: log_probs.argmax(-1))
        else:
            rows, found["problems"] = model.run(manifest, search)
            audio = sum(u.seconds for u in manifest if u.id in rows)
            found["search"] = {"seconds": searching, "audio_seconds": audio, "processes": searchers.jobs}
    if not rows:
        raise DecodeError(
            f"{manifest_path}: not one of {len(manifest)} utterances could be decoded: {found['problems'][0]}"
        )
    write_whole(settings_path(out_path), json.dumps(settings | found, ensure_ascii=False, indent=1) + "\n")
    whole = (_row(u, tokenizer) | rows.get(u.id, {"text": ""}) for u in manifest)
    write_whole(out_path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in whole))
    _report(found["problems"], found["cannot_fit"], len(manifest))


# -------------------------------------------------------------------------------------------------------------- weights


def _tune(model: Model, searchers: Searchers, manifest_path: str | Path, config: BeamConfig) -> dict[str, Any]:
    """Chooses the weights: the encoder runs once, the search many times. Returns the record of it."""
    manifest = Manifest.read(manifest_path)
    labelled = manifest.filter(lambda u: u.text is not None)
    if not len(labelled):
        raise DecodeError(f"{manifest_path}: holds no transcripts, so no weights can be chosen on it.")
    kept, problems = model.run(labelled, lambda ids, rows: [row.numpy() for row in rows], title="encode the dev set")
    if not kept:
        raise DecodeError(f"{manifest_path}: not one of {len(labelled)} utterances could be read: {problems[0]}")
    references = [model.tokenizer.normalize(u.text or "") for u in labelled if u.id in kept]
    log_probs = [kept[u.id] for u in labelled if u.id in kept]
    words = sum(len(text.split()) for text in references)

    def texts(weight: float, bonus: float) -> list[str]:
        trial = replace(config, lm_weight=weight, word_score=bonus)
        return [nbest[0].text for nbest in searchers.decode(log_probs, trial)]

    def tell(trial: Trial) -> None:
        wer = 100 * trial.word_errors / max(words, 1)
        print(f"LM weight {trial.weight:g}, word score {trial.bonus:g}: WER {wer:.2f} % on the dev set", flush=True)

    tuned = tune(texts, references, tell=tell)
    best = tuned.best
    print(f"chosen: LM weight {best.weight:g}, word score {best.bonus:g}")
    where = {"manifest": str(manifest_path), "manifest_sha256": sha256(manifest_path), "utterances": len(references)}
    return {"lm_weight": best.weight, "word_score": best.bonus, **where, **tuned.record()}


def _tuning_of(decoded_path: str | Path) -> dict[str, Any]:
    tuning = read_settings(decoded_path).get("tuning")
    if not isinstance(tuning, dict):
        raise DecodeError(f"{settings_path(decoded_path)}: holds no tuned weights; decode that set with --tune first.")
    return tuning


def _warn_of_overlap(manifest: Manifest, tuned_on: str) -> None:
    if not Path(tuned_on).is_file():
        return
    seen = {u.id for u in Manifest.read(tuned_on)}
    if both := sum(u.id in seen for u in manifest):
        print(f"Note: the weights were chosen on {both} of these {len(manifest)} utterances: the score is optimistic.")


# ------------------------------------------------------------------------------------------------------------ internals


def _settings(
    checkpoint: Checkpoint, decoding: Decoding, tune_on: str | Path | None, weights_from: str | Path | None
) -> dict[str, Any]:
    """What trained the model, and how texts are found."""
    config = checkpoint.config
    settings: dict[str, Any] = {
        "step": checkpoint.step,
        "seed": config.train.seed,
        "trained_on": config.data.train,
        "init": config.init,
        "decoding": decoding.record(),
    }
    if tune_on or weights_from:
        settings["decoding"] |= {"lm_weight": "tuned", "word_score": "tuned"}  # their values are found: see "tuning"
    if tune_on:
        settings["tune_on"] = {"manifest": str(tune_on), "sha256": sha256(tune_on)}
    if weights_from:
        settings["weights_from"] = {"decoded": str(weights_from), "sha256": sha256(settings_path(weights_from))}
    return settings


def _asked_for(record: dict) -> dict:
    """What made a decoded file, without what came of it."""
    return {key: value for key, value in record.items() if key not in FOUND}


def _row(utterance: Utterance, tokenizer: Tokenizer) -> dict[str, Any]:
    row: dict[str, Any] = {"id": utterance.id, "text": ""}
    if utterance.text is not None:
        row["reference"] = tokenizer.normalize(utterance.text)
    if utterance.speaker is not None:
        row["speaker"] = utterance.speaker
    return row | {"seconds": round(utterance.seconds, 3)}


def _report(problems: list[str], cannot_fit: list[str], total: int) -> None:
    if problems:
        shown = "\n".join(f"  {sentence}" for sentence in problems[:10])
        more = f"\n  and {len(problems) - 10} more (all are in the settings file)" if len(problems) > 10 else ""
        print(f"{len(problems)} of {total} utterances could not be decoded; their texts are empty:\n{shown}{more}")
    if cannot_fit:
        named = ", ".join(cannot_fit[:5]) + (", ..." if len(cannot_fit) > 5 else "")
        print(
            f"{len(cannot_fit)} of {total} references need more tokens than their audio has frames, so that no decoder "
            f"can spell them ({named}): check these transcripts, or fine-tune with more objective.symbols_per_frame."
        )
