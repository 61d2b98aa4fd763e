"""The model card of an exported folder: what it was trained on, for how long, how well, and under which licence."""

from __future__ import annotations

import json
from pathlib import Path

from speechssl.checkpoint import Checkpoint

USAGE = {
    "hf": """\
from transformers import AutoFeatureExtractor, AutoModel

folder = "."  # this folder
extract = AutoFeatureExtractor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
inputs = extract(waveform, sampling_rate={rate}, return_tensors="pt")  # waveform: samples at {rate} Hz
hidden = model(**inputs).last_hidden_state""",
    "hf-ctc": """\
import soundfile
from transformers import pipeline

transcribe = pipeline("automatic-speech-recognition", model=".")  # this folder
samples, rate = soundfile.read("speech.wav", dtype="float32")  # with ffmpeg, the name of a file will do
print(transcribe({{"raw": samples, "sampling_rate": rate}})["text"])""",
    "hf-speaker": """\
import soundfile
from transformers import pipeline

classify = pipeline("audio-classification", model=".")  # this folder
samples, rate = soundfile.read("speech.wav", dtype="float32")  # with ffmpeg, the name of a file will do
print(classify({{"raw": samples, "sampling_rate": rate}}))""",
    "torchaudio": """\
import json, torch, torchaudio

arguments = json.load(open("arguments.json"))
model = torchaudio.models.{function}(**arguments).eval()
model.load_state_dict(torch.load("model.pt", weights_only=True))
layers, _ = model.extract_features(waveforms)  # (batch, samples) at {rate} Hz{normalised}""",
}


def card(
    path: Path,
    checkpoint: Checkpoint,
    usage: str,
    *,
    licence: str,
    library: str,
    task: str = "feature-extraction",
    left: str = "",
) -> str:
    """Markdown with a YAML head, as model hubs read it.

    Args:
        path: the checkpoint; its run's metrics.jsonl is read where there is one.
        usage: Python that opens the folder.
        licence: of the weights; empty: "other", and the card says that it has not been stated.
        left: parts of the objective that this format has no place for.
    """
    config = checkpoint.config
    name = config.name or config.objective["name"].rsplit(":", 1)[-1]
    train = config.train
    hours = checkpoint.step * train.seconds_per_update / 3600
    size = sum(p.numel() for p in checkpoint.objective.encoder.parameters()) / 1e6
    heard = "zero mean and unit variance" if config.data.normalize else "as it is"
    rows = {
        "preset": name,
        "objective": config.objective["name"].rsplit(":", 1)[-1],
        "data": ", ".join(Path(p).name for p in (config.data.train, config.data.valid) if p) or "not recorded",
        "updates": f"{checkpoint.step} of {train.seconds_per_update:g} s of audio ({hours:.4g} h in all)",
        "input": f"{config.data.sample_rate} Hz, {heard}",
        "encoder": f"{size:.2f} M parameters, {checkpoint.objective.encoder.num_layers} layers",
        "started from": Path(config.init).name if config.init else "random weights",
    }
    if checkpoint.step == 0:
        rows |= {"updates": "none here", "started from": config.about or rows["started from"]}
    if left:
        rows["not in here"] = f"{left} (of pretraining or of another task)"
    head = {"license": licence or "other", "library_name": library, "pipeline_tag": task}
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in head.items() if value),
        "tags:",
        "- speech",
        "- speechssl",
        "---",
    ]
    lines += ["", f"# {name}", "", config.about, "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows.items()]
    numbers = _validation(path, checkpoint.step)
    if numbers:
        lines += ["", "## Validation", "", "| metric | value |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in numbers.items()]
    lines += ["", "## Use", "", "```python", usage, "```", "", "## Licence", ""]
    lines += [licence or "Not stated. Say it with `--licence` when you export, and mind the licence of the data."]
    return "\n".join(lines) + "\n"


def _validation(path: Path, step: int) -> dict[str, float]:
    """The run's last validation at or before `step`."""
    found: dict[str, float] = {}
    for folder in (path, path.parent.parent):
        try:
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        except (OSError, ValueError):
            continue
        for line in lines:
            if line.get("split") == "valid" and line.get("step", step + 1) <= step:
                found = {key: value for key, value in line.items() if key not in ("split", "step")}
        break
    return found
