import errno
import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, SHARED, read_json

from data_process import DataConfig, make_sample, process
from engine.errors import UserError
from engine.task.tags import illegal_tags
from engine.task.text import join_tokens, split_text
from preprocess.labels.kinds import KINDS
from preprocess.readers.options import ReadOptions
from preprocess.readers.sources import TextRows, read_texts


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def run(tmp_path, files, name=None, **options):
    """Writes the files, processes them (or only `name`), and returns {split: examples} and the labels."""
    raw = write(tmp_path / "raw", files)
    process(DataConfig(input=str(raw / name if name else raw), output_dir=str(tmp_path / "out"), **options))
    splits = {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        for path in (tmp_path / "out").glob("*.jsonl")
    }
    return splits, read_json(tmp_path / "out/labels.json")


def three(text):
    """Returns the same file as train, dev and test."""
    return {f"{split}.{name}": body for split in ("train", "dev", "test") for name, body in text.items()}


def test_csv_preserves_quotes_line_breaks_and_na_strings(tmp_path):
    body = 'text,label\n"a, ""b""\nc",x\nNA,null\nnull,x\n007,null\n"line\u2028sep",x\n'
    splits, labels = run(tmp_path, three({"csv": body}))
    assert [e["text"] for e in splits["train"]] == ['a, "b"\nc', "NA", "null", "007", "line\u2028sep"]
    assert labels == {"label": {"type": "classification", "labels": ["null", "x"], "counts": [2, 3]}}


def test_lists_with_one_class(tmp_path):
    """doccano writes such lists. Two classes are still rejected."""
    rows = [{"text": f"text {i}", "label": [("x", "y")[i % 2]]} for i in range(4)]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    options = dict(label_type="label=classification")
    splits, labels = run(tmp_path, three({"jsonl": body}), **options)
    assert [row["label"] for row in splits["train"]] == ["x", "y", "x", "y"]
    assert labels["label"]["type"] == "classification"
    with pytest.raises(UserError, match="row 5: has no label 'label'"):
        run(tmp_path / "b", three({"jsonl": body + '{"text": "text 5", "label": []}\n'}), **options)
    with pytest.raises(UserError, match="row 5: the label label="):
        run(tmp_path / "c", three({"jsonl": body + '{"text": "text 5", "label": ["x", "y"]}\n'}), **options)


def test_tsv_keeps_stray_quotes_and_long_fields(tmp_path):
    body = 'sentence\tlabel\n"stray\tx\n' + "y " * 99_999 + "yy\tz\nend\x0b\x85\tx\n"
    splits, _ = run(tmp_path, three({"tsv": body}))
    assert [len(e["text"]) for e in splits["dev"]] == [6, 200_000, 5]


def test_columns_by_name_pairs_and_several_tasks(tmp_path):
    body = "who,q1,q2,topic,mood\nme,a,b,t1,good\nme,c,d,t2,bad\n"
    splits, labels = run(
        tmp_path, three({"csv": body}), text_column="q1", text_pair_column="q2", label_column="topic,mood"
    )
    assert splits["train"][0] == {"id": "0", "text": "a", "text_pair": "b", "topic": "t1", "mood": "good"}
    assert list(labels) == ["topic", "mood"]


def test_jsonl_with_tokens_split_and_numbers_as_labels(tmp_path):
    rows = [
        {"tokens": ["a", " "], "label": n % 2, "tags": ["B-x", "O"], "split": split, "extra": {}}
        for split in ("train", "valid", "test")
        for n in range(2)
    ]
    splits, labels = run(tmp_path, {"all.jsonl": "\n".join(map(json.dumps, rows))})
    assert [len(splits[split]) for split in ("train", "dev", "test")] == [2, 2, 2]
    assert splits["dev"][1] == {"id": "3", "tokens": ["a", " "], "label": "1", "tags": ["B-x", "O"]}
    assert labels["tags"] == {"type": "tagging", "labels": ["O", "B-x"], "counts": [2, 2], "unit": "character+blank"}


