"""Relations: each form is read exactly, from the file to the processed folder, or rejected with a one-line error."""

import json
from collections import Counter
from itertools import product

import pytest
from conftest import read_json
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SHAPES, Noise, usable
from shapes import write as write_files
from test_json_shapes import write

from data_process import DataConfig, prepare, process
from engine.errors import UserError
from engine.predict.given import examples_of
from engine.task.task import Task
from preprocess.labels.relations import closest, places_of, shown_triple
from preprocess.readers.options import ReadOptions
from preprocess.readers.sources import read_texts

TOWNS = ["Oslo", "Bergen", "Lima", "Quito", "Graz"]
LIVES = []  # (text, name, town)
for _n in range(20):
    _name, _town = f"{['Ida', 'Omar', 'Ruth', 'Ivan'][_n % 4]} Berg", TOWNS[_n % 5]
    LIVES.append((f"{_name} lives in {_town} .", _name, _town))


def read(folder, rows, name="a.jsonl", **options):
    """Returns ({text: row}, tasks, {note: its rows}) of the processed folder of a file."""
    path = write(folder / "raw", rows, name)
    splits, tasks, notes = prepare(DataConfig(input=str(path), output_dir="unused", **options))
    found = {row["text"] if "text" in row else " ".join(row["tokens"]): row for each in splits.values() for row in each}
    return found, tasks, {note.what: list(note.rows) for note in notes if note.rows}


def with_lives(row, form):
    """Returns a row and enough others for a split. form: function of (text, name, town)"""
    return [row, *(form(*each) for each in LIVES)]


def words(text, name, town):
    """Returns a row with a triple of words."""
    return {"text": text, "spo_list": [{"subject": name, "predicate": "lives", "object": town}]}


def triple(subject, predicate, obj):
    return {"subject": subject, "predicate": predicate, "object": obj}


def shown(row):
    return [shown_triple(item, row["tokens"]) for item in row["relations"]]


# ---- mentions without offsets ----------------------------------------------------------------------------------------


def test_of_several_places_the_closest_pair_is_used_and_reported(tmp_path):
    text = "Oslo is too far , Ida Berg lives in Oslo and Omar in Oslo"
    found, _, notes = read(tmp_path, with_lives(words(text, "Ida Berg", "Oslo"), words))
    assert found[text]["relations"] == [[5, 6, 9, 9, "lives"]]
    assert notes == {
        "relations: ambiguous mentions, which occur several times": [
            f"{tmp_path}/raw/a.jsonl, row 1: Ida Berg —lives→ Oslo"
        ]
    }


def test_a_mention_that_does_not_occur_only_drops_its_relation(tmp_path):
    text = "Ida Berg lives in Oslo"
    row = {"text": text, "spo_list": [triple("Ida Berg", "lives", "Oslo"), triple("Ida Berg", "lives", "Rome")]}
    found, _, notes = read(tmp_path, with_lives(row, words))
    assert shown(found[text]) == ["Ida Berg —lives→ Oslo"]
    assert notes["relations: mentions that do not occur in the text"] == [
        f"{tmp_path}/raw/a.jsonl, row 1: Ida Berg —lives→ Rome"
    ]


def test_whole_words_are_preferred_except_in_chinese():
    assert places_of("art", "party art smart art.") == [(6, 9), (16, 19)]
    assert places_of("art", "party") == [(1, 4)]
    assert places_of("北京", "在北京大学，北京") == [(1, 3), (6, 8)]
    assert places_of("aa", "aaa") == [(0, 2), (1, 3)]
    assert places_of(" Ida ", "Ida") == [(0, 3)]
    assert places_of("", "Ida") == places_of(None, "Ida") == places_of("Ida", "") == []


def test_overlapping_places_are_used_only_if_there_are_no_others(tmp_path):
    text = "北京大学在北京"
    rows = [{"text": text, "spo_list": [triple("北京大学", "位于", "北京")]}]
    pairs = [*product("甲乙丙", "沪穗")] * 2
    rows += [{"text": f"{name}在{town}住", "spo_list": [triple(name, "住", town)]} for name, town in pairs]
    found, tasks, _ = read(tmp_path, rows)
    assert found[text]["relations"] == [[0, 3, 5, 6, "位于"]] and tasks["relations"].unit == "character"
    rows[0] = {"text": "北京大学很大", "spo_list": [triple("北京大学", "位于", "北京")]}
    assert read(tmp_path, rows)[0]["北京大学很大"]["relations"] == [[0, 3, 0, 1, "位于"]]


