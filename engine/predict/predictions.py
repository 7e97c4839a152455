"""Merges the heads' answers for each text and writes them to a file."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

from engine.data.fields import describe
from engine.data.own_inputs import fields_of, input_columns, require_fields
from engine.data.windows import merge_spans, merge_windows
from engine.errors import UserError
from engine.model.temperature import MOST_TEXTS, Sample, fit_temperature, fit_temperature_on_spans
from engine.predict.rows import write_rows
from engine.run import distributed
from engine.run.files import appearing_whole
from engine.task.tags import are_of_entities
from engine.task.task import Task, has_no_text, pairs_of
from engine.task.text import split_text, text_and_offsets, token_unit
from engine.task.words import columns_of, is_wordless, row_of, word_probabilities

logger = logging.getLogger("template")
Averages = Literal["none", "texts", "all"]


class Predictions(NamedTuple):
    """Predictions for a dataset. Each field is {task: list with one entry per example}."""

    labels: dict  # labels, lists of tags, or lists of spans
    probabilities: dict
    averages: dict  # model outputs that an ensemble averages, if requested (see `to_average` of the distributions)
    untempered: dict  # like `probabilities` (text-level tasks: `averages`), at temperature 1, if these are kept


class Piece(NamedTuple):
    """A head's decoded output for one row: a text with one label, or a window of words."""

    first: int  # index of its first word
    size: int  # number of words
    answer: Any
    probability: Any
    average: Any = None  # to average over models, if requested; spans are averaged directly
    untempered: Any = None  # its probability or average at temperature 1, if requested


