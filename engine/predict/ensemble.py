"""Averages several models with the same heads: the folds of a cross-validation, or any runs with the same labels.

The ensemble averages probabilities. For a CRF, it averages emissions and transitions, which gives the normalised
geometric mean of the models' distributions over paths. Words are identified by their index in the text, so the models
may have different tokenizers.
"""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from engine.data.own_inputs import fields_of
from engine.errors import UserError
from engine.model import span_pointer
from engine.model.head import Head
from engine.model.temperature import Sample, fit_temperature, fit_temperature_on_spans
from engine.predict.collector import Prediction, PredictionCollector, Predictions, tag_truncated_words
from engine.predict.predictions import prediction_rows
from engine.predict.uncertainty import Abstention
from engine.run.run_folder import SCORES, checkpoint_of, distinct, read_result
from engine.schema import Optional
from engine.task.task import IGNORE, Task, read_tasks


def mean_scores(paths: Sequence[Path]) -> dict[str, Any]:
    """Returns {"folds": [contents of each eval.json], "mean": …, "std": …}, for the scores that all folds have."""
    folds = [read_result(path, {str: SCORES}) for path in paths]
    result: dict[str, Any] = {"folds": folds}
    for split, scores in folds[0].items():
        for name in scores:
            values = [fold[split][name] for fold in folds if name in fold[split]]
            if len(values) == len(folds):
                for title, statistic in (("mean", statistics.fmean), ("std", statistics.stdev)):
                    result.setdefault(title, {}).setdefault(split, {})[name] = statistic(values)
    return result


# ---- the mean of several models --------------------------------------------------------------------------------------


