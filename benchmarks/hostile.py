"""Runs all commands on damaged files, invalid values and unusual paths, each in its own working folder.

    python benchmarks/hostile.py [--only WORD] [--list]

A case is an entry of one of the tables below: a change to the folder, then a command. It fails if the command prints a
traceback, hangs, is killed by a signal, prints more than one error line, returns an unexpected exit code, or changes an
existing file that the case does not list. --only WORD: only cases whose name contains this word.
"""

import argparse
import contextlib
import dataclasses
import fnmatch
import gzip
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from forks import QUIET, Forks  # noqa: E402
from relation_rows import add_relations  # noqa: E402

SECONDS = 60  # time limit of a command
TINY = "--hidden_size 32 --num_layers 1 --vocab_size 300 --batch_size 8 --device cpu --no_use_crf --output_dir output"
TRAIN = f"main.py --do_train --epochs 1 --data_path data {TINY} --model_version new"
EVAL = "main.py --do_eval --do_predict --data_path data --output_dir output --model_version run"
PREDICT = "main.py --do_predict --data_path data --checkpoint output/run/checkpoints/best --output_dir output"
DEMO = "tools.demo --data_path data --checkpoint output/run/checkpoints/best"
REPORT = "tools.report run --output_dir output"
COMPARE = "tools.report run twin --output_dir output"
RESUME = f"main.py --do_train --resume --epochs 2 --data_path data {TINY} --model_version run"
PROCESS = "data_process.py --input raw.in --output_dir made"
EXPORT = "tools.export --checkpoint output/run/checkpoints/best --output_dir made --data_path data"
ENSEMBLE = "tools.ensemble output/run output/twin --data_path data --output_dir made"
FOLDS = f"tools.cross_validate --do_train --epochs 1 --data_path folds {TINY}"
SEARCH = (
    'tools.search --data_path data --results found --trials 1 --finalists 0 --options "--epochs 1 --hidden_size 32"'
)
ALWAYS = ["*.log", "*/.lock", ".lock", "*.lock", "*/.cache/*", "*/.cache"]  # files that any command may write
RUN = [*ALWAYS, "output/run/*", "output/report.html", "output/compare*"]
CODES = {0, 2}


# ---- the tables ------------------------------------------------------------------------------------------------------
# name: (change to the folder, command, patterns of files that may change, text that the output must contain or "")


def cases():
    """Returns {name: (change, command, patterns, expected)}."""
    found = {}

    def add(name, change, command, may=ALWAYS, expected=""):
        assert name not in found, name
        found[name] = (change, command, may, expected)

    for case, text in ROWS.items():
        add(f"train row: {case}", put("data/train.jsonl", text, append=True), TRAIN)
        add(f"dev row: {case}", put("data/dev.jsonl", text, append=True), EVAL, RUN)
    for case, text in ROWS.items():
        add(f"stream row: {case}", put("data/train.jsonl", text, append=True), TRAIN + " --streaming")
    for case, items in RELATIONS.items():
        row = json.dumps({"id": "x", "tokens": ["a", "b"], "intent": None, "slots": None, "facts": items})
        for file in ("train", "dev"):
            change = put(f"related/{file}.jsonl", row, append=True)
            add(f"relations of {file}: {case}", change, TRAIN.replace("data ", "related "))
    for case, content in FILES.items():
        add(f"labels.json: {case}", put("data/labels.json", content), TRAIN)
        add(f"dev.jsonl: {case}", put("data/dev.jsonl", content), TRAIN)
        add(f"eval.json: {case}", put("output/run/eval.json", content), REPORT, RUN)
        add(f"eval.json compared: {case}", put("output/twin/eval.json", content), COMPARE, RUN)
        add(f"metrics.jsonl: {case}", put("output/run/metrics.jsonl", content), REPORT, RUN)
        add(f"metrics.jsonl resumed: {case}", put("output/run/metrics.jsonl", content), RESUME, RUN)
        add(f"args.json of a run: {case}", put("output/run/args.json", content), REPORT, RUN)
        add(f"predictions: {case}", put_predictions(content), COMPARE, RUN)
        add(f"report.json: {case}", put("output/run/report.json", content), COMPARE, RUN)
        add(f"raw csv: {case}", put("raw.in/a.csv", content), PROCESS)
        add(f"raw jsonl: {case}", put("raw.in/a.jsonl", content), PROCESS)
        add(f"raw json: {case}", put("raw.in/a.json", content), PROCESS)
        add(f"predict jsonl: {case}", put("in.jsonl", content), PREDICT + " --predict_file in.jsonl")
        add(f"predict csv: {case}", put("in.csv", content), PREDICT + " --predict_file in.csv")
        add(f"shipped jsonl: {case}", put("in.jsonl", content), "ship/predictor.py in.jsonl out.jsonl")
        add(f"shipped csv: {case}", put("in.csv", content), "ship/predictor.py in.csv out.csv")
        add(f"folds.json: {case}", put("output/folds-folds/folds.json", content), FOLDS, [*ALWAYS, "output/*"])
        add(f"study: {case}", put("found/study.journal", content), SEARCH)
    for case, content in FILES.items():
        for name in ("raw.in/a.txt", "raw.in/a.xlsx", "raw.in/a.parquet", "raw.in/a.arrow", "raw.in/a.conll"):
            add(f"{name}: {case}", put(name, content), PROCESS)
        for name in ("a.jsonl.gz", "a.csv.gz"):
            add(f"{name}: {case}", put(f"raw.in/{name}", content), PROCESS)
            add(f"zipped {name}: {case}", put(f"raw.in/{name}", content, zipped=True), PROCESS)
    for name, change in PLACES.items():
        gives_way = name in ("an empty file", "an empty folder") or "link" in name

        def or_else(name, gives_way=gives_way):
            return [*ALWAYS, *[name] * gives_way]

        add(f"place train.jsonl: {name}", change("data/train.jsonl"), TRAIN)
        add(f"place labels.json: {name}", change("data/labels.json"), TRAIN)
        add(f"place predict_file: {name}", change("in.txt"), PREDICT + " --predict_file in.txt")
        add(f"place predict_output: {name}", change("o.csv"), PREDICT + " --predict_output o.csv", or_else("o.csv"))
        add(f"place shipped input: {name}", change("in.txt"), "ship/predictor.py in.txt out.csv")
        add(f"place shipped output: {name}", change("o.csv"), "ship/predictor.py texts.txt o.csv", or_else("o.csv"))
        add(f"place raw: {name}", change("raw.in/a.csv"), PROCESS)
        add(f"place made: {name}", change("made"), PROCESS, or_else("made"))
        add(f"place export: {name}", change("made"), EXPORT, or_else("made"))
        add(f"place run: {name}", change("output/new"), TRAIN, or_else("output/new"))
        add(f"place checkpoints: {name}", change("output/new/checkpoints"), TRAIN)
        add(f"place log: {name}", change("logs"), TRAIN + " --log_output_path logs")
        add(f"place results: {name}", change("found"), SEARCH)
        add(f"place ensemble: {name}", change("made"), ENSEMBLE)
        add(f"place best: {name}", change("output/run/checkpoints/best"), EVAL, RUN)
        add(f"place step: {name}", change("output/run/checkpoints/step_00000006"), RESUME, RUN)
    for command in COMMANDS:
        add(f"command: {command}", nothing, command, [*RUN, "output/*"])
    for script, config, base in OPTIONS:
        for words in odd_options(config):
            add(f"option: {script} {words}", nothing, f"{base} {words}", [*RUN, "output/*"])
    return found


