"""One token per row, in CoNLL and in tables: which columns are the token, its tags and its sentence.

The decision is by evidence of the first rows; what is doubtful is refused with the options that decide.
Edit here to have your own names of such columns found.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

from engine.errors import UserError
from engine.task.signs import TEXT_NAMES
from preprocess.example import PART_NAMES, RESERVED, Example
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.raw_files import abbreviate, split_words

MAX_TOKENS = 1_000_000  # per sentence: a file without blank rows must not fill the memory
MOST_TOKENS_ALONE = 100  # of a sentence that is the only one of its file
NONE = "none"  # the value of --comment for a file without comments
ONE_EXAMPLE = "one_example"  # the gate for such a file, see preprocess/gates.py
ENDS = set(".。!！?？…")
TOKEN_NAMES = "token tokens word words form 词 字 词语 单词".split()
SENTENCE_NAMES = "sentence sentenceid sentid sentenceidx sentenceindex sentenceno sentencenumber 句子编号".split()
TAG_NAMES = "tag tags nertag nertags ner label labels slot slots iob bio iobtag biotag 标签 pos upos postag".split()
SPLIT_NAMES = ("split", "partition")
# How the tags of entities are written. A column has such tags if one pattern fits all of its cells.
TAG_PATTERNS = [
    re.compile(r"O|[BIESMLU][-_]\S.*"),
    re.compile(r"O|-|\S+[-_][BIESMLU]"),  # - is O in Korean corpora: PER_B PER_I -
    re.compile(r"[Oo]|[biesmlu][-_]\S.*"),
]
BARE_TAG = re.compile(r"\w[\w.:/&-]*")
NUMBER = re.compile(r"\d+([-.]\d+)*")  # 1, and the ranges 1-2 and empty nodes 1.1 of CoNLL-U
# Types of the chunks of CoNLL-2000 and CoNLL-2003, which stand beside entities
CHUNKS = set("NP VP PP ADVP ADJP SBAR PRT CONJP INTJ LST UCP".split())
STARS = re.compile(r"(\((?P<kind>[^()*\s]+))?\*?(?P<end>\))?")  # CoNLL-2012: (GPE* *) is B-GPE I-GPE, (GPE) B-GPE
Cells = list[str]
Row = tuple[int, Cells]  # (number, cells); without cells: a break between sentences


@dataclass(frozen=True)
class Layout:
    """Where token, tags and sentence are in the cells of a row."""

    path: str | Path
    names: list[str]  # of the columns: 0, 1, … without a header
    token: int
    tags: dict[str, int]  # {task: column}
    sentence: int | None = None
    part: int | None = None
    pattern: re.Pattern[str] | None = None  # of the tags of entities
    known: frozenset[str] = frozenset()  # tags in the first rows
    intent: int | None = None  # where a sentence has a row with its intent: 0 or -1
    ends: frozenset[str] = frozenset()  # tokens that end a sentence
    may_be_one: bool = False  # whether the file may be a single long sentence

    def fits(self, cells: Cells) -> bool | None:
        """Whether cells are a token with its tags; None if their number fits, but a tag is new."""
        if len(cells) != len(self.names):
            return False
        tags = [cells[column].strip() for column in self.tags.values()]
        if self.pattern is not None:
            return all(self.pattern.fullmatch(tag) for tag in tags)
        return True if not tags or self.known.issuperset(tags) else None

    def begins_sentence(self, before: Cells, cells: Cells) -> bool:
        """Whether a new sentence begins between two rows without a break: by its column, or after a last token."""
        if len(before) != len(cells):
            return False
        if self.sentence is not None and cells[self.sentence].strip():  # it may be given in the first row only
            return cells[self.sentence].strip() != before[self.sentence].strip()
        inside = any(re.match(r"[IMEL][-_]", cells[column], re.I) for column in self.tags.values())
        return before[self.token] in self.ends and not inside

    def shown(self) -> dict[str, str | None]:
        """What is said about the columns before anything is written."""
        tags = ", ".join(self.title(column) for column in self.tags.values())
        sentence = None if self.sentence is None else self.title(self.sentence)
        used = {self.token, self.sentence, self.part, *self.tags.values()}
        others = [self.title(n) for n in range(len(self.names)) if n not in used]
        unused = abbreviate(others, 6) if others else None
        return {"token": self.title(self.token), "tag": tags, "sentence": sentence, "not used": unused}

    def title(self, column: int) -> str:
        return f"column {self.names[column]}" if self.names[column].isdigit() else repr(self.names[column])


@dataclass(frozen=True)
class Head:
    """The first rows of a file as blocks, which breaks separate. title: the row that names the columns is read."""

    path: str | Path
    names: list[str]
    blocks: list[list[Cells]]
    titled: bool

    def column(self, number: int) -> list[str]:
        return [cells[number].strip() for block in self.blocks for cells in block]

    def find(self, flag: str, name: str) -> int:
        """The column that an option names."""
        titles = [title.lower() for title in self.names]
        if name.lower() in titles:
            return titles.index(name.lower())
        if name.isdigit() and int(name) < len(titles) and self.named([*TOKEN_NAMES, *TAG_NAMES, *TEXT_NAMES]):
            return int(name)
        headless = "if row 1 does not name the columns, add --no_header; " if self.titled and name.isdigit() else ""
        raise UserError(f"{self.path}: no column {name!r} (--{flag}); {headless}{self.listed()}")

    def named(self, usual: Iterable[str]) -> list[int]:
        """The columns with usual names, in the order of these names."""
        plain = [plain_name(name) for name in self.names]
        return [plain.index(name) for name in usual if name in plain] if self.titled else []

    def listed(self) -> str:
        first = next(iter(self.blocks[0]), []) if self.blocks else []
        cells = [f"{name} ({cell[:20]!r})" for name, cell in zip(self.names, first)]
        return f"its columns are: {abbreviate(cells or self.names)}"

    def refuse(self, reason: str) -> UserError:
        advice = "name the columns with --token_column and --tag_column"
        return UserError(f"{self.path}: {reason}; {advice}; {self.listed()}")

    def counts(self, number: int) -> bool:
        """Whether a column counts the tokens, from 0 or 1, or through the whole file."""
        blocks = [[cells[number].strip() for cells in block] for block in self.blocks]
        if not all(re.fullmatch(r"\d{1,9}", cell) for block in blocks for cell in block):
            return False
        found = [[int(cell) for cell in block] for block in blocks if block]
        running = [number for block in found for number in block]
        again = all(block[0] in (0, 1) and steps(block) for block in found)
        return len(running) > 1 and (again or steps(running)) and (len(found) > 1 or len(running) > 2)

    def is_constant(self, number: int) -> bool:
        """Whether a column has one value in each sentence, as the name of a document or the number of a sentence."""
        long = [{cells[number] for cells in block} for block in self.blocks if len(block) > 1]
        return len(long) > 2 and all(len(values) == 1 for values in long)


def steps(numbers: Sequence[int]) -> bool:
    return all(after == before + 1 for before, after in pairwise(numbers))


def plain_name(name: str) -> str:
    """A column's name as it is compared: "Sentence #" is "sentence"."""
    return re.sub(r"[\W_]+", "", name.lower())