class Answers:
    """Collects the heads' answers for the rows of a MyDataset and merges the windows of each example.

    calibrate: keeps a task's logits until all are known, calibrates its head on them, then decodes. A head that finds
    spans is calibrated on its candidate spans instead, after the windows are merged.
    temper: with `calibrate`, also fits the heads' temperatures, on at most MOST_TEXTS evenly spaced texts.
    keep_averages: tasks whose averages are kept; "texts": only tasks with one label per text, because these are small;
    averages and probabilities at temperature 1 are then kept too.
    """

    def __init__(
        self, heads: Any, data: Any, calibrate: bool = False, keep_averages: Averages = "none", temper: bool = False
    ):
        self.heads, self.data, self.compares = heads, data, keep_averages == "texts"
        self.temper, self.every = calibrate and temper, -(-len(data) // MOST_TEXTS) or 1
        self.to_fit: dict[str, list[Sample]] = {name: [] for name in heads} if self.temper else {}
        of_texts = {name for name, head in heads.items() if head.level != "words"}
        self.keep = {"none": set(), "texts": of_texts, "all": {*heads}}[keep_averages]
        calibrated = [name for name, head in heads.items() if calibrate and head.needs_calibration]
        self.waiting: dict[str, list] = {name: [] for name in calibrated if not heads[name].finds_spans}
        self.calibrated_on_spans = [name for name in calibrated if heads[name].finds_spans]
        self.pieces: dict[str, list[list[Piece]]] = {name: [[] for _ in range(len(data))] for name in heads}
        # number of words per row
        self.num_words: Any = data.columns["word_starts"].lengths if "word_starts" in data.columns else None

    def add(self, batch: Any, logits: dict[str, torch.Tensor]) -> None:
        for name, task_logits in logits.items():
            if self.temper and not self.heads[name].finds_spans:
                chosen = [i for i, row in enumerate(batch.rows.tolist()) if self.is_to_fit(row, self.heads[name])]
                inputs = {key: values[chosen] for key, values in batch.inputs.items()}
                self.to_fit[name].append(Sample(task_logits[chosen], batch.labels[name][chosen], inputs))
            if name in self.waiting:
                self.waiting[name].append((batch, task_logits))
            else:
                self.decode(name, batch, task_logits)

    def is_to_fit(self, row: int, head: Any) -> bool:
        """Whether the temperature is fitted on a row: a row of a chosen text; for text-level labels, its first row."""
        is_chosen = self.data.example_index[row] % self.every == 0
        return bool(is_chosen and (head.by_words or self.data.is_first(row)))

    def decode(self, name: str, batch: Any, logits: torch.Tensor) -> None:
        """Decodes a batch and stores a Piece for each row with its example."""
        data, head = self.data, self.heads[name]
        by_words = head.by_words
        answers, probabilities = head.distribution.decode(logits, batch.inputs)
        before: Any = [None] * len(answers)
        if self.compares and by_words and not head.finds_spans:
            with untempered(head):
                before = head.distribution.decode(logits, batch.inputs)[1].tolist()
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
                earlier = before[i] and before[i][:size]
                piece = Piece(first, size, answers[i][:size], probabilities[i][:size], average, earlier)
            elif data.is_first(row):
                piece = Piece(0, 1, answers[i], probabilities[i], averages[i])
            else:
                continue
            self.pieces[name][data.example_index[row]].append(piece)

    def gather(self) -> None:
        """Gathers the answers of all processes."""
        if distributed.size() == 1:
            return
        device = next(self.heads.parameters()).device
        for name, samples in self.to_fit.items():
            everyone = distributed.gather_in_turn([sample.to("cpu") for sample in samples])
            self.to_fit[name] = [sample.to(device) for sample in everyone]
        for name, batches in self.waiting.items():
            own: Any = [(batch.to("cpu"), logits.cpu()) for batch, logits in batches]
            everyone = distributed.gather_in_turn(own)
            self.waiting[name] = [(batch.to(device), logits.to(device)) for batch, logits in everyone]
        for name, pieces in self.pieces.items():
            own = {example: parts for example, parts in enumerate(pieces) if parts}
            self.pieces[name] = merged = cast(list[list], [[] for _ in pieces])
            for answers in distributed.gather(own):
                for example, parts in answers.items():
                    merged[example] += parts

    def finish(self) -> Predictions:
        """Calibrates the heads if requested, and returns the merged answers."""
        for name, batches in self.waiting.items():
            labels: Any = torch.cat([batch.labels[name] for batch, _ in batches])
            self.heads[name].calibrate(torch.cat([logits for _, logits in batches]), labels)
        for name, samples in self.to_fit.items():
            fit_temperature(self.heads[name], samples)
        for name, batches in self.waiting.items():
            for batch, logits in batches:
                self.decode(name, batch, logits)
        parts: dict[str, dict] = {name: {} for name in Predictions._fields}
        for name, head in self.heads.items():
            merged = [self.merge(name, i) for i in range(len(self.data))]
            if name in self.calibrated_on_spans:
                gold = [self.data[i][name] for i in range(len(self.data))]
                head.calibrate([pair[:2] for pair in merged], gold)
                if self.temper:
                    fit_temperature_on_spans(head, [pair[:2] for pair in merged], gold)
            rows = [named(head, *item, self.compares) for item in merged]
            for number, part in enumerate(parts):
                parts[part][name] = [row[number] for row in rows]
        return Predictions(**parts)

    def merge(self, name: str, example: int) -> tuple[Any, Any, Any, Any]:
        """Merges the rows of an example -> (answer, probability, average, probability at temperature 1). Truncated
        words are tagged O."""
        pieces, head, data = self.pieces[name][example], self.heads[name], self.data
        if head.finds_spans:
            spans = merge_spans([(p.first, p.size, p.answer, p.probability) for p in pieces])
            return *spans, spans if name in self.keep else None, None
        if head.level != "words":
            return pieces[0].answer, pieces[0].probability, pieces[0].average, None
        tag_ids = merge_windows([(piece.first, piece.answer) for piece in pieces])
        probabilities = merge_windows([(piece.first, piece.probability) for piece in pieces])
        average = None
        if name in self.keep:
            average = torch.stack(merge_windows([(piece.first, list(piece.average)) for piece in pieces]))
        cut = int(data.columns["num_words"][data.first_rows[example]]) - len(tag_ids) if len(pieces) == 1 else 0
        before = pieces[0].untempered and merge_windows([(piece.first, piece.untempered) for piece in pieces])
        before = before and before + [0.0] * cut
        return *add_cut_words(tag_ids, probabilities, cut, head.task), average, before


@contextmanager
def untempered(head: Any) -> Iterator[None]:
    """A context in which a head's temperature is 1."""
    fitted, head.temperature = head.temperature, torch.ones_like(head.temperature)
    try:
        yield
    finally:
        head.temperature = fitted


def named(
    head: Any, answer: Any, probability: Any, average: Any = None, before: Any = None, compares: bool = False
) -> tuple[Any, Any, Any, Any]:
    """Returns the four fields of Predictions for one text, with label names. compares: also at temperature 1."""
    label, probability = head.to_labels(answer, probability)
    if head.finds_spans:
        before = probability
        probability = head.distribution.at_temperature(probability, float(head.temperature))
    elif head.task.is_tagging:
        probability, before = (
            word_probabilities(label, chances, names_entities(head.task)) for chances in (probability, before)
        )
    elif compares and average is not None and head.distribution.has_temperature:
        before, average = average, head.distribution.tempered_average(average)
    return label, probability, average, before


def add_cut_words(
    tag_ids: list[int], probabilities: list[float], num_cut: int, task: Task
) -> tuple[list[int], list[float]]:
    """Appends O, with probability 0, for words that were truncated at the end of a text."""
    return tag_ids + [outside_id(task)] * num_cut, probabilities + [0.0] * num_cut


def outside_id(task: Task) -> int:
    """Returns the id of O, or 0 if the task has no O."""
    return task.labels.index("O") if "O" in task.labels else 0


def names_entities(task: Task) -> bool:
    """Whether the tags of a task mark entities (B-, I-, …) rather than word classes (parts of speech, …)."""
    return are_of_entities(tuple(task.labels))


def prepare_inputs(
    examples: Iterable[dict[str, Any]], tasks: dict[str, Task], path: str | Path = "--predict_file", first: int = 1
) -> Iterator[dict[str, Any]]:
    """Yields examples prepared for prediction on these tasks: split into tokens for tags and spans, with their custom
    inputs.

    tasks: if empty, as before a model exists, all inputs are kept. first: number of the first text, for error messages.
    """
    fields, unit = fields_of(tasks), token_unit(tasks)
    paired, columns = pairs_of(tasks), input_columns(tasks)
    for number, example in enumerate(examples, first):
        if tasks and not paired:
            example.pop("text_pair", None)
        if unit is not None and "tokens" not in example and "text" in example:
            example["tokens"] = [token for token, _, _ in split_text(example["text"], unit)]
        if not example.keys() & {"text", "tokens"}:
            if not has_no_text(tasks):
                raise UserError(f"{path}, row {number}: no column has a usual name of a text; add --text_column")
            example["text"] = describe(example.get("extras") or {}, columns)
        if fields:
            require_fields(example, fields, f"{path}, text {number}")
        elif tasks:
            example.pop("extras", None)
        yield example


def check_pairs(example: dict[str, Any], tasks: dict[str, Task], path: str | Path) -> None:
    """Raises UserError if the tasks read pairs of texts but the example has one; warns if a second text is unused.

    path: the file of the example, for the message.
    """
    paired = pairs_of(tasks)
    if paired and "text_pair" not in example:
        raise UserError(
            f"this model was trained on pairs of texts, but {path} has one text per row; add --text_pair_column"
        )
    if "text_pair" in example and tasks and not paired:
        logger.warning(f"only single texts are read here; the second texts of {path} are ignored")


def prediction_row(
    example: dict[str, Any],
    answers: dict[str, tuple[Any, Any]],
    tasks: dict[str, Task],
    is_right: Callable[[Task, Any, Any], bool | None] | None = None,
    abstain: Callable[[str, str, Any, Any], tuple[Any, Any]] | None = None,
) -> dict[str, Any]:
    """Returns the output row of an example. answers: {task: (label or tags, probability)}.

    Columns: id, text, (text_pair,) and for each task its label and probability; for tagging, its entities (with their
    text and character offsets) and tags; for spans, its entities with one probability each.
    For a labelled example, if is_right(task, gold, predicted) -> bool or None is given: also <task>_gold (and
    <task>_gold_tags), <task>_right, and as the last column `right`: whether all answers are right.
    abstain: an Abstention, which leaves out answers.
    """
    text, offsets = text_and_offsets(example, tasks)
    if is_wordless(example):
        answers = answers | {name: ([], []) for name in answers if tasks[name].needs_words}
    require_finite(example, answers)
    kinds = {name: column_kind(task) for name, task in tasks.items()}
    if abstain:
        answers = {name: abstain(name, kinds[name], *answer) for name, answer in answers.items()}
    row = row_of(example, {name: (kinds[name], *answer) for name, answer in answers.items()}, text, offsets)
    if is_right is None or any(name not in example for name in answers):
        return row
    verdicts = {
        name: None if label is None else is_right(tasks[name], example[name], label)
        for name, (label, _) in answers.items()
    }
    gold: dict[str, Any] = {}
    for name, verdict in verdicts.items():
        gold |= columns_of(f"{name}_gold", kinds[name], example[name], offsets, text) | {f"{name}_right": verdict}
    known = [verdict for verdict in verdicts.values() if verdict is not None]
    gold["right"] = all(known) if known else None
    # a task named "right" or "<task>_gold" keeps its column
    return row | {name: value for name, value in gold.items() if name not in row}


def prediction_rows(
    predictions: Predictions,
    data: Any,
    tasks: dict[str, Task],
    is_right: Callable[[Task, Any, Any], bool | None] | None = None,
    abstain: Callable[[str, str, Any, Any], tuple[Any, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the `prediction_row` of each example of a MyDataset."""
    labels, probabilities = predictions.labels, predictions.probabilities
    for i in range(len(data)):
        answers = {name: (labels[name][i], probabilities[name][i]) for name in tasks}
        yield prediction_row(data[i], answers, tasks, is_right, abstain)


def require_finite(example: dict, answers: dict) -> None:
    """Raises UserError if an answer contains NaN or infinity."""
    for name, answer in answers.items():
        numbers = [value for part in answer for value in (part if isinstance(part, list) else [part])]
        if not all(math.isfinite(value) for value in numbers if isinstance(value, float)):
            raise UserError(
                f"row {example.get('id')}: the model's answer for {name!r} is not a finite number; try --precision "
                "fp32, or train again"
            )


def column_kind(task: Task) -> str:
    """Returns the `kind` argument of `columns_of` for a task."""
    if task.num_places:
        return task.kind
    if task.is_tagging:
        return "entities" if names_entities(task) else "tags"
    return "label"


def without_probabilities(value: Any) -> Any:
    """Returns a task's column without the probabilities of its items."""
    if isinstance(value, list):
        return [without_probabilities(item) for item in value]
    parts = value.items() if isinstance(value, dict) else ()
    return {key: without_probabilities(part) for key, part in parts if key != "probability"} if parts else value


def write_predictions(rows: Iterable[dict[str, Any]], path: str | Path, spreadsheet_safe: bool = False) -> None:
    """Writes rows to a .csv or .jsonl file atomically. In a CSV, lists are encoded as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing_whole(path) as file:
        write_rows(rows, file, path.suffix == ".jsonl", spreadsheet_safe=spreadsheet_safe)