DEEP = "[" * 100_000
ROWS = {
    "not json": "{",
    "a list": "[1]",
    "null": "null",
    "a number": "7",
    "text is a number": '{"id": "x", "text": 5, "intent": "a"}',
    "text is null": '{"id": "x", "text": null}',
    "text is a list": '{"id": "x", "text": ["a"], "intent": "a"}',
    "text is an object": '{"id": "x", "text": {"a": 1}, "intent": "a"}',
    "tokens is a string": '{"id": "x", "tokens": "abc", "intent": "a"}',
    "tokens has null": '{"id": "x", "tokens": [null], "slots": ["O"]}',
    "tokens has lists": '{"id": "x", "tokens": [["a"]], "slots": ["O"]}',
    "fewer tags": '{"id": "x", "tokens": ["a", "b"], "slots": ["O"]}',
    "tags are a string": '{"id": "x", "tokens": ["a"], "slots": "O"}',
    "tags are numbers": '{"id": "x", "tokens": ["a"], "slots": [1]}',
    "tags are an object": '{"id": "x", "tokens": ["a"], "slots": {"a": "O"}}',
    "no tokens": '{"id": "x", "tokens": [], "slots": []}',
    "empty text": '{"id": "x", "text": "", "intent": "a"}',
    "label is a list": '{"id": "x", "text": "a b", "intent": ["a"]}',
    "label is an object": '{"id": "x", "text": "a b", "intent": {"a": "b"}}',
    "label is true": '{"id": "x", "text": "a b", "intent": true}',
    "label is 400 digits": '{"id": "x", "text": "a b", "intent": ' + "1" * 400 + "}",
    "label is 5000 digits": '{"id": "x", "text": "a b", "intent": ' + "1" * 5000 + "}",
    "surrogate": '{"id": "x", "text": "\\ud800 a", "tokens": ["\\ud800"], "slots": ["O"]}',
    "nul": '{"id": "x", "text": "a\\u0000b", "intent": "a"}',
    "id is a list": '{"id": [1], "text": "a"}',
    "id is an object": '{"id": {}, "text": "a"}',
    "id twice": '{"id": "train-0", "text": "a"}\n{"id": "train-0", "text": "a"}',
    "long word": json.dumps({"id": "x", "tokens": ["a" * 200_000], "slots": ["O"]}),
    "many words": json.dumps({"id": "x", "tokens": ["a"] * 20_000, "slots": ["O"] * 20_000}),
    "deep": '{"id": ' + DEEP,
    "duplicate key": '{"id": "x", "text": "a", "text": "b", "intent": "c"}',
    "where": '{"id": "x", "text": "a", "_where": 5}',
    "line separators": '{"id": "x", "text": "a\u2028b\u0085c", "intent": null}',
    "escape": '{"id": "x", "text": "\\u001b[2J a", "intent": "\\u001b]0;owned\\u0007"}',
    "blank lines": "\n\n   \n\t\n",
    "carriage": '\r\r\r\n{"id": "x", "text": "a"}\r',
}
RELATIONS = {
    "a string": "before",
    "a number": 7,
    "an object": {"subject": [0, 0], "predicate": "before", "object": [1, 1]},
    "numbers": [0, 0, 1, 1],
    "a span": [[0, 1, "before"]],
    "no predicate": [[0, 0, 1, 1]],
    "a number as predicate": [[0, 0, 1, 1, 1]],
    "an empty predicate": [[0, 0, 1, 1, ""]],
    "an unknown predicate": [[0, 0, 1, 1, "unknown"]],
    "floats": [[0.0, 0.0, 1.0, 1.0, "before"]],
    "true": [[False, False, True, True, "before"]],
    "words that are not there": [[0, 0, 2, 2, "before"]],
    "a word of 400 digits": [[0, 0, 1, 10**400, "before"]],
    "an end before its start": [[1, 0, 1, 1, "before"]],
    "with itself": [[0, 0, 0, 0, "before"]],
    "twice": [[0, 0, 1, 1, "before"]] * 2,
    "a thousand times": [[0, 0, 1, 1, "before"], [0, 1, 0, 1, "holds"]] * 500,
    "nested lists": [[[0, 0], [1, 1], "before"]],
}
FILES = {
    "empty": "",
    "a blank": " \n",
    "null": "null",
    "list": "[]",
    "list of lists": "[[]]",
    "object": "{}",
    "number": "5",
    "nan": "NaN",
    "string": '"x"',
    "deep": DEEP,
    "deep objects": '{"a":' * 50_000,
    "half": '{"intent": {"type": "classif',
    "bom": '\ufeff{"intent": {}}\n',
    "utf-16": '{"intent": {}}'.encode("utf-16"),
    "latin": '{"intent": "é"}'.encode("latin-1"),
    "random": bytes(range(256)) * 8,
    "nuls": b"\0" * 5000,
    "zip": b"PK\x03\x04" + b"\0" * 200,
    "parquet": b"PAR1" + b"\0" * 200 + b"PAR1",
    "gzip": b"\x1f\x8b\x08\x00" + b"\xff" * 60,
    "long line": "a" * 3_000_000,
    "wide": ",".join(f"c{n}" for n in range(5000)) + "\n" + ",".join("1" for _ in range(5000)) + "\n",
    "quotes": '"' * 999,
    "open quote": 'text,label\n"a,b\nc,d\n' * 3,
    "odd types": '{"step": "a", "epoch": [], "loss": {}}\n' * 3,
    "huge number": '{"step": 1e999, "epoch": ' + "9" * 400 + "}\n",
    "twice": '{"text": "a", "text": "b", "label": "x"}\n' * 12,
    "mixed labels": "".join(
        json.dumps({"text": f"t {n}", "label": [1, True, "1", "true", 1.0, None][n % 6]}) + "\n" for n in range(60)
    ),
    "clashing columns": "".join(
        json.dumps({"text": f"t {n}", "intent": "ab"[n % 2], "intent_probability": "xy"[n % 2]}) + "\n"
        for n in range(60)
    ),
    "nested label": "".join(json.dumps({"text": f"t {n}", "label": {"a": [n]}}) + "\n" for n in range(30)),
}


