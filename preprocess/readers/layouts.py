"""Finds the rows in a JSON file that is one object: rows at a path, one list per split, or a pandas table."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.task.signs import LABEL_NAMES, TEXT_NAMES, alike
from preprocess.example import abbreviate, split_from_name
from preprocess.readers.paths import MISSING, Values, at

# {path of the rows in a known format: label name}. `*` matches any key, which becomes the label of its rows
ROW_PATHS = {
    "rasa_nlu_data.common_examples": "",  # Rasa
    "assets.utterances": "",  # Azure
    "utterances": "",  # LUIS
    "intents.*.utterances": "intent",  # Snips
}
WORD_KEYS, TAG_KEYS = "orth word text form token".split(), "ner tag label".split()  # keys of token objects
Rows = list[Any]
Located = Iterator[tuple[str, Any]]  # (source for messages, row)


def rows_of_object(path: Path, content: dict[str, Any], rows_key: str) -> Located:
    """Returns the rows of a JSON object, with `split` if the object has splits. Raises UserError if several lists could
    be the rows. rows_key: the path in --rows_key."""
    if rows_key:
        rows = at(content, rows_key)
        if rows is MISSING:
            raise UserError(f"{path}: --rows_key {rows_key} does not exist; the keys are: {abbreviate(content)}")
        return numbered(as_rows(path, rows))
    if is_row(content):
        return numbered([content])
    for row_path, name in ROW_PATHS.items():
        if listed := rows_at(content, row_path.split("."), name):
            return numbered(listed)
    if splits := splits_of(path, content):
        return rows_of_splits(splits)
    for find in (as_table, as_patterns, as_classes):
        if rows := find(content):
            return numbered(rows)
    below = [splits for value in content.values() if isinstance(value, dict) and (splits := splits_of(path, value))]
    return rows_of_splits(below[0]) if len(below) == 1 else numbered(the_list(path, content))


def rows_of_splits(splits: dict[str, tuple[str, Rows]]) -> Located:
    """Yields the rows of {key: (split, rows)}."""
    for key, (split, rows) in splits.items():
        yield from ((f"{key} {number}", with_keys(row, split=split)) for number, row in enumerate(rows, 1))


def numbered(rows: Rows) -> Located:
    return ((f"item {number}", row) for number, row in enumerate(rows, 1))


def with_keys(row: Any, **extra: Any) -> Any:
    """Adds keys to a row. A list becomes an object with the keys 0, 1, …; spaCy's ["a text", {"entities": …}] becomes
    {"text": "a text", "entities": …}."""
    if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], dict):
        row = {"text": row[0], **row[1]}
    if isinstance(row, list):
        row = {str(number): value for number, value in enumerate(row)}
    return row | extra if isinstance(row, dict) else row


def is_row(content: dict[str, Any]) -> bool:
    """Returns True if an object is itself an example: it has a text or a list of tokens."""
    tokens = content.get("tokens")
    is_text = any(isinstance(content.get(name), str) for name in TEXT_NAMES)
    return is_text or (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens) and bool(tokens))


def rows_at(content: Any, steps: Sequence[str], name: str, key: str = "") -> Rows:
    """Returns the objects at a path. name: the key of each row that stores the key found at `*`."""
    if not steps:
        rows = content if isinstance(content, list) and content and isinstance(content[0], dict) else []
        return [with_keys(row, **{name: key}) for row in rows] if name else rows
    if not isinstance(content, dict):
        return []
    if steps[0] != "*":
        return rows_at(content.get(steps[0]), steps[1:], name, key)
    return [row for each, value in content.items() for row in rows_at(value, steps[1:], name, each)]


def splits_of(path: Path, content: dict[str, Any]) -> dict[str, tuple[str, Rows]] | None:
    """Returns {key: (split, rows)} if the keys of an object are names of splits, otherwise None."""
    lists = {key: value for key, value in content.items() if has_rows(value)}
    named = {key: split for key in lists if (split := split_from_name(key))}
    if not named:
        return None
    if unknown := [key for key in lists if key not in named]:
        problem = f"the keys {', '.join(named)} are splits, but {', '.join(unknown)} is not"
        raise UserError(f"{path}: {problem}; select the rows with --rows_key, or write each split to its own file")
    return {key: (split, as_rows(path, lists[key])) for key, split in named.items()}


def has_rows(value: Any) -> bool:
    """Returns True if a value is or contains a list of objects or lists."""
    if isinstance(value, dict):
        return any(map(has_rows, value.values())) or bool(as_table(value))
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)


def as_rows(path: Path, value: Any) -> Rows:
    """Returns a list unchanged, or the rows of an object (written by pandas, or with numbers as keys)."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        rows = as_table(value)
        return rows if rows is not None else the_list(path, value)
    return []


