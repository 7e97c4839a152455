"""Gates: data that was probably misread raises a one-line error that names the row and the options that help."""

import json

import pytest
from conftest import read_json
from shapes import csv_of, lines

from data_process import DataConfig, process
from engine.errors import UserError
from preprocess.checks.labels import folded_label
from preprocess.gates import GATES
from preprocess.labels.positions import marks_of, marks_width
from preprocess.labels.schemes import read_tags
from preprocess.preview import marked_text, shown_example

CITIES = "Lyon Bari Gent Riga Vigo Turku Brno Split Varna Lviv Cork Graz Bern Nice Pisa Faro Kiel Jena Gera Ulm".split()
TAGS = ["B-PER", "O", "O", "B-LOC", "I-LOC"]


def sentence(number):
    return [f"Mia{number}", "flies", "to", "New", CITIES[number % 20]]


def tagged(tags=TAGS, number=24, tokens=sentence):
    return {"a.jsonl": lines({"tokens": tokens(n), "tags": list(tags)} for n in range(number))}


def labelled(label, number=24, text="Mia likes {}"):
    rows = [{"text": f"{text.format(CITIES[n % 20])} {n}", "label": label(n)} for n in range(number)]
    return {"a.jsonl": lines(rows)}


def table(label, number=24, name="label", text="Mia likes {}"):
    return {"a.csv": csv_of([(f"{text.format(CITIES[n % 20])} {n}", label(n)) for n in range(number)], ("text", name))}


def texts(rows):
    return {"a.jsonl": lines({"text": text, "label": label} for text, label in rows)}


