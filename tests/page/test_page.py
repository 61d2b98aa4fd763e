"""The page as a whole, without a browser: what is on it, that it is one file, well formed and safe; and its size."""

import json
import re
import shutil
import sys

import pytest
from html_tree import parsed
from tiny_run import ROOT, one_sentence, speechssl

from speechssl.page.learning import learning
from speechssl.page.runs import PageError, Spoken, read_metrics, read_runs
from speechssl.page.scores import _cumulative, to_listen_to, wer_table
from speechssl.page.write import write_page

sys.path.insert(0, str(ROOT / "tools"))

import long_page

pytest.importorskip("sklearn", reason="the maps need the extra [report]")


@pytest.fixture(scope="module")
def html(demo):
    write_page([demo / "pretrain", demo / "tuned"], demo / "page.html", each=2)
    return (demo / "page.html").read_text()


def test_every_figure_is_there(html):
    tree = parsed(html)
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    sections = ("runs", "scores", "learning", "listening", "masks", "embeddings", "probes")
    assert {*sections} <= {*ids}
    assert [a["href"] for a in tree.find("a") if "href" in a][1:] == [f"#{name}" for name in sections]
    charts = {"curve-0-loss", "curve-0-accuracy", "curve-0-code_perplexity", "curve-0-gradient_norm", "curve-0-lr"}
    charts |= {"curve-0-audio_per_second", "curve-0-wait", "curve-1-ctc", "curve-1-wer", "spread-test", "wer-table"}
    charts |= {"probe-0-linear", "probe-0-labels", "map-0-log-mel", "map-0-1", "map-0-2"}
    assert charts <= {*ids}
    assert "curve-1-loss" not in ids  # CTC's only term
    assert "chance 1.79" in tree.text  # ln 6, of the tiny wav2vec 2.0
    assert "all codes 16.0" in tree.text
    assert len(tree.find("figure", class_="mask")) == 3
    assert len(tree.find("article", class_="utterance")) == 4
    assert len(tree.find("audio")) == 3 + 4
    assert html.count("CTC posteriors of") == 4
    assert "error" in tree.text
    assert "pretrain" in tree.text


def test_nothing_is_fetched_and_nothing_plays_by_itself(html):
    tree = parsed(html)
    for tag, attributes in tree.tags:
        assert tag not in ("link", "iframe", "object", "img")
        for name in ("src", "href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:audio/")), (tag, name, value[:80])
        assert "autoplay" not in attributes
    assert not re.search(r"url\((?!'data:image/png;base64,)", html)
    assert "http://" not in html
    assert "https://" not in html
    assert all(audio["preload"] == "none" for audio in tree.find("audio"))
    (policy,) = tree.find("meta", http_equiv="Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_pictures_have_words(html):
    tree = parsed(html)
    for _, attributes in tree.tags:
        if attributes.get("role") == "img":
            assert attributes["aria-label"]
    for button in tree.find("button"):
        assert button["type"] == "button"
    assert all(plot["tabindex"] == "0" for plot in tree.find("div", class_="plot"))


def test_the_command_and_a_page_is_made_again_but_no_other_file_lost(demo, tmp_path, capsys, monkeypatch):
    path = tmp_path / "page.html"
    arguments = ("report", demo / "pretrain", "-o", path, "--title", "Tiny <b>runs</b>")
    for _ in range(2):
        status, out, _ = speechssl(capsys, monkeypatch, *arguments)
        assert status == 0
        assert f"Page: {path}" in out
    assert "<h1>Tiny &lt;b&gt;runs&lt;/b&gt;</h1>" in path.read_text()
    path.write_text("<html>mine</html>")
    assert "was not made by" in one_sentence(speechssl(capsys, monkeypatch, *arguments))
    assert path.read_text() == "<html>mine</html>"
    assert "no config.yaml" in one_sentence(
        speechssl(capsys, monkeypatch, "report", tmp_path, "-o", tmp_path / "p.html")
    )


def test_what_is_missing_is_said_and_the_rest_is_there(demo, tmp_path):
    run = tmp_path / "bare <run>"
    run.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        text = (demo / "pretrain" / name).read_text()
        (run / name).write_text(text.replace("valid-0", "gone"))
    (run / "incidents.jsonl").write_text('{"step": 3, "kind": "spike", "sentence": "a <loud> bang"}\n')
    write_page([run], tmp_path / "page.html")
    tree = parsed((tmp_path / "page.html").read_text())
    assert "update 3: a <loud> bang" in tree.text
    assert "chance 1.79" in tree.text  # known from the configuration
    assert not tree.find("figure", class_="mask")


def test_lost_audio_is_said(demo, tmp_path):
    tuned = shutil.copytree(demo / "tuned/ctc", tmp_path / "ctc")
    settings = tuned / "score/test/score.json"
    record = json.loads(settings.read_text())
    record["made_with"]["manifest"] = str(tmp_path / "gone.jsonl")
    settings.write_text(json.dumps(record))
    write_page([tuned], tmp_path / "page.html")
    tree = parsed((tmp_path / "page.html").read_text())
    assert "No sound:" in tree.text
    assert tree.find("ol", class_="aligned")  # the texts are known all the same


def test_a_broken_score_is_one_sentence(demo, tmp_path):
    tuned = shutil.copytree(demo / "tuned/ctc", tmp_path / "ctc")
    (tuned / "score/test/per_utterance.tsv").write_text("id\twords\nx\t1\n")
    with pytest.raises(PageError, match="score this set again"):
        read_runs([tuned])


def test_runs_get_the_shortest_names_that_tell_them_apart(demo, tmp_path):
    copy = tmp_path / "other" / "pretrain"
    shutil.copytree(demo / "pretrain", copy)
    runs = read_runs([demo / "pretrain", demo / "tuned", copy, demo / "pretrain"])
    assert [run.name for run in runs] == [f"{demo.name}/pretrain", "tuned/ctc", "other/pretrain"]
    assert [run.colour for run in runs] == [0, 1, 2]
    assert 'data-name="other/pretrain, validation"' in learning(runs)


def test_half_lines_and_what_is_no_number_are_passed_over(tmp_path):
    lines = [
        '{"split": "train", "step": 1, "loss": 2.5, "x": "nan"}',
        "[1]",
        '{"split": "valid", "step": 1, "loss": 3}',
    ]
    lines += ['{"split": "train", "step": 2, "loss": NaN}', '{"split": "train", "st']
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path / "m.jsonl") == ({"loss": [(1, 2.5)]}, {"loss": [(1, 3)]})
    assert read_metrics(tmp_path / "none.jsonl") == ({}, {})


