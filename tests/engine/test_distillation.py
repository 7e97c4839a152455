"""Distillation: divergences compared with sums over all possible predictions, and runs of main.py."""

import inspect
import itertools
import json
import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from test_trainer import fingerprints, forward_backward, make_trainer, train

import tricks
from config import Config
from data_loader import MyDataLoader, MyDataset
from engine.errors import UserError
from engine.model import crf as crf_module
from engine.model import distributions
from engine.run.signals import Interrupted
from engine.task.task import IGNORE, Task, tasks_to_json
from engine.train import checkpoint
from engine.tricks import soft_targets, teachers
from model_utils import load_with_featurizer
from preprocess.readers.sources import read_unlabelled

WORDS = "please wake play the loudest of songs tomorrow antidisestablishment at seven".split()


TASKS = {
    "intent": Task("classification", labels=["a", "b", "c"]),
    "topics": Task("multilabel", labels=["x", "y", "z"]),
    "score": Task("regression", mean=5.0, std=3.0),
    "slots": Task("tagging", labels=["O", "B-x", "I-x"], unit="word"),
    "parts": Task("spans", labels=["all", "last"], unit="word"),
    "facts": Task("relations", labels=["p", "q"], unit="word"),
}


SLOWER = [(True, 1), (False, 3)]


def draw(generator, high):
    return int(torch.randint(0, high, (), generator=generator))


def row_of(number, generator):
    """Returns a processed row with labels of all task types; some are missing."""
    tokens = [WORDS[draw(generator, len(WORDS))] for _ in range(1 + draw(generator, 4))]
    last = len(tokens) - 1
    return {
        "id": str(number),
        "text": " ".join(tokens),
        "tokens": tokens,
        "intent": "abc"[draw(generator, 3)] if number % 7 else None,
        "topics": [topic for topic in "xyz" if draw(generator, 2)],
        "score": draw(generator, 100) / 10,
        "slots": ["O" if draw(generator, 2) else "B-x" for _ in tokens] if number % 5 else None,
        "parts": [[0, draw(generator, len(tokens)), "all"], [last, last, "last"]],
        "facts": [[0, 0, last, last, "p"], [last, last, 0, draw(generator, len(tokens)), "q"]],
    }


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """Returns a processed folder with a task of each type; some labels are missing."""
    return write_data(tmp_path_factory.mktemp("kinds"), TASKS, seed=3)


