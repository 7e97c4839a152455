"""Events in the formats of public datasets, and the choice of their anchors."""

import csv
import json
import random

import pytest

from data_process import DataConfig, prepare, process
from engine.errors import UserError
from engine.predict.given import examples_of
from engine.task.task import Task
from engine.task.words import events_in
from preprocess.labels.events import anchored, ranking

ZH = "昨天科思达收购了文佐，文佐创办人李青离职"
EN = "The firm Orba bought Wenzo in Lima"
EMOJI = "😀 Orba bought Wenzo"


def read(tmp_path, rows, name="rows.jsonl", **options):
    """Returns (examples in the order of the file, tasks, {note: its rows})."""
    path = tmp_path / name
    if isinstance(rows, list):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    given = DataConfig(input=str(path), output_dir="unused", dev_ratio=0.2, test_ratio=0, **options)
    splits, tasks, notes = prepare(given)
    examples = [row for rows in splits.values() for row in rows]
    examples.sort(key=lambda row: (len(row["_where"]), row["_where"]))
    return examples, tasks, {note.what: note.rows for note in notes if note.rows}


def shown(example, name="events"):
    """Returns [(words of the anchor, words of a mention, label)], joined without spaces."""
    words = example["tokens"]
    return [("".join(words[a : b + 1]), "".join(words[c : d + 1]), label) for a, b, c, d, label in example[name]]


BOUGHT = [("收购", "科思达", "收购|买方"), ("收购", "收购", "收购"), ("收购", "文佐", "收购|标的")]
LEFT = [("离职", "文佐", "离职|公司"), ("离职", "李青", "离职|人"), ("离职", "离职", "离职")]
DUEE = {
    "text": ZH,
    "id": "x",
    "event_list": [
        {
            "event_type": "收购",
            "class": "交易",
            "trigger": "收购",
            "trigger_start_index": 5,
            "arguments": [
                {"role": "买方", "argument": "科思达", "argument_start_index": 2, "alias": []},
                {"role": "标的", "argument": "文佐", "argument_start_index": 8, "alias": []},
            ],
        },
        {
            "event_type": "离职",
            "class": "人事",
            "trigger": "离职",
            "trigger_start_index": 18,
            "arguments": [
                {"role": "人", "argument": "李青", "argument_start_index": 16, "alias": []},
                {"role": "公司", "argument": "文佐", "argument_start_index": 11, "alias": []},
            ],
        },
    ],
}


def without(value, *keys):
    """Removes these keys from a value at every level."""
    if isinstance(value, list):
        return [without(item, *keys) for item in value]
    return {k: without(v, *keys) for k, v in value.items() if k not in keys} if isinstance(value, dict) else value


def test_duee(tmp_path):
    examples, tasks, notes = read(tmp_path, [DUEE] * 5 + [{"text": "没有事件", "id": "y", "event_list": []}] * 2)
    assert tasks["events"].type == "events" and list(tasks) == ["events"] and not notes
    assert tasks["events"].labels == tuple(sorted({item[2] for item in (*BOUGHT, *LEFT)}))
    assert [shown(e) for e in examples] == [BOUGHT + LEFT] * 5 + [[]] * 2
    assert examples[0]["events"][3][:4] == [18, 19, 11, 12]  # the second of two mentions


def test_without_offsets_the_closest_mention_is_taken(tmp_path):
    """As in DuEE-fin. Words that occur once determine the place of the others."""
    examples, _, notes = read(tmp_path, [without(DUEE, "trigger_start_index", "argument_start_index")] * 5)
    assert shown(examples[0]) == BOUGHT + LEFT
    assert examples[0]["events"][2][2] == 8 and examples[0]["events"][3][2] == 11
    (rows,) = [rows for what, rows in notes.items() if "ambiguous" in what]
    assert len(rows) == 10 and rows[0].endswith("row 1: 收购|标的 文佐")


