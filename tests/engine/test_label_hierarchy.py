"""Label hierarchies (engine/task/hierarchy.py) from raw data to predictions, compared with plain Python."""

import csv
import json
import random
import signal
from collections import Counter

import pytest
import torch
from conftest import read_json
from forks import Forks

import metrics
from data_process import DataConfig, process
from engine.errors import UserError
from engine.task.task import Task, read_tasks
from model_utils import HEADS

PATHS = ["体育##足球##英超", "体育##足球##中超", "体育##网球", "体育", "科技##手机", "科技##其他", "财经##其他", "天气"]
NODES = sorted({"##".join(path.split("##")[:n]) for path in PATHS for n in (1, 2, 3)})
SMALL = "--device=cpu --batch_size=8 --save_steps=1 --log_steps=2 --early_stop_patience=0 --hidden_size=32 --lr=3e-3"
SMALL += " --num_layers=1 --vocab_size=300 --max_length=32 --epochs=4"


def closed(labels):
    """Returns the nodes on the paths of one or several labels, computed independently of engine/task/hierarchy.py."""
    found = set()
    for path in [labels] if isinstance(labels, str) else labels:
        while path:
            found.add(path)
            path = path.rpartition("##")[0]
    return found


def f1_of(pairs):
    """Computes the micro F1 of [(gold set, predicted set)]."""
    right, total = sum(len(g & p) for g, p in pairs), sum(len(g) + len(p) for g, p in pairs)
    return 2 * right / total


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_hierarchical_f1_of_the_paper_example():
    """Kiritchenko et al., 2005, section 3: if G (with ancestors B, C and E) is predicted instead of F (a child of C),
    precision and recall are 1/4 and 1/2."""
    task = Task("multilabel", ["B", "C", "C/E", "C/E/G", "C/F"], hierarchy="/")
    scores = metrics.hierarchy_scores(task, [["C/E/G", "B"]], [["C/F"]])
    assert (scores["hierarchical_precision"], scores["hierarchical_recall"]) == (1 / 2, 1 / 4)
    assert scores["hierarchical_f1"] == pytest.approx(1 / 3)
    assert (scores["level_1_f1"], scores["level_2_f1"], scores["level_3_f1"]) == (pytest.approx(2 / 3), 0, 0)
    assert scores["flat_f1"] == 0


def test_score_names_follow_the_levels_of_train():
    task = Task("classification", PATHS, hierarchy="##")
    names = metrics.score_names({"topic": task})
    assert [name for name in names if "level" in name] == [f"topic_level_{n}_f1" for n in (1, 2, 3)]
    deeper = metrics.scores_of(task, ["体育##足球##英超##曼城"], ["体育##足球##英超"])  # in dev only
    assert set(deeper) == {name.removeprefix("topic_") for name in names if name.startswith("topic_")} - {"loss"}
    assert deeper["hierarchical_f1"] == pytest.approx(6 / 7)


# ---- heads -----------------------------------------------------------------------------------------------------------


def head_of(kind, labels, scale=1.0):
    torch.manual_seed(0)
    head = HEADS[f"hierarchical_{kind}"](6, Task(kind, labels, hierarchy="##"))
    vectors = torch.randn(50, 6) * scale
    own = dict(zip(head.task.nodes, head.linear(vectors).double().T))  # {node: its logits}
    return head, vectors, own


