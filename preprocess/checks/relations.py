"""Checks of relations: the entity types that each predicate connects, and relations of an entity with itself."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import product

from preprocess.checks.base import Check, Context, Splits, Tasks, splits_without
from preprocess.example import Example, abbreviate
from preprocess.labels.relations import shown_triple
from preprocess.labels.statistics import LabelStatistics
from preprocess.storage.facts import Facts, Note, Sample

Joined = tuple[str, str, str]  # (predicate, type of the subject, type of the object)
RARE = 0.05  # a pair of types is suspicious below this share of the usual pair of its predicate


class RelationFacts(Facts):
    """Statistics of the relations of one task."""

    def __init__(self) -> None:
        self.splits: set[str] = set()  # splits with at least one relation
        self.reflexive = Sample()
        self.outside = Sample()
        self.joined: Counter[Joined] = Counter()
        self.rows: dict[Joined, Sample] = defaultdict(Sample)

    def look(self, split: str, e: Example, name: str, entities: str) -> None:
        """Adds the relations of an example. entities: the task with the types of subjects and objects, or ""."""
        types: dict[tuple[int, int], list[str]] = defaultdict(list)
        for first, last, kind in (e[entities] or ()) if entities else ():
            types[first, last].append(kind)
        for item in e[name]:
            row = f"{e['_where']}: {shown_triple(item, e['tokens'])}"
            subject, obj = tuple(item[:2]), tuple(item[2:4])
            self.splits.add(split)
            if subject == obj:
                self.reflexive.add(row)
            if entities and e[entities] is not None and not {subject, obj} <= types.keys():
                self.outside.add(row)
            for pair in product(types.get(subject, ()), types.get(obj, ())):
                self.joined[(item[4], *pair)] += 1
                self.rows[(item[4], *pair)].add(row)


class Relations(Check):
    def __init__(self, context: Context) -> None:
        self.tasks = {name: RelationFacts() for name, kind in context.kinds.items() if kind == "relations"}

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        for name, facts in self.tasks.items():
            for e in examples:
                if e[name]:
                    facts.look(split, e, name, context.entities.get(name, ""))

    def lines(self) -> Iterator[str]:
        for name, facts in self.tasks.items():
            for predicate, counts in by_predicate(facts.joined).items():
                pairs = abbreviate((f"{one} → {other} {n:,}" for (one, other), n in counts.most_common()), 4)
                yield f"task {name}: {predicate} connects {pairs}"

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        for name, facts in self.tasks.items():
            advice = "check which mention was meant"
            yield Note(f"{name}: the subject and the object are the same words", facts.reflexive, advice)
            finding = f"{name}: subjects or objects that are not an entity of {tasks[name].entities!r}"
            yield Note(finding, facts.outside, "add them to the entities; otherwise their types cannot be predicted")
            rare = Sample()
            for predicate, counts in by_predicate(facts.joined).items():
                (usual, number), *others = counts.most_common()
                for pair, _ in (each for each in others if each[1] <= RARE * number):
                    usually = f"{' → '.join(pair)}, usually {' → '.join(usual)}"
                    odd = facts.rows[(predicate, *pair)]
                    shown = Sample([f"{row}, {usually}" for row in odd])
                    shown.number = odd.number
                    rare.merge(shown)
            advice = "check the rows; the predicate, its direction or a type is probably wrong"
            yield Note(f"{name}: entity types that a predicate rarely connects", rare, advice)
            yield splits_without(f"{name}: splits without any relation", splits, facts.splits)


def by_predicate(joined: Counter[Joined]) -> dict[str, Counter[tuple[str, str]]]:
    """Returns {predicate: {(type of the subject, type of the object): count}}."""
    found: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for predicate, one, other in sorted(joined):
        found[predicate][one, other] = joined[predicate, one, other]
    return found
