"""What in the data would hurt, found before hours are spent: `python data_process.py --check --input DATA`.

A check is a generator `check_<what>(parts, tasks)` of Notes, in CHECKS. parts: {part: examples with "_where", which
says where each came from}; tasks: as in labels.json. A note without rows is not shown, so of clean data nothing is.
Edit here when your data has faults of its own: one function, one line in CHECKS.
"""

import html
import math
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import regex
from tqdm import tqdm

from engine.files import write_json
from engine.tags import find_scheme, has_spans, illegal_tags, is_tagging, kind_of, needs_words
from engine.text import text_of
from preprocess.schema import length_of

PLACEHOLDERS = set("nan null none n/a na nil undefined - -- ? unknown todo tbd xxx 无 暂无 空".split())
INVISIBLE = "\u200b\u200c\u2060\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
JOINED_SCRIPTS = regex.compile(
    r"[\p{Arabic}\p{Hebrew}\p{Devanagari}\p{Bengali}\p{Tamil}\p{Telugu}\p{Malayalam}\p{Sinhala}]"
)
HIGH = re.compile("[\u0080-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]{2,}")
MARKUP = re.compile(r"</?(?:p|br|div|span|a|b|i|img|td|tr|li)\b[^<>]*>|&(?:[a-z]{2,8}|#\d{2,6});")
LOOK_ALIKE = "аеорсухіјѕАВЕКМНОРСТХΑΒΕΖΗΙΚΜΝΟΡΤΥΧο"  # Cyrillic and Greek letters that look Latin


class Note(NamedTuple):
    what: str
    rows: list  # where: "FILE, row N", perhaps with ": detail"
    advice: str


def texts_of(example):
    return [*example.get("tokens", [example.get("text", "")]), example.get("text_pair", "")]


def key_of(example):
    """What equal texts have in common."""
    return tuple(example["tokens"]) if "tokens" in example else example["text"], example.get("text_pair")


def plain(example):
    """The text without case, blanks, punctuation and width: near duplicates share it."""
    text = unicodedata.normalize("NFKC", text_of(example) + "\n" + example.get("text_pair", "")).casefold()
    return "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] in "LNM") if len(text) > 8 else text


def all_examples(parts):
    return [e for examples in parts.values() for e in examples]


def rows_where(parts, test):
    """[where, and what test(example) says if that is a string] of the examples for which it is true."""
    tested = [(e["_where"], test(e)) for e in all_examples(parts)]
    return [f"{where}: {result}" if isinstance(result, str) else where for where, result in tested if result]


def labels_in(value):
    """The labels of a text: its class, its tags, its set of labels, the types of its spans."""
    items = [] if value is None else value if isinstance(value, list) else [value]
    return [item[2] if isinstance(item, list) else item for item in items]


# ---- texts ---------------------------------------------------------------------------------------------------------


def check_duplicates(parts, tasks):
    same_text, similar = defaultdict(list), defaultdict(list)
    for part, examples in parts.items():
        for e in examples:
            same_text[key_of(e)].append((part, e))
            similar[plain(e)].append((part, e))
    yield from repeated_texts(same_text.values())
    yield from conflicting_labels(same_text.values(), tasks)
    rows = [
        f"{e['_where']} and {copies[0][1]['_where']}"
        for copies in similar.values()
        for part, e in copies[1:]
        if part != copies[0][0] and key_of(e) != key_of(copies[0][1])
    ]
    what = "texts of two parts differ only in case, blanks or punctuation"
    yield Note(what, rows, "nearly a leak: keep each in one part")


def repeated_texts(groups):
    """Notes on equal texts in one part and in two. groups: [[(part, example)] of equal texts]"""
    within, across = defaultdict(list), defaultdict(list)
    for copies in groups:
        for number, (part, e) in enumerate(copies):
            first_in = {other: copy["_where"] for other, copy in reversed(copies[:number])}
            for other, where in first_in.items():
                (within[part] if other == part else across[other, part]).append(f"{e['_where']}, as {where}")
    for part, rows in within.items():
        advice = "remove them, or keep them if they are as frequent in use"
        yield Note(f"{part}: the text of another example again", rows, advice)
    for (first, second), rows in across.items():
        advice = "the score would be too good: remove them from one of the parts"
        yield Note(f"{second}: texts that occur in {first} too", rows, advice)


