"""`data_process.py --shots`: a minimal sample of K rows per class."""

import itertools
import json
import random
from collections import Counter

import pytest
from conftest import read_json

from config import Config
from data_process import DataConfig, process
from engine.errors import UserError
from main import main
from preprocess.shots import choose, parse_shots

COLOURS = ("red", "green", "blue")
WORDS = ("ba", "do", "ki", "lu", "me", "no", "pa", "ru", "se", "ti", "vo", "wa")


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sampled(tmp_path, splits, name="out", **options):
    """Processes {split: rows} with --shots. Returns ({split: rows}, labels.json)."""
    raw = tmp_path / "raw"
    raw.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (raw / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    process(DataConfig(input=str(raw), output_dir=str(tmp_path / name), **options))
    return {split: rows_of(tmp_path / name / f"{split}.jsonl") for split in splits}, read_json(
        tmp_path / name / "labels.json"
    )


def coloured(sizes, start=0):
    """Returns rows of a classification task. colours: number of rows per class"""
    labels = [colour for colour, size in zip(COLOURS, sizes) for _ in range(size)]
    return [
        {"id": f"{label}{start + n}", "text": f"number {start + n}", "label": label} for n, label in enumerate(labels)
    ]


def tagged(number, seed=0):
    """Returns rows with an intent and entities of three types. `day` is rare; `time` can have two words."""
    rng, rows = random.Random(seed), []
    for n in range(number):
        tags = ["O", f"B-{'day' if n % 9 == 0 else rng.choice(['city', 'time', 'city'])}", "O"]
        if rng.random() < 0.4:
            tags += ["B-time", "I-time"]
        tokens = [rng.choice(WORDS) + rng.choice(WORDS) for _ in tags]
        rows.append({"id": str(n), "tokens": tokens, "intent": "ab"[n % 2], "slots": tags})
    return rows


def test_k_rows_of_each_class_are_sampled_and_dev_and_test_are_unchanged(tmp_path, capsys):
    splits = {"train": coloured((30, 3, 12)), "dev": coloured((4, 2, 2), 100), "test": coloured((5, 1, 1), 200)}
    kept, labels = sampled(tmp_path, splits, shots="5", random_seed=3)
    assert Counter(row["label"] for row in kept["train"]) == {"red": 5, "green": 3, "blue": 5}
    assert kept["dev"] == splits["dev"] and kept["test"] == splits["test"]
    assert dict(zip(labels["label"]["labels"], labels["label"]["counts"])) == {"red": 5, "green": 3, "blue": 5}
    printed = capsys.readouterr().out
    assert (
        "--shots: sampled 13 of 45 rows of train for 3 classes, seed 3" in printed
        and "(all are used): green" in printed
    )


def test_the_sample_depends_on_the_seed_but_not_on_the_order_of_the_file(tmp_path):
    """Also tests that each row is drawn about equally often."""
    rows, dev = coloured((8, 8, 8)), coloured((2, 2, 2), 100)
    drawn = Counter()
    for seed in range(60):
        kept, _ = sampled(tmp_path, {"train": rows, "dev": dev}, shots="4", random_seed=seed)
        names = {row["id"] for row in kept["train"]}
        drawn.update(names)
        if seed < 3:
            shuffled = random.Random(seed).sample(rows, len(rows))
            again, _ = sampled(tmp_path, {"train": shuffled, "dev": dev}, "again", shots="4", random_seed=seed)
            assert {row["id"] for row in again["train"]} == names
    assert len(drawn) == 24 and min(drawn.values()) >= 15 and max(drawn.values()) <= 45  # 30 ± 4


def test_copies_of_a_row_are_not_sampled_together(tmp_path):
    rows = [{"text": "the same", "label": "red"}] * 30 + coloured((30, 5, 5))
    for seed in range(5):
        kept, _ = sampled(tmp_path, {"train": rows, "dev": coloured((2, 2, 2), 100)}, shots="10", random_seed=seed)
        texts = Counter(row["text"] for row in kept["train"] if row["label"] == "red")
        assert 1 <= texts["the same"] <= 9


@pytest.mark.parametrize("label_type", ["", "slots=spans"])
def test_each_entity_type_is_in_k_sentences_and_no_sentence_is_redundant(tmp_path, label_type):
    splits = {"train": tagged(90), "dev": tagged(8, 1)}
    kept, labels = sampled(tmp_path, splits, shots="slots=6", label_type=label_type)
    of_id = {row["id"]: {tag[2:] for tag in row["slots"]} - {""} for row in splits["train"]}
    types = [of_id[row["id"]] for row in kept["train"]]
    counts = Counter(itertools.chain(*types))
    assert min(counts.values()) == 6 and set(counts) == {"day", "city", "time"}
    assert all(any(counts[one] == 6 for one in of_row) for of_row in types)
    assert labels["intent"]["labels"] == ["a", "b"]  # all labels of the full data
    assert sum(labels["intent"]["counts"]) == len(kept["train"]) < 18


def test_all_tasks_or_the_named_ones_are_sampled(tmp_path):
    splits = {"train": tagged(90), "dev": tagged(8, 1)}
    kept, _ = sampled(tmp_path, splits, shots="4")
    assert min(Counter(row["intent"] for row in kept["train"]).values()) >= 4
    assert min(Counter(t[2:] for row in kept["train"] for t in set(row["slots"]) if t[0] == "B").values()) >= 4
    kept, _ = sampled(tmp_path, splits, shots="intent=3, slots=1")
    assert min(Counter(row["intent"] for row in kept["train"]).values()) == 3


def test_label_sets_and_the_empty_set(tmp_path):
    rng = random.Random(1)
    rows = [{"text": f"t{n}", "topics": [t for t in "abc" if rng.random() < 0.4]} for n in range(80)]
    kept, _ = sampled(tmp_path, {"train": rows, "dev": rows[:9]}, shots="5", label_column="topics")
    counts = Counter(label for row in kept["train"] for label in row["topics"] or [""])
    assert set(counts) == {"a", "b", "c", ""} and min(counts.values()) == 5
    assert all(any(counts[label] == 5 for label in row["topics"] or [""]) for row in kept["train"])


def test_no_row_of_a_sample_is_redundant():
    """Tests random label sets against all subsets with one row fewer."""
    rng = random.Random(0)
    for _ in range(200):
        classes = [frozenset(("task", c) for c in "abcd" if rng.random() < 0.5) for _ in range(rng.randint(4, 12))]
        k = rng.randint(1, 3)
        chosen = choose(rng.sample(range(len(classes)), len(classes)), classes, {"task": k})
        total = Counter(itertools.chain(*classes))
        for rows in [tuple(chosen), *itertools.combinations(chosen, max(0, len(chosen) - 1))]:
            counts = Counter(itertools.chain(*(classes[row] for row in rows)))
            enough = all(counts[one] >= min(k, total[one]) for one in total)
            assert enough == (len(rows) == len(chosen))


def test_a_processed_folder_is_sampled_and_trains(tmp_path):
    """The sample has the labels of the full data in their order, including a tag that does not occur in it."""
    splits = {"train": tagged(90), "dev": tagged(8, 1)}
    for row in splits["train"][4:6]:
        row["slots"][:3] = ["B-city", "I-city", "O"]
    _, full = sampled(tmp_path, splits)
    for seed in range(9):  # until a sample lacks the tag
        process(DataConfig(input=str(tmp_path / "out"), output_dir=str(tmp_path / "few"), shots="3", random_seed=seed))
        labels = read_json(tmp_path / "few/labels.json")
        assert labels["slots"]["labels"] == full["slots"]["labels"]
        if not (counts := dict(zip(labels["slots"]["labels"], labels["slots"]["counts"])))["I-city"]:
            break
    assert counts["I-city"] == 0 and counts["B-city"] >= 3
    small = dict(hidden_size=32, num_layers=1, epochs=1, device="cpu", class_weights="balanced", use_crf=False)
    main(Config(data_path=str(tmp_path / "few"), output_dir=str(tmp_path / "runs"), do_train=True, **small))


@pytest.mark.parametrize("text", ["0", "x", "8,9", "intent=", "=4", "intent=0", "intent=1.5", "-3", ",", " "])
def test_an_invalid_number_of_rows_raises_an_error(text):
    with pytest.raises(UserError, match="must be a number of rows per class"):
        parse_shots(text)


def test_shots_of_a_task_cannot_be_given_twice():
    with pytest.raises(UserError, match="--shots='a=8, a=3' names a task twice"):
        parse_shots("a=8, a=3")
    assert parse_shots("a=8, b=3,") == {"a": 8, "b": 3}


def test_tasks_without_classes_and_meaningless_options_raise_an_error(tmp_path):
    rows = [{"text": f"t{n}", "score": n / 7, "label": "ab"[n % 2]} for n in range(20)]
    splits = {"train": rows, "dev": rows[:4]}
    with pytest.raises(UserError, match=r"'score' is a regression, which has no classes; .* --shots label=8"):
        sampled(tmp_path, splits, shots="8", label_column="score,label")
    with pytest.raises(UserError, match="has no task 'mood'; its tasks are "):
        sampled(tmp_path, splits, shots="mood=8")
    with pytest.raises(UserError, match="--n_splits makes folds of both"):
        sampled(tmp_path, splits, shots="8", n_splits=2)
    assert not (tmp_path / "out").exists()
    kept, labels = sampled(tmp_path, splits, shots="label=3", label_column="score,label")
    assert labels["score"]["mean"] == pytest.approx(sum(row["score"] for row in kept["train"]) / 6)


def test_a_task_of_a_processed_folder_is_selected_by_its_name(tmp_path):
    rows = [
        {"tokens": ["play", f"song{i}"], "slots": ["O", "B-song"], "intent": "ab"[i % 2], "split": split}
        for split, size in (("train", 12), ("dev", 4))
        for i in range(size)
    ]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    process(DataConfig(input=str(tmp_path / "raw.jsonl"), output_dir=str(tmp_path / "both")))
    options = dict(input=str(tmp_path / "both"), output_dir=str(tmp_path / "one"))
    process(DataConfig(**options, label_column="intent", shots="2"))
    assert list(json.loads((tmp_path / "one/labels.json").read_text())) == ["intent"]
    lines = (tmp_path / "one/train.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert len(kept) == 4 and all(row.keys() == {"id", "text", "intent"} for row in kept)
    assert kept[0]["text"].startswith("play song")
    with pytest.raises(UserError, match="no task 'topic'; its tasks are"):
        process(DataConfig(**options, label_column="topic"))
