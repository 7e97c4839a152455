"""--few_shot: losses and label frequencies compared with plain definitions, automatic choice, and resuming."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import TINY, read_json
from safetensors.torch import load_file
from test_automatic import run, stop_run
from test_trainer import fingerprints, forward_backward, make_trainer
from torch import nn
from transformers import BertConfig, BertModel

import main as main_module
from config import Config, seed_torch
from data_loader import MyDataLoader, MyDataset
from data_process import DataConfig, process
from engine.data.features import Featurizer
from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.predict import load
from engine.run.command_line import parse_args
from engine.task.hierarchy import nodes_on
from engine.task.task import IGNORE, Task
from engine.train.automatic import FEW_TEXTS, TrainingFacts, resolve_training_options
from engine.tricks.few_labels import (
    Contrast,
    LabelShift,
    contrastive_loss,
    differ,
    label_overlap,
    label_sets,
    temperature_at,
)
from engine.tricks.trick import Tricks
from model_utils import HeadOptions, MyModel
from preprocess.schema import training_texts
from tricks import build_tricks

LABELS = ("sport", "sport##football", "sport##tennis", "news", "news##local")
CPU = torch.device("cpu")
LONG = {"long_text": "windows", "max_length": 8}  # tokens


def plain_loss(vectors, sets, temperature):
    """Computes the contrastive loss term by term. sets: the set of labels of each text, or None without labels"""
    unit = [v / np.linalg.norm(v) for v in vectors.astype(float)]
    losses = []
    for i, own in enumerate(sets):
        others = [j for j, theirs in enumerate(sets) if j != i and theirs is not None]
        if own is None or not others:
            continue
        scores = {j: math.exp(unit[i] @ unit[j] / temperature) for j in others}
        alike = {j: 1.0 if own == sets[j] else len(own & sets[j]) / len(own | sets[j]) for j in others}
        if sum(alike.values()):
            terms = [a * -math.log(scores[j] / sum(scores.values())) for j, a in alike.items()]
            losses.append(sum(terms) / sum(alike.values()))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("hierarchy", ["", "##"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_of_classes_and_paths_equals_the_definition(hierarchy, seed):
    rng = np.random.default_rng(seed)
    labels, vectors = rng.integers(-1, 5, 12), rng.normal(size=(12, 6)).astype(np.float32)
    sets = [None if i < 0 else set(nodes_on(LABELS[i], hierarchy)) for i in labels]
    ids = torch.tensor(np.where(labels < 0, IGNORE, labels))
    alike = label_overlap(ids, label_sets(Task("classification", LABELS, hierarchy=hierarchy)), ids >= 0)
    found = contrastive_loss(torch.tensor(vectors), alike, ids >= 0, 0.3)
    assert float(found) == pytest.approx(plain_loss(vectors, sets, 0.3), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_loss_of_label_sets_equals_the_definition(seed):
    """Texts with an empty set of labels are similar to each other; unlabelled texts are ignored."""
    rng = np.random.default_rng(seed)
    labels, vectors = rng.integers(0, 2, (12, 3)), rng.normal(size=(12, 6)).astype(np.float32)
    labels[:2], labels[2] = 0, IGNORE
    sets = [None if row[0] < 0 else set(np.flatnonzero(row)) for row in labels]
    ids = torch.tensor(labels)
    alike = label_overlap(ids, label_sets(Task("multilabel", LABELS[:3])), ids[:, 0] >= 0)
    found = contrastive_loss(torch.tensor(vectors), alike, ids[:, 0] >= 0, 0.3)
    assert float(found) == pytest.approx(plain_loss(vectors, sets, 0.3), rel=1e-5)


@pytest.mark.parametrize("labels", [[0, 1, 2], [IGNORE, IGNORE, 1], [IGNORE] * 3])
def test_loss_and_gradient_are_zero_without_similar_texts(labels):
    ids, vectors = torch.tensor(labels), torch.randn(3, 4, requires_grad=True)
    loss = contrastive_loss(vectors, label_overlap(ids, torch.eye(3), ids >= 0), ids >= 0, 0.1)
    loss.backward()
    assert loss == 0 and not vectors.grad.any()


@pytest.mark.parametrize("length", [{}, LONG], ids=["whole", "windows"])
def test_contrastive_gradient_with_accumulation(length, tiny):
    """Compares the trick's gradient with plain autograd through the heads' input vectors."""
    options = dict(few_shot=True, dropout=0.0, class_weights="balanced", task_weights="intent=2", pooling="mean")
    config = tiny(**options, **length)
    seed_torch(1)
    trainer = main_module.build_trainer(main_module.load_data(config, CPU), CPU)
    model, data = trainer.model, trainer.train_loader.dataset
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # otherwise the vectors are almost equal
    (contrast,) = (trick for trick in trainer.tricks if isinstance(trick, Contrast))
    assert list(contrast.heads) == ["intent"]
    group = [data.batch(range(0, 12)), data.batch(range(12, 32))]
    counts = [model.count_labels(batch.inputs, batch.labels) for batch in group]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}

    def gradients(tricks):
        trainer.tricks = tricks
        model.zero_grad()
        for batch in group:
            forward_backward(trainer, batch, totals)
        return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}

    with_it, without = gradients(Tricks([contrast])), gradients(Tricks())
    loss = 0.0
    for batch, count in zip(group, counts):
        unit, labels = nn.functional.normalize(model.embed(batch.inputs), dim=1), batch.labels["intent"]
        terms = []
        for i, label in enumerate(labels):
            others = [j for j in range(len(unit)) if j != i]
            scores = torch.stack([unit[i] @ unit[j] for j in others]) / 0.1
            same = labels[others] == label
            terms += [-scores.log_softmax(0)[same].mean()] if same.any() else []
        loss = loss + 2 * count["intent"] / totals["intent"] * sum(terms) / len(terms)
    names = [name for name in without if "heads." not in name]
    parameters = dict(model.named_parameters())
    expected = dict(zip(names, torch.autograd.grad(loss, [parameters[name] for name in names])))
    scale = sum(w.square().sum() for w in expected.values()).sqrt()
    error = sum((with_it[name] - without[name] - expected[name]).square().sum() for name in names).sqrt()
    assert scale > 0.01 and error <= 1e-3 * scale
    assert all(torch.equal(with_it[name], without[name]) for name in without if name not in names)


def test_prior_shift_follows_bayes_rule():
    """A head that knows p(x | c) and the frequencies in train has, after the shift, the posterior of dev."""
    labels, rng = ("a", "b", "c"), np.random.default_rng(0)
    train, dev = np.array([30, 30, 30]), np.array([200, 30, 5])
    tasks = {"y": Task("classification", labels, counts=train.tolist())}
    featurizer, loaders = Featurizer(train_tokenizer(lambda: ["some text"], 50), tasks, 8), []
    for counts in (train, dev):
        names = np.repeat(labels, counts).tolist()
        rows = [{"id": str(i), "text": "some text", "y": name} for i, name in enumerate(names)]
        loaders.append(MyDataLoader(MyDataset(rows, featurizer, quiet=True), 8))
    model = MyModel(nn.Identity(), 2, tasks, HeadOptions(dropout=0.0))
    means, x = rng.normal(size=(3, 2)), rng.normal(size=(50, 2))
    density = np.exp(-0.5 * ((x[:, None] - means) ** 2).sum(2))

    def posterior(counts):
        weighted = density * (counts + 1) / (counts + 1).sum()
        return weighted / weighted.sum(1, keepdims=True)

    linear = model.output_layer.heads["y"].linear
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(means))
        linear.bias.copy_(torch.tensor(np.log((train + 1) / (train + 1).sum()) - 0.5 * (means**2).sum(1)))
    before, trick = linear.bias.detach().clone(), LabelShift(model)
    trick.begin(*loaders, Config(init_from="a run, whose biases are adjusted already"))
    assert not trick.shifts
    trick.begin(*loaders, Config())

    def predict():
        return linear(torch.tensor(x, dtype=torch.float32)).softmax(1).detach().numpy()

    np.testing.assert_allclose(predict(), posterior(train), atol=1e-5)
    few = torch.zeros(19, 3), torch.zeros(19, dtype=torch.int64)  # too few to fit a temperature
    with pytest.raises(KeyError), trick.swap_weights():
        trick.adapt_to_dev(lambda: {"y": few})
        np.testing.assert_allclose(predict(), posterior(dev), atol=1e-5)
        raise KeyError
    assert torch.equal(linear.bias, before)


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_prior_shift_scales_with_the_logits(factor):
    """Logits that are `factor` times Bayes' rule get `factor` times the shift, so predictions do not change."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.tensor([1.5, 0.0, -2.0])
    logits = 3 * torch.randn(20_000, 3, generator=generator)
    labels = torch.multinomial((logits + shift).softmax(1), 1, generator=generator).squeeze(1)
    labels[::10] = IGNORE
    assert temperature_at(factor * logits, labels, shift) == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize(
    "dev, train, expected",
    [
        ([71, 9, 5, 15], [8, 8, 8, 8], True),
        ([12, 8, 11, 9], [8, 8, 8, 8], False),  # such counts occur by chance
        ([100, 0], [100, 0], False),
        ([0, 0], [8, 8], False),  # dev has none of these labels
    ],
)
def test_frequencies_must_differ_significantly(dev, train, expected):
    assert differ(torch.tensor(dev, dtype=torch.float64), torch.tensor(train, dtype=torch.float64)) == expected