def decoding_state(heads: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Returns CPU copies of the heads' decoding parameters (thresholds, CRF transitions): {task: {name: tensor}}."""
    return {
        task: {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in head.state_dict().items()
            if not name.startswith("linear.")
        }
        for task, head in heads.items()
    }


def average_heads(heads: Any, states: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    """Loads the mean of several models' `decoding_state` into the heads."""
    for task, head in heads.items():
        means = {name: torch.stack([state[task][name].float() for state in states]).mean(0) for name in states[0][task]}
        head.load_state_dict(means, strict=False)


def means_of(head: Head, averages: list[list], seen: Sequence[np.ndarray] | None = None) -> list[Any]:
    """Returns the mean of several models' outputs for each text; (spans, probabilities) if the head finds spans.

    averages: for each model, the averages from `Trainer.infer`. seen: for each model, the number of words it read
    from each text; required if texts may be truncated. Each word is averaged over the models that read it.
    """
    texts = zip(*averages)
    if not head.finds_spans:
        return [mean_of_words(outputs) for outputs in texts]
    sizes = [None] * len(averages[0]) if seen is None else zip(*seen)
    return [span_pointer.mean_of(outputs, size and list(map(int, size))) for outputs, size in zip(texts, sizes)]


def mean_of_words(outputs: Any) -> torch.Tensor:
    """Returns the mean of (W, C) tensors. If W differs, each word is averaged over the tensors that contain it."""
    if len({output.shape for output in outputs}) == 1:
        return torch.stack(outputs).mean(0)
    return pad_sequence(outputs, padding_value=math.nan).nanmean(1)


def decode(head: Head, means: list[Any], size: int = 64) -> list[Prediction]:
    """Decodes the mean output of each text with a head. size: texts per batch."""
    if head.finds_spans:
        return [Prediction(*spans) for spans in means]
    predictions: dict[int, Prediction] = {}
    for rows, logits, inputs in batches_of(head, means, size):
        labels, probabilities = head.distribution.decode(logits, inputs)
        for i, label, probability in zip(rows, labels.tolist(), probabilities.tolist()):
            if head.by_words:
                label, probability = label[: len(means[i])], probability[: len(means[i])]
            predictions[i] = Prediction(label, probability, None if head.by_words else means[i])
    return [predictions[i] for i in range(len(means))]


def batches_of(head: Head, means: list[torch.Tensor], size: int) -> Iterator[tuple[list[int], torch.Tensor, dict]]:
    """Yields (text indices, logits of their mean outputs, inputs), in order of length."""
    by_words, device = head.by_words, head.linear.weight.device
    order = sorted(range(len(means)), key=lambda i: len(means[i]) if by_words else 0)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = [means[i] for i in rows]
        stacked = pad_sequence(batch, batch_first=True) if by_words else torch.stack(batch)
        logits = head.distribution.from_average(stacked)
        inputs = {}
        if by_words:
            lengths = torch.tensor([len(mean) for mean in batch])
            inputs["word_mask"] = (torch.arange(logits.shape[1]) < lengths.unsqueeze(1)).to(device)
        yield rows, logits.to(device), inputs


@torch.inference_mode()
def mean_predictions(
    heads: Any, averages: list[dict[str, list]], data: Any, seen: Sequence[np.ndarray] | None = None
) -> Predictions:
    """Returns predictions for a MyDataset, decoded from the mean of several models' outputs. For text-level tasks, they
    include this mean. averages: {task: …} of each model, see `means_of`."""
    collectors = PredictionCollector(heads, data, keep_averages="texts").collectors
    predictions: dict[str, list[Prediction]] = {}
    for name, head in heads.items():
        decoded = decode(head, means_of(head, [average[name] for average in averages], seen))
        if head.by_words and not head.finds_spans:
            sizes = [len(data[i]["tokens"]) for i in range(len(data))]
            decoded = [tag_truncated_words(one, size, head.task) for one, size in zip(decoded, sizes)]
        predictions[name] = [collectors[name].named(prediction) for prediction in decoded]
    return Predictions.from_tasks(predictions)


@torch.inference_mode()
def calibrate(
    heads: Any,
    averages: list[dict[str, list]],
    data: Any,
    rows: np.ndarray,
    seen: Sequence[np.ndarray] | None = None,
    temper: bool = True,
) -> None:
    """Calibrates the heads on the mean of several models' outputs for `rows` of a MyDataset: their thresholds and, with
    `temper`, the temperatures of heads whose temperature is not 1."""
    for name, head in heads.items():
        tempers = temper and float(head.temperature) != 1
        if not head.needs_calibration and not tempers:
            continue
        means = means_of(head, [average[name] for average in averages], seen)
        chosen, gold = [means[i] for i in rows], [data[i][name] for i in rows]
        if head.finds_spans:
            head.calibrate(chosen, gold)
            if tempers:
                fit_temperature_on_spans(head, chosen, gold)
            continue
        of_words = [tags_of(head, mean, tags) for mean, tags in zip(chosen, gold)] if head.by_words else []
        labels = pad_sequence(of_words, True, IGNORE) if of_words else data.batch(data.first_rows[rows]).labels[name]
        if head.needs_calibration:
            head.calibrate(head.distribution.from_average(torch.stack(chosen)), labels)
        if tempers:
            batches = batches_of(head, chosen, 64)
            cut = {True: lambda own, width: own[:, :width], False: lambda own, _: own}[head.by_words]
            samples = [Sample(logits, cut(labels[numbers], logits.shape[1]), more) for numbers, logits, more in batches]
            fit_temperature(head, samples)


def tags_of(head: Head, mean: torch.Tensor, tags: list[str] | None) -> torch.Tensor:
    """Returns the tag ids of the words in `mean`, (W,); IGNORE for unknown tags and unlabelled texts."""
    ids = {tag: number for number, tag in enumerate(head.task.labels)}
    return torch.tensor([ids.get(tag, IGNORE) for tag in (tags or [""] * len(mean))[: len(mean)]])


# ---- runs ------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A trained run of an ensemble."""

    name: str
    folder: Path  # of its checkpoint
    tasks: dict[str, Task]
    use_crf: bool

    @property
    def home(self) -> Path | None:
        """The run folder, if the checkpoint is in one."""
        folder = self.folder.resolve()
        return folder.parents[1] if folder.parent.name == "checkpoints" else None


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Returns a Run for each path: a checkpoint, or a run folder (its checkpoints/best is used).

    Raises UserError if a run is damaged, listed twice, or differs from the first one in tasks, heads or labels.
    """
    folders = [checkpoint_of(Path(path)) for path in paths]
    runs: list[Run] = []
    for folder, name in zip(folders, distinct([name_of(folder) for folder in folders])):
        if folder.resolve() in [run.folder.resolve() for run in runs]:
            raise UserError(f"{folder}: is listed twice; list it once (`select` can give it more weight)")
        options = read_result(folder / "args.json", {Optional("use_crf"): bool}, "train the run again")
        runs.append(Run(name, folder, read_tasks(folder / "labels.json"), options.get("use_crf", False)))
        require_same_tasks(runs[0], runs[-1])
    return runs


def name_of(folder: Path) -> str:
    """Returns the name of a checkpoint's run: "mine" for output/mine/checkpoints/best, "mine/step_00000010" for other
    checkpoints."""
    folder = folder.resolve()
    if folder.parent.name != "checkpoints":
        return folder.name
    run = folder.parent.parent.name
    return run if folder.name == "best" else f"{run}/{folder.name}"


def facts_of(run: Run, name: str) -> dict[str, Any]:
    """Returns the properties of a task that must be the same in all runs, as {name: value}."""
    task = run.tasks[name]
    facts: dict[str, Any] = {"head": "crf_tagging" if run.use_crf and task.type == "tagging" else task.type}
    facts |= {"labels": task.labels, "token unit": task.unit, "paired input": task.pairs, "hierarchy": task.hierarchy}
    facts["custom inputs"] = {name: field.declared() for name, field in fields_of(run.tasks).items()}
    if task.type != "regression":  # regression values are converted to the scale of the first run, see `on_scale_of`
        facts["scale"] = [task.mean, task.std]
    return facts


def require_same_tasks(first: Run, run: Run) -> None:
    """Raises UserError if a run does not match the first one."""
    advice = "they cannot be averaged"
    for one, other in ((first, run), (run, first)):
        if missing := sorted(one.tasks.keys() - other.tasks.keys()):
            raise UserError(f"{other.folder}: has no task {missing[0]!r}, unlike {one.folder}; {advice}")
    for name in run.tasks:
        facts = facts_of(run, name)
        for fact, expected in facts_of(first, name).items():
            if facts[fact] == expected:
                continue
            difference = f"{fact}: {facts[fact]!r} instead of {expected!r}"
            if fact == "labels":
                labels = sorted({*expected} ^ {*facts[fact]})
                difference = f"the labels differ ({', '.join(labels[:8]) or 'in their order'})"
            raise UserError(f"{run.folder}, compared with {first.folder}: in the task {name!r}, {difference}; {advice}")


def on_scale_of(first: Run, run: Run, predictions: Predictions) -> Predictions:
    """Returns a run's predictions, with regression averages standardised by the mean and std of the first run."""
    averages = dict(predictions.averages)
    for name, task in first.tasks.items():
        if task.type == "regression" and (task.mean, task.std) != (run.tasks[name].mean, run.tasks[name].std):
            numbers = np.array(predictions.labels[name])
            averages[name] = list(torch.from_numpy((numbers - task.mean) / task.std).float())
    return predictions._replace(averages=averages)


class SplitOutputs:
    """The outputs of several runs for one split, by run number."""

    def __init__(self) -> None:
        self.dataset: Any = None
        self.predictions: dict[int, Predictions] = {}
        self.seen: dict[int, np.ndarray] = {}  # {run: number of words it read from each text}

    def add(self, number: int, data: Any, predictions: Predictions) -> None:
        """Adds a run's predictions. data: the run's MyDataset; `dataset` is the least truncated one."""
        if self.dataset is None or data.columns["num_cut"].sum() < self.dataset.columns["num_cut"].sum():
            self.dataset = data
        self.predictions[number] = predictions
        if "word_starts" in data.columns:
            self.seen[number] = np.zeros(len(data), int)
            ends = data.columns["first_word"] + data.columns["word_starts"].lengths
            np.maximum.at(self.seen[number], data.example_index, ends)

    def of(self, members: Iterable[int]) -> dict[str, Any]:
        """Returns the arguments of `mean_predictions` and `calibrate` for these runs."""
        members = sorted(members)
        seen = [self.seen[number] for number in members] if self.seen else None
        return dict(averages=[self.predictions[number].averages for number in members], seen=seen, data=self.dataset)

    def gold(self, tasks: Iterable[str]) -> dict[str, list]:
        examples = [self.dataset[i] for i in range(len(self.dataset))]
        return {name: [example[name] for example in examples] for name in tasks}


class Committee:
    """An ensemble of runs, with only one model in memory at a time.

    load(checkpoint folder) -> (Trainer, Featurizer); loader_of(file or list of examples, Featurizer, batch size, run
    name) -> MyDataLoader; metrics: the module metrics.py. `label_rows` accepts a Committee in place of a Trainer, with
    `collect_rows` as its `load`.
    """

    def __init__(
        self,
        runs: list[Run],
        load: Callable[[Path], tuple[Any, Any]],
        loader_of: Callable[..., Any],
        config: Any,
        device: torch.device,
        metrics: ModuleType,
    ) -> None:
        self.runs, self.load, self.loader_of = runs, load, loader_of
        self.config, self.device, self.metrics = config, device, metrics
        self.tasks = runs[0].tasks
        self.members: Collection[int] = range(len(runs))
        self.stop: Any = None  # set by `label_rows`
        self.heads: Any = None
        self.states: dict[int, Any] = {}  # `decoding_state` of each run
        self.is_calibrated, self.temper = False, True  # temper: see `calibrate`
        self.abstention = Abstention({})

    def collect(self, sources: Mapping[str, Any]) -> dict[str, SplitOutputs]:
        """Runs each member on {split: file or list of examples}. Returns {split: SplitOutputs}."""
        splits = {split: SplitOutputs() for split in sources}
        for number in tqdm(sorted({*self.members}), desc="runs", leave=False, delay=2):
            run = self.runs[number]
            trainer, featurizer = self.load(run.folder)
            trainer.stop = self.stop or trainer.stop
            for split, source in sources.items():
                loader = self.loader_of(source, featurizer, self.config.eval_batch_size, run.name)
                predictions, _ = trainer.infer(loader, f"{run.name}: {split}", keep_averages="all")
                splits[split].add(number, loader.dataset, on_scale_of(self.runs[0], run, predictions))
            heads = trainer.model.output_layer.heads.cpu()
            self.heads, self.states[number] = self.heads or heads, decoding_state(heads)
            del trainer  # free its memory before the next one is loaded
        return splits

    def decide(self, members: Collection[int], dev: SplitOutputs | None = None, rows: np.ndarray | None = None) -> None:
        """Sets the heads' transitions and thresholds to their mean over these runs. With `dev`, then calibrates the
        heads for the ensemble on dev, or on some of its rows."""
        average_heads(self.heads, [self.states[number] for number in sorted(members)])
        self.members, self.is_calibrated = members, dev is not None
        if dev is not None:
            rows = np.arange(len(dev.dataset)) if rows is None else rows
            calibrate(self.heads, rows=rows, temper=self.temper, **dev.of(members))

    def predict(self, split: SplitOutputs) -> Predictions:
        """Returns the ensemble's predictions for a split."""
        return mean_predictions(self.heads, **split.of(self.members))

    def collect_rows(self, examples: list[dict[str, Any]]) -> SplitOutputs:
        return self.collect({"labelling": examples})["labelling"]

    def predict_rows(self, split: SplitOutputs) -> Iterator[dict[str, Any]]:
        if not self.is_calibrated:
            self.decide(self.members)
        return prediction_rows(self.predict(split), split.dataset, self.tasks, self.metrics.is_right, self.abstention)