def test_conll_with_blank_tokens_columns_and_intents(tmp_path):
    body = "a NNP B-x\nb NN O\n\n  NN O\nc NN O\n"
    files = {f"{split}/ch.{split}": body for split in ("train", "valid", "test")} | {
        f"{split}/ch.{split}.intent": "one\ntwo\n" for split in ("train", "valid", "test")
    }
    splits, labels = run(tmp_path, files)
    assert splits["dev"] == [
        {"id": "2", "tokens": ["a", "b"], "intent": "one", "slots": ["B-x", "O"]},
        {"id": "3", "tokens": [" ", "c"], "intent": "two", "slots": ["O", "O"]},
    ]
    assert list(labels) == ["intent", "slots"]


def test_seq_folders(tmp_path):
    files = {
        f"{split}/{name}": body
        for split in ("train", "dev", "test")
        for name, body in {
            "seq.in": "go to  york\nplay it\n",
            "seq.out": "O O B-city\nO O\n",
            "label": "travel\nmusic\n",
        }.items()
    }
    splits, labels = run(tmp_path, files)
    assert splits["train"][0] == {
        "id": "0",
        "tokens": ["go", "to", "york"],
        "intent": "travel",
        "slots": ["O", "O", "B-city"],
    }
    assert labels["slots"]["unit"] == "word"


def test_single_file_is_split_into_disjoint_stratified_splits_by_seed(tmp_path, capsys):
    body = "text,label\n" + "".join(f"t{i},{'abc'[i % 3]}\n" for i in range(90)) + "alone,rare\n"
    splits, _ = run(tmp_path, {"all.csv": body}, "all.csv")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 73, "dev": 9, "test": 9}
    texts = [e["text"] for rows in splits.values() for e in rows]
    assert len(set(texts)) == 91 and "alone" in {e["text"] for e in splits["train"]}
    for split in ("dev", "test"):
        assert sorted(e["label"] for e in splits[split]) == list("aaabbbccc")
    assert "stratified by 'label', seed 666" in capsys.readouterr().out
    again, _ = run(tmp_path, {"all.csv": body}, "all.csv")
    other, _ = run(tmp_path, {"all.csv": body}, "all.csv", random_seed=1)
    assert again == splits and other != splits


def test_labels_unseen_in_train_are_reported_and_count_as_wrong(tmp_path, capsys):
    _, labels = run(tmp_path, {"train.csv": "text,label\na,x\nb,y\n", "dev.csv": "text,label\nc,new\n"})
    assert labels["label"]["labels"] == ["x", "y"]
    assert "labels in dev that never occur in train (1)" in capsys.readouterr().out


def test_byte_order_marks_and_other_encodings(tmp_path):
    body = "text,label\n你好,x\n再见,y\n"
    for encoding, option in (("utf-8-sig", "auto"), ("utf-16", "auto"), ("gb18030", "gb18030")):
        splits, _ = run(
            tmp_path, {f"{split}.csv": body.encode(encoding) for split in ("train", "dev")}, encoding=option
        )
        assert splits["train"][0]["text"] == "你好"