WORDS = [("Mia", "B-PER"), ("flies", "O"), ("to", "O"), ("Lyon", "B-LOC"), (".", "O")] * 12
REJECTED = [  # gate, files, options, words of the message
    ("one_word", texts(WORDS), {}, ["row 1", "'Mia'", "--sentence_column"]),
    ("one_word", texts((word, tag[-3:]) for word, tag in WORDS), {}, ["--token_column"]),
    ("one_word", texts((word, ("NOUN", "VERB", "ADP")[n % 3]) for n, (word, _) in enumerate(WORDS)), {}, ["row 1"]),
    ("one_word", texts((word, "xyz"[n % 3]) for n, (word, _) in enumerate(WORDS)), {}, ["row 1"]),
    ("one_word", {"a.jsonl": lines({"tokens": [w], "tags": [t]} for w, t in WORDS)}, {}, ["row 1"]),
    ("one_example", {f"{split}.jsonl": lines([{"tokens": [w for w, _ in WORDS], "tags": [t for _, t in WORDS]}])
                     for split in ("train", "dev", "test")}, {}, ["60 tokens", "--sentence_end"]),
    ("counted_tokens", tagged(tokens=lambda n: list("12345")), {}, ["1 2 3 4", "--token_column"]),
    ("counted_tokens", tagged(tokens=lambda n: [f"t{n}.{k}" for k in range(5)]), {}, ["t0.0 t0.1"]),
    ("id_text", {"a.jsonl": lines({"text": str(4711 + n), "label": "ab"[n % 2]} for n in range(24))}, {},
     ["'4711'", "--text_column"]),
    ("id_text", {"a.csv": csv_of([(f"doc_{n}", "ab"[n % 2]) for n in range(24)], ("text", "label"))}, {}, ["'doc_0'"]),
    ("glued", tagged(tokens=lambda n: ["科0", "技1", "大0", "学1", "a"]), {}, ["'科0'"]),
    ("csv_quotes", {"a.tsv": "text\tlabel\n" + "".join(f'"she said ""no"" {n}"\t{"ab"[n % 2]}\n' for n in range(24))},
     {}, ["--format csv"]),
    ("encoding", labelled(lambda n: "ab"[n % 2], text="CafÃ© crÃ¨me Ã  {}"), {}, ["--encoding"]),
    ("whole_texts", labelled(lambda n: [[0, len(f"Mia likes {CITIES[n % 20]} {n}"), "intent"], [0, 3, "who"]]), {},
     ["row 1", "'intent'"]),
    ("mentions", {"a.jsonl": lines({"text": f"Mia likes {c}", "triple_list": [["Mia", "likes", c], ["Bob", "likes", c]]}
                                   for c in CITIES)}, {}, ["row 1", "20 of 40", "Bob —likes→ "]),
    ("multihot", labelled(lambda n: [n % 2, 1, 0]), {}, ["row 1", "[0, 1, 0]", "--label_names", "labels.txt"]),
    ("multihot", labelled(lambda n: [1.0, float(n % 2)]), {}, ["length 2"]),
    ("multihot", table(lambda n: f"[1, {n % 2}, 0]"), {}, ["row 2"]),
    ("multihot", table(lambda n: f"1 0 {n % 2} 1"), {}, ["length 4"]),
    ("multihot", table(lambda n: f"10{n % 2}1"), {}, ["length 4"]),
    ("structured", table(lambda n: ["[calm, sad]", "[glad]"][n % 2]), {}, ["'[calm, sad]'", "=spans"]),
    ("structured", table(lambda n: ["3;4;5;6", "0;1;2"][n % 2]), {}, ["'3;4;5;6'"]),
    ("structured", labelled(lambda n: [f"0 {3 + n % 2} PER", "9 12 LOC"]), {}, ["'0 3 PER'"]),
    ("structured", labelled(lambda n: f"{{'mood': '{'ab'[n % 2]}'}}"), {}, ["label_column"]),
    ("structured", labelled(lambda n: json.dumps([{"start": n % 3, "end": 5, "label": "X"}])), {}, ["row 1"]),
    ("structured", labelled(lambda n: f"0:{3 + n % 2}:PER;9:13:LOC"), {}, ["offsets"]),
    ("offsets", labelled(lambda n: list(range(n % 3, n % 3 + 4))), {}, ["character positions"]),
    ("broken_labels", table(lambda n: "happy\nsad" if n % 3 else "sad"), {}, ["line break", "--label_separator"]),
    ("broken_labels", labelled(lambda n: "happy\tsad" if n % 3 else "sad"), {}, ["'happy\\tsad'"]),
    ("repeated", {"a.jsonl": lines({"text": " ".join(sentence(n)), "labels": TAGS[:2] * 2} for n in range(24))}, {},
     ["'B-PER', 'O', 'B-PER'", "`tokens`"]),
    ("repeated", labelled(lambda n: ["B-PER O O", "O O O"][n % 2]), {}, ["repeats items"]),
    ("repeated", labelled(lambda n: [1, -1, 1 - n % 2 * 2]), {}, ["[1, -1, 1]"]),
    ("joined", table(lambda n: ["calm", "glad", "calm|glad"][n % 3]), {}, ["'calm|glad'", "--label_separator '|'"]),
    ("free_text", labelled(lambda n: f"what a day in {CITIES[n % 20]}, {n} years ago"), {}, ["nearly all different"]),
    ("free_text", labelled(lambda n: [f"key {n}", f"word {n}"]), {}, ["'key 0'"]),
    ("one_word", {"a.jsonl": lines({"tokens": [f"Mia likes {w}"], "tags": [t]} for w, t in WORDS)}, {}, ["row 1"]),
    ("free_text", table(lambda n: str(n * 7)), {}, ["--label_type label=regression"]),
    ("only_O", tagged(["O"] * 5), {}, ["'O'", "--tag_column"]),
    ("only_O", tagged(["+", "-", "+", "+", "-"]), {}, ["'+'"]),
    ("mixed_tags", tagged(["B-PER", "O", "O", "LOC", "LOC"]), {}, ["'B-PER'", "'LOC'", "--tag_scheme keep"]),
    ("mixed_tags", tagged(["B-PER", "O", "O", "B_LOC", "I_LOC"]), {}, ["inconsistent"]),
    ("mixed_tags", tagged(["B-PER", "0", "0", "B-LOC", "I-LOC"]), {}, ["'0'"]),
    ("mixed_tags", {"train.jsonl": tagged()["a.jsonl"], "dev.jsonl": tagged(["X", "O", "O", "Y", "Y"])["a.jsonl"]}, {},
     ["dev.jsonl"]),
    ("double_prefix", tagged(["B-B-PER", "O", "O", "B-B-LOC", "B-I-LOC"]), {}, ["two prefixes"]),
    ("many_tags", tagged(["x"] * 5, 60) | {"a.jsonl": lines(
        {"tokens": sentence(n), "tags": [f"{n}.{k}" for k in range(5)]} for n in range(60))}, {},
     ["nearly all different"]),
]  # fmt: skip


