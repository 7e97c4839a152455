"""Shows how the input was interpreted before anything is written: formats, columns, parts, examples."""

from collections.abc import Iterator
from typing import Any

from engine.task.tags import STANDARD
from engine.task.text import join_tokens
from engine.task.words import entities_in
from preprocess.example import Example, cut
from preprocess.prepared import Prepared

MOST = 160  # characters shown per text
AROUND = 12  # tokens shown before the first entity of a long text


def show_data(data: Prepared, number: int) -> None:
    """Prints how the input was read, its parts, and the first examples of train."""
    for line in data.understood.lines():
        print(line)
    print("parts: " + ", ".join(f"{part} {len(rows):,}" for part, rows in data.parts.items()))
    for example in chosen_examples(data, number):
        print(f"  {shown_example(example, data.kinds)}")


def chosen_examples(data: Prepared, number: int) -> list[Example]:
    """The first examples of train; those with entities come first."""
    marked = [name for name, kind in data.kinds.items() if kind == "tagging" or kind == "spans"]
    head = data.parts["train"][: max(50, number)]
    return sorted(head, key=lambda e: bool(marked) and not any(spans_of(e[name]) for name in marked))[:number]


def spans_of(label: Any) -> list[tuple[int, int, str]]:
    """[(first token, last token, type)] of a label of spans or tags."""
    if not label or isinstance(label[0], list):
        return [tuple(span) for span in label or ()]
    if not any(tag != "O" and STANDARD.parse(tag) for tag in label):
        return []
    return [(first, last, kind) for kind, first, last in entities_in(label)]


def shown_example(example: Example, kinds: dict[str, str]) -> str:
    """An example on one line: its text with [entities|type], and its other labels."""
    lines = [f"{name}: {piece}" for name, kind in kinds.items() for piece in shown_label(example, name, kind)]
    if not any(kind == "tagging" or kind == "spans" for kind in kinds.values()):
        text = example.get("text") or join_tokens(example["tokens"], "word")[0]
        pair = f" || {cut(example['text_pair'], MOST)}" if "text_pair" in example else ""
        lines.insert(0, f"{cut(text, MOST)}{pair}")
    return " -> ".join(" ".join(line.split()) for line in lines)


def shown_label(example: Example, name: str, kind: str) -> Iterator[str]:
    label = example[name]
    if not (kind == "tagging" or kind == "spans"):
        shown = ", ".join(label) if isinstance(label, list) else str(label)
        yield "no label" if label is None else cut(shown) or "none of the labels"
    elif label is None:
        yield cut(join_tokens(example["tokens"], "word")[0], MOST) + " (not annotated)"
    elif kind == "tagging" and not all(map(STANDARD.parse, label)):  # such as parts of speech
        yield cut(" ".join(f"{token}|{tag}" for token, tag in zip(example["tokens"], label)), MOST)
    else:
        yield marked_text(example["tokens"], spans_of(label))


def marked_text(tokens: list[str], spans: list[tuple[int, int, str]]) -> str:
    """The tokens as a text with marked [spans|type]; long texts are cut, but not before their first span."""
    opened = {first: sum(first == other for other, _, _ in spans) for first, _, _ in spans}
    closed: dict[int, str] = {}
    for _, last, kind in sorted(spans, key=lambda span: -span[0]):
        closed[last] = closed.get(last, "") + f"|{kind}]"
    begin = max(0, min((first for first, _, _ in spans), default=0) - AROUND) if len(tokens) > 4 * AROUND else 0
    end = min(len(tokens), begin + MOST)
    pieces = [f"{'[' * opened.get(n, 0)}{tokens[n]}{closed.get(n, '')}" for n in range(begin, end)]
    unit = "word" if any(len(token) > 1 for token in tokens) else "character"
    text = cut(join_tokens(pieces, unit)[0], 2 * MOST)
    return ("… " if begin else "") + text + (" …" if end < len(tokens) else "")
