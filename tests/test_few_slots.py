"""benchmarks/few_slots.py: its samples, its output, and all stages of its methods."""

import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT
from transformers import BertModel

from engine.data.tokenizer import train_tokenizer
from engine.model.encoders import bert_config
from engine.task.tags import parse_tag
from preprocess.schema import training_texts

sys.path.insert(0, str(ROOT / "benchmarks"))
import few_slots


def test_labelled_and_unlabelled_texts_partition_train(sample, tmp_path):
    task = few_slots.prepare(SimpleNamespace(data=str(sample)), tmp_path)
    folder = few_slots.draw(tmp_path, task, 2, 1, 10)
    splits = {name: few_slots.read_rows(folder / f"{name}.jsonl") for name in ("train", "unlabelled", "dev", "test")}
    ids = {name: [row["id"] for row in rows] for name, rows in splits.items()}
    whole = few_slots.read_rows(sample / "train.jsonl")
    assert sorted(ids["train"] + ids["unlabelled"]) == sorted(row["id"] for row in whole)
    assert (len(ids["dev"]), len(ids["test"]), task) == (10, 24, "slots")
    assert {*splits["unlabelled"][0]} == {"id", "tokens"} and "intent" not in splits["train"][0]

    def sentences(rows):
        types = [{tag.kind for tag in map(parse_tag, row["slots"])} - {""} for row in rows]
        return {kind: sum(kind in of_row for of_row in types) for kind in set().union(*types)}

    drawn, there = sentences(splits["train"]), sentences(whole)
    assert drawn.keys() == there.keys() and all(drawn[kind] >= min(2, there[kind]) for kind in there)
    other = few_slots.draw(tmp_path, task, 2, 2, 10)
    assert (other / "train.jsonl").read_bytes() != (folder / "train.jsonl").read_bytes()


def test_table_has_paired_differences():
    results = {(5, "a"): [(80.0, 70.0, 10.0), (82.0, 72.0, 30.0)], (5, "b"): [(81.0, 73.0, 50.0), (83.0, 77.0, 51.0)]}
    assert few_slots.table(results, "a")[2:] == [
        "| 5 | a | 81.00 ± 1.41 |  | 71.00 ± 1.41 |  | 20 |",
        "| 5 | b | 82.00 ± 1.41 | +1.00 | 75.00 ± 2.83 | +4.00 | 50 |",
    ]


@pytest.mark.slow
def test_methods_share_their_first_stage(sample, tmp_path, monkeypatch, capsys):
    tokenizer = train_tokenizer(lambda: training_texts(sample / "train.jsonl"), 300)
    BertModel(bert_config(tokenizer, 1, 32, 256)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    short = {name: [f"{flags} --epochs 1" for flags in stages] for name, stages in few_slots.METHODS.items()}
    monkeypatch.setattr(few_slots, "METHODS", short)
    words = ["--data", sample, "--pretrain_model_path", tmp_path / "bert", "--work", tmp_path / "work"]
    words = [*map(str, words), "--shots", "2", "--seeds", "1"]
    few_slots.main(words)
    runs = {path.name for path in (tmp_path / "work/runs").iterdir() if path.is_dir()}
    assert runs == {"shots_2-1-batches_of_32-0", "shots_2-1-default-0", "shots_2-1-self-training-1"}
    printed = capsys.readouterr().out
    monkeypatch.setattr(few_slots, "Child", None)  # finished runs are not trained again
    few_slots.main(words)
    assert printed.splitlines()[-5:] == capsys.readouterr().out.splitlines()[-5:]
