"""Nested and overlapping spans: the head compared with enumeration of all spans, and runs from raw data to
predictions."""

import csv
import itertools
import json
import logging
import math
import random

import pytest
import torch
from conftest import ROOT, TINY, read_json
from relation_rows import PREDICATES, add_relations, with_relations
from test_trainer import WordsAlone, fingerprints, forward_backward, make_trainer, stop_after, train

import metrics
from config import Config, seed_torch
from data_loader import MyDataLoader, MyDataset
from data_process import DataConfig, process
from engine.data.features import Featurizer
from engine.data.tokenizer import train_tokenizer
from engine.data.windows import merge_spans
from engine.errors import UserError
from engine.model import span_pointer
from engine.model.span_pointer import best_threshold
from engine.predict.ensemble import average_heads, decoding_state, mean_predictions
from engine.run.signals import Interrupted
from engine.task.task import IGNORE, Task
from engine.task.words import LOWEST_SCORE, place_tokens
from main import main
from model_utils import MyModel, SpanHead
from trainer import Trainer

TYPES = 3
GOLD = [  # six texts: nested, equal boundaries with two types, crossing, one word, no spans, unlabelled
    [(0, 2, 1), (0, 2, 0), (1, 1, 2), (0, 5, 0)],
    [(0, 0, 1)],
    [],
    None,
    [(0, 1, 2), (1, 3, 2), (3, 3, 2)],
    [(0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 1, 0), (1, 1, 1), (1, 1, 2)],  # all of them
]
SIZES = [6, 1, 3, 5, 4, 2]


