"""Small files of each format, tag scheme and task: processed, trained for two epochs, evaluated and predicted."""

import csv
import gzip
import io
import json
import random
import shutil
from collections import Counter
from statistics import fmean, pstdev

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import regex
from conftest import TINY, read_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

import metrics
from config import Config
from data_loader import MyDataset
from data_process import DataConfig, process
from engine.data.features import Featurizer
from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.task import tags
from engine.task.text import split_text
from engine.task.words import place_tokens
from main import main
from preprocess.labels.kinds import KINDS
from preprocess.labels.schemes import convert_tags
from preprocess.labels.spans import read_all_spans, read_spans, spans_to_tags, split_at_boundaries, tokenize_spans
from preprocess.schema import load_labels

rng = random.Random(0)
SONGS, ROOMS = (
    ["Hey Jude", "Yesterday 😀", "七里香", "Café del Mar", "Let It Be"],
    ["kitchen", "living room", "客厅", "Büro"],
)


def example(number):
    """Returns a text with two entities and a label of each kind."""
    song, room = rng.choice(SONGS), rng.choice(ROOMS)
    pattern = rng.choice(["play {} in the {}", "  stop {}  in {} ", "{}，在{}播放！", "{}\u3000{} ok?"])
    text = pattern.format(song, room)
    spans = [
        (text.index(song), text.index(song) + len(song), "song"),
        (text.rindex(room), text.rindex(room) + len(room), "room"),
    ]
    return {
        "id": str(number),
        "text": text,
        "spans": spans,
        "mood": "good" if "play" in text else "bad",
        "topics": sorted(rng.sample(["music", "home", "news"], rng.randint(0, 2))),
        "score": round(rng.gauss(3, 1), 2),
    }


ROWS = [example(number) for number in range(36)]
SPLITS = {"train": ROWS[:20], "dev": ROWS[20:28], "test": ROWS[28:]}


def words_and_tags(row, scheme="bio"):
    pieces = split_at_boundaries(
        split_text(row["text"], "word"), {place for span in row["spans"] for place in span[:2]}
    )
    tags = spans_to_tags(row["spans"], pieces)
    if scheme == "iob1":
        tags = [
            f"I{tag[1:]}" if tag[0] == "B" and (i == 0 or tags[i - 1][2:] != tag[2:]) else tag
            for i, tag in enumerate(tags)
        ]
    elif scheme != "bio":
        tags = convert_tags(tags, "bio", "bioes")
        letters = {"bmes": {"I": "M"}, "bilou": {"E": "L", "S": "U"}}.get(scheme, {})
        tags = [letters.get(tag[0], tag[0]) + tag[1:] for tag in tags]
    return [token for token, _, _ in pieces], tags


# ---- writers of each format: (folder, columns) -> nothing ------------------------------------------------------------


def table(delimiter, name, encoding="utf-8", pack=lambda raw: raw):
    def write(folder, columns):
        for split, rows in SPLITS.items():
            out = io.StringIO()
            writer = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
            writer.writerow(columns)
            for row in rows:
                writer.writerow(
                    [",".join(cell) if isinstance(cell := value_of(row, column), list) else cell for column in columns]
                )
            body = out.getvalue()
            if encoding == "gb18030":
                body = body.encode(encoding)
            (folder / f"{split}{name}").write_bytes(pack(body if isinstance(body, bytes) else body.encode(encoding)))

    return write


def value_of(row, column):
    if column == "tokens":
        return words_and_tags(row)[0]
    if column == "ner":
        return words_and_tags(row)[1]
    if column == "entities":
        return [{"start": start, "end": end, "label": label} for start, end, label in row["spans"]]
    if column == "doccano":
        return [list(span) for span in row["spans"]]
    if column == "cluener":
        found = {}
        for start, end, label in row["spans"]:
            found.setdefault(label, {}).setdefault(row["text"][start:end], []).append([start, end - 1])
        return found
    return row[{"text_pair": "text", "label": "mood"}.get(column, column)]


def objects(name, whole=False):
    def write(folder, columns):
        for split, rows in SPLITS.items():
            found = [
                {
                    column.replace("doccano", "label").replace("cluener", "label"): value_of(row, column)
                    for column in columns
                }
                for row in rows
            ]
            text = (
                json.dumps({"data": found}, ensure_ascii=False)
                if whole
                else "\n".join(json.dumps(one, ensure_ascii=False) for one in found)
            )
            (folder / f"{split}{name}").write_bytes((gzip.compress if name.endswith(".gz") else bytes)(text.encode()))

    return write


def parquet(folder, columns):
    for split, rows in SPLITS.items():
        pq.write_table(
            pa.table({column: [value_of(row, column) for row in rows] for column in columns}),
            folder / f"{split}-00000-of-00001.parquet",
        )


