"""What in the data would hurt, told before hours are spent: `python data_process.py --check --input DATA`, and after each processing.

A check is a generator `check_<what>(parts, tasks)` of Notes, in CHECKS. parts: {part: examples with "_where", where each came from};
tasks: as in labels.json. A note with no rows is not shown, so clean data leaves the doctor quiet.
Edit here when your data has faults of its own: one function, one line in CHECKS.
"""

import html
import math
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from contextlib import suppress
from typing import NamedTuple

import regex
from tqdm import tqdm

from engine.tags import find_scheme, illegal_tags, is_tagging
from engine.text import text_of

PLACEHOLDERS = {
    "nan",
    "null",
    "none",
    "n/a",
    "na",
    "nil",
    "undefined",
    "-",
    "--",
    "?",
    "unknown",
    "todo",
    "tbd",
    "xxx",
    "无",
    "暂无",
    "空",
}
INVISIBLE = "\u200b\u200c\u2060\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
HIGH = re.compile("[\u0080-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]{2,}")
LOOK_ALIKE = set("аеорсухіјѕАВЕКМНОРСТХΑΒΕΖΗΙΚΜΝΟΡΤΥΧο")  # Cyrillic and Greek letters that look Latin


class Note(NamedTuple):
    what: str
    rows: list  # where: "FILE, row N", perhaps with ": detail"
    advice: str


def texts_of(example):
    return [*example.get("tokens", [example.get("text", "")]), example.get("text_pair", "")]


def key_of(example):
    return (
        *example.get("tokens", ()),
        "text" in example and "tokens" not in example and example["text"],
        example.get("text_pair"),
    )


def plain(example):
    """The text without case, blanks, punctuation and width: near duplicates share it."""
    text = unicodedata.normalize("NFKC", text_of(example) + "\n" + example.get("text_pair", "")).casefold()
    return "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] in "LNM") if len(text) > 8 else text


def rows_where(parts, test):
    """[where: what was found] of the examples for which test(example) is true; a string says what was found."""
    return [
        e["_where"] + (f": {found}" if isinstance(found, str) else "")
        for examples in parts.values()
        for e in examples
        if (found := test(e))
    ]


def labels_in(value):
    return [] if value is None else value if isinstance(value, list) else [value]


# ---- texts ---------------------------------------------------------------------------------------------------------------


def check_duplicates(parts, tasks):
    places, near = defaultdict(list), defaultdict(list)
    for part, examples in parts.items():
        for e in examples:
            places[key_of(e)].append((part, e))
            near[plain(e)].append((part, e))
    within, across, conflicts = defaultdict(list), defaultdict(list), defaultdict(list)
    for found in places.values():
        for number, (part, e) in enumerate(found):
            earlier = found[:number]
            same = {other: one["_where"] for other, one in reversed(earlier)}
            for other, where in same.items():
                (within[part] if other == part else across[other, part]).append(f"{e['_where']}, as {where}")
            for name in tasks:
                known = [one for _, one in earlier if one[name] is not None and e[name] is not None]
                if any(one[name] != e[name] for one in known):
                    conflicts[name].append(
                        f"{e['_where']} and {known[0]['_where']}: {e[name]!r} and {known[0][name]!r}"[:160]
                    )
    for part, rows in within.items():
        yield Note(
            f"{part}: the text of another example again",
            rows,
            "remove them, or keep them if they are as frequent in use",
        )
    for (first, second), rows in across.items():
        yield Note(
            f"{second}: texts that occur in {first} too",
            rows,
            "the score would be too good: remove them from one of the parts",
        )
    for name, rows in conflicts.items():
        yield Note(
            f"{name}: the same text has different labels", rows, "decide which is right; a model cannot learn both"
        )
    similar = [
        f"{e['_where']} and {found[0][1]['_where']}"
        for found in near.values()
        for part, e in found[1:]
        if part != found[0][0] and key_of(e) != key_of(found[0][1])
    ]
    yield Note(
        "texts of two parts differ only in case, blanks or punctuation", similar, "nearly a leak: keep each in one part"
    )
    pairs = Counter()
    swapped = []
    for examples in parts.values():
        for e in examples:
            if e.get("text_pair") is not None:
                if pairs[e["text_pair"], e.get("text")] and e["text_pair"] != e.get("text"):
                    swapped.append(e["_where"])
                pairs[e.get("text"), e["text_pair"]] += 1
    yield Note(
        "pairs that occur the other way round too",
        swapped,
        "fine for a symmetric task; else check which order is meant",
    )


