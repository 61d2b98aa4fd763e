"""Series in .npy: what is read, what is refused, and how a folder becomes a manifest."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import one_sentence

from speechssl.config import DataConfig
from speechssl.data.audio import AudioError
from speechssl.data.dataset import SpeechDataset
from speechssl.data.manifest import Manifest, ManifestError, Utterance
from speechssl.data.recordings import open_recording
from speechssl.data.series import normalize_series, open_series, read_samples

KINDS = ["<f4", ">f8", "<f2", "<i2", ">i4", "|u1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("series")


def numbers(shape, kind="<f8", seed=0) -> np.ndarray:
    return (50 + 20 * np.random.default_rng(seed).standard_normal(shape)).clip(0, 120).astype(kind)


@given(data=st.data())
def test_a_window_equals_slicing(folder, data):
    channels, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 30))
    array = numbers((channels, steps), data.draw(st.sampled_from(KINDS)))
    np.save(folder / "a.npy", np.asarray(array, order=data.draw(st.sampled_from("CF"))))
    start = data.draw(st.integers(0, steps - 1))
    segment = data.draw(st.integers(1, steps - start))
    first = data.draw(st.integers(0, segment - 1))
    count = data.draw(st.none() | st.integers(1, segment - first))
    utterance = Utterance("a", str(folder / "a.npy"), segment, 50, start=start, channels=channels)
    found = read_samples(utterance, 50, first=first, count=count)
    stop = start + segment if count is None else start + first + count
    expected = array[:, start + first : stop].astype(np.float32).T
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, expected[:, 0] if channels == 1 else expected)


@given(scale=st.floats(1e-9, 1e9), offset=st.floats(-1e3, 1e3))
def test_normalisation_knows_no_unit(scale, offset):
    """Channels of any size end with mean 0 and deviation 1, unless a channel is constant."""
    wave = torch.from_numpy(numbers((400, 2))).float()
    series = torch.cat((wave * scale, (wave + 10 * offset) * 3, torch.full((400, 1), offset)), 1)
    normal = normalize_series(series)
    torch.testing.assert_close(normal[:, :4].mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal[:, :4].std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)
    assert normal[:, 4].abs().max() < 1e-3


@pytest.mark.parametrize("order", "CF")
def test_a_recording_in_pieces_is_the_whole(folder, order):
    array = np.asarray(numbers((3, 150)), order=order)
    np.save(folder / "b.npy", array)
    for source in (folder / "b.npy", array, torch.from_numpy(array)):
        recording = open_recording(source, 1, name="b", channels=3)  # at 1 Hz its level is measured in three blocks
        whole = normalize_series(torch.from_numpy(array.T.astype(np.float32)))
        pieces = [recording.normalized(first, 50) for first in (0, 50, 100)]
        torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=1e-5)


def bytes_of(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


GOOD = bytes_of(numbers((2, 100)))
BAD = {
    "truncated": (GOOD[:-8], "truncated"),
    "longer": (GOOD + b"\0", "truncated or was changed"),
    "objects": (bytes_of(np.array([[1, None]], dtype=object), allow_pickle=True), "of type object"),
    "complex": (bytes_of(np.ones((2, 5), complex)), "of type complex128"),
    "text": (bytes_of(np.array([["a", "b"]])), "of type <U1"),
    "row": (bytes_of(np.ones(5)), r"shape \(5,\), and a series is \(channels, time\)"),
    "cube": (bytes_of(np.ones((2, 3, 4))), r"shape \(2, 3, 4\)"),
    "no channels": (bytes_of(np.ones((0, 4))), r"shape \(0, 4\)"),
    "no array": (b"Dear mother", "not an array in .npy"),
    "half a header": (GOOD[:40], "not an array in .npy"),
    "strange header": (GOOD.replace(b"'shape'", b"'sh(pe'"), "not an array in .npy"),
    "negative": (GOOD.replace(b"(2, 100)", b"(2,-100)"), r"shape \(2, -100\)"),
    "huge": (GOOD.replace(b"(2, 100)", b"(9**9,1)"), "not an array in .npy"),
    "version 9": (GOOD[:6] + b"\x09" + GOOD[7:], "not an array in .npy"),
}


@pytest.mark.parametrize("harm", BAD)
def test_bad_files_are_refused(tmp_path, harm):
    content, said = BAD[harm]
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=said) as caught:
        open_series(path)
    assert str(path) in str(caught.value)


@given(st.data())
def test_a_damaged_byte_never_ends_in_a_stack_trace(folder, data):
    content = bytearray(GOOD)
    for place in data.draw(st.lists(st.integers(0, 130), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    (folder / "damaged.npy").write_bytes(content)
    with contextlib.suppress(AudioError):
        open_series(folder / "damaged.npy")


def test_a_folder_becomes_a_manifest(command, tmp_path):
    """Pieces, labels by folder; what is not sound is named with its place, and the sound rest of a file is kept."""
    tree = tmp_path / "machines"
    for name in ("pump/a", "pump/b", "fan/c", "fan/short"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        array = numbers((2, 30 if name == "fan/short" else 250))
        if name == "pump/b":
            array[1, 130] = np.nan
        np.save(tree / f"{name}.npy", array)
    (tree / "fan" / "broken.npy").write_bytes(GOOD[:-1])
    (tree / "fan" / "empty.npy").write_bytes(b"")
    manifest = tmp_path / "machines.jsonl"
    arguments = ["manifest", "series", tree, "-o", manifest, "--rate", 50, "--max-seconds", 2, "--label-level", 1]
    status, out, err = command(*arguments, "--min-seconds", 1, "--jobs", 1)
    assert status == 0, err
    assert "data.sample_rate=50 encoder.feature_encoder.channels=2" in out
    kept = {u.id: u for u in Manifest.read(manifest)}
    spans = ("00000000-00000100", "00000100-00000200", "00000200-00000250")
    assert list(kept) == [
        *(f"fan/c_{span}" for span in spans),
        *(f"pump/a_{span}" for span in spans),
        f"pump/b_{spans[0]}",
        f"pump/b_{spans[2]}",
    ]
    last = kept["pump/b_00000200-00000250"]
    assert (last.start, last.num_samples, last.sample_rate, last.channels) == (200, 50, 50, 2)
    assert last.extra == {"label": "pump"}
    left_out = json.loads((tmp_path / "machines.jsonl.report.json").read_text())["left_out"]
    found = {reason: [(item["id"], item["detail"]) for item in items] for reason, items in left_out.items()}
    assert found.pop("not finite") == [("pump/b_00000100-00000200", "channel 1 at step 130")]
    assert found.pop("too short") == [("fan/short", "0.600 s: 30 steps of 2 channels")]
    assert [name for name, _ in found.pop("empty")] == ["fan/empty"]
    assert [name for name, _ in found.pop("unreadable")] == ["fan/broken"]
    assert not found
    (tmp_path / "none").mkdir()
    assert "no series in it" in one_sentence(command("manifest", "series", tmp_path / "none", "-o", "x", "--rate", 1))


def test_batches_of_series(tmp_path):
    """Channels last, padded; what became NaN or shorter since the manifest was made is named."""
    arrays = {name: numbers((3, steps), seed=steps) for name, steps in (("a", 100), ("b", 80), ("c", 90), ("d", 60))}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    listed = [Utterance(n, str(tmp_path / f"{n}.npy"), a.shape[1], 10, channels=3) for n, a in arrays.items()]
    manifest = Manifest.of(listed)
    numbers_of = {"sample_rate": 10, "min_seconds": 1.0, "crop": False, "normalize": True, "workers": 0}
    dataset = SpeechDataset(manifest, DataConfig(**numbers_of), channels=3)
    arrays["c"][1, 7] = np.inf
    np.save(tmp_path / "c.npy", arrays["c"])
    np.save(tmp_path / "d.npy", arrays["d"][:, :50])
    loaded = dataset[0, np.arange(4)]
    batch = loaded.batch
    assert batch.waveforms.shape == (2, 100, 3)
    assert batch.lengths.tolist() == [100, 80]
    assert not batch.waveforms[1, 80:].any()
    torch.testing.assert_close(batch.waveforms[0], normalize_series(torch.from_numpy(arrays["a"].T).float()))
    assert loaded.unread == ("c", "d")
    assert "not numbers" in loaded.problems[0]
    assert "make the manifest again" in loaded.problems[1]
    cropping = DataConfig(**numbers_of | {"crop": True, "max_seconds": 5.0})
    assert SpeechDataset(manifest, cropping, channels=3)[0, np.arange(2)].batch.waveforms.shape == (2, 50, 3)
    with pytest.raises(ManifestError, match=r"channels is 3, and the encoder reads 1; .*feature_encoder\.channels=3"):
        SpeechDataset(manifest, DataConfig(**numbers_of))
    with pytest.raises(ManifestError, match=r"10 Hz, and data\.sample_rate is 20; .*data\.sample_rate=10"):
        SpeechDataset(manifest, DataConfig(**numbers_of | {"sample_rate": 20}), channels=3)