def pattern_of(cells: Iterable[str]) -> re.Pattern[str] | None:
    """How the tags of entities are written in a column, or None if its cells are not such tags."""
    values = set(cells)
    return next((p for p in TAG_PATTERNS if values - {"-"} and all(map(p.fullmatch, values))), None)


def are_bare_tags(cells: Sequence[str]) -> bool:
    """Whether cells are types of entities and O: few values, which repeat."""
    values = set(cells)
    few = len(values) <= max(3, 0.3 * len(cells)) and len(values) <= 200
    return "O" in values and few and all(map(BARE_TAG.fullmatch, values))


def types_of(cells: Iterable[str]) -> set[str]:
    return {re.sub(r"^[A-Za-z][-_]|[-_][A-Z]$", "", cell) for cell in cells} - {"O", "o", "-"}


def find_layout(head: Head, options: ReadOptions, *, part: int | None = None, intent: int | None = None) -> Layout:
    """The Layout of a file with one token per row. part, intent: what is certain already"""
    sentence = numbers_of_sentences(head, options)
    token = find_token(head, sentence, options)
    columns = tags_or_none(head, token, sentence, options)
    cells = [cell for column in columns for cell in head.column(column)]
    return Layout(
        head.path,
        head.names,
        token,
        dict(zip(task_names(head, columns, options), columns)),
        sentence=sentence,
        part=part,
        pattern=pattern_of(cells) or (STARS if "*" in cells and all(map(STARS.fullmatch, cells)) else None),
        known=frozenset(cells),
        intent=intent,
        ends=frozenset(options.sentence_end.split()),
        may_be_one=bool(options.sentence_end) or ONE_EXAMPLE in options.accept,
    )


def numbers_of_sentences(head: Head, options: ReadOptions) -> int | None:
    """The column of --sentence_column, otherwise one with a usual name and numbers."""
    if options.sentence_column:
        return head.find("sentence_column", options.sentence_column)
    return next((n for n in head.named(SENTENCE_NAMES) if are_numbers(head.column(n))), None)


