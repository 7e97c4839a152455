"""The shapes that data really comes in: one small file each goes raw -> processed -> trained a step -> predicted, with
labels and offsets as they were. What is not read is refused in one line that names the flag that would help."""

import builtins
import gzip
import io
import json
import os
import random
import subprocess
import sys

import datasets
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, TINY, read_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from config import Config
from data_process import DataConfig, process
from engine.command_line import UserError
from engine.text import place_tokens
from main import main
from preprocess import objects, raw_files, tables, tagged
from preprocess.columns import names_marked
from preprocess.raw_files import looks_chinese
from preprocess.readers import READERS, fasttext_labels, find_format
from preprocess.sources import read_examples, read_texts

REVIEWS = [
    ("这家店的面很好吃", "pos"),
    ("等了一个小时也没有上菜", "neg"),
    ("the room was clean, and the staff kind", "pos"),
    ("never again; cold soup and a long wait", "neg"),
    ("屏幕很亮，电池也耐用 👍", "pos"),
    ("用了两天就坏了，不会再来", "neg"),
    ("a quiet place to read", "pos"),
    ("the music is far too loud", "neg"),
    ("价格不贵，下次还会来", "pos"),
    ("服务员的态度让人生气", "neg"),
    ("best tea in the old town", "pos"),
    ("the door of the fridge broke", "neg"),
]
MARKED = [
    ("张伟在北京工作", [(0, 2, "人"), (3, 5, "地")]),
    ("李娜明天去上海", [(0, 2, "人"), (5, 7, "地")]),
    ("下雨了", []),
    ("Ann moved to New York", [(0, 3, "人"), (13, 21, "地")]),
    ("😀 王芳住在广州", [(2, 4, "人"), (6, 8, "地")]),
    ("who called Bob?", [(11, 14, "人")]),
    ("从南京到天津", [(1, 3, "地"), (4, 6, "地")]),
    ("Café in Rome", [(8, 12, "地")]),
    ("陈静和赵磊", [(0, 2, "人"), (3, 5, "人")]),
    ("nothing here", []),
    ("go to Oslo", [(6, 10, "地")]),
    ("周杰到了成都", [(0, 2, "人"), (4, 6, "地")]),
]
SENTENCES = [
    (["Ann", "Lee", "went", "to", "Rome"], ["B-PER", "I-PER", "O", "O", "B-LOC"]),
    (["it", "rained", "."], ["O", "O", "O"]),
    (["Oslo", "is", "cold"], ["B-LOC", "O", "O"]),
    (["call", "Bob"], ["O", "B-PER"]),
] * 3
WORDS = [
    (["我", "爱", "北京"], ["r", "v", "ns"]),
    (["迈向", "充满", "希望", "的", "新", "世纪", "/"], ["v", "v", "n", "u", "a", "n", "w"]),
    (["中央", "电视台", "，", "你", "好"], ["n", "n", "w", "r", "a"]),
    (["and/or", "is", "a", "word"], ["CC", "VBZ", "DT", "NN"]),
] * 3
PAIRS = [
    ("a cat sits", "a cat is sitting", 4.5),
    ("a man runs", "a dog sleeps", 0.2),
    ("两个人", "两个人在跑", 2.8),
] * 4
TOPICS = [["toxic"], [], ["toxic", "threat"], ["obscene"], ["obscene", "threat", "toxic"], []] * 2
TEXT = [{"text": text, "label": label} for text, label in REVIEWS]
ENTITIES = [{"text": text, "entities": spans} for text, spans in MARKED]
LABELLED = [{"text": text, "label": spans} for text, spans in MARKED]
TAGGED = [{"tokens": tokens, "slots": tags} for tokens, tags in SENTENCES]
TOXIC = [{"text": text, "labels": sorted(topics)} for (text, _), topics in zip(REVIEWS, TOPICS)]
JOINED = {"label_column": "labels=toxic+obscene+threat"}


