"""Reads CoNLL files (one token with its tags per row, blank rows between sentences) and CoNLL-U."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import regex

from engine.errors import UserError
from engine.task.tags import notation_of
from preprocess.example import Example
from preprocess.readers.archives import note
from preprocess.readers.columns import are_joined_intents
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.raw_files import read_rows
from preprocess.readers.token_rows import (
    TAG_NAMES,
    TOKEN_NAMES,
    Cells,
    Layout,
    Row,
    TokenHead,
    blocks_of,
    example_of,
    find_layout,
    plain_name,
    sentences,
)

HEAD_ROWS = 5000  # rows used to find the columns
NO_COMMENTS = "none"  # value of --comment for files without comments
CONLLU = "id form lemma upos xpos feats head deprel deps misc".split()
GLOBAL_COLUMNS = "# global.columns ="  # the header of CoNLL-U Plus
CONLL_2012 = "#begin document"
BREAKS = ("-DOCSTART-", CONLL_2012, "#end document")
KEY_AND_VALUE = re.compile(r"#+ ?[\w.:-]+ ?=")  # a comment: "# text = …"
NUMBERED = regex.compile(r"(?s)^(\X)(\d{1,4})$")  # a character (or an emoji of several code points) and a number
MAX_UNNUMBERED = 0.01  # maximum share of tokens without a number; Weibo NER has a few


def read_conll(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads CoNLL: one token and tag per row, with blank rows between sentences.

    The token is the first column that is not a row number, and the tag is the last column. A token can be a space: `' '
    + ' ' + 'O'`. Intents are optional: one per row of PATH.intent, or a separate first or last row of each sentence.
    """
    layout = conll_layout(path, options)
    options.understood.add(path, "CoNLL", **layout.shown())
    intents = parallel_intents(path, options) if options.labelled else None
    are_sets = are_joined_intents(own_intents(path, layout, options), options)
    number = 0
    for number, (start, block) in enumerate(sentences(layout, conll_rows(path, layout, options)), 1):
        intent: str | list[str] | None = None
        if layout.intent is not None:
            intent = block.pop(layout.intent)[0] if len(block[layout.intent]) == 1 else ""
            intent = intent.split("#") if are_sets else intent
            if not intent or not all(len(cells) == len(layout.names) for cells in block):
                raise UserError(f"{path}, row {start}: expected one intent row, as in the other sentences")
        if intents is not None:
            if number > len(intents):
                problem = f"more sentences (the next one starts at row {start})"
                raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {problem}")
            intent = intents[number - 1]
        example = example_of(layout, start, block, options)
        if intent is not None and options.labelled:
            labels = {task: example.pop(task) for task in layout.tags}
            example |= {"intent": intent, **labels}
        yield example
    if intents is not None and number < len(intents):
        raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {number} sentences")


def parallel_intents(path: Path, options: ReadOptions) -> list[str] | None:
    """Returns the intents in PATH.intent without trailing blank rows, or None if the file does not exist."""
    if not Path(f"{path}.intent").exists():
        return None
    intents = [row.strip() for _, row in read_rows(f"{path}.intent", options.encoding)]
    while intents and not intents[-1]:
        intents.pop()
    return intents


def own_intents(path: Path, layout: Layout, options: ReadOptions) -> Iterator[str]:
    """Yields the intents of a file where each sentence has an intent row."""
    if layout.intent is not None:
        for _, block in sentences(layout, conll_rows(path, layout, options, report=False)):
            if len(block[layout.intent]) == 1:
                yield block[layout.intent][0]


def split_row(row: str) -> Cells:
    """Splits a CoNLL row at tabs, or at spaces if there are none."""
    if "\t" in row:
        return row.rstrip("\t").split("\t")
    cells = row.rstrip(" ").split(" ")
    if "" not in cells:
        return cells
    return [" " if row.startswith("  ") else cells[0], *filter(None, cells[1:])]  # the token can be a space


def is_break(row: str) -> bool:
    return not row.strip(" \t") or row.startswith(BREAKS)


def comment_prefix(options: ReadOptions) -> str:
    return "#" if options.comment in ("", NO_COMMENTS) else options.comment


def conll_layout(path: Path, options: ReadOptions) -> Layout:
    """Infers the Layout of a CoNLL file from its first rows."""
    head = [row for _, row in islice(read_rows(path, options.encoding), HEAD_ROWS)]
    rows = [(row, [] if is_break(row) else split_row(row)) for row in head]
    prefix = comment_prefix(options)
    blocks = blocks_of(cells for row, cells in rows if not cells or not row.startswith(prefix))
    blocks = blocks or blocks_of(cells for _, cells in rows)
    widths = Counter(len(cells) for block in blocks for cells in block)
    width = max(widths, key=lambda width: (widths[width], width), default=0)
    if not width:
        raise UserError(f"{path}: contains no examples")
    intent = intent_row(blocks[:-1] if len(head) == HEAD_ROWS else blocks, width)
    blocks = [[cells for cells in block if len(cells) == width] for block in blocks]
    titled = is_header(blocks[0][0] if blocks[0] else [], options)
    names = blocks[0].pop(0) if titled else [str(number) for number in range(width)]
    token_head = TokenHead(path, names, [block for block in blocks if block], titled)
    is_conll_2012 = width > 11 and any(row.startswith(CONLL_2012) for row in head)
    if is_conll_2012 and not options.token_column and not options.tag_column:
        options = replace(options, token_column="3", tag_column="10")
    layout = find_layout(token_head, options, intent=intent)
    if options.header and not titled and not layout.notation and not layout.starred:
        reject_possible_header(token_head, layout)
    return layout