def find_token(head: Head, sentence: int | None, options: ReadOptions) -> int:
    """The column of the tokens: that of --token_column, otherwise the first that does not number tokens or
    sentences."""
    if options.token_column:
        token = head.find("token_column", options.token_column)
    else:
        named = head.named(TOKEN_NAMES)
        width = len(head.names)
        beside = [n for n in range(width - 1) if head.counts(n) or (width > 2 and head.is_constant(n))]
        beside.append(-1 if sentence is None else sentence)
        token = named[0] if named else next((n for n in range(width) if n not in beside), 0)
    cells = head.column(token)
    numbered = len(cells) > 5 and not options.token_column and all(map(NUMBER.fullmatch, cells))
    if head.counts(token) or numbered:
        raise head.refuse(f"the tokens in column {head.names[token]} would be numbers ({', '.join(cells[:3])}, …)")
    tagged = pattern_of(cells)
    if tagged and len(types_of(cells)) > 0 and len(set(cells)) < 0.5 * len(cells):
        raise head.refuse(f"the tokens in column {head.names[token]} would be tags ({cells[0]}, …)")
    again = sum(before == after for before, after in pairwise(cells))
    if len(head.names) > 2 and len(cells) > 5 and again > 0.5 * len(cells):
        reason = f"the tokens in column {head.names[token]} would be {cells[0]!r} again and again"
        raise head.refuse(f"{reason}; if it names the sentence: --sentence_column {head.names[token]}")
    return token


def tags_or_none(head: Head, token: int, sentence: int | None, options: ReadOptions) -> list[int]:
    """find_tags, or all columns with tags of entities if only texts are read and the tags are doubtful."""
    try:
        return find_tags(head, token, sentence, options)
    except UserError:
        if options.labelled:
            raise
        return [n for n in range(len(head.names)) if n not in (token, sentence) and pattern_of(head.column(n))]


def find_tags(head: Head, token: int, sentence: int | None, options: ReadOptions) -> list[int]:
    """The columns of the tags: those of --tag_column, otherwise the last, if its cells are tags and no others might be
    meant."""
    if options.tag_column:
        found = [head.find("tag_column", name) for name in split_names(options.tag_column)]
        if token in found:
            raise head.refuse(f"--tag_column names column {head.names[token]}, which has the tokens")
        return found
    others = [n for n in range(len(head.names)) if n not in (token, sentence)]
    others = [n for n in others if n > token or head.titled]
    tagged = [n for n in others if pattern_of(head.column(n))]
    named = head.named(TAG_NAMES)
    if not others:
        raise head.refuse("needs a token and a tag in each row, but has one column")
    if named and not tagged:
        return named[:1]
    last = others[-1]
    if head.titled and tagged:
        last = named[0] if named and named[0] in tagged else tagged[-1]
    if last in tagged:
        return levels(head, tagged, last)
    cells = head.column(last)
    shown = abbreviate(dict.fromkeys(map(repr, cells)), 3)
    if tagged:
        places = " and ".join(f"column {head.names[n]}" for n in tagged)
        raise head.refuse(f"{places} has tags of entities, but the last column has {shown}")
    if not are_bare_tags(cells):
        require_classes(head, token, last, others, shown)
    return [last]


def levels(head: Head, tagged: list[int], last: int) -> list[int]:
    """The last column with tags of entities, and those before it that have the same types: levels of nested entities,
    as in GermEval. A column with other types, such as the chunks of CoNLL-2003, is not read."""
    types = {n: types_of(head.column(n)) for n in tagged}
    chosen = [n for n in tagged if n == last or types[n] & types[last]]
    if not types[last] and (filled := [n for n in tagged if types[n]]):
        places = " and ".join(f"column {head.names[n]}" for n in filled)
        raise head.refuse(f"column {head.names[last]} has only O, but {places} has tags of entities")
    if others := [n for n in tagged if n not in chosen and not types[n] <= CHUNKS]:
        kinds = " and ".join(f"column {head.names[n]} ({abbreviate(sorted(types[n]), 3)})" for n in (*others, last))
        raise head.refuse(f"several columns have tags of entities: {kinds}")
    return chosen


