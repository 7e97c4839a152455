"""Tokens with tags: one token per row, one sentence per row, or pieces with types. Each file is read exactly, or
rejected with a one-line error that names the options that decide."""

import json

import pytest
from conftest import TINY
from shapes import EXAMPLES, SHAPES, Noise, write

from config import Config
from data_process import DataConfig, process
from engine.errors import UserError
from main import main
from preprocess.readers.options import ReadOptions
from preprocess.readers.sources import find_sources, read_examples, read_texts, split_from_name

SENTENCES = [  # (tokens, tags of entities, parts of speech)
    ("Mia Berg flew to Turin .".split(), "B-PER I-PER O O B-LOC O".split(), "NNP NNP VBD TO NNP .".split()),
    ("it snowed ,".split(), "O O O".split(), "PRP VBD ,".split()),
    ("Graz is warm # now".split(), "B-LOC O O O O".split(), "NNP VBZ JJ SYM RB".split()),
    ("ask Tom".split(), "O B-PER".split(), "VB NNP".split()),
    ("He left .".split(), "O O O".split(), "PRP VBD .".split()),
] * 5


def rows_of(form, before=lambda number: "", sentences=SENTENCES, between="\n"):
    """Returns a file with one token per row. form: function of (number from 1, token, tag, part of speech)"""
    blocks = [
        before(number) + "".join(form(place, *cells) + "\n" for place, cells in enumerate(zip(*sentence), 1))
        for number, sentence in enumerate(sentences)
    ]
    return between.join(blocks)


def of_rows(form):
    """Returns a file with one sentence per row. form: function of (tokens, tags, intent)"""
    return "".join(form(tokens, tags, "go" if len(tokens) > 3 else "say") + "\n" for tokens, tags, _ in SENTENCES)


PLAIN = rows_of(lambda n, t, g, p: f"{t} {g}")
WHOLE = rows_of(lambda n, t, g, p: f"{t}\t{g}", between="")
MISC = rows_of(lambda n, t, g, p: f"{n}\t{t}\t_\t{p}\t_\t_\t_\t_\t_\t{'A=b|' * (n < 2)}Name={g}")


def read(tmp_path, name, text, **options):
    """Returns the examples of a file without their sources."""
    (tmp_path / name).write_bytes(text.encode())
    rows = list(read_examples(tmp_path / name, ReadOptions(labelled=True, **options)))
    return [{key: value for key, value in row.items() if key not in ("_where", "id")} for row in rows]


