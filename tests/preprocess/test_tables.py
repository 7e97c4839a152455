"""Tables: quotes, unnamed columns, lists in cells, parallel label files, archives and encodings."""

import json
import zipfile

import pytest
from shapes import LANGUAGES

from data_process import DataConfig, process
from engine.errors import UserError
from engine.run.reading import unescaped
from preprocess.labels.literals import literal
from preprocess.readers.encodings import choose_encoding
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import read_rows
from preprocess.readers.sources import read_examples, read_texts

KINDS = ["good", "bad"]
NOUNS = [(noun, place) for noun in ("soup", "bread", "tea") for place in ("Bonn", "Ulm", "Kiel")]
ROWS = [(f"the {noun} was {KINDS[n % 2]}, in {place}", KINDS[n % 2]) for n, (noun, place) in enumerate(NOUNS)]


def read(folder, files, source="", **options):
    """Returns the examples of files."""
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body if isinstance(body, bytes) else body.encode())
    return list(read_examples(folder / source if source else folder, ReadOptions(labelled=True, **options)))


def processed(folder, files, **options):
    """Returns {split: rows} of the processed folder of files."""
    raw = folder / "raw"
    for name, body in files.items():
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(body if isinstance(body, bytes) else body.encode())
    process(DataConfig(input=str(raw), output_dir=str(folder / "data"), **options))
    found = folder / "data"
    return {p.stem: [json.loads(row) for row in p.read_text().splitlines()] for p in found.glob("*.jsonl")}


def table(rows, names="text,label", quote='"'):
    cells = [[cell.replace(quote, quote * 2) for cell in row] for row in rows]
    return "".join(f"{row}\n" for row in [names, *(",".join(f"{quote}{cell}{quote}" for cell in row) for row in cells)])


def pairs(examples, key="label"):
    return [(example.get("text", example.get("tokens")), example[key]) for example in examples]


# ---- which columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, pair", [("question", "sentence"), ("Query", "Title"), ("question1", "question2")])
@pytest.mark.parametrize("label", ["label", "gold_label", "is_duplicate"])
def test_two_related_text_columns_are_a_pair(text, pair, label, tmp_path):
    names = ["id", pair, text, label, "annotator"]
    rows = [[str(n), f"it was {n}", f"is it {n}?", KINDS[n % 2], "x"] for n in range(4)]
    found = read(tmp_path, {"a.csv": table(rows, ",".join(names))})
    assert [(e["text"], e["text_pair"], e[label]) for e in found] == [(r[2], r[1], r[3]) for r in rows]
    lines = "".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows)
    assert pairs(read(tmp_path, {"b/c.jsonl": lines}, "b"), label) == pairs(found, label)


def test_two_texts_without_a_header_are_ambiguous(tmp_path):
    rows = [(f"was kostet {noun} {n}", f"in {place} oder {n}", str(n % 2)) for n, (noun, place) in enumerate(NOUNS)]
    body = "".join("\t".join(row) + "\n" for row in rows)
    with pytest.raises(UserError, match="columns 0,1 could both be texts; add --text_column 0 --text_pair_column 1"):
        read(tmp_path, {"a.tsv": body}, header=False)
    found = read(tmp_path, {"a.tsv": body}, header=False, text_column="0", text_pair_column="1")
    assert [(e["text"], e["text_pair"], e["label"]) for e in found] == rows
    titles = "".join(f"{row[2]},{row[0][11:]},{' '.join(row) * 3}\n" for row in rows)  # a title is not a second text
    assert read(tmp_path, {"b/b.csv": titles}, "b", header=False)[0]["text"] == " ".join(rows[0]) * 3


