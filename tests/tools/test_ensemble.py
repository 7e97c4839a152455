"""Ensembles: means compared with means computed by hand, selection compared with brute force, and errors."""

import copy
import csv
import itertools
import json
import logging
import math
import random
import shutil
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, read_json
from relation_rows import add_relations
from transformers import BertModel

import metrics
from config import Config, seed_torch
from data_loader import MyDataset
from data_process import DataConfig, process
from engine.data.features import Featurizer
from engine.data.tokenizer import train_tokenizer
from engine.data.windows import merge_windows
from engine.errors import UserError
from engine.model.encoders import bert_config
from engine.predict import labelling
from engine.predict.collector import Predictions
from engine.predict.ensemble import (
    Committee,
    Run,
    SplitOutputs,
    average_heads,
    decoding_state,
    find_runs,
    mean_of_words,
    mean_predictions,
)
from engine.predict.predictions import prepare_inputs
from engine.run.command_line import parse_args
from engine.task.tags import may_follow
from engine.task.task import Task
from engine.task.words import LOWEST_SCORE
from main import build_trainer, load_data, load_trained
from main import main as main_py
from model_utils import ClassificationHead, CRFTaggingHead
from preprocess.schema import load_labels, read_processed
from tools.ensemble.__main__ import EnsembleConfig, loader_of
from tools.ensemble.__main__ import main as ensemble
from tools.ensemble.selection import SEED, SHARES, Selection, assess, select
from tools.report.compare import show_comparison
from tools.report.page import make_report

CPU = torch.device("cpu")
WORDS = "red green blue big small cat dog runs sleeps in Paris Rome the of".split()


def train(folder, data, name, **options):
    """Trains a tiny run. Returns its folder."""
    config = Config(
        **{
            **TINY,
            "data_path": str(data),
            "output_dir": str(folder),
            "model_version": name,
            "do_train": True,
            **options,
        }
    )
    config.run_dir.mkdir(parents=True)
    seed_torch(config.random_seed)
    trainer = build_trainer(load_data(config, CPU), CPU)
    trainer.train()
    return config.run_dir


