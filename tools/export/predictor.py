"""Labels texts with an exported model. Needs only onnxruntime, tokenizers and numpy.

    from predictor import Predictor
    predictor = Predictor("shipped")
    predictor(["turn on the light", "play a song"])

    python shipped/predictor.py texts.txt labelled.jsonl

Every exported folder has a copy of tools/export/predictor.py and, as predictor_*.py, of modules of engine/, so words,
windows, truncation and output columns are the same as with `main.py --do_predict`.
Shapes: B texts, L tokens, W words, C labels, T span types, P predicates.
"""

import argparse
import csv
import gzip
import hashlib
import io
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

HERE = Path(__file__).resolve().parent
if TYPE_CHECKING or not (HERE / "predictor_schema.py").exists():
    sys.path.append(str(HERE.parents[1]))
    from engine.data.fields import Field, FieldError, describe
    from engine.data.windows import Cutter, Feature, Unusable, encode_texts, merge_spans, merge_windows, pick
    from engine.predict.rows import write_rows
    from engine.run.flags import OneLineParser, one_line, whole_number
    from engine.schema import AnyOf, Optional, Range, SchemaError, parse_json, read_json
    from engine.task import tags as task_tags
    from engine.task import words as task_words
    from engine.task.signs import PAIR_NAMES, PAIRS, TAG, TEXT_NAMES, by_usual, encoding_of_marks, inline_syntax
else:  # in an exported folder, where no __pycache__ is written
    sys.path.append(str(HERE))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    import predictor_tags as task_tags
    import predictor_words as task_words
    from predictor_fields import Field, FieldError, describe
    from predictor_flags import OneLineParser, one_line, whole_number
    from predictor_rows import write_rows
    from predictor_schema import AnyOf, Optional, Range, SchemaError, parse_json, read_json
    from predictor_signs import PAIR_NAMES, PAIRS, TAG, TEXT_NAMES, by_usual, encoding_of_marks, inline_syntax
    from predictor_windows import Cutter, Feature, Unusable, encode_texts, merge_spans, merge_windows, pick

    sys.dont_write_bytecode = before

MAX_TOKENS = 512  # per batch; larger batches are slower
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "word_starts", "word_ends", "word_mask", "word_shapes")
Example = dict[str, Any]  # a valid row: text or tokens, and id, text_pair, extras
Task = dict[str, Any]  # a task of predictor.json
Answer = tuple[Any, Any]  # (label, probability)

TASK = {
    "head": AnyOf("classification", "multilabel", "regression", "tagging", "crf", "spans", "relations", "events"),
    "type": str,
    "labels": [str],
    Optional("threshold"): float,
    Optional("temperature"): Range(1e-6, 1e6),  # 1 in an earlier export
    Optional("paths"): [[Range(0)]],
    Optional("outside"): Range(0),
    Optional("entities"): bool,
    Optional("crf"): Range(0),
    Optional("reads_task"): str,  # the task whose logits follow its own
    Optional("mean"): float,
    Optional("std"): float,
}
NEEDED = {  # {head: additional keys that its task must have}
    "multilabel": ["threshold"],
    "regression": ["mean", "std"],
    "tagging": ["outside", "entities"],
    "crf": ["outside", "entities", "crf"],
    "spans": ["threshold"],
    "relations": ["threshold"],
    "events": ["threshold"],
}
WORD_LEVEL = ("tagging", "crf", "spans", "relations", "events")  # heads with labels per word
SETTINGS = {
    "tasks": {str: TASK},
    "max_length": Range(8, 2**31),
    "stride": Range(-1, 2**31),
    "long_text": AnyOf("windows", "head", "tail", "head_tail"),
    "word_ends": bool,
    Optional("word_shapes"): bool,  # False in an earlier export
    "unit": AnyOf("word", "character", "character+blank", None),
    "pairs": bool,
    "apart": bool,
    "markers": {str: Range(0, 2**31)},
    "fields": {str: object},
    "reads_text": bool,
    "pad_id": Range(0, 2**31),
    "filler": AnyOf(str, None),
    "separator": AnyOf(str, None),
    "blanks": bool,
    "patterns": {"word": str, "character": str, "character+blank": str},
    "han": str,
}


# {name: (onnxruntime's provider, the package that has it)}
PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu, and TensorRT"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
}


class InputError(ValueError):
    """An invalid row or file, described in one line."""


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def require_whole(folder: Path) -> dict[str, Any]:
    """Reads the settings of an exported folder. Raises InputError if a file is missing, changed or malformed."""
    try:
        manifest = read_json(folder / "manifest.json", {str: str})
        for name in sorted({"model.onnx", "predictor.json", *manifest} - {"README.md"}):  # which is yours to edit
            if Path(name).name != name or not os.path.isfile(folder / name):
                raise InputError(f"{folder / name}: is missing; export the model again")
            if manifest.get(name) != sha256_of(folder / name):
                raise InputError(f"{folder / name}: has changed since the export; export the model again")
        settings = read_json(folder / "predictor.json", SETTINGS)
    except SchemaError as error:
        raise InputError(f"{error}; export the model again") from None
    for name, task in settings["tasks"].items():
        missing = [key for key in NEEDED.get(task["head"], ()) if key not in task]
        if (task["head"] != "regression" and not task["labels"]) or "" in task["labels"]:
            missing.append("labels")
        paths = task.get("paths", [[0]] * len(task["labels"]))
        if len(paths) != len(task["labels"]) or any(
            len(x) != len(paths[0]) or max(x, default=0) > len(paths) for x in paths
        ):
            missing.append("paths")
        if missing or task.get("outside", 0) >= max(1, len(task["labels"])):
            key = missing[0] if missing else "outside"
            problem = f"{key!r} of the task {name!r} is missing or invalid"
            raise InputError(f"{folder / 'predictor.json'}: {problem}; export the model again")
    if settings["unit"] is None and any(task["head"] in WORD_LEVEL for task in settings["tasks"].values()):
        raise InputError(f"{folder / 'predictor.json'}: tasks that label words need a 'unit'; export the model again")
    return settings