def test_path_logit_is_the_sum_of_its_node_logits():
    head, vectors, own = head_of("classification", sorted(PATHS))
    assert set(own) == set(NODES)
    logits = head(vectors, {})
    for path, column in zip(head.task.labels, logits.T):
        torch.testing.assert_close(column.double(), sum(own[node] for node in closed(path)), rtol=1e-5, atol=1e-5)
    decoded, probabilities = head.decode(logits, {})
    powers = {path: sum(own[node] for node in closed(path)).exp() for path in PATHS}
    best = [max(PATHS, key=lambda path: powers[path][row]) for row in range(50)]
    assert [head.task.labels[index] for index in decoded] == best
    expected = torch.stack([powers[path][row] / sum(powers.values())[row] for row, path in enumerate(best)])
    torch.testing.assert_close(probabilities.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_node_probability_is_the_product_along_its_path(scale):
    head, vectors, own = head_of("multilabel", NODES, scale)
    logits = head(vectors, {})
    products = {node: torch.stack([own[one].sigmoid() for one in closed(node)]).prod(0) for node in NODES}
    expected = torch.stack([products[node] for node in NODES], 1)
    torch.testing.assert_close(logits.double().sigmoid(), expected, rtol=1e-4, atol=1e-6)
    labels = (torch.rand(50, len(NODES)) < 0.5).long()
    head.loss(logits, labels, {}).backward()
    assert torch.isfinite(head.linear.weight.grad).all()
    if scale == 1:
        losses = -torch.where(labels == 1, expected.log(), (1 - expected).log())
        torch.testing.assert_close(head.loss(logits, labels, {}).double(), losses.sum(), rtol=1e-4, atol=1e-4)


def test_child_is_never_predicted_without_its_parent():
    head, vectors, _ = head_of("multilabel", NODES, scale=8.0)
    logits = head(vectors, {}) + torch.randn(50, len(NODES)) / 10  # disturbed like by rounding or averaging
    for threshold in [0.3, 0.5, *head.probabilities(logits)[:3].flatten().tolist()]:
        head.threshold.fill_(threshold)
        for row in head.decode(logits, {})[0]:
            chosen = {node for node, taken in zip(NODES, row) if taken}
            assert chosen == closed(chosen)


# ---- data ------------------------------------------------------------------------------------------------------------


def write_raw(folder, size=160):
    """Writes texts with one topic (`single.csv`) or several (`several.jsonl`); each node has two characters that occur
    only there."""
    rng, signs = random.Random(0), "天地人和山水风云日月星火木土金石田草花鸟鱼虫马牛羊"
    clues = {node: rng.sample(signs, 2) for node in NODES}

    def text(paths):
        return "".join(rng.choice(clues[node]) for path in paths for node in sorted(closed(path)) for _ in range(2))

    with open(folder / "single.csv", "w", encoding="utf-8") as one, open(folder / "several.jsonl", "w") as several:
        one.write("text,topic\n")
        for number in range(size):
            path, paths = rng.choice(PATHS), rng.sample(PATHS, 1 + number % 3)
            one.write(f"{text([path])}{number},{path}\n")
            several.write(json.dumps({"text": f"{text(paths)}{number}", "topics": paths}) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hierarchy")
    write_raw(folder)
    for name, column in (("single.csv", "topic"), ("several.jsonl", "topics")):
        options = dict(label_column=column, label_hierarchy="##")
        process(DataConfig(input=str(folder / name), output_dir=str(folder / column), **options))
    return folder


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_processed_folder_of_a_hierarchy(data, capsys):
    single, several = (read_tasks(data / name / "labels.json") for name in ("topic", "topics"))
    assert single["topic"].labels == tuple(sorted(PATHS)) and single["topic"].hierarchy == "##"
    assert several["topics"].labels == tuple(NODES) and set(several["topics"].nodes) == set(NODES)
    raw = {row["text"]: row["topics"] for row in rows_of(data / "several.jsonl")}
    for row in rows_of(data / "topics/train.jsonl"):
        assert row["topics"] == sorted(closed(raw[row["text"]]))
    process(DataConfig(input=str(data / "topics"), output_dir=str(data / "folds"), n_splits=2))
    assert read_tasks(data / "folds/fold_1/labels.json")["topics"].hierarchy == "##"
    assert "hierarchy, 3 levels of 4, 5, 2 nodes; different nodes with the same name: '其他'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "separator, label, message",
    [
        (">>", "a##b", "occurs in no label of 'topic'"),
        ("##", "a##", "single.csv, row 5: the label topic='a##' has an empty node"),
        ("##", "##a", "has an empty node"),
        ("##", "a####b", "has an empty node"),
        ("##", "a ## b", "has spaces around '##'; if all labels have them, use --label_hierarchy ' ## '"),
        (" > ", "a >", "has an empty node"),
        ("-", "e-mail", "no two labels of the task 'topic' share a parent"),
        (" ", "a", "must not be blank"),
        (",", "a", "contains the separator of labels in a cell"),
    ],
)
def test_ambiguous_hierarchies_are_rejected(tmp_path, separator, label, message):
    plain = ["x-ray", "post", "phone"] if separator == "-" else ["a > x", "a > y"] if ">" in separator else PATHS[:2]
    plain = PATHS[:2] if separator == ">>" else plain
    rows = ["text,topic", *(f"text {n},{plain[n % len(plain)]}" for n in range(3)), f"text x,{label}"]
    rows += [f"more {n},{plain[n % len(plain)]}" for n in range(30)]
    (tmp_path / "single.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        options = dict(label_column="topic", label_hierarchy=separator)
        process(DataConfig(input=str(tmp_path / "single.csv"), output_dir=str(tmp_path / "made"), **options))
    assert message in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "made").exists()


def test_inconsistent_processed_folder_is_rejected(data, tmp_path):
    """Sets without their parents, and a labels.json without a parent, are rejected."""
    (tmp_path / "labels.json").write_text((data / "topics/labels.json").read_text())
    row = {"id": "1", "text": "x", "topics": ["体育##网球"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="'topics' lacks parents of its labels"):
        process(DataConfig(input=str(tmp_path), check=True))
    labels = read_json(tmp_path / "labels.json")
    labels["topics"] = {"type": "multilabel", "labels": ["体育##网球", "天气"], "hierarchy": "##"}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(UserError, match="labels lacks '体育', the parent of other labels"):
        read_tasks(tmp_path / "labels.json")


# ---- runs ------------------------------------------------------------------------------------------------------------


def predictions_of(path, name):
    """Reads the predictions of a file: one label, or a list of labels, per row."""
    with open(path, encoding="utf-8", newline="") as file:
        cells = [row[name] for row in csv.DictReader(file)]
    return [json.loads(cell) if cell.startswith("[") else cell for cell in cells]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topic", "topics"])
def test_hierarchy_end_to_end(name, data, tmp_path, fork_server):
    """Recomputes the scores from predictions.csv; kills and resumes the run, exports it, initialises another run from
    it, distills it."""
    from conftest import ROOT

    base = [*SMALL.split(), f"--data_path={data / name}", "--monitor", f"{name}_hierarchical_f1", "--resume"]
    train = ["main.py", "--do_train", "--do_eval", "--do_predict", *base]
    made, killed = tmp_path / "output/made", tmp_path / "output/killed"
    with Forks(ROOT, tmp_path, fork_server) as forks:
        forks.run([*train, "--model_version=made", "--class_weights=balanced", "--use_rdrop"])
        forks.run(
            [*train, "--model_version=killed", "--class_weights=balanced", "--use_rdrop"],
            code=-signal.SIGKILL,
            kill_at=[str(killed / "checkpoints"), 20],
        )
        forks.run([*train, "--model_version=killed", "--class_weights=balanced", "--use_rdrop"])
        for file in ("predictions.csv", "eval.json", "metrics.jsonl", "checkpoints/best/weights.safetensors"):
            assert (made / file).read_bytes() == (killed / file).read_bytes(), file
        best = ["--checkpoint", str(made / "checkpoints/best")]
        printed = forks.run(["tools.export", *best, "--data_path", str(data / name), "--output_dir", "shipped"])
        size = len(rows_of(data / name / "dev.jsonl"))
        assert f"{size} of {size} dev examples have the same predictions" in printed
        printed = forks.run([*train, "--model_version=next", f"--init_from={made}"])
        assert f"{name}: {len(read_tasks(data / name / 'labels.json')[name].labels)} of" in printed
        averaged = ["tools.ensemble", made, tmp_path / "output/next", "--predict_file", data / name / "test.jsonl"]
        forks.run([*averaged, "--predict_output", "averaged.csv", "--device", "cpu"])
        forks.run([*train, "--model_version=student", f"--teacher={made}"])
    gold = [row[name] for row in rows_of(data / name / "test.jsonl")]
    predicted = predictions_of(made / "predictions.csv", name)
    pairs = [(closed(g), closed(p)) for g, p in zip(gold, predicted)]
    scores = read_json(made / "eval.json")["test"]
    assert scores[f"{name}_hierarchical_f1"] == pytest.approx(f1_of(pairs)) and f1_of(pairs) > 0.6
    for depth in (1, 2, 3):
        level = [tuple({n for n in side if n.count("##") == depth - 1} for side in pair) for pair in pairs]
        assert scores[f"{name}_level_{depth}_f1"] == pytest.approx(f1_of(level))
    if name == "topics":
        for several in (predicted, *(predictions_of(path, name) for path in [tmp_path / "averaged.csv"])):
            assert all(closed(labels) == set(labels) for labels in several)
        assert scores["topics_micro_f1"] == scores["topics_hierarchical_f1"]
    report = read_json(made / "report.json")["test"][name]
    assert {node: row["support"] for node, row in report.items() if row["support"]} == Counter(
        node for g, _ in pairs for node in g
    )
    assert 'padding-left:3em">体育##足球##' in (made / "report.html").read_text(encoding="utf-8")