GOOD = "text,label\na,x\nb,y\n"
CONLL = "a O\nb B-x\n\nc O\n"
BAD = {
    "missing file": ({}, ["no such file"], {}),
    "empty file": ({"train.csv": "", "dev.csv": GOOD}, ["train.csv", "empty"], {}),
    "header only": ({"train.csv": "text,label\n", "dev.csv": GOOD}, ["train.csv", "no examples"], {}),
    "damaged UTF-8": (
        {"train.csv": b"text,label\na,x\n" + "déjà vu ".encode() * 3 + b"\xe9,y\n", "dev.csv": GOOD},
        ["train.csv, row 3", "--encoding gb18030"],
        {},
    ),
    "no such encoding": ({"train.csv": GOOD}, ["--encoding klingon"], {"encoding": "klingon"}),
    "missing column": ({"train.csv": "a,b\n1,2\n"}, ["train.csv", "--text_column", "a, b"], {}),
    "named column missing": ({"train.csv": GOOD}, ["'nope'", "text, label"], {"text_column": "nope"}),
    "column twice": ({"train.csv": "text,text,label\na,b,c\n"}, ["row 1", "two columns"], {}),
    "text as label": ({"train.csv": GOOD}, ["--label_column"], {"label_column": "text"}),
    "too many cells": ({"train.csv": "text,label\na,x\nb,y,z\n"}, ["row 3", "3 cells", "2"], {}),
    "open quote": ({"train.csv": 'text,label\na,x\n"b,y\nc,x\n'}, ["train.csv, row 3", "quote"], {}),
    "empty label": ({"train.csv": "text,label\na,x\nb,\n"}, ["row 3", "empty"], {}),
    "empty text": ({"train.csv": "text,label\na,x\n ,y\n"}, ["row 3", "text is empty"], {}),
    "single class": ({"train.csv": "text,label\na,x\nb,x\n", "dev.csv": GOOD}, ["single label 'x'"], {}),
    "not JSON": ({"train.jsonl": '{"text": "a", "label": "x"}\n{"text": \n'}, ["train.jsonl, row 2", "not JSON"], {}),
    "not an object": ({"train.jsonl": '{"text": "a", "label": "x"}\n[1]\n'}, ["row 2", "object"], {}),
    "key missing": ({"train.jsonl": '{"text": "a", "label": "x"}\n{"text": "b"}\n'}, ["row 2", "'label'"], {}),
    "label of another type": (
        {"train.jsonl": '{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n'},
        ["row 2", "has no label"],
        {},
    ),
    "tokens and tags": (
        {"train.jsonl": '{"tokens": ["a", "b"], "tags": ["O"]}\n'},
        ["row 1", "2 tokens", "1 tags"],
        {},
    ),
    "tags without tokens": ({"train.jsonl": '{"text": "a b", "tags": ["O", "O"]}\n'}, ["row 1", "tokens"], {}),
    "no tokens": ({"train.jsonl": '{"tokens": [], "tags": []}\n'}, ["row 1", "tokens"], {}),
    "empty tag": ({"train.jsonl": '{"tokens": ["a"], "tags": [""]}\n'}, ["row 1", "tag"], {}),
    "tag missing": ({"train.conll": "a O\nb\n", "dev.conll": CONLL}, ["train.conll, row 2", "token and a tag"], {}),
    "too few intents": (
        {"train.conll": CONLL, "train.conll.intent": "x\n", "dev.conll": CONLL},
        [".intent", "1 rows"],
        {},
    ),
    "too many intents": (
        {"train.conll": CONLL, "train.conll.intent": "x\ny\nz\n", "dev.conll": CONLL},
        [".intent", "3 rows", "2 sentences"],
        {},
    ),
    "seq lengths": (
        {"train/seq.in": "a b\nc\n", "train/seq.out": "O O\n", "train/label": "x\ny\n"},
        ["seq.out", "1 rows", "2"],
        {},
    ),
    "seq tags": (
        {"train/seq.in": "a b\nc\n", "train/seq.out": "O\nO\n", "train/label": "x\ny\n"},
        ["seq.in, row 1", "2 tokens", "1 tags"],
        {},
    ),
    "unknown format": ({"train.dat": "hello there\n"}, ["train.dat", "--format"], {}),
    "stray part": ({"train.csv": GOOD, "other.csv": GOOD}, ["other.csv", "train, dev"], {}),
    "unknown split": ({"all.jsonl": '{"text": "a", "label": "x", "split": "later"}\n'}, ["row 1", "'later'"], {}),
    "reserved label": (
        {"train.csv": "content,text\na,x\n"},
        ["'text'", "rename"],
        {"text_column": "content", "label_column": "text"},
    ),
    "label called _where": ({"train.csv": "text,_where\na,x\n"}, ["'_where'", "rename"], {"label_column": "_where"}),
    "lone surrogate": ({"train.jsonl": '{"text": "\\ud800", "label": "x"}\n'}, ["row 1", "surrogate"], {}),
    "null tags": (
        {"train.jsonl": '{"tokens": ["a"], "slots": ["O"]}\n{"tokens": ["a"], "slots": null}\n'},
        ["row 2", "'slots'"],
        {},
    ),
    "endless number": ({"train.jsonl": '{"text": "a", "label": ' + "9" * 5000 + "}\n"}, ["row 1", "not JSON"], {}),
    "deep nesting": ({"train.jsonl": "[" * 100_000 + "\n"}, ["row 1", "not JSON"], {}),
    "too few to split": ({"all.csv": GOOD}, ["too few"], {}),
    "no train part": ({"test.csv": GOOD}, ["no train split"], {}),
    "task with a dot": ({"train.csv": "text,a.b\nx,y\n"}, ["'a.b'"], {"label_column": "a.b"}),
    "different keys": (
        {"train.csv": GOOD, "dev.csv": "text,label,text_pair\na,x,b\n"},
        ["dev.csv, row 2", "text_pair"],
        {},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_input_raises_a_one_line_error_and_writes_nothing(name, tmp_path):
    files, words, options = BAD[name]
    raw = write(tmp_path / "raw", files)
    with pytest.raises(UserError) as raised:
        process(DataConfig(input=str(raw), output_dir=str(tmp_path / "out"), **options))
    message = str(raised.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_command_exits_with_code_2(command, tmp_path):
    write(tmp_path, {"bad.csv": "text,label\na,x\nb,\n"})
    done = command("data_process.py", "--input", "bad.csv", "--output_dir", "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "bad.csv, row 3" in done.stderr


def test_folder_with_other_files_is_not_changed(tmp_path):
    write(tmp_path, {"all.csv": GOOD, "out/thesis.txt": "years of work"})
    with pytest.raises(UserError, match=r"thesis\.txt"):
        process(DataConfig(input=str(tmp_path / "all.csv"), output_dir=str(tmp_path / "out")))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "text",
    ["订一张去New York的票, 谢谢!", "it's 7.7 o'clock, ok?", "  a\u200bb 👍🏽 é ", "日本語テスト", "a_b c++ d.c.", ""],
)
@pytest.mark.parametrize("unit", ["word", "character", "character+blank"])
def test_split_text_returns_offsets(text, unit):
    pieces = split_text(text, unit)
    assert pieces and all(text[start:end] == token for token, start, end in pieces)
    covered = {i for _, start, end in pieces for i in range(start, end)}
    assert all(i in covered or text[i].isspace() for i in range(len(text)))


def test_split_text_finds_word_boundaries():
    words = [token for token, _, _ in split_text("fly to st. louis, d.c at 7:30 (请快点)!", "word")]
    assert words == ["fly", "to", "st", ".", "louis", ",", "d.c", "at", "7:30", "(", "请", "快", "点", ")", "!"]


def test_join_tokens_round_trip():
    text, spans = join_tokens(["play", "Let", "It", "Be", "播", "放", "7", "点"], "word")
    assert text == "play Let It Be播放7点"
    assert [text[start:end] for start, end in spans] == ["play", "Let", "It", "Be", "播", "放", "7", "点"]
    assert join_tokens(["t", "f", " ", "b"], "character+blank")[0] == "tf b"


def test_illegal_tags_are_counted():
    assert illegal_tags(["O", "I-x", "B-x", "I-y", "I-y", "O", "E-x"]) == [1, 3, 6]
    assert illegal_tags(["B-x", "I-x", "E-x", "S-y", "B-x", "I-x"]) == []


def test_texts_to_predict(tmp_path):
    write(
        tmp_path,
        {"a.txt": "one\n\n三\n", "b.csv": "review,stars\nfine,5\n", "c.jsonl": '{"tokens": ["a", "b"]}\n', "d.txt": ""},
    )
    options = ReadOptions()
    assert [e["text"] for e in read_texts(tmp_path / "a.txt", options)] == ["one", "", "三"]
    assert list(read_texts(tmp_path / "b.csv", options)) == [{"id": "0", "text": "fine", "extras": {"stars": "5"}}]
    assert list(read_texts(tmp_path / "c.jsonl", options)) == [{"id": "0", "tokens": ["a", "b"]}]
    write(
        tmp_path,
        {
            "f.tsv": "text\n\nx\n",
            "g.ndjson": '{"text": "a"}\n\n{"text": "b"}\n',
            "h.CSV": "text\n\nx\n",
            "i.txt": "你好\n".encode("gb18030"),
        },
    )
    for name, texts in (("f.tsv", ["", "x"]), ("g.ndjson", ["a", "", "b"]), ("h.CSV", ["", "x"])):
        assert [e["text"] for e in read_texts(tmp_path / name, options)] == texts, (
            name
        )  # one row each, including the blank one
    assert next(read_texts(tmp_path / "i.txt", ReadOptions(encoding="gb18030")))["text"] == "你好"
    write(
        tmp_path,
        {
            "j.xlsx": "x",
            "k.jsonl": '{"text": null}\n',
            "l.jsonl": '{"text": "a"}\n{"tokens": ["a"], "text": 1}\n',
            "m.jsonl": '{"tokens": []}\n',
        },
    )
    for name in ("d.txt", "e.txt", "j.xlsx", "k.jsonl", "l.jsonl", "m.jsonl"):
        with pytest.raises(UserError, match=name):
            TextRows(name, partial(read_texts, tmp_path / name, options))


def test_sample_matches_its_generator_and_is_processed_without_warnings(tmp_path, capsys):
    import importlib.util

    source = importlib.util.spec_from_file_location("make_sample", ROOT / "dataset/sample_raw/make_sample.py")
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    module.main(tmp_path)
    for name in ("zh.jsonl", "en.jsonl"):
        assert (tmp_path / name).read_bytes() == (ROOT / "dataset/sample_raw" / name).read_bytes()
    make_sample(tmp_path / "out")
    assert "no problems found" in capsys.readouterr().out
    sizes = Counter()
    for split in ("train", "dev", "test"):
        lines = (tmp_path / f"out/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        sizes.update((split, json.loads(line)["kept"]["slice"]) for line in lines)
    known, new = "like training", "new wording"
    assert sizes == {
        ("train", None): 1480,
        ("dev", known): 180,
        ("dev", new): 60,
        ("test", known): 240,
        ("test", new): 80,
    }


@pytest.mark.skipif(not SHARED.exists(), reason="needs the ATIS and CAIS files in ../shared/data")
@pytest.mark.parametrize("name, sizes", [("atis", (4478, 500, 893)), ("cais", (7995, 994, 1012))])
def test_real_data_sets_need_only_the_flag_input(name, sizes, tmp_path):
    process(DataConfig(input=str(SHARED / name), output_dir=str(tmp_path / name)))
    counts = [(tmp_path / name / f"{split}.jsonl").read_bytes().count(b"\n") for split in ("train", "dev", "test")]
    assert tuple(counts) == sizes and list(read_json(tmp_path / name / "labels.json")) == ["intent", "slots"]


def test_repeated_ids_are_reported(tmp_path, capsys):
    splits, _ = run(tmp_path, three({"csv": "id,text,label\n1,a,x\n2,b,y\n"}))
    assert [e["id"] for e in splits["dev"]] == [
        "1",
        "2",
    ] and "ids are used more than once (4)" in capsys.readouterr().out


@pytest.mark.parametrize("output", ["raw", ".", "mine"])
def test_raw_data_is_never_overwritten(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = "".join(json.dumps({"guid": i, "sentence": f"t{i}", "label": "xy"[i % 2]}) + "\n" for i in range(30))
    write(tmp_path, {"raw/train.jsonl": body, "raw/dev.jsonl": body, "mine/train.jsonl": body})
    with pytest.raises(UserError, match="output_dir"):
        process(DataConfig(input="raw", output_dir=output))
    assert (tmp_path / "raw/train.jsonl").read_text() == (tmp_path / "mine/train.jsonl").read_text() == body


def test_selected_columns_are_printed(tmp_path, capsys):
    run(tmp_path, three({"tsv": "source\tsentence\tlabel\na\tb\tx\nc\td\ty\n"}))
    assert "text from 'sentence', labels from 'label'; not used: source" in capsys.readouterr().out


def test_combining_marks_are_not_separated_from_their_letters():
    words = [token for token, _, _ in split_text("हिन्दी cafe\u0301 boston,denver 1,000", "word")]
    assert words == ["हिन्दी", "cafe\u0301", "boston", ",", "denver", "1,000"]


WEIBO = "科0 B-ORG.NAM\n技1 I-ORG.NAM\n20 O\n21 O\n\n全0 O\n方1 O\n位2 O\n10 O\n"


def test_numbers_appended_to_characters_are_reported_and_removed(tmp_path, capsys):
    for body in (WEIBO, WEIBO.replace(" ", "\t")):
        splits, _ = run(tmp_path, {f"weiboNER.conll.{split}": body for split in ("train", "dev")})
        assert [e["tokens"] for e in splits["train"]] == [["科", "技", "2", "2"], ["全", "方", "位", "1"]]
        assert "removing the position" in capsys.readouterr().out
    plain = WEIBO.replace("位2", "位x2")  # one token does not have this form, so nothing is changed, but it is reported
    splits, _ = run(tmp_path, {f"weiboNER.conll.{split}": plain for split in ("train", "dev")})
    assert splits["train"][0]["tokens"] == ["科0", "技1", "20", "21"]
    assert "tokens are characters with a number appended (4): " in capsys.readouterr().out


def test_ordinary_tokens_that_end_in_numbers_are_unchanged(tmp_path, capsys):
    splits, _ = run(tmp_path, {f"{split}.conll": "A1 B-x\nB2 I-x\n\nQ4 O\n" for split in ("train", "dev")})
    assert splits["train"][0]["tokens"] == ["A1", "B2"] and "appended" not in capsys.readouterr().out


def nli(*labels):
    return "".join(
        json.dumps({"sentence1": f"a {i}", "sentence2": "b", "label": label}) + "\n" for i, label in enumerate(labels)
    )


def test_dash_among_word_labels_means_no_gold_label(tmp_path, capsys):
    body = nli("neutral", "-", "entailment", "contradiction")
    splits, labels = run(tmp_path, {f"{split}.jsonl": body for split in ("train", "dev")})
    assert labels["label"]["labels"] == ["contradiction", "entailment", "neutral"]
    assert [len(rows) for rows in splits.values()] == [3, 3] and [e["text"] for e in splits["train"]] == [
        "a 0",
        "a 2",
        "a 3",
    ]
    out = capsys.readouterr().out
    assert "no gold label (2): " in out and "train.jsonl, row 2" in out and "dropped" in out
    _, labels = run(tmp_path, {f"{split}.jsonl": body for split in ("train", "dev")}, label_type="label=classification")
    assert "-" in labels["label"]["labels"]


def test_dash_means_unlabelled_with_other_tasks_and_is_a_label_among_other_signs(tmp_path):
    two = "".join(json.dumps({"text": f"t{i}", "label": "-y"[i % 2], "intent": "ab"[i % 2]}) + "\n" for i in range(6))
    body = (
        two.replace('"label": "y"', '"label": "yes"') + json.dumps({"text": "t9", "label": "no", "intent": "a"}) + "\n"
    )
    splits, labels = run(tmp_path, {f"{split}.jsonl": body for split in ("train", "dev")})
    assert labels["label"]["labels"] == ["no", "yes"] and [e["label"] for e in splits["train"]][:2] == [None, "yes"]
    for labelled in (nli("+", "-", "+"), nli("+", "0", "-")):
        _, labels = run(tmp_path, {f"{split}.jsonl": labelled for split in ("train", "dev")})
        assert "-" in labels["label"]["labels"]


def test_whole_numbers_with_a_decimal_point_are_reported(tmp_path, capsys):
    body = "text,score\n" + "".join(f"t{i},{i % 3 + 1}.0\n" for i in range(30))
    run(tmp_path, {f"{split}.csv": body for split in ("train", "dev")}, label_column="score")
    out = capsys.readouterr().out
    assert "score: few distinct values, all whole numbers (1): " in out and "1, 2, 3" in out


def test_flag_errors_do_not_import_slow_libraries():
    heavy = "{'torch', 'transformers', 'scipy', 'sklearn', 'seqeval', 'datasets'}"
    code = f"import sys, data_process; print(*{heavy} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr


def processed(folder, rows=30, **options):
    """Creates a processed folder of a small CSV, with folds if requested. Returns the CSV."""
    source = folder.with_suffix(".csv")
    lines = [f"text {i},{'ab'[i % 2]},g{i % 6}" for i in range(rows)]
    source.write_text("text,label,g\n" + "\n".join(lines) + "\n")
    process(DataConfig(input=str(source), output_dir=str(folder), label_column="label", **options))
    return source


def test_foreign_files_are_not_removed(tmp_path):
    """In an output folder and its folds. The same holds for input inside the output folder."""
    folder = tmp_path / "folds"
    source = processed(folder, n_splits=2)
    before = (folder / "labels.json").read_bytes()
    again = dict(output_dir=str(folder), label_column="label")
    (folder / "fold_1/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains other files .*notes\.txt"):
        process(DataConfig(input=str(source), **again))
    (folder / "fold_1/notes.txt").unlink()
    with pytest.raises(UserError, match="contains the input"):
        process(DataConfig(input=str(folder / "fold_0/train.jsonl"), **again))
    assert (folder / "labels.json").read_bytes() == before and (folder / "fold_0/train.jsonl").exists()
    (folder / "labels.json").unlink()
    with pytest.raises(UserError, match="contains other files"):
        process(DataConfig(input=str(source), **again))
    process(DataConfig(input=str(source), output_dir=str(tmp_path / "new"), label_column="label"))


@pytest.mark.parametrize("how", ["another mount", "this process is in it"])
def test_files_are_moved_into_a_folder_that_cannot_be_renamed(how, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    source = processed(folder)
    (folder / ".cache").mkdir(exist_ok=True)
    (folder / ".cache/kept").write_text("")
    rename = os.rename

    def refuse(one, other):
        """Fails like a rename across file systems."""
        within = [path.is_relative_to(folder) and path != folder for path in (Path(one), Path(other))]
        if not all(within):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(one, other)

    if how == "another mount":
        monkeypatch.setattr(os, "rename", refuse)
    else:
        monkeypatch.chdir(folder)
    process(DataConfig(input=str(source), output_dir=str(folder), label_column="label", random_seed=7))
    monkeypatch.undo()
    process(DataConfig(input=str(source), output_dir=str(tmp_path / "other"), label_column="label", random_seed=7))
    names = {path.name for path in (tmp_path / "other").iterdir()}
    assert {path.name for path in folder.iterdir()} == names | {".cache"} and (folder / ".cache/kept").exists()
    assert all((folder / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in names)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_groups_that_cannot_be_respected_are_rejected(tmp_path):
    folder = tmp_path / "data"
    source = processed(folder)
    with pytest.raises(UserError, match="do not store groups"):
        process(DataConfig(input=str(folder), output_dir=str(tmp_path / "x"), group_column="g", n_splits=2))
    (tmp_path / "a.txt").write_text("__label__a good\n__label__b bad\n" * 20)
    with pytest.raises(UserError, match="this format has no column 'g'"):
        process(DataConfig(input=str(tmp_path / "a.txt"), output_dir=str(tmp_path / "x"), group_column="g"))
    lines = source.read_text().splitlines()
    source.write_text("\n".join([lines[0], *(line.rpartition(",")[0] + ",one" for line in lines[1:])]) + "\n")
    options = dict(label_column="label", group_column="g", output_dir=str(tmp_path / "x"))
    with pytest.raises(UserError, match="'g' has too few groups to hold out"):
        process(DataConfig(input=str(source), **options))
    assert not (tmp_path / "x").exists()


def test_empty_split_and_custom_task_type_in_a_processed_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "ordinal", "classification")
    folder = tmp_path / "data"
    processed(folder, label_type="label=ordinal")
    process(DataConfig(input=str(folder), output_dir=str(tmp_path / "folds"), n_splits=2))
    for path in (tmp_path / "folds", tmp_path / "folds/fold_1"):
        assert read_json(path / "labels.json")["label"]["type"] == "ordinal"
    (folder / "train.jsonl").write_text("")
    with pytest.raises(UserError, match="missing or empty"):
        process(DataConfig(input=str(folder), check=True))