def rows_of(values, form, sep="\n", header=""):
    return header + "".join(form(*value) + sep for value in values)


def lines(values):
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def quoted(cell):
    return '"' + str(cell).replace('"', '""') + '"'


def csv_of(rows, header, sep=","):
    return "".join(sep.join(map(quoted, row)) + "\n" for row in [header, *rows])


def split_in_three(name, rows, form):
    """Files train, dev and test of a third of the rows each."""
    third = len(rows) // 3
    parts = (rows[:third], rows[third : 2 * third], rows[2 * third :])
    return {name.format(part): form(some) for part, some in zip(("train", "dev", "test"), parts)}


def workbook(**sheets):
    book, out = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(out)
    return out.getvalue()


def parquet(rows):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def conll(sentences, sep=" ", end="\n", middle=(), letters=None):
    """CoNLL with other columns between token and tag, and tags in other letters."""
    blocks = []
    for tokens, tags in sentences:
        tags = letters(tags) if letters else tags
        blocks.append("".join(sep.join([token, *middle, tag]) + end for token, tag in zip(tokens, tags)))
    return end.join(blocks)


def ends(begin, inside, last, single):
    """Makes tags of one entity a run into those of schemes that mark ends."""

    def convert(tags):
        found = list(tags)
        for kind, first, end in get_entities(tags):
            for place in range(first, end + 1):
                letter = inside if first < place < end else begin if place == first else last
                found[place] = f"{single if first == end else letter}-{kind}"
        return found

    return convert


def iob1(tags):
    return [tag.replace("B-", "I-") for tag in tags]


def conllu(sentences, upos=True):
    blocks = []
    for tokens, tags in sentences:
        rows = [f"# text = {' '.join(tokens)}", f"1-2\t{tokens[0]}{tokens[1]}\t" + "\t".join("_" * 8)]
        for number, (token, tag) in enumerate(zip(tokens, tags), 1):
            columns = [tag, "_"] if upos else ["_", tag]
            rows.append("\t".join([str(number), token, "_", *columns, "_", "0", "root", "_", "_"]))
        rows.append("8.1\tgone\t" + "\t".join("_" * 8))
        blocks.append("\n".join(rows) + "\n")
    return "\n".join(blocks) + "\n"


def studio(values, results, **more):
    """Label Studio's export: values, and a function that gives the results of each."""
    return json.dumps(
        [
            {"id": 7 + number, "data": {"text": value[0]}, "annotations": results(*value), **more}
            for number, value in enumerate(values)
        ],
        ensure_ascii=False,
        indent=2,
    )


def choices(*names, cancelled=False):
    value = {"value": {"choices": list(names)}, "type": "choices", "from_name": "mood", "to_name": "text"}
    return {"was_cancelled": cancelled, "result": [value]}


def in_browser(text, place):
    """A place in a text as a browser counts it: an emoji is two."""
    return len(text[:place].encode("utf-16-le")) // 2


def regions(text, spans):
    found = [
        {
            "value": {
                "start": in_browser(text, start),
                "end": in_browser(text, end),
                "text": text[start:end],
                "labels": [label],
            },
            "type": "labels",
            "from_name": "ner",
        }
        for start, end, label in spans
    ]
    return [{"result": [*found, {"type": "relation", "from_id": "a", "to_id": "b"}]}]


def brat(values, folder=""):
    files = {}
    for number, (text, spans) in enumerate(values):
        rows = [f"T{n}\t{label} {start} {end}\t{text[start:end]}" for n, (start, end, label) in enumerate(spans, 1)]
        more = ["R1\tknows Arg1:T1 Arg2:T2", "T9\tX 0 1;2 3\ta b", "#1\tAnnotatorNotes T1\tsure?"] if not number else []
        files[f"{folder}{number:02}.txt"] = text
        files[f"{folder}{number:02}.ann"] = "\n".join([*rows, *more]) + "\n"
    return files


