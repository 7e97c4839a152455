"""Data checks: each fault added to clean data is reported with its row, and clean data has no notes."""

import copy
import random

import pytest
from conftest import ROOT, SHARED

from data_process import DataConfig, prepare, process
from engine.data.features import Featurizer
from engine.data.tokenizer import train_tokenizer
from preprocess.checks import run
from preprocess.checks.run import run_checks
from preprocess.checks.tokenizer import check_encoding
from preprocess.labels.statistics import collect_labels

SENTENCE = (
    "please could you bring show find open close start stop the red blue green small large lamp door box song film room"
)
WORDS = SENTENCE.split()


def made(label, size=60, **more):
    """Returns {split: examples} with distinct clean texts. label: function from rng to the label of `x`"""
    rng, splits, seen = random.Random(1), {}, set()
    for split in ("train", "dev", "test"):
        splits[split] = []
        while len(splits[split]) < size:
            text = " ".join(rng.sample(WORDS, rng.randint(5, 8)))
            if text not in seen:
                seen.add(text)
                row = {
                    "_where": f"{split}.csv, row {len(splits[split]) + 2}",
                    "id": f"{split}{len(splits[split])}",
                    "text": text,
                }
                splits[split].append(row | {name: make(rng) for name, make in more.items()} | {"x": label(rng)})
    return splits


def base(kind):
    if kind == "tagging":
        splits, tasks, _ = prepare(DataConfig(input=str(ROOT / "dataset/sample_raw"), check=True))
        return splits, tasks
    label = {
        "classification": lambda rng: rng.choice(["good", "bad"]),
        "multilabel": lambda rng: sorted(rng.sample(["sport", "news", "art"], rng.randint(1, 2))),
        "regression": lambda rng: round(rng.gauss(3, 1), 2),
    }
    pair = {"text_pair": lambda rng: " ".join(rng.sample(WORDS, 6))} if kind == "pair" else {}
    splits = made(label["classification" if kind == "pair" else kind], **pair)
    return splits, None


def kinds_of(kind):
    return {"x": "classification" if kind == "pair" else kind}


def change(split="train", row=7, **values):
    """Returns a fault that changes values of a row. A function receives the row."""

    def fault(splits):
        example = splits[split][row]
        example.update({name: value(example, splits) if callable(value) else value for name, value in values.items()})
        return example["_where"]

    return fault


def tags(*new):
    """Returns a fault that replaces the tokens and slots of a row by these (token, tag) pairs."""
    return change(tokens=[token for token, _ in new], slots=[tag for _, tag in new])


def many(fault_of_row, split, rows):
    def fault(splits):
        for row in rows:
            fault_of_row(splits[split][row], row)
        return None

    return fault


def copy_of(split, row=3, **more):
    return change(
        "test",
        5,
        text=lambda e, splits: splits[split][row]["text"],
        x=lambda e, splits: splits[split][row]["x"],
        **more,
    )