def write_data(folder, tasks, seed):
    generator = torch.Generator().manual_seed(seed)
    (folder / "labels.json").write_text(json.dumps(tasks_to_json(tasks)), encoding="utf-8")
    for split, size in (("train", 60), ("dev", 12), ("test", 12)):
        rows = [row_of(number, generator) for number in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def options(every_kind, folder, **more):
    small = dict(
        use_crf=False, hidden_size=32, num_layers=1, vocab_size=300, batch_size=8, epochs=0, device="cpu", dropout=0.1
    )
    return Config(**{**small, "data_path": str(every_kind), "output_dir": str(folder), "do_train": True, **more})


@pytest.fixture(scope="module")
def two_teachers(tmp_path_factory):
    """Returns two untrained teachers with other data and their own tokenizers; only the first has a CRF."""
    folder, made = tmp_path_factory.mktemp("teachers"), []
    theirs = TASKS | {"score": replace(TASKS["score"], mean=3.0, std=1.5)}
    data = write_data(tmp_path_factory.mktemp("theirs"), theirs, seed=4)
    for number, more in enumerate((dict(use_crf=True, vocab_size=60), dict(vocab_size=400, max_length=12))):
        config = options(data, folder, model_version=f"teacher_{number}", random_seed=number, **more)
        trainer = make_trainer(config)
        torch.manual_seed(number)
        for head in trainer.model.output_layer.heads.values():
            for p in head.parameters():
                torch.nn.init.normal_(p, std=0.7)
        trainer.train()
        made.append(config.run_dir)
    return made


# ---- the divergence compared with sums over all predictions ----------------------------------------------------------


def log_probabilities(head, logits, size, temperature):
    """Returns lists of log-probabilities over all possible predictions for one text: over all labels for
    classification, separate ones for each label, span or pair in multi-label tasks, and over all paths for tagging.
    logits: of this text only."""
    kind = type(head).__name__
    scores = logits / temperature
    if kind == "CRFTaggingHead":
        crf, totals = head.crf, []
        for path in itertools.product(range(3), repeat=size):
            steps = sum(crf.transitions[i, j] for i, j in itertools.pairwise(path))
            edges = crf.start_transitions[path[0]] + crf.end_transitions[path[-1]]
            totals.append(sum(scores[t, tag] for t, tag in enumerate(path)) + (steps + edges) / temperature)
        return [torch.stack(totals).log_softmax(0)]
    if kind == "TaggingHead":  # one distribution over paths, because a student can have a CRF
        by_word = scores.log_softmax(1)
        paths = itertools.product(range(3), repeat=size)
        return [torch.stack([sum(by_word[t, tag] for t, tag in enumerate(path)) for path in paths])]
    if kind == "SpanHead":
        width = len(scores)
        pairs, starts, ends = scores[:, :width], scores[:, width : width + 2], scores[:, width + 2 :]
        cells = [(i, j, t) for i in range(size) for j in range(i, size) for t in range(2)]
        scores = torch.stack([pairs[i, j] + starts[i, t] + ends[j, t] for i, j, t in cells])
    if kind == "RelationHead":  # three tables with W + 4 columns each; entities do not end before their start
        width, cells = len(scores), itertools.product(range(size), range(size), range(3), range(2))
        tables = scores.unflatten(1, (3, width + 4))
        cells = [(i, j, n, t) for i, j, n, t in cells if n or i <= j]
        scores = torch.stack(
            [tables[i, n, j] + tables[i, n, width + t] + tables[j, n, width + 2 + t] for i, j, n, t in cells]
        )
    if kind in ("MultilabelHead", "SpanHead", "RelationHead"):
        return [torch.stack([one, torch.zeros_like(one)]).log_softmax(0) for one in scores]
    return [scores.log_softmax(0)]


def mean_divergence(name, teacher_outputs, student_output):
    """Computes the mean over teachers of KL(teacher || student) for one text. Each prediction is (head, logits of its
    words, size, T)."""
    total = 0.0
    for teacher_output in teacher_outputs:
        if name == "score":  # two normal distributions of variance 1, in the student's units
            (teacher, number, *_), (student, own, *_) = teacher_output, student_output
            number = (number * teacher.task.std + teacher.task.mean - student.task.mean) / student.task.std
            total = total + (number - own) ** 2 / 2
            continue
        for p, q in zip(log_probabilities(*teacher_output), log_probabilities(*student_output), strict=True):
            total = total + (p.exp() * (p - q)).sum()
    return total / len(teacher_outputs)


def alone(model, featurizer, example):
    """Returns {task: logits} of a single text."""
    data = MyDataset([example], featurizer, quiet=True)
    assert len(data.lengths) == 1
    return {name: logits[0] for name, logits in model(data.batch([0]).inputs).logits.items()}


def oracle(trainer, batch, folders, weight, temperature, counts):
    """Computes (1 - weight) * loss + weight * T^2 * mean divergence of a batch without dropout, and the gradient."""
    model, data = trainer.model, trainer.train_loader.dataset
    asked = [load_with_featurizer(folder / "checkpoints/best")[:2] for folder in folders]
    output, total = model(batch.inputs, batch.labels, counts["labels"]), 0.0
    for i, row in enumerate(batch.rows.tolist()):
        example = data[row]
        size = len(example["tokens"])
        taught = [alone(teacher.eval(), featurizer, example) for teacher, featurizer in asked]
        for name, head in model.output_layer.heads.items():
            several = [
                (teacher.output_layer.heads[name], logits[name].detach(), size, temperature)
                for (teacher, _), logits in zip(asked, taught)
            ]
            own = (head, output.logits[name][i], size, temperature)
            factor = 1 if name == "score" else temperature**2
            total = total + factor * mean_divergence(name, several, own) / counts["taught"][name]
    loss = (1 - weight) * output.total_loss + weight * total
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss, [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), gradients)]


def largest_error(model, found, expected):
    """Returns the largest relative error of the gradients of one head, or of the encoder."""
    groups = {}
    for (name, _), f, w in zip(model.named_parameters(), found, expected, strict=True):
        groups.setdefault(name.split(".")[2] if "heads" in name else "encoder", []).append((f, w))
    return max(error(*zip(*pairs)) for pairs in groups.values())


def error(found, expected):
    difference = sum((f - w).double().square().sum() for f, w in zip(found, expected))
    return (difference / sum(w.double().square().sum() for w in expected)).sqrt().item()


