"""Generates texts with annotated events, and compares ways to store events as relations between spans.

    python benchmarks/events.py --language en --number 1500 --output_file events.jsonl
    python data_process.py --input events.jsonl --output_dir dataset/events
    python main.py --do_train --do_eval --data_path dataset/events --hidden_size 64 --num_layers 2 --lr 2e-3

A text has one to three of the sentences below: events with the same argument, an argument with two roles, nested
arguments, several events of one trigger, and events without a trigger. For each way of storing events, prints the share
of events that are recovered: of all events, of events in texts with several events of one type, and of random events
that share most of their mentions:

    trigger   relations from the trigger to the arguments (events without a trigger: from the first argument)
    anchor    relations from the mention that separates the events, as in preprocess/labels/events.py
    clique    relations between all mentions of an event, decoded as the maximal cliques of each type (GPLinker for
              events, Su, 2022, kexue.fm/archives/8926)

--train FOLDER trains a model on the generated events stored in each way, and prints the F1 on test:

    python benchmarks/events.py --train /tmp/events --epochs 20 --lr 2e-3 --hidden_size 64 --num_layers 2 \\
        --batch_size 16 --max_length 96
"""

import argparse
import itertools
import json
import random
import re
import sys
import time
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import networkx

from config import Config
from engine.run.command_line import parse_args
from engine.task.words import ROLE, events_in
from main import main
from metrics import set_scores
from preprocess.labels.events import anchored, label_of, ranking