def cluener(text, spans):
    found = {}
    for start, end, label in spans:
        found.setdefault(label, {}).setdefault(text[start:end], []).append([start, end - 1])
    return {"text": text, "label": found}


def spans_as(keys, last=0, **more):
    return [
        {"text": text, **more, keys[0]: [dict(zip(keys[1:], (s, e - last, label, text[s:e]))) for s, e, label in spans]}
        for text, spans in MARKED
    ]


def save_dataset(folder):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = [{"text": text, "label": int(label == "pos")} for text, label in REVIEWS]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(folder / "saved"))


def by_class(values, encoding="utf-8", folder=""):
    return {f"{folder}{label}/{n:02}.txt": f"{text}\n".encode(encoding) for n, (text, label) in enumerate(values)}


GBK = [(text, label) for text, label in REVIEWS if "👍" not in text]
CLASSIC = {"label": "classification"}
TAGS, SLOTS = {"entities": "tagging"}, {"slots": "tagging"}
SHAPES = {  # name: (files, or a function that writes them; the rows as they should come back; types; options)
    # read before
    "csv": ({"a.csv": csv_of(REVIEWS, ["text", "label"])}, TEXT, CLASSIC, {}),
    "csv with a mark": ({"a.csv": csv_of(REVIEWS, ["text", "label"]).encode("utf-8-sig")}, TEXT, CLASSIC, {}),
    "csv in UTF-16": ({"a.csv": csv_of(REVIEWS, ["text", "label"]).encode("utf-16")}, TEXT, CLASSIC, {}),
    "csv in GB18030, named": (
        {"a.csv": csv_of(REVIEWS, ["text", "label"]).encode("gb18030")},
        TEXT,
        CLASSIC,
        {"encoding": "gb18030"},
    ),
    "csv.gz": ({"a.csv.gz": gzip.compress(csv_of(REVIEWS, ["text", "label"]).encode())}, TEXT, CLASSIC, {}),
    "Kaggle, line feeds in cells": (
        {"train.csv": csv_of([(n, t + '\n"x", y', b) for n, (t, b) in enumerate(REVIEWS)], ["id", "text", "target"])},
        [{"text": text + '\n"x", y', "target": label} for text, label in REVIEWS],
        {"target": "classification"},
        {},
    ),
    "ChnSentiCorp": (
        split_in_three(
            "{}.tsv", REVIEWS, lambda rows: rows_of(rows, lambda t, b: f"{b}\t{t}", header="label\ttext_a\n")
        ),
        TEXT,
        CLASSIC,
        {},
    ),
    "SST-2": (
        {"train.tsv": rows_of(REVIEWS, lambda t, b: f"{t}\t{int(b == 'pos')}", header="sentence\tlabel\n")},
        [{"text": text, "label": str(int(label == "pos"))} for text, label in REVIEWS],
        CLASSIC,
        {},
    ),
    "CLUE's TNEWS": (
        {"train.json": lines({"label": b, "label_desc": "x", "sentence": t, "keywords": "y"} for t, b in REVIEWS)},
        TEXT,
        CLASSIC,
        {},
    ),
    "AFQMC": (
        {"train.json": lines({"sentence1": a, "sentence2": b, "label": str(int(c > 2))} for a, b, c in PAIRS)},
        [{"text": a, "text_pair": b, "label": str(int(c > 2))} for a, b, c in PAIRS],
        CLASSIC,
        {},
    ),
    "OCNLI": (
        {
            "train.json": lines(
                {"sentence1": a, "sentence2": b, "label": "yes" if c > 2 else "no", "id": n}
                for n, (a, b, c) in enumerate(PAIRS)
            )
            + lines([{"sentence1": "c", "sentence2": "d", "label": "-", "id": 99}])
        },
        [{"text": a, "text_pair": b, "label": "yes" if c > 2 else "no"} for a, b, c in PAIRS],
        CLASSIC,
        {},
    ),
    "a list under a key": ({"a.json": json.dumps({"version": 1, "data": TEXT})}, TEXT, CLASSIC, {}),
    "a list": ({"a.json": json.dumps(TEXT, indent=1)}, TEXT, CLASSIC, {}),
    "jsonl, sets of labels": (
        {"a.jsonl": lines({"text": text, "topics": topics} for (text, _), topics in zip(REVIEWS, TOPICS))},
        [{"text": text, "topics": sorted(topics)} for (text, _), topics in zip(REVIEWS, TOPICS)],
        {"topics": "multilabel"},
        {"label_column": "topics"},
    ),
    "doccano 1": (
        {"a.jsonl": lines({"text": t, "labels": s} for t, s in MARKED)},
        [{"text": t, "labels": s} for t, s in MARKED],
        {"labels": "tagging"},
        {},
    ),
    "doccano 2": (
        {"a.jsonl": lines({"id": n, "text": t, "label": s, "Comments": []} for n, (t, s) in enumerate(MARKED))},
        LABELLED,
        {"label": "tagging"},
        {},
    ),
    "doccano with relations": (
        {
            "a.jsonl": lines(
                row | {"relations": []} for row in spans_as(("entities", "start_offset", "end_offset", "label"))
            )
        },
        ENTITIES,
        TAGS,
        {},
    ),
    "Prodigy": (
        {
            "a.jsonl": lines(
                row | {"tokens": [{"text": "x", "start": 0, "end": 1}], "answer": "accept"}
                for row in spans_as(("spans", "start", "end", "label"))
            )
        },
        [{"text": t, "spans": s} for t, s in MARKED],
        {"spans": "tagging"},
        {},
    ),
    "CMeEE": (
        {"a.json": json.dumps(spans_as(("entities", "start_idx", "end_idx", "type", "entity"), last=1))},
        ENTITIES,
        TAGS,
        {},
    ),
    "CLUENER": ({"train.json": lines(cluener(*value) for value in MARKED)}, LABELLED, {"label": "tagging"}, {}),
    "MSRA with CRLF": ({"msra_train_bio.txt": conll(SENTENCES, "\t", "\r\n")}, TAGGED, SLOTS, {}),
    "CoNLL-2003": (
        {"train.txt": "-DOCSTART- -X- -X- O\n\n" + conll(SENTENCES, middle=("NNP", "B-NP"))},
        TAGGED,
        SLOTS,
        {},
    ),
    "IOB1": ({"train.iob": conll(SENTENCES, letters=iob1)}, TAGGED, SLOTS, {}),
    "BIOES": ({"a.bioes": conll(SENTENCES, letters=ends("B", "I", "E", "S"))}, TAGGED, SLOTS, {"tag_scheme": "bio"}),
    "BMES": ({"a.txt": conll(SENTENCES, letters=ends("B", "M", "E", "S"))}, TAGGED, SLOTS, {"tag_scheme": "bio"}),
    "BILOU": ({"a.conll": conll(SENTENCES, letters=ends("B", "I", "L", "U"))}, TAGGED, SLOTS, {"tag_scheme": "bio"}),
    "Weibo": (
        {"weiboNER.conll.train": "科0 B-ORG.NAM\n技1 I-ORG.NAM\n20 O\n\n全0 O\n方1 O\n位2 O\n\n" * 6},
        [
            {"tokens": ["科", "技", "2"], "slots": ["B-ORG.NAM", "I-ORG.NAM", "O"]},
            {"tokens": ["全", "方", "位"], "slots": ["O", "O", "O"]},
        ]
        * 6,
        SLOTS,
        {},
    ),
    "CoNLL with intents": (
        {"a.conll": conll(SENTENCES), "a.conll.intent": "go\nsay\nsay\ngo\n" * 3},
        [row | {"intent": intent} for row, intent in zip(TAGGED, ["go", "say", "say", "go"] * 3)],
        {"intent": "classification", **SLOTS},
        {},
    ),
    "seq folder": (
        {
            "seq.in": rows_of(SENTENCES, lambda a, b: " ".join(a)),
            "seq.out": rows_of(SENTENCES, lambda a, b: " ".join(b)),
        },
        TAGGED,
        SLOTS,
        {},
    ),
    "jsonl with tokens": (
        {"a.jsonl": lines({"tokens": a, "ner_tags": b} for a, b in SENTENCES)},
        [{"tokens": a, "ner_tags": b} for a, b in SENTENCES],
        {"ner_tags": "tagging"},
        {},
    ),
    "Parquet": ({"train-00000-of-00001.parquet": parquet(TEXT)}, TEXT, CLASSIC, {}),
    "saved dataset": (save_dataset, TEXT, CLASSIC, {}),
    # tables
    "no header, two columns": (
        {"a.txt": rows_of(REVIEWS, lambda t, b: f"{t}\t{int(b == 'pos')}")},
        [{"text": text, "label": str(int(label == "pos"))} for text, label in REVIEWS],
        CLASSIC,
        {"header": False},
    ),
    "GoEmotions": (
        {"train.tsv": rows_of(zip(REVIEWS, TOPICS), lambda r, t: f"{r[0]}\t{','.join(t) or '27'}\te{r[0][:6]}")},
        [{"text": text, "label": sorted(topics) or ["27"]} for (text, _), topics in zip(REVIEWS, TOPICS)],
        {"label": "multilabel"},
        {"header": False, "label_type": "label=multilabel"},
    ),
    "STS-B": (
        {"sts-train.csv": rows_of(PAIRS, lambda a, b, c: f"main\tnews\t2012\t0024\t{c}\t{a}\t{b}")},
        [{"text": a, "text_pair": b, "label": c} for a, b, c in PAIRS],
        {"label": "regression"},
        {"header": False, "text_column": "5", "text_pair_column": "6", "label_column": "4"},
    ),
    "Toutiao": (
        {"toutiao_cat_data.txt": rows_of(REVIEWS, lambda t, b: f"65{len(t)}_!_101_!_{b}_!_{t}_!_")},
        TEXT,
        CLASSIC,
        {"header": False, "label_column": "2"},
    ),
    "csv without a header": (
        {"a.csv": rows_of(REVIEWS, lambda t, b: f"{b},{quoted(t)}")},
        TEXT,
        CLASSIC,
        {"header": False},
    ),
    "two tasks by number": (
        {"a.tsv": rows_of(REVIEWS, lambda t, b: f"{t}\t{b}\t{'long' if len(t) > 12 else 'short'}")},
        [{"text": t, "label_1": b, "label_2": "long" if len(t) > 12 else "short"} for t, b in REVIEWS],
        {"label_1": "classification", "label_2": "classification"},
        {"header": False, "text_column": "0", "label_column": "1,2"},
    ),
    "semicolons": ({"a.csv": csv_of(REVIEWS, ["text", "label"], ";")}, TEXT, CLASSIC, {}),
    "bars": ({"a.csv": rows_of(REVIEWS, lambda t, b: f"{b}|{quoted(t)}", header="label|text\n")}, TEXT, CLASSIC, {}),
    "another separator": (
        {"a.txt": rows_of(REVIEWS, lambda t, b: f"{b}@@{t}", header="label@@text\n")},
        TEXT,
        CLASSIC,
        {"delimiter": "@@"},
    ),
    "txt with commas": (
        {"a.txt": csv_of(REVIEWS, ["text", "label"]).replace('"text","label"', "text,label")},
        TEXT,
        CLASSIC,
        {},
    ),
    "columns of 0 and 1": (
        {
            "train.csv": csv_of(
                [
                    (n, t, *(int(name in topics) for name in ("toxic", "obscene", "threat")))
                    for n, ((t, _), topics) in enumerate(zip(REVIEWS, TOPICS))
                ],
                ["id", "comment_text", "toxic", "obscene", "threat"],
            )
        },
        TOXIC,
        {"labels": "multilabel"},
        JOINED,
    ),
    "keys of true and false": (
        {
            "a.jsonl": lines(
                {"text": t, **{name: name in topics for name in ("toxic", "obscene", "threat")}}
                for (t, _), topics in zip(REVIEWS, TOPICS)
            )
        },
        TOXIC,
        {"labels": "multilabel"},
        JOINED,
    ),
    "capitals": (
        {"a.csv": csv_of(REVIEWS, ["Text", "Label"])},
        [{"text": t, "Label": b} for t, b in REVIEWS],
        {"Label": "classification"},
        {},
    ),
    "IMDB": (
        {"a.csv": csv_of(REVIEWS, ["review", "sentiment"])},
        [{"text": t, "sentiment": b} for t, b in REVIEWS],
        {"sentiment": "classification"},
        {},
    ),
    **{
        f"Chinese names, {text} and {label}": (
            {"a.csv": csv_of([(0, b, t) for t, b in REVIEWS], ["编号", label, text])},
            [{"text": t, label: b} for t, b in REVIEWS],
            {label: "classification"},
            {},
        )
        for text, label in (
            ("评论", "情感"),
            ("正文", "标签"),
            ("标题", "类别"),
            ("内容", "情感倾向"),
            ("文本", "分类"),
        )
    },
    "Chinese names of pairs": (
        {"a.csv": csv_of([(a, b, c) for a, b, c in PAIRS], ["句子1", "句子2", "相似度"])},
        [{"text": a, "text_pair": b, "相似度": c} for a, b, c in PAIRS],
        {"相似度": "regression"},
        {},
    ),
    "labels that lack": (
        {"a.csv": csv_of([*REVIEWS, ("x", "NaN"), ("y", ""), ("z", "null"), ("w", "N/A")], ["text", "label"])},
        TEXT,
        CLASSIC,
        {"drop_unlabelled": True},
    ),
    "keys that lack": (
        {"a.jsonl": lines([*TEXT, {"text": "x"}, {"text": "y", "label": None}, {"text": "z", "label": float("nan")}])},
        TEXT,
        CLASSIC,
        {"drop_unlabelled": True},
    ),
    "the first rows": (
        {"a.csv": csv_of([*REVIEWS, *(("later", "other") for _ in range(9))], ["text", "label"])},
        TEXT,
        CLASSIC,
        {"max_rows": len(TEXT)},
    ),
    "csv in GB18030, found": (
        {"a.csv": csv_of(GBK, ["text", "label"]).encode("gb18030")},
        [{"text": t, "label": b} for t, b in GBK],
        CLASSIC,
        {},
    ),
    "Excel": ({"a.xlsx": workbook(Sheet1=[["text", "label"], *REVIEWS], Sheet2=[])}, TEXT, CLASSIC, {}),
    "Excel, numbers": (
        {"a.xlsx": workbook(data=[["评论", "评分"], *((t, n % 3 / 2) for n, (t, _) in enumerate(REVIEWS)), [None, None]])},
        [{"text": t, "评分": n % 3 / 2} for n, (t, _) in enumerate(REVIEWS)],
        {"评分": "regression"},
        {},
    ),
    "Excel, a sheet a part": (
        {
            "a.xlsx": workbook(
                **{
                    part: [["text", "label"], *some]
                    for part, some in (("train", REVIEWS[:6]), ("dev", REVIEWS[6:9]), ("Test", REVIEWS[9:]))
                }
            )
        },
        TEXT,
        CLASSIC,
        {},
    ),
    "Excel, one of several sheets": (
        {"a.xlsx": workbook(notes=[["made by hand"]], rows=[["text", "label"], *REVIEWS])},
        TEXT,
        CLASSIC,
        {"sheet": "rows"},
    ),
    "fastText": ({"train.txt": rows_of(REVIEWS, lambda t, b: f"__label__{b} {t}")}, TEXT, CLASSIC, {}),
    "fastText, labels behind": ({"a.txt": rows_of(REVIEWS, lambda t, b: f"{t}\t__label__{b}")}, TEXT, CLASSIC, {}),
    "fastText, several labels": (
        {
            "a.txt": "".join(
                " ".join(f"__label__{x}" for x in topics or ["none"]) + f" {t}\n"
                for (t, _), topics in zip(REVIEWS, TOPICS)
            )
        },
        [{"text": t, "label": sorted(topics or ["none"])} for (t, _), topics in zip(REVIEWS, TOPICS)],
        {"label": "multilabel"},
        {},
    ),
    # folders
    "a folder a class": (by_class(REVIEWS), TEXT, CLASSIC, {}),
    "a folder a class, in parts, GB18030": (
        by_class(GBK[:8], "gb18030", "train/")
        | by_class(GBK[8:], "gb18030", "test/")
        | {"train/unsup/1.txt": "nobody knows", "train/urls_pos.dat": "x"},
        [{"text": t, "label": b} for t, b in GBK],
        CLASSIC,
        {},
    ),
    "BRAT": (brat(MARKED), ENTITIES, TAGS, {}),
    "BRAT in parts": (brat(MARKED[:8], "train/") | brat(MARKED[8:], "dev/"), ENTITIES, TAGS, {}),
    "local files for datasets": (
        {"hub/train.jsonl": lines([*TEXT, *TEXT[:1] * 5])},
        TEXT,
        CLASSIC,
        {"format": "hf", "max_rows": len(TEXT)},
    ),
    # annotation tools and tags
    "Label Studio, choices": (
        {"a.json": studio(REVIEWS, lambda t, b: [choices(b)])},
        [{"text": t, "mood": b} for t, b in REVIEWS],
        {"mood": "classification"},
        {},
    ),
    "Label Studio, several annotations": (
        {"a.json": studio(REVIEWS, lambda t, b: [choices("x", cancelled=True), choices(b), choices("y")])},
        [{"text": t, "mood": b} for t, b in REVIEWS],
        {"mood": "classification"},
        {},
    ),
    "Label Studio, sets": (
        {"a.json": studio(zip([t for t, _ in REVIEWS], TOPICS), lambda t, names: [choices(*names)])},
        [{"text": t, "mood": sorted(names)} for (t, _), names in zip(REVIEWS, TOPICS)],
        {"mood": "multilabel"},
        {},
    ),
    "Label Studio, spans": (
        {"a.json": studio(MARKED, regions)},
        [{"text": t, "ner": s} for t, s in MARKED],
        {"ner": "tagging"},
        {},
    ),
    "Label Studio, short": (
        {"a.json": json.dumps(spans_as(("label", "start", "end", "labels", "text"), annotator=1))},
        LABELLED,
        {"label": "tagging"},
        {},
    ),
    "Label Studio, without some": (
        {"a.json": studio([*REVIEWS, ("x", None)], lambda t, b: [choices(b)] if b else [])},
        [{"text": t, "mood": b} for t, b in REVIEWS],
        {"mood": "classification"},
        {"drop_unlabelled": True},
    ),
    "CoNLL-U": ({"a.conllu": conllu(WORDS)}, [{"tokens": a, "upos": b} for a, b in WORDS], {"upos": "tagging"}, {}),
    "CoNLL-U in a txt, XPOS": (
        {"a.txt": conllu(WORDS, upos=False)},
        [{"tokens": a, "xpos": b} for a, b in WORDS],
        {"xpos": "tagging"},
        {},
    ),
    "word/pos": (
        {"a.txt": rows_of(WORDS, lambda a, b: " ".join(map("/".join, zip(a, b))))},
        [{"tokens": a, "tags": b} for a, b in WORDS],
        {"tags": "tagging"},
        {},
    ),
    "People's Daily": (
        {"199801.txt": "[中央/n 电视台/n]nt  播放/v  。/w  \r\n\r\n[北京/ns]ns 很/d 大/a\r\n" * 6},
        [
            {"tokens": ["中央", "电视台", "播放", "。"], "tags": ["n", "n", "v", "w"]},
            {"tokens": ["北京", "很", "大"], "tags": ["ns", "d", "a"]},
        ]
        * 6,
        {"tags": "tagging"},
        {},
    ),
    "tags in a .tsv": ({"train.tsv": conll(SENTENCES, "\t")}, TAGGED, SLOTS, {}),
    "CoNLL in GB18030": (
        {
            "a.txt": "".join(
                f"{letter} {tag}\n" for letter, tag in zip("我在北京的家里", "O O B-x I-x O O O".split())
            ).encode("gb18030")
            + b"\n"
            + "好 O\n人 O\n\n".encode("gb18030") * 9
        },
        [
            {"tokens": list("我在北京的家里"), "slots": "O O B-x I-x O O O".split()},
            *[{"tokens": ["好", "人"], "slots": ["O", "O"]}] * 9,
        ],
        SLOTS,
        {},
    ),
}