def taught_counts(batches):
    texts = sum(len(batch.rows) for batch in batches)
    words = sum(int(batch.inputs["word_mask"].sum()) for batch in batches)
    return {"intent": texts, "topics": texts, "score": texts, "slots": words, "parts": texts, "facts": texts}


def compare_with_oracle(every_kind, two_teachers, folder, use_crf, accumulation, **more):
    """Returns (relative error of our gradient compared with the oracle's, our loss, the oracle's loss)."""
    for path in every_kind.joinpath(".cache").glob("teacher-*"):  # results of an earlier version of the code
        path.unlink()
    names = ",".join(map(str, two_teachers))
    given = dict(teacher_weight=0.7, temperature=1.5, dropout=0.0) | more
    config = options(every_kind, folder, use_crf=use_crf, teacher=names, model_version="student", **given)
    trainer = make_trainer(config)
    for head in trainer.model.output_layer.heads.values():
        for p in head.parameters():
            torch.nn.init.normal_(p, std=0.5)
    trainer.model.train()
    group = list(itertools.islice(iter(trainer.train_loader), accumulation))
    labels = trainer.count_labels(group)
    trainer.tricks.before_step(group)
    outputs = [forward_backward(trainer, batch.to("cpu"), labels) for batch in group]
    ours = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainer.model.parameters()]
    theirs, total = [torch.zeros_like(p) for p in ours], 0.0
    for batch in group:
        counts = {"labels": labels, "taught": taught_counts(group)}
        loss, gradients = oracle(trainer, batch, two_teachers, config.teacher_weight, config.temperature, counts)
        theirs, total = [a + b for a, b in zip(theirs, gradients)], total + loss.item()
    return largest_error(trainer.model, ours, theirs), sum(output.total_loss.item() for output in outputs), total


@pytest.mark.parametrize(
    "use_crf, accumulation", [(True, 3), (False, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOWER)]
)
def test_gradient_equals_the_oracle(use_crf, accumulation, every_kind, two_teachers, tmp_path, monkeypatch):
    if not use_crf:  # scores of word pairs, for a few texts at a time
        monkeypatch.setattr(distributions, "DENSE", 500)
    far, loss, expected = compare_with_oracle(every_kind, two_teachers, tmp_path, use_crf, accumulation)
    assert far < 5e-4  # spans with a probability below 0.001 are not stored
    assert loss == pytest.approx(expected, rel=5e-4)


BROKEN = {  # module: [(line, broken)]
    tricks: [(" - self.loss_of_labels(output.losses)", ""), ("self.weight * difference", "difference")],
    distributions: [
        ("return temperature**2 * (normalizers", "return (normalizers"),
        ("F.softplus(logits).sum(-1)", "logits.logsumexp(-1)"),
        ("entropies = self.log_normalizers(scores, inputs) - (statistics", "entropies = -(statistics"),
        ("torch.where(words == 0, crf.start", "torch.where(words < 0, crf.start"),
        ("words == last[rows]", "words == mask.shape[1] - 1"),
        (".sum() + self.expected_transitions(targets, whole)", ".sum()"),
        ("(before @ factors).clamp(min=1e-30)", "(shares @ factors).clamp(min=1e-30)"),
        ("before[:, :, :-1].flatten(1, 2)", "before[:, :, 1:].flatten(1, 2)"),
        ("(crf.log_partition(logits, mask, temperature) * whole)", "(crf.log_partition(logits, mask) * whole)"),
        ("return scores.sigmoid() * self.by_cell(inputs)", "return scores.sigmoid()"),
        ("(F.softplus(scores) * self.by_cell(inputs))", "F.softplus(scores)"),
    ],
    crf_module: [
        ("mask.sum(1) - 1] += end", "-1] += end"),
        ("scores[:, 0] += start", "scores[:, 0] += 0 * start"),
        ("self.marginals = marginals / marginals.sum(2, keepdim=True)", "self.marginals = marginals"),
    ],
    soft_targets: [
        ("taught[row, :size] += 1 / len(teachers)", "taught[row, :size] += 1"),
        ("(logits * other.std + other.mean - own.mean) / own.std", "logits"),
        ("columns = words, ids - words * stride, values", "columns = words, ids, values"),
        ("return SoftTargets(values / len(teachers)", "return SoftTargets(values"),
        (".float() / self.temperature", ".float()"),
    ],
    teachers: [
        ("in zip(self.step_targets, group)])", "in zip(self.step_targets[:1], group)])"),
        ("loss / count", "loss"),
    ],
}