POOLS = {
    "en": {
        "org": "Orba|Kesta Inc|Milun|Tarvo Group|Belle Foods|Nordak|Pirelo Labs|Sunvik|Quanta Press|Ulmo Bank|Wenzo",
        "person": "Ana Reyes|Ben Cole|Cleo Marsh|Dan Ortiz|Eva Lind|Finn Park|Gia Moss|Hugo Bell|Ines Cato|Jon Ward",
        "city": "Lima|Oslo|Kyiv|Porto|Quito|Riga|Tunis|Bergen|Osaka|Malmo",
        "money": "3 million|5 million|7 million|12 million|40 million|9 million",
        "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday",
        "month": "May|June|July|March|April|August",
        "hire": "hired|appointed|recruited",
        "buy": "bought|acquired",
        "meet": "met|welcomed",
        "found": "founded|started",
    },
    "zh": {
        "org": "奥巴公司|科思达|米伦集团|塔沃食品|诺达克|皮雷洛|森维克|优莫银行|文佐|伊莱航空",
        "person": "王小雨|李青|赵明远|孙可|周雅文|吴天|郑力|何思思|林达|高远",
        "city": "海州|云城|青川|宁江|白山|临港|东岭|安平",
        "money": "三百万元|五百万元|七百万元|两千万元|九百万元",
        "day": "周一|周二|周三|周四|周五|周六",
        "month": "五月|六月|七月|三月|四月|八月",
        "hire": "聘请|任命|录用",
        "buy": "收购|买下",
        "meet": "会见|接待",
        "found": "创办|成立",
    },
}
HIRE, LOAN = ("employer", "person", "time"), ("borrower", "amount", "month")
# (template, [(type, trigger or None, {role: slots})]). A slot is the name of a pool and a number; [slot …] is a span
# that contains other slots
SENTENCES = {
    "en": [
        ("{org1} {hire1} {person1} .", [("hire", "hire1", {"employer": "org1", "person": "person1"})]),
        (
            "{org1} {hire1} {person1} on {day1} and {person2} on {day2} .",
            [("hire", "hire1", dict(zip(HIRE, ("org1", f"person{i}", f"day{i}")))) for i in (1, 2)],
        ),
        (
            "In {city1} , {org1} {hire1} {person1} and {buy1} {org2} for {money1} .",
            [
                ("hire", "hire1", {"employer": "org1", "person": "person1", "place": "city1"}),
                ("buy", "buy1", {"buyer": "org1", "bought": "org2", "price": "money1", "place": "city1"}),
            ],
        ),
        ("{org2} was {buy1} by {org1} .", [("buy", "buy1", {"buyer": "org1", "bought": "org2"})]),
        (
            "{person1} and {person2} {meet1} [title1 the mayor of {city1}] on {day1} .",
            [("meet", "meet1", {"participant": "person1 person2 title1", "place": "city1", "time": "day1"})],
        ),
        ("{person1} {found1} {org1} .", [("found", "found1", {"founder": "person1", "company": "org1"})]),
        (
            "{person1} alone {found1} {org1} .",
            [("found", "found1", {"founder": "person1", "owner": "person1", "company": "org1"})],
        ),
        ("{org1} : {money1} , {month1} .", [("loan", None, dict(zip(LOAN, ("org1", "money1", "month1"))))]),
        (
            "{org1} : {money1} , {month1} ; {money2} , {month2} .",
            [("loan", None, dict(zip(LOAN, ("org1", f"money{i}", f"month{i}")))) for i in (1, 2)],
        ),
        (
            "{org1} and {org2} : {money1} each , {month1} .",
            [("loan", None, dict(zip(LOAN, (f"org{i}", "money1", "month1")))) for i in (1, 2)],
        ),
        ("{person1} lives in {city1} .", []),
        ("{org1} reports on {day1} .", []),
    ],
    "zh": [
        ("{org1}{hire1}了{person1}。", [("hire", "hire1", {"employer": "org1", "person": "person1"})]),
        (
            "{org1}{day1}{hire1}{person1}，{day2}又有{person2}。",
            [("hire", "hire1", dict(zip(HIRE, ("org1", f"person{i}", f"day{i}")))) for i in (1, 2)],
        ),
        (
            "在{city1}，{org1}{hire1}了{person1}，并以{money1}{buy1}{org2}。",
            [
                ("hire", "hire1", {"employer": "org1", "person": "person1", "place": "city1"}),
                ("buy", "buy1", {"buyer": "org1", "bought": "org2", "price": "money1", "place": "city1"}),
            ],
        ),
        ("{org2}被{org1}{buy1}。", [("buy", "buy1", {"buyer": "org1", "bought": "org2"})]),
        (
            "{day1}{person1}和{person2}{meet1}[title1 {city1}市长]。",
            [("meet", "meet1", {"participant": "person1 person2 title1", "place": "city1", "time": "day1"})],
        ),
        ("{person1}{found1}了{org1}。", [("found", "found1", {"founder": "person1", "company": "org1"})]),
        (
            "{person1}独自{found1}了{org1}。",
            [("found", "found1", {"founder": "person1", "owner": "person1", "company": "org1"})],
        ),
        ("{org1}：{money1}，{month1}。", [("loan", None, dict(zip(LOAN, ("org1", "money1", "month1"))))]),
        (
            "{org1}：{money1}，{month1}；{money2}，{month2}。",
            [("loan", None, dict(zip(LOAN, ("org1", f"money{i}", f"month{i}")))) for i in (1, 2)],
        ),
        (
            "{org1}与{org2}：各{money1}，{month1}。",
            [("loan", None, dict(zip(LOAN, (f"org{i}", "money1", "month1")))) for i in (1, 2)],
        ),
        ("{person1}住在{city1}。", []),
        ("{org1}于{day1}公布业绩。", []),
    ],
}


def filled(template, events, pools, draw):
    """Fills the slots of a template with distinct values from their pools. Returns (text, events)."""
    names = re.findall(r"{(\w+)}", template)
    by_pool = defaultdict(list)
    for name in names:
        by_pool[name.rstrip("0123456789")].append(name)
    values = {}
    for pool, slots in by_pool.items():
        values |= dict(zip(slots, draw.sample(pools[pool].split("|"), len(slots))))
    text, places, opened = "", {}, []
    for piece in re.split(r"({\w+}|\[\w+ |\])", template):
        if piece.startswith("{"):
            places[piece[1:-1]] = (len(text), len(text) + len(values[piece[1:-1]]))
            text += values[piece[1:-1]]
        elif piece.startswith("["):
            opened.append((piece[1:-1], len(text)))
        elif piece == "]":
            name, start = opened.pop()
            places[name] = (start, len(text))
        else:
            text += piece
    found = []
    for kind, trigger, roles in events:
        pairs = [(role, places[slot]) for role, slots in roles.items() for slot in slots.split()]
        found.append((kind, trigger and places[trigger], pairs))
    return text, found