def reject_possible_header(head: TokenHead, layout: Layout) -> None:
    """Raises UserError if row 1 could be a header: its tag occurs in no other row, although all other tags repeat."""
    for column in layout.tags.values():
        first, *tags = head.column(column)
        if len(tags) > 20 and first not in tags and min(Counter(tags).values()) > 1:
            names = head.blocks[0][0]
            options = f"--token_column {names[layout.token]} --tag_column {names[column]}"
            problem = f"row 1 ({' '.join(names)[:60]!r}) could be a header; add {options}, or remove the row"
            raise UserError(f"{head.path}: {problem}; if it is a token, add --no_header")


def is_header(cells: Cells, options: ReadOptions) -> bool:
    """Returns True if the first row is a header: it contains usual names of a token column and a tag column, or a
    column name from the options."""
    plain = {plain_name(cell) for cell in cells}
    named = plain_name((options.token_column or options.tag_column).split(",")[0])
    usual = plain & {*TOKEN_NAMES} and plain & {*TAG_NAMES}
    return len(cells) > 1 and bool(usual or (named in plain and named and not named.isdigit()))


def intent_row(blocks: list[list[Cells]], width: int) -> int | None:
    """Returns the position (0 or -1) of the intent row in every sentence, or None."""
    for position, others in ((-1, slice(None, -1)), (0, slice(1, None))):
        fits = (len(b) > 1 and len(b[position]) == 1 and {*map(len, b[others])} == {width} for b in blocks)
        if len(blocks) > 1 and width > 1 and all(fits):
            return position
    return None


def conll_rows(path: Path, layout: Layout, options: ReadOptions, report: bool = True) -> Iterator[Row]:
    """Yields the rows of a CoNLL file, without its comments. A blank row, which ends a sentence, has no cells."""
    numbered = has_numbered_characters(path, layout, options.encoding)
    if numbered and report:
        note(f"{path}: removing the position index after each character (科0 技1)")
    is_new, skipped, width, prefix = True, 0, len(layout.names), comment_prefix(options)
    is_title = not layout.names[0].isdigit()
    for number, row in read_rows(path, options.encoding):
        if is_break(row):
            is_new = True
            yield number, []
            continue
        cells = split_row(row)
        if is_title and cells == layout.names:
            is_title = False
            continue
        if row.startswith(prefix) and is_comment(layout, row, cells, f"{path}, row {number}", is_new, options):
            skipped += 1
            continue
        if not cells[0] or (len(cells) != width and (layout.intent is None or len(cells) > 1)):
            raise wrong_width(layout, f"{path}, row {number}", row, cells)
        if len(cells) == width and not cells[layout.token]:
            raise UserError(f"{path}, row {number}: the token is empty")
        if numbered and len(cells) > 1:
            cells[layout.token] = NUMBERED.sub(r"\1", cells[layout.token])
        is_new = False
        yield number, cells
    if skipped and report:
        note(f"{path}: {skipped:,} rows skipped as comments (--comment none reads them)")


def wrong_width(layout: Layout, where: str, row: str, cells: Cells) -> UserError:
    if len(cells) < 2 or not cells[0]:
        return UserError(f"{where}: expected a token and a tag, found {row[:60]!r}")
    advice = "if it is a comment, pass its prefix with --comment"
    return UserError(f"{where}: expected {len(layout.names)} columns, found {len(cells)}: {row[:60]!r}; {advice}")


def is_comment(layout: Layout, row: str, cells: Cells, where: str, is_new: bool, options: ReadOptions) -> bool:
    """Returns True if a row that starts with the comment prefix is a comment. With --comment, it always is. Otherwise,
    a # row before a sentence is a comment if it cannot be a token with its tag."""
    if options.comment:
        return options.comment != NO_COMMENTS
    fits = layout.fits(cells)
    named = is_new and KEY_AND_VALUE.match(row)
    if named and not fits:
        return True
    if fits is None and not is_new:
        return False
    if named or fits is None or not (fits or is_new):
        advice = "add --comment '#' to skip such rows, or --comment none to read them as tokens"
        raise UserError(f"{where}: {row[:60]!r} could be a comment or a token; {advice}")
    return not fits


def has_numbered_characters(path: Path, layout: Layout, encoding: str) -> bool:
    """Returns True if tokens are characters with an index, as in Weibo NER (科0 技1). A few may lack the index."""
    previous, num_tokens, num_unnumbered = -1, 0, 0
    for _, row in read_rows(path, encoding):
        if is_break(row):
            previous = -1
            continue
        cells = split_row(row)
        match = NUMBERED.fullmatch(cells[layout.token] if len(cells) == len(layout.names) else cells[0])
        num_tokens += 1
        if match is not None and int(match[2]) in (0, previous + 1):
            previous = int(match[2])
            continue
        previous, num_unnumbered = -1, num_unnumbered + 1
        if num_unnumbered > 3 + MAX_UNNUMBERED * num_tokens:  # no need to read further
            return False
    return num_tokens > 1 and num_unnumbered <= MAX_UNNUMBERED * num_tokens


