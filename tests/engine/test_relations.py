"""Relations: GPLinker compared with enumeration, and a task from a processed folder to predictions."""

import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import model_utils
from config import Config
from engine.model import distributions, relations, span_pointer
from engine.model.head import READS_ENTITIES, SINCE
from engine.run.command_line import parse_args
from engine.task.task import IGNORE, Task
from main import main
from metrics import score
from model_utils import HeadOptions, MyModel, OutputLayer, RelationHead

PREDICATES, WIDTH = 3, 6
SIZES = [6, 4, 6, 1, 5]
GOLD = [
    [(0, 1, 3, 3, 0), (0, 1, 4, 5, 0), (0, 1, 3, 3, 2)],  # one subject, two objects; one pair, two predicates
    [(1, 2, 1, 1, 1), (1, 1, 1, 2, 0)],  # nested; both directions
    None,
    [],
    [(4, 4, 0, 2, 2)],
]


def batch_of(seed=0, scale=2.0):
    """Returns (logits, labels, mask) of five texts."""
    logits = scale * torch.randn(
        len(GOLD), WIDTH, 3 * WIDTH + 4 + 4 * PREDICATES, generator=torch.Generator().manual_seed(seed)
    )
    rows = [torch.tensor(span_pointer.encode(gold)) for gold in GOLD]
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE)
    return logits, labels, torch.arange(WIDTH) < torch.tensor(SIZES).unsqueeze(1)


def scores_of(logits, text):
    """Returns {(table, type, i, j): score} of the real words of a text, computed from the definition."""
    scores, begin = {}, 0
    for table, types in (("entities", 2), ("heads", PREDICATES), ("tails", PREDICATES)):
        for i, j, t in product(range(SIZES[text]), range(SIZES[text]), range(types)):
            own = logits[text, i, begin + j] + logits[text, i, begin + WIDTH + t]
            own = own + logits[text, j, begin + WIDTH + types + t]
            if table != "entities" or i <= j:
                scores[table, t, i, j] = own
        begin += WIDTH + 2 * types
    assert begin == logits.shape[2]
    return scores


def gold_cells(gold):
    cells = {("entities", 0, a, b) for a, b, _, _, _ in gold} | {("entities", 1, c, d) for _, _, c, d, _ in gold}
    return cells | {("heads", p, a, c) for a, _, c, _, p in gold} | {("tails", p, b, d) for _, b, _, d, p in gold}


def test_sparse_loss_equals_the_dense_one():
    """The sparse form equals the dense one, Su (2020), to 1e-6, including gradients."""
    logits, labels, mask = batch_of()
    logits.requires_grad_()
    expected = []
    for text, gold in enumerate(GOLD):
        total = torch.zeros((), dtype=torch.float64)
        scores, cells = scores_of(logits.double(), text), gold_cells(gold or [])
        for table, types in (("entities", 2), ("heads", PREDICATES), ("tails", PREDICATES)):
            for t in range(types if gold is not None else 0):
                own = [(s, key in cells) for key, s in scores.items() if key[:2] == (table, t)]
                total = total + torch.log1p(sum((s.exp() for s, right in own if not right), torch.zeros(())))
                total = total + torch.log1p(sum(((-s).exp() for s, right in own if right), torch.zeros(())))
        expected.append(total / 3)
    losses = relations.loss(logits, labels, mask, PREDICATES)
    torch.testing.assert_close(losses.double(), torch.stack(expected), rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(x.sum(), logits)[0] for x in (losses, torch.stack(expected))]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lowest", [-4.0, 0.5, 100.0])
