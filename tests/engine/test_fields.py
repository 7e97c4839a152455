"""Custom inputs (FIELDS of data_loader.py) from raw rows to batches, and rows without a text (--encoder none)."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, read_json
from torch import nn

from config import Config
from data_loader import FIELDS, Field, MyDataset, MyIterableDataLoader, MyIterableDataset
from data_process import DataConfig, process
from engine.data.features import Featurizer
from engine.data.ragged import Ragged
from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.schema import mismatch
from engine.task.task import FIELD
from main import main
from model_utils import HEADS, ClassificationHead, load_checkpoint
from preprocess.schema import load_labels


@pytest.fixture
def fields(monkeypatch):
    """Returns a function that replaces the declared fields, and the classification head with one that reads them
    all."""

    def declare(head=None, **declared):
        FIELDS.clear()
        FIELDS.update(declared)
        if head:
            monkeypatch.setitem(HEADS, "classification", head)

    yield declare
    FIELDS.clear()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def processed(tmp_path, rows, **options):
    write(tmp_path / "a.jsonl", rows)
    process(DataConfig(input=str(tmp_path / "a.jsonl"), output_dir=str(tmp_path / "data"), **options))
    return tmp_path / "data"


def rows_of(values, key="x"):
    """Returns rows of two classes whose custom column has these values."""
    return [{"text": f"row {n}", "label": "ab"[n % 2], key: values[n % len(values)]} for n in range(40)]


def featurizer(data, length=64):
    tokenizer = train_tokenizer(lambda: iter(["row text word a b"] * 2), 60)
    return Featurizer(tokenizer, load_labels(data), length, length // 4)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- values --------------------------------------------------------------------------------------------------------

GOOD = [
    (Field("x"), [0.7, 1.9, -3], torch.float32, ()),
    (Field("x", dtype="int"), [3, "4", 5.0, 2**40], torch.int64, ()),
    (Field("x", dtype="bool"), [True, 0, "1"], torch.bool, ()),
    (Field("x", shape=(1,)), [0.5, 2], torch.float32, (1,)),
    (Field("x", shape=(2, 2)), [[[1, 2], [3, 4]], [[0.5, 0], [0, 9]]], torch.float32, (2, 2)),
    (Field("x", shape=(3,)), ["1 2 3", "[4, 5, 6]"], torch.float32, (3,)),
    (Field("x", missing=-1.0), [None, "", 5], torch.float32, ()),
    (Field("x", dtype="bool", shape=(2,)), [[0, 1], [True, False]], torch.bool, (2,)),
]


@pytest.mark.parametrize(("field", "values", "dtype", "shape"), GOOD)
def test_value_per_text_reaches_the_batch(field, values, dtype, shape, fields, tmp_path):
    fields(x=field)
    data = processed(tmp_path, rows_of(values), label_type="label=classification")
    batch = MyDataset(data / "train.jsonl", featurizer(data)).batch([2, 0, 1]).inputs["x"]
    assert batch.dtype == dtype
    assert batch.shape == (3, *shape)
    for row, found in zip((2, 0, 1), batch):
        raw = values[int(lines_of(data / "train.jsonl")[row]["text"].split()[1]) % len(values)]
        raw = (
            json.loads(raw if raw.startswith("[") else f"[{raw.replace(' ', ',') or -1}]") if type(raw) is str else raw
        )
        expected = np.array(-1.0 if raw is None else raw, dtype=found.numpy().dtype).reshape(shape)
        assert np.array_equal(found.numpy(), expected)


BAD = [
    (Field("x"), float("nan"), "row 3: x is nan, which is not a number"),
    (Field("x"), float("inf"), "row 3: x is inf, which is not finite"),
    (Field("x"), 1e40, r"row 3: x is 1e\+40, but must be at most 1e\+30"),
    (Field("x"), 10**400, "row 3: x is 10+, but must be at most 1e"),
    (Field("x"), "many", "row 3: x is 'many', but must be a number"),
    (Field("x"), None, "row 3: x is empty; fill it, or declare the Field with missing="),
    (Field("x"), [1], r"row 3: x is \[1\], but must be a number"),
    (
        Field("x", dtype="int"),
        0.7,
        "row 3: x contains 0.7, but every value must be an integer .* declare the Field with dtype='float'",
    ),
    (Field("x", dtype="int"), 2**53 + 2, "row 3: x contains .* at most 2"),
    (Field("x", dtype="bool"), 2, "row 3: x contains 2, but every value must be 0 or 1"),
    (Field("x", dtype="name"), 2, "row 3: x is 2, but must be a string"),
    (
        Field("x", shape=(2,)),
        [1, 2, 3],
        r"row 3: x is \[1, 2, 3\], an array of shape \(3,\), but the declared shape is \(2,\)",
    ),
    (Field("x", shape=(2,)), [1, None], r"row 3: x is \[1, None\], which contains a missing or infinite value"),
    (Field("x", shape=(2,)), [1, "a"], r"row 3: x is \[1, 'a'\], but must be a list of numbers"),
    (Field("x", shape=(2, 2)), [[1, 2], [3]], "row 3: .* must be a list of numbers, or nested lists of equal length"),
    (Field("x", shape=(2,), dtype="int"), [1, 0.5], "row 3: x contains 0.5, but every value must be an integer"),
    (Field("x", level="list"), 5, r"row 3: x is 5, but must be a list"),
    (Field("x", level="list"), [[1], [2]], r"row 3: .* the declared shape of each item is \(\)"),
    (Field("x", level="list", dtype="name"), ["a", 1], "row 3: .* must be strings"),
    (Field("x", level="list"), "[1, 2", "row 3: the list '.1, 2' is not valid JSON"),
    (Field(["x", "y"]), 1, "no column 'y' .FIELDS in data_loader.py"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD)
def test_invalid_value_error_names_file_and_row(field, value, message, fields, tmp_path):
    good = np.full(tuple(field.shape), 1).tolist() if field.level == "text" else []
    rows = rows_of([str(good) if field.dtype == "name" and field.level == "text" else good])
    rows[2]["x"] = value
    fields(x=field)
    with pytest.raises(UserError, match=message) as error:
        processed(tmp_path, rows, label_type="label=classification")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (Field(["x", "y"], shape=(3,)), "2 columns have one number each, which does not fit shape"),
        (Field(["x", "x"]), "different column names"),
        (Field("x", shape=(0,)), "only positive integers"),
        (Field("x", dtype="double"), "dtype='double'"),
        (Field("x", dtype="name", standardize=True), "standardize requires float columns"),
        (Field("x", level="list", missing=0.0), "missing requires columns with one number"),
        (Field("x", missing=float("nan")), "missing is nan, which is not a number"),
        (Field("x", missing="none"), "missing is 'none', but must be a number"),
        (Field("x", dtype="int", missing=0.5), "missing contains 0.5, but every value must be an integer"),
        (Field("x", dtype="name", missing=0.0), "missing is 0.0, but must be a string"),
        (Field("x", shape="3"), "only positive integers"),
        (Field(None), "columns must be a column name"),
        ("x", "is not a Field"),
    ],
)
def test_invalid_field_is_a_one_line_error(field, message, fields, tmp_path):
    fields(x=field)
    with pytest.raises(UserError, match=rf"data_loader.py: FIELDS\['x'\]: .*{message}"):
        processed(tmp_path, rows_of([1.0]), label_type="label=classification")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"input_ids": Field("x")}, "not allowed as the name"),
        ({3: Field("x")}, "not allowed as the name"),
        ({"a": Field("x", level="list"), "a_mask": Field("x")}, r"'a_mask'\]: not allowed as the name"),
        ({"attention": Field("x", level="list")}, "its attention_mask would replace the text"),
        ({"word": Field("x", level="spans")}, "its word_mask would replace the text"),
    ],
)
def test_field_cannot_replace_a_standard_input(declared, message, fields, tmp_path):
    fields()
    FIELDS.update(declared)
    with pytest.raises(UserError, match=message):
        processed(tmp_path, rows_of([1.0]), label_type="label=classification")
    assert Field("x", shape=3).shape == (3,)


def test_floats_are_never_truncated():
    with pytest.raises(TypeError):
        Ragged.from_lists([[0.7, 1.9]])


def test_lists_are_padded_and_names_become_ids(fields, tmp_path):
    fields(clicks=Field("clicks", dtype="int", level="list"), colour=Field("colour", dtype="name"))
    rows = [
        row | {"clicks": list(range(n % 4)), "colour": "red blue".split()[n % 2]} for n, row in enumerate(rows_of([0]))
    ]
    write(tmp_path / "new.jsonl", [rows[0] | {"colour": "green"}])
    data = processed(tmp_path, rows)
    assert load_labels(data)["label"].fields["colour"]["names"] == ["blue", "red"]
    train, loaded = lines_of(data / "train.jsonl"), MyDataset(data / "train.jsonl", featurizer(data))
    inputs = loaded.batch(range(8)).inputs
    lengths = [len(row["extras"]["clicks"]) for row in train[:8]]
    assert inputs["clicks"].shape == (8, max(lengths))
    assert inputs["clicks_mask"].sum(1).tolist() == lengths
    for row, found, mask in zip(train, inputs["clicks"], inputs["clicks_mask"]):
        assert found[mask].tolist() == row["extras"]["clicks"]
        assert not found[~mask].any()
    assert inputs["colour"].tolist() == [{"blue": 1, "red": 2}[row["extras"]["colour"]] for row in train[:8]]
    unseen = dict(train[0], extras=train[0]["extras"] | {"colour": "green"})
    assert MyDataset([unseen], featurizer(data)).batch([0]).inputs["colour"].tolist() == [0]


def tagged(n, size):
    words = [f"w{(n + i) % 7}" for i in range(size)]
    return {"tokens": words, "tags": ["B-x" if w == "w3" else "O" for w in words], "pos": [w[1] for w in words]}


@pytest.mark.parametrize("streaming", [False, True])
def test_values_per_word_follow_windows_and_truncation(streaming, fields, tmp_path):
    fields(pos=Field("pos", dtype="name", level="words"), at=Field("at", level="words", shape=(2,)))
    rows = [tagged(n, 3 + 5 * (n % 6)) for n in range(40)]
    data = processed(tmp_path, [row | {"at": [[i, 0.5] for i in range(len(row["tokens"]))]} for row in rows])
    names, train = load_labels(data)["tags"].fields["pos"]["names"], lines_of(data / "train.jsonl")
    reader = featurizer(data, 16)
    if streaming:
        one_row = replace(reader, stride=-1)
        loader = MyIterableDataLoader(MyIterableDataset(data / "train.jsonl", one_row, 8, 64, 1))
        batches = [(batch, batch.rows.tolist(), [0] * len(batch.rows)) for batch in loader]
    else:
        loaded = MyDataset(data / "train.jsonl", reader)
        assert len(loaded.lengths) > len(loaded)
        of_rows = loaded.example_index.tolist(), loaded.columns["first_word"].tolist()
        batches = [(loaded.batch(range(len(loaded.lengths))), *of_rows)]
    for batch, examples, firsts in batches:
        inputs = batch.inputs
        assert inputs["pos"].shape == inputs["word_mask"].shape
        for i, (example, first) in enumerate(zip(examples, firsts)):
            real = int(inputs["word_mask"][i].sum())
            cells = train[example]["extras"]
            expected = [names.index(pos) + 1 for pos in cells["pos"][first : first + real]]
            assert inputs["pos"][i].tolist() == expected + [0] * (inputs["pos"].shape[1] - real)
            assert inputs["at"][i, :real, 0].tolist() == list(range(first, first + real))


def test_wrong_number_of_values_per_word_is_a_one_line_error(fields, tmp_path):
    fields(pos=Field("pos", dtype="name", level="words"))
    rows = [tagged(n, 4) for n in range(40)]
    rows[4]["pos"] = rows[4]["pos"][:3]
    with pytest.raises(UserError, match=r"row 5: pos has 3 values, but the text has 4 words \(FIELDS\['pos'\]\)"):
        processed(tmp_path, rows)
    with pytest.raises(UserError, match="level='words' requires a word-level task"):
        processed(
            tmp_path,
            rows_of([["a", "b"]], "pos") and [dict(row, tokens=["a", "b"]) for row in rows_of([["a", "b"]], "pos")],
        )


def test_statistics_come_from_train_and_constant_columns_are_zero(fields, tmp_path, capsys):
    fields(x=Field(["p", "q"], standardize=True))
    data = processed(tmp_path, [row | {"p": n * 1.5, "q": 0.1} for n, row in enumerate(rows_of([0]))])
    assert "FIELDS['x']: 'q' (constant or empty in train) will be 0 in the input" in capsys.readouterr().out
    p = np.array([row["extras"]["p"] for row in lines_of(data / "train.jsonl")])
    batch = MyDataset(data / "train.jsonl", featurizer(data)).batch(range(len(p))).inputs["x"]
    assert np.allclose(batch[:, 0], (p - p.mean()) / p.std(), atol=1e-6)
    assert not batch[:, 1].any()
    fields(x=Field("q", standardize=True))
    with pytest.raises(UserError, match=r"'q' is always 0.1 in train; leave it out"):
        processed(tmp_path, [row | {"q": 0.1} for row in rows_of([0])])


# ---- declarations that change --------------------------------------------------------------------------------------


def twice(cell):
    return 2 * cell


def thrice(cell):
    return 3 * cell


def broken(cell):
    raise OSError(f"no file {cell}")


def test_changed_parse_function_invalidates_the_cache(fields, tmp_path):
    fields(x=Field("x", read=lambda cell: twice(cell)))
    data = processed(tmp_path, rows_of([1.0, 2.0]))
    values = [row["extras"]["x"] for row in lines_of(data / "train.jsonl")]
    reader = featurizer(data)
    assert pickle.loads(pickle.dumps(reader)).fields == reader.fields  # in a worker
    first = MyDataset(data / "train.jsonl", reader)
    assert first.batch(range(len(values))).inputs["x"].tolist() == [2 * value for value in values]
    fields(x=Field("x", read=thrice))
    with pytest.raises(UserError, match=r"made with a different function of FIELDS\['x'\]"):
        main(Config(do_train=True, data_path=str(data), output_dir=str(tmp_path / "out"), **TINY))
    data = processed(tmp_path, rows_of([1.0, 2.0]))
    second = MyDataset(data / "train.jsonl", featurizer(data))
    assert second.fingerprint != first.fingerprint
    assert second.batch(range(len(values))).inputs["x"].tolist() == [3 * value for value in values]
    fields(x=Field("x", read=broken))
    with pytest.raises(UserError, match=r"row \d+: broken raises OSError: no file 1.0 \(FIELDS\['x'\]\)"):
        data = processed(tmp_path, rows_of([1.0, 1.0]))
        MyDataset(data / "train.jsonl", featurizer(data))


class HeadOfX(ClassificationHead):
    """Reads only the custom input x, (B, 2)."""

    def __init__(self, hidden_size, task):
        super().__init__(2, task)
        self.norm = nn.Identity()

    def forward(self, vectors, inputs):
        return self.linear(inputs["x"])


NO_TEXT = dict(label_column="label", label_type="label=classification", text=False)


def without_text(rows):
    return [{"x": [n % 2 - 0.5, n / 40], "label": row["label"]} for n, row in enumerate(rows)]


def run_of(tmp_path, **options):
    small = {name: value for name, value in TINY.items() if name not in ("hidden_size", "num_layers", "vocab_size")}
    return Config(
        output_dir=str(tmp_path / "out"), model_version="run", encoder="none", report_to="none", **small | options
    )


@pytest.mark.slow
def test_rows_without_text_train_evaluate_predict_and_stream(fields, tmp_path):
    fields(HeadOfX, x=Field("x", shape=(2,)))
    data = processed(tmp_path, without_text(rows_of([0])), **NO_TEXT)
    assert load_labels(data)["label"].no_text
    main(run_of(tmp_path, do_train=True, do_eval=True, do_predict=True, data_path=str(data)))
    folder, best = tmp_path / "out/run", tmp_path / "out/run/checkpoints/best"
    assert not [path.name for path in best.iterdir() if "token" in path.name]
    model, tokenizer, _, _ = load_checkpoint(best)
    assert tokenizer is None
    weight, bias = (value.detach().numpy() for value in model.output_layer.heads["label"].linear.parameters())
    rows = [{"x": [0.5, n / 7]} for n in range(9)]
    write(tmp_path / "new.jsonl", rows)
    (tmp_path / "new.csv").write_text("x\n" + "".join(f'"{row["x"]}"\n' for row in rows))
    for name in ("new.jsonl", "new.csv"):
        predict = dict(predict_file=str(tmp_path / name), predict_output=str(tmp_path / "predictions.jsonl"))
        main(run_of(tmp_path, do_predict=True, **predict))
        predictions = lines_of(tmp_path / "predictions.jsonl")
        logits = np.array([row["x"] for row in rows]) @ weight.T + bias
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert [row["label"] for row in predictions] == ["ab"[i] for i in logits.argmax(1)]
        assert np.allclose([a["label_probability"] for a in predictions], probabilities.max(1), atol=1e-5)
        assert predictions[0]["text"] == "x [0.5, 0.0]"
    (tmp_path / "new.txt").write_text("one text\nanother\n")
    with pytest.raises(UserError, match=r"text 1: no column 'x', which this model needs; .* no columns besides"):
        main(run_of(tmp_path, do_predict=True, predict_file=str(tmp_path / "new.txt")))
    assert "x [" in (folder / "report.html").read_text()
    streamed = run_of(tmp_path, do_train=True, data_path=str(data), streaming=True)
    main(replace(streamed, model_version="streamed"))
    assert (tmp_path / "out/streamed/checkpoints/best").is_dir()


def test_checkpoint_is_rejected_by_code_without_its_field(fields, tmp_path):
    fields(HeadOfX, x=Field("x", shape=(2,)))
    data = processed(tmp_path, without_text(rows_of([0])), **NO_TEXT)
    main(run_of(tmp_path, do_train=True, data_path=str(data)))
    best = tmp_path / "out/run/checkpoints/best"
    fields()
    with pytest.raises(UserError, match=r"best: needs the input 'x', which FIELDS in data_loader.py does not declare"):
        load_checkpoint(best)
    fields(x=Field("x", shape=(2,), dtype="int"))
    with pytest.raises(UserError, match="made with a different dtype of FIELDS"):
        load_checkpoint(best)
    fields(x=Field("x", shape=(2,)), y=Field("y"))
    with pytest.raises(UserError, match=r"has no input 'y', which FIELDS in data_loader.py declares"):
        load_checkpoint(best)


def test_text_options_are_rejected_or_reported_without_text(fields, tmp_path, logged):
    for option in ("pretrain_model_path", "init_from", "special_tokens"):
        with pytest.raises(UserError, match=f"--{option}: --encoder none reads no text"):
            Config(encoder="none", **{option: "some"})
    for option in ("use_fgm", "use_pgd", "use_freelb", "use_smart", "compile"):
        with pytest.raises(UserError, match=f"--{option}: --encoder none reads no text"):
            Config(encoder="none", **{option: True})
    unused = Config(encoder="none", max_length=64, pooling="mean", hidden_size=64).unused_options(["classification"])
    assert [line.split("=")[0] for line in unused] == ["--hidden_size", "--pooling", "--max_length"]
    assert all("has no effect with --encoder none" in line for line in unused)
    fields(x=Field("x", shape=(2,)))
    data = processed(tmp_path, without_text(rows_of([0])), **NO_TEXT)
    with pytest.raises(UserError, match="was made with --no_text, so the encoder has no input; add --encoder none"):
        main(Config(do_train=True, data_path=str(data), output_dir=str(tmp_path / "out"), **TINY))
    with pytest.raises(UserError, match="the head of 'label', ClassificationHead, needs a text; write one that reads"):
        main(run_of(tmp_path, do_train=True, data_path=str(data)))
    fields()
    write(tmp_path / "a.jsonl", rows_of([0]))
    data = processed(tmp_path, rows_of([0]))
    with pytest.raises(UserError, match="has no inputs other than text, which --encoder none needs"):
        main(run_of(tmp_path, do_train=True, data_path=str(data)))


@pytest.mark.slow
def test_text_model_requires_a_text_column(fields, tmp_path):
    fields(x=Field("x"))
    data = processed(tmp_path, rows_of([1.0, 2.0]))
    run = dict(output_dir=str(tmp_path / "out"), model_version="run", report_to="none")
    main(Config(do_train=True, data_path=str(data), **TINY, **run))
    (tmp_path / "new.csv").write_text("remark,x\nhello,1\n")
    with pytest.raises(UserError, match="row 1: no column has a recognised name for texts; add --text_column"):
        main(Config(do_predict=True, predict_file=str(tmp_path / "new.csv"), device="cpu", **run))
    main(Config(do_predict=True, predict_file=str(tmp_path / "new.csv"), text_column="remark", device="cpu", **run))


def test_labels_json_is_unchanged_without_custom_inputs(tmp_path):
    data = processed(tmp_path, rows_of([0]))
    assert read_json(data / "labels.json")["label"].keys() == {"type", "labels", "counts"}


# ---- spans ---------------------------------------------------------------------------------------------------------


def with_mention(n, size, by_words):
    words = [f"word{'ab'[(n + i) % 2]}" for i in range(size)]
    row = {"tokens": words} if by_words else {"text": " ".join(words)}
    first = n % max(1, size - 2)
    begin = len(" ".join(words[:first])) + bool(first)
    in_characters = [begin, begin + len(" ".join(words[first : first + 2]))]
    return row | {"label": "ab"[n % 2], "in_words": [first, first + 2], "in_characters": [in_characters, [0, 1]]}


@pytest.mark.parametrize("by_words", [False, True])
def test_spans_become_tokens(by_words, fields, tmp_path):
    in_words = {"in_words": Field("in_words", level="spans", unit="words")} if by_words else {}
    fields(in_characters=Field("in_characters", level="spans"), **in_words)
    data = processed(tmp_path, [with_mention(n, 3 + n % 20, by_words) for n in range(60)])
    reader, train = featurizer(data, 16), lines_of(data / "train.jsonl")
    inputs = MyDataset(data / "train.jsonl", reader).batch(range(len(train))).inputs
    cut = 0
    for i, row in enumerate(train):
        words = row["tokens"] if by_words else row["text"].split()
        tokens, of_words = ["[CLS]"], []
        for word in words:
            pieces = reader.tokenizer.tokenize(word)
            of_words.append((len(tokens), len(tokens) + len(pieces) - 1))
            tokens += pieces
        first = next(
            n for n in range(len(words)) if len(" ".join(words[:n])) + bool(n) == row["extras"]["in_characters"][0][0]
        )
        expected = [of_words[first][0], of_words[min(first + 1, len(words) - 1)][1]]
        is_whole = expected[1] < min(len(tokens), 15)  # of 16, without [SEP]
        cut += not is_whole
        for name in FIELDS:
            assert bool(inputs[f"{name}_mask"][i, 0]) == is_whole
            assert not is_whole or inputs[name][i, 0].tolist() == expected
    assert cut
    assert inputs["in_characters_mask"][:, 1].all()


def test_spans_become_words_of_their_window(fields, tmp_path):
    fields(at=Field("at", level="spans", unit="words"))
    data = processed(tmp_path, [tagged(n, 3 + 5 * (n % 6)) | {"at": [1, 3]} for n in range(40)])
    loaded = MyDataset(data / "train.jsonl", featurizer(data, 16))
    inputs, firsts = loaded.batch(range(len(loaded.lengths))).inputs, loaded.columns["first_word"].tolist()
    for first, span, mask in zip(firsts, inputs["at"], inputs["at_mask"]):
        assert bool(mask[0]) == (first <= 1)
        assert not mask[0] or span[0].tolist() == [1 - first, 2 - first]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([2, 1], "a span is .begin, end., 0 <= begin < end"),
        ([-1, 1], "0 <= begin < end"),
        ([0, 99], r"the span \[0, 99\], but the text has \d+ characters"),
        ([0, 1.5], "contains 1.5, but every value must be an integer"),
        ([0, 1, 2], "the declared shape of each item is"),
    ],
)
def test_invalid_span_is_a_one_line_error(value, message, fields, tmp_path):
    fields(x=Field("x", level="spans"))
    rows = rows_of([[0, 1]])
    rows[2]["x"] = value
    with pytest.raises(UserError, match=f"row 3: .*{message}"):
        processed(tmp_path, rows, label_type="label=classification")


@pytest.mark.parametrize(
    "field",
    [
        Field("a", dtype="name", missing="characters"),
        Field("a", dtype="bool", missing=False),
        Field("a", missing=0.0),
        Field(["a", "b"], (2, 1), standardize=True, statistics={"a": {"mean": 1.0, "std": 2.0}}),
        Field("a", level="spans", unit="words"),
    ],
)
def test_field_is_restored_from_labels_json(field):
    stored = json.loads(json.dumps(field.to_json()))
    assert not mismatch(stored, FIELD) and Field(**stored) == field


def test_data_without_custom_inputs_is_read_without_torch(tmp_path):
    (tmp_path / "raw.csv").write_text("text,label\n" + "".join(f"film {n},{'ab'[n % 2]}\n" for n in range(30)))
    script = "import sys, data_process as d; d.process(d.DataConfig(input='raw.csv', preview=True))"
    command = [sys.executable, "-c", f"{script}; assert 'torch' not in sys.modules"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0 and b"film" in done.stdout, done.stderr
