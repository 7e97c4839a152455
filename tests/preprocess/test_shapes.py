"""Each shape of data that occurs in practice: a small file is processed, trained on for a step and predicted, with
exact labels and offsets. Unreadable input raises a one-line error that names the flag that would help."""

import builtins
import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace

import datasets
import pytest
from conftest import ROOT, TINY, read_json
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from shapes import (
    EXAMPLES,
    REVIEW,
    SHAPES,
    TYPES,
    Noise,
    book,
    brat,
    conllu,
    csv_of,
    encoded,
    expected,
    in_order,
    lines,
    packed,
    parquet,
    quoted,
    random_examples,
    regions_of,
    usable,
    write,
)

from config import Config
from data_process import DataConfig, prepare, process
from engine.errors import UserError
from engine.task.task import PLACES
from engine.task.words import place_tokens
from main import main
from preprocess.readers import objects, raw_files, tables, token_rows
from preprocess.readers.columns import names_marked
from preprocess.readers.formats import FORMATS, fasttext_labels
from preprocess.readers.options import ReadOptions
from preprocess.readers.sources import read_examples, read_texts

REVIEWS = [(example.text, example.label) for example in EXAMPLES[:12]]
TEXT = [*map(REVIEW, EXAMPLES[:12])]
OPTIONS = ReadOptions(labelled=True)


def as_given(row, keys, kinds):
    """Converts a processed row to the form of the table: spans of its text, or its tokens and tags."""
    result = {key: row[key] for key in keys}
    for name, kind in kinds.items():
        result[name] = row[name]
        places = place_tokens(row["text"], row["tokens"]) if "text" in keys and "tokens" in row else []
        if kind in PLACES and "text" in keys:
            result[name] = [
                [places[place][n % 2] for n, place in enumerate(item)] + [label] for *item, label in row[name]
            ]
        if kind == "tagging" and "text" in keys:
            assert all(row["text"][start:end] == token for (start, end), token in zip(places, row["tokens"]))
            found = get_entities(row[name])
            result[name] = [[places[first][0], places[last][1], label] for label, first, last in found]
    return result


def config_of(shape, source):
    ratios = {"dev_ratio": 0.2, "test_ratio": 0.2}
    return DataConfig(
        input=str(source / shape.source), output_dir=str(source.parent / "data"), **ratios, **shape.options
    )