REJECTED = {  # name: (file, text, words of the message, options)
    "SpaceAfter": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{t} {g} {'+-'[n % 2]}"),
        ["--tag_column", "1 ('B-PER')"],
        {},
    ),
    "_": ("a.txt", rows_of(lambda n, t, g, p: f"{t}\t{g}\t_"), ["--tag_column", "column 1 has entity tags"], {}),
    "only O": ("a.txt", rows_of(lambda n, t, g, p: f"{t}\t{g}\tO"), ["only O", "--tag_column"], {}),
    "lemmas": ("a.conll", rows_of(lambda n, t, g, p: f"{t}\t{t.lower()}"), ["too many different", "--tag_column"], {}),
    "parts of speech and lemmas": (
        "a.conll",
        rows_of(lambda n, t, g, p: f"{t}\t{p}\t{t.lower()}"),
        ["2 columns could be the tags", "--tag_column"],
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
    "titles of bare types": (
        "a.tsv",
        "terme\tgenre\n" + rows_of(lambda n, t, g, p: f"{t}\t{g[2:] or g}"),
        ["--token_column terme --tag_column genre", "--no_header"],
        {},
    ),
    "no such column": ("a.conll", PLAIN, ["'9' (--tag_column)", "0 ('Mia'), 1 ('B-PER')"], {"tag_column": "9"}),
    "a comment inside": ("a.conll", PLAIN.replace("flew O", "# flew there O\nflew O"), ["row 3", "--comment"], {}),
    "another width": ("a.conll", PLAIN + "\nNew York B-LOC\n", ["expected 2 columns, found 3", "--comment"], {}),
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
        ["expected one intent row"],
        {},
    ),
    "a row of another form": (
        "a.iob",
        of_rows(lambda t, g, i: f"{' '.join(t)}\t{' '.join(g)}\t{i}") * 210 + "one two\tO\tsay\n",
        ["row 5251", "one tag per word"],
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


@pytest.mark.parametrize("name", REJECTED)
def test_ambiguous_input_raises_a_one_line_error_with_the_option(name, tmp_path):
    file, text, words, options = REJECTED[name]
    with pytest.raises(UserError) as error:
        read(tmp_path, file, text, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600 and all(word in message for word in words), message
    assert message.count(str(tmp_path)) == 1


def test_korean_tags_have_their_type_first_and_a_minus_outside(tmp_path, capsys):
    def suffixed(tag):
        return "-" if tag == "O" else f"{tag[2:]}_{tag[0]}"

    per_token = rows_of(lambda n, t, g, p: f"{n}\t{t}\t{suffixed(g)}")
    per_row = "".join(f"{' '.join(s[0])}\t{' '.join(map(suffixed, s[1]))}\n" for s in SENTENCES)
    for name, text in (("a.txt", per_token), ("b.tsv", per_row)):
        (tmp_path / name).write_text(text)
        process(DataConfig(input=str(tmp_path / name), output_dir=str(tmp_path / "out")))
        rows = [json.loads(row) for path in (tmp_path / "out").glob("*.jsonl") for row in path.read_text().splitlines()]
        tags = {tuple(tokens): tags for tokens, tags, _ in SENTENCES}
        assert len(rows) == len(SENTENCES) and all(row["slots"] == tags[tuple(row["tokens"])] for row in rows)
        assert "'-' is read as 'O'" in capsys.readouterr().out


def test_tags_in_the_misc_column_of_conllu(tmp_path):
    found = read(tmp_path, "a.conllu", MISC)
    assert [(row["tokens"], row["name"]) for row in found] == [(tokens, tags) for tokens, tags, _ in SENTENCES]
    body = MISC * 60 + MISC[: MISC.rindex("Name=")] + "_\n"
    with pytest.raises(UserError, match=r"row \d+: '\.' has no name= in MISC"):
        read(tmp_path, "a.conllu", body)


def test_the_options_for_text_tables_also_select_token_columns(tmp_path):
    text = "text,label\n" + rows_of(lambda n, t, g, p: f'"{t}",{g}')
    rows = read(tmp_path, "a.csv", text, text_column="text", label_column="label")
    assert rows == [{"tokens": tokens, "label": tags} for tokens, tags, _ in SENTENCES]
    assert read(tmp_path, "a.csv", text.replace("text,", "utterance,"), token_column="utterance") == rows


def test_the_comment_prefix_does_not_affect_format_detection(tmp_path):
    commented = PLAIN.replace("\n\n", "\n\n%% a remark about the next one\n")
    assert read(tmp_path, "a.txt", commented, comment="%%") == read(tmp_path, "b.txt", PLAIN)


def test_sentences_end_at_the_tokens_of_sentence_end(tmp_path):
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


def test_pieces_of_text_with_entity_types(tmp_path):
    text = "上海市/ns 的雨停了，大家都出门了。/o\n她和/o 李小龙/nr 说，明天再来。/o\n" * 9
    rows = read(tmp_path, "a.txt", text)
    assert rows[0] == {"text": "上海市的雨停了，大家都出门了。", "entities": [[0, 3, "ns"]]}
    assert rows[1] == {"text": "她和李小龙说，明天再来。", "entities": [[2, 5, "nr"]]}
    words = read(tmp_path, "b.txt", "我/o 爱/o 北京/ns ，/o 你/o 呢/o\n" * 9)
    assert words[0]["tokens"] == ["我", "爱", "北京", "，", "你", "呢"]


@pytest.mark.parametrize("emoji", ["❤️", "👨‍👩‍👧", "1️⃣", "🇨🇳", "👍🏽"])
def test_position_indices_are_removed_after_an_emoji(emoji, tmp_path):
    text = "天0\tB-X\n气1\tI-X\n好0\tO\n\n" * 9 + f"{emoji}0\tO\n好0\tO\n"
    rows = read(tmp_path, "a.conll", text)
    assert rows[0]["tokens"] == ["天", "气", "好"] and rows[-1]["tokens"] == [emoji, "好"]


def test_position_indices_are_removed_despite_an_unusual_token(tmp_path):
    rows = read(tmp_path, "a.conll", "天0\tB-X\n气1\tI-X\n好0\tO\n\n" * 90 + "http://t.cn\tO\n好0\tO\n")
    assert rows[0]["tokens"] == ["天", "气", "好"] and rows[-1]["tokens"] == ["http://t.cn", "好"]


SPLITS = {
    "train": "train.txt eng.train wnut17train.conll weiboNER_2nd_conll.train trainData.txt ner-train_v2.tsv train2.csv",
    "dev": "eng.testa devel.txt BC5CDR-devel.tsv dev.conll emerging.dev.conll valid.txt validation-0.json wnut17dev",
    "test": "eng.testb test.txt emerging.test.annotated test-00000-of-00001.parquet atis.test.w-intent.iob test1.csv",
    None: "latest.txt contest.csv trained.txt data.csv train_dev.txt test.train.txt devices.csv attest.txt",
}


@pytest.mark.parametrize("split", SPLITS)
def test_names_of_splits(split, tmp_path):
    found = {name: split_from_name(tmp_path / name) for name in SPLITS[split].split()}
    assert found == dict.fromkeys(found, split)


def test_ambiguous_names_of_splits_are_rejected(tmp_path):
    for names, word in ((("eng.train", "eng.dev", "eng.testa"), "testa"), (("train.txt", "dev_test.txt"), "several")):
        folder = tmp_path / word
        folder.mkdir()
        for name in names:
            (folder / name).write_text(PLAIN)
        with pytest.raises(UserError, match=f"{word}.*rename or remove it"):
            find_sources(folder)


def text_of(shape):
    (text,) = SHAPES[shape].write(EXAMPLES, Noise()).values()
    return text


PREDICT = {  # name: (file, text, tokens or texts, options)
    "tags": ("a.txt", PLAIN, [s[0] for s in SENTENCES], {}),
    "only O": ("a.txt", "show O\nfares O\n\nto O\nrome O\n", [["show", "fares"], ["to", "rome"]], {}),
    "a part": ("a.testb", PLAIN, [s[0] for s in SENTENCES], {}),
    "a .tsv": ("a.tsv", rows_of(lambda n, t, g, p: f"{n}\t{t}\t{g}"), [s[0] for s in SENTENCES], {}),
    "no tags": ("a.txt", rows_of(lambda n, t, g, p: t), [s[0] for s in SENTENCES], {"token_column": "0"}),
    "other columns": ("a.bio", rows_of(lambda n, t, g, p: f"{t}\t{p}\t_"), [s[0] for s in SENTENCES], {}),
    "Kaggle": ("a.csv", text_of("Kaggle"), [e.tokens for e in EXAMPLES], {}),
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
    "rows with intents": ("a.txt", text_of("a row with the intents of a block"), [e.tokens for e in EXAMPLES], {}),
}


@pytest.mark.parametrize("name", PREDICT)
def test_prediction_inputs_can_be_tokens(name, tmp_path):
    file, text, expected, options = PREDICT[name]
    (tmp_path / file).write_text(text)
    rows = list(read_texts(tmp_path / file, ReadOptions(**options)))
    assert [row.get("tokens", row.get("text")) for row in rows] == expected
    assert all(row.keys() <= {"id", "tokens", "text"} for row in rows)


def test_texts_that_could_be_tokens_are_rejected(tmp_path):
    (tmp_path / "a.txt").write_text("vitamin O\ngroup O\nblood O\n")
    with pytest.raises(UserError, match="--token_column 0 for tokens"):
        list(read_texts(tmp_path / "a.txt", ReadOptions()))
    (found,) = read_texts(tmp_path / "a.txt", ReadOptions(token_column="0"))
    assert found["tokens"] == ["vitamin", "group", "blood"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GermEval", "Kaggle", "a row with the intents of a block", "words, tags, intent"])
def test_tokens_of_the_same_format_are_labelled(name, tmp_path):
    (file,) = write(tmp_path / "raw", SHAPES[name].write(EXAMPLES, Noise())).iterdir()
    process(DataConfig(input=str(file), output_dir=str(tmp_path / "data"), dev_ratio=0.2))
    run = dict(data_path=str(tmp_path / "data"), output_dir=str(tmp_path / "output"), model_version="run")
    output = tmp_path / "p.jsonl"
    labelling = dict(do_predict=True, predict_file=str(file), predict_output=str(output))
    main(Config(do_train=True, **labelling, **run, **{**TINY, "epochs": 1}))
    found = [json.loads(row) for row in output.read_text().splitlines()]
    task = next(task for task, of in SHAPES[name].gives.items() if of == "tags")
    assert [len(row[f"{task}_tags"]) for row in found] == [len(example.tokens) for example in EXAMPLES]


WEBANNO = "#FORMAT=WebAnno TSV 3.3\n#T_SP=x.Pos|value\n#T_SP=x.Entity|value\n\n#Text=Tom Li Ann\n"
WEBANNO += "1-1\t0-3\tTom\t_\tPER[1]\t\n1-2\t4-6\tLi\t{}\tPER[1]|ORG[2]\t\n1-3\t7-10\tAnn\t_\tORG[2]\t\n"


def test_spans_of_webanno_can_overlap_and_ambiguous_layers_are_rejected(tmp_path):
    found = read(tmp_path, "a.tsv", WEBANNO.format("*"))
    assert found == [{"tokens": ["Tom", "Li", "Ann"], "entities": [[0, 1, "PER"], [1, 2, "ORG"]]}]
    with pytest.raises(UserError, match=r"2 features have labels; add --tag_column .*Pos.value, Entity.value"):
        read(tmp_path, "a.tsv", WEBANNO.format("NN"))
    with pytest.raises(UserError, match="old WebAnno TSV format"):
        read(tmp_path, "a.tsv", WEBANNO.replace("TSV 3.3", "TSV 2").format("*"))