def test_mentions_that_do_not_occur(tmp_path):
    rows = [without(DUEE, "trigger_start_index", "argument_start_index") for _ in range(9)]
    lost = {"event_type": "收购", "trigger": "出售", "arguments": [{"role": "买方", "argument": "科思达"}]}
    nothing = {"event_type": "收购", "trigger": "出售", "arguments": []}
    examples, _, notes = read(tmp_path, [*rows, {"text": ZH, "event_list": [lost, nothing]}])
    assert shown(examples[9]) == [("科思达", "科思达", "收购|买方")]
    assert len(notes["events: mentions that do not occur in the text"]) == 2
    assert len(notes["events: events without a mention in the text"]) == 1
    with pytest.raises(UserError, match=r"9 of 12 mentions of events do not occur.*--accept mentions"):
        read(tmp_path, [{"text": ZH, "event_list": [lost, nothing, nothing]}] * 3)


ONEIE = {
    "sent_id": "s",
    "tokens": EN.split(),
    "sentence": EN,
    "entity_mentions": [
        {"id": "s-E0", "text": "The firm Orba", "entity_type": "ORG", "start": 0, "end": 3},
        {"id": "s-E1", "text": "Wenzo", "entity_type": "ORG", "start": 4, "end": 5},
    ],
    "relation_mentions": [],
    "event_mentions": [
        {
            "id": "s-EV0",
            "event_type": "Transaction:Buy",
            "trigger": {"text": "bought", "start": 3, "end": 4},
            "arguments": [
                {"entity_id": "s-E0", "text": "The firm Orba", "role": "Buyer"},
                {"entity_id": "s-E1", "text": "Wenzo", "role": "Artifact"},
            ],
        }
    ],
}
GOLDEN = {
    "sentence": EN,
    "words": EN.split(),
    "golden-entity-mentions": [],
    "golden-event-mentions": [
        {
            "event_type": "Transaction:Buy",
            "trigger": {"text": "bought", "start": 3, "end": 4},
            "arguments": [
                {"role": "Artifact", "entity-type": "ORG", "text": "Wenzo", "start": 4, "end": 5},
                {"role": "Buyer", "entity-type": "ORG", "text": "The firm Orba", "start": 0, "end": 3},
            ],
        }
    ],
}


@pytest.mark.parametrize("row", [ONEIE, GOLDEN], ids=["OneIE", "golden mentions"])
def test_ace(row, tmp_path):
    examples, tasks, _ = read(tmp_path, [row] * 5)
    buy = "Transaction:Buy"
    assert examples[0]["tokens"] == EN.split() and list(tasks) == ["events"]
    assert examples[0]["events"] == [[3, 3, 0, 2, f"{buy}|Buyer"], [3, 3, 3, 3, buy], [3, 3, 4, 4, f"{buy}|Artifact"]]


def own(start=7, end=13, role="buyer", by=0):
    trigger = {"text": "bought", "start": start + by, "end": end + by, "probability": 0.3}
    arguments = [
        {"role": role, "text": "Orba", "start": 2 + by, "end": 6 + by, "probability": 0.9},
        {"role": "bought", "text": "Wenzo", "start": 14 + by, "end": 19 + by, "probability": 0.2},
    ]
    return {"text": EMOJI, "events": [{"type": "buy", "trigger": trigger, "arguments": arguments, "probability": 0.3}]}


def test_predictions_are_read(tmp_path):
    expected = [[2, 2, 1, 1, "buy|buyer"], [2, 2, 2, 2, "buy"], [2, 2, 3, 3, "buy|bought"]]
    rows = {
        "own": ([own()] * 5, {}),
        "utf16": (without([own(by=1)] * 5, "text", "probability"), {"offsets": "utf16"}),
        "stored": ([{"tokens": EMOJI.split(), "events": expected}] * 5, {}),
    }
    for name, (given, options) in rows.items():
        given = [{"text": EMOJI, **row} if name == "utf16" else row for row in given]
        examples, tasks, _ = read(tmp_path, given, f"{name}.jsonl", **options)
        assert examples[0]["events"] == expected and tasks["events"].kind == "events", name