def processed(name, tmp_path, monkeypatch):
    """Returns (processed folder of a shape, its tasks)."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    shape = SHAPES[name]
    process(config_of(shape, write(tmp_path / "raw", shape.write(usable(shape, shape.examples), Noise()))))
    return tmp_path / "data", read_json(tmp_path / "data/labels.json")


def rows_in(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_the_table_covers_all_common_formats():
    assert len(SHAPES) >= 130


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_read_back_exactly(name, tmp_path, monkeypatch):
    shape = SHAPES[name]
    data, tasks = processed(name, tmp_path, monkeypatch)
    kinds = {task: info["type"] for task, info in tasks.items()}
    found = [
        as_given(row | {"split": path.stem}, shape.of.split(), kinds)
        for path in data.glob("*.jsonl")
        for row in rows_in(path)
    ]
    assert in_order(found) == in_order(expected(shape, usable(shape, shape.examples)))
    assert kinds == {task: TYPES.get(of, kinds[task]) for task, of in shape.gives.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_trains_and_predicts(name, tmp_path, monkeypatch):
    data, tasks = processed(name, tmp_path, monkeypatch)
    if not (data / "test.jsonl").exists():  # a file called train is split into train and dev
        shutil.copy(data / "dev.jsonl", data / "test.jsonl")
    run = dict(data_path=str(data), output_dir=str(tmp_path / "output"), model_version="run")
    output = tmp_path / "p.jsonl"
    main(Config(do_train=True, do_predict=True, predict_output=str(output), **run, **{**TINY, "epochs": 1}))
    gold, predicted = rows_in(data / "test.jsonl"), rows_in(output)
    assert [row["id"] for row in predicted] == [row["id"] for row in gold] and gold
    for row, truth in zip(predicted, gold):
        for task, info in tasks.items():
            if info["type"] == "tagging":
                assert len(row[f"{task}_tags"]) == len(truth["tokens"])
                assert {*row[f"{task}_tags"]} <= {*info["labels"]}
                assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row.get(task) or [])
            elif info["type"] == "regression":
                assert isinstance(row[task], float)
            elif info["type"] == "spans":
                assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row[task])
            elif info["type"] == "relations":
                ends = [one[end] for one in row[task] for end in ("subject", "object")]
                assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in ends)
            else:
                found = [row[task]] if info["type"] == "classification" else row[task]
                assert {*found} <= {*info["labels"]}


# ---- noise -----------------------------------------------------------------------------------------------------------


def noisy(seed, number, name, folder):
    """Returns (rows read, rows expected, noise) for a file of a shape with noise, or raises UserError."""
    rng, shape = random.Random(f"{seed} {number}"), SHAPES[name]
    noise, writer = Noise(rng, shape.options), shape.write
    examples = usable(shape, random_examples(rng, shape))
    if not shape.source and noise("zip", 0.05):
        writer = packed(writer, "zip")
    elif not shape.source and noise("UTF-16", 0.03):
        writer = encoded(writer, "utf-16")
    files = writer(examples, noise)
    splits, tasks, _ = prepare(config_of(shape, write(folder / "raw", files)))
    kinds = {task: info.kind for task, info in tasks.items()}
    rows = [row | {"split": split} for split, rows in splits.items() for row in rows]
    missing = not all({*shape.of.split()} <= row.keys() for row in rows)
    found = rows if missing else [as_given(row, shape.of.split(), kinds) for row in rows]
    return found, expected(shape, examples, noise.names), noise.seen


def check_with_noise(seed, numbers, folder):
    """Counts the outcomes of files with noise: each is read exactly or rejected with a one-line error."""
    names, outcomes = random.Random(seed).sample([*SHAPES], len(SHAPES)), Counter()
    for number in numbers:
        name, place = names[number % len(names)], folder / str(number)
        try:
            found, correct, noise = noisy(seed, number, name, place)
        except UserError as error:
            message = str(error)
            named = any(word in message for word in (str(place), "a.zip", "the task", "--"))
            assert named and "\n" not in message, (name, message)
            outcomes["refused"] += 1
            continue
        finally:
            shutil.rmtree(place, ignore_errors=True)
        assert in_order(found) == in_order(correct), (name, seed, number, noise)
        outcomes["read"] += 1
    return outcomes


def test_files_with_noise_are_read_exactly_or_rejected(tmp_path):
    outcomes = check_with_noise("fast", range(60), tmp_path)
    assert outcomes["read"] > 45, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("seed", os.environ.get("NOISE_SEEDS", "1").split(","))
def test_2000_files_with_noise_are_read_exactly_or_rejected(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    outcomes = check_with_noise(seed, range(2000), tmp_path)
    print(f"seed {seed}: {dict(outcomes)}")
    assert outcomes["read"] > 1700, outcomes


def test_prediction_inputs_can_have_these_shapes(tmp_path):
    write(tmp_path, {"a.xlsx": book(s=[[], ["评论"], *([text] for text, _ in REVIEWS), [None], [None]])})
    write(tmp_path, {"d.xlsx": book(s=[["text", "n"], ["a", 1], [None, None], ["b", 2], [" "], [None]])})
    assert [row["text"] for row in read_texts(tmp_path / "d.xlsx", ReadOptions())][:3] == ["a", "", "b"]
    write(tmp_path, {"b.csv": csv_of([(text, 3) for text, _ in REVIEWS], ["text", "n"], ";")})
    in_gbk = [(text, label) for text, label in REVIEWS if "😀" not in text]
    write(tmp_path, {"c.txt": "".join(f"{text}\n" for text, _ in in_gbk).encode("gb18030")})
    for name, correct in (("a.xlsx", REVIEWS), ("b.csv", REVIEWS), ("c.txt", in_gbk)):
        assert [row["text"] for row in read_texts(tmp_path / name, ReadOptions())] == [text for text, _ in correct]


# ---- what is printed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("number lists", ["cells such as '2,27' could be several labels; if so, add --label_type label=multilabel"]),
        ("labels that lack", ["dropped 4 rows without a label (--drop_unlabelled); first: ", "row 26"]),
        ("the first rows", ["reading only the first 24 rows (--max_rows)"]),
        ("csv in gb18030", ["a.csv: not UTF-8; read as GB18030, which gives '今天的", "--encoding"]),
        ("semicolons", ["detected delimiter ';' (--delimiter overrides)"]),
        (
            "a folder per class, in splits, GB18030",
            ["skipped, because their texts have no class: unsup", "read as GB18030"],
        ),
        (
            "BRAT",
            [
                "discontinuous entities skipped: 1",
                "000.ann, row 3",
                "1 notes, 1 relations of events or discontinuous entities",
            ],
        ),
        (
            "Label Studio, several annotations",
            ["24 texts have several annotations; using the first that was not cancelled"],
        ),
        ("Label Studio, spans", ["ignored relation (24)"]),
        ("local files for datasets", ["train: reading only the first 24 rows", "--max_rows"]),
        ("OCNLI", ["the label '-' means that there is no gold label (1)"]),
        ("Weibo", ["removing the position index after each character"]),
    ],
)
def test_changes_are_printed(name, words, tmp_path, monkeypatch, capsys):
    processed(name, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert all(word in printed for word in words), printed


def export(text, results):
    """Returns a Label Studio export of a text."""
    return json.dumps([{"id": 7, "data": {"text": text}, "annotations": [{"result": results}]}])


HEADLESS = {"a.csv": "".join(f"{b},{quoted(t)}\n" for t, b in REVIEWS)}
NO_BOB = {"start": 0, "end": 3, "text": "Bob", "labels": ["x"]}
PAGE = {"paragraphs": [{"context": "a b", "qas": [{"question": "a?", "answers": [{"text": "a", "answer_start": 0}]}]}]}
REJECTED = {  # name: (files, words of the message, options)
    "titles and numbers": ({"a.txt": "".join(f"{t}\t1\n" for t, _ in REVIEWS)}, ["looks like data", "--no_header"], {}),
    "csv without a header": (HEADLESS, ["--no_header", "row 1"], {}),
    "a number for a name": (
        HEADLESS,
        ["'1' (--text_column)", "--no_header"],
        {"text_column": "1", "label_column": "0"},
    ),
    "equal cells in row 1": ({"a.tsv": "a b\t0\t0\nc d\t1\t0\n"}, ["--no_header"], {}),
    "which is the label": (
        {"a.tsv": "".join(f"{t}\t{b}\t{len(t) % 2}\n" for t, b in REVIEWS)},
        ["--label_column NUMBER", "1 ('go'), 2 ('"],
        {"header": False},
    ),
    "a row of another width": (
        {"a.tsv": "a b\tx\nc d\ty\tz\n" * 5},
        ["row 2: 3 cells, but row 1 has 2"],
        {"header": False},
    ),
    "no such number": (
        {"a.tsv": "a b\tx\n" * 5},
        ["'7' (--label_column)", "0 ('a b'), 1 ("],
        {"header": False, "label_column": "7"},
    ),
    "a separator of its own": ({"a.txt": "text@@label\na@@x\n"}, ["unknown format", "--delimiter"], {}),
    "a quote as separator": ({"a.txt": "text,label\na,x\n"}, ["--delimiter"], {"delimiter": '"'}),
    "columns of 0 and 1": (
        {"a.csv": csv_of([("a", 0, 1), ("b", 1, 0)], ["text", "toxic", "threat"])},
        ["2 columns contain only 0 and 1", "--label_column labels=toxic+threat"],
        {},
    ),
    "columns of 0 and 1 under a name": (
        {"a.csv": csv_of([("a", 0, 1), ("b", 1, 0)], ["text", "toxic", "threat"])},
        ["--label_column topics=toxic+threat"],
        {"label_column": "toxic,threat", "label_type": "topics=multilabel"},
    ),
    "not 0 or 1": (
        {"a.csv": csv_of([("a", 0, 1), ("b", 1, 2)], ["text", "toxic", "threat"])},
        ["row 3", "'threat' is '2'", "0 or 1"],
        {"label_column": "labels=toxic+threat"},
    ),
    "a column to join that is not there": (
        {"a.csv": csv_of([("a", 0, 1)], ["text", "toxic", "threat"])},
        ["'nope'", "--label_column"],
        {"label_column": "labels=toxic+nope"},
    ),
    "empty label": ({"a.csv": "text,label\na,x\nb,\n"}, ["row 3", "empty", "--drop_unlabelled"], {}),
    "null label": ({"a.jsonl": lines([*TEXT, {"text": "a", "label": None}])}, ["row 13", "--drop_unlabelled"], {}),
    "no label": ({"a.jsonl": lines([*TEXT, {"text": "a"}])}, ["row 13", "'label'", "--drop_unlabelled"], {}),
    "NaN in a score": (
        {"a.csv": "text,score\na,1.5\nb,NaN\n"},
        ["row 3", "'NaN'", "--drop_unlabelled"],
        {"label_type": "score=regression"},
    ),
    "none is labelled": ({"a.csv": "text,label\na,\nb,\n"}, ["no examples"], {"drop_unlabelled": True}),
    "several sheets": ({"a.xlsx": book(one=[["a"]], two=[["b"]])}, ["one, two", "--sheet"], {}),
    "no such sheet": ({"a.xlsx": book(one=[["a"]])}, ["'two'", "--sheet", "one"], {"sheet": "two"}),
    "no rows in any sheet": ({"a.xlsx": book(one=[])}, ["all sheets are empty"], {}),
    "no workbook": ({"a.xlsx": b"PK\x03\x04 not a workbook"}, ["not a readable .xlsx", "CSV"], {}),
    "half a workbook": ({"a.xlsx": book(one=[["text", "label"], *REVIEWS])[:-400]}, ["not a readable .xlsx"], {}),
    "old Excel": ({"a.xls": b"\xd0\xcf\x11\xe0"}, [".xls files are not supported", ".xlsx"], {}),
    "SQuAD": ({"train.json": json.dumps({"data": [PAGE]})}, ["questions with answers in a text"], {}),
    "SQuAD in rows": (
        {"a.jsonl": lines([{"question": "a?", "context": "b", "answers": {"text": ["b"]}}])},
        ["questions with answers in a text", "--label_column"],
        {},
    ),
    "relations": (
        {"a.jsonl": lines([{"text": "a b", "head": "a", "tail": "b", "relation": "x"}])},
        ["relations between two given entities", "--label_column"],
        {},
    ),
    "relations in a table": (
        {"a.csv": "sentence,head,tail,relation\na b,a,b,x\n"},
        ["relations between two given entities", "--label_column"],
        {},
    ),
    "triples": (
        {"a.json": lines([{"text": "a", "spo_list": []}] * 2)},
        ["relations in an unknown form, or no relations", "under `relations`"],
        {},
    ),
    "bytes in a table": ({"a.csv": b"text,label\n\x00\x01\xff\xfe\x80,x\n"}, ["--encoding"], {}),
    "a row of no word/pos": ({"a.txt": "我/r 爱/v\n好 人/n\n"}, ["row 2", "found '好'"], {"format": "word_tags"}),
    "CoNLL-U of nine columns": ({"a.conllu": "1\t" + "\t".join("abcdefgh") + "\n"}, ["row 1", "ten columns"], {}),
    "a column that CoNLL-U has not": (conllu()(EXAMPLES, Noise()), ["'pos'", "upos"], {"label_column": "pos"}),
    "BRAT elsewhere": ({"a.txt": "Ann left", "a.ann": "T1\tPER 0 3\tBob\n"}, ["a.ann, row 1", "'Ann'", "'Bob'"], {}),
    "BRAT outside": ({"a.txt": "Ann left", "a.ann": "T1\tPER 5 99\tleft\n"}, ["outside the text"], {}),
    "BRAT without numbers": ({"a.txt": "Ann left", "a.ann": "T1\tPER\tAnn\n"}, ["TYPE START END"], {}),
    "BRAT without a text": (
        {"a.txt": "Ann left", "a.ann": "", "b.ann": "T1\tPER 0 3\tBob\n"},
        ["b.txt is missing"],
        {},
    ),
    "a text that BRAT has not": (
        brat(EXAMPLES, Noise()) | {"dev/new.txt": "nobody looked here"},
        ["new.txt", "--drop_unlabelled"],
        {},
    ),
    "Label Studio elsewhere": (
        {"a.json": export("Ann left", [{"type": "labels", "from_name": "n", "value": NO_BOB}])},
        ["item 1", "'Ann'", "'Bob'"],
        {},
    ),
    "half of Label Studio": (
        {"a.json": export("Ann left", [{"type": "choices", "value": {}}])},
        ["item 1", "Label Studio"],
        {},
    ),
    "a row without a label for fastText": (
        {"a.txt": "__label__x a\n__label__y b\nno label\n"},
        ["row 3", "--drop_unlabelled"],
        {"format": "fasttext"},
    ),
    "a class alone": ({"x/1.txt": "a", "x/2.txt": "b"}, ["no data files"], {}),
    "an empty text in a class": ({"go/1.txt": "a", "say/2.txt": "b", "say/99.txt": ""}, ["99.txt", "empty"], {}),
    "a comma too many": ({"a.json": '[{"text": "a", "label": "x"},\n]'}, ["row 2", "not JSON"], {}),
    "half a list": ({"a.json": '[{"text": "a", "label": "x"},\n{"text": "b'}, ["row 2", "not JSON"], {}),
    "more behind the list": ({"a.json": '[{"text": "a", "label": "x"}]\n]'}, ["row 2", "Extra data"], {}),
    "fewer than none": ({"a.csv": "text,label\na,x\n"}, ["--max_rows"], {"max_rows": -1}),
    "no set of that name": ({"a.csv": ""}, ["cannot load it as a dataset"], {"format": "hf"}),
}


@pytest.mark.parametrize("name", REJECTED)
def test_unreadable_input_raises_a_one_line_error_with_the_flag(name, tmp_path, monkeypatch):
    files, words, options = REJECTED[name]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = write(tmp_path / "raw", files)
    with pytest.raises(UserError) as error:
        process(DataConfig(input=str(source), output_dir=str(tmp_path / "out"), **options))
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words) and len(message) < 900, message
    assert not (tmp_path / "out").exists()


def test_excel_without_its_package_raises_a_one_line_error(tmp_path, monkeypatch):
    importing = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a, **k: importing("no_such" if name == "openpyxl" else name, *a, **k)
    )
    write(tmp_path, {"a.xlsx": book(one=[["text", "label"], *REVIEWS])})
    with pytest.raises(UserError, match=r"openpyxl; run pip install -r requirements-excel\.txt"):
        list(read_examples(tmp_path / "a.xlsx", OPTIONS))


def test_streamed_rows_equal_downloaded_rows(tmp_path, monkeypatch):
    """Reads a dataset of local files with ClassLabel ids: all rows, the first rows, and with a full disk."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = write(tmp_path / "hub", {"train.jsonl": lines(TEXT), "validation.jsonl": lines(TEXT[:5])})
    options = ReadOptions(format="hf", labelled=True)
    whole = list(read_examples(source, options))
    few = list(read_examples(source, replace(options, max_rows=7)))
    assert few == [row for row in whole if row["split"] == "validation"] + [
        row for row in whole if row["split"] == "train"
    ][:7] or few == [row for row in whole if row["split"] == "train"][:7] + [
        row for row in whole if row["split"] == "validation"
    ]
    asked = []
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append(k["streaming"]) or load(*a, **k))
    monkeypatch.setattr(objects.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": -1}))
    assert list(read_examples(source, options)) == whole and asked == [True]


# ---- properties ------------------------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=int(os.environ.get("SOAK_EXAMPLES", 150)), deadline=None, suppress_health_check=list(HealthCheck)
)
any_text = st.text(st.characters(codec="utf-8"), max_size=30)
token = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=6)
tag = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,3}", fullmatch=True)
sentence = st.lists(st.tuples(token, tag), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@FUZZ
@given(st.lists(sentence, min_size=1, max_size=4))
def test_words_and_tags_are_read_exactly_in_each_form(folder, sentences):
    (folder / "a.txt").write_bytes("".join(" ".join(f"{w}/{t}" for w, t in s) + "\n" for s in sentences).encode())
    rows = ["\n".join(f"{n}\t{w}\t_\t{t}" + "\t_" * 6 for n, (w, t) in enumerate(s, 1)) for s in sentences]
    (folder / "b.conllu").write_bytes(("\n\n".join(rows) + "\n").encode())
    for name, read, task in (("a.txt", "word_tags", "tags"), ("b.conllu", "conllu", "upos")):
        found = list(FORMATS[read].read(folder / name, OPTIONS))
        assert [[*zip(row["tokens"], row[task])] for row in found] == sentences


@FUZZ
@given(st.lists(st.text(st.sampled_from("ab[]/ nsv"), max_size=12), max_size=6))
def test_brackets_never_shift_tags(folder, rows):
    """With any brackets, each token gets the tag behind it, or the error names the row."""
    (folder / "a.txt").write_text("\n".join(rows) + "\n")
    try:
        found = list(FORMATS["word_tags"].read(folder / "a.txt", OPTIONS))
    except UserError as error:
        assert "a.txt, row" in str(error)
    else:
        kept = [row for row in rows if row.strip(" ")]
        assert len(found) == len(kept)
        for row, read in zip(kept, found):
            pieces = row.split()
            assert len(pieces) == len(read["tokens"]) == len(read["tags"])
            for piece, word, mark in zip(pieces, read["tokens"], read["tags"]):
                assert f"{word}/{mark}" in piece


@FUZZ
@given(any_text, st.lists(st.tuples(st.integers(-2, 40), st.integers(-2, 40), st.booleans()), max_size=5))
def test_brat_entities_match_the_text_at_their_offsets(folder, text, spans):
    text = text or "x"
    rows = [
        f"T{n}\tX {a} {b}\t{text[max(a, 0) : max(b, 0)] if same else 'other'}" for n, (a, b, same) in enumerate(spans)
    ]
    raw = folder / "brat"
    raw.mkdir(exist_ok=True)
    (raw / "a.txt").write_bytes(text.encode())
    (raw / "a.ann").write_bytes("".join(row.replace("\r", " ").replace("\n", " ") + "\n" for row in rows).encode())
    try:
        (row,) = FORMATS["brat"].read(raw, OPTIONS)
    except UserError as error:
        assert "a.ann, row" in str(error)
    else:
        assert row["text"] == text.removeprefix("\ufeff")
        assert [(a, b) for a, b, _ in row["entities"]] == [(a, b) for a, b, _ in spans]


@FUZZ
@given(
    st.text(st.sampled_from("ab中😀 𝒳é"), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=4),
)
def test_label_studio_offsets_match_the_surface(folder, text, pairs):
    spans = [(a, b, "x") for a, b in pairs if a < b <= len(text)]
    annotations = [
        {"data": {"text": each}, "annotations": regions_of(each, of)} for each, of in [(text, spans), ("a", [])]
    ]
    (folder / "a.json").write_text(json.dumps(annotations), encoding="utf-8")
    if not spans:
        return
    found = list(FORMATS["json"].read(folder / "a.json", OPTIONS))
    for (start, end, _), span in zip(spans, found[0]["ner"]):
        assert found[0]["text"][span["start"] : span["end"]] == text[start:end]
        assert (span["start"], span["end"]) == (start, end) or text.count(text[start:end]) > 1


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), any_text),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(any_text, inner, max_size=2),
    max_leaves=4,
)