def test_objects_with_words_or_categories(tmp_path):
    rows = [{"words": ["see", noun], "tags": ["O", "B-food"]} for noun, _ in NOUNS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert pairs(read(tmp_path, {"a.jsonl": lines}), "tags") == [(row["words"], row["tags"]) for row in rows]
    cats = "".join(json.dumps({"text": t, "cats": {k: float(k == kind) for k in KINDS}}) + "\n" for t, kind in ROWS)
    assert pairs(read(tmp_path, {"b/a.jsonl": cats}, "b"), "cats") == [(text, [kind]) for text, kind in ROWS]


# ---- quotes and delimiters -------------------------------------------------------------------------------------------


def test_a_tsv_with_quotes_is_read_as_the_note_advises(tmp_path):
    body = "text\tlabel\n" + "".join(f'"say ""{n}""\nand\tgo"\t{KINDS[n % 2]}\n' for n in range(12))
    found = pairs(read(tmp_path, {"a.tsv": body}, format="csv", delimiter="\t"))
    assert found == [(f'say "{n}"\nand\tgo', KINDS[n % 2]) for n in range(12)]
    assert pairs(read(tmp_path, {"a.tsv": body}, quotechar='"')) == found


def test_quotes_can_be_another_character_or_none(tmp_path):
    rows = [(f"it, {n}", "x") for n in range(4)]
    assert pairs(read(tmp_path, {"a.csv": table(rows, quote="'")}, quotechar="'")) == rows
    body = 'text,label\n"tis the season,x\nb,y\n'
    with pytest.raises(UserError, match=r"row 2.*--quotechar none"):
        read(tmp_path, {"b/a.csv": body}, "b")
    assert pairs(read(tmp_path, {"b/a.csv": body}, "b", quotechar="none")) == [('"tis the season', "x"), ("b", "y")]
    with pytest.raises(UserError, match=r"--quotechar.*one character"):
        DataConfig(input="a", output_dir="b", quotechar="''")


def test_a_space_separates_a_label_from_its_text(tmp_path):
    body = "".join(f'{kind} {text}  "x\n' for text, kind in ROWS)
    with pytest.raises(UserError, match="add --delimiter"):
        read(tmp_path, {"a/a.label": body}, "a/a.label")
    found = read(tmp_path, {"a/a.label": body}, "a/a.label", header=False, delimiter=" ")
    assert pairs(found) == [(f'{text}  "x', kind) for text, kind in ROWS]


def test_escapes_in_options_are_replaced(tmp_path):
    assert unescaped(r"\t") == "\t" and unescaped(r"\n") == "\n" and unescaped("|") == "|"
    body = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)
    assert pairs(read(tmp_path, {"a.txt": body}, delimiter="\t")) == ROWS
    sets = [["x", "y"], ["x"], ["y", "z"]]
    rows = [(text, "\n".join(sets[n % 3])) for n, (text, _) in enumerate(ROWS)]
    with pytest.raises(UserError, match="line break"):
        processed(tmp_path / "a", {"a.csv": table(rows)})
    options = {"label_type": "label=multilabel", "label_separator": r"\n"}
    found = processed(tmp_path / "b", {"a.csv": table(rows)}, **options)
    assert sorted((row["text"], row["label"]) for split in found.values() for row in split) == sorted(
        (text, sets[n % 3]) for n, (text, _) in enumerate(ROWS)
    )


# ---- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_a_column_of_row_numbers_is_not_used(name, tmp_path, capsys):
    body = f"{name},text,label,\n" + "".join(f'{n},"{text}",{label},\n' for n, (text, label) in enumerate(ROWS))
    assert pairs(read(tmp_path, {"a.csv": body})) == ROWS
    assert "not used: column 1, 4 (unnamed" in capsys.readouterr().out
    body = "text,label,\n" + "a,x,\n" * 300 + "b,y,more\n"
    with pytest.raises(UserError, match="row 302: 'more' is in an unnamed column"):
        read(tmp_path, {"b/a.csv": body}, "b")