@settings(max_examples=200, deadline=None)
@given(
    st.sets(st.integers(0, 25), min_size=1, max_size=8), st.integers(1, 4),
    st.sets(st.integers(0, 25), min_size=1, max_size=8), st.integers(1, 4),
)  # fmt: skip
def test_the_closest_pair_equals_a_brute_force_search(firsts, size, seconds, other_size):
    one = sorted((start, start + size) for start in firsts)
    other = sorted((start, start + other_size) for start in seconds)

    def between(pair):
        (a, b), (c, d) = pair
        inside = len({*range(a, b)} & {*range(c, d)})
        return bool(inside), 0 if inside else max(c - b, a - d), *pair

    assert closest(one, other) == min(product(one, other), key=between)


def test_texts_without_most_of_their_mentions_are_rejected_unless_accepted(tmp_path):
    rows = [words(text, name, town if n % 3 else "Rome") for n, (text, name, town) in enumerate(LIVES)]
    refusal = r"row 1: mentions of 7 of 20 relations do not occur .*Ida Berg —lives→ Rome.*--accept mentions"
    with pytest.raises(UserError, match=refusal):
        read(tmp_path, rows)
    found, _, notes = read(tmp_path, rows, accept="mentions")
    assert sum(map(len, map(shown, found.values()))) == 13
    assert len(notes["relations: mentions that do not occur in the text"]) == 7


def test_texts_with_one_character_or_only_blanks(tmp_path):
    rows = [words("A", "A", "A"), words(" ", "A", "B") | {"spo_list": []}, *(words(*each) for each in LIVES)]
    with pytest.raises(UserError, match="row 2: the text is empty"):
        read(tmp_path, rows)
    found, _, _ = read(tmp_path, rows, drop_empty=True)
    assert found["A"]["relations"] == [[0, 0, 0, 0, "lives"]] and len(found) == 21
    rows[0]["spo_list"][0] = triple(" ", "lives", "A")
    with pytest.raises(UserError, match=r"row 1: a relation needs a predicate, a subject and an object"):
        read(tmp_path, rows, drop_empty=True)


# ---- offsets ---------------------------------------------------------------------------------------------------------


def ends(text, *surfaces, unit=lambda text: len(text), last=0, keep=False):
    """Returns the offsets of words in a text, as objects."""
    starts = [unit(text[: text.index(surface)]) for surface in surfaces]
    return [
        {"start": start, "end": start + unit(surface) - last} | ({"text": surface} if keep else {})
        for start, surface in zip(starts, surfaces)
    ]


def utf16(text):
    return len(text.encode("utf-16-le")) // 2


def test_offsets_in_utf16_and_inclusive_ends_are_converted(tmp_path):
    def form(emoji, **how):
        def row(text, name, town):
            return {"text": (new := emoji + text), "relations": [triple(*pair(ends(new, name, town, **how)))]}

        return row

    pair = lambda two: (two[0], "lives", two[1])  # noqa: E731
    rows = [form("🚀🚀 ", unit=utf16)(*each) for each in LIVES]
    with pytest.raises(UserError, match="--offsets utf16"):
        read(tmp_path, rows)
    found, _, _ = read(tmp_path, rows, offsets="utf16")
    assert {text: shown(row) for text, row in found.items()} == {
        f"🚀🚀 {text}": [f"{name} —lives→ {town}"] for text, name, town in LIVES
    }
    with pytest.raises(UserError, match="add --offsets utf16"):
        read(tmp_path, [form("🚀🚀 ", unit=utf16, keep=True)(*each) for each in LIVES])
    rows = [form("", last=1)(*each) for each in LIVES]
    with pytest.raises(UserError, match="--span_end inclusive"):
        read(tmp_path, rows)
    found, _, _ = read(tmp_path, rows, span_end="inclusive")
    assert {text: shown(row) for text, row in found.items()} == {t: [f"{n} —lives→ {o}"] for t, n, o in LIVES}
    with pytest.raises(UserError, match="no offsets, which --span_end inclusive requires"):
        read(tmp_path, [words(*each) for each in LIVES], span_end="inclusive")


