"""Tokens with tags in the forms they come in: one token per row, one sentence per row, pieces with types. Each is read
exactly as its text says, or refused in one line that names the options that decide."""

import json
import random

import openpyxl
import pytest
from conftest import TINY

from config import Config
from data_process import DataConfig, process
from engine.errors import UserError
from main import main
from preprocess.readers.options import ReadOptions
from preprocess.readers.sources import find_sources, part_of_name, read_examples, read_texts

SENTENCES = [  # (tokens, tags of entities, parts of speech)
    ("Mia Berg flew to Turin .".split(), "B-PER I-PER O O B-LOC O".split(), "NNP NNP VBD TO NNP .".split()),
    ("it snowed ,".split(), "O O O".split(), "PRP VBD ,".split()),
    ("Graz is warm # now".split(), "B-LOC O O O O".split(), "NNP VBZ JJ SYM RB".split()),
    ("ask Tom".split(), "O B-PER".split(), "VB NNP".split()),
    ("He left .".split(), "O O O".split(), "PRP VBD .".split()),
] * 5


def rows_of(form, before=lambda number: "", sentences=SENTENCES, between="\n"):
    """One token per row: form(number from 1, token, tag, part of speech)."""
    blocks = [
        before(number) + "".join(form(place, *cells) + "\n" for place, cells in enumerate(zip(*sentence), 1))
        for number, sentence in enumerate(sentences)
    ]
    return between.join(blocks)


def of_rows(form):
    """One sentence per row: form(tokens, tags, intent)."""
    return "".join(form(tokens, tags, "go" if len(tokens) > 3 else "say") + "\n" for tokens, tags, _ in SENTENCES)


def expected(**tasks):
    """What is read: tasks by name, each 1 for entities, 2 for parts of speech, or a list of values."""
    rows = [{"tokens": sentence[0]} for sentence in SENTENCES]
    for name, values in tasks.items():
        for number, (row, sentence) in enumerate(zip(rows, SENTENCES)):
            row[name] = values[number] if isinstance(values, list) else sentence[values]
    return rows


def star(tag, after):
    """A tag of CoNLL-2012."""
    ends = ")" if tag != "O" and not after.startswith("I-") else ""
    return f"({tag[2:]}{'' if ends else '*'}{ends}" if tag[0] == "B" else f"*{ends}"


def conll_2012(place, token, tag, pos):
    after = {"Mia": "I-PER"}.get(token, "O")
    return f"bn/x_0001   0   {place - 1}   {token}   {pos}   (S*   -   -   -   A   {star(tag, after)}   (V*)   -"


def first_only(sentences=SENTENCES):
    rows = [
        f"{f'Sentence: {n}' if not place else ''},{t},{p},{g}\n"
        for n, sentence in enumerate(sentences)
        for place, (t, g, p) in enumerate(zip(*sentence))
    ]
    return "Sentence #,Word,POS,Tag\n" + "".join(rows)


def suffixed(tag):
    """A tag as Korean corpora write it: PER_B, and - outside."""
    return "-" if tag == "O" else f"{tag[2:]}_{tag[0]}"


