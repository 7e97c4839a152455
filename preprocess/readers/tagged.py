"""Readers of tokenized texts with one tag per token: CoNLL, CoNLL-U, word/pos, one sentence per row, seq.in."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import regex

from engine.errors import UserError
from preprocess.example import Example
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.raw_files import read_rows, split_words
from preprocess.readers.token_rows import (
    NONE,
    TAG_NAMES,
    TOKEN_NAMES,
    Cells,
    Head,
    Layout,
    Row,
    example_of,
    find_layout,
    intents_of,
    pattern_of,
    plain_name,
    require_end,
    sentences,
)

HEAD_ROWS = 5000  # by which the columns of a file are found
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
GLOBAL_COLUMNS = "# global.columns ="  # CoNLL-U Plus names its columns in its first row
BREAKS = ("-DOCSTART-", "#begin document", "#end document")
KEY_AND_VALUE = re.compile(r"#+ ?[\w.:-]+ ?=")  # a comment: "# text = …"
GLUED = regex.compile(r"(?s)^(\X)(\d{1,4})$")  # a character, also an emoji of several code points, and a number
CLAUSE = regex.compile(r"\p{Han}[，。！？；：、]|[，。！？；：、]\p{Han}")
LONG = regex.compile(r"\p{Han}{6}")
WORD_TAG = re.compile(r"([^ \t\u3000]+)/([A-Za-z][\w$-]*|[^\w\s]{1,2})")


def read_conll(path: Path, options: ReadOptions) -> Iterator[Example]:
    """One token and tag per row, a blank row between sentences; optionally PATH.intent, with one intent per sentence,
    or the intent in a row of its own at the beginning or end of each sentence.

    The token is the first column that does not count, the tag the last. A token may itself be a space: `' ' + ' ' +
    'O'`.
    """
    layout = conll_layout(path, options)
    options.understood.add(path, "CoNLL", **layout.shown())
    intents = None
    if options.labelled and Path(f"{path}.intent").exists():
        intents = [row.strip() for _, row in read_rows(f"{path}.intent", options.encoding)]
        while intents and not intents[-1]:
            intents.pop()
    read_intent = intents_of(own_intents(path, layout, options), options)
    number = 0
    for number, (start, block) in enumerate(sentences(layout, conll_rows(path, layout, options)), 1):
        intent = None
        if layout.intent is not None:
            intent = read_intent(block.pop(layout.intent)[0]) if len(block[layout.intent]) == 1 else ""
            if not intent or not all(len(cells) == len(layout.names) for cells in block):
                raise UserError(f"{path}, row {start}: the sentence needs one row with its intent, as the others have")
        example = example_of(layout, start, block, options)
        if intents is not None:
            if number > len(intents):
                more = f"more sentences (the next begins in row {start})"
                raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {more}")
            intent = intents[number - 1]
        if intent is not None and options.labelled:
            labels = {task: example.pop(task) for task in layout.tags}
            example |= {"intent": intent, **labels}
        yield example
    if intents is not None and number != len(intents):
        raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {number} sentences")


def split_row(row: str) -> Cells:
    """The cells of a row of CoNLL, which tabs or blanks separate."""
    if "\t" in row:
        return row.rstrip("\t").split("\t")
    cells = row.rstrip(" ").split(" ")
    if "" not in cells:  # the usual case
        return cells
    return [" " if row.startswith("  ") else cells[0], *filter(None, cells[1:])]  # a token may be a blank


def conll_layout(path: Path, options: ReadOptions) -> Layout:
    """The Layout of a CoNLL file, by its first rows."""
    blocks: list[list[Cells]] = [[]]
    starred: list[list[Cells]] = [[]]  # with the rows that may be comments
    is_conll_2012 = False
    head = list(islice(read_rows(path, options.encoding), HEAD_ROWS))
    for _, row in head:
        is_conll_2012 = is_conll_2012 or row.startswith(BREAKS[1])
        if not row.strip(" \t") or row.startswith(BREAKS):
            blocks.append([])
            starred.append([])
            continue
        starred[-1].append(split_row(row))
        if not row.startswith("#" if options.comment in ("", NONE) else options.comment):
            blocks[-1].append(starred[-1][-1])
    blocks = [block for block in blocks if block] or [block for block in starred if block]
    widths = Counter(len(cells) for block in blocks for cells in block)
    width = max(widths, key=lambda width: (widths[width], width), default=0)
    intent = intent_row(blocks[:-1] if len(head) == HEAD_ROWS else blocks, width)
    blocks = [[cells for cells in block if len(cells) == width] for block in blocks]
    if not width:
        raise UserError(f"{path}: contains no examples")
    names = [str(number) for number in range(width)]
    first = [plain_name(cell) for cell in blocks[0][0]] if blocks[0] else []
    titled = len(first) > 1 and bool({*first} & {*TOKEN_NAMES}) and bool({*first} & {*TAG_NAMES})
    named = plain_name((options.token_column or options.tag_column).split(",")[0])
    titled = titled or (len(first) > 1 and named in first and named != "" and not named.isdigit())
    if titled:
        names = blocks[0].pop(0)
    found = Head(path, names, [block for block in blocks if block], titled)
    if is_conll_2012 and width > 11 and not options.token_column and not options.tag_column:
        options = replace(options, token_column="3", tag_column="10")
    return find_layout(found, options, intent=intent)


def intent_row(blocks: list[list[Cells]], width: int) -> int | None:
    """Where every sentence has a row of one cell, its intent: 0 or -1; None if they have none."""
    for place, others in ((-1, slice(None, -1)), (0, slice(1, None))):
        fits = (len(b) > 1 and len(b[place]) == 1 and all(len(cells) == width for cells in b[others]) for b in blocks)
        if len(blocks) > 1 and width > 1 and all(fits):
            return place
    return None


def own_intents(path: Path, layout: Layout, options: ReadOptions) -> Iterator[str]:
    """All intents of a file whose sentences have a row with their intent."""
    if layout.intent is not None:
        for _, block in sentences(layout, conll_rows(path, layout, options, report=False)):
            if len(block[layout.intent]) == 1:
                yield block[layout.intent][0]


def conll_rows(path: Path, layout: Layout, options: ReadOptions, report: bool = True) -> Iterator[Row]:
    """The rows of a CoNLL file without comments; a blank row, which ends a sentence, has no cells."""
    numbered = has_numbered_characters(path, layout, options.encoding)
    if numbered and report:
        print(f"{path}: each character is followed by its position in its word (科0 技1), which is removed")
    is_new, skipped = True, 0
    width, single = len(layout.names), layout.intent is not None
    is_title = not layout.names[0].isdigit()
    sign = "#" if options.comment in ("", NONE) else options.comment
    for number, row in read_rows(path, options.encoding):
        if not row.strip(" \t") or row.startswith(BREAKS):
            is_new = True
            yield number, []
            continue
        cells = split_row(row)
        if is_title and cells == layout.names:
            is_title = False
            continue
        if row.startswith(sign) and is_comment(layout, row, cells, f"{path}, row {number}", is_new, options):
            skipped += 1
            continue
        if (len(cells) != width and not (single and len(cells) == 1)) or not cells[0]:
            raise wrong_width(layout, f"{path}, row {number}", row, cells)
        if len(cells) == width and not cells[layout.token]:
            raise UserError(f"{path}, row {number}: the token is empty")
        if numbered and len(cells) > 1:
            cells[layout.token] = GLUED.sub(r"\1", cells[layout.token])
        is_new = False
        yield number, cells
    if skipped and report:
        print(f"{path}: {skipped:,} rows are skipped as comments (--comment none reads them)")


def wrong_width(layout: Layout, where: str, row: str, cells: Cells) -> UserError:
    shown = repr(row[:60])
    if len(cells) < 2 or not cells[0]:
        return UserError(f"{where}: needs a token and a tag, found {shown}")
    advice = "if it is a comment, name its beginning with --comment"
    return UserError(f"{where}: {len(cells)} columns, but the others have {len(layout.names)}: {shown}; {advice}")


def is_comment(layout: Layout, row: str, cells: Cells, where: str, is_new: bool, options: ReadOptions) -> bool:
    """Whether a row is a comment: one that begins as --comment says, otherwise a row with # before a sentence that
    cannot be a token and its tag."""
    if options.comment:
        return options.comment != NONE and row.startswith(options.comment)
    if not row.startswith("#"):
        return False
    fits = layout.fits(cells)
    named = is_new and KEY_AND_VALUE.match(row)
    if named and not fits:
        return True
    if fits is None and not is_new:
        return False
    if named or fits is None or not (fits or is_new):
        advice = "--comment '#' skips such rows, --comment none reads them as tokens"
        raise UserError(f"{where}: {row[:60]!r} may be a comment or a token; {advice}")
    return not fits


def has_numbered_characters(path: Path, layout: Layout, encoding: str) -> bool:
    """Whether the tokens of a CoNLL file are characters plus their position in their word, as in Weibo NER: 科0 技1.

    A few tokens of another form in a long file do not matter."""
    before, num_tokens, others = -1, 0, 0
    for _, row in read_rows(path, encoding):
        if not row.strip() or row.startswith(BREAKS):
            before = -1
            continue
        cells = split_row(row)
        token = cells[layout.token] if len(cells) == len(layout.names) else cells[0]
        match = GLUED.fullmatch(token)
        num_tokens += 1
        if match is not None and int(match[2]) in (0, before + 1):
            before = int(match[2])
            continue
        before, others = -1, others + 1
        if others > 3 + 0.01 * num_tokens:
            return False
    return num_tokens > 1 and others <= 0.01 * num_tokens


def read_conllu(path: Path, options: ReadOptions) -> Iterator[Example]:
    """CoNLL-U: ten columns per token; the tags are --tag_column or --label_column, otherwise UPOS, or XPOS if there is
    no UPOS. CoNLL-U Plus names its columns in its first row. The keys of MISC that all tokens have (`name=B-PER`) are
    columns, too. If a column beyond the ten has tags of entities, it is the default.

    Ranges (1-2) and empty nodes (1.1) are skipped.
    """
    columns = conllu_columns(path, options.encoding)
    head = [token for _, tokens in islice(conllu_sentences(path, options.encoding, columns), 1000) for token in tokens]
    in_all = [key for key in next(iter(head), {}) if key not in columns and all(key in token for token in head)]
    names = (*columns, *in_all)
    listed = f"{'CoNLL-U' if columns == CONLLU else 'it'} has {', '.join(names)}"
    flag = "tag_column" if options.tag_column else "label_column"
    wanted = [name.lower() for name in split_names(options.tag_column or options.label_column)]
    wanted = [names[int(name)] if name.isdigit() and int(name) < len(names) else name for name in wanted]
    if unknown := [name for name in wanted if name not in names or name in ("id", "form")]:
        raise UserError(f"{path}: no column {unknown[0]!r} (--{flag}); {listed}")
    if not wanted and options.labelled:
        wanted = usual_tags(head, names)
        if not wanted:
            raise UserError(f"{path}: cannot tell which column has the tags; add --tag_column; {listed}")
    options.understood.add(path, "CoNLL-U", token="form", tag=", ".join(wanted))
    for start, tokens in conllu_sentences(path, options.encoding, columns):
        example: Example = {"_where": f"{path}, row {start}", "tokens": [token["form"] for token in tokens]}
        for name in wanted:
            if absent := [token["form"] for token in tokens if name not in token]:
                raise UserError(f"{path}, row {start}: {absent[0]!r} has no {name}= in MISC, as other tokens have")
            tags = [token[name].strip() for token in tokens]
            example[re.sub("[.,=]", "_", name)] = None if set(tags) == {"_"} else tags
        yield example


def conllu_columns(path: Path, encoding: str) -> tuple[str, ...]:
    """The columns of CoNLL-U, or of CoNLL-U Plus, whose first row names them."""
    _, first = next(read_rows(path, encoding), (1, ""))
    if not first.startswith(GLOBAL_COLUMNS):
        return CONLLU
    columns = tuple(first.removeprefix(GLOBAL_COLUMNS).lower().split())
    if "form" not in columns or len(set(columns)) < len(columns):
        raise UserError(f"{path}, row 1: needs distinct columns, one of them FORM, found {first[:60]!r}")
    return columns


def usual_tags(tokens: list[dict[str, str]], columns: tuple[str, ...]) -> list[str]:
    """The column of the tags of CoNLL-U: of entities in a column of its own, otherwise UPOS or XPOS."""
    for name in reversed([name for name in columns if name not in CONLLU]):
        if pattern_of(token[name].strip() for token in tokens):
            return [name]
    usual = [name for name in columns if name in ("upos", "xpos")]
    return [name for name in usual if any(token[name] != "_" for token in tokens)][:1] or usual[:1]


def conllu_sentences(
    path: Path, encoding: str, columns: tuple[str, ...] = CONLLU
) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """Yields (row number, [{column: value} of each token]) of each sentence."""
    start = 0
    tokens: list[dict[str, str]] = []
    needed = "the ten columns of CoNLL-U" if columns == CONLLU else f"the columns {', '.join(columns)}"
    for number, row in chain(read_rows(path, encoding), [(0, "")]):
        if not row.strip():
            if tokens:
                yield start, tokens
            tokens = []
        elif not row.startswith("#"):
            cells = row.split("\t")
            is_token = len(cells) == len(columns) and all(cells)
            number_of_token = dict(zip(columns, cells)).get("id", "1")
            if not is_token or not re.fullmatch(r"\d+([-.]\d+)?", number_of_token):
                raise UserError(f"{path}, row {number}: needs {needed}, found {row[:80]!r}")
            require_end(path, number, len(tokens))
            start = start if tokens else number
            if number_of_token.isdigit():
                token = dict(zip(columns, cells))
                pairs = [item.partition("=")[::2] for item in token.get("misc", "").split("|") if "=" in item]
                tokens.append({key.lower(): value for key, value in pairs} | token)


def read_word_tags(path: Path, options: ReadOptions) -> Iterator[Example]:
    """One sentence per row, words with part-of-speech tags: 我/r 爱/v 北京/ns. Brackets around several words, as in
    [中央/n 电视台/n]nt, are removed.

    If the pieces are whole clauses, with /o where there is no entity, the example is the text, with its entities."""
    chunked = has_chunks(path, options.encoding)
    options.understood.add(path, "pieces of text with the type of entity" if chunked else "words with tags")
    for number, row in read_rows(path, options.encoding):
        where = f"{path}, row {number}"
        if pairs := word_tag_pairs(row, where):
            if chunked:
                yield {"_where": where, **text_of_chunks(pairs)}
            else:
                yield {"_where": where, "tokens": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]}


def word_tag_pairs(row: str, where: str) -> list[tuple[str, str]]:
    """[(word, tag)] of a row."""
    pieces = re.findall(r"[^ \t\u3000]+", row)
    if any(re.fullmatch(r".+\](/?[A-Za-z]+)?", piece) for piece in pieces):
        pieces = without_brackets(pieces)
    matches = [WORD_TAG.fullmatch(piece) for piece in pieces]
    if None in matches:
        raise UserError(f"{where}: {pieces[matches.index(None)][:60]!r} is not word/tag")
    return [(match[1], match[2]) for match in matches if match]


def has_chunks(path: Path, encoding: str) -> bool:
    """Whether the pieces of a word/tag file are clauses: several have Chinese punctuation inside, or are long."""
    pairs = []
    for number, row in islice(read_rows(path, encoding), HEAD_ROWS):
        pairs += word_tag_pairs(row, f"{path}, row {number}")
    clauses = [(word, tag) for word, tag in pairs if CLAUSE.search(word)]
    long = [(word, tag) for word, tag in pairs if tag.lower() == "o" and LONG.search(word)]
    if len(clauses) < max(1, 0.02 * len(pairs)) and len(long) < max(1, 0.05 * len(pairs)):
        return False
    if other := [word for word, tag in clauses if tag.lower() != "o"]:
        raise UserError(f"{path}: {other[0][:30]!r} is not a word, and its tag is not /o, for a text without entities")
    return True


def text_of_chunks(pairs: Iterable[tuple[str, str]]) -> Example:
    """The text of its pieces, and the entities among them."""
    text, spans = "", []
    for piece, tag in pairs:
        if tag.lower() != "o":
            spans.append([len(text), len(text) + len(piece), tag])
        text += piece
    return {"text": text, "entities": spans}


def without_brackets(pieces: list[str]) -> list[str]:
    """word/tag pieces without the brackets that group words into a longer name."""
    result: list[str] = []
    opened = None
    for position, piece in enumerate(pieces):
        if piece[0] == "[" and len(piece) > 1 and piece[1] != "/" and opened is None:
            opened = position
        closed = re.fullmatch(r"(.+/[A-Za-z]+)\](/?[A-Za-z]+)?", piece)
        if closed and opened is not None:
            piece = closed[1]
            if opened == position:
                piece = piece[1:]
            else:
                result[opened] = result[opened][1:]
            opened = None
        result.append(piece)
    return result


def read_seq(path: Path, options: ReadOptions) -> Iterator[Example]:
    """A folder of seq.in, seq.out (words and tags, separated by spaces) and label (intents), one sentence per row."""
    names = [name for name in ("seq.in", "seq.out", "label") if (path / name).exists()]
    if len(names) < 2 or names[0] != "seq.in":
        raise UserError(f"{path}: needs seq.in, and at least one of seq.out and label")
    for rows in zip_longest(*(read_rows(path / name, options.encoding) for name in names)):
        if None in rows:
            counts = {name: sum(1 for _ in read_rows(path / name, options.encoding)) for name in names}
            other = next(name for name in names if counts[name] != counts["seq.in"])
            raise UserError(f"{path}/{other}: {counts[other]} rows, but seq.in has {counts['seq.in']}")
        columns = {name: row for name, (_, row) in zip(names, rows)}
        where = f"{path}/seq.in, row {rows[0][0]}"
        example: Example = {"_where": where, "tokens": split_words(columns["seq.in"])}
        if "label" in names:
            example["intent"] = columns["label"].strip()
        if "seq.out" in names:
            example["slots"] = split_words(columns["seq.out"])
        yield example


# ---- a sentence per row --------------------------------------------------------------------------------------------

ENTITY = r"(?:O|[BIESMLU]-\S+)"
PIECES = [re.compile(rf"([^ \t]+?){re.escape(mark)}({ENTITY})") for mark in (":", "|", "###")]  # word:tag
TAG = re.compile(rf"{ENTITY}|-|\S+_[BI]")  # in a column of tags
INTENT = re.compile(r"\s*(?:<=>|\t)\s*")  # what separates word:tag pairs from the intent


class SentenceRow(NamedTuple):
    """A sentence that is one row. intent: None without one"""

    tokens: list[str]
    tags: list[str]
    intent: str | None


class RowForm(NamedTuple):
    """How a row is a sentence: pairs word:tag, or columns of words, tags and intent, which tabs separate."""

    pair: re.Pattern[str] | None = None
    words: int = 0
    tags: int = 1
    intent: int | None = None
    width: int = 2

    def parse(self, row: str) -> SentenceRow | None:
        """The sentence of a row, None if it has another form."""
        if self.pair is not None:
            pairs, *intents = INTENT.split(row.strip(" \t"), maxsplit=1)
            matches = [self.pair.fullmatch(piece) for piece in split_words(pairs)]
            if None in matches or not matches:
                return None
            found = [match.groups() for match in matches if match]
            return SentenceRow([word for word, _ in found], [tag for _, tag in found], next(iter(intents), None))
        cells = [cell.strip(" ") for cell in row.split("\t")]
        if len(cells) != self.width:
            return None
        tokens, tags = split_words(cells[self.words]), split_words(cells[self.tags])
        intent = None if self.intent is None else cells[self.intent]
        if intent is None and len(tags) > 1 and not TAG.fullmatch(tags[-1]):
            intent = tags.pop()  # of the word EOS
            if tokens[-1:] == ["EOS"]:
                tokens.pop()
            elif len(tokens) != len(tags):
                return None
        if tokens[:1] == ["BOS"] and tags[:1] == ["O"]:
            tokens, tags = tokens[1:], tags[1:]
        if len(tokens) != len(tags) or not all(map(TAG.fullmatch, tags)):
            return None
        return SentenceRow(tokens, tags, intent) if tokens else None


def row_form(rows: list[str]) -> RowForm | None:
    """The form of rows that are a sentence each, with a tag for each word; None if they are not."""
    width = len(rows[0].split("\t"))
    forms = [RowForm(pair) for pair in PIECES]
    if 2 <= width <= 4:
        for words in range(width):
            for tags in (place for place in range(width) if place != words):
                others: list[int | None] = [place for place in range(width) if place not in (words, tags)]
                forms += [RowForm(None, words, tags, place, width) for place in others or [None]]
    for form in forms:
        found = [form.parse(row) for row in rows]
        parsed = [row for row in found if row is not None]
        if len(parsed) == len(rows) and any(len(row.tokens) > 1 for row in parsed):
            intents = {row.intent for row in parsed}
            names = all(intent and " " not in intent for intent in intents) and len(intents) <= max(3, 0.5 * len(rows))
            if names or intents == {None}:
                return form
    return None


def read_sentence_rows(path: Path, options: ReadOptions) -> Iterator[Example]:
    """One sentence per row: words, their tags and perhaps the intent, between tabs, or `word:tag … <=> intent`."""
    head = [row for _, row in islice(read_rows(path, options.encoding), HEAD_ROWS) if row.strip()]
    form = row_form(head) if head else None
    if form is None:
        forms = "words<tab>tags<tab>intent, or word:tag word:tag <=> intent"
        raise UserError(f"{path}: its rows are not sentences with a tag for each word: {forms}")
    shown = "word:tag pairs" if form.pair else f"words = column {form.words}, tags = column {form.tags}"
    options.understood.add(path, f"one sentence per row: {shown}")

    def parsed() -> Iterator[tuple[str, SentenceRow]]:
        for number, row in read_rows(path, options.encoding):
            if row.strip():
                where, found = f"{path}, row {number}", form.parse(row)
                if found is None:
                    raise UserError(f"{where}: needs a tag for each word, as the other rows have: {row[:60]!r}")
                yield where, found

    read_intent = intents_of((row.intent for _, row in parsed() if row.intent), options)
    for where, row in parsed():
        intent = {} if row.intent is None else {"intent": read_intent(row.intent)}
        yield {"_where": where, "tokens": row.tokens, **intent, "slots": row.tags}
