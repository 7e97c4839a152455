"""A collection of broken and correct models for `main.py --debug`: declarations and data.

The models are in broken_models.py and correct_models.py. test_model_check.py and benchmarks/model_checks.py use them.
"""

import dataclasses
import json
import random
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

import main as main_module
import model_utils
from config import Config, seed_torch
from data_loader import MyDataset
from data_process import DataConfig, process
from tools.check import model_check
from tools.check.case import Case

TINY = dict(hidden_size=32, num_layers=1, epochs=2, batch_size=8, vocab_size=500, log_steps=2, lr=3e-3, device="cpu")
TINY |= dict(use_crf=False, max_length=32)
CHECKS = {check.__name__.removeprefix("check_"): (name, look_at) for name, check, look_at in model_check.CHECKS}


@dataclasses.dataclass(frozen=True)
class Model:
    """An edit of the template. apply(replace) makes the edit."""

    name: str
    apply: Callable[..., None]
    check: str = ""  # broken models: the function in tools/check that must detect the error
    words: str = ""  # regular expression that the message or hint of this check must match
    data: str = "grades"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


BROKEN: list[Model] = []
CORRECT: list[Model] = []


def declare(models: list[Model], check: str = "", words: str = "", **more: Any) -> Callable[[Any], Any]:
    """Returns a decorator for a Head, which is used for tasks of type `kind` (default: classification), or for a
    function, which is called with replace(owner, name, value), where owner is an object or a dict."""
    kind, data = more.pop("kind", "classification"), more.pop("data", "grades")

    def add(edit: Any) -> Any:
        if isinstance(edit, type):
            models.append(
                Model(edit.__name__, lambda replace: replace(model_utils.HEADS, kind, edit), check, words, data, more)
            )
        else:
            models.append(Model(edit.__name__, edit, check, words, data, more))
        return edit

    return add


def broken(check: str, words: str = "", **more: Any) -> Callable[[Any], Any]:
    return declare(BROKEN, check, words, **more)


def correct(**more: Any) -> Callable[[Any], Any]:
    return declare(CORRECT, **more)


# ---- data ------------------------------------------------------------------------------------------------------------

WORDS = "lovely great fine nice plain odd dull awful poor grim film book song meal play trip".split()
KINDS: dict[str, dict[str, str]] = {
    "grades": dict(label_column="stars", label_type="stars=classification"),
    "numbers": dict(label_column="stars", label_type="stars=classification", extra_columns="age,price"),
    "two": dict(label_column="mood", label_type="mood=classification"),
    "topics": dict(label_column="topics"),
    "scores": dict(label_column="score"),
    "pairs": dict(label_column="score", text_pair_column="second"),
    "both": dict(label_column="stars,score", label_type="stars=classification"),
    "tags": dict(label_column="tags"),
    "marked": dict(label_column="relation", text_column="marked"),
    "facts": {},
}
FACTS = {"type": "relations", "labels": ["beats", "made of", "near"], "counts": [50, 60, 60], "unit": "word"}


@cache
def folder_of(kind: str, root: str) -> str:
    """Returns a processed folder with 90 rows of a kind of data."""
    if kind == "facts":
        return facts_in(Path(root) / kind)
    rng, rows = random.Random(0), []
    for n in range(90):
        stars = 1 + n % 5
        words = [WORDS[2 * stars - rng.randint(1, 2)], *rng.choices(WORDS[10:], k=rng.randint(2, 6)), str(n % 9)]
        rng.shuffle(words)
        row = {"text": " ".join(words), "second": " ".join(rng.choices(WORDS, k=rng.randint(2, 6)))}
        row |= {"stars": str(stars), "mood": "good" if stars > 2 else "bad", "score": stars + 0.25 * (n % 3)}
        row |= {"topics": sorted({*words} & {"film", "book", "song"}), "age": 20 + 7 * n % 50, "price": n % 4 + 0.5}
        marked = [f"<e1> {words[0]} </e1>", *words[2:], f"<e2> {words[1]} </e2>"]
        row |= {"marked": " ".join(marked if n % 2 else marked[::-1]), "relation": ["a(e1,e2)", "a(e2,e1)", "b"][n % 3]}
        rows.append(row)
    expected = {*re.split(",", KINDS[kind]["label_column"]), "text", *KINDS[kind].get("extra_columns", "").split(",")}
    expected |= {KINDS[kind].get("text_pair_column"), KINDS[kind].get("text_column")}
    if kind == "tags":
        tags = [
            ["B-kind" if w in WORDS[:10] else "I-kind" if w.isdigit() else "O" for w in r["text"].split()] for r in rows
        ]
        rows = [{"tokens": row["text"].split(), "tags": tags} for row, tags in zip(rows, tags)]
    else:
        text = KINDS[kind].get("text_column", "text")
        rows = [{k: v for k, v in row.items() if k in expected and (k != "text" or k == text)} for row in rows]
    raw = Path(root) / f"{kind}.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    process(DataConfig(input=str(raw), output_dir=f"{root}/{kind}", **KINDS[kind]))
    return f"{root}/{kind}"


