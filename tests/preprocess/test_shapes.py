"""The shapes that data really comes in: one small file each goes raw -> processed -> trained a step -> predicted, with
labels and offsets as they were. What is not read is refused in one line that names the flag that would help."""

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
from dataclasses import replace

import datasets
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, TINY, read_json
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from config import Config
from data_process import DataConfig, process
from engine.errors import UserError
from engine.task.words import place_tokens
from main import main
from preprocess.readers import objects, raw_files, tables, token_rows
from preprocess.readers.columns import names_marked
from preprocess.readers.formats import READERS, fasttext_labels, find_format
from preprocess.readers.options import ReadOptions
from preprocess.readers.sources import read_examples, read_texts

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
    "number lists": (
        {"a.csv": csv_of([(t, "2,27" if b == "pos" else "3") for t, b in REVIEWS], ["text", "label"])},
        [{"text": t, "label": "2,27" if b == "pos" else "3"} for t, b in REVIEWS],
        CLASSIC,
        {},
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
        {
            "a.xlsx": workbook(
                data=[["评论", "评分"], *((t, n % 3 / 2) for n, (t, _) in enumerate(REVIEWS)), [None, None]]
            )
        },
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
    "20 Newsgroups": ({f"{label}/{n}": text for n, (text, label) in enumerate(REVIEWS, 49960)}, TEXT, CLASSIC, {}),
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


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_comes_back_as_it_was(name, tmp_path, monkeypatch):
    expected, types, tasks = make(name, tmp_path, monkeypatch)
    assert {task: info["type"] for task, info in tasks.items()} == types
    assert in_order(as_given(row, types) for row in processed_rows(tmp_path / "data")) == in_order(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_trains_and_predicts(name, tmp_path, monkeypatch):
    _, types, tasks = make(name, tmp_path, monkeypatch)
    if not (tmp_path / "data/test.jsonl").exists():  # a file called train gives train and dev
        shutil.copy(tmp_path / "data/dev.jsonl", tmp_path / "data/test.jsonl")
    run = dict(data_path=str(tmp_path / "data"), output_dir=str(tmp_path / "output"), model_version="run")
    output = tmp_path / "p.jsonl"
    main(Config(do_train=True, do_predict=True, predict_output=str(output), **run, **{**TINY, "epochs": 1}))
    gold = [json.loads(row) for row in (tmp_path / "data/test.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
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


def test_texts_to_predict_on_come_in_these_shapes_too(tmp_path):
    write(tmp_path, {"a.xlsx": workbook(s=[[], ["评论"], *([text] for text, _ in REVIEWS), [None], [None]])})
    write(tmp_path, {"d.xlsx": workbook(s=[["text", "n"], ["a", 1], [None, None], ["b", 2], [" "], [None]])})
    assert [row["text"] for row in read_texts(tmp_path / "d.xlsx", ReadOptions())][:3] == ["a", "", "b"]
    write(tmp_path, {"b.csv": csv_of([(text, 3) for text, _ in REVIEWS], ["text", "n"], ";")})
    write(tmp_path, {"c.txt": "".join(f"{text}\n" for text, _ in GBK).encode("gb18030")})
    for name, wanted in (("a.xlsx", REVIEWS), ("b.csv", REVIEWS), ("c.txt", GBK)):
        assert [row["text"] for row in read_texts(tmp_path / name, ReadOptions())] == [text for text, _ in wanted]


# ---- what is printed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("number lists", ["cells such as '2,27' may be several labels: --label_type label=multilabel"]),
        ("labels that lack", ["4 rows without a label are dropped (--drop_unlabelled), the first: ", "row 14"]),
        ("the first rows", ["only the first 12 rows are read (--max_rows)"]),
        ("csv in GB18030, found", ["a.csv: not UTF-8; read as GB18030, in which it begins with '这家店", "--encoding"]),
        ("semicolons", ["the delimiter is ';' (--delimiter overrides)"]),
        ("a folder a class, in parts, GB18030", ["skipped, as their texts have no class: unsup", "read as GB18030"]),
        ("BRAT", ["discontinuous entities are dropped (1)", "00.ann, row 4", "1 relations, 1 notes"]),
        ("Label Studio, several annotations", ["12 texts have several annotations; the first that was not cancelled"]),
        ("Label Studio, spans", ["ignored: relation (12)"]),
        ("local files for datasets", ["train: only the first 12 rows are read", "--max_rows"]),
        ("OCNLI", ["the label '-' means that there is no gold label (1)"]),
        ("Weibo", ["each character is followed by its position in its word"]),
    ],
)
def test_what_was_done_is_printed(name, words, tmp_path, monkeypatch, capsys):
    make(name, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert all(word in printed for word in words), printed


PAGE = {"paragraphs": [{"context": "a b", "qas": [{"question": "a?", "answers": [{"text": "a", "answer_start": 0}]}]}]}
REFUSED = {  # name: (files, what the one line says, options)
    "titles and numbers": ({"a.txt": rows_of(REVIEWS, lambda t, b: f"{t}\t1")}, ["looks like data", "--no_header"], {}),
    "csv without a header": (
        {"a.csv": rows_of(REVIEWS, lambda t, b: f"{b},{quoted(t)}")},
        ["--no_header", "row 1"],
        {},
    ),
    "a number for a name": (
        {"a.csv": rows_of(REVIEWS, lambda t, b: f"{b},{quoted(t)}")},
        ["'1' (--text_column)", "--no_header"],
        {"text_column": "1", "label_column": "0"},
    ),
    "equal cells in row 1": ({"a.tsv": "a b\t0\t0\nc d\t1\t0\n"}, ["--no_header"], {}),
    "which is the label": (
        {"a.tsv": rows_of(REVIEWS, lambda t, b: f"{t}\t{b}\t{len(t) % 2}")},
        ["--label_column NUMBER", "1 ('pos'), 2 ('"],
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
        ["2 contain only 0 and 1", "--label_column labels=toxic+threat"],
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
    "several sheets": ({"a.xlsx": workbook(one=[["a"]], two=[["b"]])}, ["one, two", "--sheet"], {}),
    "no such sheet": ({"a.xlsx": workbook(one=[["a"]])}, ["'two'", "--sheet", "one"], {"sheet": "two"}),
    "no rows in any sheet": ({"a.xlsx": workbook(one=[])}, ["all sheets are empty"], {}),
    "no workbook": ({"a.xlsx": b"PK\x03\x04 not a workbook"}, ["not a readable .xlsx", "CSV"], {}),
    "half a workbook": ({"a.xlsx": workbook(one=[["text", "label"], *REVIEWS])[:-400]}, ["not a readable .xlsx"], {}),
    "old Excel": ({"a.xls": b"\xd0\xcf\x11\xe0"}, ["old format", ".xlsx"], {}),
    "SQuAD": ({"train.json": json.dumps({"data": [PAGE]})}, ["questions with answers in a text"], {}),
    "SQuAD in rows": (
        {"a.jsonl": lines([{"question": "a?", "context": "b", "answers": {"text": ["b"]}}])},
        ["questions with answers in a text", "--label_column"],
        {},
    ),
    "relations": (
        {"a.jsonl": lines([{"text": "a b", "head": "a", "tail": "b", "relation": "x"}])},
        ["relations between two entities", "--label_column"],
        {},
    ),
    "relations in a table": (
        {"a.csv": "sentence,head,tail,relation\na b,a,b,x\n"},
        ["relations between two entities", "--label_column"],
        {},
    ),
    "triples": ({"a.json": lines([{"text": "a", "spo_list": []}] * 2)}, ["triples of subject"], {}),
    "bytes in a table": ({"a.csv": b"text,label\n\x00\x01\xff\xfe\x80,x\n"}, ["--encoding"], {}),
    "a row of no word/pos": (
        {"a.txt": "我/r 爱/v\n好 人/n\n"},
        ["row 2", "'好' is not word/tag"],
        {"format": "word_tags"},
    ),
    "CoNLL-U of nine columns": ({"a.conllu": "1\t" + "\t".join("abcdefgh") + "\n"}, ["row 1", "ten columns"], {}),
    "a column that CoNLL-U has not": ({"a.conllu": conllu(WORDS)}, ["'pos'", "upos"], {"label_column": "pos"}),
    "BRAT elsewhere": ({"a.txt": "Ann left", "a.ann": "T1\tPER 0 3\tBob\n"}, ["a.ann, row 1", "'Ann'", "'Bob'"], {}),
    "BRAT outside": ({"a.txt": "Ann left", "a.ann": "T1\tPER 5 99\tleft\n"}, ["outside the text"], {}),
    "BRAT without numbers": ({"a.txt": "Ann left", "a.ann": "T1\tPER\tAnn\n"}, ["TYPE START END"], {}),
    "BRAT without a text": ({"a.txt": "Ann left", "a.ann": "", "b.ann": "T1\tPER 0 3\tBob\n"}, ["no b.txt"], {}),
    "a text that BRAT has not": (
        brat(MARKED) | {"new.txt": "nobody looked here"},
        ["new.txt", "--drop_unlabelled"],
        {},
    ),
    "Label Studio elsewhere": (
        {
            "a.json": studio(
                [("Ann left", 0)],
                lambda t, _: [
                    {
                        "result": [
                            {
                                "type": "labels",
                                "from_name": "n",
                                "value": {"start": 0, "end": 3, "text": "Bob", "labels": ["x"]},
                            }
                        ]
                    }
                ],
            )
        },
        ["item 1", "'Ann'", "'Bob'"],
        {},
    ),
    "half of Label Studio": (
        {"a.json": studio([("Ann left", 0)], lambda t, _: [{"result": [{"type": "choices", "value": {}}]}])},
        ["item 1", "Label Studio"],
        {},
    ),
    "a row without a label for fastText": (
        {"a.txt": "__label__x a\n__label__y b\nno label\n"},
        ["row 3", "--drop_unlabelled"],
        {"format": "fasttext"},
    ),
    "a class alone": ({"x/1.txt": "a", "x/2.txt": "b"}, ["no data files"], {}),
    "an empty text in a class": (by_class(REVIEWS) | {"pos/99.txt": ""}, ["99.txt", "empty"], {}),
    "a comma too many": ({"a.json": '[{"text": "a", "label": "x"},\n]'}, ["row 2", "not JSON"], {}),
    "half a list": ({"a.json": '[{"text": "a", "label": "x"},\n{"text": "b'}, ["row 2", "not JSON"], {}),
    "more behind the list": ({"a.json": '[{"text": "a", "label": "x"}]\n]'}, ["row 2", "Extra data"], {}),
    "fewer than none": ({"a.csv": "text,label\na,x\n"}, ["--max_rows"], {"max_rows": -1}),
    "no set of that name": ({"a.csv": ""}, ["cannot be loaded as a dataset"], {"format": "hf"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_one_line_with_the_flag(name, tmp_path, monkeypatch):
    files, words, options = REFUSED[name]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = write(tmp_path / "raw", files)
    with pytest.raises(UserError) as error:
        process(DataConfig(input=str(source), output_dir=str(tmp_path / "out"), **options))
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words) and len(message) < 900, message
    assert not (tmp_path / "out").exists()


def test_excel_without_its_package_is_one_line(tmp_path, monkeypatch):
    importing = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a, **k: importing("no_such" if name == "openpyxl" else name, *a, **k)
    )
    write(tmp_path, {"a.xlsx": workbook(one=[["text", "label"], *REVIEWS])})
    with pytest.raises(UserError, match=r"openpyxl: pip install -r requirements-excel\.txt"):
        list(read_examples(tmp_path / "a.xlsx", OPTIONS))


def test_streamed_rows_are_those_that_are_not_streamed(tmp_path, monkeypatch):
    """A dataset of local files, with classes as numbers: as a whole, its first rows, and where the disk is full."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = write(tmp_path / "raw", {"hub/train.jsonl": lines(TEXT), "hub/validation.jsonl": lines(TEXT[:5])})
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

EXAMPLES = settings(
    max_examples=int(os.environ.get("SOAK_EXAMPLES", 150)), deadline=None, suppress_health_check=list(HealthCheck)
)
any_text = st.text(st.characters(codec="utf-8"), max_size=30)
token = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=6)
tag = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,3}", fullmatch=True)
sentence = st.lists(st.tuples(token, tag), min_size=1, max_size=8)
OPTIONS = ReadOptions(labelled=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@EXAMPLES
@given(st.lists(sentence, min_size=1, max_size=4))
def test_words_and_tags_come_back_in_each_form(folder, sentences):
    (folder / "a.txt").write_bytes("".join(" ".join(f"{w}/{t}" for w, t in s) + "\n" for s in sentences).encode())
    rows = ["\n".join(f"{n}\t{w}\t_\t{t}" + "\t_" * 6 for n, (w, t) in enumerate(s, 1)) for s in sentences]
    (folder / "b.conllu").write_bytes(("\n\n".join(rows) + "\n").encode())
    for name, read, task in (("a.txt", "word_tags", "tags"), ("b.conllu", "conllu", "upos")):
        found = list(READERS[read](folder / name, OPTIONS))
        assert [[*zip(row["tokens"], row[task])] for row in found] == sentences


@EXAMPLES
@given(st.lists(st.text(st.sampled_from("ab[]/ nsv"), max_size=12), max_size=6))
def test_brackets_never_shift_a_tag(folder, rows):
    """Whatever the brackets, each token has the tag that stood behind it, or the row is named."""
    (folder / "a.txt").write_text("\n".join(rows) + "\n")
    try:
        found = list(READERS["word_tags"](folder / "a.txt", OPTIONS))
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


@EXAMPLES
@given(any_text, st.lists(st.tuples(st.integers(-2, 40), st.integers(-2, 40), st.booleans()), max_size=5))
def test_brats_entities_are_what_the_text_has_there(folder, text, spans):
    text = text or "x"
    rows = [
        f"T{n}\tX {a} {b}\t{text[max(a, 0) : max(b, 0)] if same else 'other'}" for n, (a, b, same) in enumerate(spans)
    ]
    raw = folder / "brat"
    raw.mkdir(exist_ok=True)
    (raw / "a.txt").write_bytes(text.encode())
    (raw / "a.ann").write_bytes("".join(row.replace("\r", " ").replace("\n", " ") + "\n" for row in rows).encode())
    try:
        (row,) = READERS["brat"](raw, OPTIONS)
    except UserError as error:
        assert "a.ann, row" in str(error)
    else:
        assert row["text"] == text.removeprefix("\ufeff")
        assert [(a, b) for a, b, _ in row["entities"]] == [(a, b) for a, b, _ in spans]


@EXAMPLES
@given(
    st.text(st.sampled_from("ab中😀 𝒳é"), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=4),
)
def test_label_studios_offsets_mean_the_surface(folder, text, pairs):
    spans = [(a, b, "x") for a, b in pairs if a < b <= len(text)]
    (folder / "a.json").write_text(studio([(text, spans), ("more", [])], regions), encoding="utf-8")
    if not spans:
        return
    found = list(READERS["json"](folder / "a.json", OPTIONS))
    for (start, end, _), span in zip(spans, found[0]["ner"]):
        assert found[0]["text"][span["start"] : span["end"]] == text[start:end]
        assert (span["start"], span["end"]) == (start, end) or text.count(text[start:end]) > 1


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), any_text),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(any_text, inner, max_size=2),
    max_leaves=4,
)


class Slowly(io.StringIO):
    """A file that gives a few characters at a time."""

    def read(self, size=-1):
        return super().read(min(size, 3) if size > 0 else size)


@EXAMPLES
@given(st.lists(json_values, max_size=4), st.sampled_from([None, 1]), st.booleans())
def test_a_list_read_in_pieces_is_the_list(values, indent, ascii):
    text = " \n" + json.dumps(values, indent=indent, ensure_ascii=ascii) + "\n"
    for file in (io.StringIO(text), Slowly(text)):
        assert list(objects.JsonList("a.json", file).items()) == values


@EXAMPLES
@given(st.text(st.sampled_from('[]{},:"a1 \n\\utrue'), max_size=25))
@example("[1:]")
@example("[1.,2]")
def test_a_broken_list_is_refused_as_json_refuses_it(text):
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


@EXAMPLES
@given(
    st.sampled_from(["a.txt", "a.csv", "a.tsv", "a.json", "a.conllu", "a.xlsx", "a.ft.gz"]),
    st.sampled_from([{}, {"header": False}, {"delimiter": ";"}, {"drop_unlabelled": True}, {"max_rows": 2}]),
    st.one_of(
        st.binary(max_size=150),
        any_text.map(str.encode),
        st.lists(st.sampled_from(ROWS_OF_SHAPES), max_size=6).map(lambda rows: "\n".join(rows).encode()),
    ),
)
def test_any_bytes_are_rows_or_a_named_error(tmp_path_factory, name, options, content):
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


@EXAMPLES
@given(st.data())
def test_damaged_workbooks_are_rows_or_a_named_error(folder, data):
    """Bytes of a part of a workbook are replaced, with its checksum made right again."""
    whole = zipfile.ZipFile(io.BytesIO(workbook(one=[["text", "label"], *REVIEWS])))
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


def test_the_small_rules():
    assert fasttext_labels("__label__a, __label__b text __label__c") == ("text __label__c", ["a", "b"])
    assert fasttext_labels("text  __label__c\t__label__d") == ("text", ["d", "c"])
    assert names_marked(["a", "b"], {"a": "1.0", "b": False}, "here") == ["a"]
    assert names_marked(["a", "b"], {"a": -1, "b": "-1"}, "here") is None


# ---- hostile files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch):
    """Limits so small that a test's file is beyond them."""
    for module in (raw_files, tables, objects):
        monkeypatch.setattr(module, "MAX_CHARACTERS", 1000)
    monkeypatch.setattr(objects, "MAX_OBJECT_CHARACTERS", 5000)
    monkeypatch.setattr(token_rows, "MAX_TOKENS", 1000)
    monkeypatch.setattr(tables, "MAX_UNPACKED_BYTES", 20_000)


LONG = "y" * 1200
HOSTILE = {
    "csv": ("a.csv", f"text,label\na,x\n{LONG},y\n", ["row 3", "longer than 1,000 characters"]),
    "csv, a quote without end": ("a.csv", 'text,label\na,x\n"' + "y,\n" * 900, ["row 3", "quote"]),
    "csv, quotes on and on": ("a.csv", "text,label\na,x\n" + '"bb\nb",' * 900, ["row 3", "longer than", "quote"]),
    "tsv": ("a.tsv", f"text\tlabel\na\tx\n{LONG}\ty\n", ["row 3", "longer than 1,000"]),
    "jsonl": ("a.jsonl", lines([*TEXT, {"text": LONG, "label": "x"}]), ["row 13", "longer than 1,000"]),
    "json list": ("a.json", json.dumps([*TEXT, {"text": 9 * LONG, "label": "x"}]), ["row 1", "longer than 1,000"]),
    "parquet": ("a.parquet", parquet([*TEXT, {"text": LONG, "label": "x"}]), ["row 13", "longer than 1,000"]),
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
    "workbook": ("a.xlsx", workbook(one=[["text", "label"], *(900 * REVIEWS)]), ["20,000 bytes when decompressed"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_rows_without_an_end_are_one_line(name, tmp_path, narrow):
    file, body, words = HOSTILE[name]
    write(tmp_path / "raw", {file: body} | ({"z/1.txt": "b"} if "/" in file else {}))
    with pytest.raises(UserError) as error:
        process(DataConfig(input=str(tmp_path / "raw"), output_dir=str(tmp_path / "out")))
    assert all(word in str(error.value) for word in words) and len(str(error.value)) < 400, error.value


def test_ten_thousand_columns_are_read_or_one_short_line(tmp_path, capsys):
    names = [f"column {number}" for number in range(10_000)]
    body = [["text", "label", *names], *([t, b, *["0"] * 10_000] for t, b in REVIEWS)]
    write(tmp_path, {"a.csv": "".join(",".join(map(quoted, row)) + "\n" for row in body)})
    process(DataConfig(input=str(tmp_path / "a.csv"), output_dir=str(tmp_path / "out"), dev_ratio=0.2, test_ratio=0.2))
    assert in_order(as_given(row, CLASSIC) for row in processed_rows(tmp_path / "out")) == in_order(TEXT)
    assert "(9,988 more)" in capsys.readouterr().out
    write(tmp_path, {"b.csv": "".join(",".join(map(quoted, row[2:])) + "\n" for row in body)})
    with pytest.raises(UserError, match=r"--text_column.*\(9,988 more\)$"):
        process(DataConfig(input=str(tmp_path / "b.csv"), output_dir=str(tmp_path / "out2")))


def test_large_rows_are_not_held_by_the_thousand(tmp_path, monkeypatch):
    """Few of them say which columns there are; all are read, and a key that comes late is named."""
    monkeypatch.setattr(raw_files, "MAX_HEAD_BYTES", 1000)
    write(tmp_path, {"a.jsonl": lines(TEXT), "b.csv": csv_of(REVIEWS, ["text", "label"])})
    write(tmp_path, {"c.jsonl": lines([*TEXT, {"text": "x", "label": "pos", "intent": "y"}])})
    for name in ("a.jsonl", "b.csv"):
        found = list(READERS[name[2:]](tmp_path / name, OPTIONS))
        assert [(row["text"], row["label"]) for row in found] == REVIEWS
    with pytest.raises(UserError, match="row 13: has the key 'intent', which none of the first 5 rows has"):
        list(READERS["jsonl"](tmp_path / "c.jsonl", OPTIONS))


# A small process in between: Linux counts the memory of the process that starts another as the other's own
MEASURE = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)"""


def run_measured(flags, folder):
    """(exit code, its lines on stderr, peak memory in MB) of data_process.py."""
    command = [sys.executable, "-c", MEASURE, sys.executable, str(ROOT / "data_process.py"), *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines(), int(done.stdout) / 1024


@pytest.fixture(scope="module")
def zeros(tmp_path_factory):
    """A .gz of one row of 2 GB."""
    path = tmp_path_factory.mktemp("zeros") / "zeros.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(512):
            file.write(b"0" * 2**22)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "txt", "conll", "conllu"])
@pytest.mark.parametrize("start", [b"", b'{"a": "', b'[{"a": "'])
def test_a_packed_row_of_two_gigabytes_is_one_line_in_little_memory(suffix, start, zeros, tmp_path):
    with open(tmp_path / f"a.{suffix}.gz", "wb") as file:  # members of a .gz follow each other
        file.write(gzip.compress(start) + zeros.read_bytes())
    code, errors, peak = run_measured(["--input", f"a.{suffix}.gz", "--output_dir", "out"], tmp_path)
    assert code == 2 and len(errors) == 1 and f"a.{suffix}.gz" in errors[0], errors
    assert peak < 2000 and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "conll"])
def test_a_row_of_100_mb_is_one_line_in_little_memory(suffix, tmp_path):
    body = {"csv": "text,label\na,x\n%s,y\n", "conll": "a O\n%s O\n", "json": '[{"text": "%s", "label": "x"}]'}
    text = body.get(suffix, '{"text": "a", "label": "x"}\n{"text": "%s", "label": "y"}\n') % ("文" * 34_000_000)
    (tmp_path / f"a.{suffix}").write_text(text, encoding="utf-8")
    code, errors, peak = run_measured(["--input", f"a.{suffix}", "--output_dir", "out"], tmp_path)
    assert code == 2 and len(errors) == 1 and "longer than 16,777,216 characters" in errors[0] and "row " in errors[0]
    assert peak < 2000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "words"),
    [("all.csv", 200_000, "nearly all different"), ("train.csv", 1_000_000, "--label_column")],
)
def test_a_million_labels_are_one_line_in_little_memory(name, size, words, tmp_path):
    rng = random.Random(1)
    rows = [f"row {number},n{rng.randrange(10**12)}\n" for number in range(size)]
    write(tmp_path, {f"raw/{name}": "text,label\n" + "".join(rows)})
    write(tmp_path, {"raw/dev.csv": "text,label\na,x\nb,y\n"} if name == "train.csv" else {})
    code, errors, peak = run_measured(["--input", "raw", "--output_dir", "out"], tmp_path)
    assert code == 2 and len(errors) == 1 and "labels" in errors[0] and words in errors[0], errors
    assert peak < 2000


def test_formats_are_recognised_by_their_first_rows(tmp_path):
    for name, files in SHAPES.items():
        if not callable(files[0]) and len(files[0]) == 1 and not {"format", "delimiter"} & files[3].keys():
            source = write(tmp_path / str(abs(hash(name))), files[0])
            (path,) = (path for path in source.iterdir() if path.is_file())
            assert find_format(path, OPTIONS) in READERS