def as_table(content: dict[str, Any]) -> Rows | None:
    """Returns the rows of pandas's to_json (orient split, columns, index or list), or None for other objects."""
    names, data = content.get("columns"), content.get("data")
    if isinstance(names, list) and isinstance(data, list):
        return [dict(zip(names, row)) if isinstance(row, list) else row for row in data]
    values = list(content.values())
    if all(isinstance(value, list) for value in values) and (keys := singular(content)):
        # pandas's orient="list": columns have equal lengths; other lists are not a table
        lengths = {len(value) for value in values}
        return [dict(zip(keys, row)) for row in zip(*values)] if len(lengths) == 1 else None
    if not values or not all(isinstance(value, dict) and value for value in values):
        return None
    same_keys = len({tuple(value) for value in values}) == 1
    # pandas's orient="columns": the row numbers are the inner keys; in orient="index", they are the outer keys
    by_index = same_keys and all(key.isdecimal() for key in values[0]) and not any(key.isdecimal() for key in content)
    if by_index or (same_keys and alike(["tokens", *TEXT_NAMES], content)):  # columns
        return [dict(zip(content, row)) for row in zip(*(value.values() for value in values))]
    if all(is_row(value) for value in values):  # an object per index
        return values
    return None


def singular(content: dict[str, Any]) -> list[str]:
    """Returns the keys of an object, with plurals such as `texts` made singular, or [] if no key is a text."""
    usual = {"tokens", *TEXT_NAMES, *LABEL_NAMES}
    keys = [key if key in usual or key[:-1] not in usual else key[:-1] for key in content]
    return keys if {"tokens", *TEXT_NAMES} & {*keys} else []


def as_classes(content: dict[str, Any]) -> Rows | None:
    """Returns the rows of {"good": ["a text", …], …} (one list per class or, in Snips, per intent), or None."""
    lists = {key: value for key, value in content.items() if isinstance(value, list) and value}
    if len(lists) != len(content) or singular(content) or {*LABEL_NAMES} & content.keys():
        return None
    if len(lists) > 1 and all(isinstance(text, str) for texts in lists.values() for text in texts):
        return [{"text": text, "label": key} for key, texts in lists.items() for text in texts]
    if all(isinstance(row, dict) and {*row} == {"data"} for rows in lists.values() for row in rows):
        return [row | {"intent": key} for key, rows in lists.items() for row in rows]
    unlabelled = all(isinstance(row, dict) and is_row(row) for rows in lists.values() for row in rows)
    if len(lists) > 1 and unlabelled and not any(alike(LABEL_NAMES, rows[0]) for rows in lists.values()):
        return [row | {"label": key} for key, rows in lists.items() for row in rows]
    return None


def as_patterns(content: dict[str, Any]) -> Rows | None:
    """Returns the rows of {"intents": [{"tag": "greeting", "patterns": ["hello", …]}, …]}, or None."""
    intents = content.get("intents")
    if not isinstance(intents, list) or not all(isinstance(each, dict) for each in intents):
        return None
    pairs = [(at(each, "tag|intent|name"), at(each, "patterns|examples|utterances|questions")) for each in intents]
    if not pairs or not all(isinstance(tag, str) and isinstance(texts, list) for tag, texts in pairs):
        return None
    rows = [(tag, text if isinstance(text, dict) else {"text": text}) for tag, texts in pairs for text in texts]
    return [row | {"intent": tag} for tag, row in rows]


def the_list(path: Path, content: dict[str, Any]) -> Rows:
    """Returns the only list of rows in an object, at any depth, or [content] if there is none."""
    lists = dict(lists_in(content, ""))
    with_text = {key: rows for key, rows in lists.items() if any(map(has_text, rows[:9]))} or lists
    first = next(iter(with_text.values()), [content])
    if len(with_text) > 1:
        raise UserError(f"{path}: several lists could be the rows; select one with --rows_key {' or '.join(with_text)}")
    return first