def check_ids(parts, tasks):
    seen, rows = set(), []
    for examples in parts.values():
        for e in examples:
            if e["id"] in seen:
                rows.append(f"{e['_where']}: {e['id']}")
            seen.add(e["id"])
    yield Note("ids are used more than once", rows, "predictions could not be told apart by id")


def check_characters(parts, tasks):
    def holds(test):
        def found(e):
            return next((ascii(hit) for text in texts_of(e) if (hit := test(text))), None)

        return rows_where(parts, found)

    def control(text):
        return next((c for c in text if unicodedata.category(c) == "Cc" and c not in "\t\n\r"), None)

    def invisible(text):
        joined = regex.search(
            r"[\p{Arabic}\p{Hebrew}\p{Devanagari}\p{Bengali}\p{Tamil}\p{Telugu}\p{Malayalam}\p{Sinhala}]", text
        )
        return next((c for c in text if c in INVISIBLE and not (joined and c in "\u200c\u200e\u200f")), None)

    def mojibake(text):
        """Characters that are UTF-8 read as Latin-1 or cp1252: written so and read as UTF-8 they make sense."""
        for run in HIGH.findall(text):
            for encoding in ("cp1252", "latin-1"):
                with suppress(UnicodeError):
                    meant = run.encode(encoding).decode("utf-8")
                    if (
                        len(meant) > 1 or run[0] in "ÃÂâ" or re.search("[\u0080-\u009f]", run)
                    ):  # French "é »" would be a rare ideograph
                        return run
        return next((sign for sign in ("锟斤拷", "烫烫烫") if sign in text), None)

    def tags(text):
        hit = re.search(r"</?(?:p|br|div|span|a|b|i|img|td|tr|li)\b[^<>]*>|&(?:[a-z]{2,8}|#\d{2,6});", text)
        return hit.group() if hit and (hit.group()[0] == "<" or html.unescape(hit.group()) != hit.group()) else None

    def mixed_script(text):
        for word in re.findall(r"\w+", text):
            if LOOK_ALIKE & set(word) and re.search("[A-Za-z]", word) and len(word) > 2:
                return word
        return None

    def wide(text):
        return next(
            (c for c in text if "\uff10" <= c <= "\uff19" or "\uff21" <= c <= "\uff3a" or "\uff41" <= c <= "\uff5a"),
            None,
        )

    def private(text):
        return next((c for c in text if unicodedata.category(c) in ("Co", "Cn")), None)

    yield Note("control characters in texts", holds(control), "they tell of a broken export: remove them")
    yield Note(
        "characters that could not be decoded (U+FFFD)",
        holds(lambda text: "\ufffd" in text and "\ufffd"),
        "read the source again with --encoding",
    )
    yield Note("texts decoded with the wrong encoding", holds(mojibake), "read the source again with --encoding")
    yield Note("invisible characters in texts", holds(invisible), "two texts that look the same differ: remove them")
    yield Note("private or unassigned characters in texts", holds(private), "no tokenizer knows them: replace them")
    yield Note("markup or HTML entities in texts", holds(tags), "html.unescape and a parser make plain text of them")
    yield Note(
        "words mixed of Latin and look-alike letters",
        holds(mixed_script),
        "they become other tokens than they look like",
    )
    both = (
        holds(wide)
        if any(re.search(r"[0-9A-Za-z]", text_of(e)) for examples in parts.values() for e in examples)
        else []
    )
    yield Note("full-width letters or digits beside half-width ones", both, "NFKC normalisation makes them one")
    quoted = rows_where(
        parts, lambda e: any(len(t) > 2 and t[0] == t[-1] == '"' and '""' in t[1:-1] for t in texts_of(e))
    )
    yield Note(
        "texts with the quotes of a CSV around them and doubled inside",
        quoted,
        "a TSV written as a CSV is: add --format csv, or unquote them",
    )
    blanks = rows_where(parts, lambda e: "tokens" not in e and any(t != t.strip() for t in texts_of(e) if t))
    yield Note("texts begin or end with blanks", blanks, "harmless for most tokenizers; strip them to find duplicates")
    yield Note(
        "texts that look like a missing value",
        rows_where(parts, lambda e: text_of(e).strip().lower() in PLACEHOLDERS and repr(text_of(e))),
        "they are taken as texts: remove the rows if they are not",
    )
    yield Note(
        "texts without a letter or digit",
        rows_where(
            parts,
            lambda e: (
                not any(c.isalnum() for c in text_of(e))
                and text_of(e).strip().lower() not in PLACEHOLDERS
                and ascii(text_of(e)[:20])
            ),
        ),
        "there is little to learn from them",
    )
    yield Note(
        "both texts of a pair are the same",
        rows_where(parts, lambda e: e.get("text_pair") and e["text_pair"] == e.get("text")),
        "check the export",
    )
    yield Note(
        "one text of a pair is empty",
        rows_where(parts, lambda e: "text_pair" in e and not e["text_pair"].strip()),
        "check the export",
    )