def test_nested_entities_and_one_entity_in_several_relations(tmp_path):
    text = "Bank of Oslo pays Ida Berg"
    entities = [(0, 12, "org"), (8, 12, "place"), (18, 26, "who"), (18, 21, "first name")]
    triples = [(0, 1, "based in"), (2, 0, "works for"), (0, 2, "pays"), (0, 2, "knows"), (3, 3, "is")]
    row = {
        "text": text,
        "entities": [{"id": n, "label": c, "start_offset": a, "end_offset": b} for n, (a, b, c) in enumerate(entities)],
        "relations": [{"id": 0, "from_id": a, "to_id": b, "type": name} for a, b, name in triples],
    }
    found, tasks, _ = read(tmp_path, [row] * 10, dev_ratio=0.2)
    assert (tasks["entities"].kind, tasks["relations"].kind) == ("spans", "relations")
    assert tasks["relations"].entities == "entities" and not tasks["entities"].entities
    assert found[text]["tokens"] == text.split()
    assert found[text]["entities"] == [[0, 2, "org"], [2, 2, "place"], [4, 4, "first name"], [4, 5, "who"]]
    relations = [[0, 2, 2, 2, "based in"], [4, 5, 0, 2, "works for"], [0, 2, 4, 5, "pays"], [0, 2, 4, 5, "knows"]]
    assert found[text]["relations"] == sorted([*relations, [4, 4, 4, 4, "is"]])


def test_words_are_split_where_a_subject_or_an_object_ends(tmp_path):
    text = "Ida's uncle-in-law"
    found, _, notes = read(tmp_path, with_lives({"text": text, "spo_list": [triple("uncle", "of", "Ida")]}, words))
    assert found[text]["tokens"] == ["Ida", "'s", "uncle", "-in-law"]
    assert found[text]["relations"] == [[2, 2, 0, 0, "of"]]
    assert "relations: spans start or end inside a word" in notes


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("relations of")])
def test_prediction_inputs_can_have_these_forms(name, tmp_path):
    """Without labels, texts are read from the same keys."""
    shape = SHAPES[name]
    examples = usable(shape, shape.examples)
    files = shape.write(examples, Noise())
    write_files(tmp_path, files)
    found = list(read_texts(tmp_path / next(iter(files)), ReadOptions()))
    form = shape.of.split()[0]
    assert [row[form] for row in found] == [getattr(example, form) for example in examples]
    assert not {"relations", "entities"} & {key for row in found for key in row}


# ---- which tasks -----------------------------------------------------------------------------------------------------


def test_types_of_mentions_become_entities_and_label_column_selects_tasks(tmp_path):
    rows = [
        {"text": text, "spo_list": [triple(name, "lives", town) | {"subject_type": "who", "object_type": "where"}]}
        for text, name, town in LIVES
    ]
    rows.append({"text": "it is late", "spo_list": []})
    found, tasks, _ = read(tmp_path, rows)
    assert list(tasks) == ["entities", "relations"] and tasks["relations"].entities == "entities"
    assert found["it is late"]["relations"] == found["it is late"]["entities"] == []
    assert found[LIVES[0][0]]["entities"] == [[0, 1, "who"], [4, 4, "where"]]
    _, tasks, _ = read(tmp_path, rows, label_column="relations")
    assert list(tasks) == ["relations"] and not tasks["relations"].entities
    found, tasks, _ = read(tmp_path, rows, label_column="entities")
    assert list(tasks) == ["entities"] and tasks["entities"].kind == "tagging"
    _, tasks, _ = read(tmp_path, rows, label_column="spo_list")
    assert list(tasks) == ["spo_list"] and tasks["spo_list"].kind == "relations"
    _, tasks, _ = read(tmp_path, rows, label_type="entities=tagging")
    assert (tasks["entities"].kind, tasks["relations"].entities) == ("tagging", "")
    _, tasks, _ = read(tmp_path, [words(*each) for each in LIVES], label_type="relations=relations")
    assert list(tasks) == ["relations"]


def test_a_missing_list_means_unlabelled_and_an_empty_list_means_no_relations(tmp_path):
    rows = [words(*each) | {"label": "x" if n % 2 else "y"} for n, each in enumerate(LIVES)]
    rows += [{"text": "not read", "spo_list": None, "label": "x"}, {"text": "empty", "spo_list": [], "label": "y"}]
    found, tasks, _ = read(tmp_path, rows)
    assert [found[text]["relations"] for text in ("not read", "empty")] == [None, []]
    assert {name: task.kind for name, task in tasks.items()} == {"relations": "relations", "label": "classification"}