def require_classes(head: Head, token: int, last: int, others: list[int], shown: str) -> None:
    """Raises UserError unless the last column can be the class of each token, such as its part of speech."""
    cells, tokens = head.column(last), head.column(token)
    wordless = not all(re.search(r"\w", cell) for cell in cells) and not any(map(str.isalpha, cells))
    alike = len(set(cells)) > 0.6 * len(cells) or same(tokens, cells) > 0.3 * len(cells)
    found = {
        f"{len(others)} columns may be the tags; the last has {shown}": len(others) > 1,
        f"the last column has {shown}, which are no tags": wordless or any("=" in cell for cell in cells),
        f"the last column has only {shown}": len(set(cells)) == 1 and len(cells) > 1,
        f"the last column counts ({shown})": head.counts(last),
        f"the last column has many values ({shown}), as words have": len(cells) >= 10 and alike,
    }
    if reason := next((reason for reason, holds in found.items() if holds), ""):
        raise head.refuse(reason)


def same(tokens: Iterable[str], cells: Iterable[str]) -> int:
    """How many words are the same in both columns, as lemmas are."""
    return sum(token.lower() == cell.lower() and token.isalpha() for token, cell in zip(tokens, cells))


def task_names(head: Head, columns: list[int], options: ReadOptions) -> list[str]:
    """The names of the tasks: `slots`, or the names of the columns."""
    if not options.labelled:
        return [f"column {head.names[column]}" for column in columns]
    if not head.titled:
        return ["slots"] if len(columns) == 1 else [f"slots_{head.names[column]}" for column in columns]
    names = [head.names[column] for column in columns]
    for name in names:
        if name in RESERVED or set(name) & set(".,="):
            raise UserError(f"{head.path}: a column of tags cannot be called {name!r}; rename it")
    return names


def sentences(layout: Layout, rows: Iterable[Row]) -> Iterator[tuple[int, list[Cells]]]:
    """Yields (number of the first row, rows) of each sentence. Raises UserError if the file is a single one although it
    has several."""
    start, count = 0, 0
    block: list[Cells] = []
    has_ends = layout.sentence is not None or layout.ends
    for number, cells in chain(rows, [(0, [])]):
        if block and (not cells or (has_ends and layout.begins_sentence(block[-1], cells))):
            count += 1
            yield start, block
            if count == 1 and not number:
                require_several(layout, block)
            block = []
        if cells:
            if not block:
                start = number
            elif len(block) >= MAX_TOKENS:
                require_end(layout.path, number, len(block))
            block.append(cells)


def require_several(layout: Layout, block: list[Cells]) -> None:
    """Raises UserError if the only sentence of a file is too long for one."""
    ends = sum(cells[layout.token] in ENDS for cells in block[:-1] if len(cells) == len(layout.names))
    if not layout.may_be_one and (ends > 1 or len(block) > MOST_TOKENS_ALONE):
        reason = f"the whole file would be one sentence of {len(block):,} tokens, as it has no blank rows"
        advice = "--sentence_end '.' ends a sentence after this token, --sentence_column NAME where its value changes"
        raise UserError(f"{layout.path}: {reason}; {advice}")


def require_end(path: str | Path, number: int, length: int) -> None:
    """Raises UserError for a sentence that is too long. number: of the row that is read; length: tokens before it"""
    if length == MAX_TOKENS:
        reason = f"{MAX_TOKENS:,} rows without a blank row, which ends a sentence"
        raise UserError(f"{path}, row {number}: {reason} (or --sentence_end '.')")


def tags_in(layout: Layout, cells: Sequence[str], where: str) -> list[str]:
    """The tags of a sentence's column, without blanks at their ends; those of CoNLL-2012 as BIO."""
    tags = [cell.strip() for cell in cells]
    if "" in tags:
        raise UserError(f"{where}: token {tags.index('') + 1} of the sentence has no tag")
    return tags_of_stars(tags, where) if layout.pattern is STARS else tags


def tags_of_stars(tags: Iterable[str], where: str) -> list[str]:
    found, kind = [], None
    for tag in tags:
        match = STARS.fullmatch(tag)
        if match is None or (kind is not None and match["kind"]):
            raise UserError(f"{where}: {tag!r} is no tag of CoNLL-2012, such as (GPE* * *) or (GPE)")
        begins, kind = match["kind"], match["kind"] or kind
        found.append("O" if kind is None else f"{'B' if begins else 'I'}-{kind}")
        kind = None if match["end"] else kind
    return found


# ---- tables --------------------------------------------------------------------------------------------------------