def test_columns_are_joined(tmp_path):
    rows = [(f"title {n}", f"body {n}" if n else "", "x") for n in range(4)]
    right = [(f"{title} {body}".strip(), label) for title, body, label in rows]
    body = table(rows, "title,body,label")
    assert pairs(read(tmp_path, {"a.csv": body}, join_columns="title,body")) == right
    lines = "".join(json.dumps(dict(zip(("title", "body", "label"), row))) + "\n" for row in rows)
    assert pairs(read(tmp_path, {"b/a.jsonl": lines}, "b", join_columns="title,body")) == right
    texts = [row["text"] for row in read_texts(tmp_path / "a.csv", ReadOptions(join_columns="title,body"))]
    assert texts == [text for text, _ in right]
    for source in ("a.csv", "b"):
        with pytest.raises(UserError, match=r"'nothing' .--join_columns.*title, body"):
            read(tmp_path, {}, source, join_columns="title,nothing")


def test_rows_without_a_text_are_dropped_and_counted(tmp_path, capsys):
    body = table([*ROWS, (" ", "good")])
    with pytest.raises(UserError, match="row 11: the text is empty; add --drop_empty"):
        processed(tmp_path / "a", {"a.csv": body})
    found = processed(tmp_path / "b", {"a.csv": body}, drop_empty=True)
    assert sum(map(len, found.values())) == len(ROWS)
    assert "dropped 1 row without a text (--drop_empty); first: " in capsys.readouterr().out
    lines = '{"tokens": ["a"], "slots": ["O"]}\n{"tokens": [], "slots": []}\n'
    assert len(read(tmp_path / "c", {"a.jsonl": lines}, drop_empty=True)) == 1


# ---- lists and objects in cells --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),
        ("[0 1 1]", [0, 1, 1]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("[(0, 3, 'PER')]", [[0, 3, "PER"]]),
        ("{'a'}", ["a"]),
        ("{'key': 'pos'}", {"key": "pos"}),
        ("[]", []),
        ('"[{\\"a\\": 1}]"', [{"a": 1}]),
        ("['a' 'b', 'c']", None),
        ("[a, b]", None),
        ("[" * 5000 + "]" * 5000, None),
        ("text", None),
        ("", None),
    ],
)
def test_parsing_of_cells(cell, value):
    assert literal(cell) == value


def test_sets_and_single_values_in_cells(tmp_path):
    sets = [["a", "b"], ["a"], ["b"]]
    rows = [(text, str(sets[n % 3])) for n, (text, _) in enumerate(ROWS)]
    assert pairs(read(tmp_path, {"a.csv": table(rows)})) == [(text, sets[n % 3]) for n, (text, _) in enumerate(ROWS)]
    rows = [(text, str({"name": label})) for text, label in ROWS]
    assert pairs(read(tmp_path, {"b/a.csv": table(rows)}, "b")) == ROWS
    assert pairs(read(tmp_path, {}, "b", label_types={"label": "classification"})) == rows


def test_names_in_brackets_without_quotes_are_sets(tmp_path):
    rows = [(text, ["[calm, sad]", "[calm]"][n % 2]) for n, (text, _) in enumerate(ROWS)]
    found = processed(tmp_path, {"a.csv": table(rows)}, label_type="label=multilabel")
    assert {tuple(row["label"]) for split in found.values() for row in split} == {("calm", "sad"), ("calm",)}


def test_character_positions_are_not_labels(tmp_path):
    rows = [(text, str(list(range(4 + n, 9 + n)))) for n, (text, _) in enumerate(ROWS)]
    with pytest.raises(UserError, match="character positions"):
        processed(tmp_path, {"a.csv": table(rows, "text,spans")})


# ---- labels beside texts, one file per class, archives ---------------------------------------------------------------


@pytest.mark.parametrize(
    "names", ["{}.txt {}.labels", "{}_text.txt {}_labels.txt", "x_{}.txt y_{}.txt", "{}.text {}.label"]
)
def test_labels_next_to_texts(names, tmp_path):
    files = {}
    for split in ("train", "test"):
        texts, labels = (name.format(split) for name in names.split())
        files |= {texts: "".join(f"{split} {text}\n" for text, _ in ROWS), labels: "".join(f"{b}\n" for _, b in ROWS)}
    found = read(tmp_path, files | {"mapping.txt": "0 good\n1 bad\n"})
    assert pairs(found) == [(f"{split} {text}", label) for split in ("train", "test") for text, label in ROWS]
    assert [e["split"] for e in found] == ["train"] * 9 + ["test"] * 9