def facts_in(folder: Path) -> str:
    """Writes a processed folder of relations in both directions, with spans of two words, pairs with two predicates,
    and texts without relations."""
    rng, splits = random.Random(0), {"train": 90, "dev": 40}
    folder.mkdir()
    for split, size in splits.items():
        rows = []
        for n in range(size):
            a, b, c = rng.sample(WORDS, 3)
            tokens, facts = [
                ([a, "beats", b, "easily"], [[0, 0, 2, 2, "beats"]]),
                (["old", a, "is", "beaten", "by", b], [[5, 5, 0, 1, "beats"]]),
                ([a, "of", b, "and", c], [[0, 0, 2, 2, "made of"], [0, 0, 4, 4, "made of"]]),
                ([a, "near", "and", "of", b, "here"], [[0, 0, 4, 4, "made of"], [0, 0, 4, 4, "near"]]),
                (["only", a], []),
            ][n % 5]
            rows.append({"id": f"{split}{n}", "tokens": tokens, "facts": facts})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "labels.json").write_text(json.dumps({"facts": FACTS}))
    return str(folder)


# ---- checking --------------------------------------------------------------------------------------------------------


def case_of(config: Config, after: Callable[[Any], None] = lambda trainer: None) -> Case:
    """Returns a Case like main.py, but without a trial run. after: function that is called with each new trainer."""
    device = torch.device("cpu")
    data = main_module.load_data(config, device, 64)

    def build(**changes: Any) -> Any:
        changed = dataclasses.replace(data.config, **changes)
        seed_torch(changed.random_seed)
        trainer = main_module.build_trainer(data._replace(config=changed), device)
        after(trainer)
        return trainer

    rows = MyDataset(config.data_dir / "train.jsonl", data.dev_loader.dataset.featurizer, 64)
    return Case(build, rows, None, [])


def run(model: Model, root: str, only: str = "") -> tuple[dict[str, str], dict[str, str]]:
    """Returns {check: message} of the failed checks, and of the undecided checks. only: runs only this check."""
    with ExitStack() as stack, TemporaryDirectory() as output:

        def replace(owner: Any, name: str, value: Any) -> None:
            one = patch.dict(owner, {name: value}) if isinstance(owner, dict) else patch.object(owner, name, value)
            stack.enter_context(one)

        if only:
            first = model_check.CHECKS[0]
            kept = [check for check in model_check.CHECKS if check[0] == CHECKS[only][0] != first[0]]
            replace(model_check, "CHECKS", [first, *kept])
        options = TINY | dict(data_path=folder_of(model.data, root), output_dir=output, model_version="run")
        model.apply(replace)
        case = case_of(Config(**{**options, **model.options}))
        failed = model_check.check_model(case)
    names = {name: check for check, (name, _) in CHECKS.items()}
    return {names[k]: v for k, v in failed.items()}, {names[k]: v for k, v in case.undecided.items()}


def is_found(model: Model, failed: dict[str, str]) -> bool:
    """Returns whether the right check fails, and its message or hint names the cause."""
    return model.check in failed and bool(re.search(model.words, failed[model.check] + CHECKS[model.check][1]))