def run(tmp_path, files, **options):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, content in files.items():
        (raw / name).write_text(content, encoding="utf-8", newline="")
    process(DataConfig(input=str(raw), output_dir=str(tmp_path / "out"), **options))


def rows(tmp_path):
    """Returns ({task: its labels}, {text or tokens: labels of the row})."""
    written = [line for split in tmp_path.glob("out/*.jsonl") for line in split.open()]
    return read_json(tmp_path / "out/labels.json"), list(map(json.loads, written))


@pytest.mark.parametrize(("gate", "files", "options", "words"), REJECTED)
def test_implausible_data_is_rejected_unless_it_is_accepted(tmp_path, gate, files, options, words):
    with pytest.raises(UserError) as error:
        run(tmp_path, files, **options)
    message = str(error.value)
    assert all(word in message for word in [*words, f"--accept {gate}"]) and "\n" not in message, message
    assert message.count(str(tmp_path)) == 1 and len(message) < 600 and not (tmp_path / "out").exists()
    every = ",".join({gate, "free_text", "structured", "many_tags"})
    try:
        process(DataConfig(input=str(tmp_path / "raw"), output_dir=str(tmp_path / "out"), accept=every))
    except UserError as other:  # later steps may fail for another reason
        assert gate in ("free_text", "multihot", "only_O") and "--accept" not in str(other)
    else:
        assert (tmp_path / "out/labels.json").exists()


def test_every_gate_is_tested():
    assert {gate.name for gate in GATES} == {gate for gate, *_ in REJECTED}


PLAUSIBLE = {
    "names": {"a.csv": csv_of([(CITIES[n % 20] + "aeiou"[n % 5], "fm"[n % 2]) for n in range(60)], ("text", "label"))},
    "two words": {"a.csv": csv_of([("good film", "pos"), ("bad film", "neg")] * 12, ("text", "label"))},
    "numbers in texts": labelled(lambda n: "ab"[n % 2], text="{} 12 34"),
    "some votes twice": labelled(lambda n: ["calm", ["glad", "calm"][n % 5 == 0]]),
    "few rows": labelled(lambda n: f"class {n % 4}", 12),
    "sets of numbers": labelled(lambda n: [n % 3, 7]),
    "pairs of sets": labelled(lambda n: [[0, 7], [1], []][n % 3]),
    "brackets": table(lambda n: ["[x]", "(y)"][n % 2]),
    "signs in names": table(lambda n: ["C/C++", "C", "R&D"][n % 3]),
    "numbers": labelled(lambda n: n % 5),
    "IO": tagged(["I-PER", "O", "O", "I-LOC", "I-LOC"]),
    "parts of speech": tagged(["NNP", "VBZ", "TO", "NNP", "NNP"]),
    "types of hyphens": tagged(["B-S-Bahn", "O", "O", "B-E-mail", "I-E-mail"]),
    "bare types": tagged(["PER", "O", "O", "LOC", "LOC"]),
    "long sentences": {"a.jsonl": lines({"tokens": sentence(n) * 50, "tags": TAGS * 50} for n in range(24))},
    "quotes": labelled(lambda n: "ab"[n % 2], text='he said "yes" in {}'),
}


@pytest.mark.parametrize("name", PLAUSIBLE)
def test_plausible_data_passes_all_gates(tmp_path, name):
    run(tmp_path, PLAUSIBLE[name])
    assert (tmp_path / "out/train.jsonl").exists()


