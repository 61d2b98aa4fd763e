"""`load_encoder` and `extract`: what was trained, of anything that sounds, whole or in windows."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import shake
from tiny import STACK, tiny_encoder, tiny_transformer
from tiny_run import RATE, ROOT, speech

import speechssl
from speechssl.build import build_objective
from speechssl.checkpoint import save_model
from speechssl.config import Config, parse
from speechssl.data.audio import AudioError, normalize, resample
from speechssl.data.recordings import open_recording
from speechssl.data.windows import WindowError
from speechssl.extract import ExtractError, TrainedEncoder, load_encoder
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import WaveformConfig

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SHORT = {"window": 0.5, "context": 0.1}  # seconds: windows of 100 frames, 20 of them context on either side


def trained(kind: str = "layer", *, normalize: bool = False, **numbers) -> TrainedEncoder:
    plain = tiny_encoder(kind, **numbers)
    encoder = TrainedEncoder(plain.config, sample_rate=RATE, normalize=normalize).eval()
    torch.manual_seed(2)
    shake(encoder)
    return encoder


def sound(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(speech(seconds, seed=seed))


@torch.no_grad()
def whole(encoder: Encoder, waveform: torch.Tensor):
    return encoder(waveform[None])


@pytest.fixture
def run(tmp_path) -> Encoder:
    """A checkpoint in tmp_path / "run"; returns its encoder."""
    config = parse(
        Config,
        {
            "data": {"normalize": True},
            "encoder": dataclasses.asdict(tiny_encoder("group", dropout=0.5).config),
            "objective": {"name": "speechssl.export.bare:EncoderAlone"},
        },
        source="test",
    )
    objective = build_objective(config)
    shake(objective)
    (tmp_path / "run").mkdir()
    save_model(objective, config, tmp_path / "run")
    return objective.encoder.eval()


# -------------------------------------------------------------------------------------------------------- the encoder


def test_one_line_to_an_encoder(run, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "speechssl.export.bare")  # as in a process that has imported nothing else
    encoder = speechssl.load_encoder(tmp_path / "run")
    assert isinstance(encoder, Encoder)
    assert not encoder.training
    assert (encoder.sample_rate, encoder.normalize) == (RATE, True)
    assert "sample_rate=16000, normalize=True" in repr(encoder)
    waveform = sound(0.5)
    assert torch.equal(whole(encoder, waveform).hidden, whole(run, waveform).hidden)


def test_importing_speechssl_stays_light():
    code = "import sys, speechssl; assert 'torch' not in sys.modules; speechssl.load_encoder; speechssl.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip().endswith("AttributeError: module 'speechssl' has no attribute 'nothing'")


def test_features_are_those_of_the_encoder_on_what_it_was_trained_to_hear(run, tmp_path):
    encoder, waveform = load_encoder(tmp_path / "run"), 3 * sound(0.7) + 0.1
    output = whole(run, normalize(waveform))
    torch.testing.assert_close(encoder.extract(waveform), output.hidden[0], **CLOSE)
    torch.testing.assert_close(encoder.extract(waveform.numpy(), 1), output.layers[1][0], **CLOSE)
    several = encoder.extract(waveform, [2, 0])
    assert isinstance(several, list)
    for given_, layer in zip(several, (2, 0), strict=True):
        torch.testing.assert_close(given_, output.layers[layer][0], **CLOSE)


def test_training_goes_on_as_before(run, tmp_path):
    """Dropout is off while features are made, and on again behind."""
    encoder, waveform = load_encoder(tmp_path / "run"), sound(0.5)
    quiet = encoder.extract(waveform)
    encoder.train()
    assert torch.equal(encoder.extract(waveform), quiet)
    assert encoder.training
    assert encoder.context.blocks[0].dropout.training


# ----------------------------------------------------------------------------------------------------- what goes in


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_of_any_rate_and_width(tmp_path, rate, channels):
    samples = np.stack([speech(0.6, seed=i, rate=rate) for i in range(channels)], 1)
    soundfile.write(tmp_path / "sound.wav", samples, rate, subtype="FLOAT")
    encoder = trained(normalize=True)
    heard = normalize(resample(torch.from_numpy(samples).mean(1), rate, RATE))
    expected = whole(encoder, heard).hidden[0]
    torch.testing.assert_close(encoder.extract(tmp_path / "sound.wav"), expected, **CLOSE)
    torch.testing.assert_close(encoder.extract(str(tmp_path / "sound.wav")), expected, **CLOSE)
    waveform = samples.mean(1)
    torch.testing.assert_close(encoder.extract(waveform, sample_rate=rate), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["group", "layer", "logmel", "recurrent"])
def test_many_are_as_each_alone_in_their_order(tmp_path, kind):
    encoder = trained(kind)
    soundfile.write(tmp_path / "sound.flac", speech(0.8), RATE)
    many = [sound(0.5, 1), tmp_path / "sound.flac", sound(1.3, 2), sound(0.5, 1), sound(0.31, 3)]
    alone = [encoder.extract(one, **SHORT) for one in many]
    for seconds in (0.1, 1.0, 60.0):
        together = encoder.extract(many, **SHORT, seconds_per_batch=seconds)
        for mine, other in zip(together, alone, strict=True):
            torch.testing.assert_close(mine, other, **CLOSE)
    pairs = encoder.extract(many[:2], layers=[0, 1])
    assert [len(pair) for pair in pairs] == [2, 2]
    assert encoder.extract([]) == []


def test_half_precision_is_near(tmp_path):
    encoder, waveform = trained(), sound(0.6)
    single, half = encoder.extract(waveform), encoder.extract(waveform, precision="bf16")
    assert half.dtype == torch.float32
    assert not torch.equal(single, half)
    torch.testing.assert_close(half, single, atol=0.1, rtol=0.1)


# ---------------------------------------------------------------------------------------------------- long recordings


def test_what_is_exact_in_windows():
    """Normalisation, convolutions with layer norm, and the positions behind them."""
    encoder, waveform = trained("layer", normalize=True), 3 * sound(2.3) + 0.2
    inside = whole(encoder, normalize(waveform))
    entered = encoder.extract(waveform, 0, **SHORT)
    torch.testing.assert_close(entered, inside.layers[0][0], **CLOSE)
    # Without context the frames at the edges lack their neighbours: the context is what makes it exact.
    narrow = encoder.extract(waveform, 0, window=0.5, context=0.0)
    assert (narrow - inside.layers[0][0]).abs().max() > 1e-2


def test_what_is_approximate_in_windows():
    """Attention and group norm: near, and the nearer the longer the windows are."""
    for kind in ("layer", "group"):
        encoder, waveform = trained(kind), sound(3.0)
        exact = whole(encoder, waveform).hidden[0]
        errors = [
            float((encoder.extract(waveform, window=window, context=window / 5) - exact).abs().mean() / exact.std())
            for window in (0.3, 1.0, 2.9)
        ]
        assert 1e-6 < errors[2] < errors[1] < errors[0] < 0.5


def test_a_causal_context_of_little_memory_is_exact():
    """A causal Transformer of no layers but its positions, and windows that cover them."""
    config = EncoderConfig(
        feature_encoder=WaveformConfig(**STACK, norm="layer"), context=tiny_transformer(num_layers=0, causal=True)
    )
    encoder = TrainedEncoder(config, sample_rate=RATE, normalize=False).eval()
    shake(encoder)
    waveform = sound(1.7)
    torch.testing.assert_close(encoder.extract(waveform, **SHORT), whole(encoder, waveform).hidden[0], **CLOSE)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100])
def test_a_file_in_windows_is_the_same_file(tmp_path, rate):
    """Only what a window needs is decoded and resampled, wherever it begins."""
    samples = speech(2.0, rate=rate) + np.float32(0.1)
    soundfile.write(tmp_path / "long.wav", samples, rate, subtype="FLOAT")
    encoder = trained("layer", normalize=True)
    heard = normalize(resample(torch.from_numpy(samples), rate, RATE))
    entered = encoder.extract(tmp_path / "long.wav", 0, **SHORT)
    torch.testing.assert_close(entered, whole(encoder, heard).layers[0][0], atol=1e-4, rtol=1e-4)


@given(st.sampled_from([8000, 11_025, 22_050, 44_100, 48_000]), st.integers(0, 9000), st.integers(1, 5000))
def test_any_piece_of_a_file_is_a_piece_of_the_whole(tmp_path_factory, rate, first, count):
    path = tmp_path_factory.getbasetemp() / f"piece-{rate}.wav"
    if not path.exists():
        soundfile.write(path, speech(1.0, rate=rate), rate, subtype="FLOAT")
    recording = open_recording(path, RATE)
    assert recording.total == RATE
    expected = resample(torch.from_numpy(speech(1.0, rate=rate)), rate, RATE)[first : first + count]
    torch.testing.assert_close(recording.read(first, count), expected, atol=1e-6, rtol=1e-5)


def test_memory_is_bounded_by_the_windows(tmp_path, monkeypatch):
    """Of a long file no more than one window is decoded, and no more than one batch encoded, at a time."""
    soundfile.write(tmp_path / "long.wav", np.tile(speech(2.0), 10), RATE)
    encoder, reads, batches = trained("layer", normalize=True), [], []
    monkeypatch.setattr("speechssl.data.recordings.BLOCK", 1)
    original, forward = soundfile.SoundFile.read, Encoder.forward
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda f, n, **k: reads.append(n) or original(f, n, **k))
    monkeypatch.setattr(Encoder, "forward", lambda s, x, n, **k: batches.append(x.numel()) or forward(s, x, n, **k))
    encoder.extract(tmp_path / "long.wav", **SHORT, seconds_per_batch=1.6)
    assert max(reads) <= RATE
    assert max(batches) <= 1.6 * RATE
    assert len(batches) > 10


# ------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layers": 3}, "has layers 0 to 2, and no layer 3"),
        ({"layers": [0, -1]}, "no layer -1"),
        ({"layers": "last"}, "no layer last"),
        ({"layers": []}, "no layer None"),
        ({"precision": "fp8"}, "fp32 or bf16, not 'fp8'"),
        ({"device": "cuda:77"}, "device 'cuda:77' is not there"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, sentence):
    with pytest.raises(ExtractError, match=sentence):
        trained().extract(sound(0.3), **arguments)


def test_windows_that_cannot_be():
    with pytest.raises(WindowError, match=r"windows of 1 s leave nothing between 0.5 s"):
        trained().extract(sound(0.3), window=1.0, context=0.5)


def test_wrong_sound_is_one_sentence(tmp_path):
    encoder = trained()
    (tmp_path / "letter.wav").write_text("Dear mother")
    for audio, sentence in (
        (torch.zeros(2, 8000), "recording 0: a waveform is a row of floating-point samples"),
        (np.zeros(8000, dtype=np.int16), "not torch.int16 of shape"),
        (torch.full((8000,), torch.nan), "not numbers"),
        (8000, "a waveform or the name of a file, not int"),
        (tmp_path / "letter.wav", "cannot be read"),
        (tmp_path / "gone.wav", "cannot be read"),
    ):
        with pytest.raises(AudioError, match=sentence):
            encoder.extract(audio)
    with pytest.raises(AudioError, match="44099 Hz cannot be resampled"):
        encoder.extract(sound(0.3), sample_rate=44_099)
    with pytest.raises(ExtractError, match="recording 1: 50 samples are fewer than the 85 that one frame sees"):
        encoder.extract([sound(0.3), torch.zeros(50)])
