"""docs/cookbook/augmentation.md: compares the training texts with texts recomputed from the seed."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_cookbook import RecipeRun, edits_of
from test_trainer import make_trainer

import data_loader
from data_loader import build_loaders
from engine.data.features import Featurizer
from engine.data.tokenizer import load_tokenizer
from engine.errors import UserError
from preprocess.schema import load_labels, training_texts

PAGE = ROOT / "docs/cookbook/augmentation.md"
SYNONYMS = {"please": ["kindly"], "find": ["show", "get"], "need": ["want"], "what": ["which"]}


def page_function():
    """Returns `augment` of the page."""
    ((_, _, _, code),) = edits_of(PAGE)
    names = {}
    exec(code, names)
    return names["augment"]


def expected(example, seed, epoch, row):
    """Returns the (tokens, tags) that the page describes, computed independently."""
    rng, tokens, tags = np.random.default_rng([seed, epoch, row]), [], []
    for position, word in enumerate(example["tokens"]):
        outside = example["slots"][position] == "O"
        if not (outside and rng.random() < 0.1):
            others = SYNONYMS.get(word)
            tokens += [others[rng.integers(len(others))] if others and rng.random() < 0.3 else word]
            tags += [example["slots"][position]]
    return (tokens, tags) if tokens else (example["tokens"], example["slots"])


def rows_of(sample):
    return [json.loads(line) for line in (sample / "train.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def loader(tiny, monkeypatch):
    """Returns loader(function, **options) -> (training loader, its featurizer), with the function as `augment`."""

    def make(function, data_path=None, **options):
        config = tiny(**options)
        folder = data_path or config.data_path
        monkeypatch.setattr(data_loader, "augment", function)
        tokenizer = load_tokenizer(config, lambda: training_texts(f"{folder}/train.jsonl"))
        featurizer = Featurizer.from_config(config, tokenizer, load_labels(folder), [], False)
        return build_loaders(config, folder, featurizer, torch.device("cpu"))[0], featurizer

    return make


def seen(loader, epoch, start=0):
    """Returns {row: (ids, tags)} of an epoch, without padding."""
    loader.set_position(epoch, start)
    found = {}
    for inputs, labels, rows in loader:
        for i, row in enumerate(rows.tolist()):
            ids = inputs["input_ids"][i][inputs["attention_mask"][i].bool()].tolist()
            found[row] = ids, labels["slots"][i][inputs["word_mask"][i]].tolist()
    return found


WAYS = [{}, dict(num_workers=2), dict(streaming=True), dict(streaming=True, num_workers=2, shuffle_buffer=24)]


@pytest.mark.parametrize("options", WAYS)
def test_each_epoch_has_the_texts_of_the_seed(options, loader, sample):
    train_loader, featurizer = loader(page_function(), random_seed=5, **options)
    found, rows = [seen(train_loader, epoch) for epoch in (0, 1, 0)], rows_of(sample)
    assert found[0] == found[2] and sorted(found[0]) == list(range(len(rows)))
    changed = 0
    for epoch in (0, 1):
        for number, row in enumerate(rows):
            tokens, tags = expected(row, 5, epoch, number)
            ids = featurizer.encode([tokens], None)[0].ids
            assert found[epoch][number] == (ids, [featurizer.tasks["slots"].labels.index(tag) for tag in tags])
            changed += tokens != row["tokens"]
    assert changed > 40 and found[0] != found[1]
    half = seen(train_loader, 1, start=4)  # as after a resume in the middle of that epoch
    assert 0 < len(half) < len(rows) and half.items() <= found[1].items()


def test_the_order_of_batches_is_that_without_augmentation(loader):
    orders = []
    for function in (None, page_function()):
        train_loader = loader(function)[0]
        train_loader.set_position(3)
        orders.append([batch.rows.tolist() for batch in train_loader])
    assert orders[0] == orders[1]


def test_windows_come_from_the_augmented_text(loader, sample, tmp_path):
    """With a deterministic function, each window equals the window of a file with the changed texts. A text with fewer
    windows repeats its last one."""
    rows = rows_of(sample)
    for row in rows[:20]:
        row.update(tokens=row["tokens"] * 3, slots=row["slots"] * 3)

    def shorter(example, rng):
        size = max(1, len(example["tokens"]) // 3 * 2)
        return example | {"tokens": example["tokens"][:size], "slots": example["slots"][:size]}

    for name, function in (("plain", lambda row, _: row), ("changed", shorter)):
        (tmp_path / name).mkdir()
        for file in ("labels.json", "dev.jsonl"):
            (tmp_path / name / file).write_bytes((sample / file).read_bytes())
        lines = "".join(json.dumps(function(row, None)) + "\n" for row in rows)
        (tmp_path / name / "train.jsonl").write_text(lines, encoding="utf-8")
    train_loader, featurizer = loader(shorter, tmp_path / "plain", max_length=16)
    found, data = seen(train_loader, 0), train_loader.dataset
    columns = featurizer([shorter(row, None) for row in rows])
    windows = Counter(columns["example_index"].tolist())
    firsts = np.searchsorted(columns["example_index"], np.arange(len(rows)))
    assert len(found) == len(data.lengths) > len(rows) and set(windows.values()) > {1, 2}
    fewer = 0
    for row, (ids, _) in found.items():
        example = int(data.example_index[row])
        window = row - int(data.first_rows[example])
        fewer += window >= windows[example]
        source = firsts[example] + min(window, windows[example] - 1)
        column = columns["input_ids"]
        assert ids == column.values[column.offsets[source] : column.offsets[source + 1]].tolist()
    assert fewer


WRONG = {
    "tags": (lambda row, rng: row | {"tokens": row["tokens"][1:]}, r"tokens, but \d+ tags in 'slots'"),
    "nothing returned": (lambda row, rng: None, "must return an example with id, tokens, intent, slots"),
    "a key": (lambda row, rng: {k: row[k] for k in ("id", "tokens", "slots")}, "must return an example with id, tok"),
    "no words": (lambda row, rng: row | {"tokens": [], "slots": []}, "`tokens` must be a list of one or more"),
    "numbers": (lambda row, rng: row | {"tokens": [1] * len(row["tokens"])}, "`tokens` must be a list of one or more"),
    "an exception": (lambda row, rng: row["tokns"], "it raises KeyError: 'tokns'"),
    "half a character": (lambda row, rng: row | {"tokens": ["\ud800"] * len(row["tokens"])}, "lone surrogate"),
    "a label": (lambda row, rng: row | {"intent": "fly"}, "the label 'fly' of 'intent' is not in labels.json"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("options", [{}, dict(streaming=True)])
def test_an_invalid_augmented_row_raises_a_one_line_error(name, options, loader):
    function, message = WRONG[name]
    train_loader, _ = loader(lambda row, rng: function(row, rng) if row["id"] == "7" else row, **options)
    with pytest.raises(UserError, match=rf"^augment in data_loader.py, row 8: .*{message}[^\n]*$"):
        list(train_loader)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_invalid_augmented_row_ends_the_run_with_a_one_line_error(workers, sample, tmp_path, fork_server):
    recipe = RecipeRun(PAGE, sample, tmp_path, fork_server)
    with open(recipe.copy / "data_loader.py", "a", encoding="utf-8") as file:
        file.write('\n\ndef augment(example, rng):\n    example["tokens"].pop()\n    return example\n')
    with recipe.forks:
        printed = recipe.forks.run([*recipe.train("run"), "--num_workers", workers], code=2)
    (error,) = [line for line in printed.splitlines() if "error" in line]
    assert error.startswith("error: augment in data_loader.py, row ") and "tags in 'slots'" in error
    assert "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_two_processes_share_the_texts_of_one(streaming, sample, tmp_path, fork_server):
    """Each row is augmented once per epoch, in either process, as the seed determines. Processes record their rows."""
    recipe = RecipeRun(PAGE, sample, tmp_path, fork_server)
    with open(recipe.copy / "data_loader.py", "a", encoding="utf-8") as file:
        file.write(
            "\n\nof_page = augment\n\n\ndef augment(example, rng):\n    example = of_page(example, rng)\n"
            '    with open(f"seen-{os.getpid()}.jsonl", "a") as file:\n'
            '        file.write(json.dumps([example["id"], example["tokens"]]) + "\\n")\n    return example\n'
        )
    with recipe.forks:
        recipe.forks.several(2, [*recipe.train("run"), "--batch_size", "4", *streaming], recipe.folder)
    lines = [line for path in recipe.folder.glob("seen-*.jsonl") for line in path.read_text().splitlines()]
    expected_lines = [
        json.dumps([row["id"], expected(row, 666, epoch, number)[0]])
        for epoch in (0, 1)
        for number, row in enumerate(rows_of(sample))
    ]
    assert len(list(recipe.folder.glob("seen-*.jsonl"))) == 2 and Counter(lines) == Counter(expected_lines)


def test_teachers_with_word_labels_are_rejected(tiny, sample, monkeypatch, tmp_path):
    tasks = json.loads((sample / "labels.json").read_text(encoding="utf-8"))
    (tmp_path / "labels.json").write_text(json.dumps({"intent": tasks["intent"]}), encoding="utf-8")
    for name in ("train.jsonl", "dev.jsonl"):
        (tmp_path / name).write_bytes((sample / name).read_bytes())
    folders = {}
    for name, data in (("words", sample), ("texts", tmp_path)):
        teacher = make_trainer(tiny(model_version=name, data_path=str(data), epochs=0))
        teacher.train()
        folders[name] = str(teacher.run_dir)
    monkeypatch.setattr(data_loader, "augment", page_function())
    with pytest.raises(UserError, match="the teachers label each word as it is in the file, but `augment` changes it"):
        make_trainer(tiny(teacher=folders["words"]))
    student = make_trainer(tiny(teacher=folders["texts"], epochs=1))
    student.train()
    assert student.progress.step == 8
