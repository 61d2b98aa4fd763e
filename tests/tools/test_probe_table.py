"""The table of probes: a row for each kind of features, cells in their columns, nothing invented."""

import json
import sys

import pytest
from tiny_run import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import probe_table


def write_probe(folder, *, accuracy: float, labels=("all",), classifiers=("linear",)):
    """A result as `speechssl probe` writes it: the second layer is the better one on what was held out."""
    row = {"seed": 0, "draw": 0, "strength": 1.0, "weights": []}
    rows = []
    for kind in classifiers:
        for layer, gain in (("0", -0.1), ("1", 0.0)):
            same = {"features": "trained", "classifier": kind, "layer": layer, "labels": "all"}
            rows.append(row | same | {"accuracy": accuracy + gain, "held_out": accuracy + gain})
    for features, lost in (("trained", 0.2), ("log-mel", 0.3)):
        layer = "1" if features == "trained" else "log-mel"
        for point in labels:
            if (features, point) != ("trained", "all"):
                same = {"features": features, "classifier": "linear", "layer": layer, "labels": point}
                rows.append(row | same | {"accuracy": accuracy - lost, "held_out": 0.5})
    settings = {"label": "speaker", "random_seeds": 0, "draws": 1}
    facts = {"classes": 2, "chance": 0.5, "num_train": 9, "num_test": 100, "problems": [], "settings": settings}
    folder.mkdir(parents=True)
    (folder / "speaker.json").write_text(json.dumps({"made_by": "speechssl probe", **facts, "rows": rows}))


def test_rows_and_columns(tmp_path, capsys):
    write_probe(tmp_path / "a/speaker", accuracy=0.8, labels=("all", "1 per class"), classifiers=("linear", "hidden"))
    write_probe(tmp_path / "b/speaker", accuracy=0.6)
    probe_table.main([tmp_path / "a/speaker", tmp_path / "b/speaker"], tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out == text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["features", "layer", "1 per class %", "all labels %", "hidden layer %"]
    cells = [[cell.split(" (")[0] for cell in line] for line in lines[2:]]
    assert cells == [
        ["a/speaker", "1", "60.0", "80.0", "80.0"],
        ["a/speaker, log-mel", "log-mel", "50.0", "50.0", ""],
        ["b/speaker", "1", "", "60.0", ""],
        ["b/speaker, log-mel", "log-mel", "", "30.0", ""],
    ]
    assert text.count("speaker: 2 classes, 9 training and 100 test utterances, chance 50.0%") == 1


def test_a_folder_without_a_result_is_named(tmp_path):
    with pytest.raises(SystemExit, match="holds no result"):
        probe_table.main([tmp_path])
