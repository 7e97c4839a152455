"""Data of any size: blocks and processes do not change the output, memory use does not grow with the data, and a
killed process leaves no partial output."""

import csv
import hashlib
import json
import os
import pickle
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.model_selection import train_test_split

import data_process
from data_process import DataConfig, prepare, process
from engine.errors import UserError
from engine.task.words import entities_in
from preprocess.checks import run
from preprocess.checks.base import Check
from preprocess.labels.statistics import collect_labels
from preprocess.readers.formats import FORMATS, Format
from preprocess.splits import draw
from preprocess.storage import arrow, facts, parallel
from preprocess.storage.arrow import Column, Rows, Store
from preprocess.storage.facts import Facts, FirstRows, Sample, Series, frequent, repeats
from preprocess.storage.parallel import in_order

sys.path.insert(0, str(ROOT / "benchmarks"))
import data_size

WORDS = "please bring show find open close start stop the red blue green lamp door box song film room".split()


@pytest.fixture
def small_blocks(monkeypatch):
    """Sets blocks of a few rows in two processes. Skips the tokenizer checks, which are slow."""
    monkeypatch.setattr(arrow, "BLOCK", 40)
    monkeypatch.setattr(facts, "CHUNK", 64)
    monkeypatch.setattr(parallel, "num_processes", lambda: 2)
    monkeypatch.setattr(data_process, "featurizer_for_checks", lambda *_: None)


def text_of(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 8))) + f" {rng.randrange(10**6)}"


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the bytes are those of a simple program ------------------------------------------------------------------------


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def simple_split(rows, strata, seed=666):
    """Splits with lists and scikit-learn: a tenth each for test and dev. Returns {split: rows} in a seeded order."""
    splits = {"train": list(range(len(rows)))}
    for split in ("test", "dev"):
        counts = Counter(strata[i] for i in splits["train"])
        rare = [i for i in splits["train"] if counts[strata[i]] < 2]
        shared = [i for i in splits["train"] if counts[strata[i]] >= 2]
        keys = [strata[i] for i in shared]
        kept, splits[split] = train_test_split(
            shared, test_size=round(len(rows) / 10), random_state=seed, stratify=keys
        )
        splits["train"] = kept + rare
    order = random.Random(seed)
    for split in ("train", "dev", "test"):
        order.shuffle(splits[split])
    return {split: [rows[i] for i in numbers] for split, numbers in splits.items()}


def classification(rng):
    label = rng.choices(["good", "bad", " fair "], [5, 3, 1])[0]
    return label, label.strip(), label.strip()


def multilabel(rng):
    labels = rng.sample(["art", "news", "sport"], rng.randint(1, 2))
    return ",".join(labels), sorted(labels), None


def regression(rng):
    value = round(rng.gauss(3, 1), 3)
    return str(value), value, None