KOREAN = [[suffixed(tag) for tag in tags] for _, tags, _ in SENTENCES]
PLAIN = rows_of(lambda n, t, g, p: f"{t} {g}")
WHOLE = rows_of(lambda n, t, g, p: f"{t}\t{g}", between="")
INTENTS = ["go" if len(tokens) > 3 else "say" for tokens, _, _ in SENTENCES]
READ = {  # name: (file, text, what is read, options)
    "token and tag": ("a.txt", PLAIN, expected(slots=1), {}),
    "CRLF": ("a.txt", PLAIN.replace("\n", "\r\n"), expected(slots=1), {}),
    "blanks after tags": ("a.conll", rows_of(lambda n, t, g, p: f"{t}\t{g} "), expected(slots=1), {}),
    "a tab after tags": ("a.conll", rows_of(lambda n, t, g, p: f"{t}\t{g}\t"), expected(slots=1), {}),
    "aligned": ("a.conll", rows_of(lambda n, t, g, p: f"{t:<8}{p:<6}{g}"), expected(slots=1), {}),
    "an index": ("a.txt", rows_of(lambda n, t, g, p: f"{n}\t{t}\t{g}"), expected(slots=1), {}),
    "an index from 0": ("a.iob2", rows_of(lambda n, t, g, p: f"{n - 1} {t} {p} {g}"), expected(slots=1), {}),
    "a sentence column": ("a.txt", rows_of(lambda n, t, g, p: f"doc {t} {g}"), expected(slots=1), {}),
    "comments": ("a.txt", rows_of(lambda n, t, g, p: f"{t} {g}", lambda n: f"# sentence {n}\n"), expected(slots=1), {}),
    "comments with tabs": (
        "a.tsv",
        "## made by hand : \\t\n"
        + rows_of(lambda n, t, g, p: f"{t}\t{g}", lambda n: f"## doc-{n}\t<Mia:PER> flew {n}\n"),
        expected(slots=1),
        {},
    ),
    "comments of another sign": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{t} {g}", lambda n: f"% {n}\n"),
        expected(slots=1),
        {"comment": "%"},
    ),
    "GermEval": (
        "a.tsv",
        rows_of(lambda n, t, g, p: f"{n}\t{t}\t{g}\t{g if t == 'Mia' else 'O'}", lambda n: "#\thttp://x.y [2009]\n"),
        expected(slots_2=1, slots_3=[[g if t == "Mia" else "O" for t, g in zip(*s[:2])] for s in SENTENCES]),
        {},
    ),
    "GermEval, one level": (
        "a.tsv",
        rows_of(lambda n, t, g, p: f"{n}\t{t}\t{g}\t{g if t == 'Mia' else 'O'}", lambda n: "#\thttp://x.y [2009]\n"),
        expected(slots=1),
        {"tag_column": "2"},
    ),
    "numbers, and - outside": (
        "a.txt",
        rows_of(lambda n, t, g, p: f"{n}\t{t}\t{suffixed(g)}"),
        expected(slots=KOREAN),
        {},
    ),
    "a sentence per row, and - outside": (
        "a.tsv",
        "".join(f"{' '.join(s[0])}\t{' '.join(tags)}\n" for s, tags in zip(SENTENCES, KOREAN)),
        expected(slots=KOREAN),
        {},
    ),
    "MISC of CoNLL-U": (
        "a.conllu",
        rows_of(lambda n, t, g, p: f"{n}\t{t}\t_\t{p}\t_\t_\t_\t_\t_\t{'A=b|' * (n < 2)}Name={g}"),
        expected(name=1),
        {},
    ),
    "CoNLL-2012": (
        "a.gold_conll",
        f"#begin document (bn/x); part 000\n{rows_of(conll_2012)}\n#end document\n",
        expected(slots=1),
        {},
    ),
    "CoNLL-U Plus": (
        "a.conllup",
        "# global.columns = ID FORM UPOS X:NE\n" + rows_of(lambda n, t, g, p: f"{n}\t{t}\t{p}\t{g}", lambda n: "# x\n"),
        expected(**{"x:ne": 1}),
        {},
    ),
    "CoNLL-U Plus, a column": (
        "a.conllu",
        "# global.columns = ID FORM UPOS X:NE\n" + rows_of(lambda n, t, g, p: f"{n}\t{t}\t{p}\t{g}"),
        expected(upos=2),
        {"tag_column": "UPOS"},
    ),
    "CoNLL-X": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{n}\t{t}\t{t.lower()}\t{p}\t{p}\t_\t{n - 1}\tx\t_\t_"),
        expected(upos=2),
        {},
    ),
    "SpaceAfter": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{t}\t{g}\t{'SpaceAfter=No' if n == 2 else '_'}"),
        expected(slots=1),
        {"tag_column": "1"},
    ),
    "two tasks": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{t} {p} {g}"),
        expected(slots_1=2, slots_2=1),
        {"tag_column": "1,2"},
    ),
    "names in row 1": ("a.txt", "word ner\n" + PLAIN, expected(ner=1), {}),
    "columns by name": (
        "a.txt",
        "no\tform\ttype\tx\n" + rows_of(lambda n, t, g, p: f"{n}\t{t}\t{g}\t_"),
        expected(type=1),
        {"token_column": "form", "tag_column": "type"},
    ),
    "parts of speech": ("a.conll", rows_of(lambda n, t, g, p: f"{t}\t{p}"), expected(slots=2), {}),
    "types without B- and I-": (
        "a.tsv",
        "\n" + rows_of(lambda n, t, g, p: f"{t}\t{g[2:] or 'O'}"),
        expected(slots=[["O" if x == "O" else x[2:] for x in s[1]] for s in SENTENCES]),
        {},
    ),
    "a sentence column without blank rows": (
        "a.txt",
        "".join(f"s{n} {t} {g}\n" for n, s in enumerate(SENTENCES) for t, g in zip(*s[:2])),
        expected(slots=1),
        {"sentence_column": "0"},
    ),
    "CSV, blank rows": ("a.csv", "text,label\n" + rows_of(lambda n, t, g, p: f'"{t}",{g}'), expected(label=1), {}),
    "CSV without a header": ("a.csv", rows_of(lambda n, t, g, p: f'"{t}",{g}'), expected(slots=1), {"header": False}),
    "a number of each sentence": (
        "a.tsv",
        "\tsentence_idx\tword\ttag\n"
        + "".join(f"{n}.0\t{n}.0\t{t}\t{g}\n" for n, s in enumerate(SENTENCES) for t, g in zip(*s[:2])),
        expected(tag=1),
        {},
    ),
    "columns of a table": (
        "a.tsv",
        "s\tw\tx\ty\n" + "".join(f"{n}\t{t}\t{p}\t{g}\n" for n, s in enumerate(SENTENCES) for t, g, p in zip(*s)),
        expected(x=2, y=1),
        {"sentence_column": "s", "token_column": "w", "tag_column": "x,y"},
    ),
    "columns of a table by number": (
        "a.tsv",
        "s\tword\tx\ty\n" + "".join(f"{n}\t{t}\t{p}\t{g}\n" for n, s in enumerate(SENTENCES) for t, g, p in zip(*s)),
        expected(x=2),
        {"sentence_column": "0", "token_column": "1", "tag_column": "2"},
    ),
    "chunks beside entities": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{t} {p} {'IB'[n == 1]}-NP {g}"),
        expected(slots=1),
        {},
    ),
    "words, tags, intent": (
        "a.iob",
        of_rows(lambda t, g, i: f"{' '.join(t)}\t{' '.join(g)}\t{i}"),
        expected(intent=INTENTS, slots=1),
        {},
    ),
    "intent, words, tags": (
        "a.tsv",
        of_rows(lambda t, g, i: f"{i}\t{' '.join(t)}\t{' '.join(g)}"),
        expected(intent=INTENTS, slots=1),
        {},
    ),
    "the intent is the tag of EOS": (
        "a.iob",
        of_rows(lambda t, g, i: f"BOS {' '.join(t)} EOS\tO {' '.join(g)} {i}"),
        expected(intent=INTENTS, slots=1),
        {},
    ),
    "word:tag <=> intent": (
        "a.txt",
        of_rows(lambda t, g, i: f"{' '.join(map(':'.join, zip(t, g)))} <=> {i}"),
        expected(intent=INTENTS, slots=1),
        {},
    ),
    "cells of words and tags": (
        "a.csv",
        "id,tokens,slots,intent\n" + of_rows(lambda t, g, i: f'7,"{" ".join(t)}",{" ".join(g)},{i}'),
        expected(intent=INTENTS, slots=1),
        {},
    ),
    "a row with the intents of a block": (
        "a.txt",
        "\n".join(
            "".join(f"{x} {y}\n" for x, y in zip(t, g)) + ("go#ask" if i == "go" else i) + "\n"
            for (t, g, _), i in zip(SENTENCES, INTENTS)
        ),
        expected(intent=[["ask", "go"] if i == "go" else [i] for i in INTENTS], slots=1),
        {},
    ),
}
READ["hashtags"] = (
    "a.txt",
    rows_of(lambda n, t, g, p: f"#{t} {g}"),
    [{**row, "tokens": [f"#{token}" for token in row["tokens"]]} for row in expected(slots=1)],
    {},
)
READ["Kaggle"] = (
    "ner.csv",
    first_only(
        [([t.replace(",", "and") for t in s[0]], s[1], [p.replace(",", "CC") for p in s[2]]) for s in SENTENCES]
    ),
    [{**row, "tokens": [t.replace(",", "and") for t in row["tokens"]]} for row in expected(Tag=1)],
    {},
)