def conflicting_labels(groups, tasks):
    conflicts = defaultdict(list)
    for copies in groups:
        for number, (_, e) in enumerate(copies):
            for name in tasks:
                labelled = [copy for _, copy in copies[:number] if copy[name] is not None and e[name] is not None]
                if any(copy[name] != e[name] for copy in labelled):
                    first = labelled[0]
                    detail = f"{e['_where']} and {first['_where']}: {e[name]!r} and {first[name]!r}"
                    conflicts[name].append(detail[:160])
    for name, rows in conflicts.items():
        advice = "decide which is right; a model cannot learn both"
        yield Note(f"{name}: the same text has different labels", rows, advice)


def check_swapped_pairs(parts, tasks):
    pairs, swapped = set(), []
    for e in all_examples(parts):
        first, second = e.get("text"), e.get("text_pair")
        if (second, first) in pairs and first != second:
            swapped.append(e["_where"])
        pairs.add((first, second))
    advice = "fine for a symmetric task; else check which order is meant"
    yield Note("pairs that occur the other way round too", swapped, advice)


def check_ids(parts, tasks):
    seen, rows = set(), []
    for e in all_examples(parts):
        if e["id"] in seen:
            rows.append(f"{e['_where']}: {e['id']}")
        seen.add(e["id"])
    yield Note("ids are used more than once", rows, "predictions could not be told apart by id")


def first_match(pattern, text):
    match = re.search(pattern, text)
    return match and match.group()


def invisible(text):
    joined = JOINED_SCRIPTS.search(text)
    return next((c for c in text if c in INVISIBLE and not (joined and c in "\u200c\u200e\u200f")), None)


def mojibake(text):
    """Characters that are UTF-8 read as Latin-1 or cp1252: written so and read as UTF-8 they make sense."""
    for run in HIGH.findall(text):
        for encoding in ("cp1252", "latin-1"):
            with suppress(UnicodeError):
                meant = run.encode(encoding).decode("utf-8")
                # French "é »" would be a rare ideograph
                if len(meant) > 1 or run[0] in "ÃÂâ" or re.search("[\u0080-\u009f]", run):
                    return run
    return next((sign for sign in ("锟斤拷", "烫烫烫") if sign in text), None)


def private(text):
    return next((c for c in text if unicodedata.category(c) in ("Co", "Cn")), None)


def markup(text):
    match = MARKUP.search(text)
    is_markup = match and (match.group()[0] == "<" or html.unescape(match.group()) != match.group())
    return match.group() if is_markup else None


