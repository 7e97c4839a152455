"""Converts raw examples to the format of the processed folder.

Two passes over all examples determine the conversion: survey.py infers the kind of each task; label_pass.py checks the
labels and chooses tag schemes.
"""

from dataclasses import dataclass, field

import numpy as np

from engine.data.fields import Field
from engine.data.own_inputs import require_fields
from engine.errors import UserError
from engine.task.task import PLACES
from engine.task.words import entities_in
from preprocess.example import SPLIT_ALIASES, Example
from preprocess.labels.events import read_all_events
from preprocess.labels.kinds import HIERARCHICAL, as_list, check_label, check_paths
from preprocess.labels.positions import marked_names
from preprocess.labels.relations import read_all_relations
from preprocess.labels.schemes import Scheme
from preprocess.labels.spans import read_all_spans, token_spans_to_tags, tokenize_spans
from preprocess.storage.arrow import Batch
from preprocess.storage.facts import Note


@dataclass
class Form:
    """Converts examples of the raw files to the format of the processed folder."""

    separator: str  # delimiter of the labels in a cell
    unit: str  # token unit for character spans, see split_text
    tag_scheme: str
    chosen: dict[str, str]  # {task: kind} from --label_type
    hierarchy: str = ""  # separator of the nodes in a label
    fields: dict[str, Field] = field(default_factory=dict)  # custom inputs
    no_text: bool = False  # the rows have no text
    names: list[str] = field(default_factory=list)  # names of the tasks
    kinds: dict[str, str] = field(default_factory=dict)  # {task: kind}
    dashed: list[str] = field(default_factory=list)  # tasks where "-" means no label
    dropped: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # dropped rows: their only label is "-"
    over_text: list[str] = field(default_factory=list)  # tasks whose spans or relations use character offsets
    over_tokens: list[str] = field(default_factory=list)  # tasks whose spans use token indices
    from_tags: list[str] = field(default_factory=list)  # tasks whose tags become spans
    schemes: dict[str, Scheme] = field(default_factory=dict)  # {task: Scheme}
    entities: dict[str, str] = field(default_factory=dict)  # {relations task: task with the types of its entities}
    anchors: dict[str, list[str]] = field(default_factory=dict)  # {events task: mention labels, preferred anchor first}
    positions: dict[str, list[str]] = field(default_factory=dict)  # {multi-hot task: names of the positions}

    def __call__(self, numbers: list[int], examples: list[Example]) -> list[Example]:
        """Returns the examples in their output form, plus "_where". numbers: their row numbers in the store."""
        self.label(examples)
        for example in examples:
            for name, scheme in self.schemes.items():
                if example[name] is not None:
                    example[name] = scheme.convert(example[name], example["_where"])
            for name in self.from_tags:
                if example[name] is not None:
                    example[name] = [[begin, last, kind] for kind, begin, last in entities_in(example[name])]
        if len(self.dropped):
            numbers = (np.array(numbers) - np.searchsorted(self.dropped, numbers)).tolist()
        return [{"_where": e["_where"], "id": str(e.pop("id", number)), **e} for number, e in zip(numbers, examples)]

    def label(self, examples: list[Example]) -> list[Note]:
        """Checks and converts the labels, except for the tag scheme. Returns notes."""
        for example in examples:
            self.normalize(example)
            for name in self.dashed:
                if example.get(name) == "-":
                    example[name] = None
        notes = [note for name, order in self.anchors.items() for note in read_all_events(examples, name, order)]
        if self.over_text:
            nested = [name for name in self.over_text if self.kinds[name] in PLACES]
            relations = [name for name in nested if self.kinds[name] == "relations"]
            read_all_spans(examples, [name for name in self.over_text if name not in (*relations, *self.anchors)])
            notes += read_all_relations(examples, relations)
            notes += tokenize_spans(examples, self.over_text, self.unit, nested)
        for name in self.over_tokens:
            if self.kinds[name] == "tagging":
                notes.append(token_spans_to_tags(examples, name))
        for example in examples if self.fields else ():
            require_fields(example, self.fields, example["_where"])
        kinds = self.kinds | dict.fromkeys(self.from_tags, "tagging")
        for example in examples:
            check_labels(example, kinds, self.separator)
            for name in (name for name, kind in kinds.items() if self.hierarchy and kind in HIERARCHICAL):
                example[name] = check_paths(example[name], name, self.hierarchy, example["_where"])
        return notes

    def normalize(self, example: Example) -> None:
        """Normalises split names, multi-hot lists, lists of a single class and (with several tasks) empty cells."""
        if "split" in example:
            example["split"] = SPLIT_ALIASES[str(example["split"]).lower()]
        for name, positions in self.positions.items():
            if example.get(name) not in (None, ""):
                example[name] = marked_names(example[name], positions, example["_where"])
        for name, kind in self.chosen.items():
            label = example.get(name)
            if kind == "classification" and isinstance(label, list) and len(label) < 2:
                example[name] = label[0] if label else None  # doccano stores the class of a text as a list
        for name in self.names if len(self.names) > 1 else ():
            label = example.get(name)
            if type(label) is str and not label.strip() and self.chosen.get(name) != "multilabel":
                example[name] = None

    def kept(self, batch: Batch) -> list[Example]:
        """Returns the examples of a batch without the dropped ones."""
        if not len(self.dropped):
            return list(batch)
        dropped = np.isin(np.arange(batch.start, batch.start + len(batch)), self.dropped)
        return [example for example, is_dropped in zip(batch, dropped) if not is_dropped]


def check_labels(example: Example, kinds: dict[str, str], separator: str) -> None:
    """Converts the labels of an example to their stored form. Raises UserError unless at least one is usable."""
    where, has_label = example["_where"], False
    for name, kind in kinds.items():
        if kind == "multilabel" and isinstance(example.get(name), str):
            example[name] = as_list(example[name], separator)
        if example.get(name) is None and len(kinds) == 1:
            advice = "add --drop_unlabelled to drop such rows, or pass texts without labels to --predict_file"
            raise UserError(f"{where}: has no label {name!r} (null); {advice}")
        example[name] = check_label(example, name, kind)
        has_label = has_label or example[name] is not None
    if not has_label:
        raise UserError(
            f"{where}: has no label for any task ({', '.join(kinds)}); add --drop_unlabelled to drop such rows"
        )
