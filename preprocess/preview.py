"""Prints how the input was interpreted before anything is written: formats, columns, splits and examples."""

from collections.abc import Iterator
from typing import Any

from engine.task.tags import STANDARD
from engine.task.text import join_tokens
from engine.task.words import entities_in
from preprocess.example import Example, cut
from preprocess.labels.events import shown_events
from preprocess.labels.kinds import links_mentions
from preprocess.labels.relations import shown_triples
from preprocess.prepared import Prepared

MAX_LENGTH = 160  # maximum number of characters printed per text
CONTEXT = 12  # tokens printed before the first entity of a long text


def show_data(data: Prepared, number: int) -> None:
    """Prints how the input was read, its splits, and the first examples of train."""
    for line in data.understood.lines():
        print(line)
    print("splits: " + ", ".join(f"{split} {len(rows):,}" for split, rows in data.splits.items()))
    for example in chosen_examples(data, number):
        print(f"  {shown_example(example, data.kinds)}")


def chosen_examples(data: Prepared, number: int) -> list[Example]:
    """Returns examples from the start of train, those with relations first, then those with entities."""
    related = [name for name, kind in data.kinds.items() if links_mentions(kind)]
    marked = [name for name, kind in data.kinds.items() if kind == "tagging" or kind == "spans"]
    head = data.splits["train"][: max(50, number)]
    return sorted(head, key=lambda e: (not any(e[n] for n in related), not any(spans_of(e[n]) for n in marked)))[
        :number
    ]


def spans_of(label: Any) -> list[tuple[int, int, str]]:
    """Returns [(first token, last token, type)] for a label that consists of spans or tags."""
    if not label or isinstance(label[0], list):
        return [tuple(span) for span in label or ()]
    if not any(tag != "O" and STANDARD.parse(tag) for tag in label):
        return []
    return [(first, last, kind) for kind, first, last in entities_in(label)]


def shown_example(example: Example, kinds: dict[str, str]) -> str:
    """Formats an example on one line: its text with [entities|type], and its other labels."""
    lines = [f"{name}: {piece}" for name, kind in kinds.items() for piece in shown_label(example, name, kind)]
    if not any(kind == "tagging" or kind == "spans" for kind in kinds.values()):
        text = example.get("text") or join_tokens(example["tokens"], "word")[0]
        pair = f" || {cut(example['text_pair'], MAX_LENGTH)}" if "text_pair" in example else ""
        lines.insert(0, f"{cut(text, MAX_LENGTH)}{pair}")
    return " -> ".join(" ".join(line.split()) for line in lines)


def shown_label(example: Example, name: str, kind: str) -> Iterator[str]:
    label = example[name]
    if links_mentions(kind):
        show_label = {"relations": shown_triples, "events": shown_events}[kind]
        items = show_label(label or (), example["tokens"])
        yield "no label" if label is None else cut(items, 2 * MAX_LENGTH) or f"no {kind}"
    elif not (kind == "tagging" or kind == "spans"):
        shown = ", ".join(label) if isinstance(label, list) else str(label)
        yield "no label" if label is None else cut(shown) or "none of the labels"
    elif label is None:
        yield cut(join_tokens(example["tokens"], "word")[0], MAX_LENGTH) + " (not annotated)"
    elif kind == "tagging" and not all(map(STANDARD.parse, label)):  # parts of speech, for example
        yield cut(" ".join(f"{token}|{tag}" for token, tag in zip(example["tokens"], label)), MAX_LENGTH)
    else:
        yield marked_text(example["tokens"], spans_of(label))


def marked_text(tokens: list[str], spans: list[tuple[int, int, str]]) -> str:
    """Returns the tokens as text, with spans marked as [words|type]. Truncates long texts, but keeps the first span."""
    num_opened = {first: sum(first == other for other, _, _ in spans) for first, _, _ in spans}
    closing: dict[int, str] = {}
    for _, last, kind in sorted(spans, key=lambda span: -span[0]):
        closing[last] = closing.get(last, "") + f"|{kind}]"
    start = max(0, min((first for first, _, _ in spans), default=0) - CONTEXT) if len(tokens) > 4 * CONTEXT else 0
    end = min(len(tokens), start + MAX_LENGTH)
    pieces = [f"{'[' * num_opened.get(n, 0)}{tokens[n]}{closing.get(n, '')}" for n in range(start, end)]
    unit = "word" if any(len(token) > 1 for token in tokens) else "character"
    text = cut(join_tokens(pieces, unit)[0], 2 * MAX_LENGTH)
    return ("… " if start else "") + text + (" …" if end < len(tokens) else "")
