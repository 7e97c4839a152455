"""Makes texts with events whose mentions are known, and compares ways to store events as pairs of spans.

    python benchmarks/events.py --language en --number 1500 --output_file events.jsonl
    python data_process.py --input events.jsonl --output_dir dataset/events
    python main.py --do_train --do_eval --data_path dataset/events --hidden_size 64 --num_layers 2 --lr 2e-3

A text has one to three of the sentences below: events with the same argument, an argument with two roles, nested
arguments, several events of one trigger, and events without a trigger. Prints the share of all events, and of those in
texts with several events of one type, that are found again after storing them, also of random events that share most of
their mentions:

    by trigger   as relations from the trigger to the arguments (events without a trigger: from the first argument)
    by anchor    as data_process.py does: from the mention that separates the events (preprocess/labels/events.py)
    by clique    as relations between all mentions of an event, read as the maximal cliques of each type (GPLinker
                 for events, Su, 2022, kexue.fm/archives/8926)
"""

import argparse
import itertools
import json
import random
import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import networkx

from engine.task.words import ROLE, events_in
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
# (template, [(type, trigger or None, {role: slots})]); a slot is the name of a pool and a number, and [slot …] a span
# with others in it
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
    """(text, events) of a template, with different values for the slots of a pool."""
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
    """Yields (text, [(type, place of the trigger or None, [(role, place)])]); places are (start, exclusive end)."""
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
    """A row as data_process.py reads it."""

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
    """Yields ("", events) as `texts_of`: two to four events of one type, whose arguments are drawn from few places."""
    draw = random.Random(seed)
    for _ in range(number):
        triggers = draw.choice([[(0, 1)] * 4, [(i, i + 1) for i in range(4)], [None] * 4])
        events = []
        for trigger in triggers[: draw.randint(2, 4)]:
            places = [(role, (i, i + 1)) for n, role in enumerate("abc") for i in [10 * n + 10 + draw.randrange(3)]]
            events.append(("t", trigger, [place for place in places if draw.random() < 0.9]))
        yield "", [event for event in events if event[1] or event[2]]


# ---- which events are found again ------------------------------------------------------------------------------------


def mentions_of(events):
    """Events as (type, {(label, place)})."""
    return [
        (kind, frozenset([(label_of(kind, role), p) for role, p in [(None, trigger)] * bool(trigger) + pairs]))
        for kind, trigger, pairs in events
    ]


def by_items(items):
    """The events in a label, in the form of `mentions_of`."""
    found = [(event.type, (*event.triggers, *event.arguments)) for event in events_in(items)]
    return {(kind, frozenset((items[i][4], items[i][2:4]) for i in numbers)) for kind, numbers in found}


def by_trigger(events):
    """Stored by the trigger, or by the first argument."""
    items = set()
    for _, mentions in events:
        in_order = sorted(mentions, key=lambda mention: (ROLE in mention[0], *mention[1]))
        items |= {(*in_order[0][1], *place, label) for label, place in mentions}
    return by_items(sorted(items))


def by_clique(events):
    """Stored as pairs of mentions; for events of one mention, the pair with itself."""
    found = set()
    for kind in {kind for kind, _ in events}:
        nodes = {mention for of, mentions in events if of == kind for mention in mentions}
        links = {
            frozenset((a[1], b[1]))
            for of, mentions in events
            if of == kind
            for a, b in itertools.product(mentions, repeat=2)
        }
        graph = networkx.Graph()
        graph.add_nodes_from(nodes)
        graph.add_edges_from((a, b) for a, b in itertools.combinations(nodes, 2) if frozenset((a[1], b[1])) in links)
        found |= {(kind, frozenset(clique)) for clique in networkx.find_cliques(graph)}
    return found


def shares(texts):
    """{way: (share of all events that are found again, share of those in texts with several events of their type)}"""
    texts = [mentions_of(events) for _, events in texts]
    order = ranking(texts)
    ways = {
        "by trigger": by_trigger,
        "by anchor": lambda events: by_items(anchored(events, order)),
        "by clique": by_clique,
    }
    result = {}
    for name, way in ways.items():
        pairs = []
        for events in texts:
            again, kinds = way(events), [kind for kind, _ in events]
            pairs += [(event in again, kinds.count(event[0]) > 1) for event in events]
        several = [right for right, is_one_of_several in pairs if is_one_of_several]
        result[name] = (sum(right for right, _ in pairs) / len(pairs), sum(several) / max(1, len(several)))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=list(SENTENCES), default="en")
    parser.add_argument("--number", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path)
    options = parser.parse_args()
    texts = list(texts_of(options.language, options.number, options.seed))
    if options.output_file:
        rows = (json.dumps(row_of(*text), ensure_ascii=False) + "\n" for text in texts)
        options.output_file.write_text("".join(rows), encoding="utf-8")
    for kind, stored in (("generated", texts), ("shared mentions", shared_mentions(options.number, options.seed))):
        for name, (of_all, several) in shares(stored).items():
            print(f"{kind}, {name}: {of_all:.4f} of all events, {several:.4f} where a text has several of a type")
