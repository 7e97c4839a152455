"""A table of data shapes: each writes the same examples, so that the expected result does not depend on any reader.

A row of SHAPES is a writer, the attribute of an Example that each task must have after reading, and options. A writer
takes the examples and a Noise, and returns {file: its content}. Add a shape here: test_shapes.py reads, trains and
predicts it, and writes it with noise.
"""

import gzip
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import datasets
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from seqeval.metrics.sequence_labeling import get_entities

# ---- what all files say ----------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """A sentence and everything that a file can say about it."""

    tokens: list
    tags: list  # BIO
    pos: list
    label: str = "say"
    topics: tuple = ()
    score: float = 0.5
    split: str = "train"
    number: int = 0
    gap: str = " "  # between the tokens of the text

    @property
    def text(self):
        return self.gap.join(self.tokens)

    @property
    def text_pair(self):
        return self.gap.join(self.tokens[::-1])

    @property
    def places(self):
        """Start and end of each token in the text."""
        found, place = [], 0
        for token in self.tokens:
            found.append((place, place + len(token)))
            place += len(token) + len(self.gap)
        return found

    @property
    def entities(self):
        """(first token, token behind the last, type)"""
        return [(first, last + 1, kind) for kind, first, last in get_entities(self.tags)]

    @property
    def spans(self):
        """(first character, character behind the last, type)"""
        places = self.places
        return [(places[a][0], places[b - 1][1], kind) for a, b, kind in self.entities]

    @property
    def surfaces(self):
        return [self.text[a:b] for a, b, _ in self.spans]

    @property
    def token_spans(self):
        return [(a, b - 1, kind) for a, b, kind in self.entities]

    @property
    def triples(self):
        """(numbers of the subject and object among the entities, predicate)"""
        kinds = [kind for _, _, kind in self.entities]
        pairs = [(n, n + 1) if n % 2 else (n + 1, n) for n in range(len(kinds) - 1)]
        return [(a, b, f"{kinds[a]}-{kinds[b]}") for a, b in pairs] + [(a, b, "is_near") for a, b in pairs[:1]]

    @property
    def relations(self):
        """(start, end of the subject, start, end of the object, predicate)"""
        return self.between(self.spans)

    @property
    def token_relations(self):
        return self.between(self.token_spans)

    def between(self, spans):
        return sorted((*spans[a][:2], *spans[b][:2], name) for a, b, name in self.triples)

    @property
    def joined(self):
        """The spans that relations join."""
        spans = self.spans
        return sorted({spans[n] for *ends, _ in self.triples for n in ends})

    @property
    def people(self):
        return [tag if tag.endswith("PER") else "O" for tag in self.tags]

    @property
    def runs(self):
        """The tags where a file has only types: of two entities side by side it says one."""
        before = ["O", *self.tags]
        return [f"I{tag[1:]}" if tag[1:] and tag[1:] == before[n][1:] else tag for n, tag in enumerate(self.tags)]

    @property
    def digit(self):
        return str(int(self.label in ("go", "正", "1", "E.f")))

    @property
    def topics_or_none(self):
        return self.topics or ("none",)

    @property
    def labels(self):
        return (self.label,)