def check_groups(parts, tasks):
    places = defaultdict(dict)
    for part, examples in parts.items():
        for e in examples:
            if e.get("group") not in (None, ""):
                places[str(e["group"])].setdefault(part, e["_where"])
    shared = [f"{group!r}: {', '.join(found.values())}" for group, found in places.items() if len(found) > 1]
    yield Note("groups that two parts share", shared, "the score would be too good: keep each group in one part")


def check_tokens(parts, tasks):
    empty = rows_where(parts, lambda e: "" in e.get("tokens", ()) and "an empty token")
    yield Note("tokens that are empty", empty, "they become [UNK]; check how the text was cut")
    glued = rows_where(
        parts, lambda e: next((repr(t) for t in e.get("tokens", ()) if re.fullmatch(r"[^\W\da-zA-Z]\d+", t)), None)
    )
    many = sum(bool(re.fullmatch(r"\S\d+", t)) for e in parts["train"][:1000] for t in e.get("tokens", ()))
    most = many > 0.5 * sum(len(e.get("tokens", ())) for e in parts["train"][:1000])
    yield Note(
        "tokens are characters with a number glued to them",
        glued if most else [],
        "remove it, or no tokenizer knows them",
    )
    if any(len(token) > 1 for e in parts["train"][:1000] for token in e.get("tokens", ())):
        blank = rows_where(
            parts,
            lambda e: next(
                (ascii(t) for t in e.get("tokens", ()) if t and (t.isspace() or re.search(r"\S\s+\S", t))), None
            ),
        )
        yield Note("tokens that are or hold blanks", blank, "a tag may be a column too far: check the separator")


def check_lengths(parts, tasks):
    lengths = {part: [len(e.get("tokens") or e["text"]) for e in examples] for part, examples in parts.items()}
    logs = [math.log(1 + n) for n in lengths["train"]]
    middle = statistics.median(logs)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in logs) or 0.2
    limit = math.exp(middle + 6 * max(spread, 0.3))
    long = [
        f"{e['_where']}: {n}"
        for part, examples in parts.items()
        for e, n in zip(examples, lengths[part])
        if n > max(limit, 30)
    ]
    yield Note("texts far longer than the others", long, "a row that was never ended, or several texts in one?")
    for part in parts:
        if part != "train" and min(len(lengths[part]), len(logs)) >= 30:
            distance = ks_distance(lengths["train"], lengths[part])
            n, m = len(lengths["train"]), len(lengths[part])
            if distance > 0.15 and distance > 1.95 * math.sqrt((n + m) / (n * m)):
                medians = statistics.median(lengths["train"]), statistics.median(lengths[part])
                detail = f"median {medians[0]:g} in train, {medians[1]:g} in {part}"
                yield Note(
                    f"{part}: texts are longer or shorter than in train",
                    [detail],
                    "the parts are not of one kind: split anew, or know why",
                )


def ks_distance(first, second):
    """The largest difference between two empirical distribution functions (Kolmogorov and Smirnov)."""
    one, two = Counter(first), Counter(second)
    a = b = best = 0
    for value in sorted(one.keys() | two.keys()):
        a, b = a + one[value] / len(first), b + two[value] / len(second)
        best = max(best, abs(a - b))
    return best


# ---- labels --------------------------------------------------------------------------------------------------------------