@pytest.mark.parametrize(("cells", "types"), [(2**22, 0), (4, 0), (2**22, 1), (4, 3)])
def test_decoding_equals_enumeration(lowest, cells, types, monkeypatch):
    """types: number of entity types, whose best score replaces the subject's or object's score; 0: no types."""
    monkeypatch.setattr(span_pointer, "CELLS", cells)
    monkeypatch.setattr(relations, "SUBJECTS_PER_WORD", WIDTH)
    logits, _, mask = batch_of()
    typed = 2 * torch.randn(len(SIZES), WIDTH, WIDTH + 2 * types, generator=torch.Generator().manual_seed(5))
    both = torch.cat([logits, typed], 2) if types else logits
    found, probabilities = relations.find(both, mask, PREDICATES, lowest, most=10_000)
    for text, size in enumerate(SIZES):
        scores = scores_of(logits, text)
        spans = [(i, j) for i in range(size) for j in range(i, size)]
        expected = {}
        for (a, b), (c, d), p in product(spans, spans, range(PREDICATES)):
            keys = ("heads", p, a, c), ("tails", p, b, d), ("entities", 0, a, b), ("entities", 1, c, d)
            values = [float(scores[key]) for key in keys[: 2 if types else 4]]
            for i, j in [(a, b), (c, d)] if types else []:
                row, other = typed[text, i], typed[text, j]
                values.append(max(float(row[j] + row[WIDTH + t] + other[WIDTH + types + t]) for t in range(types)))
            lowest_score = min(values)
            if lowest_score > lowest:
                expected[a, b, c, d, p] = lowest_score
        assert found[text] == sorted(expected)
        np.testing.assert_allclose(
            probabilities[text], [1 / (1 + np.exp(-expected[item])) for item in sorted(expected)], rtol=1e-6
        )
    assert lowest == 100.0 or found[0]


def test_head_uses_entity_types_only_if_trained_with_them():
    """An earlier checkpoint has thresholds for the subject and object tables, and lacks the buffer."""
    tasks = {
        "facts": Task("relations", ("likes",), entities="things"),
        "things": Task("spans", ("loc", "per")),
        "alone": Task("relations", ("likes",), entities="others"),  # --label_column excluded the task of the types
    }
    options = HeadOptions(use_crf=False, dropout=0.0, dropout_samples=1, num_shared_layers=0, task_weights={})
    layer = OutputLayer(8, tasks, options).eval()
    hidden, mask = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)), torch.ones(1, 4, dtype=torch.bool)
    inputs = {"attention_mask": mask.long(), "word_mask": mask, "word_starts": torch.arange(4).unsqueeze(0)}
    logits = layer(hidden, inputs)
    in_training = layer.train()(hidden, inputs)
    assert [in_training[name].shape[2] for name in tasks] == [3 * 4 + 4 + 4, 4 + 2 * 2, 3 * 4 + 4 + 4]
    torch.testing.assert_close(in_training["facts"], logits["facts"][:, :, :20], rtol=0, atol=0)
    layer.eval()
    assert [logits[name].shape[2] for name in tasks] == [3 * 4 + 4 + 4 + 4 + 2 * 2, 4 + 2 * 2, 3 * 4 + 4 + 4]
    torch.testing.assert_close(logits["facts"][:, :, -8:], logits["things"], rtol=0, atol=0)
    state = layer.state_dict()
    assert state.pop("heads.facts.reads_entities") == 1 and state.pop("heads.alone.reads_entities") == 0
    old = {
        name: torch.tensor(SINCE[READS_ENTITIES])
        for name in ("heads.facts.reads_entities", "heads.alone.reads_entities")
    }
    layer.load_state_dict(state | old)
    before = layer(hidden, inputs)
    torch.testing.assert_close(before["facts"], logits["facts"][:, :, :20], rtol=0, atol=0)
    assert layer.heads["facts"].decode(before["facts"], inputs) == relations.find(before["facts"], mask, 1)
    again = OutputLayer(8, tasks, options)
    again.load_state_dict(layer.state_dict())
    assert again.heads["facts"].reads_task == ""


class OwnRelationHead(RelationHead):
    """A custom head that calls the functions of engine/model/relations.py on the logits as they are passed to it."""

    def loss(self, logits, labels, inputs):
        return 2 * relations.loss(logits, labels, inputs["word_mask"], len(self.task.labels)).sum()

    def decode(self, logits, inputs):
        return relations.find(logits, inputs["word_mask"], len(self.task.labels), lowest=-6.0)