def usable(path: Path, load: Callable[[Path], Any]) -> Any:
    """Returns load(path), and converts exceptions of libraries to InputError."""
    try:
        return load(path)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be loaded ({reason[:200]}); export the model again") from None


def open_session(path: Path, threads: int, provider: str) -> onnxruntime.InferenceSession:
    """Loads a graph. provider: a name of PROVIDERS, or auto: a GPU if onnxruntime finds one, otherwise the CPU.
    Raises InputError if it is not installed, or does not start."""
    there, wanted = onnxruntime.get_available_providers(), "cuda" if provider == "auto" else provider
    if wanted not in PROVIDERS:
        raise InputError(f"provider {provider!r}: must be auto, {', '.join(PROVIDERS)}")
    name, package = PROVIDERS[wanted]
    if name not in there and provider != "auto":
        raise InputError(f"provider {provider}: is not in this onnxruntime; pip install {package} instead")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    of_openvino = {"device_type": "CPU", "precision": "FP32", "num_of_threads": str(threads)}
    wished = {name: of_openvino if wanted == "openvino" else {}} if name in there else {}
    chosen: Any = list((wished | {PROVIDERS["cpu"][0]: {}}).items())
    session = usable(path, lambda path: onnxruntime.InferenceSession(str(path), options, providers=chosen))
    if provider != "auto" and session.get_providers()[0] != name:  # onnxruntime goes on with the next one
        raise InputError(f"provider {provider}: does not start here (see onnxruntime's message above)")
    return session


# ---- inputs ----------------------------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """A tokenised row."""

    example: Example
    features: list[Feature]
    num_tokens: int  # before windows or truncation


class Encoder:
    """Encodes rows like the Featurizer of engine/data/features.py. Keeps no state between calls."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.path = folder / "tokenizer.json"
        self.tokenizer: Any = None
        if settings["reads_text"]:
            self.tokenizer = usable(self.path, lambda path: Tokenizer.from_file(str(path)))
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
        self.filler, self.separator, self.blanks = (settings[name] for name in ("filler", "separator", "blanks"))
        self.unit, self.pairs = settings["unit"], settings["pairs"]
        fields = settings["fields"].items()
        self.fields = usable(folder / "predictor.json", lambda _: {name: Field(**field) for name, field in fields})
        self.columns = [column for field in self.fields.values() for column in field.columns]
        self.word_shapes = settings.get("word_shapes", False)
        self.word_ends, self.apart = settings["word_ends"], settings["apart"] and self.pairs
        max_length, stride, long_text = (settings[name] for name in ("max_length", "stride", "long_text"))
        self.cutter = Cutter(max_length, stride, long_text, self.unit is not None, settings["markers"])
        patterns = [settings["han"], *settings["patterns"].values()]
        self.han, *compiled = usable(folder / "predictor.json", lambda _: list(map(re.compile, patterns)))
        self.patterns = dict(zip(settings["patterns"], compiled))

    def __call__(self, rows: Iterable[Any], before: int = 0) -> list[Encoded]:
        """Encodes rows. before: number of preceding rows in the file, for error messages"""
        examples = [self.example(row, f"row {number}") for number, row in enumerate(rows, before + 1)]
        encoded = []
        if self.tokenizer is None:  # each word, or each row, is one token
            sizes = [len(example.get("tokens", [""])) for example in examples]
            positions = [list(range(size if self.unit else 0)) for size in sizes]
            features = [Feature(i, [0] * max(1, len(p)), [0] * max(1, len(p)), p, p) for i, p in enumerate(positions)]
            return [Encoded(example, [feature], 0) for example, feature in zip(examples, features)]
        try:
            seconds = [{"text": example["text_pair"]} for example in examples] if self.apart else []
            encodings, others = self.tokenize(examples), self.tokenize(seconds) or len(examples) * [None]
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust; not a subclass of Exception
                raise
            raise InputError(f"{self.path}: cannot be loaded ({error}); export the model again") from None
        for number, (example, encoding) in enumerate(zip(examples, encodings)):
            try:
                features = self.cutter.features(number, encoding, others[number])
            except Unusable as error:
                raise InputError(f"row {before + number + 1}: {error}") from None
            encoded.append(Encoded(example, features, len(encoding.ids)))
        return encoded

    def example(self, row: Any, where: str) -> Example:
        """Validates a text, a list of tokens, or a dict (text, tokens, text_pair, extras, id) -> dict."""
        if isinstance(row, str):
            row = {"text": row}
        elif isinstance(row, list | tuple):
            row = {"tokens": list(row)}
        elif isinstance(row, dict) and self.tokenizer is None and not row.keys() & {"text", "tokens"}:
            row = row | {"text": describe(row.get("extras") or row, dict.fromkeys(self.columns))}
        elif not isinstance(row, dict) or not ("text" in row or "tokens" in row):
            raise InputError(f"{where}: must be a text, a list of tokens, or a dict with `text` or `tokens`")
        example = {key: row[key] for key in ("id", "text", "tokens", "text_pair", "extras") if key in row}
        tokens = example.get("tokens", [""])
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise InputError(f"{where}: `tokens` must be a list of one or more strings")
        if not isinstance(example.get("text", ""), str) or not isinstance(example.get("text_pair", ""), str):
            raise InputError(f"{where}: `text` and `text_pair` must be strings")
        if self.pairs and "text_pair" not in example:
            raise InputError(f"{where}: this model was trained on pairs of texts; add a `text_pair`")
        if not self.pairs:
            example.pop("text_pair", None)
        for text in (*tokens, example.get("text", ""), example.get("text_pair", "")):
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"{where}: contains a lone surrogate (\\ud800 to \\udfff); remove it")
        if self.unit is not None and "tokens" not in example:
            example["tokens"] = self.patterns[self.unit].findall(example["text"]) or [""]
        given = example.pop("extras", None) or {}
        if isinstance(row, dict) and isinstance(given, dict):  # the columns may also be keys of the row itself
            given = {name: row[name] for name in self.columns if name in row} | given
        if self.fields:
            example["inputs"] = self.own_inputs(given, example.get("tokens"), where)
        return example

    def own_inputs(self, given: Any, tokens: list[str] | None, where: str) -> dict[str, np.ndarray]:
        """Returns the values of the custom inputs of a row, {name: (N, *shape)}. given: {column: cell}"""
        values = {}
        try:
            for name, field in self.fields.items():
                values[name] = field.value(field.clean(given if isinstance(given, dict) else {}))
                if field.level == "words" and len(values[name]) != len(tokens or ()):
                    raise FieldError(f"{field.columns[0]} must have one value per word")
        except FieldError as error:
            raise InputError(f"{where}: {error}") from None
        return values

    def tokenize(self, examples: list[Example]) -> list[Encoding]:
        encodings: list[Any] = [None] * len(examples)
        together = self.pairs and not self.apart
        for by_words in (True, False):
            rows = [i for i, example in enumerate(examples) if ("tokens" in example) is by_words]
            options = (by_words, self.unit or "word", self.han, self.blanks, self.separator)
            if texts := [task_words.texts_to_encode(examples[i], *options) for i in rows]:
                first, second = map(list, zip(*texts))
                encoded = encode_texts(self.encode, first, second if together else None, self.filler)
                for i, encoding in zip(rows, encoded):
                    encodings[i] = encoding
        return encodings

    def encode(self, first: list[Any], second: list[Any] | None) -> list[Encoding]:
        """Encodes texts or pre-split words, optionally with second texts."""
        by_words = isinstance(first[0], list)
        if len(first) == 1:  # avoids the thread pool of encode_batch
            return [self.tokenizer.encode(first[0], second and second[0], is_pretokenized=by_words)]
        encode = self.tokenizer.encode_batch if by_words else self.tokenizer.encode_batch_fast  # returns no word_ids
        return encode(first if second is None else list(zip(first, second)), is_pretokenized=by_words)


# ---- decoding --------------------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(np.zeros_like(logits), -logits))


def viterbi(scores: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Returns the Viterbi paths (B, W) of a linear-chain CRF. Forbidden transitions have a score of -10,000.

    scores: of emissions (B, W, C), start (C,), transitions (C, C) and end (C,); mask: (B, W), right-padded.
    """
    emissions, start, transitions, end = scores
    batch, width, num_tags = emissions.shape
    into = np.ascontiguousarray(transitions.T)  # into[j, i]: transition from i to j
    score = start + emissions[:, 0]
    scores, paths = [score], np.empty((batch, num_tags, num_tags), np.float32)
    for t in range(1, width):
        np.add(score[:, :, None], transitions, out=paths)
        score = np.where(mask[:, t, None], paths.max(1) + emissions[:, t], score)
        scores.append(score)
    tag = (score + end).argmax(1)
    tags = np.empty((batch, width), np.int64)
    tags[:, -1] = tag
    for t in range(width - 1, 0, -1):  # backtrack all texts at once
        tag = np.where(mask[:, t], (scores[t - 1] + into[tag]).argmax(1), tag)
        tags[:, t - 1] = tag
    return tags