def check_labels(parts, tasks):
    for name, task in tasks.items():
        if task["type"] == "regression":
            continue
        counts = {part: Counter(x for e in examples for x in labels_in(e[name])) for part, examples in parts.items()}
        train = counts["train"]

        def where(label, part, name=name):
            return next(f"{e['_where']}: {label!r}" for e in parts[part] if label in labels_in(e[name]))

        for part in parts:
            unseen = [where(label, part) for label in sorted(counts[part].keys() - train.keys())]
            yield Note(
                f"{name}: labels of {part} that never occur in train",
                unseen,
                "every use counts as wrong: move some to train, or merge them",
            )
        once = [where(label, "train") for label in sorted(label for label, count in train.items() if count == 1)]
        yield Note(
            f"{name}: labels that occur only once in train",
            once,
            "one example teaches little: merge, collect more, or leave out",
        )
        absent = [
            where(label, "train")
            for label in sorted(train)
            if "dev" in parts and train[label] >= 20 and not counts["dev"][label]
        ]
        yield Note(f"{name}: labels of train that dev never tests", absent, "split anew, stratified")
        folded = defaultdict(list)
        for label in sorted({label for count in counts.values() for label in count}):
            folded[re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", label).casefold())].append(label)
        alike = [
            where(rare, next(part for part in parts if counts[part][rare]))
            + f", and {', '.join(map(repr, group - {rare}))}"
            for group in map(set, folded.values())
            if len(group) > 1 and not is_tagging(task["type"])
            for rare in [min(sorted(group), key=lambda label: sum(count[label] for count in counts.values()))]
        ]
        yield Note(f"{name}: labels that differ only in case, blanks or width", alike, "probably one label: merge them")
        odd = [
            where(label, part)
            for part in parts
            for label in sorted(counts[part])
            if label.strip().lower() in PLACEHOLDERS
        ]
        yield Note(
            f"{name}: labels that look like a missing value", odd, "leave the label empty (null) if there is none"
        )
        if task["type"] == "classification" and train:
            label, most = train.most_common(1)[0]
            if most / train.total() > 0.95 and train.total() >= 20:
                yield Note(
                    f"{name}: nearly all of train is one label",
                    [f"{where(label, 'train')} {most / train.total():.1%}"],
                    "look at macro F1, not accuracy; try --class_weights balanced",
                )
            for part in parts:
                if part != "train" and min(counts[part].total(), train.total()) >= 30:
                    shared = counts[part].keys() & train.keys()
                    distance = (
                        sum(abs(train[x] / train.total() - counts[part][x] / counts[part].total()) for x in shared) / 2
                    )
                    if distance > 0.2:
                        most = max(
                            shared, key=lambda x: abs(train[x] / train.total() - counts[part][x] / counts[part].total())
                        )
                        shares = [f"{counts[one][most] / counts[one].total():.0%} of {one}" for one in ("train", part)]
                        detail = f"{most!r} is {', '.join(shares)}"
                        yield Note(
                            f"{name}: labels are distributed otherwise in {part} than in train",
                            [detail],
                            "split anew, stratified, or know why",
                        )
        if task["type"] == "multilabel":
            none = rows_where(parts, lambda e, name=name: e[name] == [])
            often = sum(not e[name] for e in parts["train"]) > 0.05 * len(parts["train"])
            yield Note(
                f"{name}: rows with no label at all",
                [] if often else none,
                "is that what is meant, or is it missing (null)?",
            )
            always = [label for label, count in train.items() if count == len(parts["train"]) > 1]
            yield Note(
                f"{name}: labels that every row has",
                [where(label, "train") for label in always],
                "there is nothing to learn: leave them out",
            )


def check_numbers(parts, tasks):
    for name, task in tasks.items():
        if task["type"] != "regression":
            continue
        train = [e[name] for e in parts["train"] if e[name] is not None]
        middle = statistics.median(train)
        spread = (
            1.4826 * statistics.median(abs(value - middle) for value in train) or task["std"]
        )  # the median deviation, as of a normal
        everywhere = [(e["_where"], e[name]) for examples in parts.values() for e in examples if e[name] is not None]
        far = [f"{at}: {value:g}" for at, value in everywhere if abs(value - middle) > 10 * spread]
        yield Note(f"{name}: numbers far from all others", far, "a unit or a decimal point may be wrong")
        for part, examples in parts.items():
            known = [e[name] for e in examples if e[name] is not None]
            if len(known) > 1 and len(set(known)) == 1:
                where = [f"{examples[0]['_where']}: {known[0]:g}"]
                yield Note(f"{name}: all numbers of {part} are the same", where, "no correlation can be computed")
            elif (
                part != "train" and len(known) >= 30 and abs(statistics.fmean(known) - task["mean"]) > 0.5 * task["std"]
            ):
                where = [f"mean {statistics.fmean(known):.4g} and {task['mean']:.4g}"]
                yield Note(
                    f"{name}: numbers of {part} are others than those of train", where, "split anew, or know why"
                )


# ---- tags ----------------------------------------------------------------------------------------------------------------


def spans_of(tags):
    """[(type, first, last)] of a list of tags."""
    spans, start = [], None
    for place, (tag, after) in enumerate(zip(tags, [*tags[1:], "O"])):
        if tag != "O" and (start is None or tag[0] in "BS"):
            start = place
        if start is not None and (after == "O" or after[0] in "BS" or after[2:] != tag[2:] or tag[0] in "ES"):
            spans.append((tag[2:], start, place))
            start = None
    return spans


def check_tags(parts, tasks):
    for name, task in tasks.items():
        if not is_tagging(task["type"]) or find_scheme([task["labels"]]) is None:
            continue
        bioes = any(label[:2] in ("E-", "S-") for label in task["labels"])
        illegal, unfinished, long, edges, seen = [], [], [], [], defaultdict(lambda: defaultdict(list))
        for examples in parts.values():
            for e in examples:
                tags = e[name]
                if tags is None:
                    continue
                illegal += [
                    f"{e['_where']}: token {place + 1} {e['tokens'][place]!r} {tags[place]}"
                    for place in illegal_tags(tags)[:1]
                ]
                if bioes:
                    open_at = [
                        i
                        for i, (tag, after) in enumerate(zip(tags, [*tags[1:], "O"]))
                        if tag[:2] in ("B-", "I-") and after[:2] not in ("I-", "E-")
                    ]
                    unfinished += [f"{e['_where']}: token {open_at[0] + 1} {tags[open_at[0]]}"] if open_at else []
                for label, first, last in spans_of(tags):
                    surface = e["tokens"][first : last + 1]
                    seen[tuple(surface)][label].append(e["_where"])
                    if last - first >= 20 and last - first > 0.5 * len(tags):
                        long.append(f"{e['_where']}: {label}, {last - first + 1} tokens")
                    if len(surface) > 1 and any(
                        t and not any(c.isalnum() for c in t) and t not in "()[]《》“”\"'$#@.%+"
                        for t in (surface[0], surface[-1])
                    ):
                        edges.append(f"{e['_where']}: {label} {' '.join(surface)!r}")
        yield Note(
            f"{name}: tags that continue no entity",
            illegal,
            "seqeval still counts them as entities; write B- where one begins",
        )
        yield Note(f"{name}: entities that are never ended", unfinished, "the scheme wants an E- or S- there")
        yield Note(
            f"{name}: entities of many tokens that fill most of their text", long, "a tag may have been dragged on"
        )
        total = sum(len(rows) for kinds in seen.values() for rows in kinds.values())
        yield Note(
            f"{name}: entities begin or end with punctuation",
            edges if len(edges) < 0.02 * total or len(edges) < 10 else [],
            "borders may be a token off",
        )
        rare = []
        for surface, kinds in seen.items():
            count = sum(map(len, kinds.values()))
            label, rows = min(kinds.items(), key=lambda item: (len(item[1]), item[0]))
            if len(kinds) > 1 and count >= 10 and len(rows) == 1:
                rare.append(
                    f"{rows[0]}: {' '.join(surface)!r} is {label} once, else {max(kinds, key=lambda k: len(kinds[k]))}"
                )
        yield Note(
            f"{name}: the same words have one type nearly always, and another once",
            rare,
            "probably a slip: look at the row",
        )
        missed = []
        singles = {surface: sum(map(len, kinds.values())) for surface, kinds in seen.items() if len(surface) >= 2}
        frequent = {surface for surface, count in singles.items() if count >= 10}
        by_first = defaultdict(list)
        for surface in frequent:
            by_first[surface[0]].append(surface)
        plain_uses = defaultdict(list)
        for examples in parts.values():
            for e in examples:
                for place, (token, tag) in enumerate(zip(e["tokens"], e[name] or ())):
                    for surface in by_first.get(token, ()) if tag == "O" else ():
                        stop = place + len(surface)
                        if tuple(e["tokens"][place:stop]) == surface and set(e[name][place:stop]) == {"O"}:
                            plain_uses[surface].append(f"{e['_where']}: {' '.join(surface)!r}")
        for surface, rows in plain_uses.items():
            if len(rows) <= 0.05 * singles[surface]:
                missed += rows
        yield Note(
            f"{name}: words that are entities nearly always are O here", missed, "probably forgotten: look at the rows"
        )
        bare = [part for part, examples in parts.items() if all(set(e[name] or "O") <= {"O"} for e in examples)]
        yield Note(
            f"{name}: a part has no entity at all",
            [f"{parts[part][0]['_where']}: {part}" for part in bare],
            "its F1 can only be 0",
        )


# ---- with the tokenizer --------------------------------------------------------------------------------------------------


def check_encoding(parts, tasks, encoder):
    """What the tokenizer does to the data: what is longer than max_length, what vanishes, what it does not know."""
    tokenizer, length = encoder.tokenizer, encoder.max_length
    cut, entities, vanished, unknown, markers = [], [], [], [], []
    total = 0
    special = {token for token in tokenizer.all_special_tokens if token.strip()}
    for examples in parts.values():
        for start in range(0, len(examples), 1000):
            chunk = examples[start : start + 1000]
            words = [e["tokens"] if "tokens" in e else e["text"] for e in chunk]
            encoded = tokenizer(
                words, is_split_into_words="tokens" in chunk[0], add_special_tokens=False, verbose=False
            ).encodings
            for e, given, encoding in zip(chunk, words, encoded):
                room = (
                    length
                    - 2
                    - (
                        len(tokenizer(e["text_pair"], add_special_tokens=False)["input_ids"]) + 1
                        if e.get("text_pair")
                        else 0
                    )
                )
                total += 1
                if len(encoding.ids) > room:
                    cut.append(f"{e['_where']}: {len(encoding.ids) + 2} sub-tokens")
                    kept = {word for word in encoding.word_ids[:room] if word is not None} if "tokens" in e else set()
                    for name, task in tasks.items():
                        if is_tagging(task["type"]) and e[name]:
                            lost = [span for span in spans_of(e[name]) if span[2] not in kept]
                            entities += (
                                [f"{e['_where']}: {lost[0][0]} {' '.join(given[lost[0][1] : lost[0][2] + 1])!r}"]
                                if lost
                                else []
                            )
                if "tokens" in e:
                    present = set(encoding.word_ids)
                    gone = [ascii(word) for number, word in enumerate(given) if number not in present]
                    vanished += [f"{e['_where']}: {gone[0]}"] if gone else []
                if tokenizer.unk_token_id in encoding.ids:
                    place = encoding.offsets[encoding.ids.index(tokenizer.unk_token_id)]
                    word = (
                        given[encoding.word_ids[encoding.ids.index(tokenizer.unk_token_id)]]
                        if "tokens" in e
                        else given[place[0] : place[1]]
                    )
                    unknown.append(f"{e['_where']}: {word!r}")
                hit = next((token for token in special if token in text_of(e)), None)
                markers += [f"{e['_where']}: {hit}"] if hit else []
    yield Note(
        f"texts are longer than --max_length {length}",
        cut,
        "raise it; else tagging uses windows and classification --truncation",
    )
    yield Note(
        f"entities lie behind --max_length {length}",
        entities,
        "windows (--window_stride) read them; a larger --max_length is faster",
    )
    yield Note(
        "tokens vanish in the tokenizer",
        vanished,
        "they are read as [UNK], so tags do not shift; remove them if they mean nothing",
    )
    share = "" if not unknown else f" ({len(unknown) / total:.1%} of the rows)"
    if len(unknown) > 0.1 * total:
        yield Note(
            f"characters become [UNK]{share}",
            unknown,
            "another tokenizer, or --new_tokens of continue_pretrain_task.py, knows them",
        )
    yield Note(
        "texts hold the tokenizer's own special tokens",
        markers,
        "they are read as such: --special_tokens is the way to add markers",
    )


CHECKS = [
    check_ids,
    check_duplicates,
    check_groups,
    check_characters,
    check_tokens,
    check_lengths,
    check_labels,
    check_numbers,
    check_tags,
]


def examine(parts, tasks, encoder=None, notes=()):
    """All notes that have rows, those of the processing first."""
    found = list(notes)
    for check in tqdm(CHECKS, desc="examining", leave=False, delay=2):
        found += check(parts, tasks)
    if encoder is not None:
        found += check_encoding(parts, tasks, encoder)
    return [note for note in found if note.rows]


def show(notes, most=3):
    """Prints each note: what, how often, the first rows, what to do."""
    if not notes:
        print("doctor: nothing odd found")
        return
    print(f"doctor: {len(notes)} things to look at")
    for note in notes:
        more = f"; and {len(note.rows) - most} more" if len(note.rows) > most else ""
        print(f"  - {note.what} ({len(note.rows)}): {'; '.join(note.rows[:most])}{more}\n      -> {note.advice}")