@pytest.mark.parametrize("names", ["{1}/{0}.txt", "{1}_{0}.txt", "reviews.{1}.{0}"])
def test_one_file_per_class(names, tmp_path, capsys):
    files = {
        names.format(kind, split): f"{split} text of {kind}\n" * 6 for kind in KINDS for split in ("train", "test")
    }
    found = read(tmp_path, files)
    assert sorted({(e["split"], *pair) for e, pair in zip(found, pairs(found))}) == sorted(
        (split, f"{split} text of {kind}", kind) for kind in KINDS for split in ("train", "test")
    )
    assert len(found) == 24 and "one class for each of the 2 files" in capsys.readouterr().out


def test_files_that_are_not_named_after_classes_are_rejected(tmp_path):
    for names in (("text.txt", "vocab.txt"), ("1.txt", "2.txt")):
        folder = tmp_path / names[0]
        with pytest.raises(UserError, match="unknown format"):
            read(folder, dict.fromkeys(names, "a text\n" * 5))


@pytest.mark.parametrize(
    ("files", "words", "options"),
    [
        ({"a.csv": table([*ROWS, ("text", "label")])}, "a.csv, row 11: repeats the header", {}),
        ({"a.txt": "__label__a b\r__label__c d\r"}, "a.txt: rows end with carriage returns", {}),
        ({"train/a.csv": table(ROWS), "test/x/1.txt": "a"}, "test: contains no data files", {}),
        ({"a.csv": table(ROWS)}, "a.csv: --format brat reads a folder", {"format": "brat", "source": "a.csv"}),
        ({"a.tsv": '"text"\t"label"\n"a b"\t"c"\n'}, "if cells are quoted, add --quotechar '\"'", {}),
        ({"a.csv": "text,label\n'a, b',c\n"}, 'if cells are quoted, add --quotechar "\'"', {}),
        ({"x.txt": "to Bonn\n\nUlm\n", "x.tags": "O B-L\nO\nO\n"}, "x.txt, row 2: 0 words, but x.tags has 1 tags", {}),
    ],
)
def test_tables_that_would_be_misread_raise_a_one_line_error(files, words, options, tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path, files, **options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_classes_are_spelled_as_in_file_names(tmp_path):
    files = {f"train_{name}.txt": "a text\n" for name in ("Non-fiction", "Sci_Fi")}
    assert {label for _, label in pairs(read(tmp_path, files, format="class_files"))} == {"Non-fiction", "Sci_Fi"}


def test_names_that_could_be_classes_must_be_confirmed(tmp_path):
    files = {"chapter.txt": "a text\n" * 5, "poem.txt": "a line\n" * 5}
    with pytest.raises(UserError, match=r"chapter.txt, poem.txt may contain one class each; .* --format class_files"):
        read(tmp_path, files)
    assert {label for _, label in pairs(read(tmp_path, {}, format="class_files"))} == {"chapter", "poem"}
    clear = {"pos.txt": "a text\n" * 5, "neg.txt": "a line\n" * 5}
    assert {label for _, label in pairs(read(tmp_path / "clear", clear))} == {"pos", "neg"}


def test_a_damaged_archive_raises_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match=r"a.zip: not a readable .zip"):
        read(tmp_path, {"a.zip": b"PK\x03\x04 and no more"}, "a.zip")


# ---- a test split without labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("{}.jsonl", lambda text, label: json.dumps({"sentence": text} | ({"label": label} if label else {}))),
        ("{}.csv", lambda text, label: f'"{text}",{label or ""}'),
        ("{}.json", lambda text, label: json.dumps({"sentence": text} | ({"label": label} if label else {"id": text}))),
        ("{}.tsv", lambda text, label: f"{text}\t{label or -1}"),
    ],
)
def test_a_test_split_without_labels_is_skipped(name, row, tmp_path, capsys):
    header = {"csv": "sentence,label\n", "tsv": "sentence\tlabel\n"}.get(name[3:], "")
    files = {name.format(split): header + "".join(f"{row(text, split != 'test' and label)}\n" for text, label in ROWS)
             for split in ("train", "dev", "test")}  # fmt: skip
    found = processed(tmp_path, files)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 9, "dev": 9}
    assert "skipped the test split, which has no labels" in (printed := capsys.readouterr().out)
    assert "--predict_file" in printed