def test_other_labels_and_lists_that_are_empty_in_the_first_rows(tmp_path):
    who = {"id": 7, "label": "who", "start_offset": 0}
    rows = [{"text": t, "entities": [who | {"end_offset": len(n)}], "relations": []} for t, n, _ in LIVES] * 15
    _, tasks, _ = read(tmp_path, rows)
    assert list(tasks) == ["entities"]
    rows.append(rows[0] | {"relations": [{"id": 1, "from_id": 7, "to_id": 7, "type": "is"}]})
    with pytest.raises(UserError, match=r"row 301: has relations, but the first rows have none"):
        read(tmp_path, rows)
    assert list(read(tmp_path, rows, label_column="entities")[1]) == ["entities"]


def test_a_split_without_any_relation_has_empty_lists(tmp_path):
    for name, form in (("spo_list", words), ("relations", typed)):
        rows = [form(*each) | {"label": "xy"[n % 2]} for n, each in enumerate(LIVES)]
        for row in rows if form is words else ():
            row["spo_list"][0] |= {"subject_type": "who", "object_type": "where"}
        write(tmp_path / name, rows, "train.jsonl")
        write(tmp_path / name, [row | {name: []} for row in rows[:3]], "dev.jsonl")
        unlabelled = [{key: value for key, value in row.items() if key in ("text", "tokens")} for row in rows]
        write(tmp_path / name, unlabelled, "test.jsonl")  # skipped
        splits, tasks, _ = prepare(DataConfig(input=str(tmp_path / name), output_dir="unused"))
        assert list(splits) == ["train", "dev"] and sorted(tasks) == ["entities", "label", "relations"]
        assert [row["label"] for row in splits["dev"]] == ["x", "y", "x"]
        assert [row["relations"] for row in splits["dev"]] == [[], [], []] and all(splits["train"])
        assert [len(row["entities"]) for row in splits["dev"]] == [0 if form is words else 2] * 3


def test_the_processed_folder_and_predictions_are_read_back(tmp_path):
    rows = [words(*each) for each in LIVES] + [{"text": "it is late", "spo_list": []}]
    process(DataConfig(input=str(write(tmp_path / "raw", rows, "a.jsonl")), output_dir=str(tmp_path / "first")))
    (tmp_path / "first/labels.json").rename(tmp_path / "labels.json")
    process(DataConfig(input=str(tmp_path / "first"), output_dir=str(tmp_path / "again")))
    assert read_json(tmp_path / "again/labels.json") == read_json(tmp_path / "labels.json")
    for split in ("train", "dev", "test"):
        first, again = ([*map(json.loads, (tmp_path / f"{name}/{split}.jsonl").open())] for name in ("first", "again"))
        assert first == again and first


# ---- what is refused -------------------------------------------------------------------------------------------------


def of_tokens(**relation):
    entities = [{"type": "who", "start": 0, "end": 2}, {"type": "where", "start": 4, "end": 5}]
    return {"tokens": "Ida Berg lives in Oslo".split(), "entities": entities, "relations": [relation]}