def break_line(monkeypatch, module, old, new):
    """Replaces one line of a module."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{source.count(old)} times in {module.__name__}: {old}"
    room = ModuleType(module.__name__)
    exec(compile(source.replace(old, new), module.__file__, "exec"), room.__dict__)
    places = [(module, room)]
    places += [
        (vars(module)[n], v) for n, v in vars(room).items() if isinstance(v, type) and v.__module__ == room.__name__
    ]
    changed = 0
    for real, broken in places:
        for name, function in vars(broken).items():
            own = vars(real).get(name)
            if inspect.isfunction(function) and inspect.isfunction(own) and same_code(function) != same_code(own):
                for user in (real, teachers):
                    if vars(user).get(name) is own:
                        monkeypatch.setattr(user, name, function)
                changed += 1
    assert changed == 1


def same_code(function):
    code = inspect.unwrap(function).__code__
    return code.co_code, code.co_names, code.co_varnames, repr([c for c in code.co_consts if not inspect.iscode(c)])


@pytest.mark.slow
@pytest.mark.parametrize("module, old, new", [(m, *line) for m, lines in BROKEN.items() for line in lines])
def test_mutation_of_the_divergence_is_detected(module, old, new, every_kind, two_teachers, tmp_path, monkeypatch):
    break_line(monkeypatch, module, old, new)
    far, loss, expected = compare_with_oracle(every_kind, two_teachers, tmp_path, True, 3)
    assert far > 1e-3 or loss != pytest.approx(expected, rel=1e-3)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_more(every_kind, two_teachers, tmp_path):
    """Returns with_more(**options) -> the Config of a student with unlabelled texts, and tricks."""
    more = tmp_path / "more.txt"
    lines = {" ".join(words) for words in itertools.permutations(WORDS[:5], 3)}
    more.write_text("\n".join(sorted(lines)), encoding="utf-8")

    def make(**own):
        names = ",".join(map(str, two_teachers))
        given = dict(teacher=names, unlabelled=str(more), epochs=2, use_crf=True, use_fgm=True, model_version="student")
        return options(every_kind, tmp_path / "output", **{**given, "gradient_accumulation_steps": 2, **own})

    return make


@pytest.mark.parametrize(
    "own",
    [
        dict(),
        pytest.param(dict(precision="bf16", use_ema=True), marks=pytest.mark.slow),
        pytest.param(dict(unlabelled="", streaming=True), marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_exact(own, with_more):
    whole = train(with_more(model_version="whole", **own))
    stopped = with_more(**own)
    trainer = make_trainer(stopped)
    step = trainer.tricks.after_step

    def stop_in_the_second_epoch(finite):
        step(finite)
        if trainer.progress.step == whole.progress.step // 2 + 2:
            trainer.stop.number = 15

    trainer.tricks.after_step = stop_in_the_second_epoch
    trainer.resume()
    with pytest.raises(Interrupted):
        trainer.train()
    train(stopped)
    assert fingerprints(stopped) == fingerprints(with_more(model_version="whole", **own))


def test_teacher_predictions_are_cached_and_rebuilt_if_damaged(with_more, every_kind):
    def caches():
        return {path: path.read_bytes() for path in every_kind.joinpath(".cache").glob("teacher-*.arrow")}

    for path in caches():
        path.unlink()
    train(with_more(model_version="first"))
    first = caches()
    assert len(first) == 2
    before = {path: path.stat().st_ino for path in first}
    train(with_more(model_version="second"))
    assert {path: path.stat().st_ino for path in caches()} == before
    path = min(first)
    damaged = bytearray(first[path])
    damaged[len(damaged) // 2] ^= 255
    path.write_bytes(bytes(damaged))
    train(with_more(model_version="third"))
    assert caches() == first
    runs = [fingerprints(with_more(model_version=name)) for name in ("first", "second", "third")]
    assert all(run["last"]["weights.safetensors"] == runs[0]["last"]["weights.safetensors"] for run in runs)


def test_unlabelled_texts_take_turns_and_labelled_ones_are_in_each_epoch(with_more):
    loader = make_trainer(with_more(unlabelled_ratio=0.5)).train_loader
    data, seen = loader.dataset, []
    assert data.num_labelled == 60 and len(data) == 120
    for epoch in range(2):
        loader.set_position(epoch)
        rows = [row for batch in loader for row in batch.rows.tolist()]
        assert sorted(row for row in rows if row < 60) == list(range(60))
        seen.append({row for row in rows if row >= 60})
        assert len(rows) == 90 and len(loader) == math.ceil(90 / 8)
    assert len(seen[0] | seen[1]) == 60  # each once in two epochs
    batch = data.batch([100])
    assert batch.labels["intent"].tolist() == [IGNORE] and set(batch.labels["slots"].flatten().tolist()) == {IGNORE}
    assert batch.labels["score"].isnan().all() and batch.labels["parts"].tolist() == [[IGNORE]]


@pytest.mark.slow
def test_student_learns_from_unlabelled_texts_alone(sample, tiny, tmp_path):
    """A student without any labels learns to predict like its teacher."""
    teacher = train(tiny(model_version="teacher", epochs=12, use_crf=True, early_stop_patience=0))
    texts = tmp_path / "texts.jsonl"
    texts.write_text((sample / "train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    shown = dict(teacher=str(tmp_path / "output/teacher"), teacher_weight=1.0, unlabelled=str(texts))
    config = tiny(model_version="student", epochs=40, use_crf=True, early_stop_patience=0, **shown)
    student = train(config)
    checkpoint.load_weights(student.model, checkpoint.step_folders(config.run_dir / "checkpoints")[0])
    loader = MyDataLoader(student.train_loader.dataset, 64)
    own, theirs = (trainer.infer(loader, "")[0].labels for trainer in (student, teacher))
    same = sum(a == b for name in own for a, b in zip(own[name], theirs[name]))
    assert same > 0.8 * sum(map(len, own.values()))


def test_teacher_predictions_of_windows_are_merged(every_kind, two_teachers):
    """For each word, the teacher's prediction is taken from the window in which the word is farther from an edge."""
    folder = two_teachers[1] / "checkpoints/best"  # --max_length 12
    model, featurizer, _ = load_with_featurizer(folder)
    model.eval()
    tokens = [WORDS[i % 5] for i in range(24)]
    example = {"id": "0", "tokens": tokens, "text": " ".join(tokens)} | dict.fromkeys(TASKS)
    data = MyDataset([example], featurizer, quiet=True)
    assert len(data.lengths) > 2
    student = model.output_layer.heads
    teacher = soft_targets.Teacher(folder, student, list(TASKS), 1.0)
    table = teacher.run_model(model, MyDataLoader(data, 2), torch.device("cpu"), None)
    teacher.columns = {name: [soft_targets.lists_of(table[name])] for name in table.schema.names}
    found = teacher.find("slots", 0, 0, 24)
    assert len(found.entropies) == 24 and set(found.statistics.words.tolist()) == set(range(24))
    firsts, sizes = data.columns["first_word"].tolist(), data.columns["word_starts"].lengths.tolist()
    middle = firsts[1] + sizes[1] // 2
    own = model(data.batch([1]).inputs).logits["slots"][0, middle - firsts[1]].softmax(0)
    assert found.statistics.values[found.statistics.words == middle].tolist() == pytest.approx(own.tolist(), abs=1e-5)
    part = teacher.find("slots", 0, 5, 4)
    assert set(part.statistics.words.tolist()) == {0, 1, 2, 3}
    size, at = sizes[1] - 2, middle - firsts[1] - 1  # inside the middle window, which has more words on both sides
    pairs = teacher.find("facts", 0, firsts[1] + 1, size).statistics
    pairs = pairs.where(pairs.words == at)
    scores = student["facts"].distribution.by_word(model(data.batch([1]).inputs).logits["facts"])[0].sigmoid()
    expected = scores[at + 1].unflatten(0, (-1, 6))[1 : size + 1]  # (second word, type)
    expected[:at, :2] = 0  # no entity ends before its start
    seconds, types = at + pairs.ids // 6, pairs.ids % 6
    assert {*zip(seconds.tolist(), types.tolist())} == {*map(tuple, expected.gt(1e-3).nonzero().tolist())}
    assert pairs.values.tolist() == pytest.approx(expected[seconds, types].tolist(), abs=1e-5)
    assert seconds.min() < at < seconds.max()


