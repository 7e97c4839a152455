"""Generates texts with all kinds of overlapping relations, in English and Chinese (for relation_extraction.py).

    python benchmarks/relation_texts.py --language english --output_dir dataset_raw/relations [--train 3000]

A text has one to three clauses. In a clause, a subject has several objects, a pair has two predicates, an entity is
inside another, two entities have relations in both directions, or there is no relation. The names in a text are
distinct. The splits share names, but no person (given name and surname) of dev or test occurs in train.
"""

import argparse
import json
import random
from pathlib import Path

ENGLISH = {
    "given": "Ada Boris Clara Dmitri Elsa Farid Greta Hugo Irina Jonas Karin Leo Mina Nils Olga Pavel".split(),
    "surname": "Abt Berger Corti Duval Engel Fuchs Grau Holm Ivers Jansen Klee Lund Moser Nagel Ott Pohl".split(),
    "company": "Arcon Belvo Cintra Delphin Elvent Fomal Gerdax Helion Inova Jurat Kelvion Lumera".split(),
    "city": "Antwerp Bergen Cadiz Dresden Espoo Florence Genoa Hamburg Izmir Krakow Lyon Malmo".split(),
    "join": ["{} {}", "The University of {}", " . "],
    "clauses": {  # text -> relations between its names
        "{a} founded {x} , {y} and {z}": "a founded x; a founded y; a founded z",
        "{a} was born and still lives in {c}": "a born_in c; a lives_in c",
        "{a} graduated from {u}": "a studied_at u; u located_in d",
        "{a} and {b} are siblings": "a sibling_of b; b sibling_of a",
        "{b} followed {a} as the head of {x}": "b successor_of a; a predecessor_of b; b head_of x",
        "{a} works for {x} , which is based in {c}": "a works_for x; x located_in c",
        "{a} visited {c} and wrote to {x}": "",
        "{a} met {b} in {c} after a talk at {u}": "u located_in d",
    },
}
CHINESE = {
    "given": "明远 志强 晓燕 文博 雅琴 国栋 佳怡 海涛 思源 立新 春梅 俊杰".split(),
    "surname": list("赵钱孙李周吴郑王冯陈褚卫"),
    "company": "恒宇科技 云帆集团 天合药业 华岭电子 东启重工 星澜传媒 北辰物流 金穗食品".split(),
    "city": "苏州 兰州 厦门 昆明 大连 洛阳 桂林 宁波 赣州 烟台".split(),
    "join": ["{1}{0}", "{}大学", "。"],
    "clauses": {
        "{a}创办了{x}、{y}和{z}": "a 创办 x; a 创办 y; a 创办 z",
        "{a}出生并定居于{c}": "a 出生地 c; a 居住地 c",
        "{a}毕业于{u}": "a 毕业院校 u; u 位于 d",
        "{a}和{b}是兄妹": "a 兄妹 b; b 兄妹 a",
        "{b}接替{a}出任{x}总经理": "b 前任 a; a 继任 b; b 总经理 x",
        "{a}在{x}工作，{x}的总部设在{c}": "a 任职 x; x 位于 c",
        "{a}去过{c}，还给{x}写过信": "",
        "{a}在{u}的讲座后遇见了{b}": "u 位于 d",
    },
}
LANGUAGES = {"english": ENGLISH, "chinese": CHINESE}
SPLITS = {"train": 0.8, "dev": 0.1, "test": 0.1}


def clause(language, template, relations, persons, generator):
    """Generates a clause. Returns (text, [(subject, predicate, object)] with character offsets)."""
    person, university, _ = language["join"]
    names = dict(zip("ab", (person.format(*pair) for pair in generator.sample(persons, 2))))
    names |= zip("xyz", generator.sample(language["company"], 3))
    names |= zip("cd", generator.sample(language["city"], 2))
    names["u"] = university.format(names["d"])
    text, places = "", {}
    for piece in template.replace("{", "\0{").replace("}", "}\0").split("\0"):
        if piece.startswith("{"):
            name = piece[1:-1]
            places.setdefault(name, (len(text), len(text) + len(names[name])))
            piece = names[name]
        text += piece
    if "u" in places:  # the city is inside the university's name
        start = places["u"][0] + names["u"].index(names["d"])
        places["d"] = (start, start + len(names["d"]))
    triples = [triple.split() for triple in relations.split(";") if triple.strip()]
    return text, [(places[subject], predicate, places[object_]) for subject, predicate, object_ in triples]


def text_of(language, persons, generator):
    """Generates a row with a text and its relations, in a format that data_process.py reads."""
    text, found = "", []
    for template, relations in generator.sample(sorted(language["clauses"].items()), generator.randint(1, 3)):
        text += language["join"][2] if text else ""
        own, triples = clause(language, template, relations, persons, generator)
        found += [
            ((s[0] + len(text), s[1] + len(text)), p, (o[0] + len(text), o[1] + len(text))) for s, p, o in triples
        ]
        text += own

    def mention(ends):
        return {"text": text[slice(*ends)], "start": ends[0], "end": ends[1]}

    relations = [{"subject": mention(s), "predicate": p, "object": mention(o)} for s, p, o in found]
    return {"text": text, "relations": relations}


def write(folder, name, number, seed=0):
    """Writes train with `number` rows, and dev and test with a fifth as many."""
    language, generator = LANGUAGES[name], random.Random(f"{name} {seed}")
    persons = [(given, surname) for given in language["given"] for surname in language["surname"]]
    generator.shuffle(persons)
    folder.mkdir(parents=True, exist_ok=True)
    begin = 0
    for split, share in SPLITS.items():
        own = persons[begin : begin + round(share * len(persons))]
        begin += len(own)
        rows = [text_of(language, own, generator) for _ in range(number if split == "train" else number // 5)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=LANGUAGES, default="english")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--train", type=int, default=3000, help="rows of train")
    options = parser.parse_args()
    write(options.output_dir, options.language, options.train)


if __name__ == "__main__":
    main()
