"""Greedy CTC decoding of a manifest.

Shapes: B utterances, F frames (each frame may spell several tokens: then F counts tokens), V tokens, 0 = blank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from speechssl.asr.files import settings_path, write_whole
from speechssl.batch import Batch
from speechssl.checkpoint import load_checkpoint
from speechssl.data.dataset import LoadedBatch, padded_batches
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.tokens import Tokenizer
from speechssl.errors import UserError
from speechssl.objectives.transcription import Transcription


class DecodeError(UserError):
    """What cannot be decoded. The message names the checkpoint or the manifest and what to do."""


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
    seconds_per_batch: float = 60.0,
    device: str | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> None:
    """Writes one JSON line per utterance, in the manifest's order: id, text, and reference where it is known.

    References are normalised by the vocabulary's rule, so that they can be compared with the texts. What the
    file was made with goes to `<out>.settings.json`. Utterances that cannot be read get an empty text; they are
    reported at the end and listed in the settings.

    Args:
        checkpoint_path: of a fine-tuned encoder.
        seconds_per_batch: largest batch in seconds of audio, padding included. In fp32 the texts do not depend on it.
        device: "cpu", "cuda", "cuda:1", ...; None: a GPU where there is one.
        precision: fp32 or an autocast type.

    Raises:
        DecodeError: the checkpoint has no vocabulary, or no utterance could be read.
        ManifestError: the manifest cannot be used.
    """
    out_path = Path(out_path)
    if out_path.exists() and not settings_path(out_path).exists():
        raise DecodeError(f"{out_path}: exists and was not made by `speechssl decode`; give another --output.")
    manifest = Manifest.read(manifest_path)
    checkpoint = load_checkpoint(checkpoint_path)
    objective, tokenizer = checkpoint.objective, checkpoint.tokenizer
    if tokenizer is None or not isinstance(objective, Transcription):
        raise DecodeError(
            f"{checkpoint_path}: was not fine-tuned, so it spells nothing; fine-tune it first (`speechssl finetune`)."
        )
    where = _device(device)
    settings = {
        "checkpoint": str(checkpoint_path),
        "step": checkpoint.step,
        "manifest": str(manifest_path),
        "manifest_sha256": hashlib.sha256(Path(manifest_path).read_bytes()).hexdigest(),
        "seconds_per_batch": seconds_per_batch,
        "precision": precision,
        "device": where.type,
        "text_rule": {"case": tokenizer.case, "punctuation": tokenizer.punctuation},
        "utterances": len(manifest),
    }
    if out_path.exists() and _read_settings(out_path) == settings:
        print(f"{out_path}: already decoded with this checkpoint and these settings, left as it is")
        return
    objective.to(where)

    def transcribe(batch: Batch) -> list[str]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        with torch.inference_mode(), torch.autocast(where.type, dtype, enabled=dtype is not None):
            log_probs, lengths = objective.log_probs(batch.to(where))
            return greedy(log_probs, lengths, tokenizer)

    rate = checkpoint.config.data.sample_rate
    frames = {u.id: objective.encoder.frame_lengths(u.length_at(rate)) for u in manifest}
    problems = [f"{u.id}: too short for one frame ({u.seconds:.3f} s)." for u in manifest if not frames[u.id]]
    long_enough = manifest.filter(lambda u: frames[u.id] > 0)
    texts: dict[str, str] = {}
    if len(long_enough):
        batches = padded_batches(long_enough, checkpoint.config.data, seconds_per_batch=seconds_per_batch)
        texts, unread = transcribe_all(batches, transcribe, len(long_enough))
        problems += unread
    if not texts:
        raise DecodeError(f"{manifest_path}: not one of {len(manifest)} utterances could be decoded: {problems[0]}")

    record = json.dumps(settings | {"problems": problems}, ensure_ascii=False, indent=1)
    write_whole(settings_path(out_path), record + "\n")
    lines = (json.dumps(_row(u, texts.get(u.id, ""), tokenizer), ensure_ascii=False) + "\n" for u in manifest)
    write_whole(out_path, "".join(lines))
    _report(problems, len(manifest))


def _read_settings(out_path: Path) -> dict:
    """What made a decoded file, without its problems; empty if that cannot be read."""
    try:
        record = json.loads(settings_path(out_path).read_text(encoding="utf-8"))
        return {key: value for key, value in record.items() if key != "problems"}
    except (OSError, ValueError, AttributeError):
        return {}


def transcribe_all(
    batches: Iterable[LoadedBatch], transcribe: Callable[[Batch], list[str]], total: int
) -> tuple[dict[str, str], list[str]]:
    """Id -> text over all batches, and the sentences about what could not be read. Shows a progress bar."""
    texts: dict[str, str] = {}
    problems: list[str] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("decode", total=total)
        for loaded in batches:
            problems += loaded.problems
            if loaded.batch is not None:
                texts.update(zip(loaded.batch.ids, transcribe(loaded.batch), strict=True))
            progress.update(task, completed=len(texts) + len(problems))
    return texts, problems


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # torch says "not compiled with CUDA" by an assertion
        raise DecodeError(f"device '{name}' is not there; leave --device out to take what there is.") from None
    return device


def _row(utterance: Utterance, text: str, tokenizer: Tokenizer) -> dict[str, str]:
    row = {"id": utterance.id, "text": text}
    if utterance.text is not None:
        row["reference"] = tokenizer.normalize(utterance.text)
    return row


def _report(problems: list[str], total: int) -> None:
    if problems:
        shown = "\n".join(f"  {sentence}" for sentence in problems[:10])
        more = f"\n  and {len(problems) - 10} more (all are in the settings file)" if len(problems) > 10 else ""
        print(f"{len(problems)} of {total} utterances could not be decoded; their texts are empty:\n{shown}{more}")
