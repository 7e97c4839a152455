"""Shapes of JSON: each is read exactly, or rejected with a one-line error that names the option that decides."""

import json

import pytest
from conftest import read_json
from seqeval.metrics.sequence_labeling import get_entities

from data_process import DataConfig, prepare, process
from engine.errors import UserError
from engine.task.signs import inline_syntax
from engine.task.words import place_tokens
from preprocess.readers.by_shape import find_reading
from preprocess.readers.conversion import Conversion
from preprocess.readers.inline import without_marks
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
    """Returns objects with spans of characters under these keys."""
    return [
        [{start: a, end: b - last, label: c} | ({surface: text[a:b]} if surface else {}) for a, b, c in spans]
        for text, spans in MARKED
    ]


def with_texts(key, spans, **more):
    return [{"text": text, key: found, **more} for (text, _), found in zip(MARKED, spans)]


def over_tokens(key, form, tokens="tokens"):
    return [{tokens: words, key: [form(*span) for span in spans]} for words, spans in WORDS]


def marked_as(form):
    """Returns the texts with marked entities."""
    rows = []
    for text, spans in MARKED:
        for a, b, label in reversed(spans):
            text = text[:a] + form.format(text=text[a:b], label=label) + text[b:]
        rows.append(text)
    return rows


def write(folder, content, name="data.json"):
    folder.mkdir(exist_ok=True)
    rows = content if isinstance(content, list) and name.endswith("l") else None
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if rows else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def read(path, **options):
    """Returns ({text: row}, tasks) of the processed folder of a file."""
    by_split, tasks, _ = prepare(DataConfig(input=str(path), output_dir="unused", **options))
    return {text_of(row): row | {"split": split} for split, rows in by_split.items() for row in rows}, tasks


def text_of(row):
    return row["text"] if "text" in row else " ".join(row["tokens"])


def entities_of(row, task):
    """Returns the entities of a row as (surface, label), in text order."""
    found = row[task]
    if found and isinstance(found[0], str):
        found = [[first, last, label] for label, first, last in get_entities(found)]
    return [(" ".join(row["tokens"][a : b + 1]), label) for a, b, label in found if not isinstance(a, str)]


def wanted_entities():
    return {text: [(text[a:b], label) for a, b, label in spans] for text, spans in MARKED}


def test_tokens_are_unchanged_and_nested_spans_are_retained(tmp_path):
    rows = over_tokens("entities", lambda a, b, c: {"type": c, "start": a, "end": b})
    rows[0]["entities"].append({"type": "all", "start": 0, "end": 3})
    found, tasks = read(write(tmp_path, rows))
    assert tasks["entities"].kind == "spans"
    assert found[MARKED[0][0]]["entities"] == [[0, 1, "who"], [0, 2, "all"], [4, 4, "where"]]
    assert sorted(row["tokens"] for row in found.values()) == sorted(words for words, _ in WORDS)
    found, _ = read(write(tmp_path, rows), label_type="entities=tagging")
    assert entities_of(found[MARKED[0][0]], "entities") == [("Ida Berg sails", "all"), ("Turku", "where")]


