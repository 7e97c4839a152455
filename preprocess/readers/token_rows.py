"""Finds the token, tag and sentence columns of files with one token per row (CoNLL, tables).

The columns are inferred from the first rows. Ambiguous files raise UserError, with a message that lists the
options that resolve the ambiguity. To recognise other column names, edit this file.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

from engine.errors import UserError
from engine.task.signs import TEXT_NAMES
from engine.task.tags import Notation, notation_of, parse_tag
from preprocess.example import RESERVED, SPLIT_ALIASES, Example, abbreviate, counts_up, is_whole_file
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.raw_files import split_words

MAX_TOKENS = 1_000_000  # per sentence; limits memory use if a file has no blank rows
FEW = 5  # a column with this many rows or fewer is too short to judge
TOKEN_NAMES = "token tokens word words form 词 字 词语 单词".split()
SENTENCE_NAMES = "sentence sentenceid sentid sentenceidx sentenceindex sentenceno sentencenumber 句子编号".split()
TAG_NAMES = "tag tags ne nertag nertags ner label labels slot slots iob bio iobtag biotag 标签 pos upos postag".split()
SPLIT_NAMES = ("split", "partition")
BARE_TAG = re.compile(r"\w[\w.:/&-]*")
NUMBER = re.compile(r"\d+([-.]\d+)*")  # also the ranges (1-2) and empty nodes (1.1) of CoNLL-U
# Chunk types of CoNLL-2000 and CoNLL-2003; these files have chunk tags next to entity tags
CHUNKS = set("NP VP PP ADVP ADJP SBAR PRT CONJP INTJ LST UCP".split())
STARS = re.compile(r"(\((?P<kind>[^()*\s]+))?\*?(?P<end>\))?")  # CoNLL-2012: (GPE* *) is B-GPE I-GPE
ADVICE = "specify the columns with --token_column and --tag_column"
Cells = list[str]
Row = tuple[int, Cells]  # (row number, cells); a row without cells ends a sentence


@dataclass(frozen=True)
class Layout:
    """The roles of the columns: token, tags, sentence and split."""

    path: str | Path
    names: list[str]  # column names; 0, 1, … without a header
    token: int
    tags: dict[str, int]  # {task: column}
    sentence: int | None = None
    split: int | None = None
    notation: Notation | None = None  # notation of the entity tags
    starred: bool = False  # whether the tags are in CoNLL-2012 format
    known: frozenset[str] = frozenset()  # tags in the first rows
    intent: int | None = None  # position of the intent row in a sentence: 0 or -1
    ends: frozenset[str] = frozenset()  # tokens that end a sentence
    may_be_one: bool = False  # whether to accept a file that is a single long sentence

    def fits(self, cells: Cells) -> bool | None:
        """Returns True if the cells are a token with its tags, False if not, and None if only a tag is unknown."""
        if len(cells) != len(self.names):
            return False
        tags = [cells[column].strip() for column in self.tags.values()]
        if self.starred or self.notation:
            parse = self.notation.parse if self.notation else STARS.fullmatch
            return all(map(parse, tags))
        return True if not tags or self.known.issuperset(tags) else None

    def begins_sentence(self, before: Cells, cells: Cells) -> bool:
        """Returns True if the sentence column changes, or if the previous row ends with a token of --sentence_end."""
        if len(before) != len(cells):
            return False
        if self.sentence is not None and cells[self.sentence].strip():  # may be empty after a sentence's first row
            return cells[self.sentence].strip() != before[self.sentence].strip()
        if before[self.token] not in self.ends:
            return False
        tags = [parse_tag(cells[column].strip()) for column in self.tags.values()]
        return not any(tag and tag.letter.upper() in "IMEL" for tag in tags)

    def shown(self) -> dict[str, str | None]:
        """Returns {role: its columns} for the printed summary."""
        tags = ", ".join(self.title(column) for column in self.tags.values())
        sentence = None if self.sentence is None else self.title(self.sentence)
        used = {self.token, self.sentence, self.split, *self.tags.values()}
        unused = [self.title(n) for n in range(len(self.names)) if n not in used]
        not_used = abbreviate(unused, 6) if unused else None
        return {"token": self.title(self.token), "tag": tags, "sentence": sentence, "not used": not_used}

    def title(self, column: int) -> str:
        return f"column {self.names[column]}" if self.names[column].isdigit() else repr(self.names[column])


@dataclass(frozen=True)
class TokenHead:
    """The first rows of a file with one token per row, in blocks separated by blank rows."""

    path: str | Path
    names: list[str]
    blocks: list[list[Cells]]
    titled: bool  # whether there is a header

    def column(self, number: int) -> list[str]:
        return [cells[number].strip() for block in self.blocks for cells in block]

    def find(self, flag: str, name: str) -> int:
        """Returns the number of the column given by an option."""
        titles = [title.lower() for title in self.names]
        if name.lower() in titles:
            return titles.index(name.lower())
        if name.isdigit() and int(name) < len(titles) and self.named([*TOKEN_NAMES, *TAG_NAMES, *TEXT_NAMES]):
            return int(name)
        no_header = "if row 1 is not a header, add --no_header; " if self.titled and name.isdigit() else ""
        raise UserError(f"{self.path}: no column {name!r} (--{flag}); {no_header}{self.listed()}")

    def named(self, usual: Iterable[str]) -> list[int]:
        """Returns the columns whose header is one of these names, in the order of the names."""
        plain = [plain_name(name) for name in self.names]
        return [plain.index(name) for name in usual if name in plain] if self.titled else []

    def listed(self) -> str:
        first = next(iter(self.blocks[0]), []) if self.blocks else []
        cells = [f"{name} ({cell[:20]!r})" for name, cell in zip(self.names, first)]
        return f"its columns are: {abbreviate(cells or self.names)}"

    def shown(self, number: int) -> str:
        """Returns the first distinct values of a column for a message."""
        return abbreviate(dict.fromkeys(map(repr, self.column(number))), 3)

    def error(self, reason: str) -> UserError:
        return UserError(f"{self.path}: {reason}; {ADVICE}; {self.listed()}")

    def counts(self, number: int) -> bool:
        """Returns True if the column numbers the tokens: within each sentence (from 0 or 1) or over the whole file."""
        blocks = [[cells[number].strip() for cells in block] for block in self.blocks if block]
        numbers = list(chain.from_iterable(blocks))
        if len(numbers) < 2 or (len(blocks) == 1 and len(numbers) < 3):
            return False
        return counts_up(numbers) or all(block[0] in ("0", "1") and counts_up(block) for block in blocks)

    def is_constant(self, number: int) -> bool:
        """Returns True if the column has a single value in every sentence (a document name, for example)."""
        values_per_sentence = [{cells[number] for cells in block} for block in self.blocks if len(block) > 1]
        return len(values_per_sentence) > 2 and all(len(values) == 1 for values in values_per_sentence)


def plain_name(name: str) -> str:
    """Normalises a column name for comparison: "Sentence #" becomes "sentence"."""
    return re.sub(r"[\W_]+", "", name.lower())


def are_bare_tags(cells: Sequence[str]) -> bool:
    """Returns True if cells are O and entity types without prefixes, as in `Anna PERSON`."""
    values = set(cells)
    few = len(values) <= max(3, 0.3 * len(cells)) and len(values) <= 200  # a column of words has more
    return "O" in values and few and all(map(BARE_TAG.fullmatch, values))


def kinds_in(cells: Iterable[str]) -> set[str]:
    """Returns the entity types of the tags."""
    return {tag.kind for tag in map(parse_tag, cells) if tag} - {""}


def blocks_of(rows: Iterable[Cells]) -> list[list[Cells]]:
    """Groups rows into blocks separated by blank rows."""
    blocks: list[list[Cells]] = [[]]
    for cells in rows:
        if any(cell.strip() for cell in cells):
            blocks[-1].append(cells)
        else:
            blocks.append([])
    return [block for block in blocks if block]


def find_layout(
    head: TokenHead, options: ReadOptions, *, split: int | None = None, intent: int | None = None
) -> Layout:
    """Returns the Layout of a file with one token per row. split, intent: the positions of the split column and the
    intent row, if known."""
    sentence = numbers_of_sentences(head, options)
    token = find_token(head, sentence, options)
    columns = tags_or_none(head, token, sentence, options)
    cells = [cell for column in columns for cell in head.column(column)]
    notation = notation_of(cells)
    return Layout(
        head.path,
        head.names,
        token,
        dict(zip(task_names(head, columns, options), columns)),
        sentence=sentence,
        split=split,
        notation=notation,
        starred=not notation and "*" in cells and all(map(STARS.fullmatch, cells)),
        known=frozenset(cells),
        intent=intent,
        ends=frozenset(options.sentence_end.split()),
        may_be_one=bool(options.sentence_end) or "one_example" in options.accept,  # the gate, see gates.py
    )


def numbers_of_sentences(head: TokenHead, options: ReadOptions) -> int | None:
    """Returns the column of --sentence_column, or else a column with a usual name and with values such as 7, s7,
    "Sentence: 7" or empty cells."""
    if options.sentence_column:
        return head.find("sentence_column", options.sentence_column)
    candidates = head.named(SENTENCE_NAMES)
    return next((n for n in candidates if all(re.fullmatch(r"(\D{0,12}\d[\w.-]*)?", x) for x in head.column(n))), None)


def find_token(head: TokenHead, sentence: int | None, options: ReadOptions) -> int:
    """Returns the token column: --token_column, or else the first column that does not number tokens or sentences."""
    if options.token_column:
        token = head.find("token_column", options.token_column)
    else:
        width = len(head.names)
        numbering = [n for n in range(width - 1) if head.counts(n) or (width > 2 and head.is_constant(n))]
        candidates = [n for n in range(width) if n not in (*numbering, sentence)]
        token = next(iter(head.named(TOKEN_NAMES) or candidates), 0)
    cells = head.column(token)
    would_be = f"the tokens in column {head.names[token]} would be"
    numbered = len(cells) > FEW and not options.token_column and all(map(NUMBER.fullmatch, cells))
    if head.counts(token) or numbered:
        raise head.error(f"{would_be} numbers ({', '.join(cells[:3])}, …)")
    if notation_of(cells) and kinds_in(cells) and len(set(cells)) < 0.5 * len(cells):
        raise head.error(f"{would_be} tags ({cells[0]}, …)")
    repeated = sum(before == after for before, after in pairwise(cells))
    if len(head.names) > 2 and len(cells) > FEW and repeated > 0.5 * len(cells):  # unlike words
        advice = f"if the column names the sentence, add --sentence_column {head.names[token]}"
        raise head.error(f"{would_be} mostly repeated values (such as {cells[0]!r}); {advice}")
    return token


def tags_or_none(head: TokenHead, token: int, sentence: int | None, options: ReadOptions) -> list[int]:
    """Calls find_tags. If this fails and labels are not needed, returns all columns with entity tags."""
    try:
        return find_tags(head, token, sentence, options)
    except UserError:
        if options.labelled:
            raise
        return [n for n in range(len(head.names)) if n not in (token, sentence) and notation_of(head.column(n))]


def find_tags(head: TokenHead, token: int, sentence: int | None, options: ReadOptions) -> list[int]:
    """Returns the tag columns: --tag_column, or else the last column if it is the only plausible one."""
    if options.tag_column:
        columns = [head.find("tag_column", name) for name in split_names(options.tag_column)]
        if token in columns:
            raise head.error(f"--tag_column {head.names[token]} is the token column")
        return columns
    candidates = [n for n in range(len(head.names)) if n not in (token, sentence) and (n > token or head.titled)]
    tagged = [n for n in candidates if notation_of(head.column(n))]
    named = head.named(TAG_NAMES)
    if not candidates:
        raise head.error("has only one column; each row needs a token and a tag")
    if named and not tagged:
        return named[:1]
    last = candidates[-1]
    if head.titled and tagged:
        last = named[0] if named and named[0] in tagged else tagged[-1]
    if last in tagged:
        return levels(head, tagged, last)
    if tagged:
        places = " and ".join(f"column {head.names[n]}" for n in tagged)
        raise head.error(f"{places} has entity tags, but the last column has {head.shown(last)}")
    if not are_bare_tags(head.column(last)):
        require_classes(head, token, last, candidates)
    return [last]


def levels(head: TokenHead, tagged: list[int], last: int) -> list[int]:
    """Returns the last column with entity tags and the earlier columns that share its types: levels of nested entities,
    as in GermEval. Skips columns with other types, such as the chunks of CoNLL-2003."""
    kinds = {n: kinds_in(head.column(n)) for n in tagged}
    shared = [n for n in tagged if n == last or kinds[n] & kinds[last]]
    if not kinds[last] and (with_types := [n for n in tagged if kinds[n]]):
        columns = " and ".join(f"column {head.names[n]}" for n in with_types)
        raise head.error(f"column {head.names[last]} has only O, but {columns} has entity tags")
    if others := [n for n in tagged if n not in shared and not kinds[n] <= CHUNKS]:
        columns = " and ".join(f"column {head.names[n]} ({abbreviate(sorted(kinds[n]), 3)})" for n in (*others, last))
        raise head.error(f"several columns have entity tags: {columns}")
    return shared


def require_classes(head: TokenHead, token: int, last: int, candidates: list[int]) -> None:
    """Raises UserError unless the last column can be one class per token (a part of speech, for example)."""
    cells, shown = head.column(last), head.shown(last)
    wordless = not all(re.search(r"\w", cell) for cell in cells) and not any(map(str.isalpha, cells))
    same = sum(a.lower() == b.lower() and a.isalpha() for a, b in zip(head.column(token), cells))  # lemmas?
    like_words = len(set(cells)) > 0.6 * len(cells) or same > 0.3 * len(cells)
    reasons = {
        f"{len(candidates)} columns could be the tags; the last has {shown}": len(candidates) > 1,
        f"the last column has {shown}, which are not tags": wordless or any("=" in cell for cell in cells),
        f"the last column has only {shown}": len(set(cells)) == 1 and len(cells) > 1,
        f"the last column is a row number ({shown})": head.counts(last),
        f"the last column has too many different values for tags ({shown})": len(cells) >= 2 * FEW and like_words,
    }
    if reason := next((reason for reason, applies in reasons.items() if applies), ""):
        raise head.error(reason)


def task_names(head: TokenHead, columns: list[int], options: ReadOptions) -> list[str]:
    """Returns the task of each tag column: `slots`, or the name of the column."""
    if not options.labelled:
        return [f"column {head.names[column]}" for column in columns]
    if not head.titled:
        return ["slots"] if len(columns) == 1 else [f"slots_{head.names[column]}" for column in columns]
    names = [head.names[column] for column in columns]
    for name in names:
        if name in RESERVED or set(name) & set(".,="):
            raise UserError(f"{head.path}: {name!r} is not allowed as the name of a tag column; rename it")
    return names


def sentences(layout: Layout, rows: Iterable[Row]) -> Iterator[tuple[int, list[Cells]]]:
    """Yields (number of the first row, rows) for each sentence. Raises UserError if no sentence end is found."""
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
            block.append(cells)
            if len(block) > MAX_TOKENS:
                reason = f"more than {MAX_TOKENS:,} rows without a blank row; add blank rows between sentences"
                raise UserError(f"{layout.path}, row {number}: {reason}, or --sentence_end '.'")


def require_several(layout: Layout, block: list[Cells]) -> None:
    """Raises UserError if the file is a single sentence that is implausibly long."""
    tokens = [cells[layout.token] for cells in block if len(cells) == len(layout.names)]
    if not layout.may_be_one and is_whole_file([{"tokens": tokens}]):
        reason = f"the whole file would be one sentence of {len(block):,} tokens, because it has no blank rows"
        advice = "add --sentence_end '.' (the last token of a sentence) or --sentence_column NAME"
        raise UserError(f"{layout.path}: {reason}; {advice}")


def tags_of_stars(tags: Iterable[str], where: str) -> list[str]:
    """Converts CoNLL-2012 tags to BIO."""
    converted, kind = [], None
    for tag in tags:
        match = STARS.fullmatch(tag)
        if match is None or (kind is not None and match["kind"]):
            raise UserError(f"{where}: {tag!r} is not a CoNLL-2012 tag (expected (GPE* * *) or (GPE), for example)")
        first, kind = match["kind"], match["kind"] or kind
        converted.append("O" if kind is None else f"{'B' if first else 'I'}-{kind}")
        kind = None if match["end"] else kind
    return converted


def example_of(layout: Layout, start: int, block: list[Cells], options: ReadOptions) -> Example:
    """Returns the Example of a sentence."""
    where = f"{layout.path}, row {start}"
    example: Example = {"_where": where, "tokens": [cells[layout.token] for cells in block]}
    if layout.split is not None:
        example["split"] = block[0][layout.split].strip()
    for task, column in layout.tags.items():
        tags = [cells[column].strip() for cells in block] if options.labelled else []
        if "" in tags:
            raise UserError(f"{where}: token {tags.index('') + 1} of the sentence has no tag")
        example[task] = (tags_of_stars(tags, where) if layout.starred else tags) or None
    return example


# ---- tables --------------------------------------------------------------------------------------------------------


def token_layout(path: str | Path, names: list[str], rows: list[Row], options: ReadOptions) -> Layout | None:
    """Returns the Layout of a table with one token per row, or None for other tables.

    A table has one token per row if an option selects the token or sentence column, if both columns have usual names,
    or if each text is one word and its label is a tag. Sentences end at blank rows, at --sentence_end, or where the
    sentence column changes.

    rows: the first rows, including blank ones.
    """
    blocks = blocks_of(cells for _, cells in rows if len(cells) == len(names) or not any(map(str.strip, cells)))
    head = TokenHead(path, names, blocks, titled=not all(name.isdigit() for name in names))
    words = columns_of_words(head, options) if blocks else []
    if not blocks or not (options.token_column or options.sentence_column or words):
        return None
    token = options.token_column or options.text_column or (head.names[words[0]] if words else "")
    options = replace(options, token_column=token, tag_column=options.tag_column or options.label_column)
    split = next(
        (n for n in head.named(SPLIT_NAMES) if {*map(str.lower, head.column(n))} <= SPLIT_ALIASES.keys()), None
    )
    layout = find_layout(head, options, split=split)
    if layout.sentence is None and len(blocks) == 1 and not options.sentence_end and len(blocks[0]) > 1:
        advice = "add --sentence_column NAME or --sentence_end '.' (or --label_type label=classification for classes)"
        raise UserError(f"{path}: has one token per row, but nothing ends a sentence; {advice}; {head.listed()}")
    return layout


def columns_of_words(head: TokenHead, options: ReadOptions) -> list[int]:
    """Returns the possible token columns of a table with one token per row, or [] for other tables."""
    sentence = numbers_of_sentences(head, options)
    if head.titled and sentence is not None and (named := head.named(TOKEN_NAMES)):
        return named
    if "classification" in options.label_types.values():
        return []
    columns = range(len(head.names))
    chosen = [name.lower() for name in (options.text_column, *split_names(options.label_column)) if name]
    candidates = [n for n in columns if head.names[n].lower() in chosen] if len(chosen) > 1 else columns
    tags = [n for n in candidates if are_tags(head.column(n))]
    texts = head.named([*TOKEN_NAMES, plain_name(options.text_column), *TEXT_NAMES]) if head.titled else columns
    words = [n for n in texts if n not in (sentence, *tags) and all(len(split_words(x)) < 2 for x in head.column(n))]
    numbers = [n for n in words if head.counts(n) or all(map(NUMBER.fullmatch, head.column(n)))]
    return [n for n in words if n not in numbers] if tags else []


def are_tags(cells: list[str]) -> bool:
    """Returns True if cells are tags of tokens rather than classes of texts: O with B- and I- tags or a few types."""
    return len(set(cells)) > 1 and "O" in cells and (bool(notation_of(cells)) or are_bare_tags(cells))


def read_token_table(layout: Layout, table: Iterable[Row], options: ReadOptions) -> Iterator[Example]:
    """Yields the sentences of a table with one token per row."""
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