@pytest.mark.parametrize("labels, train, dev", [(4, 60, 100), (21, 136, 100), (77, 300, 30), (150, 600, 50)])
def test_false_positive_rate_of_the_frequency_test_is_one_percent(labels, train, dev):
    """Also if most labels are rare."""
    rng, shares = np.random.default_rng(0), 1 / np.arange(1, labels + 1)
    shares /= shares.sum()
    pairs = [[torch.tensor(rng.multinomial(n, shares)).double() for n in (dev, train)] for _ in range(1000)]
    assert sum(differ(*pair) for pair in pairs) <= 20


# ---- when it is chosen -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    shape = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
    tokenizer = train_tokenizer(lambda: training_texts(sample / "train.jsonl"), 400)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("words, expected", [("", None), ("--few_shot", True), ("--no_few_shot", False)])
@pytest.mark.parametrize("more, value", [("auto", None), ("True", True), ("no", False)])
def test_few_shot_flag_accepts_auto(words, expected, more, value):
    assert parse_args(Config, words.split()).few_shot is expected
    assert parse_args(Config, ["--few_shot", more]).few_shot is value


@pytest.mark.parametrize(
    "task, expected",
    [
        (Task("classification", ["a", "b"], counts=[FEW_TEXTS - 1, 1]), True),
        (Task("classification", ["a", "b"], counts=[FEW_TEXTS, 1]), False),
        (Task("multilabel", ["a", "b"], counts=[FEW_TEXTS, FEW_TEXTS], rows=FEW_TEXTS), True),
        (Task("classification", ["a", "b"]), False),  # written by a version without counts
        (Task("tagging", ["O", "B-x"], counts=[8, 8], unit="word"), False),
        (Task("regression"), False),
    ],
)
def test_auto_few_shot_needs_few_texts_and_a_pretrained_encoder(task, expected):
    model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))
    facts = TrainingFacts(model, CPU, {"x": task}, 16, 2)
    for path in ("some", ""):
        config = resolve_training_options(Config(pretrain_model_path=path), facts)
        assert config.few_shot == (expected and path != "")
    for given in (True, False):
        assert resolve_training_options(Config(few_shot=given), facts).few_shot == given