class Slowly(io.StringIO):
    """A file that returns a few characters at a time."""

    def read(self, size=-1):
        return super().read(min(size, 3) if size > 0 else size)


@FUZZ
@given(st.lists(json_values, max_size=4), st.sampled_from([None, 1]), st.booleans())
def test_a_list_that_is_read_incrementally_is_complete(values, indent, ascii):
    text = " \n" + json.dumps(values, indent=indent, ensure_ascii=ascii) + "\n"
    for file in (io.StringIO(text), Slowly(text)):
        assert list(objects.JsonList("a.json", file).items()) == values


@FUZZ
@given(st.text(st.sampled_from('[]{},:"a1 \n\\utrue'), max_size=25))
@example("[1:]")
@example("[1.,2]")
def test_a_malformed_list_raises_the_error_of_the_json_module(text):
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    for file in (io.StringIO(text), Slowly(text)):
        try:
            assert list(objects.JsonList("a.json", file).items()) == values
        except UserError as error:
            assert not isinstance(values, list) and "a.json, row" in str(error)


ROWS_OF_SHAPES = ["__label__a b", "a/n b/v", "1\ta", "text;label", "a;b", "[", '{"a": 1}', "", "text\tlabel", "好\t1"]
ROWS_OF_SHAPES += ["[a/n b/v]nt", '"', "1\ta\t_\tN\t_\t_\t0\tr\t_\t_"]