def test_the_worst_and_the_median(demo):
    (run,) = read_runs([demo / "tuned"])
    rows = [Spoken(f"u{i}", 10, i, "", "") for i in range(11)]
    scored = type(run.scores[0])("set", {}, rows, {})
    worst, median = to_listen_to(scored, 3)
    assert [s.id for s in worst] == ["u10", "u9", "u8"]
    assert {s.id for s in median} == {"u5", "u4", "u6"}
    assert _cumulative([0.0, 0.5, 1.0, 9.0])[::25] == [(0.0, 0.25), (0.5, 0.5), (1.0, 0.75), (1.5, 0.75)]


def test_texts_of_others_are_escaped(demo, tmp_path):
    nasty = '<img src=x onerror="alert(1)">'
    tuned = shutil.copytree(demo / "tuned/ctc", tmp_path / nasty.replace("/", ""))
    score = tuned / "score/test"
    table = (score / "per_utterance.tsv").read_text().replace("ONE", nasty).replace("TWO", "</script>")
    (score / "per_utterance.tsv").write_text(table)
    record = json.loads((score / "score.json").read_text())
    (score / "score.json").write_text(json.dumps(record | {"warning": nasty}))
    write_page([tuned], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    tree = parsed(html)
    assert nasty in tree.text
    assert nasty not in html
    assert html.count("</script>") == 1


def test_a_long_run_makes_a_small_page(demo, tmp_path):
    run = long_page.stretch(demo / "tuned/ctc", tmp_path / "long")
    assert len((run / "metrics.jsonl").read_text().splitlines()) > 8000
    (read,) = read_runs([run])
    assert read.train["loss"][-1][0] == 400_000
    assert len(read.scores[0].utterances) == 3000
    size = write_page([run], tmp_path / "page.html")
    assert size < 15_000_000
    tree = parsed((tmp_path / "page.html").read_text())
    assert max(len(line["points"].split()) for line in tree.find("polyline")) <= 802
    assert len(tree.find("article", class_="utterance")) == 6
    assert len(tree.find("audio")) == 6


def test_a_budget_leaves_later_sets_out(demo, monkeypatch):
    from speechssl.page.listening import listening

    runs = read_runs([demo / "tuned"])
    assert "grown too large" not in listening(runs, 1, 10_000_000)
    assert "grown too large" in listening(runs * 2, 1, 1000)
    assert "Word error rates" in wer_table(runs)