def hugging_face(folder, columns):
    """Writes a DatasetDict with ClassLabel features by save_to_disk."""
    found = {}
    for split, rows in SPLITS.items():
        one = datasets.Dataset.from_list([{column: value_of(row, column) for column in columns} for row in rows])
        for column in columns:
            if column == "label":
                one = (
                    one.class_encode_column(column)
                    if split == "nowhere"
                    else one.cast_column(column, datasets.ClassLabel(names=["bad", "good"]))
                )
            if column == "ner":
                tags = sorted({tag for row in ROWS for tag in words_and_tags(row)[1]})
                one = one.cast_column(column, datasets.List(datasets.ClassLabel(names=tags)))
        found["validation" if split == "dev" else split] = one
    datasets.DatasetDict(found).save_to_disk(str(folder / "saved"))


def conll(scheme):
    def write(folder, columns):
        for split, rows in SPLITS.items():
            blocks = ("".join(f"{token} X {tag}\n" for token, tag in zip(*words_and_tags(row, scheme))) for row in rows)
            (folder / f"{split}.{scheme}.txt").write_text("-DOCSTART- X O\n\n" + "\n".join(blocks), encoding="utf-8")

    return write


def seq(folder, columns):
    for split, rows in SPLITS.items():
        (folder / split).mkdir()
        found = [words_and_tags(row) for row in rows]
        for name, lines in (
            ("seq.in", [" ".join(tokens) for tokens, _ in found]),
            ("seq.out", [" ".join(row_tags) for _, row_tags in found]),
            ("label", [row["mood"] for row in rows]),
        ):
            (folder / split / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


TABLE = {  # format, scheme or task: (writer, columns, options of data_process, type of each task)
    "csv": (table(",", ".csv"), ["text", "label"], {}, {"label": "classification"}),
    "csv with BOM": (table(",", ".csv", "utf-8-sig"), ["text", "label"], {}, {"label": "classification"}),
    "csv UTF-16": (table(",", ".csv", "utf-16"), ["text", "label"], {}, {"label": "classification"}),
    "csv GB18030": (
        table(",", ".csv", "gb18030"),
        ["text", "label"],
        {"encoding": "gb18030"},
        {"label": "classification"},
    ),
    "csv.gz": (table(",", ".csv.gz", pack=gzip.compress), ["text", "label"], {}, {"label": "classification"}),
    "tsv pairs": (table("\t", ".tsv"), ["text", "text_pair", "label"], {}, {"label": "classification"}),
    "csv multilabel": (
        table(",", ".csv"),
        ["text", "topics"],
        {"label_column": "topics", "label_type": "topics=multilabel"},
        {"topics": "multilabel"},
    ),
    "csv regression": (table(",", ".csv"), ["text", "score"], {}, {"score": "regression"}),
    "csv three tasks": (
        table(",", ".csv"),
        ["text", "mood", "topics", "score"],
        {"label_column": "mood,topics,score", "label_type": "topics=multilabel"},
        {"mood": "classification", "topics": "multilabel", "score": "regression"},
    ),
    "jsonl multilabel": (objects(".jsonl"), ["text", "topics"], {"label_column": "topics"}, {"topics": "multilabel"}),
    "jsonl.gz regression": (objects(".jsonl.gz"), ["text", "score"], {}, {"score": "regression"}),
    "jsonl spans": (objects(".jsonl"), ["text", "entities"], {}, {"entities": "tagging"}),
    "jsonl spans in BIOES": (objects(".jsonl"), ["text", "entities"], {"tag_scheme": "bioes"}, {"entities": "tagging"}),
    "jsonl character spans": (objects(".jsonl"), ["text", "entities"], {"unit": "character"}, {"entities": "tagging"}),
    "doccano": (objects(".jsonl"), ["text", "doccano"], {}, {"label": "tagging"}),
    "CLUENER": (objects(".json"), ["text", "cluener"], {}, {"label": "tagging"}),
    "json": (
        objects(".json", whole=True),
        ["text", "mood", "entities"],
        {"label_column": "mood,entities"},
        {"mood": "classification", "entities": "tagging"},
    ),
    "jsonl tokens": (objects(".jsonl"), ["tokens", "ner", "label"], {}, {"label": "classification", "ner": "tagging"}),
    "parquet": (parquet, ["text", "label"], {}, {"label": "classification"}),
    "parquet tokens": (parquet, ["tokens", "ner"], {}, {"ner": "tagging"}),
    "parquet spans": (
        parquet,
        ["text", "entities", "score"],
        {"label_column": "entities,score"},
        {"entities": "tagging", "score": "regression"},
    ),
    "Hugging Face": (hugging_face, ["text", "label"], {}, {"label": "classification"}),
    "Hugging Face tokens": (
        hugging_face,
        ["tokens", "ner", "topics"],
        {"label_column": "ner,topics", "label_type": "topics=multilabel"},
        {"ner": "tagging", "topics": "multilabel"},
    ),
    "seq": (seq, [], {}, {"intent": "classification", "slots": "tagging"}),
    **{
        f"conll {scheme}": (conll(scheme), [], {}, {"slots": "tagging"})
        for scheme in ("bio", "iob1", "bioes", "bmes", "bilou")
    },
    "conll bio as BIOES": (conll("bio"), [], {"tag_scheme": "bioes"}, {"slots": "tagging"}),
    "conll bmes as BIO": (conll("bmes"), [], {"tag_scheme": "bio"}, {"slots": "tagging"}),
}


@pytest.mark.parametrize("name", TABLE)
def test_raw_to_predictions(name, tmp_path):
    write, columns, options, types = TABLE[name]
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw", columns)
    source = tmp_path / "raw/saved" if (tmp_path / "raw/saved").exists() else tmp_path / "raw"
    process(DataConfig(input=str(source), output_dir=str(tmp_path / "data"), **options))
    tasks = read_json(tmp_path / "data/labels.json")
    assert {name: task["type"] for name, task in tasks.items()} == types
    gold = [json.loads(line) for line in (tmp_path / "data/test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(gold) == 8
    crf = "tagging" in types.values()
    output = {
        "output_dir": str(tmp_path / "output"),
        "model_version": "run",
        "predict_output": str(tmp_path / "p.jsonl"),
    }
    main(
        Config(
            do_train=True,
            do_eval=True,
            do_predict=True,
            data_path=str(tmp_path / "data"),
            **{**TINY, **output, "use_crf": crf},
        )
    )
    scores = read_json(tmp_path / "output/run/eval.json")
    predicted = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in predicted] == [row["id"] for row in gold]
    for task, kind in types.items():
        main_score = {"classification": "accuracy", "multilabel": "micro_f1", "regression": "mae", "tagging": "f1"}[
            kind
        ]
        assert f"{task}_{main_score}" in scores["dev"] and f"{task}_{main_score}" in scores["test"]
        for row, truth, raw in zip(predicted, gold, SPLITS["test"]):
            if kind == "tagging":
                assert len(row[f"{task}_tags"]) == len(truth["tokens"])
                assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row[task])
                offsets = place_tokens(row["text"], truth["tokens"])
                spans = [
                    (offsets[first][0], offsets[last][1], label) for label, first, last in get_entities(truth[task])
                ]
                if "text" in truth:  # the gold entities and the text are unchanged
                    assert row["text"] == raw["text"] and spans == raw["spans"]
                assert [row["text"][start:end].replace(" ", "") for start, end, _ in spans] == [
                    "".join(raw["text"][start:end].split()) for start, end, _ in raw["spans"]
                ]
            elif kind == "classification":
                assert truth[task] == raw["mood"] and row[task] in tasks[task]["labels"]
            elif kind == "multilabel":
                assert truth[task] == raw["topics"] and set(row[task]) <= set(tasks[task]["labels"])
            else:
                assert truth[task] == raw["score"] and isinstance(row[task], float)


# ---- schemes and spans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["bio", "iob1", "bioes", "bmes", "bilou"])
def test_schemes_are_recognised_and_contain_the_same_entities(scheme):
    written = [words_and_tags(row, scheme)[1] for row in ROWS]
    written.append({"bio": ["B-a", "B-a", "I-a"], "iob1": ["I-a", "B-a", "I-a"]}.get(scheme, ["S-a", "B-a", "E-a"]))
    if scheme == "bilou":
        written[-1] = ["U-a", "B-a", "L-a"]
    assert tags.find_scheme(written) == scheme
    plain = [*(words_and_tags(row)[1] for row in ROWS), ["B-a", "B-a", "I-a"]]
    assert [convert_tags(tags, scheme, "bio") for tags in written] == plain
    ends = [convert_tags(tags, scheme, "bioes") for tags in written]
    assert [get_entities(tags) for tags in ends] == [get_entities(tags) for tags in plain]
    assert tags.find_scheme(ends) == "bioes" and tags.find_scheme([["NN", "VB"]]) is None


SPANS = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def texts_with_spans(draw):
    text = draw(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)) + draw(
        st.sampled_from(["a", "é", "中", "😀", "ｗ"])
    )
    borders = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8, unique=True)))
    return text, [(start, end, draw(st.sampled_from("xy"))) for start, end in zip(borders[::2], borders[1::2])]