@FUZZ
@given(
    st.sampled_from(["a.txt", "a.csv", "a.tsv", "a.json", "a.conllu", "a.xlsx", "a.ft.gz"]),
    st.sampled_from([{}, {"header": False}, {"delimiter": ";"}, {"drop_unlabelled": True}, {"max_rows": 2}]),
    st.one_of(
        st.binary(max_size=150),
        any_text.map(str.encode),
        st.lists(st.sampled_from(ROWS_OF_SHAPES), max_size=6).map(lambda rows: "\n".join(rows).encode()),
    ),
)
def test_arbitrary_bytes_give_rows_or_a_one_line_error(tmp_path_factory, name, options, content):
    raw = tmp_path_factory.mktemp("bytes")
    (raw / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    try:
        rows = list(read_examples(raw / name, replace(OPTIONS, **options)))
    except UserError as error:
        assert str(raw) in str(error) and "\n" not in str(error)
    else:
        for row in rows:
            tags_of_row = [row[key] for key in ("slots", "tags", "upos", "xpos") if isinstance(row.get(key), list)]
            assert all(len(found) == len(row["tokens"]) for found in tags_of_row if "tokens" in row)


@FUZZ
@given(st.data())
def test_damaged_workbooks_give_rows_or_a_one_line_error(folder, data):
    """Replaces bytes of a file in a workbook and corrects its checksum."""
    whole = zipfile.ZipFile(io.BytesIO(book(one=[["text", "label"], *REVIEWS])))
    damaged = data.draw(st.sampled_from(whole.namelist()))
    with zipfile.ZipFile(folder / "a.xlsx", "w") as packed:
        for name in whole.namelist():
            body = whole.read(name)
            if name == damaged:
                start = data.draw(st.integers(0, len(body)))
                body = body[:start] + data.draw(st.binary(max_size=6)) + body[start + data.draw(st.integers(0, 9)) :]
            packed.writestr(name, body)
    try:
        found = list(read_examples(folder / "a.xlsx", OPTIONS))
    except UserError as error:
        assert "a.xlsx" in str(error) and "\n" not in str(error)
    else:
        assert all({"text", "label"} <= row.keys() for row in found)


def test_helper_functions():
    assert fasttext_labels("__label__a, __label__b text __label__c") == ("text __label__c", ["a", "b"])
    assert fasttext_labels("text  __label__c\t__label__d") == ("text", ["d", "c"])
    assert names_marked(["a", "b"], {"a": "1.0", "b": False}, "here") == ["a"]
    assert names_marked(["a", "b"], {"a": -1, "b": "-1"}, "here") is None


# ---- hostile files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch):
    """Sets limits that the files of a test exceed."""
    for module in (raw_files, tables, objects):
        monkeypatch.setattr(module, "MAX_CHARACTERS", 1000)
    monkeypatch.setattr(objects, "MAX_OBJECT_CHARACTERS", 5000)
    monkeypatch.setattr(token_rows, "MAX_TOKENS", 1000)
    monkeypatch.setattr(tables, "MAX_UNPACKED_BYTES", 20_000)


LONG = "y" * 1200
HOSTILE = {
    "csv": ("a.csv", f"text,label\na,x\n{LONG},y\n", ["row 3", "limit of 1,000 characters"]),
    "csv, a quote without end": ("a.csv", 'text,label\na,x\n"' + "y,\n" * 900, ["row 3", "quote"]),
    "csv, quotes on and on": ("a.csv", "text,label\na,x\n" + '"bb\nb",' * 900, ["row 3", "longer than", "quote"]),
    "tsv": ("a.tsv", f"text\tlabel\na\tx\n{LONG}\ty\n", ["row 3", "limit of 1,000"]),
    "jsonl": ("a.jsonl", lines([*TEXT, {"text": LONG, "label": "x"}]), ["row 13", "limit of 1,000"]),
    "json list": ("a.json", json.dumps([*TEXT, {"text": 9 * LONG, "label": "x"}]), ["row 1", "limit of 1,000"]),
    "parquet": (
        "a.parquet",
        parquet(REVIEW)([*EXAMPLES[:12], EXAMPLES[0]._replace(tokens=[LONG])], Noise())["train-00000-of-00001.parquet"],
        ["row 13", "limit of 1,000"],
    ),
    "json.gz, damaged": ("a.json.gz", gzip.compress(lines(TEXT).encode())[:-20], ["a.json.gz: damaged or not"]),
    "json object": (
        "a.json",
        json.dumps({"data": 9 * TEXT}),
        ["a.json, row 1: a single object of more than 5,000 characters"],
    ),
    "conll": ("a.conll", f"a O\n{LONG} O\n", ["row 2", "longer than"]),
    "conll without an end": ("a.conll", "a O\n" * 1001, ["row 1001", "blank"]),
    "conllu without an end": ("a.conllu", ("1\ta" + "\t_" * 8 + "\n") * 1001, ["row 1001", "blank"]),
    "gz": ("a.jsonl.gz", gzip.compress(b"\0" * 5000), ["row 1", "longer than"]),
    "a text a class": ("x/1.txt", LONG, ["1.txt", "longer than"]),
    "workbook": ("a.xlsx", book(one=[["text", "label"], *(900 * REVIEWS)]), ["20,000 bytes when decompressed"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_rows_without_an_end_raise_a_one_line_error(name, tmp_path, narrow):
    file, body, words = HOSTILE[name]
    write(tmp_path / "raw", {file: body} | ({"z/1.txt": "b"} if "/" in file else {}))
    with pytest.raises(UserError) as error:
        process(DataConfig(input=str(tmp_path / "raw"), output_dir=str(tmp_path / "out")))
    assert all(word in str(error.value) for word in words) and len(str(error.value)) < 400, error.value


def test_ten_thousand_columns_are_read_or_raise_a_short_error(tmp_path, capsys):
    names = [f"column {number}" for number in range(10_000)]
    body = [["text", "label", *names], *([t, b, *["0"] * 10_000] for t, b in REVIEWS)]
    write(tmp_path, {"a.csv": "".join(",".join(map(quoted, row)) + "\n" for row in body)})
    process(DataConfig(input=str(tmp_path / "a.csv"), output_dir=str(tmp_path / "out"), dev_ratio=0.2, test_ratio=0.2))
    found = [row for path in (tmp_path / "out").glob("*.jsonl") for row in rows_in(path)]
    assert in_order(as_given(row, ["text"], {"label": "classification"}) for row in found) == in_order(TEXT)
    assert "(9,988 more)" in capsys.readouterr().out
    write(tmp_path, {"b.csv": "".join(",".join(map(quoted, row[2:])) + "\n" for row in body)})
    with pytest.raises(UserError, match=r"--text_column.*\(9,988 more\)$"):
        process(DataConfig(input=str(tmp_path / "b.csv"), output_dir=str(tmp_path / "out2")))


def test_large_rows_are_not_kept_in_memory_by_the_thousand(tmp_path, monkeypatch):
    """A few rows determine the columns. All rows are read, and the error names a key that first appears later."""
    monkeypatch.setattr(raw_files, "MAX_HEAD_BYTES", 1000)
    write(tmp_path, {"a.jsonl": lines(TEXT), "b.csv": csv_of(REVIEWS, ["text", "label"])})
    write(tmp_path, {"c.jsonl": lines([*TEXT, {"text": "x", "label": "pos", "intent": "y"}])})
    for name in ("a.jsonl", "b.csv"):
        found = list(FORMATS[name[2:]].read(tmp_path / name, OPTIONS))
        assert [(row["text"], row["label"]) for row in found] == REVIEWS
    with pytest.raises(UserError, match="row 13: has the key 'intent', which is not in the first 5 rows"):
        list(FORMATS["jsonl"].read(tmp_path / "c.jsonl", OPTIONS))


# A small process starts data_process.py, because Linux counts the memory of the parent as peak memory of the child
MEASURE = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)"""


def run_measured(flags, folder):
    """Returns (exit code, lines on stderr, peak memory in MB) of data_process.py."""
    command = [sys.executable, "-c", MEASURE, sys.executable, str(ROOT / "data_process.py"), *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines(), int(done.stdout) / 1024


@pytest.fixture(scope="module")
def zeros(tmp_path_factory):
    """Writes a .gz file with one row of 2 GB."""
    path = tmp_path_factory.mktemp("zeros") / "zeros.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(512):
            file.write(b"0" * 2**22)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "txt", "conll", "conllu"])
@pytest.mark.parametrize("start", [b"", b'{"a": "', b'[{"a": "'])
def test_a_compressed_row_of_two_gigabytes_raises_an_error_in_little_memory(suffix, start, zeros, tmp_path):
    with open(tmp_path / f"a.{suffix}.gz", "wb") as file:  # members of a .gz follow each other
        file.write(gzip.compress(start) + zeros.read_bytes())
    code, errors, peak = run_measured(["--input", f"a.{suffix}.gz", "--output_dir", "out"], tmp_path)
    assert code == 2 and len(errors) == 1 and f"a.{suffix}.gz" in errors[0], errors
    assert peak < 2000 and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "conll"])
def test_a_row_of_100_mb_raises_an_error_in_little_memory(suffix, tmp_path):
    body = {"csv": "text,label\na,x\n%s,y\n", "conll": "a O\n%s O\n", "json": '[{"text": "%s", "label": "x"}]'}
    text = body.get(suffix, '{"text": "a", "label": "x"}\n{"text": "%s", "label": "y"}\n') % ("文" * 34_000_000)
    (tmp_path / f"a.{suffix}").write_text(text, encoding="utf-8")
    code, errors, peak = run_measured(["--input", f"a.{suffix}", "--output_dir", "out"], tmp_path)
    assert (
        code == 2
        and len(errors) == 1
        and "longer than the limit of 16,777,216 characters" in errors[0]
        and "row " in errors[0]
    )
    assert peak < 2000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "words"),
    [("all.csv", 200_000, "nearly all different"), ("train.csv", 1_000_000, "--label_column")],
)
def test_a_million_labels_raise_an_error_in_little_memory(name, size, words, tmp_path):
    rng = random.Random(1)
    rows = [f"row {number},n{rng.randrange(10**12)}\n" for number in range(size)]
    write(tmp_path, {f"raw/{name}": "text,label\n" + "".join(rows)})
    write(tmp_path, {"raw/dev.csv": "text,label\na,x\nb,y\n"} if name == "train.csv" else {})
    code, errors, peak = run_measured(["--input", "raw", "--output_dir", "out"], tmp_path)
    assert code == 2 and len(errors) == 1 and "labels" in errors[0] and words in errors[0], errors
    assert peak < 2000