control = partial(first_match, "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
undecodable = partial(first_match, "\ufffd")
mixed_script = partial(first_match, rf"\b(?=\w*[{LOOK_ALIKE}])(?=\w*[A-Za-z])\w{{3,}}")
full_width = partial(first_match, "[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
IN_TEXTS = [  # what is found in a text, how it is called, what to do
    (control, "control characters in texts", "they come from a broken export: remove them"),
    (undecodable, "characters that could not be decoded (U+FFFD)", "read the source again with --encoding"),
    (mojibake, "texts decoded with the wrong encoding", "read the source again with --encoding"),
    (invisible, "invisible characters in texts", "two texts that look the same differ: remove them"),
    (private, "private or unassigned characters in texts", "no tokenizer knows them: replace them"),
    (markup, "markup or HTML entities in texts", "html.unescape and a parser make plain text of them"),
    (mixed_script, "words mixed of Latin and look-alike letters", "they become other tokens than they look like"),
    (full_width, "full-width letters or digits beside half-width ones", "NFKC normalisation makes them one"),
]


def first_hit(test, e):
    """What a test finds in a text of an example, so that it can be seen; or None."""
    return next((ascii(hit) for text in texts_of(e) if (hit := test(text))), None)


def is_quoted(e):
    return any(len(t) > 2 and t[0] == t[-1] == '"' and '""' in t[1:-1] for t in texts_of(e))


def has_outer_blanks(e):
    return "tokens" not in e and any(t != t.strip() for t in texts_of(e) if t)


def looks_missing(e):
    return text_of(e).strip().lower() in PLACEHOLDERS and repr(text_of(e))


def has_no_letter(e):
    return not any(c.isalnum() for c in text_of(e)) and not looks_missing(e) and ascii(text_of(e)[:20])


def is_own_pair(e):
    return "text" in e and "text_pair" in e and e["text"] == e["text_pair"] != ""


def has_empty_pair(e):
    return "text_pair" in e and not e["text_pair"].strip()


IN_EXAMPLES = [
    (
        is_quoted,
        "texts with the quotes of a CSV around them and doubled inside",
        "a TSV written as a CSV is: add --format csv, or unquote them",
    ),
    (has_outer_blanks, "texts begin or end with blanks", "harmless for most tokenizers; strip them to find duplicates"),
    (looks_missing, "texts that look like a missing value", "they are taken as texts: remove the rows if they are not"),
    (has_no_letter, "texts without a letter or digit", "there is little to learn from them"),
    (is_own_pair, "both texts of a pair are the same", "check the export"),
    (has_empty_pair, "one text of a pair is empty", "check the export"),
]


def check_texts(parts, tasks):
    half_width = any(first_match("[0-9A-Za-z]", text_of(e)) for e in all_examples(parts))
    for test, what, advice in IN_TEXTS:
        if test is not full_width or half_width:
            yield Note(what, rows_where(parts, partial(first_hit, test)), advice)
    for test, what, advice in IN_EXAMPLES:
        yield Note(what, rows_where(parts, test), advice)


def check_groups(parts, tasks):
    groups = defaultdict(dict)
    for part, examples in parts.items():
        for e in examples:
            if e.get("group") not in (None, ""):
                groups[str(e["group"])].setdefault(part, e["_where"])
    shared = [f"{group!r}: {', '.join(where.values())}" for group, where in groups.items() if len(where) > 1]
    yield Note("groups that two parts share", shared, "the score would be too good: keep each group in one part")


def check_tokens(parts, tasks):
    empty = rows_where(parts, lambda e: "" in e.get("tokens", ()) and "an empty token")
    yield Note("tokens that are empty", empty, "they become [UNK]; check how the text was cut")
    tokens = [token for e in parts["train"][:1000] for token in e.get("tokens", ())]
    if sum(bool(re.fullmatch(r"\S\d+", token)) for token in tokens) > 0.5 * len(tokens):
        rows = rows_where(parts, lambda e: first_token(e, r"[^\W\da-zA-Z]\d+", repr))
        yield Note("tokens are characters with a number glued to them", rows, "remove it, or no tokenizer knows them")
    if any(len(token) > 1 for token in tokens):
        rows = rows_where(parts, lambda e: first_token(e, r"(?s)\s+|.*\S\s+\S.*", ascii))
        yield Note("tokens that are or hold blanks", rows, "a tag may be a column too far: check the separator")


def first_token(e, pattern, shown):
    """The first token of a pattern, as it is to be shown; or None."""
    return next((shown(token) for token in e.get("tokens", ()) if re.fullmatch(pattern, token)), None)


def outlier_spread(values, middle):
    """The median deviation, scaled to be the standard deviation of normal values: outliers hardly move it."""
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def check_lengths(parts, tasks):
    lengths = {part: list(map(length_of, examples)) for part, examples in parts.items()}
    logs = [math.log(1 + n) for n in lengths["train"]]
    middle = statistics.median(logs)
    limit = max(30, math.exp(middle + 6 * max(outlier_spread(logs, middle), 0.3)))
    long = rows_where(parts, lambda e: length_of(e) > limit and str(length_of(e)))
    yield Note("texts far longer than the others", long, "a row that was never ended, or several texts in one?")
    for part in parts:
        yield from compare_lengths(lengths["train"], lengths[part], part)


def compare_lengths(train, others, part):
    """A note if the lengths of a part are of another distribution than those of train (Kolmogorov-Smirnov)."""
    from scipy.stats import ks_2samp  # imported here, as it takes a second that --help need not wait for

    if part != "train" and min(len(others), len(train)) >= 30:
        unlikely = 1.95 * math.sqrt((len(train) + len(others)) / (len(train) * len(others)))
        if ks_2samp(train, others, method="asymp").statistic > max(0.15, unlikely):
            rows = [f"median {statistics.median(train):g} in train, {statistics.median(others):g} in {part}"]
            advice = "the parts are of different kinds: split again, or know why"
            yield Note(f"{part}: texts are longer or shorter than in train", rows, advice)


# ---- labels --------------------------------------------------------------------------------------------------------


def check_labels(parts, tasks):
    for name, task in tasks.items():
        if kind_of(task) != "regression":
            counts, first = {}, {}
            for part, rows in parts.items():
                counts[part] = Counter(label for e in rows for label in labels_in(e[name]))
                places = {label: e["_where"] for e in reversed(rows) for label in labels_in(e[name])}
                first[part] = {label: f"{where}: {label!r}" for label, where in places.items()}
            yield from check_label_names(name, task, counts, first)
            if kind_of(task) == "classification" and counts["train"]:
                yield from check_class_balance(name, counts, first)
            if kind_of(task) == "multilabel":
                yield from check_label_sets(name, parts, counts["train"], first["train"])


def check_label_names(name, task, counts, first):
    """Labels that are missing in a part, rare, or look like another one. first: {part: {label: its first row}}"""
    train, dev = counts["train"], counts.get("dev")
    for part, present in counts.items():
        unseen = [first[part][label] for label in sorted(present.keys() - train.keys())]
        advice = "every use counts as wrong: move some to train, or merge them"
        yield Note(f"{name}: labels of {part} that never occur in train", unseen, advice)
    once = [first["train"][label] for label in sorted(train) if train[label] == 1]
    advice = "one example teaches little: merge, collect more, or leave out"
    yield Note(f"{name}: labels that occur only once in train", once, advice)
    untested = [first["train"][x] for x in sorted(train) if dev is not None and train[x] >= 20 and not dev[x]]
    yield Note(f"{name}: labels of train that dev never tests", untested, "split again, stratified")
    if not is_tagging(kind_of(task)):
        alike = labels_alike(counts, first)
        yield Note(f"{name}: labels that differ only in case, blanks or width", alike, "probably one label: merge them")
    odd = [first[part][x] for part in counts for x in sorted(counts[part]) if x.strip().lower() in PLACEHOLDERS]
    yield Note(f"{name}: labels that look like a missing value", odd, "leave the label empty (null) if there is none")


def labels_alike(counts, first):
    """Where the rarest of each group of labels is that differ only in case, blanks or width."""
    folded, rows = defaultdict(set), []
    total = sum(counts.values(), Counter())
    for label in total:
        folded[re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", label).casefold())].add(label)
    for group in folded.values():
        if len(group) > 1:
            rare = min(sorted(group), key=lambda label: total[label])
            where = next(first[part][rare] for part in counts if counts[part][rare])
            rows.append(f"{where}, and {', '.join(repr(label) for label in sorted(group - {rare}))}")
    return rows


def check_class_balance(name, counts, first):
    train = counts["train"]
    label, most = train.most_common(1)[0]
    if most / train.total() > 0.95 and train.total() >= 20:
        rows = [f"{first['train'][label]} {most / train.total():.1%}"]
        advice = "look at macro F1, not accuracy; try --class_weights balanced"
        yield Note(f"{name}: nearly all of train is one label", rows, advice)
    for part, other in counts.items():
        if min(other.total(), train.total()) >= 30:  # train does not differ from itself
            shares = {x: (train[x] / train.total(), other[x] / other.total()) for x in train if other[x]}
            if sum(abs(a - b) for a, b in shares.values()) / 2 > 0.2:
                worst = max(shares, key=lambda x: abs(shares[x][0] - shares[x][1]))
                rows = [f"{worst!r} is {shares[worst][0]:.0%} of train, {shares[worst][1]:.0%} of {part}"]
                what = f"{name}: labels are distributed differently in {part} than in train"
                yield Note(what, rows, "split again, stratified, or know why")


def check_label_sets(name, parts, train, first):
    """Multilabel rows without a label, and labels that every row has."""
    often = sum(not e[name] for e in parts["train"]) > 0.05 * len(parts["train"])
    none = [] if often else rows_where(parts, lambda e: e[name] == [])
    yield Note(f"{name}: rows with no label at all", none, "is that what is meant, or is it missing (null)?")
    always = [first[label] for label, count in train.items() if count == len(parts["train"]) > 1]
    yield Note(f"{name}: labels that every row has", always, "there is nothing to learn: leave them out")


def check_numbers(parts, tasks):
    for name, task in tasks.items():
        if kind_of(task) == "regression":
            values = {part: [e[name] for e in rows if e[name] is not None] for part, rows in parts.items()}
            middle = statistics.median(values["train"])
            limit = 10 * (outlier_spread(values["train"], middle) or task["std"])
            labelled = [(e["_where"], e[name]) for e in all_examples(parts) if e[name] is not None]
            far = [f"{where}: {value:g}" for where, value in labelled if abs(value - middle) > limit]
            yield Note(f"{name}: numbers far from all others", far, "a unit or a decimal point may be wrong")
            for part, rows in parts.items():
                yield from compare_numbers(name, task, part, values[part], rows[0]["_where"])


def compare_numbers(name, task, part, values, where):
    """Notes on the numbers of a part: all the same, or others than train has."""
    if len(values) > 1 and len(set(values)) == 1:
        rows = [f"{where}: {values[0]:g}"]
        yield Note(f"{name}: all numbers of {part} are the same", rows, "no correlation can be computed")
    elif part != "train" and len(values) >= 30:
        mean = statistics.fmean(values)
        if abs(mean - task["mean"]) > 0.5 * task["std"]:
            rows = [f"mean {mean:.4g} and {task['mean']:.4g}"]
            yield Note(f"{name}: numbers of {part} differ from those of train", rows, "split again, or know why")


# ---- tags ----------------------------------------------------------------------------------------------------------


def check_tags(parts, tasks):
    for name, task in tasks.items():
        if is_tagging(kind_of(task)) and find_scheme([task["labels"]]) is not None:
            tagged = [e for e in all_examples(parts) if e[name] is not None]
            entities = [(e, *entity) for e in tagged for entity in entities_of(e, name)]
            yield from check_scheme(name, task, tagged)
            yield from check_borders(name, entities)
            yield from check_consistency(name, tagged, entities)
            bare = [part for part, examples in parts.items() if all(set(e[name] or "O") <= {"O"} for e in examples)]
            rows = [f"{parts[part][0]['_where']}: {part}" for part in bare]
            yield Note(f"{name}: a part has no entity at all", rows, "its F1 can only be 0")


def check_spans(parts, tasks):
    for name, task in tasks.items():
        if has_spans(task["type"]):
            labelled = [e for e in all_examples(parts) if e[name] is not None]
            entities = [(e, *entity) for e in labelled for entity in entities_of(e, name)]
            crossing = [f"{e['_where']}: {shown}" for e in labelled if (shown := first_crossing(e, name))]
            advice = "fine if it is meant; nested ones lie one within the other"
            yield Note(f"{name}: spans that overlap without one holding the other", crossing, advice)
            yield from check_borders(name, entities)
            yield from check_consistency(name, labelled, entities)
            bare = [part for part, examples in parts.items() if not any(e[name] for e in examples)]
            rows = [f"{parts[part][0]['_where']}: {part}" for part in bare]
            yield Note(f"{name}: a part has no span at all", rows, "its F1 can only be 0")


def first_crossing(e, name):
    """Two spans of an example of which each has a token that the other has not, but one that both have; or None."""
    spans = sorted((first, -last) for first, last, _ in e[name])
    for number, (first, last) in enumerate(spans):
        for other, end in spans[number + 1 :]:
            if first < other <= -last < -end:
                return f"{' '.join(e['tokens'][first : 1 - last])!r} and {' '.join(e['tokens'][other : 1 - end])!r}"
    return None


def entities_of(e, name):
    """(type, first token, last token, tokens) of an example's entities, which are tags or spans."""
    if e[name] and isinstance(e[name][0], list):
        return [(label, first, last, e["tokens"][first : last + 1]) for first, last, label in e[name]]
    from seqeval.metrics.sequence_labeling import get_entities  # imported here, as it brings scikit-learn

    return [(label, first, last, e["tokens"][first : last + 1]) for label, first, last in get_entities(e[name])]


def check_scheme(name, task, tagged):
    illegal, unfinished = [], []
    bioes = any(label.startswith(("E-", "S-")) for label in task["labels"])
    for e in tagged:
        tags = e[name]
        illegal += [f"{e['_where']}: token {i + 1} {e['tokens'][i]!r} {tags[i]}" for i in illegal_tags(tags)[:1]]
        for i, (tag, after) in enumerate(zip(tags, [*tags[1:], "O"])):
            if bioes and tag.startswith(("B-", "I-", "M-")) and not after.startswith(("I-", "E-", "M-")):
                unfinished.append(f"{e['_where']}: token {i + 1} {tag}")
                break
    advice = "seqeval still counts them as entities; write B- where one begins"
    yield Note(f"{name}: tags that continue no entity", illegal, advice)
    yield Note(f"{name}: entities that are never ended", unfinished, "the scheme wants an E- or S- there")


def check_borders(name, entities):
    long, edges = [], []
    for e, label, first, last, words in entities:
        if last - first >= 20 and last - first > 0.5 * len(e["tokens"]):
            long.append(f"{e['_where']}: {label}, {last - first + 1} tokens")
        if len(words) > 1 and (is_punctuation(words[0]) or is_punctuation(words[-1])):
            edges.append(f"{e['_where']}: {label} {' '.join(words)!r}")
    yield Note(f"{name}: entities of many tokens that fill most of their text", long, "a tag may have been dragged on")
    rows = edges if len(edges) < max(10, 0.02 * len(entities)) else []
    yield Note(f"{name}: entities begin or end with punctuation", rows, "borders may be a token off")


def is_punctuation(token):
    return token and not any(c.isalnum() for c in token) and token not in "()[]《》“”\"'$#@.%+"


def check_consistency(name, tagged, entities):
    """The same words tagged in different ways."""
    seen = defaultdict(lambda: defaultdict(list))  # words -> type -> where
    for e, label, _, _, words in entities:
        seen[tuple(words)][label].append(e["_where"])
    rare = []
    for words, kinds in seen.items():
        label, rows = min(kinds.items(), key=lambda item: (len(item[1]), item[0]))
        if len(kinds) > 1 and sum(map(len, kinds.values())) >= 10 and len(rows) == 1:
            usual = max(kinds, key=lambda kind: len(kinds[kind]))
            rare.append(f"{rows[0]}: {' '.join(words)!r} is {label} once, else {usual}")
    what = f"{name}: the same words have one type nearly always, and another once"
    yield Note(what, rare, "probably a slip: look at the row")
    what = f"{name}: words that are entities nearly always are O here"
    yield Note(what, forgotten(name, tagged, seen), "probably forgotten: look at the rows")


def forgotten(name, tagged, seen):
    """Where words without a tag are that are an entity elsewhere ten times or more, and 20 times as often as not."""
    frequent = {words: sum(map(len, kinds.values())) for words, kinds in seen.items() if len(words) >= 2}
    by_first, untagged = defaultdict(list), defaultdict(list)
    for words, count in frequent.items():
        if count >= 10:
            by_first[words[0]].append(words)
    for e in tagged:
        outside = outside_of(e, name)
        for i, token in enumerate(e["tokens"]):
            for words in by_first.get(token, ()) if outside[i] else ():
                stop = i + len(words)
                if tuple(e["tokens"][i:stop]) == words and all(outside[i:stop]):
                    untagged[words].append(f"{e['_where']}: {' '.join(words)!r}")
    return [row for words, rows in untagged.items() if len(rows) <= 0.05 * frequent[words] for row in rows]


def outside_of(e, name):
    """Which tokens of an example belong to no entity."""
    if not e[name] or isinstance(e[name][0], str):
        return [tag == "O" for tag in e[name] or ["O"] * len(e["tokens"])]
    inside = {place for first, last, _ in e[name] for place in range(first, last + 1)}
    return [place not in inside for place in range(len(e["tokens"]))]


# ---- with the tokenizer --------------------------------------------------------------------------------------------


def check_encoding(parts, tasks, featurizer):
    """What the tokenizer does to the data: what is longer than max_length, what vanishes, what it does not know."""
    tokenizer, length = featurizer.tokenizer, featurizer.max_length
    rows, examples = defaultdict(list), all_examples(parts)
    special = {token for token in tokenizer.all_special_tokens if token.strip()}
    for start in range(0, len(examples), 1000):
        chunk = examples[start : start + 1000]
        words = [e["tokens"] if "tokens" in e else e["text"] for e in chunk]
        options = dict(is_split_into_words="tokens" in chunk[0], add_special_tokens=False, verbose=False)
        for e, encoding in zip(chunk, tokenizer(words, **options).encodings):
            for what, detail in encoding_faults(e, encoding, tokenizer, length, tasks, special):
                rows[what].append(f"{e['_where']}: {detail}")
    advice = "raise it; else tagging uses windows and classification --truncation"
    yield Note(f"texts are longer than --max_length {length}", rows["long"], advice)
    advice = "windows (--window_stride) read them; a larger --max_length is faster"
    yield Note(f"entities lie beyond --max_length {length}", rows["entity"], advice)
    advice = "they are read as [UNK], so tags do not shift; remove them if they mean nothing"
    yield Note("tokens vanish in the tokenizer", rows["vanished"], advice)
    if len(rows["unknown"]) > 0.1 * len(examples):
        advice = "another tokenizer, or --new_tokens of continue_pretrain_task.py, knows them"
        share = f" ({len(rows['unknown']) / len(examples):.1%} of the rows)"
        yield Note(f"characters become [UNK]{share}", rows["unknown"], advice)
    advice = "they are read as such: --special_tokens is the way to add markers"
    yield Note("texts hold the tokenizer's own special tokens", rows["special"], advice)


def encoding_faults(e, encoding, tokenizer, length, tasks, special):
    """(kind, detail) of what the tokenizer does to an example."""
    pair = e.get("text_pair")
    room = length - 2 - (len(tokenizer(pair, add_special_tokens=False)["input_ids"]) + 1 if pair else 0)
    tokens = e.get("tokens")
    if len(encoding.ids) > room:
        yield "long", f"{len(encoding.ids) + 2} sub-tokens"
        kept = set(encoding.word_ids[:room])
        for name, task in tasks.items():
            if needs_words(kind_of(task)) and e[name]:
                lost = [(label, words) for label, _, last, words in entities_of(e, name) if last not in kept]
                yield from [("entity", f"{label} {' '.join(words)!r}") for label, words in lost[:1]]
    if tokens:
        present = set(encoding.word_ids)
        yield from [("vanished", ascii(token)) for i, token in enumerate(tokens) if i not in present][:1]
    if tokenizer.unk_token_id in encoding.ids:
        i = encoding.ids.index(tokenizer.unk_token_id)
        start, stop = encoding.offsets[i]
        yield "unknown", repr(tokens[encoding.word_ids[i]] if tokens else e["text"][start:stop])
    yield from [("special", token) for token in special if token in text_of(e)][:1]


CHECKS = [
    check_ids,
    check_duplicates,
    check_swapped_pairs,
    check_groups,
    check_texts,
    check_tokens,
    check_lengths,
    check_labels,
    check_numbers,
    check_tags,
    check_spans,
]


def examine(parts, tasks, featurizer=None, notes=()):
    """All notes that have rows, those of the processing first."""
    notes = list(notes)
    for check in tqdm(CHECKS, desc="data checks", leave=False, delay=2):
        notes += check(parts, tasks)
    if featurizer is not None:
        notes += check_encoding(parts, tasks, featurizer)
    return [note for note in notes if note.rows]


def keep(notes, path):
    """Writes the notes, the first rows of each, to a JSON file, for a run's report."""
    write_json(path, [{"what": n.what, "count": len(n.rows), "rows": n.rows[:3], "advice": n.advice} for n in notes])


def show(notes, most=3):
    """Prints each note: what, how often, the first rows, what to do."""
    if not notes:
        print("checks: nothing odd found")
        return
    print(f"checks: {len(notes)} things to look at")
    for note in notes:
        more = f"; and {len(note.rows) - most} more" if len(note.rows) > most else ""
        print(f"  - {note.what} ({len(note.rows)}): {'; '.join(note.rows[:most])}{more}\n      -> {note.advice}")