def test_events_in_the_cells_of_a_table(tmp_path):
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "events"], *[[EMOJI, json.dumps(own()["events"])]] * 5])
    examples, tasks, _ = read(tmp_path, None, "rows.csv")
    assert tasks["events"].kind == "events" and shown(examples[0])[0] == ("bought", "Orba", "buy|buyer")


def test_events_next_to_other_tasks(tmp_path):
    rows = [own() | {"intent": name, "topic": name} for name in "xyxyxy"]
    assert {name: task.type for name, task in read(tmp_path, rows)[1].items()} == {
        "events": "events",
        "intent": "classification",
    }
    assert list(read(tmp_path, rows, label_column="topic")[1]) == ["topic"]
    assert list(read(tmp_path, rows, label_column="topic,events")[1]) == ["topic", "events"]
    chosen = read(tmp_path, [without(DUEE, "id")] * 5, label_column="event_list", label_type="event_list=events")[1]
    assert chosen["event_list"].kind == "events"


BRAT = [
    "T1\tBuy 14 20\tbought",
    "T2\tFirm 9 13\tOrba",
    "T3\tFirm 21 26\tWenzo",
    "T4\tPlace 30 34\tLima",
    "T5\tTell 36 40\tsaid",
    "T6\tPerson 41 44\tAna",
    "E1\tBuy:T1 Buyer:T2 Target:T3 Target2:T4",
    "E2\tTell:T5 Speaker:T6 Topic:E1",
]


def brat(tmp_path, lines, others=()):
    folder = tmp_path / "brat"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(f"{EN}, said Ana", encoding="utf-8")
        (folder / f"{number}.ann").write_text("\n".join(others if number else lines), encoding="utf-8")
    return read(tmp_path, None, "brat")


def test_brat(tmp_path):
    examples, tasks, _ = brat(tmp_path, BRAT, BRAT[:6])
    assert {name: task.type for name, task in tasks.items()} == {"entities": "tagging", "events": "events"}
    bought = [("bought", word, f"Buy|{role}") for word, role in (("Orba", "Buyer"), ("Wenzo", "Target"))]
    said = [("said", "bought", "Tell|Topic"), ("said", "said", "Tell"), ("said", "Ana", "Tell|Speaker")]
    expected = [bought[0], ("bought", "bought", "Buy"), bought[1], ("bought", "Lima", "Buy|Target"), *said]
    assert shown(examples[0]) == expected and examples[1]["events"] == []
    tagged = [tag.split("-")[-1] for tag in examples[0]["entities"] if tag != "O"]
    assert tagged == ["Firm", "Firm", "Place", "Person"]  # triggers are not entities


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("E3\tBuy:T9", r"expected TYPE:T1 and ROLE:T2"),
        ("E3\tBuy", r"expected TYPE:T1 and ROLE:T2"),
        ("E3\tBuy:T1 Buyer:E9", r"E3 refers to E9, which does not exist"),
    ],
)
def test_malformed_brat_lines(line, problem, tmp_path):
    with pytest.raises(UserError, match=rf"0\.ann, row 9: {problem}"):
        brat(tmp_path, [*BRAT, line])