def in_hierarchy(probabilities: np.ndarray, task: Task) -> np.ndarray:
    """Probabilities of labels, in a hierarchy at most that of the parent; paths are padded with C."""
    if "paths" not in task:
        return probabilities
    padded = np.concatenate([probabilities, np.ones_like(probabilities[:, :1])], 1)
    return padded[:, task["paths"]].min(2)


def word_chances(logits: np.ndarray, mask: np.ndarray, tags: np.ndarray, continues: np.ndarray) -> np.ndarray:
    """Returns the probabilities of TaggingHead (model_utils.py), (B, W, 3)."""
    probabilities = softmax(logits)
    chances = np.ones((*tags.shape, 3))
    chances[..., :2] = np.take_along_axis(probabilities, tags[..., None], 2)
    chances[:, 1:, 0] *= 1 - (probabilities[:, :-1] * continues.T[tags[:, 1:]]).sum(2)
    chances[:, :-1, 2] -= (probabilities[:, 1:] * continues[tags[:, :-1]]).sum(2) * mask[:, 1:]
    return chances.clip(0, 1)


def path_chances(scores: Sequence[np.ndarray], mask: np.ndarray, tags: np.ndarray, continues: np.ndarray) -> np.ndarray:
    """Returns the probabilities of CRF.chain (engine/model/crf.py), (B, W, 3). scores: as for `viterbi`, in fp64 and
    divided by the temperature."""
    emissions, start, transitions, end = scores
    factors, emissions = np.exp(transitions - transitions.max()), emissions.copy()
    emissions[:, 0] += start
    emissions[np.arange(len(tags)), mask.sum(1) - 1] += end
    words = np.exp(emissions - emissions.max(2, keepdims=True))
    before, after = words.copy(), np.ones_like(words)
    for t in range(1, tags.shape[1]):
        step = (before[:, t - 1] @ factors) * words[:, t]
        before[:, t] = np.where(mask[:, t, None], step / step.sum(1, keepdims=True).clip(1e-300), before[:, t - 1])
    for t in range(tags.shape[1] - 1, 0, -1):
        step = (words[:, t] * after[:, t]) @ factors.T
        after[:, t - 1] = np.where(mask[:, t, None], step / step.sum(1, keepdims=True).clip(1e-300), after[:, t])
    joint, chances = before * after, np.ones((*tags.shape, 3))
    chances[..., 0] = np.take_along_axis(joint, tags[..., None], 2)[..., 0] / joint.sum(2).clip(1e-300)
    following = factors[tags[:, :-1]] * (words * after)[:, 1:]
    following /= following.sum(2, keepdims=True).clip(1e-300)
    chances[:, 1:, 1] = np.take_along_axis(following, tags[:, 1:, None], 2)[..., 0]
    chances[:, :-1, 2] -= (following * continues[tags[:, :-1]]).sum(2) * mask[:, 1:]
    return chances.clip(0, 1)