GOOD = of_tokens(type="lives", head=0, tail=1)
PLACED = {"text": LIVES[0][0], "relations": [triple({"start": 0, "end": 8}, "lives", {"start": 18, "end": 22})]}
TRIPLE = {"text": "a b", "triple_list": [["a", "p", "b"]]}
OURS = {"id": "0", "text": "a b", "tokens": ["a", "b"], "relations": [[0, 0, 1, 1, "p"]]}
REJECTED = {  # name: (invalid row, valid row, words of the message)
    "no such entity": (of_tokens(type="lives", head=0, tail=2), GOOD, "a span with the number 2, which does not exist"),
    "no predicate": (of_tokens(head=0, tail=1), GOOD, "needs a predicate, a subject and an object"),
    "an empty predicate": (of_tokens(type=" ", head=0, tail=1), GOOD, "needs a predicate"),
    "a number as predicate": (of_tokens(type=3, head=0, tail=1), GOOD, "needs a predicate"),
    "no list": ({**GOOD, "relations": "lives"}, GOOD, "needs a predicate"),
    "outside the text": (
        {"text": "Ida", "relations": PLACED["relations"]},
        PLACED,
        "the span 0 to 8 of 'lives' is outside the text of 3 characters",
    ),
    "other words": (
        PLACED | {"relations": [triple({"start": 0, "end": 8, "text": "Ann"}, "x", {"start": 9, "end": 14})]},
        PLACED,
        "is 'Ida Berg', but the data says 'Ann'",
    ),
    "half a triple": (TRIPLE | {"triple_list": [["a", "b"]]}, TRIPLE, "needs a predicate"),
    "tokens that are not there": (OURS | {"relations": [[0, 0, 1, 2, "p"]]}, OURS, "outside the 2 tokens"),
    "a list of numbers": (OURS | {"relations": [[0, 0, 1, 1]]}, OURS, "needs a predicate"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_invalid_relations_raise_a_one_line_error_with_the_row(name, tmp_path):
    bad, good, message = REJECTED[name]
    with pytest.raises(UserError) as caught:
        read(tmp_path, [good] * 250 + [bad])
    assert "row 251: " in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_entities_with_several_mentions_raise_an_error_that_describes_a_conversion(tmp_path):
    rows = [{"text": "a", "title": "a", "sents": [["a"]], "vertexSet": [[]]}] * 3
    with pytest.raises(UserError, match=r"several mentions \(as in DocRED.*choose a mention of each"):
        read(tmp_path, rows)


# ---- BRAT and Label Studio -------------------------------------------------------------------------------------------


def brat(folder, name, text, lines):
    (folder / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / f"{name}.ann").write_text("\n".join(lines), encoding="utf-8")


LINES = ["T1\tPER 2 10\tIda Berg", "T2\tLOC 20 24\tOslo", "T3\tLife 11 16\tlives"]


def test_brat_relations_in_a_folder_with_splits(tmp_path):
    text = "😀 Ida Berg lives in Oslo"
    for n in range(8):
        brat(tmp_path / "raw/train", f"{n}", text, [*LINES, "R1\tLives Arg1:T1 Arg2:T2\t", "E1\tLife:T3 Who:T1"])
    brat(tmp_path / "raw/dev", "a", f"{text} .", LINES)  # dev has no relation
    splits, tasks, _ = prepare(DataConfig(input=str(tmp_path / "raw"), output_dir="unused"))
    assert splits["train"][0]["relations"] == [[1, 2, 5, 5, "Lives"]] and splits["dev"][0]["relations"] == []
    assert splits["train"][0]["entities"] == [[1, 2, "PER"], [5, 5, "LOC"]]  # a trigger is not an entity
    assert splits["train"][0]["events"] == [[3, 3, 1, 2, "Life|Who"], [3, 3, 3, 3, "Life"]]
    assert tasks["relations"].labels == ("Lives",)
    for line, message in (
        ("R1\tLives Arg1:T1", "expected PREDICATE Arg1:T1 Arg2:T2"),
        ("R1\tLives Arg1:T1 Arg2:T9", "refers to T9, which does not exist"),
    ):
        brat(tmp_path / "raw/train", "bad", text, [*LINES, line])
        with pytest.raises(UserError, match=rf"bad.ann, row 4: .*{message}"):
            prepare(DataConfig(input=str(tmp_path / "raw"), output_dir="unused"))


def studio(text, results):
    return {"id": 1, "data": {"text": text}, "annotations": [{"result": results}]}


def region(name, start, end, label="PER"):
    return {"id": name, "type": "labels", "from_name": "ner", "value": {"start": start, "end": end, "labels": [label]}}


def link(direction, *labels, to="b"):
    return {"type": "relation", "from_id": "a", "to_id": to, "direction": direction, "labels": [*labels]}


def test_the_direction_of_label_studio(tmp_path, capsys):
    text, regions = "Ida Berg met Omar", [region("a", 0, 8), region("b", 13, 17)]
    rows = [
        studio(f"{text} {n}", [*regions, link(direction, "met", *more)])
        for n, (direction, more) in enumerate([("right", ()), ("left", ()), ("bi", ()), ("right", ("knows",))] * 4)
    ]
    rows += [studio(f"{text} x", [*regions, link("right")]), studio(f"{text} y", [])]
    found, tasks, _ = read(tmp_path, rows, "a.json")
    there, back = [0, 1, 3, 3, "met"], [3, 3, 0, 1, "met"]
    assert found[f"{text} 0"]["relations"] == [there] and found[f"{text} 1"]["relations"] == [back]
    assert found[f"{text} 2"]["relations"] == [there, back]
    assert found[f"{text} 3"]["relations"] == [[0, 1, 3, 3, "knows"], there]
    assert found[f"{text} x"]["relations"] == found[f"{text} y"]["relations"] == []
    assert "ignored relation (1)" in capsys.readouterr().out
    assert tasks["relations"].entities == "ner" and tasks["ner"].kind == "spans"
    for bad, message in (
        (link("up", "met"), "KeyError"),
        (link("right", "met", to="c"), "refers to the region 'c'"),
        ({"type": ["relation"], "labels": ["met"]}, "type and from_name must be strings"),
    ):
        with pytest.raises(UserError, match=rf"item 1: .*{message}"):
            read(tmp_path, [studio(text, [*regions, bad])] * 3, "a.json")


# ---- checks, preview, splits -----------------------------------------------------------------------------------------


def typed(text, name, town, kinds=("who", "where"), predicate="lives"):
    row = {"tokens": text.split(), "entities": [], "relations": [{"type": predicate, "head": 0, "tail": 1}]}
    for surface, kind in zip((name, town), kinds):
        start = text.split().index(surface.split()[0])
        row["entities"].append({"type": kind, "start": start, "end": start + len(surface.split())})
    return row


def processed(tmp_path, rows, **options):
    source = write(tmp_path / "raw", rows, "a.jsonl")
    process(DataConfig(input=str(source), output_dir=str(tmp_path / "data"), **options))
    splits = {path.stem: [json.loads(line) for line in path.open()] for path in (tmp_path / "data").rglob("*.jsonl")}
    return splits, {note["what"]: note for note in read_json(tmp_path / "data/checks.json")}


def test_the_summary_lists_the_types_of_each_predicate_and_notes_name_unusual_ones(tmp_path, capsys):
    rows = [typed(f"{text} {n}", name, town) for n in range(6) for text, name, town in LIVES]
    rows.append(typed("Oslo has Ida Berg", "Oslo", "Ida Berg", ("where", "who")))
    rows.append(typed("Ida is Ida", "Ida", "Ida") | {"relations": [{"type": "is", "head": 0, "tail": 0}]})
    _, notes = processed(tmp_path, rows)
    printed = capsys.readouterr().out
    assert "task relations: lives connects who → where 120, where → who 1" in printed
    assert "-> relations: Ida Berg —lives→ " in printed
    odd = notes["relations: entity types that a predicate rarely connects"]
    assert odd["count"] == 1
    assert odd["rows"][0].endswith("row 121: Oslo —lives→ Ida Berg, where → who, usually who → where")
    same = notes["relations: the subject and the object are the same words"]
    assert same["count"] == 1 and same["rows"][0].endswith("row 122: Ida —is→ Ida")
    process(DataConfig(input=str(tmp_path / "data"), check=True))  # labels.json names the task with the types
    assert "task relations: lives connects who → where 120, where → who 1" in capsys.readouterr().out


def test_every_row_with_a_rare_direction_is_noted_even_in_small_data(tmp_path):
    rows = [typed(f"{text} {n}", name, town) for n in range(3) for text, name, town in LIVES]
    rows += [typed(f"Oslo has Ida {n}", "Oslo", "Ida", ("where", "who")) for n in range(3)]
    note = processed(tmp_path, rows)[1]["relations: entity types that a predicate rarely connects"]
    assert note["count"] == 3 and all("where → who, usually who → where" in row for row in note["rows"])
    rows += [
        typed(f"Oslo has Bo {n}", "Oslo", "Bo", ("where", "who")) for n in range(9)
    ]  # frequent enough to be intended
    (tmp_path / "more").mkdir()
    assert "relations: entity types that a predicate rarely connects" not in processed(tmp_path / "more", rows)[1]


def with_ids(number):
    """Returns a row in the format of doccano, whose relations refer to ids of entities."""
    ends = [{"id": 2 * number, "start_offset": 0, "end_offset": 3, "label": "person"}]
    ends.append({"id": 2 * number + 1, "start_offset": 13, "end_offset": 17, "label": "place"})
    text = f"Ida lives in Oslo {number}"
    return {
        "text": text,
        "entities": ends,
        "relations": [{"from_id": 2 * number, "to_id": 2 * number + 1, "type": "lives"}],
    }


@pytest.mark.parametrize("row", [0, 4, 30])
def test_a_row_without_the_key_of_the_relations_is_unlabelled(tmp_path, row, capsys):
    rows = [with_ids(number) for number in range(40)]
    del rows[row]["relations"]
    splits, _ = processed(tmp_path, rows)
    found = [e for split in ("train", "dev", "test") for e in splits.get(split, ())]
    assert sum(e.get("relations") is not None for e in found) == 39 and len(found) == 40
    out = capsys.readouterr().out
    assert "rows without a label, which this task ignores: train" in out and f"a.jsonl, row {row + 1}\n" in out


def test_the_log_names_the_key_that_relations_were_read_from(tmp_path, capsys):
    processed(tmp_path, [words(*each) for each in LIVES] * 8)
    assert "labels from 'spo_list' (relations)\n" in capsys.readouterr().out


def test_slots_and_unread_keys_of_relations_are_counted(tmp_path, capsys):
    rows = [words(*each) for _ in range(2) for each in LIVES]
    for number, row in enumerate(rows):
        (item,) = row["spo_list"]
        item |= {"object": {"@value": item["object"], "inDate": item["object"] * (number < 5)}, "score": 0.9}
    processed(tmp_path, rows)
    out = capsys.readouterr().out
    assert "relations read from the slot 'inDate' of an object: 5" in out and "lives_inDate" in out
    assert f"relations with the key 'score', which is not read: {len(rows)}" in out


@pytest.mark.parametrize("entities", [{}, {"entities": []}])
def test_relations_without_the_entities_that_they_refer_to_are_rejected(tmp_path, entities):
    rows = [{name: with_ids(number)[name] for name in ("text", "relations")} | entities for number in range(40)]
    with pytest.raises(UserError, match=r"'relations' refer to the ids of entities .*; export them too") as error:
        processed(tmp_path, rows)
    assert "\n" not in str(error.value)


def test_a_duie_row_without_its_list_is_named(tmp_path):
    rows = [
        {"text": f"王小明{n}住在北京", "spo_list": [{"subject": f"王小明{n}", "predicate": "居住地", "object": "北京"}]}
        for n in range(30)
    ]
    del rows[4]["spo_list"]
    with pytest.raises(UserError, match="row 5: has no label"):
        processed(tmp_path, rows)


def test_two_entities_with_the_same_key_raise_an_error(tmp_path):
    rows = [with_ids(number) for number in range(40)]
    rows[7]["entities"].append({"id": 15, "start_offset": 4, "end_offset": 9, "label": "person"})
    with pytest.raises(UserError, match="row 8: a relation refers to a span with a key 'id' that several spans"):
        processed(tmp_path, rows)


def test_mentions_that_are_no_entity_and_splits_without_relations_are_reported(tmp_path):
    rows = [{"id": str(n), "text": t, "tokens": t.split(), "split": "train" if n < 15 else "dev",
             "entities": [[0, 1, "who"]] + [[4, 4, "where"]] * (n > 0),
             "relations": [[0, 1, 4, 4, "lives"]] * (n < 15)} for n, (t, _, _) in enumerate(LIVES)]  # fmt: skip
    _, notes = processed(tmp_path, rows)
    outside = notes["relations: subjects or objects that are not an entity of 'entities'"]
    assert outside["count"] == 1 and outside["rows"][0].endswith("row 1: Ida Berg —lives→ Oslo")
    assert notes["relations: splits without any relation"]["count"] == 1


def test_repeated_relations_count_once_and_are_reported(tmp_path):
    row = words(*LIVES[0])
    found, _, notes = read(tmp_path, [row | {"spo_list": row["spo_list"] * 2}, *(words(*each) for each in LIVES[1:])])
    assert found[LIVES[0][0]]["relations"] == [[0, 1, 4, 4, "lives"]]
    assert notes["relations: repeated relations"] == [f"{tmp_path}/raw/a.jsonl, row 1: Ida Berg —lives→ Oslo"]


MANY = [typed(f"{text} {n}", *ends, predicate=f"p{n % 3}") for n in range(6) for text, *ends in LIVES]
MANY += [{"tokens": ["nothing", str(n)], "entities": [], "relations": []} for n in range(12)]
RARE = typed("Ida Berg left Lima today", "Ida Berg", "Lima", predicate="rare")


def test_shots_are_counted_per_predicate(tmp_path):
    splits, _ = processed(tmp_path, MANY, shots="relations=4", test_ratio=0)
    predicates = [item[-1] for row in splits["train"] for item in row["relations"]]
    assert Counter(predicates) == {"p0": 4, "p1": 4, "p2": 4} and len(splits["train"]) == 12
    assert read_json(tmp_path / "data/labels.json")["relations"]["counts"] == [4, 4, 4]


def test_dev_and_test_have_each_predicate_in_proportion(tmp_path):
    rows = MANY + [RARE | {"tokens": [*RARE["tokens"], str(n)]} for n in range(10)]
    splits, _ = processed(tmp_path, rows)
    counts = {split: json.dumps(rows).count('"rare"') for split, rows in splits.items()}
    assert counts == {"train": 8, "dev": 1, "test": 1}


def test_groups_folds_and_kept_columns_are_retained(tmp_path):
    rows = [row | {"source": f"s{n % 7}"} for n, row in enumerate(MANY)]
    process(DataConfig(input=str(write(tmp_path / "raw", rows, "a.jsonl")), output_dir=str(tmp_path / "data"),
                       group_column="source", keep_columns="source", n_splits=3, test_ratio=0))  # fmt: skip
    seen = []
    for fold in range(3):
        folder = tmp_path / f"data/fold_{fold}"
        train, dev = ([*map(json.loads, (folder / f"{split}.jsonl").open())] for split in ("train", "dev"))
        assert not {row["kept"]["source"] for row in train} & {row["kept"]["source"] for row in dev}
        assert read_json(folder / "labels.json")["relations"]["entities"] == "entities"
        seen += [(*row["tokens"], *shown(row)) for row in dev]
    expected = [f"{name} —p{n % 3}→ {town}" for n in range(6) for _, name, town in LIVES]
    assert sorted(each[-1] for each in seen if "—" in each[-1]) == sorted(expected) and len({*seen}) == len(rows)


def test_the_same_text_with_other_relations_is_a_conflict(tmp_path):
    _, notes = processed(tmp_path, [*MANY, MANY[0] | {"relations": []}])
    assert "relations: the same text has different labels" in notes


def test_a_task_of_a_processed_folder_can_be_excluded(tmp_path):
    processed(tmp_path, MANY)
    process(DataConfig(input=str(tmp_path / "data"), output_dir=str(tmp_path / "one"), label_column="relations"))
    labels = read_json(tmp_path / "one/labels.json")
    assert list(labels) == ["relations"] and "entities" not in labels["relations"]


# ---- rows with labels, given from Python -----------------------------------------------------------------------------


def given_rows(rows):
    relations = Task("relations", ("lives",), entities="entities")
    tasks = {"entities": Task("spans", ("where", "who")), "relations": relations}
    return list(examples_of(rows, tasks, labelled=True))


def test_labels_from_python_have_the_same_forms():
    text, name, town = LIVES[0]
    ends = [{"start": 0, "end": 8, "text": name}, {"start": 18, "end": 22, "text": town}]
    types = {"subject_type": "who", "object_type": "where"}
    spans = [{"id": 8, "start_offset": 0, "end_offset": 8, "label": "who"}]
    spans.append({"id": 3, "start_offset": 18, "end_offset": 22, "label": "where"})
    rows = [
        {"text": text, "relations": [triple(ends[0], "lives", ends[1])], "entities": None},
        {"text": text, "spo_list": [triple(name, "lives", town) | types]},
        {"text": text, "triples": [[name, "lives", town]], "entities": None},
        {"text": text, "entities": spans, "relations": [{"from_id": 8, "to_id": 3, "type": "lives"}]},
    ]
    found = given_rows(rows)
    assert [row["relations"] for row in found] == [[[0, 1, 4, 4, "lives"]]] * 4
    assert [row["tokens"] for row in found] == [text.split()] * 4
    entities = [[0, 1, "who"], [4, 4, "where"]]
    assert [row["entities"] for row in found] == [None, entities, None, entities]
    (row,) = given_rows([{"tokens": text.split(), "relations": [[0, 1, 4, 4, "lives"]], "entities": entities}])
    assert row["relations"] == [[0, 1, 4, 4, "lives"]] and row["entities"] == entities
    (row,) = given_rows([typed(text, name, town)])
    assert row["relations"] == [[0, 1, 4, 4, "lives"]] and row["entities"] == entities
    (row,) = given_rows([{"text": text, "spo_list": []}])
    assert row["relations"] == row["entities"] == []
    for wrong, message in (
        ({"text": text, "triples": [[name, "lives", "Rome"]]}, "text 1: a mention of Ida Berg —lives→ Rome does not"),
        ({"text": text, "relations": [triple(name, "", town)]}, "text 1: "),
        ({"tokens": ["a"], "relations": [[0, 0, 0, 1, "lives"]]}, "text 1: .*outside the 1 tokens"),
        ({"text": text}, "text 1: has no label for the task"),
    ):
        with pytest.raises(UserError, match=message):
            given_rows([wrong])
