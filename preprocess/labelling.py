"""Examples as they were read -> examples as the processed folder holds them: checked, in one form."""

import re
import statistics
from collections import Counter, defaultdict

from engine.command_line import UserError
from engine.extras import require_extras, statistics_of
from engine.tags import find_scheme, has_spans, is_tagging, needs_words
from engine.text import split_text
from preprocess import labels
from preprocess.checks import Note
from preprocess.columns import PART_NAMES, RESERVED
from preprocess.schema import TEXT_KEYS, check_characters, check_text

SPAN_KINDS = (None, "tagging", "spans")  # what --label_type may say of labels that are spans over a text


def check_examples(examples, config):
    """Refuses rows that cannot be trained on, and makes their labels what the processed folder holds.

    -> ({task: type}, notes: what was changed on the way, for the data checks). A row may lack the labels of some tasks
    if it has those of another.
    """
    names = list(dict.fromkeys(key for example in examples for key in example if key not in RESERVED))
    chosen, notes = {name: labels.KINDS[kind] for name, kind in config.label_types_by_name().items()}, []
    if unknown := sorted(set(chosen) - set(names)):
        joined = f"; --label_column {unknown[0]}={'+'.join(names)} makes one task of columns of 0 and 1"
        advice = joined if chosen[unknown[0]] == "multilabel" and len(names) > 1 else ""
        raise UserError(f"--label_type names {', '.join(unknown)}, but the labels are {', '.join(names)}{advice}")
    for example in examples:
        check_shape(example, examples[0])
        if "extras" in example:
            require_extras(example, example["extras"], example["_where"])
        for name in names:
            empty = isinstance(example.get(name), str) and not example[name].strip()
            if len(names) > 1 and empty and chosen.get(name) != "multilabel":  # a cell without labels is just that
                example[name] = None
    guessed = [name for name in names if name not in chosen]
    for name in guessed:
        notes += drop_dashes(examples, name, alone=len(names) == 1)
    over_text = [name for name in names if chosen.get(name) in SPAN_KINDS and labels_are(name, examples) == "spans"]
    read_all_spans(examples, over_text)
    kinds = {name: kind_of_task(name, examples, chosen.get(name), name in over_text) for name in names}
    for name in guessed:
        notes += odd_numbers(name, kinds[name], examples)
    if over_text:
        notes += spans_to_tokens(
            examples, over_text, config.unit, [name for name in over_text if kinds[name] == "spans"]
        )
    from_tags = [name for name, kind in kinds.items() if kind == "spans" and name not in over_text]
    for example in examples:
        check_labels(example, kinds | dict.fromkeys(from_tags, "tagging"), config.label_separator)
    for name, kind in kinds.items():
        if is_tagging(kind):
            notes += convert_schemes(examples, name, config.tag_scheme)
        elif name in from_tags:
            notes += tags_to_spans(examples, name)
    return kinds, notes


def labels_are(name, examples):
    return labels.find_kind([example[name] for example in examples if example.get(name) is not None])


def kind_of_task(name, examples, chosen, over_text):
    """The type of a task: as chosen with --label_type, else as its labels look. over_text: they are spans that were
    read."""
    if chosen not in SPAN_KINDS:
        return chosen
    if over_text:
        if chosen is None and any(labels.any_overlap(example.get(name) or ()) for example in examples):
            print(
                f"the spans of {name!r} overlap: a task of spans (--label_type {name}=tagging keeps the longer of two)"
            )
            return "spans"
        return chosen or "tagging"
    kind = labels_are(name, examples)
    if chosen == "spans":
        return chosen
    if kind == "list":
        return "tagging" if "tokens" in examples[0] or name in labels.TAG_NAMES else "multilabel"
    if chosen == "tagging" and kind != "spans":
        where, label = next((e["_where"], e[name]) for e in examples if e.get(name) is not None)
        raise UserError(f"{where}: --label_type {name}=tagging needs a tag for each token, but the label is {label!r}")
    return kind


def read_all_spans(examples, names):
    """Makes labels that are spans over `text`, however they are written, lists of (start, end, label)."""
    if names and "text" not in examples[0]:
        raise UserError(f"{examples[0]['_where']}: {names[0]!r} is spans over characters; they need a text, not tokens")
    for example in examples:
        for name in names:
            if example.get(name) is not None:
                example[name] = labels.read_spans(example[name], example["text"], example["_where"])


def check_shape(example, first):
    """UserError unless an example has the texts and the kind of part that the first one has."""
    where = example["_where"]
    has, wanted = (sorted(e.keys() & TEXT_KEYS) for e in (example, first))
    if has != wanted:
        raise UserError(f"{where}: has {' and '.join(has)}, but {first['_where']} has {' and '.join(wanted)}")
    check_text(example)
    check_characters(example)
    if "split" in example:
        part = PART_NAMES.get(str(example["split"]).lower())
        if part is None:
            raise UserError(f"{where}: split {example['split']!r} is none of train, dev, test")
        example["split"] = part
    if ("split" in example) != ("split" in first):
        without = where if "split" in first else first["_where"]
        raise UserError(f"{without}: has no part (train, dev, test), but other rows have one")