def test_auto_few_shot_is_off_with_other_task_types():
    model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))
    tasks = {"x": Task("classification", ["a", "b"], counts=[8, 8]), "y": Task("tagging", ["O", "B-x"], unit="word")}
    config = resolve_training_options(Config(pretrain_model_path="some"), TrainingFacts(model, CPU, tasks, 16, 2))
    assert config.few_shot is False


@pytest.fixture
def few(tiny, sample, pretrained, tmp_path):
    """Returns few(**options) -> the Config of a run that classifies the sample's texts, with a pretrained encoder."""
    folder = tmp_path / "intents"
    folder.mkdir()
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_bytes((sample / f"{split}.jsonl").read_bytes())
    (folder / "labels.json").write_text(json.dumps({"intent": read_json(sample / "labels.json")["intent"]}))
    given = dict(do_train=True, pretrain_model_path=pretrained, data_path=str(folder), save_steps=2)
    return lambda **options: tiny(**given, **options)


def test_few_shot_resume_is_bit_exact_and_keeps_auto(few, monkeypatch):
    whole = few(model_version="whole")
    assert "--few_shot auto: on for 60 labelled texts" in run(whole)
    assert read_json(whole.run_dir / "args.json")["few_shot"] is True
    stop_run(few(), 11, monkeypatch)
    monkeypatch.setattr("engine.train.automatic.FEW_TEXTS", 10)
    again = few(resume=True)
    assert "--few_shot auto: True, as when the run began" in run(again)
    assert fingerprints(again) == fingerprints(whole)
    with pytest.raises(UserError, match="few_shot was True, is False"):
        main_module.main(few(resume=True, few_shot=False))


def test_run_of_an_earlier_version_resumes_without_few_shot(few, monkeypatch):
    whole = few(model_version="whole", few_shot=False)
    run(whole)
    config = few(few_shot=False)
    stop_run(config, 11, monkeypatch)
    for path in (config.run_dir / "args.json", *config.run_dir.glob("checkpoints/*/args.json")):
        options = read_json(path)
        del options["few_shot"]
        path.write_text(json.dumps(options))
    run(few(resume=True))
    assert fingerprints(config)["last"] == fingerprints(whole)["last"]