@SPANS
@given(texts_with_spans(), st.sampled_from(["word", "character"]))
def test_spans_survive_the_conversion_to_tags(given_text, unit):
    text, spans = given_text
    example = {
        "_where": "here",
        "text": text,
        "slots": [{"start": start, "end": end, "label": label} for start, end, label in spans],
    }
    read_all_spans([example], ["slots"])
    notes = tokenize_spans([example], ["slots"], unit)
    offsets = place_tokens(text, example["tokens"])
    assert offsets is not None and all(
        text[start:end] == token for (start, end), token in zip(offsets, example["tokens"])
    )
    found = [(offsets[first][0], offsets[last][1], label) for label, first, last in get_entities(example["slots"])]

    def stripped(start, end):  # whitespace at the boundary of an entity belongs to no token
        inside = [place for place in range(start, end) if regex.match(r"\S", text[place])]
        return (inside[0], inside[-1] + 1) if inside else None

    expected = [(*stripped(start, end), label) for start, end, label in spans if stripped(start, end)]
    assert found == expected
    assert len(expected) == len(spans) or any("whitespace" in note.what and note.rows for note in notes)


def test_overlapping_spans_are_reported(tmp_path, capsys):
    spans = [{"start": 0, "end": 8, "label": "song"}, {"start": 4, "end": 8, "label": "person"}]
    rows = [
        {"text": f"Hey Jude {number}", "entities": spans, "split": split}
        for number in range(3)
        for split in ("train", "dev")
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flat = dict(label_type="entities=tagging")
    process(DataConfig(input=str(tmp_path / "a.jsonl"), output_dir=str(tmp_path / "out"), **flat))
    printed = capsys.readouterr().out
    assert "spans overlap (6)" in printed and "row 1: 'Jude' (person)" in printed
    assert json.loads((tmp_path / "out/train.jsonl").read_text().splitlines()[0])["entities"] == [
        "B-song",
        "I-song",
        "O",
    ]


@pytest.mark.parametrize(
    ("entities", "words"),
    [
        ([{"start": 0, "end": 99, "label": "x"}], "outside the text"),
        ([{"start": 3, "end": 3, "label": "x"}], "outside the text"),
        ([{"start": "0", "end": 3, "label": "x"}], "needs a start"),
        ([{"start": 0, "end": 3}], "needs a start"),
        ([[0, 3]], "needs a start"),
        ([{"start": 0, "end": 3, "label": "x", "text": "Jude"}], "but the data says 'Jude'"),
        ({"song": {"Jude": [[0, 2]]}}, "but the data says 'Jude'"),
        ({"song": 3}, "must be"),
    ],
)
def test_invalid_spans_raise_a_one_line_error(entities, words, tmp_path, command):
    good = {"text": "Hey Jude", "entities": [{"start": 0, "end": 8, "label": "song", "text": "Hey Jude"}]}
    (tmp_path / "a.jsonl").write_text(
        json.dumps(good) + "\n" + json.dumps({"text": "Hey Jude", "entities": entities}) + "\n"
    )
    done = command("data_process.py", "--input", "a.jsonl", "--output_dir", "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr and "row 2" in done.stderr, (
        done.stderr
    )
    assert not (tmp_path / "out").exists()


def test_inclusive_ends_are_recognised_by_the_surface():
    assert read_spans([{"start": 4, "end": 7, "label": "x", "text": "Jude"}], "Hey Jude", "here") == [(4, 8, "x")]
    assert read_spans({"x": {"Jude": [[4, 7]]}}, "Hey Jude", "here") == [(4, 8, "x")]


# ---- missing labels, folds -------------------------------------------------------------------------------------------


def test_rows_may_lack_the_labels_of_some_tasks(tmp_path):
    rows = []
    for number in range(40):
        row = {
            "text": f"text {number}",
            "split": ["train", "train", "dev", "test"][number % 4],
            "mood": ["good", "bad"][number % 2 == 0 or number % 5 == 0],
        }
        row |= {"topics": ["a", "b"][: number % 3], "score": number / 4 + 0.5}
        rows.append(
            {
                key: value
                for key, value in row.items()
                if key in ("text", "split") or (number % 3, key) not in ((0, "mood"), (1, "topics"), (2, "score"))
            }
        )
    rows[1]["mood"] = None
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [rows[0] | {"mood": "bad", "score": None}, *rows])))
    options = {"label_column": "mood,topics,score", "label_type": "topics=multilabel,score=regression"}
    process(DataConfig(input=str(tmp_path / "a.jsonl"), output_dir=str(tmp_path / "data"), **options))
    dev = [json.loads(line) for line in (tmp_path / "data/dev.jsonl").read_text().splitlines()]
    assert all(any(row[name] is None for row in dev) for name in ("mood", "topics", "score"))
    config = Config(
        do_train=True,
        do_eval=True,
        data_path=str(tmp_path / "data"),
        **TINY,
        output_dir=str(tmp_path / "output"),
        model_version="run",
    )
    main(config)
    scores, report = read_json(tmp_path / "output/run/eval.json"), read_json(tmp_path / "output/run/report.json")
    known = [row for row in dev if row["mood"] is not None]
    assert sum(label["support"] for label in report["dev"]["mood"].values()) == len(known) < len(dev)
    tasks = load_labels(tmp_path / "data")
    mains = [scores["dev"][f"{name}_{metrics.MAIN[metrics.scoring_kind(task)]}"] for name, task in tasks.items()]
    assert scores["dev"]["mean_score"] == pytest.approx(sum(mains) / len(mains))