def write(folder, files):
    folder.mkdir(exist_ok=True)
    if callable(files):
        files(folder)
        return folder / "saved"
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body if isinstance(body, bytes) else body.encode())
    return folder / "hub" if (folder / "hub").exists() else folder


def processed_rows(folder):
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]
    ]


def as_given(row, tasks):
    """A processed row as the table has it: spans of its text where it has one, else its tokens and tags."""
    result = {key: row[key] for key in ("text", "text_pair") if key in row}
    if "text" not in row:
        result["tokens"] = row["tokens"]
    for name, kind in tasks.items():
        result[name] = row[name]
        if kind == "tagging" and "text" in row:
            places = place_tokens(row["text"], row["tokens"])
            assert all(row["text"][start:end] == token for (start, end), token in zip(places, row["tokens"]))
            found = get_entities(row[name])
            result[name] = [[places[first][0], places[last][1], label] for label, first, last in found]
    return result


def in_order(rows):
    return sorted(json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)


def make(name, tmp_path, monkeypatch):
    files, expected, types, options = SHAPES[name]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = write(tmp_path / "raw", files)
    ratios = {"dev_ratio": 0.2, "test_ratio": 0.2}
    process(DataConfig(input=str(source), output_dir=str(tmp_path / "data"), **ratios, **options))
    return expected, types, read_json(tmp_path / "data/labels.json")


