"""Merges the heads' answers for each text, and writes them to a file."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

from engine.data.windows import merge_spans, merge_windows
from engine.errors import UserError
from engine.predict.rows import write_rows
from engine.run import distributed
from engine.run.files import appearing_whole
from engine.task.extras import extras_of, pairs_of, require_extras
from engine.task.tags import find_scheme
from engine.task.task import Task
from engine.task.text import split_text, text_and_offsets, token_unit
from engine.task.words import columns_of, is_wordless, row_of

logger = logging.getLogger("template")
Averages = Literal["none", "texts", "all"]


class Predictions(NamedTuple):
    """Each field is {task: a list with an entry for each example}."""

    labels: dict  # labels, lists of tags, or lists of spans
    probabilities: dict
    averages: dict  # representations to average over models, if requested: see `to_average` of the distributions


class Piece(NamedTuple):
    """The decoded output of a head for a row: a whole text with one label, or a window of its words."""

    first: int  # the first word
    size: int  # the number of words
    answer: Any
    probability: Any
    average: Any = None  # for averaging over models, if requested; spans are averaged themselves


class Answers:
    """Collects the heads' answers for the rows of a MyDataset, and merges the windows of an example.

    calibrate: decode a task only once all its logits are known, and calibrate its head on them. For a head that finds
    spans, all candidate spans are stored instead, and it is calibrated on those, with windows merged.
    keep_averages: of which tasks; "texts": only tasks with one label per text, whose averages are small.
    """

    def __init__(self, heads: Any, data: Any, calibrate: bool = False, keep_averages: Averages = "none"):
        self.heads, self.data = heads, data
        of_texts = {name for name, head in heads.items() if head.level != "words"}
        self.keep = {"none": set(), "texts": of_texts, "all": {*heads}}[keep_averages]
        calibrated = [name for name, head in heads.items() if calibrate and head.needs_calibration]
        self.waiting: dict[str, list] = {name: [] for name in calibrated if not heads[name].finds_spans}
        self.calibrated_on_spans = [name for name in calibrated if heads[name].finds_spans]
        self.pieces: dict[str, list[list[Piece]]] = {name: [[] for _ in range(len(data))] for name in heads}
        # the number of words of each row
        self.num_words: Any = data.columns["word_starts"].lengths if "word_starts" in data.columns else None

    def add(self, batch: Any, logits: dict[str, torch.Tensor]) -> None:
        for name, task_logits in logits.items():
            if name in self.waiting:
                self.waiting[name].append((batch, task_logits))
            else:
                self.decode(name, batch, task_logits)

    def decode(self, name: str, batch: Any, logits: torch.Tensor) -> None:
        """Stores the Piece of each row with its example."""
        data, head = self.data, self.heads[name]
        by_words = head.level == "words"
        answers, probabilities = head.decode(logits, batch.inputs)
        if not head.finds_spans:
            answers, probabilities = answers.tolist(), probabilities.tolist()
        keep = name in self.keep and not head.finds_spans
        averages: Any = head.distribution.to_average(logits).cpu() if keep else [None] * len(answers)
        for i, row in enumerate(batch.rows.tolist()):
            if head.finds_spans:
                first, size = int(data.columns["first_word"][row]), int(self.num_words[row])
                piece = Piece(first, size, answers[i], probabilities[i])
            elif by_words:
                first, size = int(data.columns["first_word"][row]), self.num_words[row]
                average = averages[i] if averages[i] is None else averages[i][:size]
                piece = Piece(first, size, answers[i][:size], probabilities[i][:size], average)
            elif data.is_first(row):
                piece = Piece(0, 1, answers[i], probabilities[i], averages[i])
            else:
                continue
            self.pieces[name][data.example_index[row]].append(piece)

    def gather(self) -> None:
        """Gathers the answers that all processes decoded."""
        if distributed.size() == 1:
            return
        device = next(self.heads.parameters()).device
        for name, batches in self.waiting.items():
            own: Any = [(batch.to("cpu"), logits.cpu()) for batch, logits in batches]
            everyone = distributed.gather_in_turn(own)
            self.waiting[name] = [(batch.to(device), logits.to(device)) for batch, logits in everyone]
        for name, pieces in self.pieces.items():
            own = {example: found for example, found in enumerate(pieces) if found}
            self.pieces[name] = merged = cast(list[list], [[] for _ in pieces])
            for answers in distributed.gather(own):
                for example, found in answers.items():
                    merged[example] += found

    def finish(self) -> Predictions:
        """Calibrates the heads if requested, and merges all answers."""
        for name, batches in self.waiting.items():
            labels: Any = torch.cat([batch.labels[name] for batch, _ in batches])
            self.heads[name].calibrate(torch.cat([logits for _, logits in batches]), labels)
            for batch, logits in batches:
                self.decode(name, batch, logits)
        labels, probabilities, averages = {}, {}, {}
        for name, head in self.heads.items():
            merged = [self.merge(name, i) for i in range(len(self.data))]
            if name in self.calibrated_on_spans:
                head.calibrate([pair[:2] for pair in merged], [self.data[i][name] for i in range(len(self.data))])
            named = [head.to_labels(answer, probability) for answer, probability, _ in merged]
            labels[name], probabilities[name] = ([pair[part] for pair in named] for part in (0, 1))
            averages[name] = [average for _, _, average in merged]
        return Predictions(labels, probabilities, averages)

    def merge(self, name: str, example: int) -> tuple[Any, Any, Any]:
        """(answer, probability, averages) of an example, merged from its rows; words cut off are O."""
        pieces, head, data = self.pieces[name][example], self.heads[name], self.data
        if head.finds_spans:
            found = merge_spans([(p.first, p.size, p.answer, p.probability) for p in pieces])
            return *found, found if name in self.keep else None
        if head.level != "words":
            return pieces[0].answer, pieces[0].probability, pieces[0].average
        tag_ids = merge_windows([(piece.first, piece.answer) for piece in pieces])
        probabilities = merge_windows([(piece.first, piece.probability) for piece in pieces])
        average = None
        if name in self.keep:
            average = torch.stack(merge_windows([(piece.first, list(piece.average)) for piece in pieces]))
        cut = int(data.columns["num_words"][data.first_rows[example]]) - len(tag_ids) if len(pieces) == 1 else 0
        return *add_cut_words(tag_ids, probabilities, cut, head.task), average


def add_cut_words(
    tag_ids: list[int], probabilities: list[float], num_cut: int, task: Task
) -> tuple[list[int], list[float]]:
    """Tags and probabilities of a text whose last words were cut, with O for those words."""
    return tag_ids + [outside_id(task)] * num_cut, probabilities + [0.0] * num_cut


def outside_id(task: Task) -> int:
    """The id of the tag O, or of the first tag."""
    return task.labels.index("O") if "O" in task.labels else 0


def names_entities(task: Task) -> bool:
    """Whether the tags of a tagging task mark entities (B-, I-, …), not classes of words such as parts of speech."""
    return are_of_entities(tuple(task.labels))


@lru_cache  # called for each text
def are_of_entities(labels: tuple[str, ...]) -> bool:
    tags = [tag for tag in labels if tag != "O"]
    return not tags or find_scheme([tags]) is not None


def prepare_inputs(
    examples: Iterable[dict[str, Any]], tasks: dict[str, Task], path: str | Path = "--predict_file", first: int = 1
) -> Iterator[dict[str, Any]]:
    """Yields the texts to predict on as examples for these tasks: with tokens for tags and spans, with extra columns.

    first: the number of the first text, for messages.
    """
    extras, unit = extras_of(tasks), token_unit(tasks)
    paired = pairs_of(tasks)
    for number, example in enumerate(examples, first):
        if not paired:
            example.pop("text_pair", None)
        if extras:
            require_extras(example, extras, f"{path}, text {number}")
        else:
            example.pop("extras", None)
        if unit is not None and "tokens" not in example:
            example["tokens"] = [token for token, _, _ in split_text(example["text"], unit)]
        yield example


def check_pairs(example: dict[str, Any], tasks: dict[str, Task]) -> None:
    """Raises UserError if the tasks read pairs of texts and an example to predict on has one text; warns of an unused
    second text."""
    paired = pairs_of(tasks)
    if paired and "text_pair" not in example:
        raise UserError(
            "this model was trained on pairs of texts, but --predict_file has one text per row; add --text_pair_column"
        )
    if "text_pair" in example and not paired:
        logger.warning("this model was trained on single texts: the second texts of --predict_file are not read")


def prediction_row(
    example: dict[str, Any],
    answers: dict[str, tuple[Any, Any]],
    tasks: dict[str, Task],
    is_right: Callable[[Task, Any, Any], bool | None] | None = None,
) -> dict[str, Any]:
    """The output row of an example. answers: {task: (label or tags, probability)}.

    Columns: id, text, (text_pair,) and for each task its label and probability, or its entities, with text and
    character offsets into the text column, and its tags; the entities of a task of spans have a probability each.
    If the example has labels and `is_right` is given, (task, gold, predicted) -> True, False or None, they are followed
    by <task>_gold (and <task>_gold_tags), <task>_right, and at the end `right`: whether all of them are right.
    """
    text, offsets = text_and_offsets(example, tasks)
    if is_wordless(example):
        answers = answers | {name: ([], []) for name in answers if tasks[name].needs_words}
    require_finite(example, answers)
    kinds = {name: column_kind(task) for name, task in tasks.items()}
    row = row_of(example, {name: (kinds[name], *answer) for name, answer in answers.items()}, text, offsets)
    if is_right is None or any(name not in example for name in answers):
        return row
    verdicts = {name: is_right(tasks[name], example[name], answers[name][0]) for name in answers}
    gold: dict[str, Any] = {}
    for name, verdict in verdicts.items():
        gold |= columns_of(f"{name}_gold", kinds[name], example[name], offsets, text) | {f"{name}_right": verdict}
    known = [verdict for verdict in verdicts.values() if verdict is not None]
    gold["right"] = all(known) if known else None
    # a task that is itself called "right" or "<task>_gold" keeps its column
    return row | {name: value for name, value in gold.items() if name not in row}


def prediction_rows(
    predictions: Predictions,
    data: Any,
    tasks: dict[str, Task],
    is_right: Callable[[Task, Any, Any], bool | None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the `prediction_row` of each example of a MyDataset."""
    labels, probabilities, _ = predictions
    for i in range(len(data)):
        yield prediction_row(
            data[i], {name: (labels[name][i], probabilities[name][i]) for name in tasks}, tasks, is_right
        )


def require_finite(example: dict, answers: dict) -> None:
    """Raises UserError if a value of an answer is not finite."""
    for name, answer in answers.items():
        numbers = [value for part in answer for value in (part if isinstance(part, list) else [part])]
        if not all(math.isfinite(value) for value in numbers if isinstance(value, float)):
            raise UserError(
                f"row {example.get('id')}: the model's answer for {name!r} is not a finite number; try --precision "
                "fp32, and train again if that does not help"
            )


def column_kind(task: Task) -> str:
    """The `kind` of a task's labels in `columns_of`."""
    if task.has_spans:
        return "spans"
    if task.is_tagging:
        return "entities" if names_entities(task) else "tags"
    return "label"


def write_predictions(rows: Iterable[dict[str, Any]], path: str | Path, spreadsheet_safe: bool = False) -> None:
    """Writes dicts to a .csv or .jsonl file that appears whole or not at all. Lists are JSON in a CSV."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing_whole(path) as file:
        write_rows(rows, file, path.suffix == ".jsonl", spreadsheet_safe=spreadsheet_safe)
