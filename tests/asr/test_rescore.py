"""N-best lists reordered by a function, and by a tiny random GPT-2 whose scores are worked out by hand."""

import json

import pytest
import torch

from speechssl.asr.rescore import CausalScorer, rescore_file
from speechssl.asr.search import DecodeError

LISTS = {
    "a": ("THE CAT", [("A CAT", -1.0), ("THE CAT", -1.5), ("CAT", -3.0)]),
    "b": ("A DOG", [("A DOG", -2.0), ("THE DOG", -2.2)]),
    "c": ("", [("", -0.1)]),
}


def write_lists(path, lists=LISTS, **more):
    rows = [
        {
            "id": i,
            "text": nbest[0][0],
            "reference": reference,
            "nbest": [{"text": t, "score": s, "acoustic": s, "lm": 0.0} for t, s in nbest],
        }
        for i, (reference, nbest) in lists.items()
    ]
    path.write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    return path


def likes_the(texts):
    """ln P: texts with THE CAT are likely."""
    return [0.0 if "THE CAT" in text else -1.0 for text in texts]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_second_model_reorders(tmp_path):
    decoded = write_lists(tmp_path / "in.jsonl")
    rescore_file(decoded, tmp_path / "none.jsonl", likes_the, scorer_name="x", weight=0.0)
    assert [row["text"] for row in read(tmp_path / "none.jsonl")] == ["A CAT", "A DOG", ""]
    rescore_file(decoded, tmp_path / "out.jsonl", likes_the, scorer_name="x", weight=1.0, bonus=0.5)
    rows = read(tmp_path / "out.jsonl")
    assert [row["text"] for row in rows] == ["THE CAT", "A DOG", ""]
    assert rows[0]["reference"] == "THE CAT"
    assert [item["rescored"] for item in rows[0]["nbest"]] == pytest.approx([-0.5, -1.0, -3.5])
    settings = json.loads((tmp_path / "out.jsonl.settings.json").read_text())
    assert settings["rescored"] == {"by": "x", "weight": 1.0, "word_bonus": 0.5, "decoded": str(decoded)}


def test_weights_are_tuned_on_lists_with_references(tmp_path):
    dev, test = write_lists(tmp_path / "dev.jsonl"), write_lists(tmp_path / "test.jsonl")
    tuned = rescore_file(test, tmp_path / "out.jsonl", likes_the, scorer_name="x", tune_on=dev)
    assert tuned.best.word_errors == 0
    assert read(tmp_path / "out.jsonl")[0]["text"] == "THE CAT"
    settings = json.loads((tmp_path / "out.jsonl.settings.json").read_text())
    assert settings["rescored"]["tuning"]["wer"] == 0
    assert settings["rescored"]["weight"] == tuned.best.weight


def test_refusals(tmp_path):
    (tmp_path / "plain.jsonl").write_text('{"id": "a", "text": "A"}\n')
    with pytest.raises(DecodeError, match="no n-best lists"):
        rescore_file(tmp_path / "plain.jsonl", tmp_path / "out.jsonl", likes_the, scorer_name="x")
    lists = write_lists(tmp_path / "in.jsonl", reference=None)
    with pytest.raises(DecodeError, match="not every line has a reference"):
        rescore_file(lists, tmp_path / "out.jsonl", likes_the, scorer_name="x", tune_on=lists)
    with pytest.raises(DecodeError, match="not made by `speechssl rescore`"):
        rescore_file(lists, lists, likes_the, scorer_name="x")


# ------------------------------------------------------------------------------------------------------------ a model


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="transformers (the [hf] extra) is missing")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = tmp_path_factory.mktemp("gpt2")
    names = ["<end>", "<unk>", "the", "a", "cat", "dog"]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=6, n_positions=32, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return folder, model


def test_scores_are_the_chain_rule_whatever_the_batch(gpt2):
    folder, model = gpt2
    texts = ["THE CAT", "A DOG A DOG A CAT", "", "THE BIRD"]
    ids = [[0, 2, 4, 0], [0, 3, 5, 3, 5, 3, 4, 0], [0, 0], [0, 2, 1, 0]]
    with torch.no_grad():
        expected = [
            sum(model(torch.tensor([row[:n]])).logits[0, -1].log_softmax(-1)[row[n]].item() for n in range(1, len(row)))
            for row in ids
        ]
    for size in (1, 3, 8):
        assert CausalScorer(folder, batch_size=size)(texts) == pytest.approx(expected, abs=1e-4)
    assert CausalScorer(folder, case="keep")(["THE CAT"]) == pytest.approx(
        CausalScorer(folder)(["BIRD BIRD"]), abs=1e-4
    )


def test_a_folder_without_a_model(tmp_path):
    pytest.importorskip("transformers", reason="transformers (the [hf] extra) is missing")
    with pytest.raises(DecodeError, match="no such folder"):
        CausalScorer(tmp_path / "none")
    with pytest.raises(DecodeError, match="holds no causal language model"):
        CausalScorer(tmp_path)