def token_layout(path: str | Path, names: list[str], rows: list[Row], options: ReadOptions) -> Layout | None:
    """The Layout of a table with one token per row, None if it is not such a table. rows: its first, blank ones too

    It is one if an option says so, if it has columns for sentence and token, or if each text is one word and its label
    a tag. Its sentences end where the sentence's column changes, at blank rows, or at --sentence_end.
    """
    blocks = blocks_of(rows, len(names))
    head = Head(path, names, blocks, titled=not all(name.isdigit() for name in names))
    words = columns_of_words(head, options) if blocks else []
    if not blocks or not (options.token_column or options.sentence_column or words):
        return None
    wanted = options.token_column or options.text_column or (head.names[words[0]] if words else "")
    options = replace(options, token_column=wanted, tag_column=options.tag_column or options.label_column)
    part = next((n for n in head.named(SPLIT_NAMES) if {*map(str.lower, head.column(n))} <= PART_NAMES.keys()), None)
    layout = find_layout(head, options, part=part)
    if layout.sentence is None and len(blocks) == 1 and not options.sentence_end and len(blocks[0]) > 1:
        advice = "add --sentence_column NAME or --sentence_end '.' (or --label_type label=classification for classes)"
        raise UserError(f"{path}: has one token in each row, and nothing ends a sentence; {advice}; {head.listed()}")
    return layout


def blocks_of(rows: Iterable[Row], width: int) -> list[list[Cells]]:
    """Rows of one width as blocks, which blank rows separate."""
    blocks: list[list[Cells]] = [[]]
    for _, cells in rows:
        if not any(cell.strip() for cell in cells):
            blocks.append([])
        elif len(cells) == width:
            blocks[-1].append(cells)
    return [block for block in blocks if block]


def are_numbers(cells: Iterable[str]) -> bool:
    """Whether cells number sentences: 7, s7, Sentence: 7, or empty where the sentence goes on."""
    return all(re.fullmatch(r"(\D{0,12}\d[\w.-]*)?", cell) for cell in cells)


def columns_of_words(head: Head, options: ReadOptions) -> list[int]:
    """The columns of tokens in a table with one token per row, by its names and first rows; none in other tables."""
    sentence = numbers_of_sentences(head, options)
    if head.titled and sentence is not None and (named := head.named(TOKEN_NAMES)):
        return named
    if "classification" in options.label_types.values():
        return []
    every = range(len(head.names))
    chosen = [name.lower() for name in (options.text_column, *split_names(options.label_column)) if name]
    seen = [n for n in every if head.names[n].lower() in chosen] if len(chosen) > 1 else every
    tags = [n for n in seen if are_tags(head.column(n))]
    texts = head.named([*TOKEN_NAMES, plain_name(options.text_column), *TEXT_NAMES]) if head.titled else every
    words = [n for n in texts if n not in (sentence, *tags) and all(len(split_words(x)) < 2 for x in head.column(n))]
    numbers = [n for n in words if head.counts(n) or all(map(NUMBER.fullmatch, head.column(n)))]
    return [n for n in words if n not in numbers] if tags else []


def are_tags(cells: list[str]) -> bool:
    """Whether cells are tags of tokens, not classes: O, and several or few of them with B- and I-."""
    return len(cells) > 1 and len(set(cells)) > 1 and "O" in cells and (bool(pattern_of(cells)) or are_bare_tags(cells))


def read_token_table(layout: Layout, table: Iterable[Row], options: ReadOptions) -> Iterator[Example]:
    """The sentences of a table with one token per row."""
    options.understood.add(layout.path, "table with one token per row", **layout.shown())
    width = len(layout.names)

    def rows() -> Iterator[Row]:
        for number, cells in table:
            if not any(cell.strip() for cell in cells):
                yield number, []
                continue
            if len(cells) != width:
                raise UserError(f"{layout.path}, row {number}: {len(cells)} cells, but the table has {width}")
            if not cells[layout.token]:
                raise UserError(f"{layout.path}, row {number}: the token is empty")
            yield number, cells

    for start, block in sentences(layout, rows()):
        yield example_of(layout, start, block, options)


def example_of(layout: Layout, start: int, block: list[Cells], options: ReadOptions) -> Example:
    """The example of a sentence."""
    where = f"{layout.path}, row {start}"
    example: Example = {"_where": where, "tokens": [cells[layout.token] for cells in block]}
    if layout.part is not None:
        example["split"] = block[0][layout.part].strip()
    for task, column in layout.tags.items():
        example[task] = tags_in(layout, [cells[column] for cells in block], where) if options.labelled else None
    return example


def intents_of(names: Iterable[str], options: ReadOptions) -> Callable[[str], str | list[str]]:
    """How an intent is read: `a#b` is two, and then each is a list. names: all intents of the file"""
    several = any(re.fullmatch(r"[^\s#]+(#[^\s#]+)+", name) for name in names)
    if several and options.label_types.get("intent") != "classification":
        return lambda name: name.split("#")
    return lambda name: name