def check_labels(example, tasks, separator):
    """Makes an example's labels what is kept. UserError unless it has one that can be used."""
    where = example["_where"]
    for name, kind in tasks.items():
        if kind == "multilabel" and isinstance(example.get(name), str):
            example[name] = labels.as_list(example[name], separator)
        if example.get(name) is None and len(tasks) == 1:
            advice = "--drop_unlabelled leaves such rows out; texts without labels are for --predict_file"
            raise UserError(f"{where}: has no label {name!r} (it is null); {advice}")
        example[name] = labels.check_label(example, name, kind)
    if all(example[name] is None for name in tasks):
        raise UserError(f"{where}: has no label of any task ({', '.join(tasks)})")


def drop_dashes(examples, name, alone):
    """Takes the label "-" among words, as OCNLI and SNLI write it, for no label: of a single task the row is left out.
    -> notes.

    Beside other signs ("+") it is a label like any other.
    """
    others = {e[name] for e in examples if isinstance(e.get(name), str)} - {"-"}
    dashed = [e for e in examples if e.get(name) == "-"]
    if not dashed or len(others) < 2 or not all(re.search(r"\w", label) for label in others):
        return []
    if alone:
        examples[:] = [e for e in examples if e.get(name) != "-"]
    for example in dashed:
        example[name] = None
    done = "these rows are left out" if alone else "they count as unlabelled"
    advice = f"{done}; if it is a class: --label_type {name}=classification"
    return [Note(f"{name}: the label '-' means that there is no gold label", [e["_where"] for e in dashed], advice)]


def odd_numbers(name, kind, examples):
    """Notes on labels of which it is not clear whether they are numbers or names."""
    labelled = [(e["_where"], e[name]) for e in examples if e.get(name) is not None]
    if kind == "regression":
        values = sorted({float(value) for _, value in labelled})
        if len(values) <= 10 and all(map(float.is_integer, values)) and len(labelled) >= 20:
            rows = [f"{labelled[0][0]}: {', '.join(f'{value:g}' for value in values)}"]
            advice = f"if they are names of classes: --label_type {name}=classification"
            yield Note(f"{name}: numbers of few whole values", rows, advice)
    elif kind == "classification":
        decimals = sum("." in str(value) and labels.is_number(str(value)) for _, value in labelled)
        if decimals > 0.8 * len(labelled):
            rows = [f"{where}: {value!r}" for where, value in labelled if not labels.is_number(str(value))]
            leave = "if it is a score, leave these empty (with other tasks) or correct them"
            advice = f"{leave}, and add --label_type {name}=regression"
            yield Note(f"{name}: nearly all labels are numbers, but not these", rows, advice)


def tags_to_spans(examples, name):
    """Turns tags into spans of tokens. -> notes."""
    from seqeval.metrics.sequence_labeling import get_entities  # imported here, as it brings scikit-learn

    notes = convert_schemes(examples, name, "bio")
    tagged = [example for example in examples if example[name] is not None]
    if find_scheme(example[name] for example in tagged) is None:
        raise UserError(f"--label_type {name}=spans: its tags are no entities (B-, I-, …), so there are no spans")
    for example in tagged:
        example[name] = [[first, last, kind] for kind, first, last in get_entities(example[name])]
    return notes


def spans_to_tokens(examples, names, unit, nested=()):
    """Turns labels that are spans over `text`, (start, end, label), into tags over `tokens`, which it adds; `text`
    stays. nested: of which of these tasks they become spans of tokens. -> notes."""
    if unit == "auto":
        unit = "character" if labels.mostly_chinese(example["text"] for example in examples[:2000]) else "word"
    overlapping, inside, blank = [], [], []
    for example in examples:
        where, text, spans = example["_where"], example["text"], {}
        for name in names:
            if example.get(name) is not None:
                spans[name], dropped = (example[name], []) if name in nested else labels.without_overlaps(example[name])
                overlapping += [f"{where}: {text[start:end]!r} ({label})" for start, end, label in dropped]
        borders = {border for task_spans in spans.values() for start, end, _ in task_spans for border in (start, end)}
        words = split_text(text, unit)
        pieces = labels.split_at_borders(words, borders)
        if len(pieces) > len(words):
            inside.append(where)
        example["tokens"] = [token for token, _, _ in pieces]
        for name, task_spans in spans.items():
            if name in nested:
                example[name] = labels.spans_to_tokens(task_spans, pieces)
                number = len(example[name])
            else:
                example[name] = labels.spans_to_tags(task_spans, pieces)
                number = sum(tag[0] == "B" for tag in example[name])
            if number < len(task_spans):
                blank.append(where)
    name = names[0]
    longer = f"of each two the longer was kept; --label_type {name}=spans keeps both"
    return [
        Note(f"{name}: spans overlap", overlapping, longer),
        Note(f"{name}: spans begin or end inside a word", inside, "the words were cut there; try --unit character"),
        Note(f"{name}: spans hold nothing but blanks", blank, "they were left out; correct the data"),
    ]


