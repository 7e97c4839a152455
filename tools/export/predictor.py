"""Labels texts with an exported model. Needs only onnxruntime, tokenizers and numpy.

    from predictor import Predictor
    predictor = Predictor("shipped")
    predictor(["turn on the light", "play a song"])

    python shipped/predictor.py texts.txt labelled.jsonl

An exported folder contains a copy of this file and of the modules that it imports, as predictor_*.py (see CODE in
tools/export/__main__.py). Words, windows, truncation and output columns are the same as with `main.py --do_predict`.
"""

import argparse
import csv
import gzip
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # in an exported folder, where the modules below are next to this file
    sys.path.append(str(Path(__file__).resolve().parent))
    sys.dont_write_bytecode |= __name__ == "__main__"

from engine.errors import UserError
from engine.predict.rows import write_predictions
from engine.run.flags import OneLineParser, one_line, whole_number
from engine.schema import read_json
from engine.task.words import is_wordless, row_of, shares_by_task, text_and_offsets, why_no_threshold, with_abstention
from tools.export.decoding import HEADS, Head, Prediction, Window
from tools.export.encoding import Encoded, Encoder, Example, batches_of
from tools.export.loading import PROVIDERS, InputError, load_arrays, load_session, load_settings, num_cores
from tools.export.reading import FORMATS, read_rows


class Predictor:
    """Labels rows: texts, lists of tokens, or dicts with "text" or "tokens", and optional "text_pair" and "extras".

    A Predictor is thread-safe. It raises InputError, a ValueError, for an invalid row, option or folder.

    folder: a folder written by tools.export
    threads: number of threads per batch (default: one for each core that this process may use)
    abstain_below: omit predictions below this probability, or one per task: "intent=0.9,slots=0.8"
    provider: cpu, cuda, tensorrt or openvino, if the installed onnxruntime supports it; auto: cuda, otherwise cpu
    """

    def __init__(
        self, folder: str | Path, threads: int | None = None, abstain_below: str | float = 0.0, provider: str = "auto"
    ):
        self.folder = folder = Path(folder)
        settings = load_settings(folder)
        self.tasks = settings["tasks"]
        try:
            self.abstain_below = shares_by_task(abstain_below)
        except ValueError as error:
            raise InputError(f"abstain_below {abstain_below!r}: {error}") from None
        arrays = load_arrays(folder / "arrays.npz", self.tasks)
        self.heads = {name: HEADS[task["head"]](task, self.tasks, arrays) for name, task in self.tasks.items()}
        always = [name for name, head in self.heads.items() if not head.can_abstain]
        if wrong := why_no_threshold(self.abstain_below, self.tasks, always):
            raise InputError(f"abstain_below: {wrong}")
        self.encode = Encoder(folder, settings)
        self.session = load_session(folder / "model.onnx", threads or num_cores(), provider)
        self.inputs = [given.name for given in self.session.get_inputs()]
        if {*self.inputs} - self.encode.inputs or len(self.session.get_outputs()) != len(self.tasks):
            raise InputError(f"{folder / 'model.onnx'}: does not match predictor.json; export the model again")

    def __call__(self, rows: Iterable[Any], batch_size: int = 64) -> list[dict[str, Any]]:
        """Labels rows. Returns one dict per row, in order, with the columns of predictions.jsonl of main.py.

        Columns: text, (id, text_pair,) and for each task <task> and <task>_probability, which are lists for multilabel
        tasks. Regression only has <task>. Tagging and spans have <task>: [{"label", "text", "start", "end"}] with
        offsets into the text; tagging also has <task>_tags. Relations have <task>: [{"subject", "predicate",
        "object"}], both with text, start and end; events have [{"type", "trigger", "arguments"}], see
        `predictor_words.event_objects`. Each entity, relation, event and argument has a "probability".
        """
        encoded = self.encode(rows)
        return [self.row(row.example, labels) for row, labels in zip(encoded, self.answers(encoded, batch_size))]

    def count_tokens(self, rows: Iterable[Any]) -> list[int]:
        """Returns the number of tokens of each row, including special tokens, before windows or truncation."""
        return [row.num_tokens for row in self.encode(rows)]

    def answers(self, encoded: list[Encoded], batch_size: int = 64) -> list[dict[str, Prediction]]:
        """Predicts the labels of encoded rows. Returns {task: (label, probability)} for each row.

        A span is [first word, last word, type]. A relation is [first and last word of the subject, first and last word
        of the object, predicate].
        """
        windows: list[dict[str, list[Window]]] = [{name: [] for name in self.tasks} for _ in encoded]
        for batch in batches_of(encoded, batch_size):
            inputs, sizes = self.encode.batch(batch, encoded), [len(feature.word_starts) for feature in batch]
            outputs = self.session.run(None, {name: inputs[name] for name in self.inputs})
            for (name, head), logits in zip(self.heads.items(), outputs):
                self.check(name, head, logits, encoded[batch[0].example].example)
                decoded = head.decode(logits, inputs["word_mask"], sizes)
                for feature, size, labels in zip(batch, sizes, decoded):
                    windows[feature.example][name].append((feature.first_word, size, labels))
        return [
            {name: head.merge(by_task[name], row.num_words) for name, head in self.heads.items()}
            for row, by_task in zip(encoded, windows)
        ]

    def check(self, name: str, head: Head, logits: np.ndarray, example: Example) -> None:
        """Raises InputError if the logits of a task do not match its labels or are not finite."""
        if not head.matches(logits):
            raise InputError(f"{self.folder}: the logits of {name!r} do not fit predictor.json; export the model again")
        if not np.isfinite(logits).all():
            shown = repr(example.get("id", example.get("text", "")))[:60]
            raise InputError(f"the model's output for {name!r} is not finite, at or near the row {shown}")

    def row(self, example: Example, answers: dict[str, Prediction]) -> dict[str, Any]:
        """Returns the output columns of a row."""
        text, offsets = text_and_offsets(example, self.encode.unit or "word", self.encode.han)
        columns = {}
        for name, (label, probability) in answers.items():
            kind = self.heads[name].kind
            if kind != "label" and is_wordless(example):
                label, probability = [], []
            lowest = self.abstain_below.get(name, self.abstain_below.get("", 0.0))
            columns[name] = (kind, *with_abstention(kind, label, probability, lowest)[:2])
        return row_of(example, columns, text, offsets)