def test_a_custom_head_does_not_have_to_separate_the_logits_of_the_entities(monkeypatch):
    tasks = {"facts": Task("relations", tuple("abc"), entities="things"), "things": Task("spans", ("loc", "per"))}
    _, labels, mask = batch_of()
    inputs = {"word_mask": mask, "attention_mask": mask.long(), "input_ids": mask.long()}
    inputs |= {"word_starts": torch.arange(WIDTH) * mask}
    spans = torch.tensor([span_pointer.encode([(0, 1, 0)])]).expand(len(mask), -1)
    hidden = torch.randn(*mask.shape, 8, generator=torch.Generator().manual_seed(0))
    outputs, decoded = {}, {}
    for head in (RelationHead, OwnRelationHead):
        monkeypatch.setitem(model_utils.HEADS, "relations", head)
        torch.manual_seed(0)
        model = MyModel(HiddenStates(hidden), 8, tasks, HeadOptions(dropout=0.0))
        for training in (True, False):
            output = model.train(training)(inputs, {"facts": labels, "things": spans})
            outputs[head, training] = output.losses
        decoded[head] = model.output_layer.heads["facts"].decode(output.logits["facts"], inputs)[0]
        assert output.logits["facts"].shape[2] > 3 * WIDTH + 4 + 4 * 3  # the entities' logits are appended
    for head in (RelationHead, OwnRelationHead):
        torch.testing.assert_close(outputs[head, True], outputs[head, False], rtol=0, atol=0)
    assert outputs[OwnRelationHead, True]["facts"] == 2 * outputs[RelationHead, True]["facts"]
    assert all({*few} <= {*many} for few, many in zip(decoded[RelationHead], decoded[OwnRelationHead]))
    assert decoded[OwnRelationHead] != decoded[RelationHead]


class HiddenStates(torch.nn.Module):
    """An encoder with fixed hidden states."""

    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.hidden)


def test_limits_keep_the_best_scores():
    logits, _, mask = batch_of(scale=1.0)
    everything, _ = relations.find(logits, mask, PREDICATES, -100.0, most=10_000)
    found, _ = relations.find(logits, mask, PREDICATES, -100.0, most=1)
    for text, size in enumerate(SIZES):
        # SUBJECTS_PER_WORD limits both sides first
        sides = [{item[i : i + 2] for item in everything[text]} for i in (0, 2)]
        assert all(len(side) <= max(1, 2 * size) for side in sides)
        scores = scores_of(logits, text)
        by_score = [
            (
                float(min(scores["heads", p, a, c], scores["tails", p, b, d], scores["entities", 0, a, b])),
                (a, b, c, d, p),
            )
            for a, b, c, d, p in everything[text]
        ]
        best = [min(s, float(scores["entities", 1, item[2], item[3]])) for s, item in by_score]
        order = sorted(range(len(best)), key=lambda i: -best[i])[:size]
        assert len(found[text]) == min(size, len(best))
        assert found[text] == sorted(by_score[i][1] for i in order)