# ---- changes to the folder -------------------------------------------------------------------------------------------


def nothing(world):
    pass


def put(name, content, append=False, zipped=False):
    def change(world):
        path = world / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        data = gzip.compress(data) if zipped else data
        path.write_bytes((path.read_bytes().rstrip(b"\n") + b"\n" if append else b"") + data + b"\n" * append)

    return change


def put_predictions(content):
    def change(world):
        for path in (world / "output/twin/answers").glob("*"):
            put(str(path.relative_to(world)), content)(world)

    return change


def gone(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def placed(make):
    """Returns a function from a name to a change that removes the path with this name and calls make(path)."""

    def at(name):
        def change(world):
            gone(world / name)
            make(world / name)

        return change

    return at


def folder_with_a_file(path):
    path.mkdir()
    (path / "mine.txt").write_text("mine")


def linked_to_a_file(path):
    target = path.parent / "target.txt"
    target.write_text("mine")
    path.symlink_to(target)


PLACES = {
    "missing": placed(lambda path: None),
    "a folder": placed(folder_with_a_file),
    "an empty folder": placed(lambda path: path.mkdir()),
    "an empty file": placed(lambda path: path.touch()),
    "a pipe": placed(os.mkfifo),
    "a link to itself": placed(lambda path: path.symlink_to(path.name)),
    "a dangling link": placed(lambda path: path.symlink_to("nowhere/at/all")),
    "a link to a file": placed(linked_to_a_file),
    "a device": placed(lambda path: device(path, "null")),
    "an endless device": placed(lambda path: device(path, "zero")),
    "a socket": placed(lambda path: bind(path)),
}


def device(path, name):
    """Creates a copy of the device /dev/name if permitted, because a bug could move it; otherwise a link to it."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.stat(f"/dev/{name}").st_rdev)
    except PermissionError:
        path.symlink_to(f"/dev/{name}")


def bind(path):
    there = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path, there))


COMMANDS = [
    "main.py",
    "main.py --do_train --data_path /",
    "main.py --do_train --data_path nowhere",
    "main.py --do_train --data_path data/train.jsonl",
    f"{TRAIN} --fold 0",
    f"{TRAIN} --fold -1",
    f"{TRAIN} --fold 99999999999999999999",
    f"{TRAIN} --model_version ..",
    f"{TRAIN} --model_version a/b",
    f"{TRAIN} --model_version {'x' * 300}",
    f"{TRAIN} --output_dir /dev/null",
    f"{TRAIN} --output_dir /dev/full",
    f"{TRAIN} --output_dir /proc/self",
    f"{TRAIN} --output_dir data/train.jsonl",
    f"{TRAIN} --log_output_file ../../out.log",
    f"{TRAIN} --log_output_file /dev/full",
    f"{TRAIN} --log_output_file ''",
    f"{TRAIN} --log_output_file .",
    f"{TRAIN} --pretrain_model_path /dev/null",
    f"{TRAIN} --pretrain_model_path data",
    f"{TRAIN} --pretrain_model_path ''",
    f"{TRAIN} --pretrain_model_path output/run",
    f"{TRAIN} --pretrain_model_path output/run/checkpoints/best",
    f"{TRAIN} --pretrain_model_path ../../../../etc/passwd",
    f"{TRAIN} --pretrain_model_path http://127.0.0.1:1/model",
    f"{TRAIN} --pretrain_model_path 'a b/c d'",
    f"{TRAIN} --teacher output/run",
    f"{TRAIN} --teacher output/run,output/run",
    f"{TRAIN} --teacher output/new",
    f"{TRAIN} --teacher ,",
    f"{TRAIN} --teacher nowhere",
    f"{TRAIN} --teacher output/run --unlabelled texts.txt",
    f"{TRAIN} --teacher output/run --unlabelled texts.txt --unlabelled_ratio 1e9",
    f"{TRAIN} --teacher output/run --unlabelled texts.txt --unlabelled_ratio 0",
    f"{TRAIN} --teacher output/run --unlabelled empty.txt",
    f"{TRAIN} --teacher output/run --unlabelled data/train.jsonl",
    f"{TRAIN} --teacher output/run --temperature 1e-300",
    f"{TRAIN} --teacher output/run --temperature 1e300",
    f"{TRAIN} --monitor nothing",
    f"{TRAIN} --monitor ''",
    f"{TRAIN} --task_weights intent=0",
    f"{TRAIN} --task_weights intent=0,slots=0",
    f"{TRAIN} --task_weights nothing=1",
    f"{TRAIN} --task_weights =",
    f"{TRAIN} --task_weights intent=1e308,slots=1e308",
    f"{TRAIN} --special_tokens ,,,",
    f"{TRAIN} --special_tokens '<e>,<e>'",
    f"{TRAIN} --special_tokens ' '",
    f"{TRAIN} --special_tokens '[PAD]'",
    f"{TRAIN} --device cuda:99",
    f"{TRAIN} --device cpu:3",
    f"{TRAIN} --device 'cpu '",
    f"{TRAIN} --resume --force_resume",
    f"{TRAIN} --do_eval --do_predict --debug",
    f"{TRAIN} --use_crf --use_swa --epochs 2 --swa_start 0",
    f"{TRAIN} --use_ema --ema_decay 0",
    f"{TRAIN} --max_length 8 --window_stride 4 --use_crf",
    f"{TRAIN} --lr 0.9999 --max_grad_norm 0",
    f"{TRAIN} --lr 1e-300",
    f"{TRAIN} --dropout 1",
    f"{TRAIN} --label_smoothing 1",
    f"{TRAIN} --focal_gamma 1e30",
    f"{TRAIN} --precision fp16 --lr 0.9",
    f"{RESUME}",
    f"{RESUME} --force_resume --hidden_size 64",
    f"{RESUME} --force_resume --vocab_size 100",
    f"{RESUME} --force_resume --use_crf",
    f"{RESUME} --force_resume --encoder bilstm",
    f"{RESUME} --force_resume --batch_size 16 --use_ema",
    f"{RESUME} --force_resume --data_path other",
    f"{EVAL}",
    f"{EVAL} --data_path other",
    f"{EVAL} --checkpoint output",
    f"{EVAL} --checkpoint output/run",
    f"{EVAL} --checkpoint output/run/checkpoints",
    f"{EVAL} --checkpoint output/run/checkpoints/step_00000006",
    f"{EVAL} --checkpoint data",
    f"{EVAL} --checkpoint texts.txt",
    f"{EVAL} --checkpoint ship",
    f"{EVAL} --monitor nothing",
    f"{EVAL} --max_length 100000000000",
    f"{EVAL} --hidden_size 64",
    f"{PREDICT} --predict_file empty.txt",
    f"{PREDICT} --predict_file texts.txt --predict_output data",
    f"{PREDICT} --predict_file texts.txt --predict_output nowhere/o.csv",
    f"{PREDICT} --predict_file texts.txt --predict_output /dev/full",
    f"{PREDICT} --predict_file texts.txt --predict_output /dev/full.csv",
    f"{PREDICT} --predict_file texts.txt --predict_output texts.txt",
    f"{PREDICT} --predict_file texts.txt --predict_output o.csv --shard 2/1",
    f"{PREDICT} --predict_file texts.txt --predict_output o.csv --shard 3/1000000000000",
    f"{PREDICT} --predict_file texts.txt --predict_output o.csv --shard 1/2 --resume",
    f"{PREDICT} --predict_file texts.txt --predict_output o.csv --encoding rot13",
    f"{PREDICT} --predict_file texts.txt --predict_output o.csv --encoding base64",
    f"{PREDICT} --predict_file texts.txt --predict_output o.csv --encoding utf-32",
    f"{PREDICT} --predict_file texts.txt --predict_output o.csv --encoding idna",
    f"{PREDICT} --predict_file texts.txt --predict_output o.csv --encoding ''",
    f"{PREDICT} --predict_file texts.csv --text_column nothing",
    f"{PREDICT} --predict_file texts.csv --text_column ''",
    f"{PREDICT} --predict_file texts.csv --text_column text --text_pair_column text",
    f"{PREDICT} --predict_file twice.csv",
    f"{PREDICT} --predict_file clash.csv",
    f"{PREDICT} --predict_file ragged.csv",
    f"{PREDICT} --predict_file wide.csv",
    f"{PREDICT} --predict_file bell.jsonl --predict_output o.jsonl",
    f"{PREDICT} --predict_file data",
    f"{PREDICT} --predict_file texts.txt.exe",
    f"{DEMO} --terminal",
    f"{DEMO} --address nothing",
    f"{DEMO} --address 127.0.0.1:99999",
    f"{DEMO} --address 256.1.1.1:0",
    f"{DEMO} --address :",
    f"{DEMO} --address '[::1'",
    f"{REPORT}",
    f"{REPORT} --report_language zh",
    f"{REPORT} --report_language xx",
    f"{REPORT} --output_dir data",
    f"{COMPARE}",
    "tools.report",
    "tools.report nothing --output_dir output",
    "tools.report run run --output_dir output",
    "tools.report run nothing --output_dir output",
    "tools.report run ship --output_dir output",
    "tools.report '' '' --output_dir output",
    "tools.report output/run output/../output/run --output_dir made",
    "tools.report output/run other --output_dir made",
    "tools.report output/run output/twin --output_dir data/train.jsonl",
    "data_process.py",
    "data_process.py --input nowhere --output_dir made",
    "data_process.py --input . --output_dir made",
    "data_process.py --input raw.in --output_dir raw.in",
    "data_process.py --input raw.in --output_dir raw.in/made",
    "data_process.py --input raw.in --output_dir .",
    "data_process.py --input data --output_dir data",
    "data_process.py --input data --output_dir made",
    "data_process.py --input folds --output_dir made",
    "data_process.py --input output --output_dir made",
    "data_process.py --input ship --output_dir made",
    "data_process.py --input output/run/checkpoints/best --output_dir made",
    "data_process.py --input /dev/null --output_dir made",
    "data_process.py --input /dev/zero --output_dir made --max_rows 3",
    "data_process.py --input /proc/self/mem --output_dir made",
    "data_process.py --input /proc/self --output_dir made",
    "data_process.py --input '' --output_dir made",
    "data_process.py --input hf:nothing --output_dir made",
    "data_process.py --input nothing/at-all --output_dir made --format hf",
    *(
        f"{PROCESS} {words}"
        for words in (
            "--format csv",
            "--format jsonl",
            "--format conll",
            "--format parquet",
            "--format xlsx",
            "--format hf",
            "--encoding nothing",
            "--encoding utf-16",
            "--encoding rot13",
            "--encoding punycode",
            "--delimiter x",
            "--delimiter '\\n'",
            "--delimiter ' '",
            "--delimiter '()['",
            "--delimiter '.*'",
            "--no_header",
            "--sheet nothing",
            "--max_rows 1",
            "--max_rows 2",
            "--max_rows 99999999999999999999",
            "--text_column nothing",
            "--text_column label",
            "--text_column text --label_column text",
            "--text_column text --text_pair_column text",
            "--label_column nothing",
            "--label_column ,",
            "--label_column label,label",
            "--label_column label,number",
            "--label_column topics=label+number",
            "--label_column topics=",
            "--label_column =label",
            "--label_column 'a/b=label'",
            "--label_column '../../x=label'",
            "--label_column text_pair=label",
            "--label_column id=label",
            "--label_column loss=label",
            "--label_column sentence=label",
            "--label_column 'a.b=label'",
            "--label_column 'a b=label'",
            "--label_type label=regression",
            "--label_type label=spans",
            "--label_type label=tagging",
            "--label_type label=multilabel --label_separator ' '",
            "--label_type nothing=regression",
            "--label_type number=regression --label_column number",
            "--label_type =",
            "--extra_columns nothing",
            "--extra_columns label",
            "--extra_columns number",
            "--extra_columns text",
            "--extra_columns number,number",
            "--keep_columns nothing",
            "--keep_columns text",
            "--keep_columns label",
            "--keep_columns number,number",
            "--n_splits 2",
            "--n_splits 30",
            "--n_splits 31",
            "--n_splits 1000000000",
            "--group_column nothing",
            "--group_column text",
            "--group_column label",
            "--group_column label --n_splits 5",
            "--dev_ratio 0.999",
            "--dev_ratio 1e-9",
            "--dev_ratio nan",
            "--test_ratio 0",
            "--test_ratio 0.9999999",
            "--check",
            "--check --output_dir data",
            "--check --pretrain_model_path nothing",
            "--check --pretrain_model_path output/run",
            "--check --max_length 0",
            "--check --max_length -5",
            "--max_length 0",
            "--tag_scheme bioes",
            "--unit word",
            "--random_seed -1",
            "--random_seed 99999999999",
        )
    ),
    f"{FOLDS}",
    f"{FOLDS} --data_path data",
    f"{FOLDS} --data_path folds/fold_0",
    f"{FOLDS} --data_path nowhere",
    f"{FOLDS} --fold 0",
    f"{FOLDS} --model_version run",
    f"{FOLDS} --epochs 0",
    f"{FOLDS} --debug",
    f"{FOLDS} --output_dir texts.txt",
    f"{FOLDS} --monitor nothing",
    f"{FOLDS} --shard 1/2",
    f"{ENSEMBLE}",
    f"{ENSEMBLE} --select",
    f"{ENSEMBLE} --predict_file texts.txt",
    f"{ENSEMBLE} --predict_file empty.txt",
    f"{ENSEMBLE} --predict_file texts.txt --predict_output texts.txt",
    f"{ENSEMBLE} --predict_file texts.txt --predict_output data",
    f"{ENSEMBLE} --data_path other",
    f"{ENSEMBLE} --monitor nothing",
    f"{ENSEMBLE} --model_version ../out",
    f"{ENSEMBLE} --model_version ''",
    f"{ENSEMBLE} --eval_batch_size 0",
    "tools.ensemble",
    "tools.ensemble output/run --output_dir made",
    "tools.ensemble output/run output/run --output_dir made",
    "tools.ensemble output/run output/run/checkpoints/best --output_dir made",
    "tools.ensemble output/run nowhere --output_dir made",
    "tools.ensemble output/run ship --output_dir made",
    "tools.ensemble output/run data --output_dir made",
    "tools.ensemble output/run output/alien --output_dir made",
    "tools.ensemble '' '' --output_dir made",
    f"{EXPORT}",
    f"{EXPORT} --output_dir ship",
    f"{EXPORT} --output_dir data",
    f"{EXPORT} --output_dir output",
    f"{EXPORT} --output_dir output/run/checkpoints/best",
    f"{EXPORT} --output_dir output/run",
    f"{EXPORT} --output_dir /",
    f"{EXPORT} --output_dir ..",
    f"{EXPORT} --output_dir texts.txt",
    f"{EXPORT} --output_dir texts.txt/in/it",
    f"{EXPORT} --data_path other",
    f"{EXPORT} --data_path nowhere",
    f"{EXPORT} --data_path /dev/null",
    f"{EXPORT} --int8 --fp16",
    f"{EXPORT} --int8 --max_drop -1",
    f"{EXPORT} --int8 --max_drop nan",
    f"{EXPORT} --max_drop 0.5",
    f"{EXPORT} --checkpoint output",
    f"{EXPORT} --checkpoint ship",
    f"{EXPORT} --checkpoint ''",
    f"{EXPORT} --checkpoint output/run/checkpoints/step_00000006",
    f"{EXPORT} --pretrain_model_path nowhere",
    "tools.export",
    SEARCH,
    *(
        f"{SEARCH} {words}"
        for words in (
            "--space lr",
            "--space lr=",
            "--space =1",
            "--space lr=1..",
            "--space lr=..",
            "--space lr=2..1",
            "--space lr=nan..1",
            "--space lr=1e-5..1e-3:exp",
            "--space lr=-1..1:log",
            "--space lr=0..1:log",
            "--space batch_size=1.5..2",
            "--space use_fgm=maybe",
            "--space nothing=1,2",
            "--space data_path=a,b",
            "--space resume=True,False",
            "--space 'lr=1e-4..1e-3 lr=1e-4..1e-3'",
            "--space 'pooling=first,first'",
            "--space 'lr=1e-4,'",
            "--space hidden_size=33,64",
            "--space head_multiple=0..1",
            "--space warmup_share=0..2",
            "--options=--nothing",
            '--options="\'"',
            "--options=--epochs",
            "--options='--epochs 0'",
            "--options='--output_dir data'",
            "--options='--help'",
            "--options='--do_predict'",
            "--options='--pretrain_model_path nowhere'",
            "--monitor nothing",
            "--trials 0",
            "--hours nan",
            "--hours 1e-9",
            "--jobs 0",
            "--startup 0",
            "--seed -1",
            "--results data",
            "--results texts.txt",
            "--results output",
            "--results /dev/null",
            "--data_path nowhere",
            "--data_path output",
            "--pretrain_model_path data",
        )
    ),
    "ship/predictor.py",
    "ship/predictor.py texts.txt",
    "ship/predictor.py nowhere.txt out.csv",
    "ship/predictor.py texts.txt nowhere/out.csv",
    "ship/predictor.py texts.txt out.exe",
    "ship/predictor.py texts.txt data",
    "ship/predictor.py texts.txt texts.txt",
    "ship/predictor.py texts.txt ship/labels.csv",
    "ship/predictor.py texts.txt out.csv --batch_size 0",
    "ship/predictor.py texts.txt out.csv --batch_size -1",
    "ship/predictor.py texts.txt out.csv --batch_size 99999999999999999999",
    "ship/predictor.py texts.txt out.csv --threads -1",
    "ship/predictor.py texts.txt out.csv --threads 100000",
    "ship/predictor.py texts.txt out.csv --encoding rot13",
    "ship/predictor.py texts.csv out.csv --text_column nothing",
    "ship/predictor.py twice.csv out.csv",
    "ship/predictor.py ragged.csv out.csv",
    "ship/predictor.py clash.csv out.csv",
    "ship/predictor.py wide.csv out.csv",
    "ship/predictor.py bell.jsonl out.jsonl",
    "ship/predictor.py empty.txt out.csv",
    "ship/predictor.py data out.csv",
    "ship/predictor.py /dev/null out.csv",
    "tools.serve",
    "tools.serve nowhere",
    "tools.serve data",
    "tools.serve output/run/checkpoints/best",
    "tools.serve texts.txt",
    "tools.serve ship --port 99999",
    "tools.serve ship --port -1",
    "tools.serve ship --port a",
    "tools.serve ship --host nowhere.invalid",
    "tools.serve ship --host ''",
    "tools.serve ship --host 256.1.1.1",
    "tools.serve ship --threads -1",
    "tools.serve ship --batch_size 0",
    "tools.serve ship --max_latency_ms 0",
    "tools.serve ship --max_queue -5",
    "tools.serve ship --max_bytes 1e3",
    "tools.serve ship --hosts ,",
    "huggingface_hands_on/train_tokenizer_from_scratch.py",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input nowhere --output_dir made",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input empty.txt --output_dir made",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input texts.txt --output_dir made",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input texts.txt --output_dir data",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input texts.txt --output_dir texts.txt",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input texts.txt --output_dir made --vocab_size 0",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input texts.txt --output_dir made --vocab_size 1",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input texts.txt --output_dir made --vocab_size 99999999999",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input texts.txt --output_dir made --held_out_ratio 1",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input texts.csv --text_column nothing --output_dir made",
    "huggingface_hands_on/train_tokenizer_from_scratch.py --input ship --output_dir made",
    "huggingface_hands_on/continue_pretrain_task.py",
    "huggingface_hands_on/continue_pretrain_task.py --input texts.txt --output_dir made --pretrain_model_path nowhere",
    "huggingface_hands_on/continue_pretrain_task.py --input texts.txt --output_dir made --pretrain_model_path data",
    "huggingface_hands_on/continue_pretrain_task.py --input empty.txt --output_dir made --pretrain_model_path data",
    "huggingface_hands_on/continue_pretrain_task.py --input texts.txt --output_dir data --pretrain_model_path data",
]


# ---- every option with odd values ------------------------------------------------------------------------------------

FEW = "output/run --do_predict --predict_file texts.txt"
OPTIONS = [
    ("main.py", "config:Config", TRAIN),
    ("data_process.py", "data_process:DataConfig", "data_process.py --input other --output_dir made"),
]
ODD = {
    int: ["-1", "0", "1000000", "99999999999999999999", "1e3", "９", "１.５", "''", "-0", "1_0", "0x10", "+3", "nan"],
    float: ["-1", "0", "1", "1e308", "1e-308", "inf", "nan", "１", "''", "1_0", "-0.0", "0x1p3"],
    str: ["''", "' '", "/dev/null", "'a\nb'", "-1", "../..", "é", "'[x]'"],
    bool: ["maybe", "''", "2", "TRUE"],
}
# values that only take a long time or write to another path, which may be intended
INTENDED = ("epochs 1000000", "output_dir", "log_output_path", "resume", "random_seed")


def odd_options(place):
    """Returns '--name value' for each option of a dataclass and each unusual value of its type."""
    import importlib
    import types
    from typing import get_args

    module, _, name = place.partition(":")
    for field in dataclasses.fields(getattr(importlib.import_module(module), name)):
        kinds = [kind for kind in get_args(field.type) if kind is not types.NoneType] or [field.type]
        for value in ODD.get(kinds[0], ODD[str]):
            words = f"--{field.name} {value}" if kinds[0] is not bool else f"--{field.name}={value}"
            if not any(words[2:].startswith(option) for option in INTENDED):
                yield words


# ---- raw requests ----------------------------------------------------------------------------------------------------

SERVERS = {
    "tools.serve": ("tools.serve ship --port 0 --max_body_ms 1500", "/predict"),
    "demo": (f"{DEMO} --address 127.0.0.1:0", "/label"),
}


def post(body, path="/predict", head="", length=None):
    """Returns the bytes of a POST request with JSON."""
    body = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    length = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *filter(None, [head]), "", ""]).encode() + body


def requests(path):
    """Returns {name: bytes to send}."""
    texts = '{"texts": ["a text"]}'
    bodies = FILES | {
        "no texts": '{"texts": []}',
        "a number": '{"texts": 5}',
        "null in the list": '{"texts": [null]}',
        "a list in the list": '{"texts": [["a"]]}',
        "many": json.dumps({"texts": ["a"] * 5000}),
        "empty": '{"texts": [""]}',
        "blank": '{"texts": "   "}',
        "long": json.dumps({"texts": "a " * 200_000}),
        "one word": json.dumps({"texts": "a" * 9_000}),
        "surrogate": '{"texts": "\\ud800"}',
        "nul": '{"texts": "a\\u0000b"}',
        "escape": '{"texts": "\\u001b[2J"}',
        "other keys": '{"texts": "a", "more": 1}',
        "a row": '{"texts": {"text": "a"}}',
        "a row of tokens": '{"texts": {"tokens": ["a", "b"]}}',
        "empty tokens": '{"texts": {"tokens": []}}',
        "both": '{"texts": {"text": "a b", "tokens": ["b", "a"]}}',
        "extras": '{"texts": {"text": "a", "extras": {"x": 1e400}}}',
        "pair": '{"texts": {"text": "a", "text_pair": "b"}}',
        "unknown key": '{"texts": {"text": "a", "__class__": "x"}}',
        "twice": '{"texts": "a", "texts": "b"}',
    }
    found = {f"body: {name}": post(body, path) for name, body in bodies.items()}
    plain = "Host: 127.0.0.1\r\n"
    chunked = f"POST {path} HTTP/1.1\r\n{plain}Transfer-Encoding: chunked\r\n\r\n"
    found |= {
        "nothing": b"",
        "a line": b"\r\n\r\n",
        "not http": b"hello\r\n\r\n",
        "tls": bytes([22, 3, 1, 0, 200]) + b"\0" * 200,
        "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "http 0.9": b"GET /health\r\n",
        "http 9": f"GET /health HTTP/9.9\r\n{plain}\r\n".encode(),
        "long path": f"GET /{'a' * 100_000} HTTP/1.1\r\n{plain}\r\n".encode(),
        "long header": f"GET /health HTTP/1.1\r\n{plain}X: {'a' * 200_000}\r\n\r\n".encode(),
        "many headers": f"GET /health HTTP/1.1\r\n{plain}{'X: a' + chr(13) + chr(10)}".encode() + b"Y: b\r\n" * 20_000,
        "up": f"GET /../../etc/passwd HTTP/1.1\r\n{plain}\r\n".encode(),
        "up, encoded": f"GET /swagger/%2e%2e/%2e%2e/serve.py HTTP/1.1\r\n{plain}\r\n".encode(),
        "nul in the path": f"GET /health%00 HTTP/1.1\r\n{plain}\r\n".encode(),
        "nul in a file": f"GET /swagger/%00 HTTP/1.1\r\n{plain}\r\n".encode(),
        "odd bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "escape in the path": f"GET /\x1b[2J HTTP/1.1\r\n{plain}\r\n".encode(),
        "no host": f"POST {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}".encode(),
        "two hosts": f"GET /health HTTP/1.1\r\n{plain}Host: evil\r\n\r\n".encode(),
        "other host": b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "odd host": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:80:80@evil\r\n\r\n",
        "other method": f"DELETE {path} HTTP/1.1\r\n{plain}\r\n".encode(),
        "made up method": f"XYZZY {path} HTTP/1.1\r\n{plain}\r\n".encode(),
        "connect": b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\n\r\n",
        "whole address": b"GET http://evil/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "upgrade": f"GET /health HTTP/1.1\r\n{plain}Upgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
        "expect": post(texts, path, "Expect: 100-continue"),
        "negative length": post(texts, path, length=-5),
        "huge length": post(texts, path, length=10**30),
        "length of letters": post(texts, path, length="abc"),
        "too short a length": post(texts, path, length=3),
        "too long a length": post(texts, path, length=100),
        "two lengths": post(texts, path, "Content-Length: 5"),
        "chunked": (chunked + f"15\r\n{texts}\r\n0\r\n\r\n").encode(),
        "bad chunk": (chunked + "ZZ\r\n").encode(),
        "huge chunk": (chunked + "FFFFFFFFFFFFFFFFF\r\n").encode(),
        "half a chunk": (chunked + "15\r\n{").encode(),
        "both encodings": post(texts, path, "Transfer-Encoding: chunked"),
        "gzip": post(gzip.compress(texts.encode()), path, "Content-Encoding: gzip"),
        "form": post(texts, path).replace(b"application/json", b"multipart/form-data; boundary=x"),
        "charset": post(texts.encode("utf-16"), path).replace(b"application/json", b"application/json; charset=utf-16"),
        "pipelined": post(texts, path) * 20,
        "pipelined, one bad": post(texts, path) + post("{", path) + post(texts, path),
        "smuggled": post(texts + "GET /metrics HTTP/1.1\r\n\r\n", path, length=len(texts)),
        "half headers": f"POST {path} HTTP/1.1\r\nHost: 127".encode(),
        "header without a name": f"GET /health HTTP/1.1\r\n{plain}: x\r\n\r\n".encode(),
        "header over two lines": f"GET /health HTTP/1.1\r\n{plain}X: a\r\n b\r\n\r\n".encode(),
        "cookies": f"GET /health HTTP/1.1\r\n{plain}Cookie: {'a=b; ' * 5000}\r\n\r\n".encode(),
    }
    return found


def try_requests(world, only):
    """Sends each request to each server. Returns (number of requests, [problems])."""
    count, wrong = 0, []
    for server, (command, path) in SERVERS.items():
        chosen = {n: data for n, data in requests(path).items() if only in f"request: {server} {n}"}
        if chosen:
            count, wrong = count + len(chosen), wrong + ask_all(world, server, command, path, chosen)
    return count, wrong


def ask_all(world, server, command, path, chosen):
    words, wrong = split(command), []
    log = open(world / "server.txt", "w+", encoding="utf-8")  # noqa: SIM115
    with (
        log,
        subprocess.Popen(
            [sys.executable, *([ROOT / words[0]] if words[0].endswith(".py") else ["-m", words[0]]), *words[1:]],
            cwd=world,
            stdout=log,
            stderr=log,
            env={**os.environ, **QUIET, "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)},
        ) as process,
    ):
        for _ in range(600):
            if found := re.search(r"http://127.0.0.1:(\d+)", (world / "server.txt").read_text()):
                break
            time.sleep(0.1)
        port = int(found[1])
        before = memory_of(process.pid)
        for name, data in tqdm(chosen.items(), desc=server):
            status = [int(line) for line in re.findall(rb"HTTP/1.1 (\d+)", talk(port, data))]
            after = re.findall(rb"HTTP/1.1 (\d+)", talk(port, post('{"texts": ["a text"]}', path, "Connection: close")))
            if after != [b"200"]:
                wrong.append(f"request: {server} {name}: then {after}")
            if any(code >= 500 for code in status):
                wrong.append(f"request: {server} {name}: {status}")
        if memory_of(process.pid) > before + 100_000_000:
            wrong.append(f"request: {server}: took {memory_of(process.pid) - before:,} bytes more")
        process.terminate()
        try:
            code = process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "none: it had to be killed"
        log = (world / "server.txt").read_text()
        if code or "Traceback" in log or re.search("[\x00-\x08\x0b-\x1f]", log):
            wrong.append(f"request: {server}: exit {code}, {log[-2000:]}")
    return wrong


def memory_of(pid):
    """Returns the resident memory of a process in bytes."""
    return 4096 * int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def talk(port, data):
    """Sends bytes to a server. Returns its response within two seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        response = b""
        with contextlib.suppress(OSError):
            client.sendall(data)
            client.settimeout(2 if b"close" not in data else 20)
            while part := client.recv(65536):
                response += part
                client.settimeout(0.3 if b"close" not in data else 20)
        return response


# ---- the folder ------------------------------------------------------------------------------------------------------


def build_world(folder, forks):
    """Fills the folder that is copied for each case: raw and processed data, runs (one with other labels), an export,
    and files to label."""
    rows = (ROOT / "dataset/sample_raw/en.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(row) for row in rows]
    splits = {split: [row for row in rows if row["split"] == split][:size] for split, size in SIZES.items()}
    texts = [row.get("text") or " ".join(row["tokens"]) for row in splits["train"]]
    (folder / "sample.jsonl").write_text("".join(json.dumps(row) + "\n" for split in splits.values() for row in split))
    (folder / "raw.in").mkdir()
    table = [f'"{text}",{"abc"[n % 3]},{n}' for n, text in enumerate(texts[:30])]
    (folder / "raw.in/table.csv").write_text("\n".join(["text,label,number", *table, ""]))
    (folder / "texts.txt").write_text("\n".join(texts[:5]) + "\n")
    (folder / "empty.txt").write_text("")
    (folder / "texts.csv").write_text("text,other\na b,1\nc d,2\n")
    (folder / "twice.csv").write_text("text,text\na b,1\nc d,2\n")
    (folder / "clash.csv").write_text("text,intent,intent_probability\na b,1,2\nc d,2,3\n")
    (folder / "ragged.csv").write_text("text,other\na b\nc d,2,3,4\n")
    (folder / "wide.csv").write_text(",".join(["text", *map(str, range(3000))]) + "\n" + ",".join(["a"] * 3001) + "\n")
    (folder / "bell.jsonl").write_text('{"text": "\\u001b[31m a", "\\u001b[2Jkey": 1}\n')
    for words in (
        "data_process.py --input sample.jsonl --output_dir data",
        "data_process.py --input raw.in/table.csv --output_dir other --label_column label",
        "data_process.py --input sample.jsonl --output_dir related --label_type slots=spans",
        "data_process.py --input sample.jsonl --output_dir folds --n_splits 2",
        f"main.py --do_train --do_eval --epochs 1 --data_path data {TINY} --model_version run",
        f"main.py --do_train --do_eval --epochs 1 --seed 1 --data_path data {TINY} --model_version twin",
        f"main.py --do_train --do_eval --epochs 1 --data_path other {TINY} --model_version alien",
        "tools.export --checkpoint output/run/checkpoints/best --output_dir ship",
    ):
        done = forks.command(words.split(), folder)
        assert done.returncode == 0, (words, done.stderr)
    add_relations(folder / "related", "slots")


SIZES = {"train": 48, "dev": 16, "test": 16}


def seen(folder):
    """Returns {path: content, or target of a link} for everything in a folder."""
    found = {}
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(base, name)
            if path.is_symlink():
                found[str(path.relative_to(folder))] = os.readlink(path)
            elif path.is_file():
                found[str(path.relative_to(folder))] = path.read_bytes()
            elif not path.is_dir():  # a pipe, a device
                found[str(path.relative_to(folder))] = path.stat().st_mode
    return found


def split(command):
    import shlex

    return shlex.split(command)


def run_case(case, world, place, forks):
    """Runs a case. Returns ([problems], exit code, output)."""
    change, command, may, expected = case
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(world, place, symlinks=True)
    change(place)
    before, words = seen(place), split(command)
    words[0] = str(place / words[0]) if words[0].startswith("ship/") else words[0]
    done = forks.command(words, place, seconds=SECONDS)
    after, wrong = seen(place), []
    if "Traceback" in done.stdout + done.stderr or "Logging error" in done.stderr:
        wrong.append("traceback")
    if done.returncode not in CODES | {-14}:
        wrong.append(f"exit {done.returncode}")
    if done.returncode == -14:
        wrong.append("hangs")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    if done.returncode == 2 and not lines:
        wrong.append("no error line")
    if len(lines) > 1 and "--space" not in command:
        wrong.append(f"{len(lines)} error lines")
    if any(ord(letter) < 32 and letter not in "\n\t\r" for letter in done.stdout + done.stderr):
        wrong.append("control characters")
    changed = [name for name, what in before.items() if after.get(name) != what]
    if lost := [name for name in changed if not any(fnmatch.fnmatch(name, pattern) for pattern in may)]:
        wrong.append(f"changed: {lost[:3]}")
    if left := [name for name in after if "template-" in name or name.endswith((".tmp", ".partial"))]:
        wrong.append(f"left: {left[:3]}")
    if expected not in done.stdout + done.stderr:
        wrong.append(f"lacks {expected!r}")
    return wrong, done.returncode, done.stdout[-1500:] + done.stderr[-3000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose name contains this word")
    parser.add_argument("--list", action="store_true", help="print names and commands without running them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel cases [all cores]")
    parser.add_argument("--log", default="", help="file to which the output of each case is appended")
    options = parser.parse_args()
    chosen = {name: case for name, case in cases().items() if options.only in name}
    if options.list:
        print("\n".join(f"{name}: {case[1]}" for name, case in chosen.items()))
        return 0
    with tempfile.TemporaryDirectory() as base:
        return run_all(chosen, Path(base), options)


def run_all(chosen, base, options):
    """Runs all cases and prints the problems. Returns the exit code."""
    local, failed, codes = threading.local(), 0, {}
    env = QUIET | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}

    def forks():
        if not hasattr(local, "forks"):
            local.place = base / f"w{threading.get_ident()}"
            local.place.mkdir()
            local.forks = Forks(ROOT, local.place, env=env)
        return local.forks

    def run(item):
        name, case = item
        return name, run_case(case, base / "world", base / f"c{threading.get_ident()}", forks())

    (base / "world").mkdir()
    build_world(base / "world", forks())
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, (wrong, code, printed) in tqdm(pool.map(run, chosen.items()), total=len(chosen), disable=None):
            codes[code] = codes.get(code, 0) + 1
            if wrong:
                failed += 1
                tqdm.write(f"{name}: {'; '.join(wrong)}\n    " + printed[-400:].replace("\n", "\n    "))
            with open(options.log or os.devnull, "a", encoding="utf-8") as log:
                log.write(f"==== {name}: exit {code} {'; '.join(wrong)}\n{printed}\n")
    asked, wrong = try_requests(base / "world", options.only)
    print(*wrong, sep="\n")
    failed += len(wrong)
    print(
        f"{len(chosen)} cases and {asked} requests, {failed} failed; exit codes {dict(sorted(codes.items(), key=str))}"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