def test_there_are_many_shapes():
    assert len(SHAPES) >= 60


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_comes_back_as_it_was(name, tmp_path, monkeypatch):
    expected, types, tasks = make(name, tmp_path, monkeypatch)
    assert {task: info["type"] for task, info in tasks.items()} == types
    assert in_order(as_given(row, types) for row in processed_rows(tmp_path / "data")) == in_order(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_trains_and_predicts(name, tmp_path, monkeypatch):
    _, types, tasks = make(name, tmp_path, monkeypatch)
    run = dict(data_path=str(tmp_path / "data"), output_dir=str(tmp_path / "output"), model_version="run")
    output = tmp_path / "p.jsonl"
    main(Config(do_train=True, do_predict=True, predict_output=str(output), **run, **{**TINY, "epochs": 1}))
    part = "test" if (tmp_path / "data/test.jsonl").exists() else "dev"
    gold = [json.loads(row) for row in (tmp_path / f"data/{part}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    predicted = [json.loads(row) for row in output.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["id"] for row in predicted] == [row["id"] for row in gold] and gold
    for row, truth in zip(predicted, gold):
        for task, kind in types.items():
            if kind == "tagging":
                assert len(row[f"{task}_tags"]) == len(truth["tokens"])
                assert {*row[f"{task}_tags"]} <= {*tasks[task]["labels"]}
                assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row.get(task) or [])
            elif kind == "regression":
                assert isinstance(row[task], float)
            else:
                assert {*([row[task]] if kind == "classification" else row[task])} <= {*tasks[task]["labels"]}
