"""Shapes of JSON: each is read exactly, checked against what was written, or refused in one line that names the option
that decides."""

import json
import tempfile
from pathlib import Path

import pytest
from conftest import TINY, read_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from config import Config
from data_process import DataConfig, prepare, process
from engine.errors import UserError
from engine.task.words import place_tokens
from main import main
from preprocess.readers.by_shape import find_reading
from preprocess.readers.conversion import Conversion
from preprocess.readers.inline import inline_syntax, without_marks
from preprocess.readers.options import ReadOptions
from preprocess.readers.shapes import SHAPES, Shape, Spans
from preprocess.readers.sources import read_texts

NAMES = ["Ida", "Omar", "Lena", "Tomas", "Ruth", "Ivan"]
TOWNS = ["Turku", "Porto", "New Delhi", "Graz", "San Jose", "Lyon"]
MARKED = []  # (text, spans of characters)
for _n in range(24):
    _name, _town = NAMES[_n % 6], TOWNS[(_n * 5 + _n // 6) % 6]
    _text = f"{_name} Berg sails to {_town}" + (" ." if _n % 3 else "")
    _end = _text.index(_town)
    MARKED.append((_text, [(0, len(_name) + 5, "who"), (_end, _end + len(_town), "where")]))
MARKED += [(f"it is {_word} .", []) for _word in ("late", "cold", "early")]
WORDS = []  # (tokens, spans of tokens with exclusive ends)
for _text, _spans in MARKED:
    _tokens = _text.split()
    _offsets = place_tokens(_text, _tokens)
    _starts, _ends = ([place[side] for place in _offsets] for side in (0, 1))
    WORDS.append((_tokens, [(_starts.index(a), _ends.index(b) + 1, label) for a, b, label in _spans]))
INTENTS = ["travel" if spans else "talk" for _, spans in MARKED]
REVIEWS = [
    (f"the {noun} was {word} again, number {n}", mood)
    for n, (noun, word, mood) in enumerate(
        [("tea", "cold", "bad"), ("room", "bright", "good"), ("bus", "late", "bad"), ("view", "wide", "good")] * 6
    )
]


def dicts(start="start", end="end", label="label", last=0, surface=""):
    """Spans of characters under these keys."""
    return [
        [{start: a, end: b - last, label: c} | ({surface: text[a:b]} if surface else {}) for a, b, c in spans]
        for text, spans in MARKED
    ]


def with_texts(key, spans, **more):
    return [{"text": text, key: found, **more} for (text, _), found in zip(MARKED, spans)]


def with_intents(rows, key="intent"):
    return [row | {key: intent} for row, intent in zip(rows, INTENTS)]


def over_tokens(key, form, tokens="tokens"):
    return [{tokens: words, key: [form(*span) for span in spans]} for words, spans in WORDS]


def marked_as(form):
    """The texts with their entities marked in them."""
    rows = []
    for text, spans in MARKED:
        for a, b, label in reversed(spans):
            text = text[:a] + form.format(text=text[a:b], label=label) + text[b:]
        rows.append(text)
    return rows


def pieces(text, spans, key="entity"):
    found, end = [], 0
    for a, b, label in spans:
        found += [{"text": text[end:a]}] if a > end else []
        found.append({"text": text[a:b], key: label})
        end = b
    return [*found, {"text": text[end:]}] if text[end:] else found


MASSIVE = [
    {"id": str(n), "partition": ["train", "dev", "test"][n % 3], "utt": text, "annot_utt": marks, "scenario": "x"}
    for n, ((text, _), marks) in enumerate(zip(MARKED, marked_as("[{label} : {text}]")))
]
TASK_OF_SHAPE = {  # name: (content of the file, as JSON or JSONL; the task of the spans; whether there are intents)
    "SpERT": (over_tokens("entities", lambda a, b, c: {"type": c, "start": a, "end": b}), "entities", False),
    "SpERT, inclusive": (
        over_tokens("entities", lambda a, b, c: {"type": c, "start": a, "end": b - 1}),
        "entities",
        False,
    ),
    "W2NER": (over_tokens("ner", lambda a, b, c: {"index": [*range(a, b)], "type": c}, "sentence"), "ner", False),
    "GLiNER": (over_tokens("ner", lambda a, b, c: [a, b - 1, c], "tokenized_text"), "ner", False),
    "lists, inclusive": (over_tokens("ner", lambda a, b, c: [a, b - 1, c]), "ner", False),
    "lists, exclusive": (over_tokens("spans", lambda a, b, c: [a, b, c]), "spans", False),
    "our processed folder": (
        [
            {"id": str(n), "text": text, "spans": [[a, b - 1, c] for a, b, c in spans], "tokens": words}
            for n, ((text, _), (words, spans)) in enumerate(zip(MARKED, WORDS))
        ],
        "spans",
        False,
    ),
    "span": (
        with_texts("entities", [[{"name": "", "span": [a, b], "type": c} for a, b, c in s] for _, s in MARKED]),
        "entities",
        False,
    ),
    "position": (
        with_texts("entities", [[{"pos": [a, b], "type": c} for a, b, c in s] for _, s in MARKED]),
        "entities",
        False,
    ),
    "NLU++": (
        [
            {"text": t, "intents": [i]}
            | ({"slots": {c: {"text": t[a:b], "span": [a, b]} for a, b, c in s}} if s else {})
            for (t, s), i in zip(MARKED, INTENTS)
        ],
        "slots",
        ["intents"],
    ),
    "valueSpan": (
        [
            {
                "userInput": {"text": t},
                "labels": [{"slot": c, "valueSpan": {"startIndex": a, "endIndex": b}} for a, b, c in s],
            }
            for t, s in MARKED
        ],
        "labels",
        False,
    ),
    "valueSpan without zeros": (
        [
            {"userInput": {"text": t}}
            | (
                {
                    "labels": [
                        {"slot": c, "valueSpan": {"startIndex": a, "endIndex": b} if a else {"endIndex": b}}
                        for a, b, c in s
                    ]
                }
                if s
                else {}
            )
            for t, s in MARKED
        ],
        "labels",
        False,
    ),
    "spaCy": ([[t, {"entities": s}] for t, s in MARKED], "entities", False),
    "spaCy's annotator": (
        {"classes": ["who"], "annotations": [None, *([t, {"entities": s}] for t, s in MARKED)]},
        "entities",
        False,
    ),
    "Dataturks": (
        [
            {
                "content": t,
                "annotation": [{"label": [c], "points": [{"start": a, "end": b - 1, "text": t[a:b]}]} for a, b, c in s],
                "extras": None,
            }
            for t, s in MARKED
        ],
        "annotation",
        False,
    ),
    "Vertex": (
        [
            {
                "textContent": t,
                "textSegmentAnnotations": [{"startOffset": a, "endOffset": b, "displayName": c} for a, b, c in s],
            }
            for t, s in MARKED
        ],
        "textSegmentAnnotations",
        False,
    ),
    "columns of spans": (
        with_texts(
            "entities",
            [dict(zip(("start", "end", "label"), map(list, zip(*s) if s else ([], [], [])))) for _, s in MARKED],
        ),
        "entities",
        False,
    ),
    "CCKS": (
        [
            {
                "originalText": t,
                "entities": [{"label_type": c, "start_pos": a, "end_pos": b, "overlap": 0} for a, b, c in s],
            }
            for t, s in MARKED
        ],
        "entities",
        False,
    ),
    "token objects": (
        over_tokens("entities", lambda a, b, c: {"label": c, "start": a, "end": b - 1}),
        "entities",
        False,
    ),
    "another key": (over_tokens("found", lambda a, b, c: [a, b, c]), "found", {"label_column": "found"}),
    "names and types": (
        with_texts("entities", [[{"name": t[a:b], "type": c} for a, b, c in s] for t, s in MARKED]),
        "entities",
        False,
    ),
    "DyGIE": (
        [
            {
                "doc_key": "x",
                "sentences": [words for words, _ in WORDS],
                "ner": [
                    [
                        [sum(len(w) for w, _ in WORDS[:n]) + a, sum(len(w) for w, _ in WORDS[:n]) + b - 1, c]
                        for a, b, c in s
                    ]
                    for n, (_, s) in enumerate(WORDS)
                ],
                "relations": [[] for _ in WORDS],
            }
        ],
        "ner",
        False,
    ),
    "start_char": (with_texts("spans", dicts("start_char", "end_char", "type")), "spans", False),
    "start_offset": (with_texts("entities", dicts("start_offset", "end_offset")), "entities", False),
    "ranges by label": (with_texts("entities", [{c: [[a, b]] for a, b, c in s} for _, s in MARKED]), "entities", False),
    "offset and length": (
        with_texts("entities", [[{"offset": a, "length": b - a, "type": c} for a, b, c in s] for _, s in MARKED]),
        "entities",
        False,
    ),
    "BigBio": (
        with_texts("entities", [[{"type": c, "offsets": [[a, b]], "id": "x"} for a, b, c in s] for _, s in MARKED]),
        "entities",
        False,
    ),
    "Rasa": (
        {
            "rasa_nlu_data": {
                "regex_features": [{"name": "a", "pattern": "b"}],
                "common_examples": with_intents(
                    with_texts(
                        "entities", [[e | {"value": "a synonym"} for e in some] for some in dicts(label="entity")]
                    )
                ),
            }
        },
        "entities",
        True,
    ),
    "LUIS": (
        {
            "intents": [{"name": "travel"}],
            "entities": [{"name": "who"}],
            "utterances": with_intents(with_texts("entities", dicts("startPos", "endPos", "entity", last=1))),
        },
        "entities",
        True,
    ),
    "Azure": (
        {
            "assets": {
                "intents": [{"category": "travel"}],
                "utterances": with_intents(
                    with_texts(
                        "entities",
                        [[{"category": c, "offset": a, "length": b - a} for a, b, c in s] for _, s in MARKED],
                    )
                ),
            }
        },
        "entities",
        True,
    ),
    "Snips": (
        {"travel": [{"data": pieces(*m)} for m in MARKED[:-3]], "talk": [{"data": pieces(*m)} for m in MARKED[-3:]]},
        "slots",
        True,
    ),
    "Snips's own": (
        {
            "language": "en",
            "entities": {},
            "intents": {
                "travel": {"utterances": [{"data": pieces(*m, key="slot_name")} for m in MARKED[:-3]]},
                "talk": {"utterances": [{"data": pieces(*m)} for m in MARKED[-3:]]},
            },
        },
        "slots",
        True,
    ),
    "SMP": (
        with_intents(
            [{"text": t, "domain": "de"[len(t) % 2], "slots": {c: t[a:b] for a, b, c in s}} for t, s in MARKED]
        ),
        "slots",
        True,
    ),
    "slots and values": (
        with_intents([{"text": t, "slots": [{"slot": c, "value": t[a:b]} for a, b, c in s]} for t, s in MARKED]),
        "slots",
        True,
    ),
    "MASSIVE": (with_intents(MASSIVE), "slots", True),
    "doccano": ([{"text": t, "entities": s, "cats": [i]} for (t, s), i in zip(MARKED, INTENTS)], "entities", ["cats"]),
    "marked [](.)": ([{"text": t} for t in marked_as("[{text}]({label})")], "slots", False),
    "marked [ : ]": ([{"text": t} for t in marked_as("[{label} : {text}]")], "slots", False),
    "marked {{:}}": (with_intents([{"text": t} for t in marked_as("{{{{{label}:{text}}}}}")]), "slots", True),
}


def write(folder, content, name="data.json"):
    folder.mkdir(exist_ok=True)
    rows = content if isinstance(content, list) and name.endswith("l") else None
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if rows else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def read(path, **options):
    """{text: row} of what is written for a file, and the tasks."""
    with_part, tasks, _ = prepare(DataConfig(input=str(path), output_dir="unused", **options))
    return {text_of(row): row | {"part": part} for part, rows in with_part.items() for row in rows}, tasks


def text_of(row):
    return row["text"] if "text" in row else " ".join(row["tokens"])


def entities_of(row, task):
    """The entities of a row as (surface, label), with the words between them shown by their order."""
    found = row[task]
    if found and isinstance(found[0], str):
        found = [[first, last, label] for label, first, last in get_entities(found)]
    return [(" ".join(row["tokens"][a : b + 1]), label) for a, b, label in found if not isinstance(a, str)]


def wanted_entities():
    return {text: [(text[a:b], label) for a, b, label in spans] for text, spans in MARKED}


@pytest.mark.parametrize("lines", [False, True], ids=["json", "jsonl"])
@pytest.mark.parametrize("name", TASK_OF_SHAPE)
def test_spans_of_each_shape_are_read_as_they_are(name, lines, tmp_path):
    content, task, intents = TASK_OF_SHAPE[name]
    path = write(tmp_path, content, "data.jsonl" if lines and isinstance(content, list) else "data.json")
    rows, tasks = read(path, **(intents if isinstance(intents, dict) else {}))
    assert {text: entities_of(row, task) for text, row in rows.items()} == wanted_entities()
    assert tasks[task].kind == "tagging"
    if intents and not isinstance(intents, dict):
        of_intent = intents[0] if isinstance(intents, list) else "intent"
        form = (lambda label: [label]) if isinstance(intents, list) else str
        assert [rows[text][of_intent] for text, _ in MARKED] == list(map(form, INTENTS))
    if name == "MASSIVE":
        assert [rows[text]["part"] for text, _ in MARKED] == [row["partition"] for row in MASSIVE]


def test_tokens_stay_as_they_are_and_nested_spans_are_kept(tmp_path):
    rows = over_tokens("entities", lambda a, b, c: {"type": c, "start": a, "end": b})
    rows[0]["entities"].append({"type": "all", "start": 0, "end": 3})
    found, tasks = read(write(tmp_path, rows))
    assert tasks["entities"].kind == "spans"
    assert found[MARKED[0][0]]["entities"] == [[0, 1, "who"], [0, 2, "all"], [4, 4, "where"]]
    assert sorted(row["tokens"] for row in found.values()) == sorted(words for words, _ in WORDS)
    found, _ = read(write(tmp_path, rows), label_type="entities=tagging")
    assert entities_of(found[MARKED[0][0]], "entities") == [("Ida Berg sails", "all"), ("Turku", "where")]


def test_our_own_folder_comes_back_to_the_same_spans_and_texts(tmp_path):
    nested = [{"text": t, "spans": [*s, *((a, b, "x") for a, b, _ in s[:1])]} for t, s in MARKED]
    first, again = tmp_path / "first", tmp_path / "again"
    process(DataConfig(input=str(write(tmp_path / "raw", nested)), output_dir=str(first)))
    (first / "labels.json").unlink()
    process(DataConfig(input=str(first), output_dir=str(again), label_type="spans=spans"))
    for part in ("train", "dev", "test"):
        rows, back = (
            [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]
            for folder in (first, again)
        )
        assert rows == back


def test_discontinuous_spans_are_left_out_and_counted(tmp_path, capsys):
    rows = over_tokens("ner", lambda a, b, c: {"index": [*range(a, b)], "type": c}, "sentence")
    rows[0]["ner"].append({"index": [0, 2], "type": "who"})
    rows[5]["ner"].append({"index": [1, 3], "type": "who"})
    found, _ = read(write(tmp_path, rows))
    assert {text: entities_of(row, "ner") for text, row in found.items()} == wanted_entities()
    assert "2 discontinuous spans, which are left out" in capsys.readouterr().out


def test_a_value_that_occurs_twice_is_no_label_and_is_counted(tmp_path, capsys):
    rows = with_intents([{"text": t, "slots": {c: t[a:b] for a, b, c in s}} for t, s in MARKED])
    rows[2] = {"text": "to Graz from Graz", "slots": {"where": "Graz"}, "intent": "travel"}
    found, _ = read(write(tmp_path, rows))
    assert found["to Graz from Graz"]["slots"] is None
    assert "1 texts with a value that does not occur once" in capsys.readouterr().out


REFUSED = {  # name: (rows, words of the message, an option that helps, its value)
    "open ends": (
        [{"tokens": words, "ner": [[0, 1, "who"]]} for words, spans in WORDS if spans],
        "--span_end inclusive or --span_end exclusive",
        {"span_end": "inclusive"},
    ),
    "UTF-16": (
        [{"text": f"🚀 {t}", "label": [[a + 3, b + 3, c] for a, b, c in s]} for t, s in MARKED],
        "--offsets utf16",
        {"offsets": "utf16"},
    ),
    "UTF-16 with surfaces": (
        [
            {
                "text": f"🎈🎈 {t}",
                "label": [{"start": a + 5, "end": b + 5, "label": c, "text": t[a:b]} for a, b, c in s],
            }
            for t, s in MARKED
        ],
        "--offsets utf16",
        {"offsets": "utf16"},
    ),
    "inclusive ends": (with_texts("entities", dicts(last=1)), "--span_end inclusive", {"span_end": "inclusive"}),
    "a wrong surface": (
        with_texts("entities", [[{"start": 0, "end": 3, "label": "who", "text": "Nobody"}] for _ in MARKED]),
        "correct one of them",
        {},
    ),
    "several lists": (
        {"a": [{"text": t, "label": m} for t, m in REVIEWS], "b": [{"text": t, "label": m} for t, m in REVIEWS]},
        "--rows_key a or b",
        {"rows_key": "b"},
    ),
    "several values": (
        [{"text": t, "labels": {"score": len(t) + 0.5, "raw": 2.25}} for t, _ in REVIEWS],
        "--label_column labels.score",
        {"label_column": "labels.score"},
    ),
    "parts and more": (
        {"train": [{"text": t, "label": m} for t, m in REVIEWS], "more": [{"text": "a", "label": "b"}]},
        "--rows_key",
        {"rows_key": "train"},
    ),
    "pairs that could be either": ([[f"word {n}", f"word {n}"] for n in range(9)], "--text_column", {}),
    "free answers": (
        [{"instruction": f"write {n}", "input": "", "output": f"a long tale about {n}"} for n in range(20)],
        "text generation",
        {},
    ),
    "several turns": (
        [{"messages": [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]}] * 5,
        "several turns",
        {},
    ),
    "events": ([{"text": "a", "event_list": [{"event_type": "x"}]}] * 5, "events with triggers", {}),
    "questions": ([{"question": "a", "context": "b", "answers": ["b"]}] * 5, "questions with answers", {}),
    "relations": ([{"text": "a", "h": 1, "t": 2, "relation": "r"}] * 5, "relations between two", {}),
    "an unknown shape": ([{"text": t, "label": m} for t, m in REVIEWS], "--shape 'x' is not one of", {"shape": "auto"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_doubtful_objects_are_refused_with_the_option_that_decides(name, tmp_path):
    content, words, helps = REFUSED[name]
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read(path, **({"shape": "x"} if name == "an unknown shape" else {}))
    message = str(caught.value)
    assert words in message and "\n" not in message and message.count(str(path)) <= 1, message
    if helps:
        assert read(path, **helps)[0]


def test_offsets_in_utf16_and_inclusive_ends_are_converted(tmp_path):
    for name, behind in (("UTF-16", "🚀 "), ("UTF-16 with surfaces", "🎈🎈 ")):
        rows, _ = read(write(tmp_path, REFUSED[name][0]), offsets="utf16")
        assert {t: entities_of(row, "label") for t, row in rows.items()} == {
            behind + t: found for t, found in wanted_entities().items()
        }
    rows, _ = read(write(tmp_path, REFUSED["inclusive ends"][0]), span_end="inclusive")
    assert {text: entities_of(row, "entities") for text, row in rows.items()} == wanted_entities()


LABELLED = [{"text": text, "label": mood} for text, mood in REVIEWS]
THIRDS = {"train": REVIEWS[:12], "dev": REVIEWS[12:18], "test": REVIEWS[18:]}
CLASSES = {  # name: (content, options)
    "parts": ({part: [{"text": t, "label": m} for t, m in some] for part, some in THIRDS.items()}, {}),
    "parts of pairs": (THIRDS, {}),
    "CLINC150": (
        {"train": THIRDS["train"][:8], "val": THIRDS["dev"], "test": THIRDS["test"], "oos_train": THIRDS["train"][8:]},
        {},
    ),
    "parts in objects by number": (
        {part: {str(n): {"text": t, "label": m} for n, (t, m) in enumerate(some)} for part, some in THIRDS.items()},
        {},
    ),
    "pairs": (REVIEWS, {}),
    "pairs, label first": ([(m, t) for t, m in REVIEWS], {}),
    "pairs by number": (REVIEWS, {"text_column": "0", "label_column": "1"}),
    "pandas, records": (LABELLED, {}),
    "pandas, columns": ({key: {str(n): row[key] for n, row in enumerate(LABELLED)} for key in ("text", "label")}, {}),
    "pandas, index": ({str(n): row for n, row in enumerate(LABELLED)}, {}),
    "pandas, split": ({"columns": ["text", "label"], "index": [*range(24)], "data": REVIEWS}, {}),
    "pandas, table": ({"schema": {"fields": [{"name": "text"}]}, "data": LABELLED}, {}),
    "lists by column": ({"text": [t for t, _ in REVIEWS], "label": [m for _, m in REVIEWS]}, {}),
    "lists called texts and labels": ({"texts": [t for t, _ in REVIEWS], "labels": [m for _, m in REVIEWS]}, {}),
    "a setting beside the rows": ({"data": LABELLED, "eval": {"metric": "f1"}}, {}),
    "instructions with a label": ([{"query": t, "response": f"a free answer {t}", "label": m} for t, m in REVIEWS], {}),
    "a list of texts per class": ({mood: [t for t, m in REVIEWS if m == mood] for mood in ("bad", "good")}, {}),
    "columns under other names": (
        {
            key: {str(n): row[old] for n, row in enumerate(LABELLED)}
            for key, old in (("said", "text"), ("mood", "label"))
        },
        {"text_column": "said", "label_column": "mood"},
    ),
    "parts below": ({"version": 1, "data": {part: LABELLED[n::3] for n, part in enumerate(THIRDS)}}, {}),
    "a part below a key": (
        {part: {"data": [{"text": t, "label": m} for t, m in some]} for part, some in THIRDS.items()},
        {},
    ),
    "a list far below": ({"meta": {"by": "me"}, "result": {"items": LABELLED}}, {}),
    "instructions": ([{"instruction": "Which?", "input": t, "output": m} for t, m in REVIEWS], {}),
    "prompts": ([{"prompt": t, "completion": m} for t, m in REVIEWS], {}),
    "messages": (
        [
            {
                "messages": [
                    {"role": "system", "content": "x"},
                    {"role": "user", "content": t},
                    {"role": "assistant", "content": m},
                ]
            }
            for t, m in REVIEWS
        ],
        {},
    ),
    "conversations": (
        [{"conversations": [{"from": "human", "value": t}, {"from": "gpt", "value": m}]} for t, m in REVIEWS],
        {},
    ),
    "one key": ([{"text": t, "label": {"mood": m}} for t, m in REVIEWS], {}),
    "a path": (
        [{"a": {"b": t}, "labels": {"m": m, "n": 1}} for t, m in REVIEWS],
        {"text_column": "a.b", "label_column": "labels.m"},
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_texts_with_classes_of_each_layout(name, tmp_path):
    content, options = CLASSES[name]
    rows, tasks = read(write(tmp_path, content), **options)
    (task,) = tasks
    assert {text: row[task] for text, row in rows.items()} == dict(REVIEWS)
    if "train" in content:
        assert {part: [t for t, row in rows.items() if row["part"] == part] for part in THIRDS} == {
            part: [t for t, _ in some] for part, some in THIRDS.items()
        }


def test_intents_with_patterns(tmp_path):
    content = {
        "intents": [
            {"tag": mood, "patterns": [t for t, m in REVIEWS if m == mood], "responses": ["ok"]}
            for mood in ("bad", "good")
        ]
    }
    rows, _ = read(write(tmp_path, content))
    assert {text: row["intent"] for text, row in rows.items()} == dict(REVIEWS)


def test_intents_joined_by_a_sign_are_a_set(tmp_path):
    rows = [
        {"tokens": words, "slots": ["O"] * len(words), "intent": "go#say" if n % 2 else "go"}
        for n, (words, _) in enumerate(WORDS)
    ]
    rows[0]["slots"][0], rows[1]["intent"] = "B-who", "say"
    found, tasks = read(write(tmp_path, rows, "a.jsonl"))
    assert tasks["intent"].kind == "multilabel" and [*tasks["intent"].labels] == ["go", "say"]
    assert found[MARKED[3][0]]["intent"] == ["go", "say"] and found[MARKED[1][0]]["intent"] == ["say"]


def test_names_with_0_and_1_are_a_set(tmp_path):
    rows = [{"text": t, "label": {"bad": int(m == "bad"), "long": int(len(t) > 30)}} for t, m in REVIEWS]
    found, tasks = read(write(tmp_path, rows))
    assert tasks["label"].kind == "multilabel"
    assert all(("bad" in found[t]["label"]) == (m == "bad") for t, m in REVIEWS)


@pytest.mark.parametrize("column", ["partition", "Split", "set", "subset"])
def test_a_column_of_parts_is_found_by_its_name_and_values(column, tmp_path):
    rows = [{"text": t, "label": m, column: ["train", "validation", "test"][n % 3]} for n, (t, m) in enumerate(REVIEWS)]
    found, _ = read(write(tmp_path, rows))
    assert [found[t]["part"] for t, _ in REVIEWS] == ["train", "dev", "test"] * 8
    for row in rows:
        row["fold of it"] = row.pop(column)
    path = write(tmp_path, rows)
    found, _ = read(path, split_column="fold of it")
    assert [found[t]["part"] for t, _ in REVIEWS] == ["train", "dev", "test"] * 8
    with pytest.raises(UserError, match="--split_column"):
        read(path, split_column="no such")


def test_a_column_called_set_without_parts_is_no_part(tmp_path):
    rows = [{"text": t, "label": m, "set": "tableware"} for t, m in REVIEWS]
    assert {row["part"] for row in read(write(tmp_path, rows))[0].values()} == {"train", "dev", "test"}


RASA_MD = (
    "## intent:travel\n- [Ida](who) sails to [Graz](where)\n- to [San Jose](where:san_jose)\n\n## synonym:a\n- b\n"
)
RASA_MD += '## intent:talk\n- good day\n- so [late]{"entity": "when", "value": "x"}\n'
RASA_YML = 'version: "3.1"\nnlu:\n- intent: travel\n  examples: |\n    - [Ida](who) sails to [Graz](where)\n'
RASA_YML += "    # a note\n    - to [San Jose](where:san_jose)\n- synonym: a\n  examples: |\n    - b\n- intent: talk\n"
RASA_YML += '  examples: |\n    - good day\n    - so [late]{"entity": "when"}\n'


@pytest.mark.parametrize(("name", "text"), [("nlu.md", RASA_MD), ("nlu.yml", RASA_YML)])
def test_rasa_s_marked_examples(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    rows, _ = read(tmp_path / name)
    assert {text: (row["intent"], entities_of(row, "slots")) for text, row in rows.items()} == {
        "Ida sails to Graz": ("travel", [("Ida", "who"), ("Graz", "where")]),
        "to San Jose": ("travel", [("San Jose", "where")]),
        "good day": ("talk", []),
        "so late": ("talk", [("late", "when")]),
    }


def test_links_and_other_brackets_are_no_entities():
    assert inline_syntax([f"see [page {n}](link{n}) and (this)" for n in range(20)]) is None
    assert inline_syntax([f"see [page {n}](https://a.org/{n})" for n in range(20)]) is None
    assert inline_syntax(["[Speaker: Ann] hello"] * 20) is None
    assert inline_syntax(["at [nine](time)"] * 4 + ["a [b] c [d] e [f]"] * 4) is None
    with pytest.raises(UserError, match=r"row 1.*is left"):
        without_marks("at [nine [am](time)", "[nine am](time)", "row 1")


def test_a_table_with_marked_texts(tmp_path):
    rows = [f'"{text}",{intent}' for text, intent in zip(marked_as("[{text}]({label})"), INTENTS)]
    (tmp_path / "a.csv").write_text("text,intent\n" + "\n".join(rows) + "\n")
    found, _ = read(tmp_path / "a.csv")
    assert {text: entities_of(row, "slots") for text, row in found.items()} == wanted_entities()
    raw, tasks = read(tmp_path / "a.csv", shape="none")
    assert set(raw) == set(marked_as("[{text}]({label})")) and list(tasks) == ["intent"]


def test_two_shapes_that_fit_equally_well_are_refused(monkeypatch):
    rows = [{"text": t, "x": [{"a": 0, "b": 3, "c": 5, "d": "who"}]} for t, s in MARKED if s]
    more = [
        Shape("first", "text", spans=Spans("x", "a", "b", "d")),
        Shape("second", "text", spans=Spans("x", "a", "c", "d")),
    ]
    monkeypatch.setattr("preprocess.readers.shapes.SHAPES", [*SHAPES, *more])
    with pytest.raises(UserError, match=r"'first' and 'second' equally well.*--shape"):
        find_reading("f", rows, ReadOptions(labelled=True))
    assert find_reading("f", rows, ReadOptions(labelled=True, shape="second")).shape.name == "second"


def test_plain_objects_go_through_no_step():
    assert not Conversion.of("f", [("row 1", row) for row in LABELLED], ReadOptions(labelled=True), ()).steps
    assert not Conversion.of(
        "f", [("row 1", row) for row in with_texts("entities", dicts())], ReadOptions(labelled=True), ()
    ).steps


def test_a_later_row_that_does_not_fit_is_named(tmp_path):
    rows = over_tokens("entities", lambda a, b, c: {"type": c, "start": a, "end": b}) * 20
    rows.append({"tokens": ["a", "b"], "entities": [{"type": "who", "start": 1, "end": 7}]})
    with pytest.raises(UserError, match=r"item 541: the span 1 to 7 .* outside the 2 tokens"):
        read(write(tmp_path, rows))
    rows[-1] = {"tokens": ["a", "b"], "entities": [{"type": "who"}]}
    with pytest.raises(UserError, match=r"item 541: a span of 'entities' needs"):
        read(write(tmp_path, rows))


def test_nothing_is_written_when_offsets_are_doubtful(tmp_path):
    path = write(tmp_path / "raw", REFUSED["UTF-16"][0])
    with pytest.raises(UserError, match="--offsets utf16"):
        process(DataConfig(input=str(path), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    process(DataConfig(input=str(path), output_dir=str(tmp_path / "out"), offsets="utf16"))
    assert read_json(tmp_path / "out/labels.json")


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([{"userInput": {"text": t}} for t, _ in MARKED], {}),
        ([{"data": pieces(*m)} for m in MARKED], {}),
        ([{"utt": t, "annot_utt": m} for (t, _), m in zip(MARKED, marked_as("[{label} : {text}]"))], {}),
        ([{"a": {"b": t}} for t, _ in MARKED], {"text_column": "a.b"}),
        ([{"text": t, "context": "x", "slots": {}} for t, _ in MARKED], {}),
    ],
)
def test_texts_to_predict_on_go_through_the_same_shapes(rows, options, tmp_path):
    path = write(tmp_path, rows, "a.jsonl")
    assert [row["text"] for row in read_texts(path, ReadOptions(**options))] == [t for t, _ in MARKED]
    tokens = write(tmp_path, over_tokens("ner", lambda a, b, c: [a, b, c], "sentence"), "b.json")
    assert [row["tokens"] for row in read_texts(tokens, ReadOptions())] == [words for words, _ in WORDS]


@pytest.mark.parametrize("name", ["SpERT", "W2NER", "valueSpan", "Rasa", "Snips", "MASSIVE", "doccano", "spaCy"])
def test_shapes_train_and_predict(name, tmp_path):
    content, task, _ = TASK_OF_SHAPE[name]
    path = write(tmp_path, content)
    process(DataConfig(input=str(path), output_dir=str(tmp_path / "data")))
    run = dict(data_path=str(tmp_path / "data"), output_dir=str(tmp_path / "output"), model_version="run")
    output = tmp_path / "p.jsonl"
    main(Config(do_train=True, do_predict=True, predict_output=str(output), **run, **{**TINY, "epochs": 1}))
    gold = [json.loads(row) for row in (tmp_path / "data/test.jsonl").read_text().splitlines()]
    predicted = [json.loads(row) for row in output.read_text().splitlines()]
    assert [row["id"] for row in predicted] == [row["id"] for row in gold]
    for row, truth in zip(predicted, gold):
        assert len(row[f"{task}_tags"]) == len(truth["tokens"])
        assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row[task] or [])


# ---- any spans, in any shape, with noise: exact or refused ---------------------------------------------------------

LETTERS = st.sampled_from(["ida", "Graz", "è", "n", "x1", "北", "京", "🚢", "👍🏽", "نامه", "-", "दिल्ली"])


@st.composite
def sentences(draw):
    """[(tokens, spans of tokens with exclusive ends)]; spans do not overlap."""
    found = []
    for tokens in draw(st.lists(st.lists(LETTERS, min_size=1, max_size=9), min_size=8, max_size=14)):
        places = sorted(draw(st.sets(st.integers(0, len(tokens)), max_size=4)))
        labels = [draw(st.sampled_from(["who", "where"])) for _ in places[1::2]]
        found.append((tokens, [*zip(places[::2], places[1::2], labels)]))
    return found


def characters(tokens, spans):
    text, offsets = " ".join(tokens), place_tokens(" ".join(tokens), tokens)
    return text, [(offsets[a][0], offsets[b - 1][1], label) for a, b, label in spans]


def units(text, place):
    return len(text[:place].encode("utf-16-le")) // 2


FORMS = {  # name: an object of tokens and spans of them
    "SpERT": lambda w, s: {"tokens": w, "entities": [{"type": c, "start": a, "end": b} for a, b, c in s]},
    "objects": lambda w, s: {"tokens": w, "spans": [{"label": c, "start": a, "end": b} for a, b, c in s]},
    "objects, inclusive": lambda w, s: {
        "tokens": w,
        "spans": [{"label": c, "start": a, "end": b - 1} for a, b, c in s],
    },
    "lists": lambda w, s: {"tokens": w, "ner": [[a, b, c] for a, b, c in s]},
    "lists, inclusive": lambda w, s: {"tokens": w, "ner": [[a, b - 1, c] for a, b, c in s]},
    "W2NER": lambda w, s: {"sentence": w, "ner": [{"index": [*range(a, b)], "type": c} for a, b, c in s]},
}
OF_TEXT = {  # name: an object of text and spans of its characters
    "span": lambda t, s: {"text": t, "entities": [{"span": [a, b], "type": c} for a, b, c in s]},
    "start_char": lambda t, s: {"text": t, "spans": [{"start_char": a, "end_char": b, "label": c} for a, b, c in s]},
    "UTF-16 with surfaces": lambda t, s: {
        "text": t,
        "spans": [{"start": units(t, a), "end": units(t, b), "label": c, "text": t[a:b]} for a, b, c in s],
    },
    "spaCy": lambda t, s: [t, {"entities": [*s]}],
    "Rasa": lambda t, s: {
        "text": t,
        "intent": "ab"[len(t) % 2],
        "entities": [{"start": a, "end": b, "entity": c, "value": "x"} for a, b, c in s],
    },
    "pieces": lambda t, s: {"data": pieces(t, s), "intent": "ab"[len(t) % 2]},
}


def packed(entities):
    return sorted(("".join(surface.split()), label) for surface, label in entities)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(sentences(), st.sampled_from([*FORMS, *OF_TEXT]), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_any_spans_in_any_shape_are_exact_or_refused(rows, name, lines, crlf, mark, more):
    objects = []
    for number, (tokens, spans) in enumerate(rows):
        tokens = [f"{number}", *tokens]
        spans = [(a + 1, b + 1, label) for a, b, label in spans]
        row = FORMS[name](tokens, spans) if name in FORMS else OF_TEXT[name](*characters(tokens, spans))
        objects.append({"note": None, **row, "tags_of": ["x"]} if more and isinstance(row, dict) else row)
    text = "\n".join(map(json.dumps, objects)) + "\n\n" if lines else json.dumps(objects, indent=1, ensure_ascii=False)
    text = ("\ufeff" if mark else "") + (text.replace("\n", "\r\n") if crlf else text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl" if lines else "a.json")
        path.write_bytes(text.encode())
        try:
            found, tasks = read(path, accept="only_O")
        except UserError as error:
            assert "\n" not in str(error)
            return
    (task,) = (name for name, info in tasks.items() if info.kind in ("tagging", "spans"))
    by_number = {text.split(" ")[0]: row for text, row in found.items()}
    for number, (tokens, spans) in enumerate(rows):
        wanted = [("".join(tokens[a:b]), label) for a, b, label in spans]
        assert packed(entities_of(by_number[str(number)], task)) == packed(wanted), tokens