def read(tmp_path, name, text, **options):
    """The rows as the readers give them, without where they are from."""
    (tmp_path / name).write_bytes(text.encode())
    rows = list(read_examples(tmp_path / name, ReadOptions(labelled=True, **options)))
    return [{key: value for key, value in row.items() if key not in ("_where", "id")} for row in rows]


def sorted_intents(rows):
    return [{**r, "intent": sorted(r["intent"])} if isinstance(r.get("intent"), list) else r for r in rows]


@pytest.mark.parametrize("name", READ)
def test_tokens_and_tags_are_what_the_file_says(name, tmp_path):
    file, text, rows, options = READ[name]
    assert sorted_intents(read(tmp_path, file, text, **options)) == rows


@pytest.mark.parametrize("name", ["GermEval", "Kaggle", "a row with the intents of a block", "CoNLL-2012", "comments"])
def test_they_are_processed(name, tmp_path):
    file, text, rows, options = READ[name]
    (tmp_path / file).write_text(text)
    process(DataConfig(input=str(tmp_path / file), output_dir=str(tmp_path / "out"), dev_ratio=0.2, **options))
    found = [json.loads(row) for path in (tmp_path / "out").glob("*.jsonl") for row in path.read_text().splitlines()]
    as_set = sorted(json.dumps({k: v for k, v in row.items() if k != "id"}, sort_keys=True) for row in found)
    assert as_set == sorted(json.dumps(row, sort_keys=True) for row in rows)