def batch_of(scale=2.0, seed=0):
    """Returns (logits, labels, mask) of the six texts."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(len(GOLD), 6, 6 + 2 * TYPES, generator=generator)
    rows = [span_pointer.encode(spans) for spans in GOLD]
    longest = max(map(len, rows))
    labels = torch.tensor([row + [IGNORE] * (longest - len(row)) for row in rows])
    return logits.requires_grad_(), labels, torch.arange(6) < torch.tensor(SIZES).unsqueeze(1)


def all_scores(logits, text):
    """Returns {(first, last, type): score} of all spans of a text."""
    return {
        (i, j, t): logits[text, i, j] + logits[text, i, 6 + t] + logits[text, j, 6 + TYPES + t]
        for i in range(SIZES[text])
        for j in range(i, SIZES[text])
        for t in range(TYPES)
    }


def naive_loss(logits, text):
    """Computes the loss of Su (2020) from its definition: a sum over types of two log-sums."""
    total = logits.new_zeros(())
    for t in range(TYPES) if GOLD[text] is not None else ():
        scores = {span: score for span, score in all_scores(logits, text).items() if span[2] == t}
        wrong = [score for span, score in scores.items() if span not in GOLD[text]]
        right = [-score for span, score in scores.items() if span in GOLD[text]]
        total = total + sum(torch.stack([logits.new_zeros(()), *side]).logsumexp(0) for side in (wrong, right))
    return total


# ---- mathematics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 2.0, 15.0])
def test_loss_and_gradient_equal_enumeration(scale):
    logits, labels, mask = batch_of(scale)
    found = span_pointer.loss(logits, labels, mask)
    expected = torch.stack([naive_loss(logits, text) for text in range(len(GOLD))])
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)
    one, other = (torch.autograd.grad(losses.sum(), logits)[0] for losses in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert found[3] == 0 and not one[3].any()


def test_extreme_scores_give_finite_losses_and_gradients():
    logits, labels, mask = batch_of(60.0)
    found = span_pointer.loss(logits, labels, mask)
    torch.testing.assert_close(found, torch.stack([naive_loss(logits, t) for t in range(6)]).float(), rtol=1e-5, atol=0)
    assert torch.isfinite(torch.autograd.grad(found.sum(), logits)[0]).all()


def test_labels_outside_the_text_are_ignored():
    logits, labels, mask = batch_of()
    expected = span_pointer.loss(logits, labels, mask)
    outside = torch.tensor([[0, 6, 0, 5, 9, 1, 4, 2, 0]]).expand(6, -1)
    more = torch.where(labels[:, :1] == IGNORE, IGNORE, outside)
    torch.testing.assert_close(span_pointer.loss(logits, torch.cat([labels, more], 1), mask), expected)
    unlabelled = torch.full_like(labels, IGNORE)
    assert not span_pointer.loss(logits, unlabelled, mask).any() and not span_pointer.has_labels(unlabelled).any()


@pytest.mark.parametrize("cells", [1, 2**22])
@pytest.mark.parametrize("lowest", [-4.0, 0.0, 3.0])
def test_decoding_equals_enumeration_of_spans(lowest, cells, monkeypatch):
    monkeypatch.setattr(span_pointer, "CELLS", cells)  # texts one by one, or all together
    logits, _, mask = batch_of()
    spans, probabilities = span_pointer.find(logits, mask, lowest, most=100)
    for text in range(len(GOLD)):
        scores = all_scores(logits, text)
        assert spans[text] == sorted(span for span, score in scores.items() if score > lowest)
        expected = [scores[span].double().sigmoid().item() for span in spans[text]]
        assert probabilities[text] == pytest.approx(expected)


def test_best_spans_are_kept_beyond_the_limit():
    logits, _, mask = batch_of()
    spans, _ = span_pointer.find(logits, mask, -100.0, most=1)
    for text, size in enumerate(SIZES):
        scores = all_scores(logits, text)
        assert spans[text] == sorted(sorted(scores, key=lambda span: -scores[span])[:size])


def test_scores_depend_only_on_relative_positions():
    """With RoPE, shifted words have the same scores, but the order of words matters."""
    vectors = torch.randn(1, 9, 16)
    whole = span_pointer.scores_of_pairs(vectors)
    torch.testing.assert_close(span_pointer.scores_of_pairs(vectors[:, 3:8]), whole[:, 3:8, 3:8], rtol=1e-4, atol=1e-5)
    assert (span_pointer.scores_of_pairs(vectors.flip(1)).flip(1, 2) - whole).abs().max() > 0.1
    turned, pair = span_pointer.rotate(vectors)[0], vectors[0, :, :2]
    for m in (0, 1, 4):  # the first pair of dimensions rotates by 1 radian per word
        cos, sin = math.cos(m), math.sin(m)
        expected = torch.stack([pair[m, 0] * cos - pair[m, 1] * sin, pair[m, 0] * sin + pair[m, 1] * cos])
        torch.testing.assert_close(turned[m, :2], expected)


def test_divergence_is_that_of_bernoulli_distributions():
    first, labels, mask = batch_of()
    second, _, _ = batch_of(seed=1)
    expected = 0.0
    for text in (0, 1, 2, 4, 5):
        one, other = all_scores(first, text), all_scores(second, text)
        for span in one:
            p, q = (torch.distributions.Bernoulli(logits=side[span].double()) for side in (one, other))
            expected = expected + torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    distribution, inputs = SpanHead(8, Task("spans", tuple("abc"))).distribution, {"word_mask": mask}
    divergence = distribution.divergence(first, second, labels, inputs)
    torch.testing.assert_close(divergence.double(), expected, rtol=1e-5, atol=0)
    assert distribution.divergence(first, first, labels, inputs) == 0


def test_fitted_threshold_maximises_f1():
    rng = random.Random(1)
    head = SpanHead(8, Task("spans", labels=["a", "b"]))
    for _ in range(20):
        found, gold = [], []
        for _ in range(6):
            spans = sorted({(rng.randrange(3), rng.randrange(3, 6), rng.randrange(2)) for _ in range(5)})
            found.append((spans, [rng.choice([0.1, 0.3, 0.5, 0.9, rng.uniform(0.05, 1)]) for _ in spans]))
            gold.append([[f, last, "ab"[t]] for f, last, t in spans if rng.random() < 0.5] + [[9, 9, "a"]])
        gold[0] = None

        def f1(found=found, gold=gold):
            decoded = [head.to_labels(*one)[0] for one in found]
            return metrics.span_scores(gold[1:], decoded[1:])["f1"]

        head.calibrate(found, gold)
        chosen = f1()
        others = []
        for p in {p for _, probabilities in found for p in probabilities}:
            head.threshold.fill_(torch.tensor(p).logit() - 1e-4)
            others.append(f1())
        assert chosen == pytest.approx(max(others))
    assert best_threshold(torch.tensor([1.0]), torch.tensor([0]), 0.0) is None
    before = float(head.threshold)
    head.calibrate([([], [])], [[]])
    assert head.threshold == before


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_logits_are_finite_in_half_precision(kind):
    head = SpanHead(16, Task("spans", labels=["a", "b"]))
    vectors, mask = 20 * torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    full = head(vectors, {"word_mask": mask})
    with torch.autocast("cpu", kind):
        half = head(vectors, {"word_mask": mask})
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    assert (half - full).abs().mean() < 0.05 * full.abs().mean()


# ---- windows, folds, scores ------------------------------------------------------------------------------------------


def test_span_comes_from_the_window_with_the_farther_edge():
    left = (0, 6, [(3, 4, 0), (4, 5, 0), (0, 1, 1)], [0.9, 0.8, 0.7])
    right = (3, 6, [(0, 1, 0), (1, 2, 0), (2, 5, 1)], [0.1, 0.2, 0.3])
    spans = {(0, 1, 1): 0.7, (3, 4, 0): 0.9, (4, 5, 0): 0.2, (5, 8, 1): 0.3}
    for windows in ([left, right], [right, left]):
        assert dict(zip(*merge_spans(windows))) == spans
    unseen = (3, 6, [], [])  # the window with the farther edge did not predict (4, 5)
    assert merge_spans([left, unseen])[0] == [(0, 1, 1), (3, 4, 0)]


WORDS = "abc def ghi jkl mno pqr stu vwx yz".split()
TASKS = {"entities": Task("spans", labels=["x", "y"], unit="word")}
FACTS = {"facts": Task("relations", labels=["p", "q"], unit="word")}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(lambda: [" ".join(WORDS)] * 4, 120)


@pytest.mark.parametrize(
    ("length", "stride"), [(8, 0), (8, 2), (8, 4), (10, 1), (10, 5), (12, 3), (12, 6), (14, 4), (16, 8), (24, 7)]
)
def test_windows_do_not_change_predictions_without_context(length, stride, tokenizer, tmp_path):
    """Spans and relations within the overlap of two windows are found once, with the same probability."""
    rng = random.Random(0)
    words = [[rng.choice(WORDS) for _ in range(size)] for size in (1, 5, 20, 25, 25)]
    examples = [{"id": str(i), "tokens": tokens, "entities": [], "facts": []} for i, tokens in enumerate(words)]
    torch.manual_seed(0)
    tasks = TASKS | FACTS
    model = MyModel(WordsAlone(len(tokenizer), 32), 32, tasks)
    with torch.no_grad():  # some spans are found, but in no text more than the limit
        for head in model.output_layer.heads.values():
            head.linear.weight.mul_(2)
            head.borders.bias.fill_(-6)
            head.threshold.fill_(LOWEST_SCORE)
    config = Config(output_dir=str(tmp_path), device="cpu", precision="fp32")
    trainer, results = Trainer(model, tokenizer, tasks, config, torch.device("cpu")), []
    for featurizer in (Featurizer(tokenizer, tasks, 256), Featurizer(tokenizer, tasks, length, stride)):
        data = MyDataset(examples, featurizer)
        found = trainer.infer(MyDataLoader(data, 3), "")[0]
        for name in tasks:
            rows = [dict(zip(map(tuple, items), p)) for items, p in zip(found.labels[name], found.probabilities[name])]
            assert [len(row) for row in rows] == [len(items) for items in found.labels[name]]
            results.append([{k: p for k, p in row.items() if max(k[:-1]) - min(k[:-1]) <= stride} for row in rows])
    assert len(data.lengths) > len(data)
    numbers = [sum(map(len, found)) for found in results]
    assert numbers[0] > 15 and (numbers[1] > 15 or stride < 6)
    for whole, windowed in zip(results[0] + results[1], results[2] + results[3], strict=True):
        assert windowed == pytest.approx(whole, abs=1e-5)


def test_window_labels_are_the_spans_inside(tokenizer, caplog):
    logging.getLogger("template").propagate = True
    tokens = [WORDS[i % 9] for i in range(20)]
    examples = [
        {
            "tokens": tokens,
            "entities": [[0, 0, "x"], [3, 9, "y"], [4, 5, "x"], [19, 19, "new"], [18, 19, "y"], [1, 18, "x"]],
        },
        {"tokens": ["abc"], "entities": None},
        {"tokens": ["abc", "def"], "entities": []},
    ]
    data = MyDataset(examples, Featurizer(tokenizer, TASKS, 12, 4))
    batch = data.batch(range(len(data.lengths)))
    firsts, labels = data.columns["first_word"].tolist(), batch.labels["entities"]
    found = set()
    for row in range(len(firsts) - 2):
        items, there = (part[row] for part in span_pointer.items_of(labels, batch.inputs["word_mask"], 2))
        for f, end, k in items[there].tolist():
            found.add((f + firsts[row], end + firsts[row], "xy"[k]))
    assert found == {(0, 0, "x"), (3, 9, "y"), (4, 5, "x"), (18, 19, "y")}
    assert "1 spans of 'entities' do not fit in a window" in caplog.text  # [1, 18]
    assert (labels[-2] == IGNORE).all() and labels[-1, 0] == 0 and (labels[-1, 1:] == IGNORE).all()


def test_window_labels_are_the_relations_inside(tokenizer, caplog):
    """Subject and object can have either order; each window that contains both learns the relation."""
    logging.getLogger("template").propagate = True
    items = [[9, 9, 3, 4, "p"], [3, 4, 9, 9, "q"], [4, 4, 4, 4, "p"], [0, 0, 19, 19, "q"], [18, 19, 2, 2, "p"]]
    examples = [{"tokens": [WORDS[i % 9] for i in range(20)], "facts": items}]
    data = MyDataset(examples, Featurizer(tokenizer, FACTS, 12, 4))
    batch = data.batch(range(len(data.lengths)))
    firsts, sizes = data.columns["first_word"].tolist(), data.columns["word_starts"].lengths.tolist()
    found, there = span_pointer.items_of(batch.labels["facts"], batch.inputs["word_mask"], 4)
    for first, size, own, is_item in zip(firsts, sizes, found, there):
        expected = [item for item in items if first <= min(item[:4]) and max(item[:4]) < first + size]
        assert sorted([*(w + first for w in ws), "pq"[k]] for *ws, k in own[is_item].tolist()) == sorted(expected)
    assert len(firsts) > 2 and there.sum() >= 3
    assert "2 relations of 'facts' do not fit in a window" in caplog.text


def test_average_over_folds():
    spans, p = span_pointer.mean_of([([(0, 1, 0), (2, 2, 1)], [0.8, 0.4]), ([(0, 1, 0)], [0.6])])
    assert dict(zip(spans, p)) == pytest.approx({(0, 1, 0): 0.7, (2, 2, 1): 0.2})
    spans, p = span_pointer.mean_of([([(0, 1, 0), (2, 2, 1)], [0.8, 0.4]), ([(0, 1, 0)], [0.6])], [3, 2])
    assert dict(zip(spans, p)) == pytest.approx(
        {(0, 1, 0): 0.7, (2, 2, 1): 0.4}
    )  # the second was truncated before word 2


def test_span_scores():
    tasks = {"x": Task("spans", labels=["a", "b"])}
    gold = [[[0, 1, "a"], [0, 0, "b"]], [[1, 1, "a"]], [], None]
    predicted = [[[0, 0, "b"], [0, 1, "a"]], [[1, 1, "b"], [1, 2, "a"]], [], [[0, 0, "a"]]]
    scores = metrics.score(tasks, {"x": gold}, {"x": predicted})
    assert (scores["x_precision"], scores["x_recall"]) == (0.5, pytest.approx(2 / 3))
    assert scores["x_f1"] == pytest.approx(4 / 7) and scores["sentence_accuracy"] == pytest.approx(2 / 3)
    report = metrics.report(tasks, {"x": gold}, {"x": predicted})["x"]
    assert report["a"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert report["b"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert metrics.default_monitor(tasks) == "x_f1" and "x_recall" in metrics.score_names(tasks)
    both = tasks | {"intent": Task("classification", labels=["c"])}
    assert metrics.default_monitor(both) == "sentence_accuracy"


# ---- data ------------------------------------------------------------------------------------------------------------

CITIES = ["北京", "New York", "Köln", "Paris 😀", "Rome"]
PATTERNS = [
    "  meet at {} today",
    "{} 很好!",
    "I left {}\u3000for {c}",
    "see\u00a0{}, then {c} 😀!",
    "from {c} to {} ok",
]


def nested_row(rng, split):
    """Returns a text in which a bank contains a city, with blanks, Chinese and emoji."""
    city, other = rng.choice(CITIES), rng.choice(CITIES)
    bank = f"{city} {rng.choice(['Bank', '银行'])}"
    text = rng.choice(PATTERNS).format(bank, c=other)
    start = text.index(bank)
    spans = [[start, start + len(bank), "bank"], [start, start + len(city), "city"]]
    rest = text[:start] + " " * len(bank) + text[start + len(bank) :]
    if other in rest:
        spans.append([rest.index(other), rest.index(other) + len(other), "city"])
    if rng.random() < 0.1:
        text, spans = rng.choice(["hello", "nothing is here"]), []
    mood = "good" if "ok" in text or "today" in text else "bad"
    banks = [span for span in spans if span[2] == "bank"]  # flat: a tagging task next to the spans task
    return {"text": text, "entities": sorted(spans), "mood": mood, "banks": banks, "split": split}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    rng = random.Random(0)
    rows = [nested_row(rng, split) for split, size in (("train", 80), ("dev", 24), ("test", 24)) for _ in range(size)]
    rows[3]["entities"] = None
    path = tmp_path_factory.mktemp("raw") / "nested.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def nested(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "nested"
    process(DataConfig(input=str(raw), output_dir=str(folder), label_column="entities,mood,banks"))
    return folder


@pytest.fixture(scope="module")
def related(nested, tmp_path_factory):
    """Returns the nested data with relations between its entities."""
    return with_relations(nested, tmp_path_factory.mktemp("data") / "related", "entities")


@pytest.fixture
def small(related, tmp_path):
    """Returns small(**options) -> the Config of a small, fast run on the nested data, with relations."""
    own = dict(data_path=str(related), output_dir=str(tmp_path / "output"), model_version="run")
    return lambda **options: Config(**{**TINY, **own, **options})


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_overlapping_spans_become_a_spans_task(raw, nested):
    tasks = read_json(nested / "labels.json")
    assert tasks["banks"]["type"] == "tagging" and tasks["mood"]["type"] == "classification"
    assert tasks["entities"]["type"] == "spans" and tasks["entities"]["labels"] == ["bank", "city"]
    given = [row for row in rows_of(raw) if row["split"] == "train"]
    counts = [sum(span[2] == kind for row in given for span in row["entities"] or []) for kind in ("bank", "city")]
    assert tasks["entities"]["counts"] == counts and tasks["entities"]["unit"] == "word"
    for row, written in zip(given, rows_of(nested / "train.jsonl")):
        places = place_tokens(written["text"], written["tokens"])
        if row["entities"] is None:
            assert written["entities"] is None
        else:
            found = [[places[first][0], places[last][1], kind] for first, last, kind in written["entities"]]
            assert written["text"] == row["text"] and sorted(found) == row["entities"]


def test_task_type_can_be_chosen(raw, sample, tmp_path, capsys):
    rows = [row for row in rows_of(raw) if row["entities"] is not None]
    (tmp_path / "nested.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    chosen = dict(output_dir=str(tmp_path / "flat"), label_type="entities=tagging")
    process(DataConfig(input=str(tmp_path / "nested.jsonl"), **chosen))
    assert read_json(tmp_path / "flat/labels.json")["entities"]["labels"] == [
        "O",
        "B-bank",
        "B-city",
        "I-bank",
        "I-city",
    ]
    assert "--label_type entities=spans keeps both" in capsys.readouterr().out
    flat = [row | {"entities": row["entities"][:1]} for row in rows]
    (tmp_path / "flat.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in flat))
    for number, chosen in enumerate(("", "entities=tagging", "entities=spans")):
        options = dict(output_dir=str(tmp_path / f"f{number}"), label_type=chosen)
        process(DataConfig(input=str(tmp_path / "flat.jsonl"), **options))
    default, tags, spans = ((tmp_path / f"f{number}/train.jsonl").read_bytes() for number in range(3))
    assert default == tags != spans and read_json(tmp_path / "f2/labels.json")["entities"]["type"] == "spans"
    source = dict(input=str(ROOT / "dataset/sample_raw"))
    process(DataConfig(**source, output_dir=str(tmp_path / "spans"), label_type="slots=spans"))
    process(DataConfig(**source, output_dir=str(tmp_path / "tags")))
    for row, tagged in zip(rows_of(tmp_path / "spans/dev.jsonl"), rows_of(tmp_path / "tags/dev.jsonl")):
        assert metrics.items_in("spans", row["slots"]) == metrics.items_in("tagging", tagged["slots"])
    pos = [{"tokens": ["a", "b"], "tags": ["NN", "VB"], "split": split} for split in ("train", "dev")]
    (tmp_path / "pos.jsonl").write_text("\n".join(map(json.dumps, pos)))
    with pytest.raises(UserError, match="do not mark entities"):
        process(DataConfig(input=str(tmp_path / "pos.jsonl"), output_dir=str(tmp_path / "x"), label_type="tags=spans"))


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("x", "must be a list"),
        ([["a", "b"]], "must be a list"),
        ([[0, 1]], "must be a list"),
        ([[0, 3, "x"]], "outside the 3 tokens"),
        ([[2, 1, "x"]], "outside"),
        ([[-1, 1, "x"]], "outside"),
        ([[0.0, 1, "x"]], "outside"),
        ([[0, 1, ""]], "must be a list"),
    ],
)
@pytest.mark.parametrize("tasks", [TASKS, FACTS])
def test_invalid_processed_row_is_a_one_line_error(label, named, tasks, tokenizer, tmp_path):
    """Tests spans, and relations whose second span is valid."""
    (name,), path = tasks, tmp_path / "train.jsonl"
    if tasks == FACTS and isinstance(label, list):
        label = [[*item[:2], 1, 1, *item[2:]] for item in label]
    good = {"tokens": ["abc", "def", "ghi"], "entities": [[0, 2, "x"], [1, 1, "y"]], "facts": [[2, 2, 0, 1, "p"]]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {name: label}) + "\n")
    with pytest.raises(UserError, match=named) as error:
        MyDataset(path, Featurizer(tokenizer, tasks, 32))
    assert "row 2" in str(error.value)
    path.write_text(json.dumps({"text": "abc", name: good[name]}) + "\n")
    with pytest.raises(UserError, match="tokens"):
        MyDataset(path, Featurizer(tokenizer, tasks, 32))


def test_span_checks(tmp_path, capsys):
    rows = [{"text": "abc def ghi jkl", "entities": [[0, 7, "x"], [4, 7, "y"]], "split": "train"} for _ in range(3)]
    rows[1] = rows[1] | {"text": "other words are here", "entities": [[0, 11, "x"], [6, 15, "x"]]}
    rows[2] = rows[2] | {"text": "some more of it", "entities": []}
    rows += [{"text": "abc def here", "entities": [[0, 7, "z"]], "split": "dev"}]
    rows += [{"text": "none at all", "entities": [], "split": "test"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    process(DataConfig(input=str(tmp_path / "a.jsonl"), output_dir=str(tmp_path / "out")))
    printed = capsys.readouterr().out
    assert "the spans of 'entities' overlap" in printed
    assert "labels in dev that never occur in train (1)" in printed and "row 4: 'z'" in printed
    assert "without being nested (1)" in printed and "'other words' and 'words are'" in printed
    assert "splits without any span (1)" in printed
    process(DataConfig(input=str(tmp_path / "out"), check=True))
    assert "without being nested (1)" in capsys.readouterr().out


# ---- training --------------------------------------------------------------------------------------------------------


def entities_of(row):
    return [[one["start"], one["end"], one["label"]] for one in row["entities"]]


def test_nested_spans_end_to_end(raw, small, tmp_path):
    """Nested spans are learned; offsets refer to the original text; texts without labels get the same predictions."""
    out = tmp_path / "p.jsonl"
    todo = dict(do_train=True, do_eval=True, do_predict=True, predict_output=str(out))
    config = small(epochs=14, lr=1e-2, hidden_size=64, monitor="entities_f1", **todo)
    main(config)
    given, written = [row for row in rows_of(raw) if row["split"] == "test"], rows_of(out)
    right = found = 0
    for row, prediction in zip(given, written):
        assert prediction["text"] == row["text"] and "entities_tags" not in prediction
        assert all(prediction["text"][one["start"] : one["end"]] == one["text"] for one in prediction["entities"])
        assert all(0 < one["probability"] <= 1 for one in prediction["entities"])
        right += sum(span in row["entities"] for span in entities_of(prediction))
        found += len(prediction["entities"]) + len(row["entities"])
    scores = read_json(config.run_dir / "eval.json")
    assert scores["test"]["entities_f1"] == pytest.approx(2 * right / found) and scores["test"]["entities_f1"] > 0.9
    assert read_json(config.run_dir / "report.json")["test"]["entities"]["bank"]["support"] > 5
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(row["text"] for row in given) + "\nhello\n", encoding="utf-8")
    main(small(do_predict=True, predict_file=str(texts), predict_output=str(tmp_path / "again.csv"), eval_batch_size=1))
    main(small(do_predict=True, predict_file=str(texts), predict_output=str(tmp_path / "again.jsonl")))
    again = rows_of(tmp_path / "again.jsonl")
    with open(tmp_path / "again.csv", encoding="utf-8", newline="") as file:
        cells = [json.loads(row["facts"]) for row in csv.DictReader(file)]
    for cell, row in zip(cells, again, strict=True):
        for one, other in zip(cell, row["facts"], strict=True):
            assert one.pop("probability") == pytest.approx(other.pop("probability"), abs=1e-4) and one == other
            assert all(row["text"][end["start"] : end["end"]] == end["text"] for end in (one["subject"], one["object"]))
    assert sum(map(len, cells)) > 5
    unglued = [i for i, row in enumerate(given) if "Bank" not in row["text"] or "Bank " in row["text"]]
    assert [entities_of(again[i]) for i in unglued] == [entities_of(written[i]) for i in unglued]
    assert len(again) == 25 and again[-1]["text"] == "hello"


def test_training_on_texts_without_spans_or_labels_or_with_one_word(small):
    trainer = make_trainer(small(epochs=1))
    data = trainer.train_loader.dataset
    rows = sorted(range(len(data)), key=lambda i: len(data[i]["tokens"]))
    assert len(data[rows[0]]["tokens"]) == 1 and any(data[i]["entities"] is None for i in rows)
    batch = data.batch(rows[:9])
    counts = trainer.model.count_labels(batch.inputs, batch.labels)
    assert counts["entities"] == sum(data[i]["entities"] is not None for i in rows[:9])
    output = forward_backward(trainer, batch, counts)
    alone = data.batch([next(i for i in rows if data[i]["entities"] is None)])
    assert torch.isfinite(output.total_loss) and trainer.model(*alone[:2]).losses["entities"] == 0
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_rdrop_has_an_effect_only_with_dropout(small):
    losses = []
    for dropout in (0.0, 0.3):
        trainer = make_trainer(small(dropout=dropout, epochs=1))
        trainer.model.train()
        batch = trainer.train_loader.dataset.batch(range(8))
        first, second = trainer.model(*batch[:2]), trainer.model(*batch[:2])
        losses.append(trainer.model.divergence(first, second, batch).item())
    assert losses[0] == 0 < losses[1]


@pytest.mark.parametrize("options", [dict(), dict(streaming=True, use_fgm=True, use_ema=True)])
def test_resume_with_spans_is_bit_exact(options, small, monkeypatch):
    whole = small(model_version="whole", **options)
    train(whole)
    config = small(model_version="stopped", **options)
    trainer = make_trainer(config)
    stop_after(trainer, 13, monkeypatch)
    with pytest.raises(Interrupted):
        trainer.train()
    seed_torch(99)
    train(config)
    assert fingerprints(config) == fingerprints(whole)


def test_options_without_effect_are_reported():
    for options in ({"class_weights": "balanced"}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0}):
        lines = Config(**options).unused_options(["spans", "relations"])
        assert len(lines) == 2 and "no effect on spans" in lines[0] and "no effect on relations" in lines[1]
    assert Config().unused_options(["relations"]) == []  # --use_crf applies only to tagging


@pytest.mark.parametrize(
    "options",
    [
        dict(use_rdrop=True, use_pgd=True, precision="bf16"),
        dict(use_smart=True, dropout_samples=2, use_crf=True),
        dict(use_freelb=True, encoder="bilstm", gradient_accumulation_steps=3),
        dict(use_awp=True, awp_start=0.0, precision="fp16", max_length=8, window_stride=3),
    ],
)
def test_training_with_tricks_and_windows(options, small):
    config = small(epochs=1, do_train=True, do_eval=True, do_predict=True, **options)
    main(config)
    scores = read_json(config.run_dir / "eval.json")["test"]
    assert (
        all(value == value for value in scores.values())
        and {"entities_f1", "banks_f1", "facts_typed_f1"} <= scores.keys()
    )


def test_folds_are_averaged(small):
    """The average of equal models is the model; the average of two is the mean of their probabilities."""
    trainers = [train(small(epochs=6, lr=1e-2, model_version=f"m{seed}", random_seed=seed)) for seed in (1, 2)]
    data = trainers[0].dev_loader.dataset
    found = [t.infer(MyDataLoader(data, 7), "", keep_averages="all")[0] for t in trainers]
    heads = trainers[0].model.output_layer.heads
    alone = mean_predictions(heads, [found[0].averages] * 3, data)
    average_heads(heads, [decoding_state(t.model.output_layer.heads) for t in trainers])
    both = mean_predictions(heads, [one.averages for one in found], data)
    for task, labels in (("entities", ["bank", "city"]), ("facts", PREDICATES)):
        assert alone.labels[task] == found[0].labels[task] and any(both.labels[task])
        lowest = float(heads[task].threshold.double().sigmoid())
        for i, label in enumerate(both.labels[task]):
            p = [dict(zip(*one.averages[task][i])) for one in found]
            mean = {span: (p[0].get(span, 0.0) + p[1].get(span, 0.0)) / 2 for span in p[0].keys() | p[1].keys()}
            expected = sorted(span for span, value in mean.items() if value >= lowest)
            assert [[*places, labels[kind]] for *places, kind in expected] == label


def test_scores_do_not_depend_on_batch_size(small):
    trainer = train(small(epochs=6, lr=1e-2))
    data = trainer.dev_loader.dataset
    results = [trainer.eval(MyDataLoader(data, size)) for size in (1, 7, 64)]
    for one, other in itertools.pairwise(results):
        assert one.predicted == other.predicted and one.scores == pytest.approx(other.scores, rel=1e-4)


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_model_checks_pass(related, command):
    flags = ["--data_path", related, "--epochs", 3, "--hidden_size", 64, "--num_layers", 1, "--device", "cpu"]
    done = command("main.py", "--debug", *flags)
    assert done.returncode == 0, done.stderr
    assert "checks passed" in done.stderr and "FAILED" not in done.stderr


@pytest.mark.slow
def test_cross_validation(raw, command, tmp_path):
    folds = ["--input", raw, "--output_dir", "data", "--label_column", "entities,mood", "--n_splits", 3]
    assert command("data_process.py", *folds).returncode == 0
    for fold in (tmp_path / "data", *tmp_path.glob("data/fold_*")):
        add_relations(fold, "entities")
    flags = ["--data_path", "data", "--epochs", 8, "--lr", 0.01, "--hidden_size", 64, "--num_layers", 1]
    done = command("tools.cross_validate", *flags, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    result = read_json(tmp_path / "output/data-folds/folds.json")
    assert result["out_of_fold"]["entities_f1"] > 0.8 and result["test_of_all_folds"]["entities_f1"] > 0.8
    assert result["out_of_fold"]["facts_f1"] > 0.4 and result["test_of_all_folds"]["facts_f1"] > 0.4


@pytest.mark.slow
def test_nested_data_is_learned_beyond_the_bound_of_flat_taggers(command, tmp_path):
    """Runs benchmarks/nested.py on the sample's slots, and compares its bound for a flat tagger with the head's
    score."""
    made = command("benchmarks/nested.py", "--input", ROOT / "dataset/sample_raw", "--output_file", "nested.jsonl")
    assert made.returncode == 0, made.stderr
    ceiling = float(made.stdout.split("dev: ")[-1].split("at most ")[1].split(",")[0])
    assert command("data_process.py", "--input", "nested.jsonl", "--output_dir", "data").returncode == 0
    flags = ["--do_train", "--do_eval", "--data_path", "data", "--epochs", 3, "--device", "cpu"]
    done = command("main.py", *flags, "--hidden_size", 128, "--num_layers", 2)
    assert done.returncode == 0, done.stderr
    assert 0.85 < ceiling < 1 and read_json(tmp_path / "output/data/eval.json")["dev"]["entities_f1"] > 0.3