def made_data(folder, kind, seed=1, shift=0.0):
    """Writes a processed folder of generated texts. kind: "texts" (intent, topics, size) or "spans" (intent,
    places)."""
    rng, rows = random.Random(seed), []
    for i in range(150):
        words = [rng.choice(WORDS) for _ in range(rng.randint(3, 8 if kind == "texts" else 20))]
        row = {"id": str(i), "intent": max("cat dog".split(), key=words.count)}
        if kind == "texts":
            topics = [word for word in ("red", "green", "blue") if word in words]
            size = words.count("big") - words.count("small") + rng.random() + shift
            row |= {"text": " ".join(words), "topics": topics, "size": size}
        else:
            starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
            at = [j for j, word in enumerate(words) if word in ("Paris", "Rome")]
            places = [(j, j, "city") for j in at] + [(j - 1, j, "phrase") for j in at if j]
            places = [{"start": starts[i], "end": starts[j + 1] - 1, "label": label} for i, j, label in places]
            row |= {"text": " ".join(words), "places": places}
        rows.append(row)
    folder.mkdir(parents=True)
    (folder / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    types = {"texts": "topics=multilabel,size=regression", "spans": "places=spans"}[kind]
    columns = {"texts": "intent,topics,size", "spans": "intent,places"}[kind]
    options = dict(label_column=columns, label_type=types)
    process(DataConfig(input=str(folder / "raw.jsonl"), output_dir=str(folder / "data"), **options))
    return folder / "data"


@pytest.fixture(scope="module")
def joint(sample, tmp_path_factory):
    """Returns {whether a CRF is used: three runs with intents and slots}: a BiLSTM with a small vocabulary and windows,
    and two runs that truncate."""
    folder = tmp_path_factory.mktemp("joint")
    runs = {}
    for crf in (True, False):
        own = dict(use_crf=crf, epochs=4, lr=1e-2)
        runs[crf] = [
            train(folder, sample, f"cut{crf}", max_length=16, window_stride=-1, **own),
            train(folder, sample, f"bilstm{crf}", max_length=14, encoder="bilstm", vocab_size=300, **own),
        ]
    short = dict(max_length=12, window_stride=-1, random_seed=5, pooling="mean")
    runs[True].append(train(folder, sample, "shortTrue", use_crf=True, epochs=4, lr=1e-2, **short))
    return runs


@pytest.fixture(scope="module")
def short_only(sample, tmp_path_factory):
    """Returns two runs with a CRF that both truncate, so some words are read by neither."""
    folder = tmp_path_factory.mktemp("short")
    own = dict(use_crf=True, window_stride=-1, epochs=1)
    return [train(folder, sample, f"cut{length}", max_length=length, **own) for length in (10, 14)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Returns two runs with classification, multilabel and regression. The numbers have another range in the second
    run's training data."""
    folder = tmp_path_factory.mktemp("texts")
    data, other = made_data(folder / "one", "texts"), made_data(folder / "two", "texts", 2, 0.7)
    own = dict(epochs=12, lr=1e-2)
    return [train(folder, data, "a", **own), train(folder, other, "b", random_seed=2, vocab_size=100, **own)], data


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    """Returns two runs with spans, relations and intents. The second run truncates."""
    folder = tmp_path_factory.mktemp("spans")
    data, own = made_data(folder / "one", "spans"), dict(epochs=10, lr=1e-2)
    add_relations(data, "places")
    short = dict(max_length=14, window_stride=-1, random_seed=2)
    return [train(folder, data, "a", **own), train(folder, data, "b", **short, **own)], data


def together(runs, folder, **options):
    """Runs tools.ensemble in this process. Returns its folder."""
    flags = dict(device="cpu", output_dir=str(folder), **options)
    ensemble(EnsembleConfig(runs=tuple(map(str, runs)), **flags))
    return folder / "ensemble"


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def examples_in(data, part):
    return [example for _, example in read_processed(data / f"{part}.jsonl", load_labels(data))]


class ByHand:
    """Computes a run's logits for single texts, without batches or padding. Windows are merged here."""

    def __init__(self, run):
        trainer, self.featurizer = load_trained(run / "checkpoints/best", Config(device="cpu"), CPU)
        self.model = trainer.model.eval()
        self.heads = self.model.output_layer.heads

    @torch.inference_mode()
    def __call__(self, example):
        """Returns {task: logits}: (C,), (), (W, C) for the words that were read, or logits of spans or relations."""
        data = MyDataset([example], self.featurizer, quiet=True)
        found = {name: [] for name in self.heads}
        for row in range(len(data.lengths)):
            batch = data.batch([row])
            for name, logits in self.model(batch.inputs).logits.items():
                found[name].append(
                    (int(data.columns["first_word"][row]) if "first_word" in data.columns else 0, logits[0])
                )
        merged = {}
        for name, pieces in found.items():
            if self.heads[name].level != "words" or self.heads[name].finds_spans:
                merged[name] = pieces[0][1].double()
            else:
                merged[name] = torch.stack(merge_windows([(first, list(part)) for first, part in pieces])).double()
        return merged


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mean_by_word(parts):
    """Returns the mean of [(W, C)] with different W for each word, over the tensors that contain it."""
    longest = max(map(len, parts))
    return np.array([np.mean([part[w] for part in parts if w < len(part)], 0) for w in range(longest)])


def best_path(emissions, starts, between, ends, labels):
    """Returns the best valid path by dynamic programming."""
    bioes = any(label[0] in "ES" and label != "O" for label in labels)
    size, low = len(labels), -1e9
    score = [starts[j] + emissions[0][j] + (0 if may_follow("O", labels[j], bioes) else low) for j in range(size)]
    back = []
    for row in emissions[1:]:
        steps = [
            [score[i] + between[i][j] + (0 if may_follow(labels[i], labels[j], bioes) else low) for i in range(size)]
            for j in range(size)
        ]
        back.append([int(np.argmax(step)) for step in steps])
        score = [max(steps[j]) + row[j] for j in range(size)]
    last = int(np.argmax([score[j] + ends[j] + (0 if may_follow(labels[j], "O", bioes) else low) for j in range(size)]))
    path = [last]
    for row in reversed(back):
        path.append(row[path[-1]])
    return [labels[j] for j in reversed(path)]


def tags_by_hand(hands, logits, crf):
    """Returns the tags of the words in a text that any model read. logits: (W, C) per model."""
    labels, parts = hands[0].heads["slots"].task.labels, [one.numpy() for one in logits]
    if not crf:
        return [labels[i] for i in mean_by_word([softmax(part) for part in parts]).argmax(1)]
    names = ("start_transitions", "transitions", "end_transitions")
    crfs = [hand.heads["slots"].crf for hand in hands]
    means = [np.mean([getattr(one, name).detach().double().numpy() for one in crfs], 0) for name in names]
    return best_path(mean_by_word(parts), *means, labels)


# ---- the mean --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crf", [True, False])
def test_intents_and_tags_match_means_computed_by_hand(crf, joint, sample, tmp_path):
    """The runs have different encoders and tokenizers: one reads windows, the others truncate at different words."""
    folder, hands = together(joint[crf], tmp_path), [ByHand(run) for run in joint[crf]]
    rows, uneven = rows_of(folder / "answers/test.jsonl"), 0
    for row, example in zip(rows, examples_in(sample, "test"), strict=True):
        given = [hand(example) for hand in hands]
        uneven += len({len(one["slots"]) for one in given}) > 1
        p = np.mean([softmax(one["intent"].numpy()) for one in given], 0)
        label, answers = hands[0].heads["intent"].task.labels[p.argmax()], row["answers"]
        assert answers["intent"]["predicted"] == label
        assert answers["intent"]["untempered"] == pytest.approx(p.max(), abs=1e-5)
        assert answers["slots"]["predicted"] == tags_by_hand(hands, [one["slots"] for one in given], crf)
    assert uneven > 5


def test_words_truncated_in_all_runs_are_tagged_outside(short_only, sample, tmp_path):
    folder, hands = together(short_only, tmp_path), [ByHand(run) for run in short_only]
    unseen = 0
    for row, example in zip(rows_of(folder / "answers/test.jsonl"), examples_in(sample, "test"), strict=True):
        tags = tags_by_hand(hands, [hand(example)["slots"] for hand in hands], True)
        unseen += len(example["tokens"]) - len(tags)
        assert row["answers"]["slots"]["predicted"] == tags + ["O"] * (len(example["tokens"]) - len(tags))
    assert unseen > 10


def best_by_brute_force(scored, there):
    """Returns the threshold with the best F1 (on ties, the highest). scored: [(probability, whether it is right)]."""
    values, best = sorted({p for p, _ in scored}, reverse=True), (-1.0, None)
    for value, following in zip(values, [*values[1:], 0.0]):
        taken = [right for p, right in scored if p >= value]
        f1 = 2 * sum(taken) / (len(taken) + there)
        if f1 > best[0] + 1e-12:
            best = f1, (value + following) / 2
    return best[1]


def test_labels_and_numbers_match_means_computed_by_hand(texts, tmp_path, caplog):
    """The threshold is the best one for the mean on dev. Numbers are averaged in their original scale."""
    (runs, data), name = texts, "topics"
    folder, hands = together(runs, tmp_path), [ByHand(run) for run in runs]
    labels = hands[0].heads[name].task.labels

    def mean_of(example):
        given = [hand(example) for hand in hands]
        numbers = [
            float(one["size"]) * h.heads["size"].task.std + h.heads["size"].task.mean for one, h in zip(given, hands)
        ]
        return np.mean([torch.sigmoid(one[name]).numpy() for one in given], 0), np.mean(numbers)

    dev, scored = examples_in(data, "dev"), []
    for example in dev:
        scored += [(p, label in example[name]) for p, label in zip(mean_of(example)[0], labels)]
    threshold = best_by_brute_force(scored, sum(right for _, right in scored))
    for row, example in zip(rows_of(folder / "answers/test.jsonl"), examples_in(data, "test"), strict=True):
        p, number = mean_of(example)
        assert row["answers"][name]["predicted"] == [label for label, value in zip(labels, p) if value >= threshold]
        assert row["answers"]["size"]["predicted"] == pytest.approx(number, abs=1e-4)
    scales = [read_json(run / "checkpoints/best/labels.json")["size"]["mean"] for run in runs]
    assert abs(scales[0] - scales[1]) > 0.3
    thresholds = [float(hand.heads[name].threshold) for hand in hands]
    assert abs(threshold - np.mean(thresholds)) > 1e-3  # otherwise the test is trivial
    log = (folder / "train.log").read_text()
    assert "b was trained on" in log and "a was trained on" not in log


def spans_by_hand(logits, _):
    """Returns {(first word, last word, type): score} for scores above the minimum in a table (W, W + 2T)."""
    width = len(logits)
    types = (logits.shape[1] - width) // 2
    scores = {
        (i, j, t): logits[i, j] + logits[i, width + t] + logits[j, width + types + t]
        for i in range(width)
        for j in range(i, width)
        for t in range(types)
    }
    return {span: score for span, score in scores.items() if score > LOWEST_SCORE}


def relations_by_hand(logits, number):
    """Returns {(four words, predicate): score} for scores above the minimum. logits: (W, 3W + 4 + 4P), then
    entities."""
    width, found = len(logits), {}

    def best(items, most):
        return dict(sorted(items.items(), key=lambda item: -item[1])[:most])

    _, heads, tails, entities = np.split(logits, np.cumsum([width + 4, *[width + 2 * number] * 2]), axis=1)
    typed, spans = spans_by_hand(entities, (entities.shape[1] - width) // 2), {}
    for (first, last, _), score in typed.items():
        spans[first, last] = max(score, spans.get((first, last), score))
    spans = best(spans, 2 * width)
    for (a, b), (c, d), p in itertools.product(spans, spans, range(number)):
        links = [
            table[i, j] + table[i, width + p] + table[j, width + number + p]
            for table, i, j in ((heads, a, c), (tails, b, d))
        ]
        found[a, b, c, d, p] = min(spans[a, b], spans[c, d], *links)
    return best({item: score for item, score in found.items() if score > LOWEST_SCORE}, 4 * width)


def test_spans_and_relations_match_means_computed_by_hand(spans, tmp_path):
    runs, data = spans
    folder, hands = together(runs, tmp_path), [ByHand(run) for run in runs]
    require_the_mean(folder, hands, data, "places", spans_by_hand)
    require_the_mean(folder, hands, data, "facts", relations_by_hand)


def require_the_mean(folder, hands, data, name, scores_of):
    types = hands[0].heads[name].task.labels

    def mean_of(example):
        """Returns {item: mean probability} over the runs that read its last word."""
        probabilities, sizes = [], []
        for hand in hands:
            logits = hand(example)[name].numpy()
            sizes.append(len(logits))
            probabilities.append({c: 1 / (1 + math.exp(-s)) for c, s in scores_of(logits, len(types)).items()})
        every = sorted({cell for one in probabilities for cell in one})
        return {
            c: sum(one.get(c, 0) for one in probabilities) / sum(max(c[:-1]) < size for size in sizes) for c in every
        }

    scored, there = [], 0
    for example in examples_in(data, "dev"):
        gold = [tuple(span) for span in example[name]]
        scored += [(p, (*places, types[t]) in gold) for (*places, t), p in mean_of(example).items()]
        there += len(gold)
    threshold, found, between = best_by_brute_force(scored, there), 0, 0
    thresholds = [float(hand.heads[name].threshold.double().sigmoid()) for hand in hands]
    for row, example in zip(rows_of(folder / "answers/test.jsonl"), examples_in(data, "test"), strict=True):
        mean = mean_of(example)
        expected = [[*places, types[t]] for (*places, t), p in mean.items() if p >= threshold]
        between += sum((p >= threshold) != (p >= np.mean(thresholds)) for p in mean.values())
        found += len(expected)
        assert sorted(row["answers"][name]["predicted"]) == sorted(expected)
    assert between  # the mean threshold would give other labels
    assert found > 10


def test_crfs_are_combined_by_the_geometric_mean():
    """The predicted path has the greatest mean log probability over two models among all 243 paths."""
    torch.manual_seed(1)
    task, words, changed = Task("tagging", labels=["noun", "verb", "other"]), 5, 0
    heads = [torch.nn.ModuleDict({"x": CRFTaggingHead(4, task)}) for _ in range(2)]
    for head in heads:
        for parameter in head["x"].crf.parameters():
            torch.nn.init.normal_(parameter, std=2)
    emissions, mask = 2 * torch.randn(2, 20, words, 3), torch.ones(1, words, dtype=torch.bool)
    paths = torch.tensor(list(itertools.product(range(3), repeat=words)))
    average_heads(mean := copy.deepcopy(heads[0]), [decoding_state(head) for head in heads])
    averages, data = [{"x": list(of_model)} for of_model in emissions], [{"tokens": ["w"] * words}] * 20
    found = mean_predictions(mean, averages, data).labels["x"]
    for i, tags in enumerate(found):
        logs = torch.zeros(len(paths))
        for head, of_model in zip(heads, emissions):
            crf, one = head["x"].crf, of_model[i : i + 1]
            scores = crf.path_score(one.expand(len(paths), -1, -1), paths, mask.expand(len(paths), -1))
            logs += (scores - crf.log_partition(one, mask)).detach() / 2
        assert tags == [task.labels[tag] for tag in paths[logs.argmax()]]
        changed += tags != [
            task.labels[tag] for tag in heads[0]["x"].decode(emissions[:, i].mean(0)[None], {"word_mask": mask})[0][0]
        ]
    assert changed > 3  # transitions of both models have an effect


def test_words_are_averaged_over_the_runs_that_read_them():
    one, other = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[3.0]])
    assert mean_of_words([one, other]).tolist() == [[2.0], [2.0], [3.0]]
    assert mean_of_words([one, one, other[[0, 0, 0]]]).flatten().tolist() == pytest.approx([5 / 3, 7 / 3, 3])


# ---- what is written -------------------------------------------------------------------------------------------------


def test_scores_files_and_report(joint, sample, tmp_path, caplog):
    runs = joint[True]
    folder = together(runs, tmp_path)
    result, tasks = read_json(folder / "ensemble.json"), load_labels(sample)
    assert list(result["runs"]) == [run.name for run in runs] and result["monitor"] == "sentence_accuracy"
    for run in runs:  # as in main.py
        config = Config(do_eval=True, checkpoint=str(run / "checkpoints/best"), data_path=str(sample), device="cpu")
        trainer, featurizer = load_trained(run / "checkpoints/best", config, CPU)
        for part in ("dev", "test"):
            loader = loader_of(sample / f"{part}.jsonl", featurizer, 7, run.name)
            scores = {name: v for name, v in trainer.eval(loader).scores.items() if not name.endswith("loss")}
            assert result["runs"][run.name][part] == pytest.approx(scores)
    for part in ("dev", "test"):  # recomputed from the rows
        rows = rows_of(folder / f"answers/{part}.jsonl")
        sides = ({n: [row["answers"][n][side] for row in rows] for n in tasks} for side in ("gold", "predicted"))
        scores = metrics.score(tasks, *sides)
        assert (
            result["all"][part] == pytest.approx(scores)
            and read_json(folder / "eval.json")[part] == result["all"][part]
        )
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        right = [row["right"] == "True" for row in csv.DictReader(file)]
    assert np.mean(right) == pytest.approx(result["all"]["test"]["sentence_accuracy"])
    best = max(result["runs"], key=lambda name: result["runs"][name]["dev"]["sentence_accuracy"])
    assert result["best"]["runs"] == [best] and result["selected"]["runs"][0] == best
    assert sum(result["selected"]["weights"].values()) == pytest.approx(1)
    gain = result["gain_on_test"]["all"]["sentence_accuracy"]
    scores = (group["test"]["sentence_accuracy"] for group in (result["all"], result["runs"][best]))
    assert (
        gain["difference"] == pytest.approx(next(scores) - next(scores))
        and gain["low"] <= gain["difference"] <= gain["high"]
    )
    log, (page, _) = (folder / "train.log").read_text(encoding="utf-8"), make_report(folder)
    assert "cross-fitted" in log and f"gain over {best}" in log and "which is optimistic" in log
    assert all(run.name in page.read_text(encoding="utf-8") for run in runs)  # the learning curves of each run


def test_select_reports_the_selected_runs(texts, tmp_path):
    """The mean score over several kinds of tasks has an interval, too."""
    runs, data = texts
    folder = together(runs, tmp_path, select=True, data_path=str(data), monitor="topics_micro_f1")
    result = read_json(folder / "ensemble.json")
    assert read_json(folder / "eval.json")["test"] == result["selected"]["test"]
    steps = result["selected"]["dev_topics_micro_f1_with_each"]
    assert steps == sorted(steps) and steps[-1] == result["selected"]["dev"]["topics_micro_f1"]
    gain, mains = result["gain_on_test"]["all"], ("intent_accuracy", "topics_micro_f1", "size_spearman")
    assert gain["mean_score"]["difference"] == pytest.approx(np.mean([gain[name]["difference"] for name in mains]))


def test_texts_are_labelled_with_mean_probabilities(joint, tmp_path, monkeypatch):
    """Predictions match means computed by hand, and are byte-identical for any pool size and after resuming."""
    given = [
        "play a song by Adele",
        "",
        "播放 周杰伦 的 歌，好!",
        "x" * 60,
        "what is the weather like in Paris tomorrow " * 3,
    ] * 3
    (tmp_path / "texts.txt").write_text("\n".join(given) + "\n", encoding="utf-8")
    options = dict(predict_file=str(tmp_path / "texts.txt"), eval_batch_size=4)
    runs, output = joint[True], tmp_path / "one.jsonl"
    together(runs, tmp_path, predict_output=str(output), **options)
    hands, rows = [ByHand(run) for run in runs], rows_of(output)
    examples = prepare_inputs([{"id": str(i), "text": text} for i, text in enumerate(given)], hands[0].featurizer.tasks)
    for row, example in zip(rows, examples, strict=True):
        answers = [hand(example) for hand in hands]
        p = np.mean([softmax(one["intent"].numpy()) for one in answers], 0)
        p **= 1 / np.mean([float(hand.heads["intent"].temperature) for hand in hands])
        top = p.max() / p.sum()
        assert row["text"] == example["text"] and row["intent_probability"] == pytest.approx(top, abs=1e-5)
        tags = tags_by_hand(hands, [one["slots"] for one in answers], True)
        assert row["slots_tags"] == ([] if example["tokens"] == [""] else tags)
    monkeypatch.setattr(labelling, "POOL", 4)
    again = tmp_path / "two.jsonl"
    collect = Committee.collect_rows

    def stop_at_the_third(self, examples):
        if examples[0]["id"] == "8":
            raise KeyboardInterrupt
        return collect(self, examples)

    monkeypatch.setattr(Committee, "collect_rows", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        together(runs, tmp_path, predict_output=str(again), **options)
    assert not again.exists() and len(rows_of(tmp_path / "two.jsonl.partial")) == 8
    monkeypatch.setattr(Committee, "collect_rows", collect)
    with pytest.raises(UserError, match="was started with different options: SHA-256 of the checkpoint"):
        together(runs[:2], tmp_path, predict_output=str(again), resume=True, **options)
    together(runs, tmp_path, predict_output=str(again), resume=True, **options)
    assert again.read_bytes() == output.read_bytes()


def test_labelling_uses_the_dev_threshold_or_the_mean_threshold(texts, tmp_path):
    runs, data = texts
    test = examples_in(data, "test")
    (tmp_path / "texts.txt").write_text("\n".join(example["text"] for example in test) + "\n")
    options = dict(predict_file=str(tmp_path / "texts.txt"), predict_output=str(tmp_path / "out.jsonl"))
    folder = together(runs, tmp_path)
    fitted = [row["answers"]["topics"]["predicted"] for row in rows_of(folder / "answers/test.jsonl")]
    together(runs, tmp_path, **options)
    assert [row["topics"] for row in rows_of(tmp_path / "out.jsonl")] == fitted
    copies = [shutil.copytree(run / "checkpoints/best", tmp_path / f"alone/{run.name}") for run in runs]
    moved = data.rename(data.with_name("moved"))
    try:
        together(copies, tmp_path, **options)
    finally:
        moved.rename(data)
    hands = [ByHand(run) for run in runs]
    head, threshold = hands[0].heads["topics"], np.mean([float(hand.heads["topics"].threshold) for hand in hands])
    for row, example in zip(rows_of(tmp_path / "out.jsonl"), test, strict=True):
        p = np.mean([torch.sigmoid(hand(example)["topics"]).numpy() for hand in hands], 0)
        assert row["topics"] == [label for label, value in zip(head.task.labels, p) if value >= threshold]
    assert "no dev split to fit" in (folder / "train.log").read_text()


def test_models_are_loaded_one_at_a_time(joint, sample):
    before = []

    def load(folder):
        assert not any(model() for model in before)
        trainer, featurizer = load_trained(folder, config, CPU)
        before.append(weakref.ref(trainer.model.encoder))
        return trainer, featurizer

    config, runs = Config(device="cpu"), find_runs(joint[True])
    committee = Committee(runs, load, loader_of, config, CPU, metrics)
    committee.collect({"dev": sample / "dev.jsonl"})
    assert len(before) == 3


# ---- selection -------------------------------------------------------------------------------------------------------


def committee_of(probabilities, gold):
    """Returns (Committee, dev SplitOutputs) whose members have the given probabilities (M, N, C) for dev."""
    labels = [f"l{c}" for c in range(probabilities.shape[2])]
    tasks = {"x": Task("classification", labels=labels)}
    tokenizer = train_tokenizer(lambda: iter(["a b"] * 3), 50)
    examples = [{"id": str(i), "text": "a", "x": labels[g]} for i, g in enumerate(gold)]
    data = MyDataset(examples, Featurizer(tokenizer, tasks, 16))
    runs = [Run(f"m{m}", Path(f"m{m}"), tasks, False) for m in range(len(probabilities))]
    committee, part = Committee(runs, None, None, None, CPU, metrics), SplitOutputs()
    committee.heads = torch.nn.ModuleDict({"x": ClassificationHead(4, tasks["x"])})
    committee.states = {m: {"x": {}} for m in range(len(runs))}
    for m, p in enumerate(torch.from_numpy(probabilities)):
        part.add(
            m,
            data,
            Predictions(
                {"x": [labels[i] for i in p.argmax(1)]}, {"x": p.amax(1).tolist()}, {"x": list(p)}, {"x": list(p)}
            ),
        )
    return committee, part


def accuracy(probabilities, gold, members, rows):
    mean = sum(probabilities[m].astype(np.float64) for m in members)[rows]
    return float(np.mean(mean.argmax(1) == gold[rows]))


def greedy_by_brute_force(probabilities, gold, rows):
    members, best = [], -1.0
    while True:
        scores = [accuracy(probabilities, gold, [*members, m], rows) for m in range(len(probabilities))]
        if max(scores) <= best:
            return members
        best = max(scores)
        members.append(scores.index(best))


def given_probabilities(members, size, skill, seed):
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 3, size)
    logits = rng.normal(size=(members, size, 3)) + skill * np.eye(3)[gold]
    return softmax(logits).astype(np.float32), gold


@pytest.mark.parametrize("seed", range(3))
def test_selection_matches_brute_force(seed):
    probabilities, gold = given_probabilities(6, 90, 0.8, seed)
    committee, part = committee_of(probabilities, gold)
    selection = Selection(committee, part, "x_accuracy")
    everything = np.arange(90)
    order = selection.order()
    assert [member for member, _ in order] == greedy_by_brute_force(probabilities, gold, everything)
    for n in range(1, len(order) + 1):
        assert order[n - 1][1] == pytest.approx(accuracy(probabilities, gold, [m for m, _ in order[:n]], everything))
    rows = np.arange(0, 90, 2)
    assert [member for member, _ in selection.order(rows)] == greedy_by_brute_force(probabilities, gold, rows)


def test_members_can_repeat_and_ties_go_to_the_first():
    scores = {(1,): 0.5, (0,): 0.4, (0, 1): 0.6, (1, 1): 0.5, (0, 1, 1): 0.7, (0, 0, 1): 0.6}
    found = select(2, lambda members: scores.get(tuple(sorted(members)), 0.0), lambda new, old: new > old)
    assert found == [(1, 0.5), (0, 0.6), (1, 0.7)]
    assert select(3, lambda members: 1.0, lambda new, old: new > old) == [(0, 1.0)]
    lower = select(2, lambda members: {(0,): 3.0, (1,): 2.0}.get(tuple(members), 2.5), lambda new, old: new < old)
    assert lower == [(1, 2.0)]


def test_cross_fitting_reveals_selection_bias():
    """On dev, the best of many random runs is better than chance. Cross-fitted, it is not, as brute force confirms."""
    probabilities, gold = given_probabilities(12, 120, 0.0, 4)
    committee, part = committee_of(probabilities, gold)
    result, _ = assess(committee, {"dev": part}, "x_accuracy")
    flattered, honest = (result["selected"][title]["x_accuracy"] for title in ("dev", "dev_cross_fitted"))
    assert flattered > 0.43 and honest < 0.38
    shares, right = np.array_split(np.random.default_rng(SEED).permutation(120), SHARES), 0
    for share in shares:
        members = greedy_by_brute_force(probabilities, gold, np.array([i for i in range(120) if i not in share]))
        right += accuracy(probabilities, gold, members, share) * len(share)
    assert honest == pytest.approx(right / 120)


def test_thresholds_are_fitted_on_the_given_rows(texts):
    """No other threshold is better on these rows, and other rows have another threshold."""
    runs, data = texts
    load = partial(load_trained, config=Config(device="cpu"), device=CPU)
    committee = Committee(find_runs(runs), load, loader_of, Config(), CPU, metrics)
    part, differ = committee.collect({"dev": data / "dev.jsonl"})["dev"], 0
    selection, gold = Selection(committee, part, "topics_micro_f1"), part.gold(committee.tasks)["topics"]
    of_all = selection.labels([0, 1], np.arange(len(gold)))["topics"]
    best = metrics.multilabel_scores(gold, of_all)["micro_f1"]
    for i, labels in enumerate(gold):
        of_one = selection.labels([0, 1], np.array([i]))["topics"]
        one, other = (metrics.multilabel_scores([labels], [found[i]])["micro_f1"] for found in (of_one, of_all))
        assert one >= other and metrics.multilabel_scores(gold, of_one)["micro_f1"] <= best + 1e-9
        differ += of_one != of_all
    assert differ


# ---- errors ----------------------------------------------------------------------------------------------------------

ERRORS = {
    "one run": (["A"], "two or more"),
    "no run": ([], "RUN"),
    "no such folder": (["A", "nowhere"], "nowhere"),
    "not a run": (["A", "DATA"], "neither a run"),
    "twice": (["A", "A/checkpoints/best"], "listed twice"),
    "damaged": (["A", "DAMAGED"], "weights.safetensors has changed since it was written"),
    "without a manifest": (["A", "UNSEALED"], "no readable manifest"),
    "another head": (["A", "PLAIN"], "head: 'tagging' instead of 'crf_tagging'"),
    "other tasks": (["A", "TEXTS"], "has no task 'slots'"),
    "more tasks": (["TEXTS", "A"], "has no task 'size'"),
    "other labels": (["A", "LABELS"], "labels differ (of_another_kind)"),
    "labels in another order": (["A", "ORDER"], "labels differ (in their order)"),
    "other data": (["A", "B", "--data_path", "OTHER"], "differ from the model's"),
    "no data": (["A", "B", "--data_path", "nowhere"], "no labels.json"),
    "unknown score": (["A", "B", "--monitor", "bleu"], "--monitor=bleu"),
    "a loss": (["A", "B", "--monitor", "loss"], "--monitor=loss"),
    "the folder of a run": (["A", "B", "--output_dir", "HOME", "--model_version", "cutTrue"], "contains a run"),
    "no such device": (["A", "B", "--device", "cuda:9"], "cuda:9"),
    "no such texts": (["A", "B", "--predict_file", "nowhere.txt"], "nowhere.txt"),
    "another kind of output": (["A", "B", "--predict_output", "a.pdf"], "a.pdf"),
    "too small a batch": (["A", "B", "--eval_batch_size", "0"], "eval_batch_size"),
}


def altered(best, folder, change):
    """Returns a sealed copy of a checkpoint with other labels."""
    from engine.run.files import seal

    copy = Path(shutil.copytree(best, folder))
    tasks = read_json(copy / "labels.json")
    change(tasks["intent"]["labels"])
    tasks["intent"].pop("counts")
    (copy / "labels.json").write_text(json.dumps(tasks))
    seal(copy)
    return copy


@pytest.mark.parametrize("name", ERRORS)
def test_invalid_options_raise_a_one_line_error_and_write_nothing(
    name, joint, texts, sample, tmp_path, monkeypatch, capsys
):
    best = joint[True][0] / "checkpoints/best"
    places = {"A": joint[True][0], "B": joint[True][1], "PLAIN": joint[False][0], "TEXTS": texts[0][0], "DATA": sample}
    places |= {"OTHER": texts[1], "HOME": joint[True][0].parent, "A/checkpoints/best": best}
    if "DAMAGED" in ERRORS[name][0]:
        places["DAMAGED"] = shutil.copytree(best, tmp_path / "damaged")
        with open(tmp_path / "damaged/weights.safetensors", "r+b") as file:
            file.seek(500)
            file.write(b"\x00\xff\x00\xff")
    if "UNSEALED" in ERRORS[name][0]:
        places["UNSEALED"] = shutil.copytree(best, tmp_path / "unsealed")
        (tmp_path / "unsealed/manifest.json").unlink()
    if "LABELS" in ERRORS[name][0]:
        places["LABELS"] = altered(best, tmp_path / "labels", lambda labels: labels.append("of_another_kind"))
    if "ORDER" in ERRORS[name][0]:
        places["ORDER"] = altered(best, tmp_path / "order", lambda labels: labels.reverse())
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    flags = [str(places.get(flag, flag)) for flag in ERRORS[name][0]]
    with pytest.raises((UserError, SystemExit)) as error:
        ensemble(parse_args(EnsembleConfig, flags))
    line = capsys.readouterr().err if error.type is SystemExit else f"{error.value}\n"
    assert ERRORS[name][1] in line and line.count("\n") == 1
    assert error.type is UserError or error.value.code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_can_appear_anywhere_and_names_are_distinct(joint):
    config = parse_args(EnsembleConfig, ["a", "--monitor", "slots_f1", "b", "--select"])
    assert config.runs == ("a", "b") and config.select and config.monitor == "slots_f1"
    best = joint[True][0] / "checkpoints/best"
    steps = sorted(best.parent.glob("step_*"))
    found = find_runs([joint[True][0], steps[0], joint[True][1] / "checkpoints/best"])
    assert [run.name for run in found] == ["cutTrue", f"cutTrue/{steps[0].name}", "bilstmTrue"]
    assert [run.home for run in found] == [joint[True][0], joint[True][0], joint[True][1]]


def test_dev_without_labels_is_an_error(joint, sample, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(sample, data, ignore=shutil.ignore_patterns(".cache"))
    rows = [json.dumps(row | {"intent": None, "slots": None}) + "\n" for row in rows_of(data / "dev.jsonl")]
    (data / "dev.jsonl").write_text("".join(rows))
    with pytest.raises(UserError, match="dev has no label"):
        together(joint[True][:2], tmp_path / "a", data_path=str(data))
    (data / "dev.jsonl").unlink()
    folder = together(joint[True][:2], tmp_path / "b", data_path=str(data))  # test is scored without a selection
    result = read_json(folder / "ensemble.json")
    assert result.keys() == {"monitor", "runs", "all"} and "test" in result["all"] and "dev" not in result["all"]
    with pytest.raises(UserError, match=r"no dev\.jsonl"):
        together(joint[True][:2], tmp_path / "c", data_path=str(data), select=True)


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(joint, sample, command, tmp_path):
    runs = joint[True]
    done = command("tools.ensemble", *runs, "--device", "cpu", "--select")
    assert done.returncode == 0 and "selected on dev" in done.stderr, done.stderr
    assert {path.name for path in (tmp_path / "output/ensemble").iterdir()} >= {
        "ensemble.json",
        "report.html",
        "predictions.csv",
    }
    (tmp_path / "texts.txt").write_text("play a song\n")
    done = command("tools.ensemble", *runs, "--select", "--predict_file", "texts.txt", "--predict_output", "out.csv")
    assert done.returncode == 0 and len((tmp_path / "out.csv").read_text().splitlines()) == 2, done.stderr
    done = command("tools.ensemble", runs[0], "nowhere")
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_ensemble_of_folds_matches_cross_validation(sample, command, tmp_path):
    assert command("data_process.py", "--input", sample, "--output_dir", "data", "--n_splits", 3).returncode == 0
    flags = ["--epochs", 2, "--hidden_size", 32, "--num_layers", 1, "--device", "cpu", "--use_crf"]
    assert command("tools.cross_validate", "--data_path", "data", *flags).returncode == 0
    runs = [f"output/data-fold_{number}" for number in range(3)]
    done = command("tools.ensemble", *runs, "--device", "cpu", "--data_path", "data")
    assert done.returncode == 0 and "the scores are inflated" in done.stderr, done.stderr
    folds = read_json(tmp_path / "output/data-folds/folds.json")
    assert read_json(tmp_path / "output/ensemble/ensemble.json")["all"]["test"] == folds["test_of_all_folds"]
    names = ["predictions.csv", "answers/test.jsonl"]
    assert all((tmp_path / f"output/{d}/{names[0]}").exists() for d in ("data-folds", "ensemble"))
    one, other = ((tmp_path / f"output/{d}/{names[0]}").read_bytes() for d in ("data-folds", "ensemble"))
    assert one == other


@pytest.mark.slow
def test_lora_adapters_and_pretrained_encoders(joint, sample, tmp_path):
    """An ensemble of a LoRA run, a BERT run with another tokenizer, and a run from scratch."""
    tokenizer = train_tokenizer(lambda: (" ".join(row["tokens"]) for row in examples_in(sample, "train")), 400)
    BertModel(bert_config(tokenizer, 2, 32, 64)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    own = dict(pretrain_model_path=str(tmp_path / "base"), use_crf=True, epochs=1)
    runs = [train(tmp_path, sample, "bert", **own), train(tmp_path, sample, "lora", lora_rank=2, **own), joint[True][1]]
    folder, hands = together(runs, tmp_path), [ByHand(run) for run in runs]
    for row, example in zip(rows_of(folder / "answers/test.jsonl"), examples_in(sample, "test"), strict=True):
        given = [hand(example)["slots"] for hand in hands]
        assert row["answers"]["slots"]["predicted"] == tags_by_hand(hands, given, True)


@pytest.mark.slow
def test_comparing_a_run_with_an_ensemble(joint, sample, tmp_path):
    options = dict(data_path=str(sample), device="cpu", output_dir=str(tmp_path))
    main_py(Config(do_eval=True, checkpoint=str(joint[True][0] / "checkpoints/best"), model_version="alone", **options))
    logging.getLogger("template").handlers.clear()
    together(joint[True], tmp_path)
    show_comparison(tmp_path, ("alone", "ensemble"))
    assert "ensemble" in (tmp_path / "comparison-alone-ensemble.html").read_text(encoding="utf-8")
