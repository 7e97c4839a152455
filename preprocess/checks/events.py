"""Checks of events: which roles the arguments of each event type have."""

from collections import Counter
from collections.abc import Iterator, Sequence

from engine.task.words import ROLE, events_in
from preprocess.checks.base import Check, Context, Splits, Tasks, splits_without
from preprocess.checks.relations import RARE
from preprocess.example import Example, abbreviate, counted
from preprocess.labels.events import shown_events
from preprocess.labels.statistics import LabelStatistics
from preprocess.storage.facts import Facts, FirstRows, Note, Sample

MOST = 20  # types in the summary


class EventFacts(Facts):
    """Statistics of the events of one task."""

    def __init__(self) -> None:
        self.splits: set[str] = set()  # splits with at least one event
        self.types: Counter[str] = Counter()
        self.roles: Counter[str] = Counter()  # {type|role: number of events with such an argument}
        self.first = FirstRows()

    def look(self, split: str, e: Example, name: str) -> None:
        for event in events_in(e[name]):
            self.splits.add(split)
            self.types[event.type] += 1
            for label in {e[name][i][4] for i in event.arguments}:
                self.roles[label] += 1
                if label not in self.first:
                    self.first[label] = f"{e['_where']}: {shown_events(e[name], e['tokens'])}"


class Events(Check):
    def __init__(self, context: Context) -> None:
        self.tasks = {name: EventFacts() for name, kind in context.kinds.items() if kind == "events"}

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        for name, facts in self.tasks.items():
            for e in examples:
                if e[name]:
                    facts.look(split, e, name)

    def lines(self) -> Iterator[str]:
        for name, facts in self.tasks.items():
            ordered = sorted(facts.types.items(), key=lambda item: (-item[1], item[0]))
            for kind, number in ordered[:MOST]:
                roles = [(n, label.partition(ROLE)[2]) for label, n in facts.roles.items() if is_of(label, kind)]
                shown = abbreviate((f"{role} {n:,}" for n, role in sorted(roles, key=lambda x: (-x[0], x[1]))), 6)
                yield f"task {name}: {counted(number, 'event')} {kind} with {shown or 'no arguments'}"
            if len(ordered) > MOST:
                yield f"task {name}: … and {len(ordered) - MOST} more types"

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        for name, facts in self.tasks.items():
            once = [label for label, n in sorted(facts.roles.items()) if n == 1]
            rare = [label for label in once if RARE * facts.types[label.partition(ROLE)[0]] >= 1]
            rows = Sample([f"{facts.first[label]}: {label}" for label in rare])
            yield Note(f"{name}: roles that a type has only once", rows, "check the row; the role is probably wrong")
            yield splits_without(f"{name}: splits without any event", splits, facts.splits)


def is_of(label: str, kind: str) -> bool:
    return label.partition(ROLE)[0] == kind