@pytest.mark.parametrize("dense", [1, 600, 2**25])
def test_dense_scores_and_their_divergence(dense, monkeypatch):
    """The gradient is the same for all texts together, and for one or two at a time."""
    monkeypatch.setattr(distributions, "DENSE", dense)
    (first, labels, mask), (second, _, _) = batch_of(), batch_of(1)
    first.requires_grad_()
    head = RelationHead(8, Task("relations", tuple("abc")))
    order = [("entities", 0), ("entities", 1), *[(table, p) for table in ("heads", "tails") for p in range(PREDICATES)]]
    expected = 0.0
    for text, gold in enumerate(GOLD):
        one, other = scores_of(first, text), scores_of(second, text)
        dense, where = relations.dense(first, PREDICATES)[text].detach(), relations.are_cells(mask, PREDICATES)[text]
        assert where.sum() == len(one)
        for (table, t, i, j), s in one.items():
            assert dense[order.index((table, t)), i, j] == pytest.approx(float(s.detach()), abs=1e-5)
        for key in one if gold is not None else ():
            p, q = (torch.distributions.Bernoulli(logits=side[key].double()) for side in (one, other))
            expected = expected + torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    divergence = head.distribution.divergence(first, second, labels, {"word_mask": mask})
    torch.testing.assert_close(divergence.double(), expected, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(total, first)[0] for total in (divergence, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_relation_scores():
    tasks = {"r": Task("relations", labels=["p", "q"], entities="e"), "e": Task("spans", labels=["A", "B"])}
    gold = {"r": [[[0, 1, 3, 3, "p"], [0, 1, 5, 5, "q"]], None], "e": [[[0, 1, "A"], [3, 3, "B"], [5, 5, "B"]], []]}
    found = {"r": [[[0, 1, 3, 3, "p"], [1, 1, 5, 5, "q"]], []], "e": [[[0, 1, "A"], [3, 3, "A"]], []]}
    scores = score(tasks, gold, found)
    assert scores["r_f1"] == 0.5 and scores["r_relaxed_f1"] == 1.0
    assert scores["r_typed_f1"] == 0.0  # [3, 3] has the wrong type
    assert scores["r_entities_f1"] == pytest.approx(2 * 3 / (3 + 4))
    found["e"][0][1] = [3, 3, "B"]
    assert score(tasks, gold, found)["r_typed_f1"] == 0.5
    assert score({"r": tasks["r"]}, gold, found)["r_f1"] == 0.5
    gold["r"][1], gold["e"][1], found["r"][1] = [], None, [[0, 0, 1, 1, "p"]]  # types of an unlabelled text are unknown
    scores = score(tasks, gold, found)
    assert scores["r_f1"] == pytest.approx(2 / 5) and scores["r_typed_f1"] == 0.5


NAMES = ["Ana", "Ben", "Cleo", "Dan", "Eva", "Finn"]
PLACES = ["Rome", "Oslo", "Lima", "Kyiv"]


def examples_of(seed, number):
    """Generates "X likes Y", "X lives in Z and Y" …: two predicates, several objects, both directions."""
    generator = np.random.default_rng(seed)
    for _ in range(number):
        x, y = (str(name) for name in generator.choice(NAMES, 2, replace=False))
        a, b = (str(name) for name in generator.choice(PLACES, 2, replace=False))
        form = generator.integers(4)
        if form == 0:
            yield [x, "likes", y], [[0, 0, 2, 2, "likes"]]
        elif form == 1:
            yield [x, "and", y, "like", "each", "other"], [[0, 0, 2, 2, "likes"], [2, 2, 0, 0, "likes"]]
        elif form == 2:
            yield [x, "lives", "in", a, "and", b], [[0, 0, 3, 3, "home"], [0, 0, 5, 5, "home"]]
        else:
            yield [x, "was", "here"], []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("relations")
    for split, seed, number in (("train", 0, 200), ("dev", 1, 40), ("test", 2, 40)):
        rows = [{"id": str(i), "tokens": t, "facts": r} for i, (t, r) in enumerate(examples_of(seed, number))]
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"facts": {"type": "relations", "labels": ["home", "likes"], "counts": [100, 100], "unit": "word"}}
    (path / "labels.json").write_text(json.dumps(tasks))
    return path


def test_relations_are_learned(folder, tmp_path):
    flags = ["--data_path", folder, "--output_dir", tmp_path, "--model_version", "r", "--epochs", "12", "--lr", "2e-3"]
    flags += ["--hidden_size", "32", "--num_layers", "1", "--batch_size", "8", "--max_length", "32"]
    flags += ["--do_train", "--do_eval", "--do_predict", "--predict_output", tmp_path / "p.jsonl"]
    main(parse_args(Config, [*map(str, flags)]))
    scores = json.loads((tmp_path / "r/eval.json").read_text())["test"]
    assert scores["facts_f1"] > 0.95
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    gold = [r for _, r in examples_of(2, 40)]
    assert len(rows) == 40
    right = predicted = 0
    for row, items in zip(rows, gold):
        for found in row["facts"]:
            for side in ("subject", "object"):
                assert row["text"][found[side]["start"] : found[side]["end"]] == found[side]["text"]
            assert 0 < found["probability"] <= 1
        texts = row["text"].split()
        expected = {(texts[a], texts[c], p) for a, _, c, _, p in items}
        labelled = {(f["subject"]["text"], f["object"]["text"], f["predicate"]) for f in row["facts"]}
        right, predicted = right + len(expected & labelled), predicted + len(labelled)
    total = sum(map(len, gold))
    assert 2 * right / (predicted + total) == pytest.approx(scores["facts_f1"])