def test_invalid_teachers_are_one_line_errors(with_more, two_teachers, every_kind, tiny, tmp_path):
    def refused(config):
        with pytest.raises(UserError) as error:
            make_trainer(config)
        return str(error.value)

    assert "neither a run with" in refused(with_more(teacher=str(tmp_path / "nothing")))
    train(tiny(model_version="other", epochs=0))
    assert "different labels for 'intent'" in refused(with_more(teacher=str(tmp_path / "output/other")))
    assert "has none of the tasks" in refused(tiny(model_version="s", teacher=str(only_score(two_teachers, tmp_path))))
    with pytest.raises(UserError, match=r"must be between 0\.01 and 1000"):
        with_more(temperature=0.0)
    with pytest.raises(UserError, match="requires --teacher"):
        with_more(teacher="")
    with pytest.raises(UserError, match="leave out --streaming"):
        with_more(streaming=True)


def test_task_without_a_teacher_keeps_its_loss(every_kind, two_teachers, tmp_path):
    """If a student with all task types is taught only spans and tags, the gradients of its other heads do not
    change."""
    folder, gone = tmp_path / "some", ("intent", "topics", "score")
    tasks = {name: task for name, task in TASKS.items() if name not in gone}
    folder.mkdir()
    (folder / "labels.json").write_text(json.dumps(tasks_to_json(tasks)), encoding="utf-8")
    for split in ("train", "dev"):
        rows = map(json.loads, (every_kind / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
        kept = [{key: value for key, value in row.items() if key not in gone} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    teacher = train(options(folder, tmp_path, model_version="knows_some"))
    gradients = []
    for names in ("", str(teacher.config.run_dir)):
        config = options(every_kind, tmp_path, model_version="s", teacher=names, teacher_weight=1.0, dropout=0.0)
        trainer = make_trainer(config)
        group = list(itertools.islice(iter(trainer.train_loader), 1))
        labels = trainer.count_labels(group)
        trainer.tricks.before_step(group)
        forward_backward(trainer, group[0], labels)
        gradients.append({name: p.grad.clone() for name, p in trainer.model.output_layer.named_parameters()})
    for name in gradients[0]:
        same = torch.allclose(gradients[0][name], gradients[1][name], rtol=1e-4, atol=1e-7)
        assert same == name.startswith(tuple(f"heads.{task}." for task in gone)), name


def test_unlabelled_texts_depend_on_their_column(with_more, tmp_path):
    table = tmp_path / "more.csv"
    table.write_text("a,b\nwake me,play songs\n", encoding="utf-8")
    texts = []
    for column in "ab":
        data = make_trainer(with_more(unlabelled=str(table), text_column=column)).train_loader.dataset
        texts.append((data[60]["text"], data.fingerprint, data.source_fingerprint()))
    assert [text for text, *_ in texts] == ["wake me", "play songs"]
    assert len(set(texts[0] + texts[1])) == 6


def test_unlabelled_texts_get_the_form_of_train(tmp_path):
    """Single texts are rejected if train has pairs. Texts are tokenized, and tokens joined, to match train."""
    tasks, lines = {"intent": TASKS["intent"]}, "wake me at seven\n"
    (tmp_path / "lines.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "tokens.jsonl").write_text(json.dumps({"tokens": lines.split()}) + "\n", encoding="utf-8")

    def read(name, form):
        return list(read_unlabelled(Config(teacher="x", unlabelled=str(tmp_path / name)), tasks, form))

    assert read("lines.txt", {"tokens"})[0]["tokens"] == lines.split()
    assert read("tokens.jsonl", set()) == [{"id": "0", "text": lines.strip(), "intent": None}]
    with pytest.raises(UserError, match="train has pairs of texts"):
        read("lines.txt", {"text_pair"})


def only_score(two_teachers, tmp_path):
    """Returns a checkpoint that has only the task `score`."""
    from engine.run.files import replace_folder, write_json

    folder = tmp_path / "scores"

    def fill(temporary):
        write_json(temporary / "labels.json", {"score": TASKS["score"].to_json()})
        write_json(temporary / "args.json", {})

    replace_folder(folder, fill)
    return folder


def test_resume_requires_the_same_teachers(with_more, two_teachers):
    names = list(map(str, two_teachers))
    config = with_more(teacher=names[0], epochs=1)
    train(config)
    trainer = make_trainer(with_more(teacher=names[1], epochs=1))
    with pytest.raises(UserError, match="teachers' checkpoints have changed"):
        trainer.resume()
    make_trainer(with_more(teacher=names[1], epochs=1, force_resume=True)).resume()
