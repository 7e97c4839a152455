"""Prediction inputs are read by the readers of data_process.py: the same texts, with the same ids, without labels."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import test_any_data
import test_tables
from shapes import SHAPES, Noise, usable, write

from config import Config
from data_process import DataConfig, prepare
from engine.errors import UserError
from engine.run.reading import READING
from preprocess.readers.formats import FORMATS, Format, find_format, read_txt
from preprocess.readers.options import ReadOptions, unescaped
from preprocess.readers.sources import read_texts, texts_of


def of_shape(shape):
    return lambda folder: write(folder, shape.write(usable(shape, shape.examples), Noise())) / shape.source


def of_table(put, columns):
    def into(folder):
        folder.mkdir()
        put(folder, columns)
        return folder / "saved" if (folder / "saved").exists() else folder

    return into


CASES = {  # name: (writes a folder -> what to read, options of data_process.py)
    **{f"shapes: {n}": (of_shape(shape), shape.options) for n, shape in SHAPES.items()},
    **{f"any: {n}": (of_table(w, columns), o) for n, (w, columns, o, _) in test_any_data.TABLE.items()},
}


FEWER = {"max_rows", "drop_unlabelled", "drop_empty"}  # options with which data_process.py drops rows
LEFT_OUT = (
    "shapes: OCNLI",
    "shapes: a folder per class, in splits, GB18030",
)  # rows that data_process.py drops because of their labels


def texts(row, like):
    """Returns the compared values of a row: id, text, and tokens unless only its labels need them."""
    keys = [key for key in ("id", "text", "tokens", "text_pair") if key in row and (key != "tokens" or key in like)]
    return tuple(str(row[key]) for key in keys)


@pytest.mark.parametrize("name", CASES)
def test_texts_are_read_the_same_as_by_data_process(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    put, options = CASES[name]
    source = put(tmp_path / "raw")
    splits, *_ = prepare(DataConfig(input=str(source), output_dir="unused", **options))
    given = {key: unescaped(options[key]) if key == "delimiter" else options[key] for key in READING if key in options}
    read = list(read_texts(source, ReadOptions(**given)))
    found = sorted(texts(row, row) for row in read)
    expected = sorted(texts(row, read[0]) for rows in splits.values() for row in rows)
    assert found == expected or ((options.keys() & FEWER or name in LEFT_OUT) and {*found} > {*expected})


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


ALONE = {  # name: (file, its content, the texts or tokens, options)
    "instructions": (
        "a.jsonl",
        lines({"query": "mood?", "input": "a"}, {"query": "mood?", "input": "b"}),
        ["a", "b"],
        {},
    ),
    "questions": ("a.jsonl", lines({"prompt": "why?"}), ["why?"], {}),
    "dialogues": ("a.jsonl", lines({"messages": [{"role": "user", "content": "why?"}]}), ["why?"], {}),
    "free answers": ("a.jsonl", lines({"prompt": "why?", "completion": "as " * 99}), ["why?"], {}),
    "tasks for Label Studio": ("a.json", json.dumps([{"data": {"review": "a"}}]), ["a"], {}),
    "results of Label Studio": (
        "a.json",
        json.dumps([{"data": {"text": "a"}, "annotations": [{"result": [1]}]}]),
        ["a"],
        {},
    ),
    "DyGIE": ("a.jsonl", lines({"doc_key": "d", "sentences": [["a", "b"], ["c"]]}), [["a", "b"], ["c"]], {}),
    "valueSpan": ("a.jsonl", lines({"userInput": {"text": "a"}}), ["a"], {}),
    "a span outside of its text": (
        "a.jsonl",
        lines({"text": "a", "entities": [{"start": 0, "end": 9, "label": "x"}]}),
        ["a"],
        {},
    ),
    "a span outside of its tokens": ("a.jsonl", lines({"tokens": ["a"], "ner": [[0, 9, "X"]]}), [["a"]], {}),
    "several values": ("a.jsonl", lines({"text": "a", "labels": {"b": 1, "c": "x"}}), ["a"], {}),
    "one column": ("a.csv", "good\nbad\n", ["good", "bad"], {"header": False}),
    "a summary": ("a.csv", "text,summary\na,b\n", ["a"], {}),
    "columns of a .txt": ("a.txt", "text\tlabel\na\t1\n", ["a"], {}),
    "tags of some rows": ("a.csv", "text,label\nto Oslo,O B-x\nfly,\n", [["to", "Oslo"], ["fly"]], {}),
    "tokens": ("a.txt", "to\nOslo\n\nfly\n", [["to", "Oslo"], ["fly"]], {"token_column": "0"}),
    "a tag that is none": ("a.conll", "to O\nOslo\tB-x\n\nfly XX\n", [["to", "Oslo"], ["fly"]], {}),
    "columns that may be tags": ("a.conll", "to VB a\nOslo NN b\n\nfly NN c\n", [["to", "Oslo"], ["fly"]], {}),
    "a column of tags called split": (
        "a.conll",
        "word split\nto O\n\nfly O\n",
        [["to"], ["fly"]],
        {"token_column": "word"},
    ),
    "word/tag as text": ("a.txt", "n/a\n", ["n/a"], {"format": "txt"}),
    "braces": ("a.txt", "{name}, hello\nbye\n", ["{name}, hello", "bye"], {}),
    "a tab": ("a.txt", "a\tb\nc\n", ["a\tb", "c"], {}),
    "empty rows of a table": ("a.csv", "text\n\na\n", ["", "a"], {}),
}


def written_alone(name, tmp_path):
    file, content, expected, options = ALONE[name]
    (tmp_path / file).write_text(content)
    return Config(do_predict=True, predict_file=str(tmp_path / file), **options), expected


@pytest.mark.parametrize("name", ALONE)
def test_texts_need_no_labels_and_invalid_labels_are_ignored(name, tmp_path):
    config, expected = written_alone(name, tmp_path)
    rows = list(texts_of(config).read())
    assert [row.get("tokens", row.get("text")) for row in rows] == expected
    assert [row["id"] for row in rows] == [str(number) for number in range(len(rows))]


def test_the_log_states_how_a_file_was_read_and_that_labels_are_ignored(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        "text;label\n今天天气很好，我们去公园玩;1\n他说的话我不知道是不是真的;0\n".encode("gb18030")
    )
    form, encoding = texts_of(Config(do_predict=True, predict_file=str(tmp_path / "a.csv"))).notes
    assert form == f"read as csv: text = 'text'; from {tmp_path}/a.csv; labels are ignored: label"
    assert encoding == f"{tmp_path}/a.csv: read as GB18030 (--encoding overrides)"
    config, _ = written_alone("a tag that is none", tmp_path)
    (note,) = texts_of(config).notes
    assert note.endswith("labels are ignored: column 1")


@pytest.mark.parametrize(
    "file, content, options, words",
    [
        ("a.txt", "a\tb\nc\td\n", {}, "columns between tabs; add --format txt"),
        ("a.txt", "id,text\n1,a\n", {}, "a table, as row 1 is 'id,text'; add --format txt"),
        ("a.txt", "n/a\n", {}, "word/tag; add --format txt"),
        ("a.txt", "a O\n", {}, "--token_column 0 for tokens"),
        ("a.txt", "show\nme\n\nall\nfares\n", {}, "one token per row .--token_column 0"),
        ("a.pdf", "a", {}, "texts end in .txt, "),
        ("a.xls", "a", {}, "save it as .xlsx"),
        ("a.txt", "a", {"format": "word"}, "--format word is not one of: auto, "),
        ("", "", {"predict_file": "squad", "format": "hf"}, "save_to_disk"),
        ("", "", {}, "contains no data files"),
        ("a.csv", "text\na\n", {"delimiter": '"'}, "cannot be a delimiter"),
    ],
)
def test_ambiguous_texts_raise_a_one_line_error(file, content, options, words, tmp_path):
    if file:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=words) as refused:
        texts_of(Config(**{"do_predict": True, "predict_file": str(tmp_path / file)} | options))
    assert "\n" not in str(refused.value)


def test_archives_and_folders_are_read_in_the_order_of_data_process(tmp_path):
    case = test_tables.table(test_tables.ROWS)
    folder = write(tmp_path / "raw", {"test.csv": case, "train.csv": case})
    rows = [row["text"] for row in read_texts(folder, ReadOptions())]
    assert rows == [text for text, _ in test_tables.ROWS] * 2
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    assert [row["text"] for row in read_texts(Path(archive), ReadOptions())] == rows
    texts_before = texts_of(Config(do_predict=True, predict_file=str(folder)))
    (folder / "test.csv").write_text(case + "another,good\n")
    texts_after = texts_of(Config(do_predict=True, predict_file=str(folder)))
    assert texts_after.sha256 != texts_before.sha256 and texts_after.size == texts_before.size + 1


@pytest.mark.parametrize("labelled", [True, False])
def test_a_custom_format_needs_one_line_and_can_be_detected(labelled, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "mine", Format(read_txt, (".mine",), rows=lambda head: head.first == "MINE 1"))
    for name in ("a.mine", "a.log", "a.txt"):
        path = tmp_path / name
        path.write_text("MINE 1\nsome text\n", encoding="utf-8")
        assert find_format(path, ReadOptions(labelled=labelled)) == "mine"