# ---- command line ----------------------------------------------------------------------------------------------------


def label_file(options: argparse.Namespace) -> None:
    """Labels a file in constant memory, a few thousand rows at a time."""
    folder, output = Path(__file__).resolve().parent, Path(options.output)
    if not options.output.endswith((".jsonl", ".csv")):
        raise InputError(f"{options.output}: must end in .jsonl or .csv")
    if output.exists() and os.path.exists(options.texts) and output.samefile(options.texts):
        raise InputError(f"{options.output}: is the input file; choose another output")
    options.reads_text = read_json(folder / "predictor.json", {"reads_text": bool})["reads_text"]
    rows = read_rows(options.texts, options)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{options.texts}: the file is empty; nothing to label")
    predictor = Predictor(folder, options.threads or None, options.abstain_below, options.provider)
    write_predictions(labelled(predictor, chain([first], rows), options.batch_size), output, options.spreadsheet_safe)


def labelled(predictor: Predictor, rows: Iterator[dict[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
    """Labels rows in chunks and yields the output columns of each row."""
    done = 0
    while chunk := list(islice(rows, 64 * batch_size)):
        encoded = predictor.encode(chunk, done)
        for row, labels in zip(encoded, predictor.answers(encoded, batch_size)):
            yield predictor.row(row.example, labels)
        done += len(chunk)


def main() -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help=f"input file: {FORMATS}, or any of these with .gz")
    parser.add_argument("output", help="output file, .jsonl or .csv, which is written atomically")
    parser.add_argument("--batch_size", type=whole_number(1, 65536), default=64, help="texts per batch [64]")
    parser.add_argument("--threads", type=whole_number(0, 1024), default=0, help="CPU threads [one per core]")
    parser.add_argument(
        "--provider", choices=["auto", *PROVIDERS], default="auto", help="onnxruntime provider [auto: CUDA or CPU]"
    )
    parser.add_argument("--abstain_below", default="", help="omit less probable predictions: 0.8, or intent=0.8,…")
    parser.add_argument("--text_column", default="", help="column of the text [detected by name]")
    parser.add_argument("--text_pair_column", default="", help="column of the second text of a pair [detected by name]")
    parser.add_argument("--encoding", default="auto", help="encoding of the texts: auto (UTF-8, UTF-16), gb18030, …")
    parser.add_argument(
        "--spreadsheet_safe", action="store_true", help="put an apostrophe before cells that look like formulas"
    )
    options = parser.parse_args()
    try:
        label_file(options)
    except (UserError, csv.Error) as error:
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