def shifted(place, by):
    return (place[0] + by, place[1] + by)


def texts_of(language, number, seed=0):
    """Yields (text, [(type, place of the trigger or None, [(role, place)])]). Places are (start, exclusive end)."""
    draw = random.Random(seed)
    for _ in range(number):
        text, events = "", []
        for template, stored in draw.choices(SENTENCES[language], k=draw.randint(1, 3)):
            text += " " * (bool(text) and language == "en")
            more, found = filled(template, stored, POOLS[language], draw)
            for kind, trigger, pairs in found:
                events.append(
                    (kind, trigger and shifted(trigger, len(text)), [(r, shifted(p, len(text))) for r, p in pairs])
                )
            text += more
        yield text, events


def row_of(text, events):
    """Returns a row in the format that data_process.py reads."""

    def mention(place):
        return {"text": text[slice(*place)], "start": place[0], "end": place[1]}

    return {
        "text": text,
        "events": [
            {
                "type": kind,
                "trigger": trigger and mention(trigger),
                "arguments": [{"role": role, **mention(place)} for role, place in pairs],
            }
            for kind, trigger, pairs in events
        ],
    }


def shared_mentions(number, seed=0):
    """Yields ("", events) like `texts_of`: two to four events of one type, with arguments drawn from a few places."""
    draw = random.Random(seed)
    for _ in range(number):
        triggers = draw.choice([[(0, 1)] * 4, [(i, i + 1) for i in range(4)], [None] * 4])
        events = []
        for trigger in triggers[: draw.randint(2, 4)]:
            places = [(role, (i, i + 1)) for n, role in enumerate("abc") for i in [10 * n + 10 + draw.randrange(3)]]
            events.append(("t", trigger, [place for place in places if draw.random() < 0.9]))
        yield "", [event for event in events if event[1] or event[2]]


# ---- ways to store events as items (first and last token of two mentions, name), and to read them --------------------


def mentions_of(events, place_of=lambda place: place):
    """Returns events as (type, {(label, place)})."""
    return [
        (kind, frozenset((label_of(kind, role), place_of(p)) for role, p in [(None, trigger)] * bool(trigger) + pairs))
        for kind, trigger, pairs in events
    ]


def by_trigger(events, order):
    """Stores events as items from the trigger, or from the first argument if there is none, to all mentions."""
    items = set()
    for _, mentions in events:
        in_order = sorted(mentions, key=lambda mention: (ROLE in mention[0], *mention[1]))
        items |= {(*in_order[0][1], *place, label) for label, place in mentions}
    return sorted(items)


def of_anchors(items):
    """Reads events from items that start at anchors. Returns them in the format of `mentions_of`."""
    found = [(event.type, (*event.triggers, *event.arguments)) for event in events_in(items)]
    return {(kind, frozenset((items[i][4], tuple(items[i][2:4])) for i in numbers)) for kind, numbers in found}


def by_clique(events, order):
    """Stores items from each mention to itself (named by its label) and to all others of its event (by the type)."""
    items = set()
    for kind, mentions in events:
        items |= {(*place, *place, label if ROLE in label else label + ROLE) for label, place in mentions}
        pairs = itertools.permutations({place for _, place in mentions}, 2)
        items |= {(*one, *other, kind) for one, other in pairs}
    return sorted(items)


def of_cliques(items):
    """Reads events as the maximal cliques of each type. Mentions are adjacent if linked in both directions."""
    nodes, links, found = defaultdict(set), set(), set()
    for *places, label in items:
        one, other = tuple(places[:2]), tuple(places[2:])
        if ROLE not in label:
            links.add((label, one, other))
        elif one == other:
            nodes[label.partition(ROLE)[0]].add((label.removesuffix(ROLE), one))
    for kind, mentions in nodes.items():
        graph = networkx.Graph()
        graph.add_nodes_from(mentions)
        for (label, one), (name, other) in itertools.combinations(sorted(mentions), 2):
            if one == other or {(kind, one, other), (kind, other, one)} <= links:
                graph.add_edge((label, one), (name, other))
        found |= {(kind, frozenset(clique)) for clique in networkx.find_cliques(graph)}
    return found