SENTENCES = [
    ("Mia Berg flew to Turin .", "B-PER I-PER O O B-LOC O", "NNP NNP VBD TO NNP .", " "),
    ("it snowed , sadly", "O O O O", "PRP VBD , RB", " "),
    ("Graz is warm # now", "B-LOC O O O O", "NNP VBZ JJ SYM RB", " "),
    ("please ask Tom", "O O B-PER", "UH VB NNP", " "),
    ("He left .", "O O O", "PRP VBD .", " "),
    ("张伟 在 北京 工作", "B-PER O B-LOC O", "NNP IN NNP VB", ""),
    ("😀 王芳 住 在 广州", "O B-PER O O B-LOC", "SYM NNP VB IN NNP", ""),
    ("Café in New York", "O O B-LOC I-LOC", "NN IN NNP NNP", " "),
    ("从 南京 到 天津", "O B-LOC O B-LOC", "IN NNP TO NNP", ""),
    ("the music is far too loud", "O O O O O O", "DT NN VBZ RB RB JJ", " "),
    ("nothing here or there", "O O O O", "NN RB CC RB", " "),
    ("陈静 和 赵磊 来 了", "B-PER O B-PER O O", "NNP CC NNP VB RP", ""),
]
TOPICS = [("toxic",), (), ("threat", "toxic"), ("obscene",), ("obscene", "threat", "toxic"), ()]
SPLITS = ["train", "train", "dev", "test"]
EXAMPLES = [
    Example(
        [*tokens.split(), *more], [*tags.split(), *(["O"] * len(more))], [*pos.split(), *(["RB"] * len(more))],
        ["go", "say"][number // 4 % 2], TOPICS[number % 6], number % 7 / 2 + 0.25, SPLITS[number % 4], number, gap,
    )
    for number, (tokens, tags, pos, gap) in enumerate(2 * SENTENCES)
    for more in [() if number < 12 else (("again",) if gap else ("又",))]
]  # fmt: skip


def in_language(*sentences):
    """Returns examples in one language, for encodings."""
    return [
        Example(f"{sentence}".split(" "), [], [], ["go", "say"][n // 4 % 2], (), 0.5, SPLITS[n % 4], n)
        for n, sentence in enumerate(f"{sentence} {number}" for number in range(6) for sentence in sentences)
    ]


LANGUAGES = {
    "gb18030": ("今天的天气很好，我们一起去公园里看书。", "这家店的面很好吃"),
    "big5": ("今天的天氣很好，我們一起去公園裡看書。", "這家店的麵很好吃"),
    "shift_jis": ("この店の麺はとてもおいしいので、また来たいと思います。", "静かな場所で本を読みます"),
    "euc_jp": ("この店の麺はとてもおいしいので、また来たいと思います。", "静かな場所で本を読みます"),
    "euc_kr": ("이 식당의 국수는 아주 맛있어서 다시 오고 싶습니다.", "오늘은 날씨가 좋네요"),
    "cp1252": (
        "Die Suppe schmeckt schön, und das Brot ist übrigens größer als früher.",
        "Das Zimmer war übrigens laut",
    ),
    "cp1250": ("Zupa była bardzo dobra, ale chleb był źle upieczony, więc się złoszczę.", "Pokój był głośny"),
    "cp1257": ("Zupa bija ļoti garšīga, bet maize bija sadegusi, tāpēc es esmu ļoti dusmīgs.", "Bija ļoti garšīga"),
    "cp866": ("Суп был очень хорош, но хлеб нам принесли слишком поздно.", "Комната была шумная"),
    "cp1251": ("Суп был очень хорош, но хлеб нам принесли слишком поздно.", "Комната была шумная"),
    "koi8-r": ("Суп был очень хорош, но хлеб нам принесли слишком поздно.", "Комната была шумная"),
    "cp1253": ("Η σούπα ήταν πολύ καλή, αλλά το ψωμί ήρθε πολύ αργά.", "Το δωμάτιο ήταν καλό"),
    "utf-16": ("今天的天气很好", "the weather is fine today, 好"),
    "utf-32": ("今天的天气很好", "the weather is fine today, 好"),
    "utf-16-le": ("the weather is fine today, 好", "nothing else"),
    "utf-8-sig": ("今天的天气很好", "the weather is fine today, 好"),
}

# ---- noise -----------------------------------------------------------------------------------------------------------

MORE_COLUMNS = {
    "id": lambda rng, n: n,
    "": lambda rng, n: n,
    "Unnamed: 0": lambda rng, n: n,
    "note": lambda rng, n: rng.choice(["", "a, b", 'say "x"', "ok"]),
    "source": lambda rng, n: "web",
    "date": lambda rng, n: f"2021-03-0{n % 9 + 1}",
    "url": lambda rng, n: f"http://x.org/{n}",
    "empty": lambda rng, n: "",
}
MORE_KEYS = {
    "id": lambda rng, n: n,
    "note": lambda rng, n: None,
    "meta": lambda rng, n: {"by": "me", "n": n},
    "history": lambda rng, n: [],
    "tags_of": lambda rng, n: ["x"],
    "url": lambda rng, n: f"http://x.org/{n}",
    "checked": lambda rng, n: n % 2 == 0,
}
NAMES = {
    "text": "text Text sentence content review 评论 文本".split(),
    "label": "label Label category class sentiment 标签 类别".split(),
}
ODD_ROWS = ["New York City of X O", "alone", "a\tb\tc\td\te\tf\tO", "\tO"]
COMMENTS = ["# sent_id = {}", "# the dog of my neighbour barks", "# text = a b", "#", "## doc {}\tby <me>"]


class Noise:
    """Random differences between two files with the same content. Without a random generator, there are none."""

    def __init__(self, rng=None, options=()):
        self.rng, self.options, self.seen, self.names = rng, options, [], {}

    def __call__(self, what, share=0.2):
        found = self.rng is not None and self.rng.random() < share
        self.seen += [what] * (found and what not in self.seen)
        return found

    def join(self, rows, blank=True):
        """The text of some rows; blank: whether blank rows may stand between them."""
        if blank and self("blank rows"):
            rows = [each for row in rows for each in ([row, *[""] * self.rng.randint(0, 2)])]
        end = "\r\n" if self("CRLF") else "\r" if self("CR", 0.01) else "\n"
        text = end.join(rows) + ("" if self("no line end at the end") else end if rows else "")
        if end == "\r\n" and self("mixed line ends"):
            text = text.replace("\r\n", "\n", 3)
        return ("\ufeff" if self("mark") else "") + text

    def columns(self, rows, more):
        """The rows, which are dicts, with other names of text and label, further columns and in another order."""
        rows = [dict(row) for row in rows]
        if [*rows[0]] == ["text", "label"] and "label_type" not in self.options and self("names"):
            self.names = {name: self.rng.choice(NAMES[name]) for name in NAMES}
            rows = [{self.names[name]: value for name, value in row.items()} for row in rows]
        if self("more columns", 0.4):
            for name in self.rng.sample(sorted(more.keys() - rows[0].keys()), self.rng.randint(1, 2)):
                for number, row in enumerate(rows):
                    row[name] = more[name](self.rng, number)
        if self("order of columns", 0.4):
            names = self.rng.sample([*rows[0]], len(rows[0]))
            rows = [{name: row[name] for name in [*names, *row] if name in row} for row in rows]
        return rows

    def dump(self, value, whole=False):
        indent = self.rng.choice([1, 4]) if whole and self("indented") else None
        return json.dumps(value, ensure_ascii=self("escapes"), indent=indent)

    def comments(self, number):
        return [self.rng.choice(COMMENTS).format(number)] if self.with_comments and self("comment", 0.5) else []

    def begin(self):
        """Called once per file of tokens."""
        self.with_comments, self.with_blanks = self("comments"), self("blanks at the end")
        self.aligned, self.documents = self("aligned", 0.1), self("documents", 0.1)


# ---- writers: examples and noise -> files ----------------------------------------------------------------------------


def get(example, of):
    """Returns an attribute of an example, the result of a function of it, or a constant."""
    return of(example) if callable(of) else getattr(example, of) if isinstance(of, str) else of


def record(columns=(), **more):
    """Returns a form: a function from an example to {column: value}."""
    return lambda example: {name: get(example, of) for name, of in {**dict(columns), **more}.items()}


def quoted(cell):
    return '"' + str(cell).replace('"', '""') + '"'


def csv_of(rows, header, sep=","):
    return "".join(sep.join(map(quoted, row)) + "\n" for row in [header, *rows])


def lines(values):
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def table(form, name="a.csv", sep=",", header=True, more=(), plain=False):
    """Returns a writer of a table with the dicts of a form. more: additional rows. plain: quotes are characters"""

    def write(examples, noise):
        rows = [form(example) for example in examples]
        rows += [dict(zip(rows[0], row)) for row in more]
        rows = noise.columns(rows, MORE_COLUMNS) if header else rows
        minimal = noise("few quotes", 0.5)

        def cell(value):
            needed = any(sign in str(value) for sign in (sep, '"', "\n", "\r"))
            return str(value) if plain or (minimal and not needed) else quoted(value)

        padding = " " * (header and noise("blanks in the header", 0.05))
        cells = [[f"{name}{padding}" for name in rows[0]]] * header + [[*row.values()] for row in rows]
        cells[5:5] = cells[:1] * (header and noise("the header again", 0.03))
        shown = sep + " " * (not plain and not minimal and noise("a blank behind separators", 0.1))
        found = [shown.join(map(cell, row)) for row in cells]
        return {name: noise.join(["# made by hand"] * noise("title", 0.05) + found)}

    return write


def tsv(form, name="a.tsv", sep="\t", **more):
    return table(form, name, sep, plain=True, **more)


def objects(form, name="a.json", wrap=None, more=()):
    """Returns a writer of JSON with the dicts of a form: a list, wrapped, or (with noise) rows. more: more objects"""

    def write(examples, noise):
        rows = [*map(form, examples), *more]
        rows = noise.columns(rows, MORE_KEYS) if isinstance(rows[0], dict) else rows
        if name.endswith("l") or (not wrap and noise("a row each", 0.5)):
            return {str(Path(name).with_suffix(".jsonl")): noise.join([noise.dump(row) for row in rows])}
        return {name: noise.join([noise.dump(wrap(rows, examples) if wrap else rows, whole=True)])}

    return write


def jsonl(form, name="a.jsonl", **more):
    return objects(form, name, **more)


def document(wrap, name="a.json"):
    """Returns a writer of JSON with the result of a function of all examples."""
    return lambda examples, noise: {name: noise.join([noise.dump(wrap(examples), whole=True)])}


def rows(form, name="a.txt", head=(), more=(), blank=True):
    """Returns a writer of one row of text per example."""
    return lambda examples, noise: {name: noise.join([*head, *map(form, examples), *more], blank)}


def words(form, name="a.conll", sep="\t", head=(), before=(), after=(), between=("",), tail=(), comments="#"):
    """One token per row: form(number from 1, example, token, tag, part of speech) is its cells. before, after: rows of
    each sentence, which may be functions of the example"""

    def write(examples, noise):
        noise.begin()
        found = [*head]
        for example in examples:
            found += ["-DOCSTART- -X- O O", ""] if comments and noise.documents and noise("document", 0.3) else []
            found += noise.comments(example.number) if comments else []
            found += [get(example, row) if callable(row) else row for row in before]
            tail_of_row = " " if comments and noise.with_blanks and noise.rng.random() < 0.5 else ""
            for place, (token, tag, pos) in enumerate(zip(example.tokens, example.tags, example.pos), 1):
                shown = "   " if noise.aligned and sep == " " else sep
                found.append(shown.join(map(str, form(place, example, token, tag, pos))) + tail_of_row)
                found += [noise.rng.choice(ODD_ROWS)] if comments and noise("odd row", 0.0005) else []
            found += [get(example, row) if callable(row) else row for row in after]
            found += between * (noise.rng.randint(1, 2) if noise("more blank rows", 0.1) else 1)
        return {name: noise.join([*found, *tail], blank=False)}

    return write


def tagged(n, e, token, tag, pos):
    return token, tag


def conll(letters, name="a.conll"):
    """Returns a writer of CoNLL with tags in another notation."""

    def write(examples, noise):
        return words(tagged, name)([example._replace(tags=letters(example.tags)) for example in examples], noise)

    return write


def ends(begin, inside, last, single):
    """Converts BIO tags to a scheme that marks ends."""

    def convert(tags):
        found = [*tags]
        for kind, first, end in get_entities(tags):
            for place in range(first, end + 1):
                letter = inside if first < place < end else begin if place == first else last
                found[place] = f"{single if first == end else letter}-{kind}"
        return found

    return convert


def each(form):
    return lambda tags: [tag if tag == "O" else form(tag) for tag in tags]


def iob1(tags):
    """Converts BIO tags to IOB1: B- only after an entity of the same type."""
    before = ["O", *tags]
    return [f"I{tag[1:]}" if tag[0] == "B" and before[n][1:] != tag[1:] else tag for n, tag in enumerate(tags)]


def in_splits(write, names="{}.csv"):
    """Returns a writer of one file per split. names: the files of train, dev and test, or one name with {}"""

    def all_parts(examples, noise):
        files = {}
        for split, name in zip(("train", "dev", "test"), 3 * [names] if "{}" in names else names.split()):
            (body,) = write([example for example in examples if example.split == split], noise).values()
            files[name.format(split)] = body
        return files

    return all_parts


def packed(write, how="gzip", inside=""):
    """Returns a writer of compressed files."""

    def compressed(examples, noise):
        files = {name: as_bytes(body) for name, body in write(examples, noise).items()}
        if how == "gzip":
            return {f"{name}.gz": gzip.compress(body) for name, body in files.items()}
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("__MACOSX/._a.csv", "")
            for name, body in files.items():
                archive.writestr(inside + name, body)
        return {"a.zip": out.getvalue()}

    return compressed


def encoded(write, encoding):
    def encode(examples, noise):
        files = write(examples, noise)
        try:
            return {
                name: body if isinstance(body, bytes) else body.removeprefix("\ufeff").encode(encoding)
                for name, body in files.items()
            }
        except UnicodeEncodeError:  # noise in another language
            noise.names = {}
            return encode(examples, Noise())

    return encode


def as_bytes(body):
    return body if isinstance(body, bytes) else body.encode()


def book(**sheets):
    """Returns the bytes of a workbook. sheets: {name: list of rows}"""
    found, out = openpyxl.Workbook(), io.BytesIO()
    found.remove(found.active)
    for name, of_sheet in sheets.items():
        sheet = found.create_sheet(name)
        for row in of_sheet:
            sheet.append(row)
    found.save(out)
    return out.getvalue()


def excel(form, split=lambda example: "Sheet1", more=(), **sheets):
    def write(examples, noise):
        found = {}
        for example, row in zip(examples, noise.columns([form(example) for example in examples], MORE_COLUMNS)):
            found.setdefault(split(example), [[*row]]).append([*row.values()])
        for body in found.values():
            body += more
        return {"a.xlsx": book(**sheets, **found)}

    return write


def sheet_of_words(examples, noise):
    blocks = [[*zip(example.tokens, example.tags), (None, None)] for example in examples]
    return {"a.xlsx": book(one=[("word", "tag"), *(row for block in blocks for row in block)])}


def parquet(form):
    def write(examples, noise):
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(noise.columns([form(example) for example in examples], MORE_KEYS)), out)
        return {"train-00000-of-00001.parquet": out.getvalue()}

    return write


def saved(examples, noise):
    """Writes a dataset with save_to_disk, with classes as numbers."""
    names = sorted({example.label for example in examples})
    label = datasets.ClassLabel(names=names)
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    found = [{"text": example.text, "label": names.index(example.label)} for example in examples]
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_list(found, features=features).save_to_disk(folder)
        return {f"saved/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}


def seq(examples, noise):
    named = {"seq.in": "tokens", "seq.out": "tags", "label": "labels"}
    return {
        name: noise.join([" ".join(getattr(example, of)) for example in examples], blank=False)
        for name, of in named.items()
    }


def beside(texts, labels, of="label"):
    """Returns a writer of a file of texts and a parallel file of labels."""

    def write(examples, noise):
        shown = [get(example, of) for example in examples]
        return {
            texts: noise.join([example.text for example in examples], blank=False),
            labels: noise.join([row if isinstance(row, str) else " ".join(row) for row in shown], blank=False),
        }

    return write


def by_class(name, **more):
    """Returns a writer of one file per text. name: can contain {label}, {number} and {split}"""
    return lambda examples, noise: (
        {
            name.format(label=e.label, number=e.number, split=e.split): noise.join([e.text], blank=False)
            for e in examples
        }
        | more
    )


def class_files(name):
    """Returns a writer of one file per class (and split). name: contains {label} and optionally {split}"""

    def write(examples, noise):
        found = {}
        for example in examples:
            found.setdefault(name.format(label=example.label, split=example.split), []).append(example.text)
        return {file: noise.join(texts) for file, texts in found.items()}

    return write


def brat(examples, noise):
    files = {}
    for example in examples:
        found = [f"T{n}\t{c} {a} {b}\t{example.text[a:b]}" for n, (a, b, c) in enumerate(example.spans, 1)]
        if not example.number:
            found += ["T9\tX 0 1;2 3\ta b", "R8\tknows Arg1:T9 Arg2:T1", "#1\tAnnotatorNotes T1\tsure?"]
        found += [f"R{n}\t{name} Arg1:T{a + 1} Arg2:T{b + 1}\t" for n, (a, b, name) in enumerate(example.triples, 20)]
        files[f"{example.split}/{example.number:03}.txt"] = example.text
        files[f"{example.split}/{example.number:03}.ann"] = noise.join(found) if found else ""
    return files


# ---- forms: an example -> a row or an object -------------------------------------------------------------------------


def chars(key, span, text="text", **more):
    """Returns a form with a text and spans of characters. span: function of (start, end, type, surface)"""
    own = record(more)
    return lambda e: {text: e.text, **own(e), key: [span(a, b, c, e.text[a:b]) for a, b, c in e.spans]}


def tokens(key, span, name="tokens", **more):
    """Returns a form with tokens and spans of tokens. span: function of (first, end, type)"""
    own = record(more)
    return lambda e: {name: e.tokens, **own(e), key: [span(*each) for each in e.entities]}


def keyed(start="start", end="end", label="label", last=0, surface=""):
    """Returns a function that converts a span to an object with these keys."""
    return lambda a, b, c, s="": {start: a, end: b - last, label: c} | ({surface: s} if surface else {})


def marked(form):
    """Returns the text of an example with marked entities."""

    def mark(example):
        text = example.text
        for a, b, label in reversed(example.spans):
            text = text[:a] + form.format(text=text[a:b], label=label) + text[b:]
        return text

    return mark


def pieces(key="entity"):
    """Returns the pieces of a text, as in Snips."""

    def cut(example):
        found, end = [], 0
        for a, b, label in example.spans:
            found += [{"text": example.text[end:a]}] if a > end else []
            found.append({"text": example.text[a:b], key: label})
            end = b
        return found + ([{"text": example.text[end:]}] if example.text[end:] else [])

    return cut


def by_label(of_span):
    """Returns the spans of an example by type: {type: [of_span(start, end, surface), …]}"""

    def found(example):
        spans = {}
        for a, b, label in example.spans:
            spans.setdefault(label, []).append(of_span(a, b, example.text[a:b]))
        return spans

    return found


def cluener(example):
    found = {}
    for a, b, label in example.spans:
        found.setdefault(label, {}).setdefault(example.text[a:b], []).append([a, b - 1])
    return {"text": example.text, "label": found}


def predicted(e, **more):
    """Returns the relations in the format of predictions."""
    ends = [{"text": e.text[a:b], "start": a, "end": b} for a, b, _ in e.spans]
    return [{"subject": ends[a], "predicate": name, "object": ends[b], **more} for a, b, name in e.triples]


def duie(e):
    """Returns triples of words. The predicate `is_near` is a slot of a complex object without a value."""
    found, words, kinds = [], e.surfaces, [kind for _, _, kind in e.spans]
    for a, b, name in e.triples:
        predicate, _, slot = name.partition("_")
        slots = {"@value": "" if slot else words[b], slot or "inWork": words[b] if slot else ""}
        types = {"subject_type": kinds[a], "object_type": dict.fromkeys(slots, kinds[b])}
        found.append({"predicate": predicate, "subject": words[a], "object": slots, **types})
    return {"text": e.text, "spo_list": found}


def instruct_ie(e):
    words, kinds = e.surfaces, [kind for _, _, kind in e.spans]
    relations = [
        {"head": words[a], "head_type": kinds[a], "relation": name, "tail": words[b], "tail_type": kinds[b]}
        for a, b, name in e.triples
    ]
    return {"id": "x", "cate": "y", "text": e.text, "relation": relations}


def tplinker(e):
    words, spans = e.surfaces, [[a, b] for a, b, _ in e.spans]
    relations = [
        {"subject": words[a], "object": words[b], "subj_char_span": spans[a], "obj_char_span": spans[b],
         "subj_tok_span": [7, 9], "obj_tok_span": [7, 9], "predicate": name} for a, b, name in e.triples
    ]  # fmt: skip
    entities = [{"type": e.spans[n][2], "text": words[n], "char_span": span} for n, span in enumerate(spans)]
    return {"id": str(e.number), "text": e.text, "relation_list": relations, "entity_list": entities}


def doccano(e):
    """Returns entities with ids, and relations between them."""
    entities = [keyed("start_offset", "end_offset")(*span) | {"id": 70 - n} for n, span in enumerate(e.spans)]
    relations = [{"id": n, "from_id": 70 - a, "to_id": 70 - b, "type": c} for n, (a, b, c) in enumerate(e.triples)]
    return {"id": e.number, "text": e.text, "Comments": [], "entities": entities, "relations": relations}


def prodigy(e):
    spans = [keyed()(*span) | {"token_start": 0, "token_end": 0} for span in e.spans]
    relations = [
        {"head": 3, "child": 5, "label": name, "head_span": spans[a], "child_span": spans[b]}
        for a, b, name in e.triples
    ]
    tokens = [{"text": "x", "start": 0, "end": 1}]
    return {"text": e.text, "tokens": tokens, "spans": [keyed()(*each) for each in e.spans], "relations": relations}


def rebel(e):
    ends = [{"uri": "Q1", "boundaries": [a, b], "surfaceform": e.text[a:b]} for a, b, _ in e.spans]
    triples = [
        {"subject": ends[a], "predicate": {"uri": "P1", "boundaries": None, "surfaceform": name}, "object": ends[b]}
        for a, b, name in e.triples
    ]
    return {"docid": "7", "text": e.text, "entities": ends, "triples": triples}


def nyt(e):
    words = e.surfaces
    relations = [
        {"em1Text": words[a], "em2Text": words[b], "label": label}
        for a, b, name in e.triples
        for label in (name, "None")
    ]
    return {"sentText": e.text, "entityMentions": [], "relationMentions": relations}


def units(text, place):
    """Converts an offset to UTF-16 units, as in a browser: an emoji is two."""
    return len(text[:place].encode("utf-16-le")) // 2


def choices(*names, cancelled=False):
    value = {"value": {"choices": list(names)}, "type": "choices", "from_name": "mood", "to_name": "text"}
    return {"was_cancelled": cancelled, "result": [value]}


def regions(example):
    return regions_of(example.text, example.spans)


def regions_of(text, spans):
    """Returns entities in the format of Label Studio, and a relation."""
    found = [
        {"start": units(text, a), "end": units(text, b), "text": text[a:b], "labels": [label]} for a, b, label in spans
    ]
    found = [{"value": value, "type": "labels", "from_name": "ner"} for value in found]
    return [{"result": [*found, {"type": "relation", "from_id": "a", "to_id": "b"}]}]


def studio(results, **more):
    """Returns a writer of a Label Studio export. results: function from an example to its annotations"""
    return objects(record(id="number", data=lambda e: {"text": e.text}, annotations=results), wrap=take, **more)


def linked_regions(e):
    """Returns entities with ids, and relations between them, some drawn from right to left."""
    found = [region | {"id": f"r{n}"} for n, region in enumerate(regions_of(e.text, e.spans)[0]["result"][:-1])]
    for a, b, name in e.triples:
        ends = (a, b, "right") if a % 2 else (b, a, "left")
        ends = {"from_id": f"r{ends[0]}", "to_id": f"r{ends[1]}", "direction": ends[2]}
        found.append({"type": "relation", "labels": [name], **ends})
    return [{"result": found}]


def take(rows, examples):
    return rows


def per(of, value, wrap=lambda found: found):
    """Returns {value of `of`: [value of each example]}."""

    def make(examples):
        found = {}
        for example in examples:
            found.setdefault(get(example, of), []).append(get(example, value))
        return wrap(found)

    return make


def dygie_of(examples):
    (found,), start = dygie(examples), 0
    for n, e in enumerate(examples):
        found["relations"][n] = [[*(start + place for place in places), name] for *places, name in e.token_relations]
        start += len(e.tokens)
    return [found]


def dygie(examples):
    starts = [sum(len(before.tokens) for before in examples[:n]) for n in range(len(examples))]
    ner = [[[n + a, n + b - 1, c] for a, b, c in example.entities] for n, example in zip(starts, examples)]
    found = {"doc_key": "x", "sentences": [example.tokens for example in examples], "ner": ner}
    return [found | {"relations": [[] for _ in examples]}]


def conllu(upos="pos", xpos="_"):
    """Returns CoNLL-U with a range and an empty node in each sentence."""

    def write(examples, noise):
        noise.begin()
        found = []
        for e in examples:
            found += [f"# text = {e.text}", *noise.comments(e.number)]
            found += [f"1-2\t{e.tokens[0]}{e.tokens[-1]}\t" + "\t".join("_" * 8)]
            for number, (token, pos) in enumerate(zip(e.tokens, e.pos), 1):
                of = [pos if column == "pos" else column for column in (upos, xpos)]
                found.append("\t".join([str(number), token, "_", *of, "_", "0", "root", "_", "_"]))
            found += ["8.1\tgone\t" + "\t".join("_" * 8), ""]
        return {"a.conllu" if xpos == "_" else "a.txt": noise.join(found, blank=False)}

    return write


def webanno(features="value"):
    """Returns WebAnno TSV 3 with an entity layer with several features, and a span of a part of a token."""

    def write(examples, noise):
        found, number = ["#FORMAT=WebAnno TSV 3.3", f"#T_SP=de.x.NamedEntity|{features}", "#T_RL=de.x.Link|role", ""], 0
        for place, e in enumerate(examples, 1):
            cells = ["_"] * len(e.tokens)
            for first, end, kind in e.entities:
                number += end - first > 1
                label = re.sub(r"([\\\[\]|_*])", r"\\\1", kind) + (f"[{number}]" if end - first > 1 else "")
                cells[first:end] = [label] * (end - first)
            found += ["", f"#Text={e.text}"]
            for n, ((start, end), token, cell) in enumerate(zip(e.places, e.tokens, cells), 1):
                others = ["_" if cell == "_" else "*"] * features.count("|")
                found.append("\t".join([f"{place}-{n}", f"{start}-{end}", token, *others, cell, "_", ""]))
                if n == 2 and "|" in features:
                    found.append("\t".join([f"{place}-2.1", f"{start}-{start + 1}", token[0], *others, "X", "_", ""]))
        return {"a.tsv": noise.join(found, blank=False)}

    return write


def conll_2012(n, e, token, tag, pos):
    after = [*e.tags, "O"][n]
    end = ")" if tag != "O" and not after.startswith("I-") else ""
    star = f"({tag[2:]}{'' if end else '*'}{end}" if tag[0] == "B" else f"*{end}"
    return "bn/x_0001", 0, n - 1, token, pos, "(S*", "-", "-", "-", "A", star, "(V*)", "-"


def sentence_number(n, e, *_):
    return f"Sentence: {e.number}" if n == 1 else ""


def word_table(name, header, form, sep=",", **options):
    """Returns a writer of a table with one token per row. between: rows between sentences"""

    def write(examples, noise):
        as_cells = (lambda *row: [quoted(cell) for cell in form(*row)]) if sep == "," else form
        return words(as_cells, name, sep, [header] * bool(header), comments="", **options)(examples, noise)

    return write


def glued(n, e, token, tag, pos):
    """Returns rows as in Weibo NER: a character and its position in its word."""
    first = n - 1
    while e.tags[first][0] == "I":
        first -= 1
    return f"{token}{n - 1 - first}", tag


def by_character(example):
    """Splits the Chinese words of an example into characters."""
    found = [("好", "O")]
    for token, tag in zip(example.tokens, example.tags):
        if all("一" <= sign <= "龥" for sign in token):
            found += zip(token, [tag, *[tag.replace("B-", "I-")] * (len(token) - 1)])
    chars, tags = map(list, zip(*found))
    for n, tag in enumerate(tags):  # a leading word can be dropped
        tags[n] = f"B{tag[1:]}" if tag[0] == "I" and tags[n - 1][1:] != tag[1:] else tag
    return example._replace(tokens=chars, tags=tags, pos=["x"] * len(found), gap="")


def two_lines(example):
    return example._replace(gap='\n"x", y ')


def pairs_of(sign):
    return lambda e: " ".join(f"{token}{sign}{tag}" for token, tag in zip(e.tokens, e.tags))


def spaced(of):
    return lambda e: " ".join(getattr(e, of))


def hot(e):
    return [int(name in e.topics) for name in ("obscene", "threat", "toxic")]


def daily(e):
    """Returns rows as in People's Daily, with entities of several words in brackets."""
    found = [f"{token}/{pos.lower()}" for token, pos in zip(e.tokens, e.pos)]
    return "  ".join([f"[{' '.join(found[:2])}]nt", *found[2:]])


# ---- the table -------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    write: Callable
    gives: dict  # {task: attribute of an Example}
    of: str = "text"  # other attributes of an Example that must be read exactly
    options: dict = MappingProxyType({})
    source: str = ""  # path of the input in the folder of the files
    change: Callable = lambda example: example  # converts the examples to what this shape can express
    examples: list = EXAMPLES
    avoid: str = ""  # characters that texts of this shape cannot contain
    breaks: bool = False  # whether texts can contain line feeds and tabs


def text(write, options=None, **more):
    """Returns a Shape with texts."""
    fields = {name: more.pop(name) for name in [*more] if name in Shape._fields}
    return Shape(write, more, **{"of": "text", "options": options or {}, **fields})


def in_words(write, options=None, **more):
    """Returns a Shape with tokens."""
    return text(write, options, **{"of": "tokens", **more})


REVIEW = record(text="text", label="label")
PAIR = record(sentence1="text", sentence2="text_pair", label="digit")
MARKS = record(comment_text="text", **{t: lambda e, t=t: int(t in e.topics) for t in ("obscene", "threat", "toxic")})
FLAGS = record(text="text", **{t: lambda e, t=t: t in e.topics for t in ("obscene", "threat", "toxic")})
JOINED = {"label_column": "labels=toxic+obscene+threat"}
HEADLESS = {"header": False}
BIO = {"tag_scheme": "bio"}
NUMBER_OF_POS = {"tag_column": "2"}
NONE_LEFT = [("x", "NaN"), ("y", ""), ("z", "null"), ("w", "N/A")]
OTHERS = [{"text": "x"}, {"text": "y", "label": None}, {"text": "z", "label": float("nan")}]
OF_TOKENS = keyed(label="type")


def tables():
    return {
        "csv": text(table(REVIEW), label="label"),
        "csv.gz": text(packed(table(REVIEW)), label="label"),
        "zip": text(packed(table(REVIEW), "zip"), label="label"),
        "zip with a folder": text(packed(table(REVIEW), "zip", "a folder/in it/"), label="label"),
        "zip of splits": text(packed(in_splits(table(REVIEW)), "zip"), of="text split", label="label"),
        "zip of folders of classes": text(packed(by_class("{label}/{number}.txt"), "zip"), label="label"),
        "line feeds in cells": text(
            table(record(id="number", text="text", target="label"), "train.csv"), change=two_lines, target="label"
        ),
        "quotes of another sign": text(
            rows(lambda e: f"'{e.text}','{e.label}'", "a.csv", ["text,label"]), {"quotechar": "'"},
            label="label", avoid="'",
        ),
        "ordinary quotes": text(
            table(REVIEW, plain=True), {"quotechar": "none"}, label="label", avoid=",",
        ),
        "tsv with quotes": text(table(REVIEW, "a.tsv", "\t"), {"quotechar": '"'}, label="label"),
        "ChnSentiCorp": text(
            in_splits(tsv(record(label="label", text_a="text")), "{}.tsv"), of="text split", label="label"
        ),
        "SST-2": text(tsv(record(sentence="text", label="digit"), "train.tsv"), label="digit"),
        "no header, two columns": text(
            tsv(record(a="text", b="digit"), "a.txt", header=False), HEADLESS, label="digit"
        ),
        "GoEmotions": text(
            tsv(record(a="text", b=lambda e: ",".join(e.topics) or "27", c=lambda e: f"e{e.number}"), header=False),
            HEADLESS | {"label_type": "label=multilabel"},
            label=lambda e: e.topics or ("27",),
        ),
        "number lists": text(
            table(record(text="text", label=lambda e: "2,27" if e.digit == "1" else "3")),
            label=lambda e: "2,27" if e.digit == "1" else "3",
        ),
        "STS-B": text(
            tsv(record(a=lambda e: "main", b=lambda e: "2012", c="score", d="text", e="text_pair"), header=False),
            HEADLESS | {"text_column": "3", "text_pair_column": "4", "label_column": "2"},
            of="text text_pair",
            label="score",
        ),
        "Toutiao": text(
            rows(lambda e: f"65{e.number}_!_101_!_{e.label}_!_{e.text}_!_", "toutiao_cat_data.txt"),
            HEADLESS | {"label_column": "2"},
            label="label",
        ),
        "csv without a header": text(
            table(record(a="label", b="text"), header=False), HEADLESS, label="label"
        ),
        "two tasks by number": text(
            tsv(record(a="text", b="label", c="digit"), header=False),
            HEADLESS | {"text_column": "0", "label_column": "1,2"},
            label_1="label",
            label_2="digit",
        ),
        "semicolons": text(table(REVIEW, sep=";"), label="label"),
        "bars": text(table(REVIEW, sep="|"), label="label"),
        "another separator": text(tsv(REVIEW, "a.txt", "@@"), {"delimiter": "@@"}, label="label"),
        "an escaped separator": text(tsv(REVIEW, "a.txt"), {"delimiter": "\\t"}, label="label"),
        "txt with commas": text(
            rows(lambda e: f"{quoted(e.text)},{e.label}", "a.txt", ["text,label"]), label="label"
        ),
        "columns of 0 and 1": text(table(MARKS), JOINED, labels="topics"),
        "keys of true and false": text(objects(FLAGS), JOINED, labels="topics"),
        "capitals": text(table(record(Text="text", Label="label")), Label="label"),
        "IMDB": text(table(record(review="text", sentiment="label")), sentiment="label"),
        **{
            f"Chinese names, {name} and {label}": text(table(record({"编号": "number", label: "label", name: "text"})),
                                                       **{label: "label"})
            for name, label in zip("评论 正文 标题 内容 文本".split(), "情感 标签 类别 情感倾向 分类".split())
        },
        "Chinese names of pairs": text(
            table(record({"句子1": "text", "句子2": "text_pair", "相似度": "score"})),
            of="text text_pair", **{"相似度": "score"},
        ),
        "named columns": text(
            table(record(said="text", mood="label")), {"text_column": "said", "label_column": "mood"}, mood="label"
        ),
        "columns joined": text(
            table(record(title=lambda e: e.tokens[0], body=lambda e: e.gap.join(e.tokens[1:]), label="label")),
            {"join_columns": "title,body"},
            label="label",
            change=lambda e: e._replace(gap=" "),
        ),
        "a column of splits": text(
            table(record(text="text", label="label", Split="split")), of="text split", label="label"
        ),
        "a named column of splits": text(
            table(record(text="text", label="label", fold="split")), {"split_column": "fold"}, of="text split",
            label="label",
        ),
        "pandas's index": text(table(record({"": "number", "text": "text", "label": "label"})), label="label"),
        "a header without the index": text(
            rows(lambda e: f"{e.number + 1},{quoted(e.text)},{e.label}", "a.csv", ["text,label"]), label="label"
        ),
        "labels that lack": text(table(REVIEW, more=NONE_LEFT), {"drop_unlabelled": True}, label="label"),
        "texts that lack": text(table(REVIEW, more=[(" ", "go")]), {"drop_empty": True}, label="label"),
        "the first rows": text(
            table(REVIEW, more=[("later", "other")] * 9), {"max_rows": len(EXAMPLES)}, label="label"
        ),
        "spans in cells, JSON": text(
            table(record(text="text", entities=lambda e: json.dumps(chars("x", keyed())(e)["x"]))), entities="spans"
        ),
        "spans in cells, Python": text(
            table(record(text="text", entities=lambda e: str(chars("x", keyed(label="entity"))(e)["x"]))),
            entities="spans",
        ),
        "spans in cells, lists": text(
            table(record(text="text", entities=lambda e: json.dumps(e.spans))), entities="spans"
        ),
        "spans in cells, tuples": text(table(record(text="text", entities=lambda e: str(e.spans))), entities="spans"),
        "tags in cells, JSON": in_words(
            table(record(sentence=spaced("tokens"), tags=lambda e: json.dumps(e.tags))), tags="tags"
        ),
        "tags in cells, Python": in_words(
            table(record(sentence=lambda e: str(e.tokens), tags=lambda e: str(e.tags))), tags="tags"
        ),
        "tags in cells, NumPy": in_words(
            table(record(sentence=spaced("tokens"), tags=lambda e: str(e.tags).replace(",", ""))), tags="tags"
        ),
        "tags in cells, blanks": in_words(
            table(record(sentence=spaced("tokens"), tags=spaced("tags"))), tags="tags"
        ),
        "sets in cells": text(
            table(record(text="text", label=lambda e: str([*e.topics]))), {"label_type": "label=multilabel"},
            label="topics",
        ),
        "one value in an object in cells": text(
            table(record(text="text", label=lambda e: str({"name": e.label}))), label="label"
        ),
        "lists of 0 and 1, named": text(
            table(record(text="text", label=hot)), {"label_names": "obscene,threat,toxic"}, label="topics"
        ),
        "lists of 0 and 1, labels.txt": text(
            lambda examples, noise: objects(record(text="text", label=hot), "a.jsonl")(examples, noise)
            | {"labels.txt": "obscene\nthreat\ntoxic\n"},
            label="topics",
        ),
        "marks in a table": text(
            table(record(text=marked("[{text}]({label})"), intent="label")), intent="label", slots="spans",
            avoid="[](){}",
        ),
        "Excel": text(excel(REVIEW, Sheet2=[]), label="label", avoid="\v"),
        "Excel, numbers": text(
            excel(record({"评论": "text", "评分": "score"}), more=[[None, None]]), avoid="\v", **{"评分": "score"}
        ),
        "Excel, a sheet per split": text(
            excel(REVIEW, lambda e: e.split.title()), of="text split", label="label", avoid="\v"
        ),
        "Excel, one of several sheets": text(
            excel(REVIEW, notes=[["made by hand"]]), {"sheet": "Sheet1"}, label="label", avoid="\v"
        ),
        "Excel, one token per row": in_words(sheet_of_words, tag="tags", avoid="\v"),
        "Parquet": text(parquet(REVIEW), label="label"),
        "Parquet of tokens": in_words(parquet(record(tokens="tokens", ner_tags="tags")), ner_tags="tags"),
        "saved dataset": text(saved, source="saved", label="label"),
        "local files for datasets": text(
            jsonl(REVIEW, "hub/train.jsonl", more=[{"text": "x", "label": "go"}] * 5),
            {"format": "hf", "max_rows": len(EXAMPLES)}, source="hub", label="label",
        ),
    }  # fmt: skip


def texts():
    encodings = {
        f"csv in {name}": text(encoded(table(REVIEW), name), label="label", examples=in_language(*sentences))
        for name, sentences in LANGUAGES.items()
    }
    return encodings | {
        "csv in GB18030, named": text(
            encoded(table(REVIEW), "gb18030"), {"encoding": "gb18030"}, label="label"
        ),
        "fastText": text(rows(lambda e: f"__label__{e.label} {e.text}", "train.txt"), label="label"),
        "fastText, labels behind": text(rows(lambda e: f"{e.text}\t__label__{e.label}"), label="label"),
        "fastText, several labels": text(
            rows(lambda e: " ".join(f"__label__{topic}" for topic in e.topics_or_none) + f" {e.text}"),
            label="topics_or_none",
        ),
        "a folder per class": text(by_class("{label}/{number:02}.txt"), label="label"),
        "20 Newsgroups": text(by_class("{label}/499{number:02}"), label="label"),
        "a folder per class, in splits, GB18030": text(
            encoded(
                by_class("{split}/{label}/{number:02}.txt", **{"train/unsup/1.txt": "", "train/urls_go.dat": "x"}),
                "gb18030",
            ),
            of="text split", examples=in_language(*LANGUAGES["gb18030"]), label="label",
        ),
        "a file per class": text(class_files("{label}.txt"), {"format": "class_files"}, label="label"),
        "a file per class and split": text(class_files("{split}_{label}.txt"), of="text split", label="label"),
        "a file per class and split, suffixes": text(
            class_files("reviews.{label}.{split}"), of="text split", label="label"
        ),
        "a folder of a file per class": text(
            class_files("{split}/{label}.txt"), {"format": "class_files"}, of="text split", label="label"
        ),
        "labels next to texts": text(beside("a.txt", "a.labels"), label="label"),
        "labels next to texts, x and y": text(beside("x_data.txt", "y_data.txt"), label="label"),
        "labels next to texts, suffixes": text(beside("a.text", "a.label"), label="label"),
        "tags next to texts": in_words(beside("s.txt", "s_tags.txt", "tags"), slots="tags",
                                       change=lambda e: e._replace(gap=" ")),
    }  # fmt: skip


def words_and_tags():
    parts_of = {
        "testa": "eng.train eng.testa eng.testb",
        "devel": "train.tsv devel.tsv test.tsv",
        "wnut": "wnut17train.conll emerging.dev.conll emerging.test.annotated",
        "folders": "{}/a.conll",
    }
    letters = {
        "BIOES": (ends("B", "I", "E", "S"), BIO),
        "BMES": (ends("B", "M", "E", "S"), BIO),
        "BILOU": (ends("B", "I", "L", "U"), BIO),
        "IOB1": (iob1, {}),
        "B_X": (each(lambda tag: tag.replace("-", "_")), {}),
        "X-B": (each(lambda tag: f"{tag[2:]}-{tag[0]}"), {}),
        "X_B": (each(lambda tag: f"{tag[2:]}_{tag[0]}"), {}),
    }
    return {
        **{f"splits called as in {name}": in_words(in_splits(words(tagged), names), slots="tags", of="tokens split")
           for name, names in parts_of.items()},
        **{f"tags in {name}": in_words(conll(change), options, slots="tags")
           for name, (change, options) in letters.items()},
        "lower case": in_words(conll(each(str.lower)), slots=lambda e: [tag[:2] + tag[2:].lower() for tag in e.tags]),
        "blanks between": in_words(words(tagged, "a.txt", " "), slots="tags"),
        "tabs in .txt": in_words(words(tagged, "msra_train_bio.txt"), slots="tags"),
        "blanks after tags": in_words(words(lambda *row: (row[2], f"{row[3]} ")), slots="tags"),
        "a tab after tags": in_words(words(lambda *row: (row[2], f"{row[3]}\t")), slots="tags"),
        "aligned": in_words(words(lambda n, e, t, g, p: [f"{t:<8} {p:<6} {g}"], sep=" "), slots="tags"),
        "an index": in_words(words(lambda n, e, t, g, p: (n, t, g), "a.txt"), slots="tags"),
        "an index from 0": in_words(words(lambda n, e, t, g, p: (n - 1, t, p, g), "a.iob2", " "), slots="tags"),
        "the name of the document": in_words(words(lambda n, e, t, g, p: ("doc", t, g), "a.txt", " "), slots="tags"),
        "comments": in_words(words(tagged, "a.txt", " ", before=[lambda e: f"# sentence {e.number}"]), slots="tags"),
        "comments with tabs": in_words(
            words(tagged, "a.tsv", head=["## made by hand : \\t"], before=[lambda e: f"## {e.number}\t<Mia:PER> flew"]),
            slots="tags",
        ),
        "comments of another sign": in_words(
            words(tagged, before=[lambda e: f"% {e.number}"], comments=""), {"comment": "%"}, slots="tags", avoid="%"
        ),
        "GermEval": in_words(
            words(lambda n, e, t, g, p: (n, t, g, e.people[n - 1]), "a.tsv", before=["#\thttp://x.y [2009]"]),
            slots_2="tags", slots_3="people",
        ),
        "GermEval, one level": in_words(
            words(lambda n, e, t, g, p: (n, t, g, e.people[n - 1]), "a.tsv", before=["#\thttp://x.y [2009]"]),
            NUMBER_OF_POS, slots="tags",
        ),
        "CoNLL-2003": in_words(
            words(lambda n, e, t, g, p: (t, p, "B-NP", g), "train.txt", " ", ["-DOCSTART- -X- -X- O", ""]), slots="tags"
        ),
        "CoNLL-2012": in_words(
            words(conll_2012, "a.gold_conll", "   ", ["#begin document (bn/x); part 000"], tail=["#end document"]),
            slots="tags",
        ),
        "WebAnno": in_words(webanno(), entities="tags"),
        "WebAnno, several features": in_words(
            webanno("identifier|value"), {"tag_column": "NamedEntity.value"}, value="tags"
        ),
        "CoNLL-U": in_words(conllu(), upos="pos"),
        "CoNLL-U in a txt, XPOS": in_words(conllu("_", "pos"), xpos="pos"),
        "CoNLL-U Plus": in_words(
            words(lambda n, e, t, g, p: (n, t, p, g), "a.conllup", head=["# global.columns = ID FORM UPOS X:NE"]),
            **{"x:ne": "tags"},
        ),
        "CoNLL-U Plus, a column": in_words(
            words(lambda n, e, t, g, p: (n, t, p, g), "a.conllu", head=["# global.columns = ID FORM UPOS X:NE"]),
            {"tag_column": "UPOS"}, upos="pos",
        ),
        "CoNLL-X": in_words(
            words(lambda n, e, t, g, p: (n, t, t.lower(), p, p, "_", n - 1, "x", "_", "_")), upos="pos"
        ),
        "SpaceAfter": in_words(
            words(lambda n, e, t, g, p: (t, g, "SpaceAfter=No" if n == 2 else "_")), {"tag_column": "1"}, slots="tags"
        ),
        "two columns of tags": in_words(
            words(lambda n, e, t, g, p: (t, p, g), sep=" "), {"tag_column": "1,2"}, slots_1="pos", slots_2="tags"
        ),
        "names in row 1": in_words(words(tagged, "a.txt", " ", ["word ner"]), ner="tags"),
        "columns by name": in_words(
            words(lambda n, e, t, g, p: (n, t, g, "_"), "a.txt", head=["no\tform\ttype\tx"]),
            {"token_column": "form", "tag_column": "type"}, type="tags",
        ),
        "parts of speech": in_words(words(lambda n, e, t, g, p: (t, p)), slots="pos"),
        "types without B- and I-": in_words(
            words(lambda n, e, t, g, p: (t, g[2:] or "O"), "a.tsv", head=[""]), slots="runs"
        ),
        "hashtags": in_words(
            words(tagged, "a.txt", " ", comments=""), slots="tags",
            change=lambda e: e._replace(tokens=[f"#{token}" for token in e.tokens]),
        ),
        "chunks beside entities": in_words(
            words(lambda n, e, t, g, p: (t, p, "B-NP" if n == 1 else "I-NP", g), sep=" "), slots="tags"
        ),
        "Weibo": in_words(
            words(glued, "weiboNER.conll.train", " "), slots="tags", change=by_character
        ),
        "CoNLL in GB18030": in_words(
            encoded(words(tagged, "a.txt", " "), "gb18030"), slots="tags",
            examples=[e for e in EXAMPLES if not e.gap and "😀" not in e.tokens] * 4,
        ),
        "a sentence column without blank rows": in_words(
            words(lambda n, e, t, g, p: (f"s{e.number}", t, g), "a.txt", " ", between=(), comments=""),
            {"sentence_column": "0"}, slots="tags",
        ),
        "the end of a sentence": in_words(
            words(tagged, "a.txt", between=(), comments=""), {"sentence_end": "$."}, slots="tags",
            change=lambda e: e._replace(tokens=[*e.tokens, "$."], tags=[*e.tags, "O"], pos=[*e.pos, "."]),
        ),
        "CSV, blank rows": in_words(word_table("a.csv", "text,label", tagged), label="tags"),
        "CSV of tokens without a header": in_words(word_table("a.csv", "", tagged), HEADLESS, slots="tags"),
        "Kaggle": in_words(
            word_table("ner.csv", "Sentence #,Word,POS,Tag",
                       lambda n, e, t, g, p: (sentence_number(n, e), t, p, g), between=()),
            Tag="tags",
        ),
        "a number of each sentence": in_words(
            word_table("a.tsv", "\tsentence_idx\tword\ttag", lambda n, e, t, g, p: (n, f"{e.number}.0", t, g), "\t",
                       between=()),
            tag="tags",
        ),
        "columns of a table": in_words(
            word_table("a.tsv", "s\tw\tx\ty", lambda n, e, t, g, p: (e.number, t, p, g), "\t", between=()),
            {"sentence_column": "s", "token_column": "w", "tag_column": "x,y"}, x="pos", y="tags",
        ),
        "columns of a table by number": in_words(
            word_table("a.tsv", "s\tword\tx\ty", lambda n, e, t, g, p: (e.number, t, p, g), "\t", between=()),
            {"sentence_column": "0", "token_column": "1", "tag_column": "2"}, x="pos",
        ),
        "the column of a table of texts": in_words(
            word_table("a.csv", "utterance,label", tagged), {"token_column": "utterance"}, label="tags"
        ),
        "jsonl with tokens": in_words(jsonl(record(tokens="tokens", ner_tags="tags")), ner_tags="tags"),
        "words and types in JSON": in_words(
            jsonl(record(words="tokens", labels="tags")), {"text_column": "words", "label_column": "labels"},
            labels="tags",
        ),
        "word/pos": in_words(
            rows(lambda e: " ".join(f"{t}/{p.lower()}" for t, p in zip(e.tokens, e.pos))),
            tags=lambda e: [p.lower() for p in e.pos],
        ),
        "People's Daily": in_words(rows(daily, "199801.txt"), tags=lambda e: [p.lower() for p in e.pos]),
        "clauses and types of entities": text(
            rows(lambda e: " ".join(f"{e.text[a:b]}/{c or 'o'}" for a, b, c in clauses(e))),
            entities="spans", change=in_clauses, avoid="，。",
        ),
    }  # fmt: skip


def intents_and_slots():
    both = {"slots": "tags", "intent": "label"}
    return {
        "CoNLL with intents": in_words(
            lambda examples, noise: words(tagged)(examples, noise) | {"a.conll.intent": rows(lambda e: e.label)(
                examples, Noise())["a.txt"]}, **both
        ),
        "seq folder": in_words(seq, **both),
        "words, tags, intent": in_words(
            rows(lambda e: f"{' '.join(e.tokens)}\t{' '.join(e.tags)}\t{e.label}", "a.iob"), **both
        ),
        "intent, words, tags": in_words(
            rows(lambda e: f"{e.label}\t{' '.join(e.tokens)}\t{' '.join(e.tags)}", "a.tsv"), **both
        ),
        "the intent is the tag of EOS": in_words(
            rows(lambda e: f"BOS {' '.join(e.tokens)} EOS\tO {' '.join(e.tags)} {e.label}", "a.iob"), **both
        ),
        "word:tag <=> intent": in_words(rows(lambda e: f"{pairs_of(':')(e)} <=> {e.label}"), **both),
        "word###tag": in_words(rows(pairs_of("###")), slots="tags"),
        "cells of words and tags": in_words(
            table(record(tokens=spaced("tokens"), slots=spaced("tags"), intent="label")), **both
        ),
        "a row with the intents of a block": in_words(
            words(tagged, "a.txt", " ", after=[lambda e: "#".join(e.topics_or_none)], comments=""),
            slots="tags", intent="topics_or_none",
        ),
        "intents joined by a sign in JSON": in_words(
            jsonl(record(tokens="tokens", slots="tags", intent=lambda e: "#".join(e.topics_or_none))),
            slots="tags", intent="topics_or_none",
        ),
        "Rasa's Markdown": text(
            document_of(lambda label: [f"## intent:{label}"], "- {}", ["## synonym:a", "- b"], "nlu.md"),
            source="nlu.md", slots="spans", intent="label", avoid="[](){}",
        ),
        "Rasa's YAML": text(
            document_of(lambda label: [f"- intent: {label}", "  examples: |"], "    - {}", ["- synonym: a",
                        "  examples: |", "    - b"], "nlu.yml", ['version: "3.1"', "nlu:"]),
            slots="spans", intent="label", avoid="[](){}",
        ),
        "Rasa": text(
            objects(chars("entities", lambda a, b, c, s: {"start": a, "end": b, "value": "a synonym", "entity": c},
                          intent="label"), wrap=lambda rows, _: {"rasa_nlu_data": {"common_examples": rows}}),
            entities="spans", intent="label",
        ),
        "LUIS": text(
            objects(chars("entities", keyed("startPos", "endPos", "entity", 1), intent="label"),
                    wrap=lambda rows, _: {"intents": [{"name": "go"}], "utterances": rows}),
            entities="spans", intent="label",
        ),
        "Azure": text(
            objects(chars("entities", lambda a, b, c, s: {"category": c, "offset": a, "length": b - a}, intent="label"),
                    wrap=lambda rows, _: {"assets": {"intents": [{"category": "go"}], "utterances": rows}}),
            entities="spans", intent="label",
        ),
        "Snips": text(document(per("label", record(data=pieces()))), slots="spans", intent="label"),
        "Snips's own": text(
            document(lambda examples: {"language": "en", "entities": {}, "intents": {
                label: {"utterances": rows} for label, rows in per("label", record(data=pieces("slot_name")))(
                    examples).items()}}),
            slots="spans", intent="label",
        ),
        "SMP": text(
            objects(record(text="text", domain="digit", intent="label",
                           slots=lambda e: {c: s[-1] for c, s in by_label(lambda a, b, s: s)(e).items()})),
            slots="spans", intent="label", domain="digit", change=without(is_second_or_occurs_again),
        ),
        "slots and values": text(
            objects(chars("slots", lambda a, b, c, s: {"slot": c, "value": s}, intent="label")),
            slots="spans", intent="label", change=without(occurs_again),
        ),
        "MASSIVE": text(
            objects(record(id="number", partition="split", utt="text", annot_utt=marked("[{label} : {text}]"),
                           scenario=lambda e: "x", intent="label")),
            of="text split", slots="spans", intent="label", avoid="[]",
        ),
        "NLU++": text(
            objects(lambda e: {"text": e.text, "intents": [*e.topics_or_none]} | ({"slots": {
                c: {"text": e.text[a:b], "span": [a, b]} for a, b, c in e.spans}} if e.spans else {})),
            slots="spans", intents="topics_or_none", change=without(is_second),
        ),
        "marked [](.)": text(
            objects(record(text=marked("[{text}]({label})"))), slots="spans", avoid="[](){}"
        ),
        "marked [ : ]": text(objects(record(text=marked("[{label} : {text}]"))), slots="spans", avoid="[]"),
        "marked {{:}}": text(
            objects(record(text=marked("{{{{{label}:{text}}}}}"), intent="label")), slots="spans", intent="label",
            avoid="{}",
        ),
        "intents with patterns": text(
            document(lambda examples: {"intents": [{"tag": label, "patterns": found, "responses": ["ok"]}
                                                   for label, found in per("label", "text")(examples).items()]}),
            intent="label",
        ),
        "doccano of two tasks": text(
            objects(record(text="text", entities="spans", cats="labels")), entities="spans", cats="labels"
        ),
    }  # fmt: skip


def spans_of_json():
    entities = {"entities": "spans"}
    related = {"entities": "spans", "relations": "relations"}
    return {
        "doccano 1": text(objects(record(text="text", labels="spans")), labels="spans"),
        "doccano 2": text(jsonl(record(id="number", text="text", label="spans")), label="spans"),
        "doccano with relations": text(
            jsonl(chars("entities", keyed("start_offset", "end_offset"), relations=lambda e: [])), **entities
        ),
        "relations of DuIE": text(
            jsonl(duie), entities="joined", relations="relations", change=without(unclear),
        ),
        "relations of InstructIE": text(
            jsonl(instruct_ie), entities="joined", relations="relations", change=without(unclear),
        ),
        "relations of TPLinker": text(objects(tplinker), **related),
        "relations of doccano": text(jsonl(doccano), **related),
        "relations of Prodigy": text(jsonl(prodigy), **related),
        "relations of REBEL": text(jsonl(rebel), relations="relations"),
        "relations of numbered spans": text(
            jsonl(chars("entities", keyed(), relations=lambda e: [
                {"head": a, "tail": b, "type": name} for a, b, name in e.triples])), **related,
        ),
        "relations as lists of words": text(
            jsonl(record(text="text", triple_list=lambda e: [
                [words[a], name, words[b]] for words in [e.surfaces] for a, b, name in e.triples])),
            relations="relations", change=without(unclear),
        ),
        "relations as predicted": text(
            jsonl(record(text="text", relations=lambda e: predicted(e, probability=0.5))), relations="relations"
        ),
        "relations in cells": text(
            table(record(text="text", relations=lambda e: json.dumps(predicted(e)))), relations="relations"
        ),
        "relations of NYT": text(objects(nyt), relations="relations", change=without(unclear)),
        "relations of SpERT": in_words(
            objects(tokens("entities", OF_TOKENS, relations=lambda e: [
                {"type": name, "head": a, "tail": b} for a, b, name in e.triples])),
            entities="token_spans", relations="token_relations",
        ),
        "relations in our processed folder": text(
            objects(record(id=lambda e: str(e.number), text="text", tokens="tokens", entities="token_spans",
                           relations="token_relations")), **related,
        ),
        "relations of DyGIE": in_words(document(dygie_of), entities="token_spans", relations="token_relations"),
        "relations of Label Studio": text(studio(linked_regions), ner="spans", relations="relations"),
        "Prodigy": text(
            jsonl(chars("spans", keyed(), tokens=lambda e: [{"text": "x", "start": 0, "end": 1}],
                        answer=lambda e: "accept")), spans="spans",
        ),
        "CMeEE": text(objects(chars("entities", keyed("start_idx", "end_idx", "type", 1, "entity"))), **entities),
        "CLUENER": text(objects(cluener, "train.json"), label="spans"),
        "span": text(
            objects(chars("entities", lambda a, b, c, s: {"name": "", "span": [a, b], "type": c})), **entities
        ),
        "position": text(objects(chars("entities", lambda a, b, c, s: {"pos": [a, b], "type": c})), **entities),
        "valueSpan": text(
            objects(record(userInput=record(text="text"), labels=lambda e: [
                {"slot": c, "valueSpan": {"startIndex": a, "endIndex": b}} for a, b, c in e.spans])), labels="spans",
        ),
        "valueSpan without zeros": text(
            objects(lambda e: {"userInput": {"text": e.text}} | ({"labels": [
                {"slot": c, "valueSpan": {"startIndex": a, "endIndex": b} if a else {"endIndex": b}}
                for a, b, c in e.spans]} if e.spans else {})), labels="spans",
        ),
        "spaCy": text(objects(lambda e: [e.text, {"entities": e.spans}]), **entities),
        "spaCy's annotator": text(
            objects(lambda e: [e.text, {"entities": e.spans}],
                    wrap=lambda rows, _: {"classes": ["PER"], "annotations": [None, *rows]}), **entities,
        ),
        "Dataturks": text(
            objects(record(content="text", extras=lambda e: None, annotation=lambda e: [
                {"label": [c], "points": [{"start": a, "end": b - 1, "text": e.text[a:b]}]} for a, b, c in e.spans])),
            annotation="spans",
        ),
        "Vertex": text(
            objects(chars("textSegmentAnnotations", keyed("startOffset", "endOffset", "displayName"), "textContent")),
            textSegmentAnnotations="spans",
        ),
        "columns of spans": text(
            objects(record(text="text", entities=lambda e: dict(zip(("start", "end", "label"), map(
                list, zip(*e.spans) if e.spans else ([], [], []))))), ), **entities,
        ),
        "CCKS": text(
            objects(chars("entities", lambda a, b, c, s: {"label_type": c, "start_pos": a, "end_pos": b, "overlap": 0},
                          "originalText")), **entities,
        ),
        "entity_index": text(
            objects(chars("entities", lambda a, b, c, s: {"entity_type": c, "entity": s, "entity_index":
                                                          {"begin": a, "end": b}})), **entities,
        ),
        "names and types": text(
            objects(chars("entities", lambda a, b, c, s: {"name": s, "type": c})),
            change=without(occurs_again), **entities,
        ),
        "start_char": text(objects(chars("spans", keyed("start_char", "end_char", "type"))), spans="spans"),
        "start_offset": text(objects(chars("entities", keyed("start_offset", "end_offset"))), **entities),
        "ranges by label": text(
            objects(record(text="text", entities=by_label(lambda a, b, s: [a, b]))), **entities
        ),
        "offset and length": text(
            objects(chars("entities", lambda a, b, c, s: {"offset": a, "length": b - a, "type": c})), **entities
        ),
        "BigBio": text(
            objects(chars("entities", lambda a, b, c, s: {"type": c, "offsets": [[a, b]], "id": "x"})), **entities
        ),
        "UTF-16 with surfaces": text(
            objects(record(text="text", spans=lambda e: [
                {"start": units(e.text, a), "end": units(e.text, b), "label": c, "text": e.text[a:b]}
                for a, b, c in e.spans])), {"offsets": "utf16"}, spans="spans",
        ),
        "inclusive ends": text(objects(chars("entities", keyed(last=1))), {"span_end": "inclusive"}, **entities),
        "another key of lists": in_words(
            objects(tokens("found", lambda a, b, c: [a, b, c])), {"label_column": "found"}, found="tags"
        ),
        "SpERT": in_words(objects(tokens("entities", OF_TOKENS)), entities="tags"),
        "SpERT, inclusive": in_words(objects(tokens("entities", keyed(label="type", last=1))), entities="tags"),
        "token objects": in_words(objects(tokens("entities", keyed(last=1))), entities="tags"),
        "token objects, exclusive": in_words(objects(tokens("spans", keyed())), spans="tags"),
        "W2NER": in_words(
            objects(tokens("ner", lambda a, b, c: {"index": [*range(a, b)], "type": c}, "sentence")), ner="tags"
        ),
        "W2NER, discontinuous": in_words(
            objects(lambda e: {"sentence": e.tokens, "ner": [
                *({"index": [*range(a, b)], "type": c} for a, b, c in e.entities), {"index": [0, 2], "type": "PER"}]}),
            ner="tags",
        ),
        "GLiNER": in_words(objects(tokens("ner", lambda a, b, c: [a, b - 1, c], "tokenized_text")), ner="tags"),
        "lists, inclusive": in_words(objects(tokens("ner", lambda a, b, c: [a, b - 1, c])), ner="tags"),
        "lists, exclusive": in_words(objects(tokens("spans", lambda a, b, c: [a, b, c])), spans="tags"),
        "our processed folder": text(
            objects(record(id=lambda e: str(e.number), text="text", tokens="tokens", spans=lambda e: [
                [a, b - 1, c] for a, b, c in e.entities])), spans="spans",
        ),
        "DyGIE": in_words(document(dygie), ner="tags"),
        "BRAT": text(brat, of="text split", **related),
        "Label Studio, choices": text(studio(lambda e: [choices(e.label)]), mood="label"),
        "Label Studio, several annotations": text(
            studio(lambda e: [choices("x", cancelled=True), choices(e.label), choices("y")]), mood="label"
        ),
        "Label Studio, sets": text(studio(lambda e: [choices(*e.topics)]), mood="topics"),
        "Label Studio, spans": text(studio(regions), ner="spans"),
        "Label Studio, short": text(
            objects(chars("label", lambda a, b, c, s: {"start": a, "end": b, "text": s, "labels": [c]},
                          annotator=lambda e: 1)), label="spans",
        ),
        "Label Studio, without some": text(
            studio(lambda e: [choices(e.label)], more=[{"id": 99, "data": {"text": "x"}, "annotations": []}]),
            {"drop_unlabelled": True}, mood="label",
        ),
    }  # fmt: skip


def classes_in_json():
    of_split = per("split", REVIEW)
    chat = [("system", lambda e: "x"), ("user", "text"), ("assistant", "label")]
    columns = lambda examples, key="text", label="label": {  # noqa: E731
        key: {str(n): e.text for n, e in enumerate(examples)},
        label: {str(n): e.label for n, e in enumerate(examples)},
    }
    contents = {
        "a list under a key": (lambda es: {"version": 1, "data": [*map(REVIEW, es)]}, {}),
        "pandas, columns": (columns, {}),
        "columns under other names": (
            lambda es: columns(es, "said", "mood"), {"text_column": "said", "label_column": "mood"}),
        "pandas, index": (lambda es: {str(e.number): REVIEW(e) for e in es}, {}),
        "pandas, split": (lambda es: {"columns": ["text", "label"], "index": [*range(len(es))],
                                      "data": [[e.text, e.label] for e in es]}, {}),
        "pandas, table": (lambda es: {"schema": {"fields": [{"name": "text"}]}, "data": [*map(REVIEW, es)]}, {}),
        "lists by column": (lambda es: {"text": [e.text for e in es], "label": [e.label for e in es]}, {}),
        "lists called texts and labels": (
            lambda es: {"texts": [e.text for e in es], "labels": [e.label for e in es]}, {}),
        "a setting beside the rows": (lambda es: {"data": [*map(REVIEW, es)], "eval": {"metric": "f1"}}, {}),
        "a list of texts per class": (per("label", "text"), {}),
        "a list far below": (lambda es: {"meta": {"by": "me"}, "result": {"items": [*map(REVIEW, es)]}}, {}),
        "several lists": (lambda es: {"a": [{"text": "x", "label": "go"}], "b": [*map(REVIEW, es)]}, {"rows_key": "b"}),
        "pairs": (lambda es: [[e.text, e.label] for e in es], {}),
        "pairs, label first": (lambda es: [[e.label, e.text] for e in es], {}),
        "pairs by number": (lambda es: [[e.text, e.label] for e in es], {"text_column": "0", "label_column": "1"}),
    }  # fmt: skip
    splits = {
        "splits": of_split,
        "splits of pairs": per("split", lambda e: [e.text, e.label]),
        "splits called val and oos_train": lambda es: {
            {"train": "train", "dev": "val", "test": "test"}[split]: found for split, found in of_split(es[1:]).items()
        } | {"oos_train": [REVIEW(es[0])]},
        "splits in objects by number": lambda es: {
            split: {str(n): row for n, row in enumerate(found)} for split, found in of_split(es).items()},
        "splits below": lambda es: {"version": 1, "data": of_split(es)},
        "a split below a key": lambda es: {split: {"data": found} for split, found in of_split(es).items()},
    }  # fmt: skip
    forms = {
        "pandas, records": (REVIEW, {}),
        "TNEWS": (record(label="label", label_desc=lambda e: "x", sentence="text", keywords=lambda e: "y"), {}),
        "instructions": (record(instruction=lambda e: "Which?", input="text", output="label"), {}),
        "instructions with a label": (record(query="text", response=lambda e: f"so {e.text}", label="label"), {}),
        "prompts": (record(prompt="text", completion="label"), {}),
        "messages": (record(messages=lambda e: [{"role": role, "content": get(e, of)} for role, of in chat]), {}),
        "conversations": (record(conversations=lambda e: [
            {"from": "human", "value": e.text}, {"from": "gpt", "value": e.label}]), {}),
        "an object of one key": (record(text="text", label=record(mood="label")), {}),
        "paths": (record(a=record(b="text"), labels=record(m="label", n=lambda e: 1)),
                  {"text_column": "a.b", "label_column": "labels.m"}),
    }  # fmt: skip
    names = {"columns under other names": "mood", "lists called texts and labels": "labels", "paths": "m"}
    found = {
        name: text(document(content), options, **{names.get(name, "label"): "label"})
        for name, (content, options) in contents.items()
    }
    found |= {name: text(document(content), of="text split", label="label") for name, content in splits.items()}
    found |= {
        name: text(objects(form), options, **{names.get(name, "label"): "label"})
        for name, (form, options) in forms.items()
    }
    found["splits called val and oos_train"] = found["splits called val and oos_train"]._replace(
        change=lambda e: e if e.number else e._replace(split="train")
    )
    return found | {
        "AFQMC": text(objects(PAIR, "train.json"), of="text text_pair", label="digit"),
        "OCNLI": text(
            jsonl(record(sentence1="text", sentence2="text_pair", label="label"), "train.jsonl",
                  more=[{"sentence1": "c", "sentence2": "d", "label": "-"}]),
            of="text text_pair", label="label",
        ),
        "KLUE's scores": text(
            objects(record(sentence1="text", sentence2="text_pair", labels=record(label="score", real="digit"))),
            {"label_column": "labels.label"}, of="text text_pair", label="score",
        ),
        "sets of labels": text(
            jsonl(record(text="text", topics="topics")), {"label_column": "topics"}, topics="topics"
        ),
        "keys that lack": text(jsonl(REVIEW, more=OTHERS), {"drop_unlabelled": True}, label="label"),
        "names with 0 and 1": text(
            objects(record(text="text", label=lambda e: dict(zip(("obscene", "threat", "toxic"), hot(e))))),
            label="topics",
        ),
        **{f"splits by {name}": text(objects(record({name: "split"}, text="text", label="label")), of="text split",
                                    label="label") for name in ("partition", "Split", "set", "subset")},
    }  # fmt: skip


def document_of(begin, row, tail, name, head=()):
    """Returns a writer of Rasa files, with marked examples below their intents."""

    def write(examples, noise):
        found = [*head]
        for label, marks in per("label", marked("[{text}]({label})"))(examples).items():
            found += [*begin(label), *(row.format(text) for text in marks), ""]
        return {name: noise.join([*found, *tail])}

    return write


def without(drop):
    """Returns a change of an example that removes entities. drop: function of (text, surface, type, types before)"""

    def change(example):
        tags, seen = [*example.tags], []
        for (first, end, kind), (a, b, _) in zip(example.entities, example.spans):
            if drop(example.text, example.text[a:b], kind, seen):
                tags[first:end] = ["O"] * (end - first)
            seen.append(kind)
        return example._replace(tags=tags)

    return change


def occurs_again(text, surface, kind, seen):
    return text.find(surface) != text.rfind(surface)


def unclear(text, surface, kind, seen):
    """Returns whether the words of an entity do not determine its position."""
    return occurs_again(text, surface, kind, seen) or surface != surface.strip()


def is_second(text, surface, kind, seen):
    return kind in seen


def is_second_or_occurs_again(*span):
    return is_second(*span) or occurs_again(*span)


def in_clauses(example):
    """Converts a text to clauses with Chinese punctuation."""
    return example._replace(tokens=[*example.tokens, "今天，明天"], tags=[*example.tags, "O"], gap="")


def clauses(example):
    """Returns (start, end, type or None) of the spans of a text and the pieces between them."""
    found, end = [], 0
    for a, b, label in [*example.spans, (len(example.text), len(example.text), "")]:
        found += [(end, a, None)] if a > end else []
        found += [(a, b, label)] if label else []
        end = b
    return found


SHAPES = {**tables(), **texts(), **words_and_tags(), **intents_and_slots(), **spans_of_json(), **classes_in_json()}
SHAPES |= {
    name: shape._replace(breaks=True)
    for name, shape in SHAPES.items()
    if shape.of != "tokens"
    and (name in {**spans_of_json(), **classes_in_json()} or name.startswith(("csv", "zip", "sem")))
    if name not in ("BRAT", "zip of folders of classes")
}
TYPES = {"label": "classification", "digit": "classification", "score": "regression"}
TYPES |= dict.fromkeys(("relations", "token_relations"), "relations") | {"token_spans": "spans", "joined": "spans"}
TYPES |= dict.fromkeys(("topics", "topics_or_none", "labels"), "multilabel")


# ---- random examples -------------------------------------------------------------------------------------------------

POOLS = {
    "en": "the a Mia Graz is naïve O'Neil e-mail x=y 7 12.5 B-2 #tag # -- . , x: a|b 50% and/or (c) 'tis & _ O I A/B ;",
    "quotes": '" "so "x" he said',
    "zh": "北京 他 的 天气 ， 。 好 张伟 3 年",
    "fa": "می\u200cخواهم نامه\u200cها کتاب را به او داد",
    "hi": "क्\u200dष दिल्ली में है नमस्ते वह",
    "th": "ไป กรุงเทพ วันนี้ ฉัน รัก",
    "ko": "서울 에서 살고 있습니다 그는",
    "emoji": "👍🏽 👨\u200d👩\u200d👧 ❤️ 1️⃣ 🇨🇳 🚢 ok",
    "format": "a\u200cb x\u200dy soft\u00adhyphen x\u2060w w\ufeffz \u200bz e\u0301 end\u200c",
    "marks": "[ ] { } ( ) < > \\ ^ $ [1] {x} <b>",
    "separators": "a\u2028b x\u0085y p\u000bq a\u00a0b",
}


def random_example(rng, number, shape, labels, kinds):
    names = ["zh"] if rng.random() < 0.2 else [*rng.sample(["en", *POOLS], 2), rng.choice(["en", "zh", "fa"])]
    pool = [word for name in names for word in POOLS[name].split(" ") if not {*word} & {*shape.avoid}] or ["x"]
    pool += ["\xa0"] * shape.of.startswith("tokens") + ["a\nb", "c\td"] * shape.breaks
    size = rng.choice([100, 300, 3000]) if rng.random() < 0.01 else rng.randint(1, 9)
    found, tags = [rng.choice(pool) for _ in range(size)], ["O"] * size
    if number < 2:
        found, tags, size = [f"Mia{number}", "Berg", "sails", "to", "Graz"], "B-PER I-PER O O B-LOC".split(), 5
    for start in range(0, size if number > 1 else 0, 3):
        if rng.random() < 0.4:
            kind, end = rng.choice(kinds), min(size, start + rng.randint(1, 3))
            tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    pos = [rng.choice(["NNP", "VB", "IN", "DT"]) for _ in found]
    topics = tuple(name for name in ("obscene", "threat", "toxic") if rng.random() < 0.4 or number < 2)
    split, gap = SPLITS[number % 4], "" if names == ["zh"] else " "
    score = rng.randint(0, 9) / 2 + 0.25
    label = labels[number % len(labels)] if number < 6 else rng.choice(labels)
    return Example(found, tags, pos, label, topics, score, split, number, gap)


def random_examples(rng, shape):
    if shape.examples is not EXAMPLES:
        return rng.sample(shape.examples, len(shape.examples))
    labels = rng.choice(
        [["go", "say"], ["go", "say"], ["正", "负"], ["0", "1"], ["A-b", "c_d", "E.f"], ["O", "X"], ["None", "Some"]]
    )
    size = len(EXAMPLES) if "max_rows" in shape.options else rng.randint(6, 30)
    kinds = ["PER", "LOC", *rng.choice([(), ("LOC.x", "机构")])]
    return [random_example(rng, number, shape, labels, kinds) for number in range(size)]


# ---- what must come back ---------------------------------------------------------------------------------------------


def usable(shape, examples):
    """Returns the examples in the form that a shape can express."""
    return [shape.change(e) for e in examples if not {*shape.avoid} & {*e.text}]


def as_value(value):
    """Converts a value to JSON types. Sets become sorted lists."""
    if isinstance(value, tuple):
        return sorted(value)
    return [[*span] if isinstance(span, tuple) else span for span in value] if isinstance(value, list) else value


def expected(shape, examples, names=()):
    """Returns the expected rows. names: the names that noise gives to the tasks"""
    keys = {name: name for name in shape.of.split()} | {
        dict(names).get(task, task): of for task, of in shape.gives.items()
    }
    return [{key: as_value(get(example, of)) for key, of in keys.items()} for example in examples]


def in_order(found):
    return sorted(json.dumps(row, ensure_ascii=False, sort_keys=True) for row in found)


def write(folder, files):
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(as_bytes(body))
    return folder