def strata_of(kind, rows):
    """Returns the stratum of a label: the class, the rarest label, or the decile of a number."""
    labels = [row["x"] for row in rows]
    if kind == "multilabel":
        counts = Counter(label for of_row in labels for label in of_row)
        return [min(of_row, key=lambda x: (counts[x], x)) for of_row in labels]
    if kind == "regression":
        ordered = sorted(labels)
        return [str(10 * ordered.index(value) // len(labels)) for value in labels]
    return labels


@pytest.mark.parametrize("kind", [classification, multilabel, regression], ids=lambda kind: kind.__name__)
def test_a_table_is_processed_like_in_a_simple_reference(kind, tmp_path, small_blocks):
    rng = random.Random(0)
    cells, rows = [], []
    for number in range(1000):
        written, label, _ = ("once", "once", None) if number == 77 and kind is classification else kind(rng)
        text = text_of(rng) + ('\n"two" rows' if number % 50 == 0 else "")
        cells.append((text, written))
        rows.append({"id": str(number), "text": text, "x": label})
    with open(tmp_path / "a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "x"), *cells])
    process(
        DataConfig(
            input=str(tmp_path / "a.csv"),
            output_dir=str(tmp_path / "out"),
            label_column="x",
            label_type=f"x={kind.__name__}",
        )
    )
    splits = simple_split(rows, strata_of(kind.__name__, rows))
    for split, expected in splits.items():
        assert (tmp_path / f"out/{split}.jsonl").read_bytes() == as_lines(expected), split
    values = [row["x"] for row in splits["train"]]
    if kind is regression:
        task = {"labels": [], "mean": statistics.fmean(values), "std": statistics.pstdev(values)}
    else:
        counts = Counter(label for value in values for label in (value if isinstance(value, list) else [value]))
        task = {"labels": sorted(counts), "counts": [counts[label] for label in sorted(counts)]}
    task |= {"rows": len(values)} if kind is multilabel else {}
    tasks = {"x": {"type": kind.__name__, **task}}
    assert (tmp_path / "out/labels.json").read_text() == json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"


def test_tags_in_splits_are_processed_like_in_a_simple_reference(tmp_path, small_blocks):
    """Files of splits stay in order, BIOES becomes BIO if another file has BIO, and ids count over all files."""
    rng, number, expected = random.Random(1), 0, {}
    for split, size in (("train", 500), ("dev", 90), ("test", 90)):
        body, expected[split] = "", []
        for _ in range(size):
            tokens = [*rng.choices(WORDS, k=4), str(rng.randrange(10**6))]
            tags = rng.choice([["B-a", "E-a"], ["S-a", "O"], ["O", "S-b"]]) + ["O"] * 3
            bio = [{"E": "I", "S": "B"}.get(tag[0], tag[0]) + tag[1:] for tag in tags]
            expected[split].append({"id": str(number), "tokens": tokens, "slots": bio})
            body += "".join(f"{token} {tag}\n" for token, tag in zip(tokens, bio if split == "dev" else tags)) + "\n"
            number += 1
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / f"raw/{split}.conll").write_text(body)
    process(DataConfig(input=str(tmp_path / "raw"), output_dir=str(tmp_path / "out")))
    for split, rows in expected.items():
        assert (tmp_path / f"out/{split}.jsonl").read_bytes() == as_lines(rows), split


def test_the_sample_is_byte_identical_to_the_version_that_read_all_rows_at_once(tmp_path, small_blocks):
    process(DataConfig(input=str(ROOT / "dataset/sample_raw"), output_dir=str(tmp_path / "out")))
    sums = {name: hashlib.sha256(body).hexdigest()[:16] for name, body in files_of(tmp_path / "out").items()}
    assert sums == SUMS


SUMS = {
    "checks.json": "37517e5f3dc66819",
    "dev.jsonl": "eabab1c64a61a4d8",
    "labels.json": "6cbb309e740b23f3",
    "test.jsonl": "2d61fa00c1595b2d",
    "train.jsonl": "1339d20e87313235",
}


def test_draw_equals_train_test_split_of_scikit_learn():
    rng = random.Random(2)
    for trial in range(60):
        size, strata = rng.randint(20, 400), rng.choice([2, 5, 9, 130])
        codes = np.array([rng.randrange(strata) % rng.randint(1, strata) for _ in range(size)], np.uint8)
        counts = np.bincount(codes)
        rows = np.flatnonzero(counts[codes] >= 2).astype(np.uint32)
        codes, number = codes[rows], rng.randint(1, max(1, len(rows) // 2))
        stratify = codes if min(number, len(rows) - number) >= len(np.unique(codes)) else None
        kept, taken = train_test_split(rows, test_size=number, random_state=trial, stratify=stratify)
        found = draw(rows, stratify, number, trial)
        assert found[0].tolist() == kept.tolist() and found[1].tolist() == taken.tolist()
        kept, taken = train_test_split(np.arange(len(rows)), test_size=number, random_state=trial, stratify=stratify)
        found = draw(len(rows), stratify, number, trial)
        assert found[0].tolist() == kept.tolist() and found[1].tolist() == taken.tolist()


@pytest.mark.filterwarnings("ignore")
def test_entities_equal_those_found_by_seqeval():
    rng, tags = random.Random(3), ["O", "O", "B-a", "I-a", "B-b", "I-b", "E-a", "S-b", "M-a", "B", "I", "O-x", ".", "-"]
    for _ in range(5000):
        sequence = rng.choices(tags, k=rng.randint(0, 8))
        assert entities_in(sequence) == get_entities(sequence), sequence


# ---- blocks, processes, the disk ------------------------------------------------------------------------------------


def faulty(path, rows=600):
    """Writes a file with all kinds of faults: copies across splits, conflicting labels, markup, invalid tags."""
    rng, lines = random.Random(4), []
    for number in range(rows):
        tokens = [*rng.choices(WORDS, k=rng.randint(3, 5)), "hey", "jude"]
        tags = ["O"] * (len(tokens) - 2) + rng.choice([["B-song", "I-song"]] * 30 + [["B-a", "I-b"], ["O", "O"]])
        tokens[0] = rng.choice(
            ["please", "Please", "caf\u00c3\u00a9", "<br>", "\u200bopen", "ｄｏｏｒ", "d\u043eor", ""]
        )
        split = rng.choice(["train", "train", "dev", "test"])
        intent = rng.choice(["a", "b", "A ", "n/a"] if split != "test" else ["a", "c"])
        lines.append({"id": number % 590, "split": split, "tokens": tokens, "intent": intent, "slots": tags})
        if rng.random() < 0.2:
            other = {**rng.choice(lines), "split": rng.choice(["train", "dev"]), "intent": "b"}
            lines.append(other)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_checks_find_the_same_in_blocks_as_in_a_list(tmp_path, small_blocks, monkeypatch):
    faulty(tmp_path / "a.jsonl")
    process(DataConfig(input=str(tmp_path / "a.jsonl"), output_dir=str(tmp_path / "out")))
    in_blocks = json.loads((tmp_path / "out/checks.json").read_text())
    monkeypatch.setattr(arrow, "BLOCK", 100_000)
    splits, tasks, notes = prepare(DataConfig(input=str(tmp_path / "a.jsonl"), check=True))
    whole = run.run_checks(splits, tasks, notes=notes)
    assert [(n.what, n.number, n.rows[:3]) for n in whole] == [(n["what"], n["count"], n["rows"]) for n in in_blocks]
    assert len(whole) >= 15, [note.what for note in whole]


def test_duplicates_equal_a_brute_force_search(tmp_path, small_blocks):
    faulty(tmp_path / "a.jsonl")
    splits, tasks, _ = prepare(DataConfig(input=str(tmp_path / "a.jsonl"), check=True))
    found = {note.what: note.number for note in run.run_checks(splits, tasks)}
    for split, other in (("train", "train"), ("train", "dev"), ("train", "test"), ("dev", "test")):
        texts = [(p, tuple(e["tokens"])) for p in splits for e in splits[p]]
        again = sum((other, text) in texts[:n] if p == split == other else False for n, (p, text) in enumerate(texts))
        shared = sum(p == other and (split, text) in texts[:n] for n, (p, text) in enumerate(texts))
        same_part = f"{split}: texts that repeat an earlier example"
        what = same_part if split == other else f"{other}: texts that also occur in {split}"
        assert found.get(what, 0) == (again if split == other else shared) > 0


class Lamps(Check):
    """A check as a user would write it: one class, over all examples."""

    def notes(self, splits, tasks, labels):
        rows = [e["_where"] for examples in splits.values() for e in examples if "lamp" in e["text"]]
        last = splits["train"][len(splits["train"]) - 1]
        assert splits["train"][-1] == last and splits["train"][-3:][2] == last and len(splits["train"][:7]) == 7
        yield facts.Note("texts about lamps", rows, "all is well")


class Doors(Check):
    """The same check in the pass that writes the data, on blocks of rows in several processes."""

    def __init__(self, context):
        self.rows = Sample()
        self.parts = Counter()

    def look(self, split, start, examples, context):
        for e in examples:
            if "door" in e["text"]:
                self.rows.add(e["_where"])
                self.parts[split] += 1

    def notes(self, splits, tasks, labels):
        assert self.rows == [e["_where"] for rows in splits.values() for e in rows if "door" in e["text"]]
        assert self.parts.total() == self.rows.number and self.parts.keys() == splits.keys()
        yield facts.Note("texts about doors", self.rows, "all is well")


def test_a_custom_check_is_one_class(tmp_path, small_blocks, monkeypatch, capsys):
    rng = random.Random(5)
    texts = [text_of(rng) for _ in range(600)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},{n % 2}\n" for n, text in enumerate(texts)))
    monkeypatch.setattr(run, "CHECKS", [*run.CHECKS, Lamps, Doors])
    process(DataConfig(input=str(tmp_path / "a.csv"), output_dir=str(tmp_path / "out")))
    printed = capsys.readouterr().out
    assert all(f"texts about {word}s ({sum(word in text for text in texts)})" in printed for word in ("lamp", "door"))


def late(path, options):
    """Yields examples whose second label first appears after many rows."""
    for number in range(900):
        row = {
            "_where": f"{path}: {number}",
            "text": f"text {number}",
            "first": "" if number % 3 == 0 else "ab"[number % 2],
        }
        yield row | ({"second": "xy"[number % 2]} if number >= 700 else {})


def test_a_label_that_first_appears_late_applies_to_earlier_rows(tmp_path, small_blocks, monkeypatch):
    """With two tasks, an empty cell means no label; with one, it is an error."""
    monkeypatch.setitem(FORMATS, "late", Format(late))
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="has no label for any task"):
        process(DataConfig(input=str(tmp_path / "a"), output_dir=str(tmp_path / "out"), format="late"))
    monkeypatch.setitem(FORMATS, "late", Format(lambda *a: (e for e in late(*a) if e["first"] or "second" in e)))
    process(DataConfig(input=str(tmp_path / "a"), output_dir=str(tmp_path / "out"), format="late"))
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert {row["second"] for row in rows} == {None, "x", "y"} and {row["first"] for row in rows} == {None, "a", "b"}
    assert all(list(row) == ["id", "text", "first", "second"] for row in rows)


def test_a_store_returns_the_rows_that_were_added(small_blocks):
    rng, values = (
        random.Random(6),
        ["é\ud800", "", 7, 2**70, 1.5, None, True, [1, ["a"]], {"k": [None]}, np.float64(2.5)],
    )
    examples = []
    for number in range(500):
        where = rng.choice(
            [f"f.csv, row {number}", f"f.csv, row {number}", f"g, item {2 * number}", "here", "x 007", f"{number}"]
        )
        keys = rng.choice(["ab", "ab", "abc", "b"])
        examples.append({"_where": where} | {key: rng.choice(values) for key in keys})
    store = Store()
    batches = list(store.fill(map(dict, examples)))
    assert list(store) == [e for batch in batches for e in batch] == examples
    assert [pickle.loads(pickle.dumps(batch)).start for batch in store.batches()] == list(range(0, 500, 40))
    numbers = [rng.randrange(500) for _ in range(300)]
    rows = Rows(store, lambda _, found: found, np.array(numbers, np.uint32))
    assert list(rows) == [examples[number] for number in numbers] and rows[-1] == examples[numbers[-1]]
    for value in (object(), b"bytes", [1, {"k": np.int64(1)}]):
        with pytest.raises(UserError, match="here: a value that JSON cannot store"):
            store.append({"_where": "here", "x": value})


def test_repeats_and_frequent_values_of_a_column(monkeypatch):
    monkeypatch.setattr(facts, "CHUNK", 16)
    rng = random.Random(7)
    values = [rng.randrange(-60, 60) for _ in range(200)]
    column = Column(np.int64, values=values)
    firsts, rows = repeats(column)
    expected = sorted((values.index(v), place) for place, v in enumerate(values) if values.count(v) > 1)
    assert list(zip(firsts.tolist(), rows.tolist())) == expected
    assert frequent(column, 4) == {v: n for v, n in Counter(values).items() if n >= 4}


class OddFacts(Facts):
    def __init__(self):
        self.rows = {"odd": Sample()}
        self.counts = Counter()
        self.first = FirstRows()
        self.numbers = Series(None)


def test_facts_of_blocks_are_merged():
    merged = OddFacts()
    for start in range(0, 9000, 1000):
        block = OddFacts()
        for number in range(start, start + 1000):
            block.rows["odd"].add(f"row {number}")
            block.counts[number % 2] += 1
            block.first.setdefault(number % 2, f"row {number}")
        block.numbers.of_block = np.arange(start, start + 1000)
        merged.merge(pickle.loads(pickle.dumps(block)))
    assert merged.rows["odd"].number == 9000 and len(merged.rows["odd"]) == Sample.most
    assert merged.rows["odd"][:2] == ["row 0", "row 1"] and merged.counts == {0: 4500, 1: 4500}
    assert merged.first == {0: "row 0", 1: "row 1"}
    assert merged.numbers.column.read().tolist() == list(range(9000))


def square(number):
    if number == 13:
        raise UserError("thirteen")
    return number * number, os.getpid()


def test_results_and_errors_of_several_processes_are_in_order(small_blocks):
    results = list(in_order(square, range(12)))
    assert [result for result, _ in results] == [n * n for n in range(12)] and os.getpid() not in {
        p for _, p in results
    }
    with pytest.raises(UserError, match="thirteen"):
        list(in_order(square, range(50)))
    with pytest.raises(UserError, match="was killed"):
        list(in_order(lambda number: os.kill(os.getpid(), signal.SIGKILL), range(50)))


def test_a_failing_check_leaves_the_folder_unchanged(tmp_path, small_blocks, monkeypatch):
    rows = "".join(f"text number {n},{n % 2}\n" for n in range(400))
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    options = DataConfig(input=str(tmp_path / "a.csv"), output_dir=str(tmp_path / "out"))
    process(options)
    before = files_of(tmp_path)
    (tmp_path / "a.csv").write_text("text,label\n" + rows + "one more,1\n")
    before["a.csv"] = (tmp_path / "a.csv").read_bytes()
    monkeypatch.setattr(Check, "notes", lambda *_: 1 / 0)
    monkeypatch.setattr(run, "CHECKS", [*run.CHECKS, Check])
    with pytest.raises(ZeroDivisionError):
        process(options)
    assert files_of(tmp_path) == before
    monkeypatch.undo()
    (tmp_path / "out/.cache").mkdir()
    (tmp_path / "out/.cache/tokens").write_text("kept")
    process(options)
    after = files_of(tmp_path)
    assert after.keys() == {*before, "out/.cache/tokens"} and after["out/train.jsonl"] != before["out/train.jsonl"]


def test_labels_are_counted_in_blocks_as_in_a_list(small_blocks):
    splits, tasks, _ = prepare(DataConfig(input=str(ROOT / "dataset/sample_raw"), check=True))
    counts = Counter(tag for e in splits["train"] for tag in e["slots"])
    assert dict(zip(tasks["slots"].labels, tasks["slots"].counts)) == counts
    assert collect_labels(splits, {name: task.type for name, task in tasks.items()}) == tasks


def test_a_lone_surrogate_is_found_anywhere(tmp_path):
    for value in (
        '{"tokens": ["\\ud800"], "x": "a"}',
        '{"text": "a", "x": "\\ud800"}',
        '{"text": "a", "x": ["b", "\\ud800"]}',
    ):
        (tmp_path / "a.jsonl").write_text(value + "\n")
        with pytest.raises(UserError, match="row 1: contains a lone surrogate"):
            process(DataConfig(input=str(tmp_path / "a.jsonl"), output_dir=str(tmp_path / "out"), label_column="x"))


# ---- size and kills -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_memory_does_not_grow_with_the_text(name, tmp_path):
    """Uses more rows than the limit of the tokenizer checks."""
    measured = []
    for rows in (60_000, 200_000):
        path = tmp_path / f"rows.{name}"
        data_size.WRITERS[name](path, rows)
        measured.append(data_size.measure(ROOT, path, tmp_path / "out"))
        assert measured[-1]["disk"] <= path.stat().st_size + rows * (len(str(path)) + 70)  # each row has its source
    assert measured[1]["memory"] < 1.25 * measured[0]["memory"], measured
    assert measured[1]["largest"] < 1.25 * measured[0]["largest"], measured


def processes_of(folder):
    """Returns the processes that are still running of a command started in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            found += [path.parent.name] * (os.readlink(path) == str(folder))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_process_killed_at_any_time_leaves_the_old_folder_or_none(tmp_path, background):
    """It leaves no process behind. The next run deletes temporary files next to the folder."""
    rng = random.Random(8)
    for name, rows in (("old", 1000), ("new", 10_000)):
        data_size.write_csv(tmp_path / f"{name}.csv", rows)

    def process_file(name):
        return background("data_process.py", "--output_dir", tmp_path / "out", "--input", tmp_path / name)

    began = time.monotonic()
    assert process_file("new.csv").wait() == 0
    seconds, new = time.monotonic() - began, files_of(tmp_path / "out")
    assert process_file("old.csv").wait() == 0
    old = files_of(tmp_path / "out")
    outcomes = Counter()
    for _ in range(8):
        process = process_file("new.csv")
        try:
            process.wait(rng.uniform(0.2, 1.1) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        folder = files_of(tmp_path / "out") if (tmp_path / "out").exists() else None
        assert folder in (old, new, None)
        outcomes["none" if folder is None else "old" if folder == old else "new"] += 1
        deadline = time.monotonic() + 20
        while processes_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes_of(tmp_path)
        if folder == new:
            assert process_file("old.csv").wait() == 0
    assert process_file("new.csv").wait() == 0
    assert files_of(tmp_path / "out") == new and outcomes["old"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "old.csv", "out"]