def test_few_shot_off_changes_nothing(tiny):
    """From scratch, auto is off; turning it on changes the weights."""
    weights = {}
    for few_shot in (None, False, True):
        config = tiny(do_train=True, few_shot=few_shot, epochs=1, model_version=str(few_shot))
        log = run(config)
        weights[few_shot] = (config.run_dir / "checkpoints/best/weights.safetensors").read_bytes()
        assert ("no contrastive loss for slots" in log) == bool(few_shot)
    assert weights[None] == weights[False] != weights[True]


# ---- data of all kinds -----------------------------------------------------------------------------------------------


def processed(tmp_path, rows, **options):
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    process(DataConfig(input=str(raw), output_dir=str(tmp_path / "data"), **options))
    return tmp_path / "data"


def trained(tmp_path, data, **options):
    config = Config(
        **{**TINY, "few_shot": True, **options}, data_path=str(data), output_dir=str(tmp_path), do_train=True
    )
    return config, run(config)


@pytest.mark.parametrize("streaming", [False, True])
def test_prior_shift_is_saved_in_best_but_not_used_in_training(streaming, tmp_path):
    """dev has realistic frequencies; train has 12 rows per label."""
    rows = [{"text": f"{label} {i}", "label": label, "split": "train"} for label in "abc" for i in range(12)]
    rows += [{"text": f"{'aaaaaaaaab'[i % 10]} x{i}", "label": "aaaaaaaaab"[i % 10], "split": "dev"} for i in range(60)]
    data = processed(tmp_path, rows)
    config, log = trained(tmp_path, data, epochs=1, streaming=streaming)
    assert "label has different label frequencies in dev than in train, mainly for 'a'" in log
    counts = Counter(json.loads(line)["label"] for line in (data / "dev.jsonl").read_text().splitlines())
    dev = torch.tensor([counts[label] + 1.0 for label in "abc"])
    expected = (dev / dev.sum()).log() - math.log(1 / 3)
    name = "output_layer.heads.label.linear.bias"
    last, best = (
        load_file(folder / "weights.safetensors")[name]
        for folder in (next(config.run_dir.glob("checkpoints/step_*")), config.run_dir / "checkpoints/best")
    )
    factors = (best - last) / expected  # so only the temperature fits dev
    torch.testing.assert_close(factors, factors.mean().expand(3), atol=1e-3, rtol=0)
    assert 0.1 < factors.mean() < 10


@pytest.mark.parametrize("balanced", [True, False])
def test_balanced_class_weights_make_train_frequencies_uniform(balanced, tmp_path):
    """They are uniform in dev too, so nothing has to be corrected."""
    rows = [{"text": f"{label} {i}", "label": label, "split": "train"} for label in "aaaaab" for i in range(20)]
    rows += [{"text": f"{'ab'[i % 2]} x{i}", "label": "ab"[i % 2], "split": "dev"} for i in range(60)]
    weights = "balanced" if balanced else "none"
    _, log = trained(tmp_path, processed(tmp_path, rows), epochs=1, class_weights=weights)
    assert ("mainly for 'b'" in log) != balanced


@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"use_rdrop": True}, {"encoder": "bilstm"}, LONG])
@pytest.mark.parametrize("kind", ["multilabel", "pairs", "hierarchy", "regression"])
def test_few_shot_works_or_is_ignored_for_each_task_type(kind, options, tmp_path):
    words = ["red", "blue"]
    rows = [{"text": f"{words[i % 2]} lamp {i % 7} {i} " + "and one more " * (i % 5)} for i in range(60)]
    for i, row in enumerate(rows):
        row["label"] = {
            "multilabel": [w for w in (words[i % 2], "odd" if i % 3 else "") if w],
            "pairs": words[i % 2],
            "hierarchy": f"colour##{words[i % 2]}",
            "regression": i % 7 + 0.5,
        }[kind]
        if kind == "pairs":
            row["text_pair"] = f"a shade of {words[i % 2]}"
    data = processed(tmp_path, rows, **({"label_hierarchy": "##"} if kind == "hierarchy" else {}))
    config, log = trained(tmp_path, data, **options)
    assert ("no contrastive loss for label" in log) == (kind == "regression")
    assert math.isfinite(json.loads((config.run_dir / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    text = rows[0]["text"]
    (row,) = load(config.run_dir / "checkpoints/best")([(text, rows[0]["text_pair"]) if kind == "pairs" else text])
    assert "label" in row


def test_frozen_encoder_has_no_contrastive_loss(tiny):
    trainer = make_trainer(tiny(few_shot=True, freeze_layers=-1))
    assert not any(isinstance(trick, Contrast) for trick in build_tricks(trainer.model, trainer.config))