def test_a_partly_labelled_test_split_raises_an_error(tmp_path):
    test = table([(text, label if n > 3 else "") for n, (text, label) in enumerate(ROWS)])
    with pytest.raises(UserError, match=r"test.csv, row 2.*--drop_unlabelled"):
        processed(tmp_path / "a", {"train.csv": table(ROWS), "test.csv": test})
    with pytest.raises(UserError, match=r"test.csv.*--label_column"):
        processed(tmp_path / "b", {"train.csv": table(ROWS), "test.csv": table(ROWS, "text,lable")})


# ---- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", LANGUAGES)
def test_the_encoding_is_detected(encoding, tmp_path, capsys):
    rows = [f"{LANGUAGES[encoding][0]} {n}" for n in range(5)]
    (tmp_path / "a.txt").write_bytes("".join(f"{row}\n" for row in rows).encode(encoding))
    assert [row for _, row in read_rows(tmp_path / "a.txt")] == rows
    texts = [row["text"] for row in read_texts(tmp_path / "a.txt", ReadOptions())]
    assert texts == rows
    if encoding not in ("utf-16", "utf-32", "utf-8-sig"):
        assert f"read as {encoding.upper()}" in capsys.readouterr().out


def test_surrogate_pairs_as_written_by_oracle(tmp_path):
    text = "so 👍 und 🎉 é"
    halves = text.encode("utf-16-le")
    body = b"".join(halves[i : i + 2].decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")
                    for i in range(0, len(halves), 2))  # fmt: skip
    (tmp_path / "a.txt").write_bytes(body + b"\n" + body)
    assert [row for _, row in read_rows(tmp_path / "a.txt")] == [text, text]


@pytest.mark.parametrize("encoding", ["mac_roman", "cp850", "iso8859-6", "cp862"])
def test_an_encoding_that_gives_implausible_text_is_rejected(encoding, tmp_path):
    text = {"iso8859-6": "مرحبا بكم", "cp862": "שלום לכם"}.get(encoding, "Die Suppe schmeckt schön, früher größer")
    (tmp_path / "a.txt").write_bytes(f"{text}\n{text}\n".encode(encoding))
    with pytest.raises(UserError, match=r"a\.txt.*--encoding"):
        list(read_rows(tmp_path / "a.txt"))


def test_the_error_names_both_encodings_that_fit():
    with pytest.raises(UserError, match=r"add the right encoding: --encoding cp125. .* or --encoding cp125. "):
        choose_encoding(["a.txt"], "der løber en mand\n".encode("cp1252"), lambda path, name: True)


def test_texts_of_a_folder_share_an_encoding(tmp_path, capsys):
    texts = ["今天的天气很好", "面很好吃", "不错", "好", "下次还会来的"]
    files = {f"{kind}/{n}.txt": text.encode("gb18030") for kind in KINDS for n, text in enumerate(texts)}
    assert [text for text, _ in pairs(read(tmp_path, files))] == texts * 2
    assert capsys.readouterr().out.count("read as GB18030") == 1


def test_messages_name_the_archive_of_a_file(tmp_path, capsys):
    for name, content in (("a", table(ROWS)), ("b", table(ROWS) + ",food\n")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("in/x.csv", content)
    process(DataConfig(input=str(tmp_path / "a.zip"), preview=True, dev_ratio=0.2, test_ratio=0.2))
    with pytest.raises(UserError, match=f"^{tmp_path}/b.zip/in/x.csv, row 11: the text is empty"):
        process(DataConfig(input=str(tmp_path / "b.zip"), preview=True))
    printed = capsys.readouterr().out
    assert printed.count(f"{tmp_path}/a.zip/in/x.csv") == 2 and printed.count("x.csv") == 3