def event(**change):
    row = own()
    return row | {"events": [row["events"][0] | change]}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([event(type="b|c")], r"the type of an event must be a name without '\|', found 'b\|c'"),
        ([event(type="")], r"the type of an event must be a name"),
        ([event(trigger={"start": 7, "end": 8, "text": "bought"})], r"the span 7 to 8 is 'b', but the data says"),
        ([event(arguments=[{"text": "Orba"}])], r"an argument of 'buy' needs a role, found None"),
        ([event(arguments=[5])], r"an argument of 'buy' needs a role, found None"),
        ([event(arguments="Orba")], r"an event needs a type and a list of arguments"),
        ([own()] * 4 + [own() | {"events": "x"}], r"row 5: 'events' is not a list of events, found 'x'"),
        ([own() | {"events": []}], r"the task 'events' has no label in train; all label lists are empty"),
        ([own() | {"events": [{"kind": "x"}]}], r"row 1: a span needs a start, an end and a label"),
        ([without(DUEE, "arguments")], r"contains events in an unknown form, or no events"),
        ([{"text": "a", "event_list": [{"event_type": "x"}]}], r"contains events in an unknown form"),
        ([ONEIE | {"entity_mentions": []}], r"an argument refers to the entity 's-E0', which does not exist"),
        ([without(ONEIE, "start")], r"the mention 'bought' needs a start and an exclusive end within 7 tokens"),
        ([{"tokens": ["a", "b"], "events": [[0, 0, 0, 0, "t"], [0, 0, 2, 2, "t|r"]]}], r"is outside the 2 tokens"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_unusable_events(rows, problem, tmp_path):
    with pytest.raises(UserError, match=problem) as caught:
        read(tmp_path, rows * (5 if len(rows) == 1 else 1))
    assert "\n" not in str(caught.value)


def test_summary_preview_and_checks(tmp_path, capsys):
    rows = (
        [own() | {"text": EMOJI} for _ in range(120)] + [own(role="seller")] + [{"text": "nothing", "events": []}] * 9
    )
    rows = [row | {"id": str(n), "split": "train" if n < 125 else "dev"} for n, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    process(DataConfig(input=str(tmp_path), output_dir=str(tmp_path / "data")))
    shown = " ".join(capsys.readouterr().out.split())
    assert 'buy "bought" (buyer: Orba, bought: Wenzo)' in shown
    assert "task events: 121 events buy with bought 121, buyer 120, seller 1" in shown
    assert "events: roles that a type has only once" in shown and "buy|seller" in shown
    assert "events: splits without any event" in shown


def test_rows_with_events_survive_splitting_sampling_and_reading_back(tmp_path):
    rare = own(role="seller")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [own()] * 40 + [rare] * 4))
    options = dict(input=str(tmp_path / "rows.jsonl"), accept="repeated", test_ratio=0.25, dev_ratio=0.25)
    process(DataConfig(output_dir=str(tmp_path / "data"), **options))
    for split in ("dev", "test"):
        labels = [json.loads(line)["events"] for line in (tmp_path / f"data/{split}.jsonl").read_text().splitlines()]
        assert sum(any(item[4] == "buy|seller" for item in label) for label in labels) == 1 and len(labels) == 11
    process(
        DataConfig(input=str(tmp_path / "data"), output_dir=str(tmp_path / "few"), shots="events=2", accept="repeated")
    )
    few = [json.loads(line) for line in (tmp_path / "few/train.jsonl").read_text().splitlines()]
    assert sorted({item[4] for row in few for item in row["events"]}) == [
        "buy",
        "buy|bought",
        "buy|buyer",
        "buy|seller",
    ]
    again = prepare(DataConfig(input=str(tmp_path / "data"), output_dir="unused", accept="repeated"))
    assert again[1]["events"].kind == "events" and len(again[0]["train"]) == 22


def test_a_split_without_events(tmp_path):
    for split, rows in (("train", [DUEE] * 5), ("dev", [{"text": "没有事件", "id": "y", "event_list": []}] * 3)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    process(DataConfig(input=str(tmp_path), output_dir=str(tmp_path / "data")))
    rows = (tmp_path / "data/dev.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["events"] for row in rows] == [[]] * 3


def test_events_after_the_first_rows_are_not_lost(tmp_path):
    rows = [{"text": "a b", "label": "x", "event_list": []}] * 1200 + [without(DUEE, "id") | {"label": "y"}]
    with pytest.raises(UserError, match=r"row 1201: has event_list, but the first rows have none"):
        read(tmp_path, rows)


GIVEN = [
    (DUEE, BOUGHT + LEFT),
    (without(DUEE, "trigger_start_index", "argument_start_index"), BOUGHT + LEFT),
    (own(), [("bought", "Orba", "buy|buyer"), ("bought", "bought", "buy"), ("bought", "Wenzo", "buy|bought")]),
    (ONEIE | {"event_mentions": []}, []),
    ({"text": "a b", "event_list": []}, []),
    ({"tokens": ["a", "b"], "events": [[0, 0, 0, 0, "t"]]}, [("a", "a", "t")]),
]


@pytest.mark.parametrize(("row", "expected"), GIVEN)
def test_labels_of_rows_from_python(row, expected):
    unit = "character" if row.get("text") == ZH else "word"
    (example,) = examples_of([row], {"events": Task("events", ("t",), unit=unit)}, labelled=True)
    assert shown(example) == expected


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([{"type": "t", "trigger": {"text": "zz"}, "arguments": []}], "text 1: t zz does not occur in the text"),
        ("x", "'events' must be a list of"),
        (["x"], "'events' must be a list of"),
    ],
)
def test_invalid_labels_of_rows_from_python(events, problem):
    with pytest.raises(UserError, match=problem):
        list(examples_of([{"text": "a b", "events": events}], {"events": Task("events", ("t",))}, labelled=True))