FAULTS = {
    "the same text twice": (
        "classification",
        change(text=lambda e, p: p["train"][3]["text"], x=lambda e, p: p["train"][3]["x"]),
        "repeat an earlier example",
    ),
    "train text in test": ("classification", copy_of("train"), "texts that also occur in train"),
    "dev text in test": ("classification", copy_of("dev"), "texts that also occur in dev"),
    "nearly the same text": (
        "classification",
        change("test", 5, text=lambda e, p: p["train"][3]["text"].upper() + "!"),
        "differ only in case",
    ),
    "two labels for a text": (
        "classification",
        change(
            "dev",
            5,
            text=lambda e, p: p["train"][3]["text"],
            x=lambda e, p: {"good": "bad", "bad": "good"}[p["train"][3]["x"]],
        ),
        "the same text has different labels",
    ),
    "two tag lists for a text": (
        "tagging",
        change(tokens=lambda e, p: p["train"][3]["tokens"], slots=lambda e, p: ["O"] * len(p["train"][3]["tokens"])),
        "slots: the same text has different labels",
    ),
    "an id twice": ("classification", change(id="train3"), "ids are used more than once"),
    "control character": ("classification", change(text="open the\x07 door and stop"), "control characters"),
    "undecodable": ("classification", change(text="open the d\ufffdor and stop"), "could not be decoded"),
    "wrong encoding": ("classification", change(text="open the cafÃ© and stop"), "wrong encoding"),
    "wrong encoding of Chinese": (
        "classification",
        change(text="你好".encode().decode("latin-1") + " open the door"),
        "wrong encoding",
    ),
    "invisible": ("classification", change(text="open the\u200bdoor and stop"), "invisible"),
    "private use": ("classification", change(text="open the \ue123 door and stop"), "private or unassigned"),
    "HTML tag": ("classification", change(text="open the<br>door and stop"), "markup"),
    "HTML entity": ("classification", change(text="open the &amp; door and stop"), "markup"),
    "look-alike letters": ("classification", change(text="open the d\u043e\u043er and stop"), "look-alike"),
    "full width": ("classification", change(text="open the ｄｏｏｒ and stop"), "full-width"),
    "blanks around": ("classification", change(text=" open the door and stop it"), "start or end with whitespace"),
    "missing text": ("classification", change(text="NaN"), "look like a missing value"),
    "no letter": ("classification", change(text="?!..."), "without a letter"),
    "far too long": ("classification", change(text="open the door and stop " * 200), "far longer"),
    "label unseen in train": ("classification", change("test", x="ugly"), "labels in test that never occur in train"),
    "class of one": ("classification", change(x="rare"), "only once in train"),
    "label in two spellings": ("classification", change(x="Good"), "differ only in case"),
    "label that means missing": ("classification", change(x="n/a"), "look like a missing value"),
    "one label for nearly all": (
        "classification",
        many(lambda e, n: e.update(x="good"), "train", range(1, 60)),
        "one label covers nearly all of train",
    ),
    "label that dev never tests": (
        "classification",
        many(lambda e, n: e.update(x="good"), "dev", range(60)),
        "labels in train that are missing from dev",
    ),
    "other labels in test": (
        "classification",
        many(lambda e, n: e.update(x="good"), "test", range(60)),
        "distributed differently in test",
    ),
    "other lengths in test": (
        "classification",
        many(lambda e, n: e.update(text=e["text"] + f" {' '.join(reversed(WORDS))} {n}"), "test", range(60)),
        "test: texts are longer or shorter",
    ),
    "pair of equals": ("pair", change(text_pair=lambda e, p: e["text"]), "pair are the same"),
    "pair swapped": (
        "pair",
        change("dev", 5, text=lambda e, p: p["train"][3]["text_pair"], text_pair=lambda e, p: p["train"][3]["text"]),
        "in reverse order",
    ),
    "pair half empty": ("pair", change(text_pair=""), "pair is empty"),
    "far number": ("regression", change(x=4000.0), "values far from all others"),
    "numbers all the same": (
        "regression",
        many(lambda e, n: e.update(x=2.5), "dev", range(60)),
        "all values in dev are the same",
    ),
    "other numbers in test": (
        "regression",
        many(lambda e, n: e.update(x=e["x"] + 5), "test", range(60)),
        "values in test differ",
    ),
    "no label": ("multilabel", change(x=[]), "rows without any label"),
    "label that every row has": (
        "multilabel",
        many(lambda e, n: e.update(x=sorted({*e["x"], "art"})), "train", range(60)),
        "that every row has",
    ),
    "I- after O": ("tagging", tags(("play", "O"), ("it", "I-song"), ("now", "O"), ("ok", "O")), "do not continue"),
    "tag unseen in train": (
        "tagging",
        change("test", slots=lambda e, p: ["B-planet", *e["slots"][1:]]),
        "slots: labels in test that never occur in train",
    ),
    "empty token": ("tagging", tags(("play", "O"), ("", "O"), ("now", "O")), "tokens that are empty"),
    "blank in a token": ("tagging", tags(("play it", "O"), ("right", "O"), ("now", "O")), "contain whitespace"),
    "entity of many tokens": (
        "tagging",
        tags(*((f"w{i}", "I-song" if i else "B-song") for i in range(30))),
        "fill most of their text",
    ),
    "entity ends in a comma": (
        "tagging",
        tags(("play", "O"), ("hey", "B-song"), ("jude", "I-song"), (",", "I-song"), ("now", "O")),
        "end with punctuation",
    ),
    "no entity in dev": (
        "tagging",
        many(lambda e, n: e.update(slots=["O"] * len(e["slots"])), "dev", range(240)),
        "splits without any entity",
    ),
}


def notes_of(kind, fault=None):
    splits, tasks = base(kind)
    where = fault(splits) if fault else None
    if tasks is None or fault:
        kinds = kinds_of(kind) if tasks is None else {name: task.type for name, task in tasks.items()}
        tasks = collect_labels(splits, kinds)
    return run_checks(splits, tasks), where


@pytest.mark.parametrize("kind", ["classification", "pair", "multilabel", "regression", "tagging"])
def test_clean_data_has_no_notes(kind):
    assert notes_of(kind)[0] == []


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_reported_with_its_row(name):
    kind, fault, words = FAULTS[name]
    notes, where = notes_of(kind, fault)
    found = [note for note in notes if words in note.what]
    assert found, [note.what for note in notes]
    assert where is None or any(row.startswith(where) or where in row for note in found for row in note.rows), found
    assert all(note.advice and len(note.rows) > 0 for note in notes)