def convert_schemes(examples, name, wanted):
    """Writes a task's tags in one scheme, file by file. -> notes.

    wanted: "keep", a scheme, or "auto": BIO, or BIOES where all files have it, BMES or BILOU.
    """
    if wanted == "keep":
        return []
    tagged = [example for example in examples if example[name] is not None]
    files = defaultdict(list)
    for example in tagged:
        files[re.sub(r", \S+ \d+$", "", example["_where"])].append(example)
    schemes = {file: find_scheme(example[name] for example in rows) for file, rows in files.items()}
    if not any(schemes.values()):
        tags = {tag for example in tagged for tag in example[name]}
        prefixed = {tag for tag in tags if tag == "O" or re.match(r"[BIESMLU]-.", tag)}
        if "O" not in tags or len(tags) == 1:
            return []
        if len(prefixed) > len(tags) / 2:
            strange = [f"{e['_where']}: {tag}" for e in tagged for tag in e[name] if tag not in prefixed]
            advice = "entities cannot be recognised while they are there: correct them"
            return [Note(f"{name}: tags of no scheme among those of one", strange, advice)]
        print(f"the tags of {name!r} have no B- and I-: runs of equal tags are written as entities in BIO")
        for example in tagged:
            example[name] = labels.runs_to_bio(example[name])
        schemes = dict.fromkeys(files, "bio")
    return convert_files(files, schemes, name, wanted)


def convert_files(files, schemes, name, wanted):
    """Writes the tags of each file, of the scheme that was found in it, in the one that is wanted. -> notes."""
    present = set(schemes.values()) - {None}
    target = wanted if wanted != "auto" else ("bio" if present & {"bio", "iob1"} else "bioes")
    for file, source in schemes.items():
        if source and source != target:
            print(f"{file}: the tags of {name!r} are {source.upper()}, written as {target.upper()}")
            for example in files[file]:
                example[name] = labels.convert_tags(example[name], source, target)
    mixed = [f"{file}: {source.upper()}" for file, source in schemes.items() if source] if len(present) > 1 else []
    return [Note(f"{name}: files have different tag schemes", mixed, f"all were written as {target.upper()}")]


def collect_labels(parts, tasks):
    """labels.json: each task's type and its labels in order with their counts, from the training part.

    Of tags also what a token is ("unit"); of numbers their mean and standard deviation instead of labels; whether texts
    are pairs, and the extra columns.
    """
    info = {}
    for name, kind in tasks.items():
        for part, rows in parts.items():
            if all(e[name] is None for e in rows):
                raise UserError(f"{part} has no label of the task {name!r} at all")
        values = [e[name] for e in parts["train"] if e[name] is not None]
        if kind == "regression":
            mean, deviation = statistics.fmean(values), statistics.pstdev(values)
            if deviation == 0:
                raise UserError(f"the task {name!r} has the single value {mean:g} in train: there is nothing to learn")
            info[name] = {"type": kind, "labels": [], "mean": mean, "std": deviation}
            continue
        if has_spans(kind):
            values = [[label for _, _, label in value] for value in values]
        counts = Counter(label for value in values for label in ([value] if kind == "classification" else value))
        names = sorted(counts, key=lambda label: (label != "O", label))
        labels.require_few(name, names)
        if kind == "classification" and len(names) < 2:
            raise UserError(f"the task {name!r} has the single label {names[0]!r} in train: there is nothing to learn")
        if not names:
            raise UserError(f"the task {name!r} has no label in train: all its lists are empty")
        info[name] = {"type": kind, "labels": names, "counts": [counts[label] for label in names]}
        if kind == "multilabel":
            info[name]["rows"] = len(values)
        if needs_words(kind):
            info[name]["unit"] = token_unit(parts["train"])
    extras = statistics_of(parts["train"])
    for task in info.values():
        if "text_pair" in parts["train"][0]:
            task["pairs"] = True
        if extras:
            task["extras"] = extras
    return info


def token_unit(examples):
    """How a raw text is to be cut into tokens like these: "word", "character", or "character+blank"."""
    tokens = {token for e in examples for token in e["tokens"]}
    if any(len(token) > 1 for token in tokens):
        return "word"
    return "character+blank" if any(token.isspace() for token in tokens) else "character"
