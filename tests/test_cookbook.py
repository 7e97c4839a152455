"""Applies each recipe of docs/cookbook/ to a copy of the repository: trains, evaluates, predicts, kills and resumes a
run bit-exactly, predicts from a moved checkpoint, and runs the checks of --debug."""

import ast
import json
import random
import re
import shlex
import shutil
import signal

import pytest
from conftest import ROOT, read_json
from forks import Forks
from sklearn.datasets import load_digits

PAGES = sorted(page for page in (ROOT / "docs/cookbook").glob("*.md") if page.name != "README.md")
NUM_DIGITS = 300  # rows of digits.csv
IDS = [page.stem for page in PAGES]
MOST_PLACES = {"text_head": 2, "loss": 2, "contrastive_loss": 2, "metric": 2, "trick": 2, "mixup": 2, "file_format": 2}
MOST_PLACES |= {"json_shape": 1, "relation": 1, "own_relation": 1, "bi_encoder": 1, "own_inputs": 3, "digits": 3}
MOST_PLACES |= {"extra_inputs": 3, "optimizer": 3, "library_optimizer": 3, "schedule": 3, "own_encoder": 3}
SMALL = "--device=cpu --epochs=2 --batch_size=8 --save_steps=1 --log_steps=2 --early_stop_patience=0 --hidden_size=32"
SMALL += " --num_layers=1 --vocab_size=500 --max_length=48"


# ---- pages -> edits ------------------------------------------------------------------------------------------------


def edits_of(page):
    """Returns [(file, "at the end" | "above" | "below" | "instead of", line or "", code)] of a page's Python blocks."""
    found = []
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        head, code = block.split("\n", 1)
        match = re.fullmatch(r"# (\S+): (?:(at the end)|(above|below|instead of) `(.+)`)", head)
        assert match, f"{page.name}: a block begins with {head!r}"
        found.append((match[1], match[2] or match[3], match[4] or "", code))
    return found


def apply(edit, folder):
    """Makes one edit. Its line must occur once; the first line of a definition stands for the whole definition."""
    name, where, line, code = edit
    path = folder / name
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if where == "at the end":
        path.write_text("".join(lines) + "\n\n" + code, encoding="utf-8")
        return
    places = [number for number, text in enumerate(lines) if text.startswith(line)]
    assert len(places) == 1, f"{name}: {len(places)} lines begin with {line!r}"
    start, stop = places[0], places[0] + 1
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.stmt) and node.lineno == start + 1:
            stop = node.end_lineno
    first, last = {"above": (start, start), "below": (stop, stop), "instead of": (start, stop)}[where]
    path.write_text("".join([*lines[:first], code, *lines[last:]]), encoding="utf-8")


def edited_copy(page, folder):
    """Copies the repository and makes a page's edits."""
    ignored = shutil.ignore_patterns(".*", "output", "__pycache__", "tests", "sample", "benchmarks", "docs")
    shutil.copytree(ROOT, folder, ignore=ignored)
    for edit in edits_of(page):
        apply(edit, folder)
    return folder


def size_of(page):
    """Returns the numbers of (files, places, lines of code) that a page changes."""
    edits = edits_of(page)
    lines = sum(bool(line.strip()) for *_, code in edits for line in code.splitlines())
    return len({name for name, *_ in edits}), len(edits), lines


def test_the_table_has_the_size_of_each_recipe():
    """docs/cookbook/README.md shows the number of files, places and lines of each recipe."""
    rows = re.findall(
        r"^\| .*\[.*\]\((\w+)\.md\).*\| (\d+) \| (\d+) \| (\d+) \|$", read(ROOT / "docs/cookbook/README.md"), re.M
    )
    assert {name: tuple(map(int, sizes)) for name, *sizes in rows} == {page.stem: size_of(page) for page in PAGES}
    for name, most in MOST_PLACES.items():
        assert size_of(ROOT / f"docs/cookbook/{name}.md")[1] <= most, name