def test_the_check_in_the_docs_runs(monkeypatch):
    names = {}
    exec((ROOT / "docs/checks.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], names)
    monkeypatch.setattr(run, "CHECKS", [*run.CHECKS, names["Shouting"]])
    notes, where = notes_of("classification", change(text="OPEN THE DOOR"))
    assert [(note.what, note.rows) for note in notes] == [("texts in capital letters", [where])]


def test_annotation_errors():
    splits, tasks = base("tagging")
    for number in range(12):  # "hey jude" is a song twelve times, then a person, then nothing
        splits["train"][number].update(
            tokens=["play", f"w{number}", "hey", "jude"], slots=["O", "O", "B-song", "I-song"]
        )
    splits["train"][20].update(tokens=["call", "x", "hey", "jude"], slots=["O", "O", "B-person", "I-person"])
    notes = {note.what: note.rows for note in run_checks(splits, tasks)}
    assert notes["slots: words that nearly always have the same type have another type once"][0].startswith(
        splits["train"][20]["_where"]
    )
    for number in range(30, 42):
        splits["train"][number].update(
            tokens=["play", f"v{number}", "hey", "jude"], slots=["O", "O", "B-song", "I-song"]
        )
    splits["train"][20].update(tokens=["call", "x", "hey", "jude"], slots=["O"] * 4)
    notes = {note.what: note.rows for note in run_checks(splits, tasks)}
    assert notes["slots: words that are nearly always entities are O here"] == [
        f"{splits['train'][20]['_where']}: 'hey jude'"
    ]


def test_chinese_tokens_are_printed_without_spaces():
    splits, _ = base("tagging")
    for examples in splits.values():
        for e in examples:
            e["tokens"] = [f"科{i}" for i, _ in enumerate(e["tokens"])]
    tasks = collect_labels(splits, {"slots": "tagging"})
    (note,) = [note for note in run_checks(splits, tasks) if "appended" in note.what]
    assert note.rows[0].endswith(": '科0'")


def test_a_bioes_entity_without_an_end():
    splits, _ = base("tagging")
    for split in splits.values():
        for e in split:
            e["slots"] = ["S-a" if i == 0 else "O" for i, _ in enumerate(e["slots"])]
    splits["train"][4]["slots"][1] = "B-a"
    tasks = collect_labels(splits, {"intent": "classification", "slots": "tagging"})
    notes = [note for note in run_checks(splits, tasks) if "without an end tag" in note.what]
    assert notes and notes[0].rows[0].startswith(splits["train"][4]["_where"])


def test_tokenizer_checks():
    splits, tasks = base("tagging")
    tokenizer = train_tokenizer(lambda: (" ".join(e["tokens"]) for e in splits["train"]), 2000)
    notes = run_checks(splits, tasks, check_encoding(splits, tasks, Featurizer(tokenizer, tasks, 256)))
    assert notes == []
    clean = copy.deepcopy(splits)
    splits["train"][7].update(tokens=["play", "\ufe0f", "[SEP]"], slots=["O"] * 3)
    splits["dev"][3].update(tokens=["play"] * 20 + ["it"], slots=["O"] * 20 + ["B-song"])
    notes = {note.what: note.rows for note in check_encoding(splits, tasks, Featurizer(tokenizer, tasks, 16))}
    assert any(row.startswith(splits["train"][7]["_where"]) for row in notes["tokens that the tokenizer drops"])
    assert any(
        row.startswith(splits["train"][7]["_where"]) for row in notes["texts contain special tokens of the tokenizer"]
    )
    assert any(row.startswith(splits["dev"][3]["_where"]) for row in notes["texts are longer than --max_length 16"])
    assert any("song 'it'" in row for row in notes["entities are beyond --max_length 16"])
    english = train_tokenizer(lambda: ["abc " * 3], 100)
    notes = [note for note in check_encoding(clean, tasks, Featurizer(english, tasks, 256)) if "[UNK]" in note.what]
    assert notes and len(notes[0].rows) > 1000


def test_check_reads_raw_or_processed_data_and_writes_nothing(tmp_path, capsys, sample):
    process(DataConfig(input=str(ROOT / "dataset/sample_raw"), check=True))
    assert "checks: no problems found" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in sample.iterdir() if path.is_file()}
    process(DataConfig(input=str(sample), check=True))
    assert "checks:" in capsys.readouterr().out
    assert before == {path.name: path.read_bytes() for path in sample.iterdir() if path.is_file()}


@pytest.mark.skipif(not SHARED.exists(), reason="needs the ATIS files in ../shared/data")
def test_known_faults_of_a_real_dataset(capsys):
    process(DataConfig(input=str(SHARED / "atis"), check=True))
    printed = capsys.readouterr().out
    assert (
        "intent: labels in test that never occur in train (4)" in printed
        and "dev: texts that also occur in train (52)" in printed
    )


@pytest.mark.parametrize(
    "text", ["می‌خواهم به خانه بروم و کتاب بخوانم", "«\u00a0c'est l'été\u00a0» dit-il, élève…", "TNFα, IFNγ, 5 μm"]
)
def test_correct_text_in_other_languages_causes_no_notes(text):
    splits, _ = base("classification")
    splits["train"][4]["text"] = text
    tasks = collect_labels(splits, {"x": "classification"})
    assert run_checks(splits, tasks) == []