@pytest.mark.parametrize("group", [False, True])
def test_folds_are_a_partition_and_stratified(group, tmp_path):
    lines = ["text,label,who"] + [f"text {n},{'abc'[(n * n) % 3]},u{n // 5}" for n in range(60)] + ["rare,z,u0"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    more = {"group_column": "who"} if group else {}
    process(
        DataConfig(
            input=str(tmp_path / "a.csv"),
            output_dir=str(tmp_path / "data"),
            label_column="label",
            n_splits=4,
            test_ratio=0,
            **more,
        )
    )
    whole, tables, counts = sorted(line.split(",")[0] for line in lines[1:]), [], []
    for fold in range(4):
        train, dev = (
            [json.loads(x)["text"] for x in (tmp_path / f"data/fold_{fold}/{split}.jsonl").read_text().splitlines()]
            for split in ("train", "dev")
        )
        assert sorted(train + dev) == whole and read_json(tmp_path / f"data/fold_{fold}/labels.json") == read_json(
            tmp_path / "data/labels.json"
        )
        tables.append(dev)
        groups = [
            {lines[1:][n].split(",")[2] for n in range(61) if lines[1:][n].split(",")[0] in split}
            for split in (train, dev)
        ]
        assert not group or not groups[0] & groups[1]
        label_of = dict(line.split(",")[:2] for line in lines[1:])
        counts.append(Counter(label_of[text] for text in dev))
    assert sorted(text for dev in tables for text in dev) == whole  # each row is in one dev split
    assert group or all(len({count[label] for count in counts}) == 1 for label in "ab")  # 20 and 40 in four folds


@pytest.mark.slow
def test_cross_validation(tmp_path, command, sample):
    process(
        DataConfig(
            input=str(sample.parent / "tiny"), output_dir=str(tmp_path / "data"), n_splits=3, format="auto", check=False
        )
    )
    flags = [
        "--data_path",
        "data",
        "--epochs",
        1,
        "--hidden_size",
        32,
        "--num_layers",
        1,
        "--device",
        "cpu",
        "--use_crf",
    ]
    done = command("tools.cross_validate", *flags)
    assert done.returncode == 0, done.stderr
    result = read_json(tmp_path / "output/data-folds/folds.json")
    for split in ("dev", "test"):
        for name, value in result["mean"][split].items():
            values = [fold[split][name] for fold in result["folds"]]
            mean = sum(values) / 3
            assert value == pytest.approx(mean)
            assert result["std"][split][name] == pytest.approx(
                (sum((v - mean) ** 2 for v in values) / 2) ** 0.5, abs=1e-12
            )
    with open(tmp_path / "output/data-folds/out_of_fold.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pool = [
        json.loads(x)
        for split in ("train", "dev")
        for x in (tmp_path / f"data/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert sorted(row["id"] for row in rows) == sorted(row["id"] for row in pool)
    for fold in range(3):  # each row is predicted by the model that was not trained on it
        seen = {
            json.loads(x)["id"]
            for x in (tmp_path / f"data/fold_{fold}/train.jsonl").read_text(encoding="utf-8").splitlines()
        }
        assert not seen & {row["id"] for row in rows if row["fold"] == str(fold)}
    by_id = {row["id"]: row for row in rows}
    right = sum(by_id[one["id"]]["intent"] == one["intent"] for one in pool)
    assert result["out_of_fold"]["intent_accuracy"] == pytest.approx(right / len(pool))
    trained = (tmp_path / "output/data-fold_0/metrics.jsonl").read_bytes()
    assert command("tools.cross_validate", *flags).returncode == 0  # finished folds are not trained again
    assert (tmp_path / "output/data-fold_0/metrics.jsonl").read_bytes() == trained
    assert "--n_splits" in command("tools.cross_validate", "--data_path", "nowhere").stderr


@pytest.mark.parametrize("options", [{"class_weights": "balanced"}, {"focal_gamma": 2.0, "label_smoothing": 0.1}])
def test_imbalance_options_train_every_kind_of_task(options, tmp_path):
    table(",", ".csv")(tmp_path, ["text", "mood", "topics", "score"])
    types = {"label_column": "mood,topics,score", "label_type": "topics=multilabel"}
    process(DataConfig(input=str(tmp_path), output_dir=str(tmp_path / "data"), **types))
    config = {**TINY, "data_path": str(tmp_path / "data"), "output_dir": str(tmp_path / "output"), "epochs": 1}
    main(Config(do_train=True, do_eval=True, model_version="texts", **config, **options))
    (tmp_path / "raw").mkdir()
    conll("bio")(tmp_path / "raw", [])
    process(DataConfig(input=str(tmp_path / "raw"), output_dir=str(tmp_path / "tags")))
    main(
        Config(
            do_train=True,
            do_eval=True,
            model_version="tags",
            **config | {"data_path": str(tmp_path / "tags")},
            **options,
        )
    )
    assert all(read_json(tmp_path / f"output/{name}/eval.json")["dev"]["loss"] > 0 for name in ("texts", "tags"))


def test_a_model_of_pairs_requires_pairs(tmp_path):
    table("\t", ".tsv")(tmp_path, ["text", "text_pair", "label"])
    process(DataConfig(input=str(tmp_path), output_dir=str(tmp_path / "data")))
    config = {
        **TINY,
        "data_path": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "output"),
        "model_version": "run",
        "epochs": 1,
    }
    main(Config(do_train=True, **config))
    (tmp_path / "one.txt").write_text("a text\n")
    with pytest.raises(UserError, match="trained on pairs"):
        main(Config(do_predict=True, predict_file=str(tmp_path / "one.txt"), **config))


# ---- nothing guessed or dropped without a word -----------------------------------------------------------------------


def processed(tmp_path, name, body, **options):
    (tmp_path / name).write_bytes(body if isinstance(body, bytes) else body.encode())
    process(DataConfig(input=str(tmp_path / name), output_dir=str(tmp_path / "data"), **options))
    splits = {
        path.stem: [json.loads(x) for x in path.read_text(encoding="utf-8").split("\n")[:-1]]
        for path in (tmp_path / "data").glob("*.jsonl")
    }
    return splits, read_json(tmp_path / "data/labels.json")


def lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def test_a_row_without_a_split_is_rejected_if_others_have_one(tmp_path):
    rows = [{"text": f"t{n}", "label": "ab"[n % 2], "split": ["train", "dev", None][n % 3]} for n in range(30)]
    with pytest.raises(UserError, match="row 3: has no split"):
        processed(tmp_path, "a.jsonl", lines(rows))


def test_tasks_can_first_appear_in_later_rows(tmp_path):
    rows = [{"text": f"t{n}", "intent": "ab"[n % 2], **({"score": n / 4 + 0.1} if n else {})} for n in range(40)]
    splits, tasks = processed(tmp_path, "a.jsonl", lines(rows), label_column="intent,score")
    assert (
        tasks["score"]["type"] == "regression"
        and sum(row["score"] is None for split in splits.values() for row in split) == 1
    )
    rows = [{"text": f"t{n}", "intent": "ab"[n % 2], **({"label": "x"} if n > 1100 else {})} for n in range(1200)]
    with pytest.raises(UserError, match="row 1102: has the key 'label'"):
        processed(tmp_path, "b.jsonl", lines(rows))


def test_tags_without_prefixes(tmp_path, capsys):
    rows = [{"tokens": ["ann", "lee", f"w{n}", "rome"], "ner_tags": ["PER", "PER", "O", "LOC"]} for n in range(30)]
    splits, _ = processed(tmp_path, "a.jsonl", lines(rows))
    assert (
        splits["dev"][0]["ner_tags"] == ["B-PER", "I-PER", "O", "B-LOC"]
        and "have no B- or I- prefixes" in capsys.readouterr().out
    )
    rows = [{"tokens": ["the", f"w{n}", "runs"], "tags": ["DET", "NOUN", "VERB"]} for n in range(30)]
    shutil.rmtree(tmp_path / "data")
    processed(tmp_path, "b.jsonl", lines(rows))
    config = Config(
        do_train=True,
        do_eval=True,
        do_predict=True,
        data_path=str(tmp_path / "data"),
        **TINY,
        output_dir=str(tmp_path / "output"),
        predict_output=str(tmp_path / "p.jsonl"),
    )
    main(config)
    scores = read_json(config.run_dir / "eval.json")["test"]
    predicted = [json.loads(x)["tags_tags"] for x in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert scores["tags_accuracy"] == pytest.approx(
        sum(a == b for row in predicted for a, b in zip(row, ["DET", "NOUN", "VERB"])) / (3 * len(predicted))
    )
    assert "tags_f1" not in scores and set(read_json(config.run_dir / "report.json")["test"]["tags"]) >= {
        "DET",
        "NOUN",
        "VERB",
    }


def test_conll_comments_and_unusual_tags(tmp_path, capsys):
    body = "\n".join(f"# id {n} domain=train\nann B-PER\nw{n} O\n" for n in range(30))
    splits, tasks = processed(tmp_path, "a.conll", body)
    assert splits["train"][0]["tokens"][0] == "ann" and tasks["slots"]["labels"] == ["O", "B-PER"]
    shutil.rmtree(tmp_path / "data")
    body = body.replace("w7 O", "w7 persn").replace("# id", "# x")
    with pytest.raises(UserError, match=r"only some tags.*'persn'.*--accept mixed_tags"):
        processed(tmp_path, "b.conll", body)
    processed(tmp_path, "b.conll", body, accept="mixed_tags")
    assert "some tags do not follow the tag scheme (1)" in capsys.readouterr().out


def test_groups_stay_in_one_split(tmp_path, capsys):
    body = "text,label,who\n" + "".join(f"text {n},{'ab'[n % 2]},u{n // 6}\n" for n in range(120))
    splits, _ = processed(tmp_path, "a.csv", body, label_column="label", group_column="who")
    groups = [{int(row["text"].split()[1]) // 6 for row in rows} for rows in splits.values()]
    assert len(groups) == 3 and sum(map(len, groups)) == 20
    (tmp_path / "given").mkdir()
    for split in ("train", "dev"):
        (tmp_path / f"given/{split}.csv").write_text(
            "text,label,who\n" + "".join(f"{split} {n},{'ab'[n % 2]},u{n}\n" for n in range(4))
        )
    process(DataConfig(input=str(tmp_path / "given"), label_column="label", group_column="who", check=True))
    assert "groups in more than one split (4)" in capsys.readouterr().out


def test_multilabel_cells(tmp_path, capsys):
    cells = ['"a,b"', "\"['a', 'b']\"", '"[""a"", ""b""]"', '""', "[]", "b"] * 6
    body = "text,topics\n" + "".join(f"t{n},{cell}\n" for n, cell in enumerate(cells))
    splits, tasks = processed(
        tmp_path, "a.csv", body, label_column="topics", label_type="topics=multilabel", dev_ratio=0.2
    )
    rows = sorted((row for split in splits.values() for row in split), key=lambda row: int(row["text"][1:]))
    assert [row["topics"] for row in rows[:6]] == [["a", "b"]] * 3 + [[], [], ["b"]] and tasks["topics"]["labels"] == [
        "a",
        "b",
    ]
    assert "rows with an empty label set" in capsys.readouterr().out


def test_table_values(tmp_path, capsys):
    import datetime
    from decimal import Decimal

    rows = [
        {
            "id": datetime.date(2026, 1, 1 + n),
            "text": f"t{n}",
            "score": Decimal(f"{n}.5"),
            "ok": n % 2 == 0,
            "grade": float(n % 2) if n else None,
        }
        for n in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    options = {"label_column": "score,ok,grade", "label_type": "grade=classification"}
    splits, tasks = processed(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes(), **options)
    assert (
        tasks["score"]["type"] == "regression"
        and tasks["ok"]["labels"] == ["false", "true"]
        and tasks["grade"]["labels"] == ["0", "1"]
    )
    assert splits["train"][0]["id"].startswith("2026-01-")
    shutil.rmtree(tmp_path / "data")
    body = "text,score\n" + "".join(f"t{n},{n // 4 + 0.5}\n" for n in range(40)) + "x,n/a\ny,n/a\n"
    processed(tmp_path, "b.csv", body)
    assert "score: nearly all labels are numbers, but not these (2)" in capsys.readouterr().out
    pq.write_table(pa.table({"text": [b"a", b"b"], "label": ["x", "y"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="bytes"):
        processed(tmp_path, "c.parquet", (tmp_path / "c.parquet").read_bytes())


@pytest.mark.parametrize(
    ("name", "body", "options", "words"),
    [
        ("a.csv.gz", gzip.compress(b"text,label\na,x\nb,y\n" * 2000, mtime=0)[:-30], {}, "damaged or not a .gz"),
        ("a.csv.gz", b"text,label\na,x\n", {}, "damaged or not a .gz"),
        ("a.csv", "text,label\na,x\n", {"encoding": "utf-16"}, "row 1"),
        ("a.json", '{"version": 1, "labels": ["a"]}', {}, "--text_column"),
        ("a.csv", "text,label\na,x\n", {"label_separator": ""}, "label_separator"),
        ("a.csv", "text,label\na,x\n", {"label_type": "label=other"}, "label_type"),
        ("a.csv", "text,label\na,x\n", {"label_type": "mood=regression"}, "mood"),
        ("a.csv", "text,label\na,x\n", {"label_type": "label=regression"}, "is not a number"),
        ("a.csv", "text,label\na,nan\n", {"label_type": "label=regression"}, "is not a number"),
        ("a.csv", "text,score\na,1.5\nb,1.5\nc,1.5\nd,1.5\n", {"dev_ratio": 0.3, "test_ratio": 0}, "single value"),
        ("a.csv", "text,label\n" + "a,x\nb,y\n" * 3, {"n_splits": 9, "test_ratio": 0}, "--n_splits 9 is more"),
        ("a.parquet", b"PAR1", {}, "Parquet"),
    ],
)
def test_invalid_input_raises_a_one_line_error(name, body, options, words, tmp_path):
    with pytest.raises(UserError, match=words) as raised:
        processed(tmp_path, name, body, **options)
    assert "\n" not in str(raised.value) and not (tmp_path / "data").exists()


def test_json_files_with_other_shapes(tmp_path):
    rows = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(30)]
    for name, content in (("a.json", {"version": 1, "labels": ["a", "b"], "data": rows}), ("b.json", rows)):
        splits, _ = processed(tmp_path, name, json.dumps(content))
        assert sum(map(len, splits.values())) == 30


def test_spans_can_be_declared_as_tagging(tmp_path):
    rows = [{"text": f"hey jude {n}", "marks": [{"start": 0, "end": 8, "label": "song"}]} for n in range(30)]
    _, tasks = processed(tmp_path, "a.jsonl", lines(rows), label_column="marks", label_type="marks=tagging")
    assert tasks["marks"]["labels"] == ["O", "B-song", "I-song"]


def test_numeric_columns_reach_training_and_prediction(tmp_path, capsys):
    """--extra_columns are stored, standardised by train (also in windows), and required for prediction."""
    rows = [{"text": f"text number {n} of many", "mood": "ab"[n % 2], "age": n, "price": None} for n in range(40)]
    for n in range(0, 40, 3):
        rows[n]["price"] = f"{n / 10}"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = dict(label_column="mood", extra_columns="age,price", input=str(tmp_path / "a.jsonl"))
    process(DataConfig(**options, output_dir=str(tmp_path / "data")))
    assert "extra inputs from 'age', 'price'" in capsys.readouterr().out
    tasks = load_labels(tmp_path / "data")
    train = [json.loads(line) for line in (tmp_path / "data/train.jsonl").read_text().splitlines()]
    for name, of_train in tasks["mood"].extras.items():
        values = [row["extras"][name] for row in train if row["extras"][name] is not None]
        assert (of_train["mean"], of_train["std"]) == pytest.approx((fmean(values), pstdev(values)))
    data = MyDataset(
        tmp_path / "data/train.jsonl",
        Featurizer(train_tokenizer(lambda: iter(2 * ["text number of many"]), 100), tasks, 32),
    )
    extras = data.batch([3, 0]).inputs["extras"]
    for row, number in zip(extras.tolist(), (3, 0)):
        for value, (name, of_train) in zip(row, tasks["mood"].extras.items()):
            raw = train[number]["extras"][name]
            expected = 0 if raw is None else (raw - of_train["mean"]) / of_train["std"]
            assert value == pytest.approx(expected, abs=1e-6)
    (tmp_path / "texts.csv").write_text("text,age\nof many,3\n")
    run = dict(data_path=str(tmp_path / "data"), output_dir=str(tmp_path / "output"), model_version="run")
    main(Config(do_train=True, do_eval=True, do_predict=True, **TINY, **run))
    with pytest.raises(
        UserError, match=r"texts.csv, text 1: no column 'price', which this model needs; the row has the columns: age"
    ):
        main(Config(do_predict=True, predict_file=str(tmp_path / "texts.csv"), device="cpu", **run))
    (tmp_path / "texts.csv").write_text("text,age,price\nof many,3,\n")
    main(Config(do_predict=True, predict_file=str(tmp_path / "texts.csv"), device="cpu", **run))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("1,x,3", "row 3: n is 'x', but must be a number"),
        ("1,inf,3", "row 3: n is 'inf', which is not finite"),
        ("2,2,2", "'n' is always 2 in train"),
        (",,", "'n' is empty in train"),
    ],
)
def test_an_invalid_extra_column_raises_a_one_line_error(column, message, tmp_path):
    lines = [f"text {i},{'ab'[i % 2]},{value}" for i, value in enumerate(10 * column.split(","))]
    (tmp_path / "a.csv").write_text("text,label,n\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        process(DataConfig(input=str(tmp_path / "a.csv"), output_dir=str(tmp_path / "data"), extra_columns="n"))
    with pytest.raises(UserError, match="--extra_columns or FIELDS: 'label' is the text or a label"):
        process(DataConfig(input=str(tmp_path / "a.csv"), output_dir=str(tmp_path / "data"), extra_columns="n,label"))
    with pytest.raises(UserError, match=r"row 2: --label_type label=tagging requires one tag per token, but .* 'a'"):
        process(DataConfig(input=str(tmp_path / "a.csv"), output_dir="x", label_type="label=tagging"))
    with pytest.raises(UserError, match="no column 'm'"):
        process(DataConfig(input=str(tmp_path / "a.csv"), output_dir=str(tmp_path / "data"), extra_columns="m"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("base", ["classification", "multilabel", "regression"])
def test_a_custom_kind_is_handled_like_the_kind_with_the_same_label_format(base, tmp_path, monkeypatch):
    """Processes, checks, trains with its own head, scores and predicts."""
    from model_utils import HEADS

    cells = {"classification": "{}", "multilabel": "a{},all", "regression": "{}.5"}[base]
    rows = [f'text {i},"{cells.format(i % 3)}"' for i in range(40)]
    (tmp_path / "a.csv").write_text("text,stars\n" + "\n".join(rows) + "\n")
    options = dict(input=str(tmp_path / "a.csv"), output_dir=str(tmp_path / "data"), label_column="stars", n_splits=2)
    with pytest.raises(UserError, match="the types are classification, multilabel, regression, tagging"):
        DataConfig(**options, label_type="stars=own")
    monkeypatch.setitem(KINDS, "own", base)
    process(DataConfig(**options, label_type="stars=own"))
    for folder in ("data", "data/fold_1"):
        task = read_json(tmp_path / folder / "labels.json")["stars"]
        assert (task["type"], task["kind"]) == ("own", base)
    process(DataConfig(input=str(tmp_path / "data"), check=True))
    monkeypatch.setitem(HEADS, "own", HEADS[base])
    run = dict(data_path=str(tmp_path / "data"), output_dir=str(tmp_path / "output"), model_version="run")
    main(Config(do_train=True, do_eval=True, do_predict=True, **TINY, **run))
    scores = read_json(tmp_path / "output/run/eval.json")["test"]
    assert {"classification": "stars_accuracy", "multilabel": "stars_micro_f1", "regression": "stars_mae"}[
        base
    ] in scores


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ({"a": {"b": [3]}}, "found 3, None, 'a'"),
        ({"a": {"b": 3}}, "found 3, None, 'a'"),
        ([[0, 1, "x"], 5], "found 5, "),
    ],
)
def test_spans_in_an_unknown_shape_raise_a_one_line_error(spans, found, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a b", "entities": spans}) + "\n")
    with pytest.raises(UserError, match=f"row 1: a span needs a start, an end and a label, {found}"):
        process(DataConfig(input=str(tmp_path / "a.jsonl"), output_dir=str(tmp_path / "data")))


def test_a_column_called_id_can_be_the_text_and_the_label_can_be_the_group(tmp_path):
    rows = "".join(f"text {n},{'abcdef'[n % 6]}\n" for n in range(60))
    (tmp_path / "a.csv").write_text("id,label\n" + rows)
    options = dict(text_column="id", group_column="label", output_dir=str(tmp_path / "data"))
    process(DataConfig(input=str(tmp_path / "a.csv"), **options))
    splits = [
        {json.loads(line)["label"] for line in (tmp_path / f"data/{split}.jsonl").read_text().splitlines()}
        for split in ("train", "dev", "test")
    ]
    assert all(splits) and not splits[0] & splits[1] and not splits[0] & splits[2]