def test_a_processed_file_is_read_back_with_the_same_spans_and_texts(tmp_path):
    nested = [{"text": t, "spans": [*s, *((a, b, "x") for a, b, _ in s[:1])]} for t, s in MARKED]
    first, again = tmp_path / "first", tmp_path / "again"
    process(DataConfig(input=str(write(tmp_path / "raw", nested)), output_dir=str(first)))
    (first / "labels.json").unlink()
    process(DataConfig(input=str(first), output_dir=str(again), label_type="spans=spans"))
    for split in ("train", "dev", "test"):
        rows, back = (
            [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
            for folder in (first, again)
        )
        assert rows == back


def test_discontinuous_spans_are_skipped_and_counted(tmp_path, capsys):
    rows = over_tokens("ner", lambda a, b, c: {"index": [*range(a, b)], "type": c}, "sentence")
    rows[0]["ner"].append({"index": [0, 2], "type": "who"})
    rows[5]["ner"].append({"index": [1, 3], "type": "who"})
    found, _ = read(write(tmp_path, rows))
    assert {text: entities_of(row, "ner") for text, row in found.items()} == wanted_entities()
    assert "discontinuous spans skipped: 2" in capsys.readouterr().out


def test_a_text_with_a_repeated_value_gets_no_label_and_is_counted(tmp_path, capsys):
    rows = [{"text": t, "slots": {c: t[a:b] for a, b, c in s}, "intent": i} for (t, s), i in zip(MARKED, INTENTS)]
    rows[2] = {"text": "to Graz from Graz", "slots": {"where": "Graz"}, "intent": "travel"}
    found, _ = read(write(tmp_path, rows))
    assert found["to Graz from Graz"]["slots"] is None
    assert "texts without slots, because a value does not occur exactly once: 1" in capsys.readouterr().out


REJECTED = {  # name: (rows, words of the message, an option that helps, its value)
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
    "emoji before Chinese": (
        [
            {"text": f"🎈第{n}天去{c}玩", "label": [[n // 10 + 6, n // 10 + 8, "where"]]}
            for n, c in enumerate(["上海", "南京"] * 9)
        ],
        "--offsets utf16 if an emoji counts as two",
        {"offsets": "utf16"},
    ),
    "bytes": (
        [{"text": f"é {t} again", "label": [[a + 3, b + 3, c] for a, b, c in s]} for t, s in MARKED],
        "spans start or end inside a word",
        {"offsets": "characters"},
    ),
    "inclusive ends": (with_texts("entities", dicts(last=1)), "--span_end inclusive", {"span_end": "inclusive"}),
    "a wrong surface": (
        with_texts("entities", [[{"start": 0, "end": 3, "label": "who", "text": "Nobody"}] for _ in MARKED]),
        "correct one of them",
        {},
    ),
    "a number for spans": (
        [{"text": t, "entities": 5 if n == 20 else s} for n, ((t, _), s) in enumerate(zip(MARKED, dicts()))],
        "item 21: expected a list of spans",
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
    "splits and more": (
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
        "multi-turn",
        {},
    ),
    "events": ([{"text": "a", "event_list": [{"event_type": "x"}]}] * 5, "events in an unknown form", {}),
    "questions": ([{"question": "a", "context": "b", "answers": ["b"]}] * 5, "questions with answers", {}),
    "relations": ([{"text": "a", "h": 1, "t": 2, "relation": "r"}] * 5, "relations between two", {}),
    "an unknown shape": ([{"text": t, "label": m} for t, m in REVIEWS], "--shape 'x' is not one of", {"shape": "auto"}),
}


@pytest.mark.parametrize("name", REJECTED)
def test_ambiguous_objects_raise_an_error_with_the_option_to_add(name, tmp_path):
    content, words, helps = REJECTED[name]
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read(path, **({"shape": "x"} if name == "an unknown shape" else {}))
    message = str(caught.value)
    assert words in message and "\n" not in message and message.count(str(path)) <= 1, message
    if helps:
        assert read(path, **helps)[0]


def test_offsets_in_utf16_and_inclusive_ends_are_converted(tmp_path):
    for name, behind in (("UTF-16", "🚀 "), ("UTF-16 with surfaces", "🎈🎈 ")):
        rows, _ = read(write(tmp_path, REJECTED[name][0]), offsets="utf16")
        assert {t: entities_of(row, "label") for t, row in rows.items()} == {
            behind + t: found for t, found in wanted_entities().items()
        }
    rows, _ = read(write(tmp_path, REJECTED["inclusive ends"][0]), span_end="inclusive")
    assert {text: entities_of(row, "entities") for text, row in rows.items()} == wanted_entities()


LABELLED = [{"text": text, "label": mood} for text, mood in REVIEWS]


@pytest.mark.parametrize("form", [str, lambda text: {"text": text}], ids=["texts", "Watson"])
def test_intents_with_patterns(form, tmp_path):
    content = {
        "intents": [
            {"tag": mood, "patterns": [form(t) for t, m in REVIEWS if m == mood], "responses": ["ok"]}
            for mood in ("bad", "good")
        ]
    }
    rows, _ = read(write(tmp_path, content))
    assert {text: row["intent"] for text, row in rows.items()} == dict(REVIEWS)


@pytest.mark.parametrize("column", ["partition", "Split", "set", "subset", "used for"])
def test_a_split_column_is_found_by_its_name_and_values(column, tmp_path):
    rows = [{"text": t, "label": m, column: ["train", "validation", "test"][n % 3]} for n, (t, m) in enumerate(REVIEWS)]
    found, _ = read(write(tmp_path, rows))
    assert [found[t]["split"] for t, _ in REVIEWS] == ["train", "dev", "test"] * 8
    for row in rows:
        row["fold of it"] = row.pop(column)
    path = write(tmp_path, rows)
    found, _ = read(path, split_column="fold of it")
    assert [found[t]["split"] for t, _ in REVIEWS] == ["train", "dev", "test"] * 8
    with pytest.raises(UserError, match="--split_column"):
        read(path, split_column="no such")


def test_a_column_called_set_without_split_names_is_not_a_split_column(tmp_path):
    rows = [{"text": t, "label": m, "set": "tableware"} for t, m in REVIEWS]
    assert {row["split"] for row in read(write(tmp_path, rows))[0].values()} == {"train", "dev", "test"}


RASA_MD = (
    "## intent:travel\n- [Ida](who) sails to [Graz](where)\n- to [San Jose](where:san_jose)\n\n## synonym:a\n- b\n"
)
RASA_MD += '## intent:talk\n- good day\n- so [late]{"entity": "when", "value": "x"}\n'
RASA_YML = 'version: "3.1"\nnlu:\n- intent: travel\n  examples: |\n    - [Ida](who) sails to [Graz](where)\n'
RASA_YML += "    # a note\n    - to [San Jose](where:san_jose)\n- synonym: a\n  examples: |\n    - b\n- intent: talk\n"
RASA_YML += '  examples: |\n    - good day\n    - so [late]{"entity": "when"}\n'


@pytest.mark.parametrize(("name", "text"), [("nlu.md", RASA_MD), ("nlu.yml", RASA_YML)])
def test_marked_examples_of_rasa(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    rows, _ = read(tmp_path / name)
    assert {text: (row["intent"], entities_of(row, "slots")) for text, row in rows.items()} == {
        "Ida sails to Graz": ("travel", [("Ida", "who"), ("Graz", "where")]),
        "to San Jose": ("travel", [("San Jose", "where")]),
        "good day": ("talk", []),
        "so late": ("talk", [("late", "when")]),
    }


def test_links_and_other_brackets_are_not_entities():
    assert inline_syntax([f"see [page {n}](link{n}) and (this)" for n in range(20)]) is None
    assert inline_syntax([f"see [page {n}](https://a.org/{n})" for n in range(20)]) is None
    assert inline_syntax(["[Speaker: Ann] hello"] * 20) is None
    assert inline_syntax(["at [nine](time)"] * 4 + ["a [b] c [d] e [f]"] * 4) is None
    with pytest.raises(UserError, match=r"row 1.*unmatched"):
        without_marks("at [nine [am](time)", "[nine am](time)", "row 1")


def test_a_table_with_marked_texts(tmp_path):
    rows = [f'"{text}",{intent}' for text, intent in zip(marked_as("[{text}]({label})"), INTENTS)]
    (tmp_path / "a.csv").write_text("text,intent\n" + "\n".join(rows) + "\n")
    found, _ = read(tmp_path / "a.csv")
    assert {text: entities_of(row, "slots") for text, row in found.items()} == wanted_entities()
    raw, tasks = read(tmp_path / "a.csv", shape="none")
    assert set(raw) == set(marked_as("[{text}]({label})")) and list(tasks) == ["intent"]


@pytest.mark.parametrize("form", ["[{text}]({label})", "[{label} : {text}]", "{{{{{label}:{text}}}}}"])
def test_a_file_of_marked_texts(form, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(marked_as(form)))
    found, _ = read(tmp_path / "a.txt")
    assert {text: entities_of(row, "slots") for text, row in found.items()} == wanted_entities()
    assert {row["text"] for row in read_texts(tmp_path / "a.txt", ReadOptions())} == wanted_entities().keys()
    (tmp_path / "b.txt").write_text("no marks\n" * 9)
    with pytest.raises(UserError, match=r"b.txt: no entity markup found"):
        read(tmp_path / "b.txt", format="inline")


def test_token_objects_in_paragraphs_of_sentences(tmp_path):
    sentences = []
    for words, spans in WORDS:
        tags = ["O"] * len(words)
        for a, b, label in spans:
            tags[a:b] = [f"{'U' if b - a == 1 else 'BIL'[min(n, 1) + (n == b - a - 1)]}-{label}" for n in range(b - a)]
        sentences.append({"tokens": [{"orth": w, "tag": "NN", "ner": t} for w, t in zip(words, tags)], "brackets": []})
    documents = [{"id": n, "paragraphs": [{"sentences": sentences[n::2]}]} for n in (0, 1)]
    found, _ = read(write(tmp_path, documents))
    assert {text: entities_of(row, "ner") for text, row in found.items()} == wanted_entities()
    splits, _ = read(write(tmp_path, {"train": documents[:1], "test": documents[1:]}))
    assert {splits[" ".join(words)]["split"] for words, _ in WORDS[1::2]} == {"test"}
    questions = [{"paragraphs": [{"context": "a", "qas": []}]}]
    with pytest.raises(UserError, match="questions with answers"):
        read(write(tmp_path, questions))


def test_two_shapes_that_fit_equally_well_raise_an_error(monkeypatch):
    rows = [{"text": t, "x": [{"a": 0, "b": 3, "c": 5, "d": "who"}]} for t, s in MARKED if s]
    more = [
        Shape("first", "text", spans=Spans("x", "a", "b", "d")),
        Shape("second", "text", spans=Spans("x", "a", "c", "d")),
    ]
    monkeypatch.setattr("preprocess.readers.shapes.SHAPES", [*SHAPES, *more])
    with pytest.raises(UserError, match=r"'first' and 'second' equally well.*--shape"):
        find_reading("f", rows, ReadOptions(labelled=True))
    assert find_reading("f", rows, ReadOptions(labelled=True, shape="second")).shape.name == "second"


def test_objects_in_standard_form_need_no_conversion():
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


def test_other_surfaces_show_that_an_emoji_is_one_character(tmp_path):
    rows = [
        {"text": f"{'🎈' * (n % 2)}去{c}玩", "label": [[n % 2 + 1, n % 2 + 3, "where"]]}
        for n, c in enumerate(["上海"] * 12)
    ]
    found, _ = read(write(tmp_path, [row | {"text": f"{row['text']}{n}"} for n, row in enumerate(rows)]))
    assert len(found) == 12


def test_nothing_is_written_if_offsets_are_ambiguous(tmp_path):
    path = write(tmp_path / "raw", REJECTED["UTF-16"][0])
    with pytest.raises(UserError, match="--offsets utf16"):
        process(DataConfig(input=str(path), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    process(DataConfig(input=str(path), output_dir=str(tmp_path / "out"), offsets="utf16"))
    assert read_json(tmp_path / "out/labels.json")


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([{"userInput": {"text": t}} for t, _ in MARKED], {}),
        ([{"data": [{"text": t[:3], "entity": "who"}, {"text": t[3:]}]} for t, _ in MARKED], {}),
        ([{"utt": t, "annot_utt": m} for (t, _), m in zip(MARKED, marked_as("[{label} : {text}]"))], {}),
        ([{"a": {"b": t}} for t, _ in MARKED], {"text_column": "a.b"}),
        ([{"text": t, "context": "x", "slots": {}} for t, _ in MARKED], {}),
    ],
)
def test_prediction_inputs_are_read_by_the_same_shapes(rows, options, tmp_path):
    path = write(tmp_path, rows, "a.jsonl")
    assert [row["text"] for row in read_texts(path, ReadOptions(**options))] == [t for t, _ in MARKED]
    tokens = write(tmp_path, over_tokens("ner", lambda a, b, c: [a, b, c], "sentence"), "b.json")
    assert [row["tokens"] for row in read_texts(tokens, ReadOptions())] == [words for words, _ in WORDS]