WAYS = {  # name: (events -> items, items -> events, kind of the task)
    "trigger": (by_trigger, of_anchors, "events"),
    "anchor": (anchored, of_anchors, "events"),
    "clique": (by_clique, of_cliques, "relations"),
}


def shares(texts):
    """Returns {way: (recovered share of all events, recovered share in texts with several events of one type)}."""
    texts = [mentions_of(events) for _, events in texts]
    order, result = ranking(texts), {}
    for name, (store, read, _) in WAYS.items():
        pairs = []
        for events in texts:
            again, kinds = read(store(events, order)), [kind for kind, _ in events]
            pairs += [(event in again, kinds.count(event[0]) > 1) for event in events]
        several = [right for right, is_one_of_several in pairs if is_one_of_several]
        result[name] = (sum(right for right, _ in pairs) / len(pairs), sum(several) / max(1, len(several)))
    return result


# ---- training --------------------------------------------------------------------------------------------------------


def tokens_of(text, language):
    return text.split(" ") if language == "en" else list(text)


def token_place(text, place, language):
    """Returns (first, last token) of a place."""
    if language == "zh":
        return place[0], place[1] - 1
    first = text[: place[0]].count(" ")
    return first, first + text[slice(*place)].count(" ")


def trained(language, way, seed, folder, flags):
    """Trains on events stored in one way. Returns (F1 of arguments, F1 of whole events) on test."""
    store, read, kind = WAYS[way]
    texts = {
        split: [
            (tokens_of(text, language), mentions_of(events, partial(token_place, text, language=language)))
            for text, events in texts_of(language, number, seed + more)
        ]
        for split, number, more in (("train", 1500, 0), ("dev", 300, 1000), ("test", 400, 2000))
    }
    order, names = ranking(events for _, events in texts["train"]), Counter()
    folder.mkdir(parents=True)
    for split, rows in texts.items():
        labels = [store(events, order) for _, events in rows]
        names.update(item[4] for label in labels for item in label if split == "train")
        rows = [{"id": str(n), "tokens": t, "events": x} for n, ((t, _), x) in enumerate(zip(rows, labels))]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    task = {"type": kind, "labels": sorted(names), "counts": [names[name] for name in sorted(names)]}
    task["unit"] = {"en": "word", "zh": "character"}[language]
    (folder / "labels.json").write_text(json.dumps({"events": task}, ensure_ascii=False), encoding="utf-8")
    own = ["--data_path", folder, "--output_dir", folder / "output", "--model_version", "run", "--random_seed", seed]
    main(parse_args(Config, [*map(str, own), "--do_train", "--do_eval", *flags]))
    lines = (folder / "output/run/answers/test.jsonl").read_text(encoding="utf-8").splitlines()
    found = [read([tuple(x) for x in json.loads(line)["answers"]["events"]["predicted"]]) for line in lines]
    gold = [set(events) for _, events in texts["test"]]
    arguments = [[{m for _, mentions in x for m in mentions if ROLE in m[0]} for x in side] for side in (gold, found)]
    return set_scores(*arguments)["f1"], set_scores(gold, found)["f1"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=list(SENTENCES), default="en")
    parser.add_argument("--number", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path)
    parser.add_argument(
        "--train", type=Path, help="train a model per way in this folder; further options go to main.py"
    )
    options, flags = parser.parse_known_args()
    if options.train:
        for way in WAYS:
            start = time.process_time()
            scores = trained(options.language, way, options.seed, options.train / way, flags)
            print(
                f"{way}: arguments {scores[0]:.4f}, whole events {scores[1]:.4f}, {time.process_time() - start:.0f} s"
            )
        sys.exit()
    texts = list(texts_of(options.language, options.number, options.seed))
    if options.output_file:
        rows = (json.dumps(row_of(*text), ensure_ascii=False) + "\n" for text in texts)
        options.output_file.write_text("".join(rows), encoding="utf-8")
    for kind, stored in (("generated", texts), ("shared mentions", shared_mentions(options.number, options.seed))):
        for name, (of_all, several) in shares(stored).items():
            print(f"{kind}, {name}: {of_all:.4f} of all events, {several:.4f} in texts with several events of a type")