def has_text(row: Any) -> bool:
    row = with_keys(row)
    return isinstance(row, dict) and bool(alike(["tokens", *TEXT_NAMES], row))


def lists_in(content: dict[str, Any], prefix: str, depth: int = 3) -> Iterator[tuple[str, Rows]]:
    """Yields (path, rows) of the lists of objects in an object."""
    for key, value in content.items():
        if isinstance(value, list) and any(isinstance(with_keys(row), dict) for row in value[:9]):
            yield prefix + key, value
        elif isinstance(value, dict) and depth:
            yield from lists_in(value, f"{prefix}{key}.", depth - 1)


def with_sentences(objects: Iterator[tuple[str, Any]], labelled: bool) -> Iterator[tuple[str, Any]]:
    """Yields (source, object). Splits DyGIE and spaCy documents into one object per sentence."""
    count = 0
    for where, values in objects:
        split = {"split": values["split"]} if isinstance(values, dict) and "split" in values else {}
        tagged = [with_tags(each) for each in sentences_in(values)]
        if all(tagged):
            for number, sentence in enumerate(tagged, count + 1):
                yield f"{where.rpartition(', ')[0]}, sentence {number}", (sentence or {}) | split
            count += len(tagged)
        elif is_document(values, labelled):
            yield from ((place, row | split) for place, row in sentences_of(values, where, labelled))
        else:
            yield where, values


def sentences_in(values: Any) -> list[Any]:
    """Returns the sentences of a document with paragraphs (spaCy's JSON), or the object itself in a list."""
    for key in ("paragraphs", "sentences"):
        below = values.get(key) if isinstance(values, dict) else None
        if isinstance(below, list) and below and all(isinstance(each, dict) for each in below):
            return [sentence for each in below for sentence in sentences_in(each)]
    return [values]


def with_tags(values: Any) -> Values | None:
    """Converts token objects, [{"orth": "Anna", "ner": "B-PER"}, …], to lists of words and tags, or returns None."""
    tokens = values.get("tokens") if isinstance(values, dict) else None
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, dict) for token in tokens):
        return None
    word, tag = string_key(tokens, WORD_KEYS), string_key(tokens, TAG_KEYS)
    if word is None or tag is None:
        return None
    return values | {"tokens": [token[word] for token in tokens], "ner": [token[tag] for token in tokens]}


def string_key(objects: Sequence[Values], names: Sequence[str]) -> str | None:
    """Returns the first name that is a key with a string value in all objects, or None."""
    return next((name for name in names if all(isinstance(each.get(name), str) for each in objects)), None)


def sentences_of(values: Values, where: str, labelled: bool) -> Iterator[tuple[str, Values]]:
    """Yields (source, object) for each sentence of a DyGIE document. Its spans and relations are lists of two or four
    token indices, counted from the start of the document, and a label."""
    start, sentences = 0, values["sentences"]
    keys = {"ner": 2, "relations": 4} if isinstance(values.get("relations"), list) else {"ner": 2}
    for number, tokens in enumerate(sentences, 1):
        source, found = f"{where}, sentence {number}", {key: list[Any]() for key in keys}
        for key, size in keys.items() if labelled else ():
            of_sentence: Any = values[key][number - 1] if len(values[key]) == len(sentences) else None
            items: list[Any] = of_sentence if isinstance(of_sentence, list) else [of_sentence]
            for item in items:
                is_item = isinstance(item, list) and len(item) > size and {*map(type, item[:size])} == {int}
                if not is_item:
                    form = {2: "[first token, last token, label]", 4: "[first and last token, twice, label]"}[size]
                    raise UserError(f"{source}: a span of {key!r} is not {form}")
                found[key].append([*(place - start for place in item[:size]), item[size]])
        yield source, {"tokens": tokens, **found}
        start += len(tokens)


def is_document(values: Any, labelled: bool) -> bool:
    """Returns True if an object is a DyGIE document: lists of tokens and of spans for each sentence."""
    sentences = values.get("sentences") if isinstance(values, dict) else None
    spans = values.get("ner") if labelled and isinstance(values, dict) else sentences
    if not isinstance(sentences, list) or not isinstance(spans, list) or len(sentences) != len(spans):
        return False
    return all(isinstance(each, list) for each in (*sentences, *spans))