def test_an_option_resolves_the_ambiguity(tmp_path):
    with pytest.raises(UserError, match="occur only once"):
        run(tmp_path, table(lambda n: f"note {n}"), label_type="label=classification")
    with pytest.raises(UserError, match="--accept nothing: no such gate; the gates are one_word"):
        DataConfig(input="x", output_dir="y", accept="nothing")


WAYS = [
    (["B_PER", "I_PER", "O"], ["B-PER", "I-PER", "O"]),
    (["PER-B", "PER-I", "O"], ["B-PER", "I-PER", "O"]),
    (["PER_B", "PER_I", "O"], ["B-PER", "I-PER", "O"]),
    (["b-per", "i-per", "o"], ["B-per", "I-per", "O"]),
    (["S_n", "B_n", "E_n"], ["S-n", "B-n", "E-n"]),
    (["B:PER", "I:PER", "O"], ["B-PER", "I-PER", "O"]),
    (["B-PER ", "B-PER", "O "], ["B-PER", "B-PER", "O"]),
    (["B", "I", "O"], ["B-entity", "I-entity", "O"]),
    (["NN ", "VB"], ["NN", "VB"]),
    (["B-PER", "I-PER", "o"], ["B-PER", "I-PER", "O"]),
]
AS_THEY_ARE = [["B-PER", "O"], ["NN", "B_x"], ["S", "B", "M", "E"], ["e_mail", "name", "O"], ["PER", "O"]]
AS_THEY_ARE += [["O", "b", "c"]]
MIXED = [["B-PER", "LOC", "O"], ["B-PER", "B_LOC", "O"], ["B-PER", "PER-I", "O"], ["b-per", "B-PER", "O"]]
MIXED += [["B-X", "_", "O"], ["B-X", "o", "O"]]


@pytest.mark.parametrize(("tags", "as_read"), WAYS)
def test_tag_notations(tags, as_read):
    written, _ = read_tags(tags)
    assert [written[tag] for tag in tags] == as_read


def test_tags_that_are_unchanged_or_mixed():
    assert all(read_tags(tags) == ({}, "") for tags in AS_THEY_ARE)
    assert all(read_tags(tags) is None for tags in MIXED)


@pytest.mark.parametrize("as_written", ["{}_{}", "{1}-{0}", "{1}_{0}", "{}/{}", "{}-{} "])
def test_other_tag_notations_give_the_same_files(tmp_path, as_written, capsys):
    def written(tag):
        return "O" if tag == "O" else as_written.format(*tag.split("-"))

    (tmp_path / "usual").mkdir()
    run(tmp_path / "usual", tagged())
    run(tmp_path, tagged([written(tag) for tag in TAGS]))
    assert "do not use the B-X notation" in capsys.readouterr().out
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "labels.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "usual/out" / name).read_bytes()


def test_each_file_can_have_its_own_tag_notation_and_keep_leaves_it_unchanged(tmp_path):
    other = [tag.replace("-", "_") for tag in TAGS]
    files = {"train.jsonl": tagged()["a.jsonl"], "dev.jsonl": tagged(other)["a.jsonl"]}
    run(tmp_path, files)
    assert rows(tmp_path)[0]["tags"]["labels"] == ["O", "B-LOC", "B-PER", "I-LOC"]
    (tmp_path / "kept").mkdir()
    run(tmp_path / "kept", tagged(other), tag_scheme="keep")
    assert rows(tmp_path / "kept")[0]["tags"]["labels"] == ["O", "B_LOC", "B_PER", "I_LOC"]
    (tmp_path / "spans").mkdir()
    run(tmp_path / "spans", tagged(["PER_B", "O", "O", "LOC_B", "LOC_I"]), label_type="tags=spans")
    assert rows(tmp_path / "spans")[1][0]["tags"] == [[0, 0, "PER"], [3, 4, "LOC"]]


MARKS = [
    labelled(lambda n: [n % 2, 1, 0]),
    table(lambda n: f"[{n % 2}, 1, 0]"),
    table(lambda n: f"{n % 2},1,0"),
    labelled(lambda n: [bool(n % 2), True, False]),
]