def terms_of(logits: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scores of pairs of words, and of first and second words per type, from a table (W, W + 2T) of a text of
    `size` words: (size, size), (size, T), (size, T)."""
    width = len(logits)
    pairs, starts, ends = np.split(logits[:size], [width, (width + logits.shape[1]) // 2], axis=1)
    return pairs[:, :size], starts, ends


def best_spans(
    logits: np.ndarray, size: int, lowest: float, most: int, of_any_type: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The spans (N, 3), first word, last word, type id, with a score above `lowest`, among the best `most` or equal to
    the last, in order, and their scores (N,). logits: a table as in `terms_of`; of_any_type: a span has one score, that
    of its best type, and the type id 0"""
    pairs, starts, ends = terms_of(logits, size)
    scores = pairs[:, :, None] + starts[:, None] + ends[None]
    scores = scores.max(2, keepdims=True) if of_any_type else scores
    scores[np.tril_indices(size, -1)] = -np.inf
    is_kept = scores > lowest
    if is_kept.sum() > most:
        is_kept &= scores >= np.partition(scores.ravel(), -most)[-most]
    return np.argwhere(is_kept), scores[is_kept]


def find_spans(logits: np.ndarray, size: int, lowest: float, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The spans of a text of `size` words, see `best_spans`. logits: (W, W + 2T); number: T"""
    return best_spans(logits, size, lowest, task_words.SPANS_PER_WORD * size)


def best_items(items: np.ndarray, scores: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `most` items, of equal ones the first, in the order given, and their scores."""
    best = np.sort(np.argsort(-scores, kind="stable")[:most])
    return items[best], scores[best]


def find_relations(logits: np.ndarray, size: int, lowest: float, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The relations (N, 5) of a text of `size` words, first and last word of the subject, those of the object,
    predicate id, and their scores, as in engine/model/relations.py. logits: (W, 3W + 4 + 4P), or with the table of the
    entities behind, (W, 4W + 4 + 4P + 2T); number: P"""
    width = len(logits)
    borders = np.cumsum([width + 4, width + 2 * number, width + 2 * number])
    entities, heads, tails, typed = np.split(logits, borders, axis=1)
    sides = [entities[:, [*range(width), width + side, width + 2 + side]] for side in (0, 1)]
    (subjects, s_scores), (objects, o_scores) = (
        best_spans(side, size, lowest, task_words.SUBJECTS_PER_WORD * size, of_any_type=True)
        for side in ([typed, typed] if typed.size else sides)
    )
    most = task_words.SPANS_PER_WORD * size
    tables = [(*terms_of(table, size), place) for place, table in enumerate((heads, tails))]
    found, scores = [np.zeros((0, 5), np.int64)], [np.zeros(0, np.float32)]
    for subject, score in zip(subjects, s_scores):
        by_predicate = np.minimum(score, o_scores)[:, None]
        for pairs, starts, ends, place in tables:
            one, others = subject[place], objects[:, place]
            by_predicate = np.minimum(by_predicate, pairs[one, others][:, None] + starts[one] + ends[others])
        row, predicate = np.nonzero(by_predicate > lowest)
        items = np.column_stack([np.tile(subject[:2], (len(row), 1)), objects[row, :2], predicate])
        items, values = best_items(items, by_predicate[row, predicate], most)
        found.append(items)
        scores.append(values)
    return best_items(np.concatenate(found), np.concatenate(scores), most)


FINDERS = {"spans": find_spans, "relations": find_relations, "events": find_relations}  # {head: function}


def accepted(
    found: tuple[np.ndarray, np.ndarray], threshold: float, temperature: float
) -> tuple[list[tuple[int, ...]], list[float]]:
    """The spans or relations whose score reaches the threshold, and their probabilities. found: (items, scores)"""
    scores = found[1].astype(np.float64)
    is_kept = sigmoid(scores) >= float(sigmoid(np.array(threshold, np.float64)))
    return list(map(tuple, found[0][is_kept].tolist())), sigmoid(scores[is_kept] / temperature).tolist()


class Predictor:
    """Labels rows: texts, lists of tokens, or dicts with "text" or "tokens", and optional "text_pair" and "extras".

    folder: written by tools.export. threads: threads per batch (default: all cores that this process may use).
    abstain_below: leave out answers below this probability, or per task: "intent=0.9,slots=0.8". provider: what runs
    the graph: cpu, cuda, tensorrt or openvino, by the onnxruntime that is installed; auto: cuda or cpu. It is
    thread-safe. Raises InputError (a ValueError) for an invalid row.
    """

    def __init__(
        self, folder: str | Path, threads: int | None = None, abstain_below: str | float = 0.0, provider: str = "auto"
    ):
        self.folder = folder = Path(folder)
        settings = require_whole(folder)
        self.tasks, self.pad_id = settings["tasks"], settings["pad_id"]
        try:
            self.abstain_below = task_words.shares_by_task(abstain_below)
        except ValueError as error:
            raise InputError(f"abstain_below {abstain_below!r}: {error}") from None
        always = [name for name, task in self.tasks.items() if not task.get("entities", task["head"] != "regression")]
        if wrong := task_words.why_no_threshold(self.abstain_below, self.tasks, always):
            raise InputError(f"abstain_below: {wrong}")
        self.encode = Encoder(folder, settings)
        self.arrays = self.load_arrays(folder / "arrays.npz")
        self.session = open_session(folder / "model.onnx", threads or num_cores(), provider)
        self.inputs = [given.name for given in self.session.get_inputs()]
        own = [name for field in self.encode.fields for name in (field, f"{field}_mask")]
        unknown = set(self.inputs) - {*INPUTS, *own}
        if unknown or len(self.session.get_outputs()) != len(self.tasks):
            raise InputError(f"{folder / 'model.onnx'}: does not match predictor.json; export the model again")

    def load_arrays(self, path: Path) -> dict[str, np.ndarray]:
        """Loads the CRF parameters {name: array} and checks their shapes."""
        crfs = [task for task in self.tasks.values() if task["head"] == "crf"]
        arrays: dict[str, np.ndarray] = {}
        if crfs:
            arrays = usable(path, lambda path: dict(np.load(path, allow_pickle=False)))
        for task in crfs:
            size, number = len(task["labels"]), task["crf"]
            for part, shape in (("start", (size,)), ("transitions", (size, size)), ("end", (size,))):
                if getattr(arrays.get(f"{number}.{part}"), "shape", None) != shape:
                    raise InputError(f"{path}: {number}.{part} does not fit {size} labels; export the model again")
        return arrays

    def __call__(self, rows: Iterable[Any], batch_size: int = 64) -> list[dict[str, Any]]:
        """Labels rows. Returns one dict per row, in order, with the columns of predictions.jsonl of main.py.

        Columns: text, (id, text_pair,) and for each task <task> and <task>_probability, which are lists for multilabel
        tasks. Regression only has <task>. Tagging and spans have <task>: [{"label", "text", "start", "end"}] with
        offsets into the text; tagging also has <task>_tags. Relations have <task>: [{"subject", "predicate",
        "object"}], both with text, start and end; events [{"type", "trigger", "arguments"}], see
        `predictor_words.event_objects`. Each entity, relation, event and argument has a "probability".
        """
        encoded = self.encode(rows)
        return [self.row(row.example, answer) for row, answer in zip(encoded, self.answers(encoded, batch_size))]

    def count_tokens(self, rows: Iterable[Any]) -> list[int]:
        """Counts the tokens of each row, including special ones, before windows or truncation."""
        return [row.num_tokens for row in self.encode(rows)]

    def answers(self, encoded: list[Encoded], batch_size: int = 64) -> list[dict[str, Answer]]:
        """Labels encoded rows -> [{task: (label, probability)}]. Spans are [first word, last word, type],
        relations [first and last word of the subject, those of the object, predicate]."""
        features = sorted(chain(*(row.features for row in encoded)), key=lambda feature: -len(feature.input_ids))
        pieces: list[dict[str, list]] = [{name: [] for name in self.tasks} for _ in encoded]
        for batch in batches_of(features, batch_size):
            inputs = self.batch(batch, encoded)
            outputs = self.session.run(None, {name: inputs[name] for name in self.inputs})
            for (name, task), logits in zip(self.tasks.items(), outputs):
                self.require_usable(name, task, logits, encoded[batch[0].example].example)
                for feature, piece in zip(batch, self.decode(task, logits, inputs, batch)):
                    pieces[feature.example][name].append((feature.first_word, len(feature.word_starts), piece))
        return [
            {name: self.merge(task, windows[name], row.example) for name, task in self.tasks.items()}
            for row, windows in zip(encoded, pieces)
        ]

    def require_usable(self, name: str, task: Task, logits: np.ndarray, example: Example) -> None:
        """Raises InputError if the shape of a task's logits does not fit its labels, or they are not finite."""
        number, width, words = len(task["labels"]), logits.shape[-1], logits.shape[1] if logits.ndim == 3 else 0
        fits = {"regression": logits.ndim == 1, "spans": width == words + 2 * number}
        read = words + 2 * len(self.tasks[task["reads_task"]]["labels"]) if "reads_task" in task else 0
        fits["relations"] = fits["events"] = width == 3 * words + 4 + 4 * number + read
        if not fits.get(task["head"], width == number):
            raise InputError(f"{self.folder}: the logits of {name!r} do not fit predictor.json; export the model again")
        if not np.isfinite(logits).all():
            shown = repr(example.get("id", example.get("text", "")))[:60]
            raise InputError(f"the model's answer for {name!r} is not a finite number, near the row {shown}")

    def batch(self, features: list[Feature], encoded: list[Encoded]) -> dict[str, np.ndarray]:
        """Returns {input: array} of a batch of features, padded to the longest one."""
        size, length = len(features), max(len(feature.input_ids) for feature in features)
        window = min(length, self.encode.cutter.max_length) if self.encode.cutter.long_text == "windows" else 0
        length += -length % window if window else 0
        width = max(len(feature.word_starts) for feature in features)
        ids = np.full((size, length), self.pad_id, np.int64)
        mask, types = np.zeros((size, length), np.int64), np.zeros((size, length), np.int64)
        starts, ends, shapes = np.zeros((3, size, width), np.int64)
        words = np.zeros((size, width), bool)
        for i, feature in enumerate(features):
            num_tokens, num_words = len(feature.input_ids), len(feature.word_starts)
            ids[i, :num_tokens], mask[i, :num_tokens] = feature.input_ids, 1
            if self.encode.pairs:
                types[i, :num_tokens] = feature.token_types
            starts[i, :num_words], words[i, :num_words] = feature.word_starts, True
            if self.encode.word_ends:
                ends[i, :num_words] = feature.word_ends
            if self.encode.word_shapes:
                tokens = encoded[feature.example].example["tokens"][feature.first_word :]
                shapes[i, :num_words] = list(map(task_words.shape_of, tokens[:num_words]))
        inputs: dict[str, np.ndarray] = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        shape = (size, -1, window) if window else (size, length)
        inputs = {name: array.reshape(shape) for name, array in inputs.items()}
        inputs |= {"word_starts": starts, "word_ends": ends, "word_mask": words, "word_shapes": shapes}
        for name, field in self.encode.fields.items():
            values = [encoded[feature.example].example["inputs"][name] for feature in features]
            if field.level == "words":
                values = [value[f.first_word : f.first_word + len(f.word_starts)] for f, value in zip(features, values)]
            lengths = np.array([value.size for value in values])
            inputs |= field.batch(name, np.concatenate([value.ravel() for value in values]), lengths)
        return inputs

    def decode(
        self, task: Task, logits: np.ndarray, inputs: dict[str, np.ndarray], features: list[Feature]
    ) -> list[Any]:
        """Decodes the answer of a task for each feature of a batch. Tags are ids."""
        head, temperature = task["head"], np.float32(task.get("temperature", 1))
        if head == "classification":
            best = softmax(logits).argmax(-1)
            probabilities = softmax(logits / temperature)
            return list(zip(best.tolist(), probabilities[np.arange(len(best)), best].tolist()))
        if head == "multilabel":
            chosen = in_hierarchy(sigmoid(logits), task) >= np.float32(task["threshold"])
            return list(zip(chosen.tolist(), in_hierarchy(sigmoid(logits / temperature), task).tolist()))
        if head == "regression":
            return [(value, None) for value in (logits.astype(np.float64) * task["std"] + task["mean"]).tolist()]
        sizes = [len(feature.word_starts) for feature in features]
        if head in FINDERS:
            threshold = task["threshold"]
            lowest = max(task_words.LOWEST_SCORE, threshold - 1e-3)
            number = len(task["labels"])
            found = (FINDERS[head](row, size, lowest, number) for row, size in zip(logits, sizes))
            return [accepted(items, threshold, float(temperature)) for items in found]
        if head == "crf":
            scores = [logits, *(self.arrays[f"{task['crf']}.{name}"] for name in ("start", "transitions", "end"))]
            tags = viterbi(scores, inputs["word_mask"])
            divided = [part.astype(np.float64) / float(temperature) for part in scores]
            chances = path_chances(divided, inputs["word_mask"], tags, self.continues(task))
        else:
            tags = logits.argmax(-1)
            chances = word_chances(logits / temperature, inputs["word_mask"], tags, self.continues(task))
        return [(row[:size], chance[:size]) for row, chance, size in zip(tags.tolist(), chances.tolist(), sizes)]

    def continues(self, task: Task) -> np.ndarray:
        return np.array(task_tags.continuations(task["labels"]))

    def merge(self, task: Task, pieces: list[tuple[int, int, Any]], example: Example) -> Answer:
        """Merges the windows of a row into one answer. Text-level labels are from the first window; truncated
        words are tagged O."""
        labels, head = task["labels"], task["head"]
        if head in FINDERS:
            items, probabilities = merge_spans((first, size, *piece) for first, size, piece in pieces)
            found = [[*places, labels[kind]] for *places, kind in items]
            if head == "events":
                stays = task_words.in_events(found, [True] * len(found))
                return list(compress(found, stays)), list(compress(probabilities, stays))
            return found, probabilities
        if head in ("crf", "tagging"):
            ids, chances = (merge_windows((first, piece[side]) for first, _, piece in pieces) for side in (0, 1))
            num_cut = len(example["tokens"]) - len(ids)
            tags = pick(labels, ids + [task["outside"]] * num_cut)
            return tags, task_words.word_probabilities(tags, chances + [0.0] * num_cut, task["entities"])
        answer, probability = min(pieces, key=lambda piece: piece[0])[2]
        if head == "classification":
            return labels[answer], probability
        if head == "multilabel":
            chosen = [i for i, is_chosen in enumerate(answer) if is_chosen]
            return pick(labels, chosen), pick(probability, chosen)
        return answer, None

    def row(self, example: Example, answers: dict[str, Answer]) -> dict[str, Any]:
        """Returns the output columns of a row."""
        text, offsets = task_words.text_and_offsets(example, self.encode.unit or "word", self.encode.han)
        columns = {}
        for name, (label, probability) in answers.items():
            head, kind = self.tasks[name]["head"], "label"
            if head in FINDERS:
                kind = head
            elif head in ("crf", "tagging"):
                kind = "entities" if self.tasks[name]["entities"] else "tags"
            if kind != "label" and task_words.is_wordless(example):
                label, probability = [], []
            lowest = self.abstain_below.get(name, self.abstain_below.get("", 0.0))
            columns[name] = (kind, *task_words.answered(kind, label, probability, lowest)[:2])
        return task_words.row_of(example, columns, text, offsets)


def batches_of(features: list[Feature], batch_size: int) -> Iterator[list[Feature]]:
    """Yields batches of features sorted by length, of at most `batch_size` and about MAX_TOKENS tokens."""
    begin = 0
    while begin < len(features):
        size = min(batch_size, max(1, MAX_TOKENS // len(features[begin].input_ids)))
        yield features[begin : begin + size]
        begin += size


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- files -----------------------------------------------------------------------------------------------------------


FORMS = ".txt (one text per row), .csv, .tsv or .jsonl"
NAMES = "|".join(map(re.escape, ["tokens", *TEXT_NAMES]))
OTHER_FORMS: list[tuple[str, Any, str]] = [  # other formats of a .txt: (name, rows that must match, pattern)
    ("JSON lines", all, r"\{"),
    ("JSON", next, r"\[\s*([\[{]|$)|\{\s*$"),
    ("a table", next, rf"(?i)(.*[\t,;|])?\s*({NAMES})\s*[\t,;|]|.*[\t,;|]\s*({NAMES})\s*$|.*_!_"),
    ("a table", all, r".*\t"),
    ("texts with labels (fastText)", all, r"__label__\S|.*\s__label__\S+\s*$"),
    ("Rasa's training data", any, r"##\s*intent:|nlu:\s*$"),
    ("tokens with tags (CoNLL)", all, rf"\S+[ \t](.*[ \t])?{TAG}\s*$"),
    ("tokens with tags (CoNLL)", next, r"# global\.columns|#begin document"),
    ("words with tags", all, r"(\S*/([A-Za-z][\w$-]*|[^\w\s]{1,2})(\]\S*)?(\s+|$))+$"),
    ("words with tags", all, rf"(\S+(:|\||###){TAG}(\s+|$))+(<=>.*|\S+)?$"),
]


def unsupported(path: Path, what: str) -> InputError:
    lines = """JSON lines, {"text": "fly to Oslo"} or {"tokens": ["fly", "to", "Oslo"]}"""
    advice = f"write {lines}, or label it with main.py --predict_file"
    return InputError(f"{path}: {what}, but the supported formats are {FORMS}; {advice}")


def open_text(path: Path, encoding: str, newline: str = "\n") -> io.TextIOWrapper:
    """Opens a text file, decompressed if it ends in .gz. encoding auto: UTF-16 or UTF-32 by BOM, otherwise UTF-8"""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8" if encoding == "auto" else encoding)
    except (LookupError, ValueError):
        raise InputError(f"--encoding {encoding}: Python has no such encoding") from None
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    if encoding == "auto":
        with opened(path, "rb") as file:
            encoding = encoding_of_marks(file.read(2**20)) or "utf-8-sig"
    return io.TextIOWrapper(opened(path, "rb"), encoding=encoding, newline=newline)


def read_rows(path: str | Path, options: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of a .txt (one text per row), .csv, .tsv or .jsonl file as main.py reads them.

    Raises InputError for files that main.py would read differently.
    """
    path = Path(path)
    if path.is_dir():
        raise unsupported(path, "is a folder")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()
    if suffix not in ("", ".txt", ".csv", ".tsv", ".jsonl", ".ndjson"):
        raise unsupported(path, f"ends in {suffix}")
    with open_text(path, options.encoding, "" if suffix == ".csv" else "\n") as file:
        lines = file if suffix == ".csv" else (line.removesuffix("\n").removesuffix("\r") for line in file)
        if suffix == ".csv":
            csv.field_size_limit(sys.maxsize)
            yield from read_table(path, csv.reader(lines, strict=True), options)
        elif suffix == ".tsv":
            yield from read_table(path, (line.split("\t") for line in lines), options)
        elif suffix in (".jsonl", ".ndjson"):
            yield from read_objects(path, lines, options)
        else:
            yield from ({"id": str(number), "text": line} for number, line in enumerate(texts_only(path, lines)))


def texts_only(path: Path, lines: Iterator[str]) -> Iterator[str]:
    """Returns the lines of a .txt. Raises InputError if they seem to be in another format."""
    head = list(islice(lines, 1000))
    filled = [row for row in head if row.strip()]
    rows = [row for row in filled if not row.startswith("#")] or filled
    words = [row.split() for row in rows]
    if "" in head[:-1]:  # blank rows separate sentences in CoNLL, which may also have intent rows
        rows = [row for row, cells in zip(rows, words) if len(cells) > 1] or rows
        if all(len(cells) == 2 for cells in words) and any(cells[1] == "O" for cells in words):
            raise unsupported(path, "seems to have tokens with tags (CoNLL)")
    refuse_marked(path, head)
    for what, which, pattern in OTHER_FORMS if rows else ():
        if which(bool(re.match(pattern, row)) for row in (rows if which is all else filled)):
            raise unsupported(path, f"seems to have {what}")
    return chain(head, lines)


def read_table(path: Path, table: Iterator[list[str]], options: Any) -> Iterator[dict[str, Any]]:
    header = [name.strip() for name in next(table, [])]
    if twice := [name for number, name in enumerate(header) if name and name in header[:number]]:
        raise InputError(f"{path}: two columns are named {twice[0]!r}; rename one")
    text, pair = find_columns(path, header, options)
    head = list(islice(table, 200))
    full = [dict(zip(header, cells)) for cells in head if len(cells) == len(header) and any(cells)]
    texts = [row[text] for row in full] if text else []
    refuse_marked(path, texts, [[row[name] for row in full] for name in header if name != text])
    for number, cells in enumerate(chain(head, table)):
        cells = cells if any(cells) else [""] * len(header)
        if len(cells) != len(header):
            raise InputError(f"{path}, text {number + 1}: {len(cells)} cells, but the header has {len(header)}")
        yield input_row(dict(zip(header, cells)), number, text, pair)


def refuse_marked(path: Path, texts: list[Any], columns: Iterable[list[str]] = ()) -> None:
    """Raises InputError if the first texts are lists, have entity markup, or have a column with a tag per word."""
    filled = [text for text in texts if isinstance(text, str) and text.strip()]
    if filled and (inline_syntax(filled) or all(re.match(r"\s*\[.*\]\s*$", text, re.S) for text in filled)):
        raise unsupported(path, "seems to have texts that are lists or have entity markup")
    sizes = [len(text.split()) for text in texts if isinstance(text, str)]
    for tags in ([items_of(cell) for cell in column] for column in columns if filled):
        as_tags = all(re.fullmatch(TAG, tag) for row in tags for tag in row)
        if sizes == list(map(len, tags)) and (as_tags or ({*sizes} <= {0, 1} and ["O"] in tags)):
            raise unsupported(path, "seems to have a column with a tag for each word")


def items_of(cell: str) -> list[str]:
    """Splits a cell into words, or into the items of a list."""
    return re.findall(r"""['"]([^'"]*)['"]""", cell) if cell.startswith("[") else cell.split()


def read_objects(path: Path, lines: Iterable[str], options: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of JSON lines. The keys are determined from the first thousand objects."""
    objects = parse_lines(path, lines)
    head = list(islice(objects, 1000))
    # Prodigy's tokens are objects
    if names := dict.fromkeys(k for item in head for k in item if k != "tokens" or "{" not in str(item[k])[:2]):
        text, pair = find_columns(path, list(names), options)
        has_answers = {*names} & {"output", "response", "completion"} and {*names} & {"instruction", "prompt", "query"}
        if not options.text_column and (has_answers or {*names} & {"messages", "conversations"}):
            raise unsupported(path, "the objects seem to be instructions or dialogues")
        refuse_marked(path, [item.get(text) for item in head[:200]])
        for number, item in enumerate(chain(head, objects)):
            item = item or {key: "" for key in (text, pair) if key}
            if missing := [key for key in (text, pair) if key and key not in item]:
                raise InputError(f"{path}, row {number + 1}: no key {missing[0]!r}, which other rows have")
            yield input_row(item, number, text, pair)


def parse_lines(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            item = parse_json(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, row {number}: not JSON ({error})") from None
        if not isinstance(item, dict):
            raise InputError(f"{path}, row {number}: not a JSON object")
        yield item


def find_columns(path: Path, names: list[str], options: Any) -> tuple[str, str | None]:
    """Returns the columns of the text and of the second text (or None), from options or else by their names."""
    if not (options.text_column or options.text_pair_column or "tokens" in names):
        for pair in PAIRS:
            if {*pair} <= {*names}:
                return pair
    chosen: list[Any] = []
    for flag, usual in (("text_column", ["tokens", *TEXT_NAMES]), ("text_pair_column", PAIR_NAMES)):
        given = getattr(options, flag)
        if given and given not in names:
            raise InputError(f"{path}: no column {given!r} (--{flag}); the columns are: {', '.join(names)}")
        chosen.append(given or next(iter(by_usual(usual, names)), None))
    if chosen[0] is None and not getattr(options, "reads_text", True):
        return "", None
    if chosen[0] is None:
        problem = f"cannot tell which column is the text; add --text_column: {', '.join(names)}"
        raise InputError(f"{path}: {problem}; if the file has another format, label it with main.py --predict_file")
    return chosen[0], chosen[1]


def input_row(values: dict[str, Any], number: int, text: str, pair: str | None) -> dict[str, Any]:
    row = {"id": task_words.id_of(None if text == "id" else values.get("id"), number)}
    if text:
        row |= task_words.text_or_tokens(values[text], values.get("text"))
    if pair:
        row["text_pair"] = values[pair]
    return row | {"extras": {name: value for name, value in values.items() if name not in (text, pair, "id")}}


def write_file(rows: Iterable[dict[str, Any]], path: Path, spreadsheet_safe: bool = False) -> None:
    """Writes rows to a .csv or .jsonl file atomically."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is {'a folder' if path.is_dir() else 'not a file'}; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # never follows a link placed by someone else
    try:
        with open(os.open(temporary, flags, 0o666), "w", encoding="utf-8", newline="") as file:
            write_rows(rows, file, path.suffix == ".jsonl", spreadsheet_safe=spreadsheet_safe)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def label_file(options: argparse.Namespace) -> None:
    """Labels a file in constant memory, a few thousand rows at a time."""
    output = Path(options.output)
    if not options.output.endswith((".jsonl", ".csv")):
        raise InputError(f"{options.output}: must end in .jsonl or .csv")
    if output.exists() and os.path.exists(options.texts) and output.samefile(options.texts):
        raise InputError(f"{options.output}: is the input file; choose another output")
    options.reads_text = read_json(HERE / "predictor.json", {"reads_text": bool})["reads_text"]
    rows = read_rows(options.texts, options)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{options.texts}: the file is empty; nothing to label")
    predictor = Predictor(HERE, options.threads or None, options.abstain_below, options.provider)
    write_file(labelled(predictor, chain([first], rows), options.batch_size), output, options.spreadsheet_safe)


def labelled(predictor: Predictor, rows: Iterator[dict[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
    """Labels rows in chunks and yields the output columns of each row."""
    done = 0
    while chunk := list(islice(rows, 64 * batch_size)):
        encoded = predictor.encode(chunk, done)
        for row, answer in zip(encoded, predictor.answers(encoded, batch_size)):
            yield predictor.row(row.example, answer)
        done += len(chunk)


def main() -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help=f"{FORMS}, or any of these with .gz")
    parser.add_argument("output", help=".jsonl or .csv to write atomically")
    parser.add_argument("--batch_size", type=whole_number(1, 65536), default=64, help="texts per batch [64]")
    parser.add_argument("--threads", type=whole_number(0, 1024), default=0, help="CPU cores to use [all]")
    parser.add_argument(
        "--provider", choices=["auto", *PROVIDERS], default="auto", help="what runs the graph [auto: a GPU, or the CPU]"
    )
    parser.add_argument("--abstain_below", default="", help="leave out less probable answers: 0.8, or intent=0.8,…")
    parser.add_argument("--text_column", default="", help="column of the text (default: detected by name)")
    parser.add_argument("--text_pair_column", default="", help="column of the second text of a pair")
    parser.add_argument("--encoding", default="auto", help="encoding of the texts: auto (UTF-8, UTF-16), gb18030, …")
    parser.add_argument(
        "--spreadsheet_safe", action="store_true", help="put an apostrophe before cells that look like formulas"
    )
    options = parser.parse_args()
    try:
        label_file(options)
    except (InputError, csv.Error) as error:
        message = str(error)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"{options.texts}: cannot be decompressed ({error}); it is damaged or not a .gz file"
    except UnicodeError as error:
        other = "try another, such as gb18030 or big5"
        message = f"{options.texts}: cannot be read with --encoding {options.encoding} ({error}); {other}"
    except OSError as error:
        message = str(error)
    else:
        return 0
    print(one_line(f"error: {message}"), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