# ---- CoNLL-U -------------------------------------------------------------------------------------------------------


def read_conllu(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads CoNLL-U and CoNLL-U Plus. MISC keys that all tokens have (`name=B-PER`) are also columns. The tags come
    from --tag_column or --label_column, by default from the last extra column with entity tags, UPOS or XPOS."""
    columns = conllu_columns(path, options.encoding)
    head = [cells for _, cells in islice(conllu_rows(path, options, columns), HEAD_ROWS) if cells]
    tokens = [misc_of(cells, columns) | dict(zip(columns, cells)) for cells in head]
    names = [*columns, *(key for key in next(iter(tokens), {}) if key not in columns and all(key in t for t in tokens))]
    listed = f"{'CoNLL-U' if columns == CONLLU else 'it'} has {', '.join(names)}"
    flag = "tag_column" if options.tag_column else "label_column"
    selected = [name.lower() for name in split_names(options.tag_column or options.label_column)]
    selected = [names[int(name)] if name.isdigit() and int(name) < len(names) else name for name in selected]
    if unknown := [name for name in selected if name not in names or name in ("id", "form")]:
        raise UserError(f"{path}: no column {unknown[0]!r} (--{flag}); {listed}")
    if not selected and options.labelled:
        selected = usual_tags(tokens, names)
        if not selected:
            raise UserError(f"{path}: no usual tag column; add --tag_column; {listed}")
    options.understood.add(path, "CoNLL-U", token="form", tag=", ".join(selected))
    names = [*columns, *(name for name in selected if name not in columns)]
    tags = {re.sub("[.,=]", "_", name): names.index(name) for name in selected}
    layout = Layout(path, names, columns.index("form"), tags, may_be_one=True)
    for start, block in sentences(layout, conllu_rows(path, options, columns, names[len(columns) :])):
        example = example_of(layout, start, block, options)
        yield example | {task: None for task in tags if {*(example[task] or ())} == {"_"}}


def conllu_columns(path: Path, encoding: str) -> list[str]:
    """Returns the columns of CoNLL-U, or the columns in the header of CoNLL-U Plus."""
    _, first = next(read_rows(path, encoding), (1, ""))
    if not first.startswith(GLOBAL_COLUMNS):
        return CONLLU
    columns = first.removeprefix(GLOBAL_COLUMNS).lower().split()
    if "form" not in columns or len(set(columns)) < len(columns):
        raise UserError(f"{path}, row 1: expected distinct columns including FORM, found {first[:60]!r}")
    return columns


def misc_of(cells: Cells, columns: list[str]) -> dict[str, str]:
    """Returns {key: value} from MISC, the tenth column (SpaceAfter=No|name=B-PER)."""
    items = cells[columns.index("misc")].split("|") if "misc" in columns else []
    pairs = [item.partition("=")[::2] for item in items if "=" in item]
    return {key.lower(): value for key, value in pairs}


def usual_tags(tokens: list[dict[str, str]], names: list[str]) -> list[str]:
    """Returns a list with the default tag column of CoNLL-U: the last extra column with entity tags, UPOS or XPOS."""
    cells = {name: {token[name].strip() for token in tokens} for name in names}
    if extra := [name for name in names if name not in CONLLU and notation_of(cells[name])]:
        return extra[-1:]
    candidates = [name for name in names if name in ("upos", "xpos")]
    return [name for name in candidates if cells[name] != {"_"}][:1] or candidates[:1]


def conllu_rows(path: Path, options: ReadOptions, columns: list[str], of_misc: Sequence[str] = ()) -> Iterator[Row]:
    """Yields the rows of CoNLL-U without comments, ranges (1-2) and empty nodes (1.1). A blank row has no cells.
    of_misc: MISC keys whose values are added as cells."""
    expected = "the ten columns of CoNLL-U" if columns == CONLLU else f"the columns {', '.join(columns)}"
    for number, row in read_rows(path, options.encoding):
        if not row.strip():
            yield number, []
        elif not row.startswith("#"):
            cells = row.split("\t")
            token_id = cells[columns.index("id")] if "id" in columns and len(cells) == len(columns) else "1"
            if len(cells) != len(columns) or not all(cells) or not re.fullmatch(r"\d+([-.]\d+)?", token_id):
                raise UserError(f"{path}, row {number}: expected {expected}, found {row[:80]!r}")
            misc = misc_of(cells, columns) if of_misc else {}
            if token_id.isdigit() and (missing := [key for key in of_misc if key not in misc]):
                token = cells[columns.index("form")]
                raise UserError(f"{path}, row {number}: {token!r} has no {missing[0]}= in MISC, unlike other tokens")
            if token_id.isdigit():
                yield number, [*cells, *(misc[key] for key in of_misc)]