REFUSED = {  # name: (file, text, what the line says, options)
    "SpaceAfter": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{t} {g} {'+-'[n % 2]}"),
        ["--tag_column", "1 ('B-PER')"],
        {},
    ),
    "_": ("a.txt", rows_of(lambda n, t, g, p: f"{t}\t{g}\t_"), ["--tag_column", "column 1 has tags of entities"], {}),
    "only O": ("a.txt", rows_of(lambda n, t, g, p: f"{t}\t{g}\tO"), ["only O", "--tag_column"], {}),
    "lemmas": ("a.conll", rows_of(lambda n, t, g, p: f"{t}\t{t.lower()}"), ["as words have", "--tag_column"], {}),
    "parts of speech and lemmas": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{t}\t{p}\t{t.lower()}"),
        ["2 columns may be the tags", "--tag_column"],
        {},
    ),
    "tags first": ("a.conll", rows_of(lambda n, t, g, p: f"{g} {t}"), ["would be tags", "--token_column"], {}),
    "two kinds of entities": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{t} {g} {g.replace('PER', 'CLS').replace('LOC', 'CLS')}"),
        ["column 1 (LOC, PER) and column 2 (CLS)", "--tag_column"],
        {},
    ),
    "a number without a header": (
        "a.tsv",
        rows_of(lambda n, t, g, p: f"{t}\t{p}\t_"),
        ["'0' (--token_column)", "--no_header"],
        {"token_column": "0", "tag_column": "1"},
    ),
    "sentences without blank rows, named": (
        "a.conll",
        "".join(f"s{n} {t} {g}\n" for n, s in enumerate(SENTENCES) for t, g in zip(*s[:2])),
        ["--sentence_column 0"],
        {},
    ),
    "ranges": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{n}{'-9' * (n == 2)} {t} {g}"),
        ["numbers", "--token_column"],
        {},
    ),
    "numbers for tokens": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{n * 7 % 5} {g}"),
        ["numbers", "--token_column"],
        {},
    ),
    "no such column": ("a.conll", PLAIN, ["'9' (--tag_column)", "0 ('Mia'), 1 ('B-PER')"], {"tag_column": "9"}),
    "a comment inside": ("a.conll", PLAIN.replace("flew O", "# flew there O\nflew O"), ["row 3", "--comment"], {}),
    "another width": ("a.conll", PLAIN + "\nNew York B-LOC\n", ["3 columns, but the others have 2", "--comment"], {}),
    "no token": ("a.conll", PLAIN.replace("flew O", " O"), ["row 3", "a token and a tag"], {}),
    "an empty token": ("a.txt", rows_of(lambda n, t, g, p: f"{n}\t{t if n != 2 else ''}\t{g}"), ["row 2", "empty"], {}),
    "no blank rows": ("a.txt", WHOLE, ["the whole file would be one sentence", "--sentence_end '.'"], {}),
    "no blank rows in a .tsv": ("a.tsv", WHOLE, ["--sentence_end '.'", "--sentence_column"], {}),
    "no blank rows in a table": (
        "a.csv",
        "word;tag\n" + WHOLE.replace("\t", ";"),
        ["nothing ends a sentence", "--sentence_column", "--sentence_end"],
        {},
    ),
    "a block without an intent": (
        "a.txt",
        "\n".join(f"{t} O\n{t} B-x\n" + ("say\n" if t != "k" else "") for t in "abcdefghij" * 400 + "k"),
        ["needs one row with its intent"],
        {},
    ),
    "a row of another form": (
        "a.iob",
        of_rows(lambda t, g, i: f"{' '.join(t)}\t{' '.join(g)}\t{i}") * 210 + "one two\tO\tsay\n",
        ["row 5251", "a tag for each word"],
        {},
    ),
    "CoNLL-U Plus without a form": ("a.conllup", "# global.columns = ID UPOS\n1\tX\n", ["row 1", "FORM"], {}),
    "CoNLL-U Plus of another width": (
        "a.conllup",
        "# global.columns = ID FORM NE\n1\ta\tO\n2\tb\n",
        ["row 3", "id, form, ne"],
        {},
    ),
    "pieces that are clauses": ("a.txt", "他们今天去，明天回来。/x 北京/ns\n" * 9, ["is not a word"], {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_doubtful_is_one_line_with_the_option(name, tmp_path):
    file, text, words, options = REFUSED[name]
    with pytest.raises(UserError) as error:
        read(tmp_path, file, text, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600 and all(word in message for word in words), message
    assert message.count(str(tmp_path)) == 1


def test_a_minus_outside_is_written_as_o(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(READ["numbers, and - outside"][1])
    process(DataConfig(input=str(tmp_path / "a.txt"), output_dir=str(tmp_path / "out")))
    rows = [json.loads(row) for path in (tmp_path / "out").glob("*.jsonl") for row in path.read_text().splitlines()]
    tags = {tuple(tokens): tags for tokens, tags, _ in SENTENCES}
    assert len(rows) == len(SENTENCES) and all(row["slots"] == tags[tuple(row["tokens"])] for row in rows)
    assert "'-' is read as 'O'" in capsys.readouterr().out


def test_a_token_without_the_key_of_misc_is_named(tmp_path):
    text = READ["MISC of CoNLL-U"][1]
    cut = text.rindex("Name=")
    body = text * 60 + text[:cut] + "_\n"
    with pytest.raises(UserError, match=r"row \d+: '\.' has no name= in MISC"):
        read(tmp_path, "a.conllu", body)


def test_a_sheet_with_one_token_per_row(tmp_path):
    book = openpyxl.Workbook()
    for row in [("word", "tag"), *(row for t, g, _ in SENTENCES for row in [*zip(t, g), (None, None)])]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    rows = list(read_examples(tmp_path / "a.xlsx", ReadOptions(labelled=True)))
    assert [(row["tokens"], row["tag"]) for row in rows] == [(t, g) for t, g, _ in SENTENCES]


def test_the_options_of_a_table_of_texts_name_the_columns_too(tmp_path):
    file, text, rows, _ = READ["CSV, blank rows"]
    assert read(tmp_path, file, text, text_column="text", label_column="label") == rows
    assert read(tmp_path, file, text.replace("text,", "utterance,"), token_column="utterance") == rows


def test_sentences_end_at_the_named_tokens(tmp_path):
    rows = read(tmp_path, "a.txt", WHOLE, sentence_end=". ,")
    assert [len(row["tokens"]) for row in rows[:4]] == [6, 3, 10, 6]
    assert [token for row in rows for token in row["tokens"]] == [token for s in SENTENCES for token in s[0]]
    inside = "Acme\tB-ORG\nInc\tI-ORG\n.\tI-ORG\n&\tI-ORG\nSons\tI-ORG\ngrew\tO\n.\tO\nYes\tO\n.\tO\n"
    assert [len(row["tokens"]) for row in read(tmp_path, "b.txt", inside, sentence_end=".")] == [7, 2]


def test_classes_of_single_words_can_be_read_as_classes(tmp_path):
    text = "text,label\n" + "".join(f"word{n},{'OAB'[n % 3]}\n" for n in range(30))
    with pytest.raises(UserError, match="--label_type label=classification"):
        read(tmp_path, "a.csv", text)
    rows = read(tmp_path, "a.csv", text, label_types={"label": "classification"})
    assert rows[1] == {"text": "word1", "label": "A"}


def test_pieces_of_text_with_the_types_of_entities(tmp_path):
    text = "上海市/ns 的雨停了，大家都出门了。/o\n她和/o 李小龙/nr 说，明天再来。/o\n" * 9
    rows = read(tmp_path, "a.txt", text)
    assert rows[0] == {"text": "上海市的雨停了，大家都出门了。", "entities": [[0, 3, "ns"]]}
    assert rows[1] == {"text": "她和李小龙说，明天再来。", "entities": [[2, 5, "nr"]]}
    words = read(tmp_path, "b.txt", "我/o 爱/o 北京/ns ，/o 你/o 呢/o\n" * 9)
    assert words[0]["tokens"] == ["我", "爱", "北京", "，", "你", "呢"]


@pytest.mark.parametrize("emoji", ["❤️", "👨‍👩‍👧", "1️⃣", "🇨🇳", "👍🏽"])
def test_an_emoji_does_not_keep_positions_in_words(emoji, tmp_path):
    text = "天0\tB-X\n气1\tI-X\n好0\tO\n\n" * 9 + f"{emoji}0\tO\n好0\tO\n"
    rows = read(tmp_path, "a.conll", text)
    assert rows[0]["tokens"] == ["天", "气", "好"] and rows[-1]["tokens"] == [emoji, "好"]


def test_a_strange_token_in_a_long_file_does_not_keep_them_either(tmp_path):
    rows = read(tmp_path, "a.conll", "天0\tB-X\n气1\tI-X\n好0\tO\n\n" * 90 + "http://t.cn\tO\n好0\tO\n")
    assert rows[0]["tokens"] == ["天", "气", "好"] and rows[-1]["tokens"] == ["http://t.cn", "好"]


PARTS = {
    "train": "train.txt eng.train wnut17train.conll weiboNER_2nd_conll.train trainData.txt ner-train_v2.tsv train2.csv",
    "dev": "eng.testa devel.txt BC5CDR-devel.tsv dev.conll emerging.dev.conll valid.txt validation-0.json wnut17dev",
    "test": "eng.testb test.txt emerging.test.annotated test-00000-of-00001.parquet atis.test.w-intent.iob test1.csv",
    None: "latest.txt contest.csv trained.txt data.csv train_dev.txt test.train.txt devices.csv attest.txt",
}


@pytest.mark.parametrize("part", PARTS)
def test_names_of_parts(part, tmp_path):
    found = {name: part_of_name(tmp_path / name) for name in PARTS[part].split()}
    assert found == dict.fromkeys(found, part)


def test_doubtful_names_of_parts_are_refused(tmp_path):
    for names, word in ((("eng.train", "eng.dev", "eng.testa"), "testa"), (("train.txt", "dev_test.txt"), "several")):
        folder = tmp_path / word
        folder.mkdir()
        for name in names:
            (folder / name).write_text(PLAIN)
        with pytest.raises(UserError, match=f"{word}.*rename or remove it"):
            find_sources(folder)


PREDICT = {  # name: (file, text, tokens or texts, options)
    "tags": ("a.txt", PLAIN, [s[0] for s in SENTENCES], {}),
    "only O": ("a.txt", "show O\nfares O\n\nto O\nrome O\n", [["show", "fares"], ["to", "rome"]], {}),
    "a part": ("a.testb", PLAIN, [s[0] for s in SENTENCES], {}),
    "a .tsv": ("a.tsv", rows_of(lambda n, t, g, p: f"{n}\t{t}\t{g}"), [s[0] for s in SENTENCES], {}),
    "no tags": ("a.txt", rows_of(lambda n, t, g, p: t), [s[0] for s in SENTENCES], {"token_column": "0"}),
    "other columns": ("a.bio", rows_of(lambda n, t, g, p: f"{t}\t{p}\t_"), [s[0] for s in SENTENCES], {}),
    "Kaggle": ("a.csv", READ["Kaggle"][1], [row["tokens"] for row in READ["Kaggle"][2]], {}),
    "one sentence per row": (
        "a.txt",
        of_rows(lambda t, g, i: f"{' '.join(t)}\t{' '.join(g)}\t{i}"),
        [s[0] for s in SENTENCES],
        {},
    ),
    "texts": (
        "a.txt",
        "a text O\n\nanother O\n# not a comment\n",
        ["a text O", "", "another O", "# not a comment"],
        {},
    ),
    "rows with intents": ("a.txt", READ["a row with the intents of a block"][1], [s[0] for s in SENTENCES], {}),
}


@pytest.mark.parametrize("name", PREDICT)
def test_texts_to_predict_on_may_be_tokens(name, tmp_path):
    file, text, wanted, options = PREDICT[name]
    (tmp_path / file).write_text(text)
    rows = list(read_texts(tmp_path / file, ReadOptions(**options)))
    assert [row.get("tokens", row.get("text")) for row in rows] == wanted
    assert all(row.keys() <= {"id", "tokens", "text"} for row in rows)


def test_texts_that_may_be_tokens_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("vitamin O\ngroup O\nblood O\n")
    with pytest.raises(UserError, match="--token_column 0 reads tokens"):
        list(read_texts(tmp_path / "a.txt", ReadOptions()))
    (found,) = read_texts(tmp_path / "a.txt", ReadOptions(token_column="0"))
    assert found["tokens"] == ["vitamin", "group", "blood"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GermEval", "Kaggle", "a row with the intents of a block", "words, tags, intent"])
def test_they_train_and_label_files_of_the_same_form(name, tmp_path):
    file, text, rows, options = READ[name]
    (tmp_path / file).write_text(text)
    process(DataConfig(input=str(tmp_path / file), output_dir=str(tmp_path / "data"), dev_ratio=0.2, **options))
    run = dict(data_path=str(tmp_path / "data"), output_dir=str(tmp_path / "output"), model_version="run")
    output = tmp_path / "p.jsonl"
    labelling = dict(do_predict=True, predict_file=str(tmp_path / file), predict_output=str(output))
    main(Config(do_train=True, **labelling, **run, **{**TINY, "epochs": 1}))
    found = [json.loads(row) for row in output.read_text().splitlines()]
    task = next(key for key, labels in rows[0].items() if key != "tokens" and len(labels) == len(rows[0]["tokens"]))
    assert [len(row[f"{task}_tags"]) for row in found] == [len(row["tokens"]) for row in rows]


# ---- random files --------------------------------------------------------------------------------------------------

WORDS = [*"the a Café 北京 #tag # -- . , 😀 naïve x=y 7 12.5 B-2 O'Neil \u200bz e-mail".split(), "\xa0"]
NOISE = ("comment", "long comment", "hash", "mark", "crlf", "blank rows", "trailing blanks", "odd row", "docstart")


def random_file(rng):
    """(text, its sentences, its noise) of a file with one token per row."""
    sentences = [
        [(rng.choice(WORDS), rng.choice(["O", "O", "B-PER", "I-PER", "B-LOC"])) for _ in range(rng.randint(1, 8))]
        for _ in range(rng.randint(4, 12))
    ]
    sentences[0] = [("Mia", "B-PER"), ("is", "O"), ("in", "O"), ("Graz", "B-LOC")]
    noise = {name for name in NOISE if rng.random() < 0.2}
    separator, counted, middle = rng.choice("\t "), rng.random() < 0.3, rng.randint(0, 2)
    out = []
    for sentence in sentences:
        if "docstart" in noise and rng.random() < 0.3:
            out += ["-DOCSTART- -X- O", ""]
        out += [f"# sent_id = {rng.randint(1, 9)}"] if "comment" in noise else []
        out += ["# the dog of my neighbour barks"] if "long comment" in noise else []
        for place, (token, tag) in enumerate(sentence, 1):
            cells = [*([str(place)] if counted else []), token, *(["X"] * middle), tag]
            out.append(separator.join(cells) + (" " if "trailing blanks" in noise else ""))
            if "odd row" in noise and rng.random() < 0.05:
                out.append(rng.choice(["New York City of X O", "alone", "a\tb\tc\td\te\tf\tO"]))
        out += [""] * (rng.randint(1, 3) if "blank rows" in noise else 1)
    text = ("\r\n" if "crlf" in noise else "\n").join(out) + "\n"
    return ("\ufeff" if "mark" in noise else "") + text, sentences


def test_random_files_are_read_exactly_or_refused(tmp_path):
    rng, outcomes = random.Random(5), {"read": 0, "refused": 0}
    for number in range(600):
        text, sentences = random_file(rng)
        name = rng.choice(["a.txt", "a.conll", "a.tsv", "a.iob"])
        try:
            rows = read(tmp_path, name, text)
        except UserError as error:
            assert name in str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert [list(zip(row["tokens"], row["slots"])) for row in rows] == sentences, (number, text)
    assert outcomes["read"] > 300, outcomes