def read(path):
    return path.read_text(encoding="utf-8")


# ---- data of the pages ---------------------------------------------------------------------------------------------


def write_csv(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")


def write_raw(folder):
    """Writes the raw files that the pages' commands read."""
    rng = random.Random(0)
    nouns, good, bad = ["film", "book", "song", "meal"], ["lovely", "great", "fine"], ["dull", "awful", "poor"]
    reviews, pairs, records, calls, relations, orders, families = [], [], [], [], [], [], []
    for n in range(90):
        stars = 1 + n % 5
        text = f"a {rng.choice(good if stars > 3 else bad)} {rng.choice(nouns)} of {rng.choice(nouns)} number {n % 9}"
        reviews.append((text, stars, 20 + (n * 7) % 50, round(3 + 2.5 * (n % 4), 2)))
        noun, other = rng.sample(nouns, 2)
        pairs.append((f"a {noun} that is good", f"the {noun if n % 2 else other} was good", 4.5 if n % 2 else 1.5))
        marks = [{"kind": "thing", "at": {"from": 13, "upto": 12 + len(noun)}}]
        calls.append({"note": {"body": f"call about a {noun} at {n % 9}"}, "marks": marks, "topic": noun})
        way, cause = ("was caused by", "e2,e1") if n % 2 else ("caused", "e1,e2")
        relations.append((f"the <e1>{noun}</e1> number {n % 9} {way} a <e2>{other}</e2>", f'"Cause-Effect({cause})"'))
        one, two = rng.sample(["Ana", "Ben", "Cleo", "Dan"], 2)
        begin, kind = f"{one} {rng.choice(['and', 'met'])} ", n % 3 and "sibling of"
        ends = [{"start": 0, "end": len(one)}, {"start": len(begin), "end": len(begin) + len(two)}]
        found = [{"subject": s, "predicate": kind, "object": o} for s, o in (ends, ends[::-1]) if kind]
        families.append({"text": f"{begin}{two} are {'siblings' if kind else 'friends'} {n % 9}", "relations": found})
        words = [(rng.choice(["red", "big"]), "ADJ") for _ in range(n % 3)] + [(noun, "NOUN"), (str(n % 9), "NUM")]
        order = {"tokens": [word for word, _ in words], "pos": [pos for _, pos in words], "hour": n % 24}
        order |= {"earlier_prices": [2.5 * i for i in range(n % 4)]}
        orders.append(order | {"tags": ["B-item" if pos == "NOUN" else "O" for _, pos in words]})
        records.append(f"verdict: {'good' if stars > 3 else 'bad'}\nstars: {stars}\ntext: {text}")
    write_sections(folder)
    write_csv(folder / "reviews.csv", "text,stars,age,price", reviews)
    write_csv(folder / "pairs.csv", "sentence1,sentence2,score", pairs)
    write_csv(folder / "relations.csv", "text,relation", relations)
    (folder / "calls.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls), encoding="utf-8")
    (folder / "families.jsonl").write_text("".join(json.dumps(row) + "\n" for row in families), encoding="utf-8")
    (folder / "orders.jsonl").write_text("".join(json.dumps(order) + "\n" for order in orders), encoding="utf-8")
    load_digits(as_frame=True).frame[:NUM_DIGITS].to_csv(folder / "digits.csv", index=False)
    (folder / "reviews.rec").write_text("\n".join(records) + "\n", encoding="utf-8")


def write_sections(folder):
    """Writes texts with a section and a topic: one informative word for each, and uninformative words."""
    rng, rows = random.Random(1), []
    for n in range(120):
        section, topics = (("sport", ("tennis", "rowing")), ("arts", ("opera", "dance")))[n % 2]
        topic = topics[n // 2 % 2]
        clues = [rng.choice([f"{section}{k}" for k in range(3)]), rng.choice([f"{topic}{k}" for k in range(3)])]
        rows.append((" ".join([*clues, *rng.choices(["a", "of", "the", "on"], k=3), str(n)]), section, topic))
    write_csv(folder / "sections.csv", "text,section,topic", rows)


# ---- a page from end to end ----------------------------------------------------------------------------------------


class RecipeRun:
    """Runs a page's commands in an edited copy, each in a separate process."""

    def __init__(self, page, sample, tmp_path, server):
        self.copy, self.folder = edited_copy(page, tmp_path / "copy"), tmp_path / "work"
        self.folder.mkdir()
        write_raw(self.folder)
        self.forks = Forks(self.copy, self.folder, server)
        blocks = re.findall(r"^```sh\n(.*?)^```", read(page), re.M | re.S)
        commands = [shlex.split(line)[1:] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        for words in commands:
            if words[0] == "data_process.py":
                self.forks.run(words)
        (flags,) = [words[1:] for words in commands if words[0] == "main.py"]
        data = [] if "--data_path" in flags else ["--data_path", str(sample)]
        self.flags = [*SMALL.split(), *data, *flags]

    def train(self, name):
        return ["main.py", *self.flags, "--model_version", name, "--resume"]

    def kill(self, name, step):
        """Trains until the checkpoint of a step exists, and kills the process."""
        checkpoints = str(self.folder / f"output/{name}/checkpoints")
        self.forks.run(self.train(name), code=-signal.SIGKILL, kill_at=[checkpoints, step])

    def sums(self, name):
        """Returns everything that must be equal: weights, training states, metrics and predictions."""
        run = self.folder / f"output/{name}"
        last = sorted((run / "checkpoints").glob("step_*"))[-1]
        manifests = [read_json(path / "manifest.json") for path in (run / "checkpoints/best", last)]
        weights = [{key: value for key, value in sums.items() if "safetensors" in key} for sums in manifests]
        return weights, last.name, read(run / "metrics.jsonl"), read(run / "predictions.csv"), read(run / "eval.json")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_a_page_runs_from_end_to_end(page, sample, tmp_path, fork_server):
    recipe = RecipeRun(page, sample, tmp_path, fork_server)
    with recipe.forks:
        recipe.forks.run(recipe.train("whole"))
        scores = read_json(recipe.folder / "output/whole/eval.json")
        assert scores["dev"] and scores["test"]
        recipe.kill("stopped", 5)
        recipe.forks.run(recipe.train("stopped"))
        assert recipe.sums("stopped") == recipe.sums("whole")
        predict_elsewhere(recipe, tmp_path / "elsewhere")
        checked = recipe.forks.run(
            ["main.py", *[word for word in recipe.flags if not word.startswith("--do_")], "--debug"]
        )
        assert "checks passed" in checked and "FAILED" not in checked, checked


def predict_elsewhere(recipe, elsewhere):
    """Moves the checkpoint, deletes the run, and labels texts."""
    shutil.move(recipe.folder / "output/whole/checkpoints/best", elsewhere)
    shutil.rmtree(recipe.folder / "output/whole")
    data = recipe.folder / recipe.flags[recipe.flags.index("--data_path") + 1]
    with_text = "none" not in recipe.flags  # --encoder none
    texts = [as_input(json.loads(line), with_text) for line in read(data / "test.jsonl").splitlines()]
    (recipe.folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    flags = ["--checkpoint", elsewhere, "--predict_file", "texts.jsonl", "--predict_output", "labelled.jsonl"]
    recipe.forks.run(["main.py", "--do_predict", "--device", "cpu", *flags])
    assert len(read(recipe.folder / "labelled.jsonl").splitlines()) == len(texts)


def as_input(row, with_text=True):
    """Converts a row of the test split to a row of a prediction file."""
    texts = {key: row[key] for key in ("text", "tokens", "text_pair") if key in row and with_text}
    return texts | row.get("extras", {})