@pytest.mark.parametrize("files", MARKS)
@pytest.mark.parametrize("named", ["option", "file"])
def test_multi_hot_lists_become_label_sets_if_their_positions_have_names(tmp_path, files, named):
    by_option = named == "option"
    files = files if by_option else files | {"labels.txt": "art\nlaw\nwar\n"}
    run(tmp_path, files, label_names="art,law,war" if by_option else "")
    tasks, written = rows(tmp_path)
    assert tasks["label"]["type"] == "multilabel" and tasks["label"]["labels"] == ["art", "law"]
    assert all(row["label"] == (["art", "law"] if int(row["text"].split()[-1]) % 2 else ["law"]) for row in written)


def test_invalid_names_of_positions(tmp_path):
    with pytest.raises(UserError, match="--label_names: 2 names, but the lists of 'label' have 3 positions"):
        run(tmp_path, labelled(lambda n: [n % 2, 1, 0]), label_names="art,law")
    (tmp_path / "raw/a.jsonl").write_text(
        labelled(lambda n: [n % 2, 1, 0] if n < 5100 else [2, 1, 0], 5200)["a.jsonl"], encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"row 5101: expected 3 values 0 or 1, as in other rows, found \[2, 1, 0\]"):
        options = {"label_names": "a,b,c", "accept": "free_text"}
        process(DataConfig(input=str(tmp_path / "raw"), output_dir=str(tmp_path / "out"), **options))


def test_marks():
    assert marks_of("[1. 0. 1.]") == marks_of([1, 0, 1]) == marks_of("1 0 1") == marks_of(["1", "0", "1"]) == [1, 0, 1]
    assert all(marks_of(label) is None for label in ("1,0", "1", "10", [2, 1], [], None))
    assert marks_width([[1, 0], [1]]) == marks_width([[0], [1]]) == marks_width([[0, 1], "x"]) == 0


def test_similar_labels_never_differ_in_a_sign_or_digit():
    same = [("class 1", "class_1"), ("Very Good", "very-good"), ("ＡＢ", "ab"), ("a 1", "A1")]
    other = [("-1", "1"), ("A+", "A"), ("A-", "A"), ("1-2", "12"), ("x²", "x2"), ("t -1", "t 1"), ("1 2", "12")]
    assert all(folded_label(a) == folded_label(b) for a, b in same)
    assert not any(folded_label(a) == folded_label(b) for a, b in other)


def test_the_interpretation_is_printed_before_anything_is_written(tmp_path, capsys):
    with pytest.raises(UserError):
        run(tmp_path, {"train.jsonl": tagged()["a.jsonl"], "other.jsonl": ""})
    (tmp_path / "raw/other.jsonl").unlink()
    process(DataConfig(input=str(tmp_path / "raw"), preview=True))
    shown = capsys.readouterr().out
    assert shown.count("flies to [New ") == 10 and "|LOC]" in shown and "[Mia" in shown
    assert "train.jsonl (train)" in shown and "splits: train 22, dev 2" in shown
    assert "checks" not in shown and not (tmp_path / "out").exists()
    process(DataConfig(input=str(tmp_path / "raw"), output_dir=str(tmp_path / "out")))
    assert capsys.readouterr().out.count("flies to [New ") == 2
    process(DataConfig(input=str(tmp_path / "out"), preview=True))
    assert "read as a processed folder" in capsys.readouterr().out


def test_printed_examples_are_marked_and_truncated():
    parts_of_speech = {"tokens": ["Mia", "sings"], "upos": ["PROPN", "VERB"]}
    assert shown_example(parts_of_speech, {"upos": "tagging"}) == "upos: Mia|PROPN sings|VERB"
    assert marked_text(["go", "to", "New", "York"], [(2, 3, "city")]) == "go to [New York|city]"
    assert marked_text(list("去北京大学"), [(1, 4, "学校"), (1, 2, "地")]) == "去[[北京|地]大学|学校]"
    long = marked_text(["word"] * 900 + ["Rome"] + ["word"] * 9000, [(900, 900, "LOC")])
    assert long.startswith("… word") and "[Rome|LOC]" in long and len(long) < 400