# ---- anchors ---------------------------------------------------------------------------------------------------------


def decoded(items):
    """Returns the events in items, directly from the definition."""
    groups = {}
    for *places, name in items:
        groups.setdefault((*places[:2], name.split("|")[0]), set()).add((name, tuple(places[2:])))
    return {(key[2], frozenset(group)) for key, group in groups.items() if any(place == key[:2] for _, place in group)}


def random_events(draw):
    places = [(i, i + 1) for i in range(4)]
    names = ["t", "t|a", "t|b", "t|c"]
    for _ in range(draw.randint(1, 3)):
        yield "t", frozenset((name, draw.choice(places)) for name in names if draw.random() < 0.7) or {("t", (0, 1))}


def test_events_are_recovered_unless_they_share_all_mentions():
    draw = random.Random(0)
    texts = [[(kind, frozenset(mentions)) for kind, mentions in random_events(draw)] for _ in range(400)]
    order, lost = ranking(texts), 0
    assert order[0] == "t" and sorted(order) == ["t", "t|a", "t|b", "t|c"]
    for events in texts:
        found = decoded(anchored(events, order))
        for number, (kind, mentions) in enumerate(events):
            others = {place for event in events[:number] + events[number + 1 :] for _, place in event[1]}
            if {place for _, place in mentions} - others:
                assert (kind, mentions) in found
            lost += (kind, mentions) not in found
        assert {mention for _, group in found for mention in group} == {m for _, group in events for m in group}
    assert 0 < lost < 100


def test_merged_events_are_reported(tmp_path):
    same = {
        "type": "sale",
        "arguments": [{"role": role, "text": word} for role, word in (("a", "Orba"), ("b", "Lima"))],
    }
    split, other = ({"type": "sale", "arguments": [same["arguments"][0] | {"role": role}]} for role in "ab")
    texts = ([same], [split, other], [same, same], [same, split], [same])
    rows = [{"text": EN, "events": events} for events in texts]
    examples, _, notes = read(tmp_path, rows)
    assert [len(events_in(e["events"])) for e in examples] == [1, 1, 1, 2, 1]
    (joined,) = (rows for what, rows in notes.items() if "share every mention" in what)
    assert [row.rpartition(", ")[2] for row in joined] == ["row 2: sale", "row 2: sale", "row 3: sale"]


def test_the_trigger_is_the_anchor_unless_several_events_share_it():
    one, other = (("t", frozenset({("t", (0, 1)), ("t|a", (i, i + 1)), ("t|b", (9, 10))})) for i in (3, 5))
    assert {item[:2] for item in anchored([one], ranking([[one]] * 9))} == {(0, 1)}
    assert {item[:2] for item in anchored([one, other], ranking([[one]] * 9 + [[one, other]]))} == {(3, 4), (5, 6)}
    for order in (["t", "t|a", "t|b"], ["t", "t|b", "t|a"]):
        assert decoded(anchored([one, other], order)) == {one, other}
    untriggered = [("t", frozenset({("t|a", (i, i + 1)), ("t|b", (9, 10))})) for i in (3, 5)]
    assert decoded(anchored(untriggered, ["t|b", "t|a"])) == set(untriggered)
