"""An exported folder predicts the same as main.py on every row, without torch. Unsupported models are rejected.

`PYTHONPATH=.:tests python tests/tools/test_export.py` prints which families of encoders can be exported.
"""

import contextlib
import csv
import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, read_json
from hypothesis import given, settings
from hypothesis import strategies as st
from relation_rows import add_events, add_relations
from safetensors.torch import load_file, save_file
from seqeval.metrics.sequence_labeling import get_entities
from test_families import FAMILIES, save_family
from test_texts import CASES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer

from config import Config, seed_torch
from data_loader import MyDataLoader, MyDataset
from data_process import DataConfig, process
from engine.data.windows import longest_first
from engine.errors import UserError
from engine.model.crf import CRF
from engine.predict.predictions import prepare_inputs
from engine.run.files import seal, verify
from engine.task.task import Task
from engine.task.text import split_text
from engine.task.words import SPANS_PER_WORD, entities_in
from main import build_trainer, load_data, load_trained
from model_utils import HEADS, ClassificationHead, MyModel
from preprocess.readers.label_files import label_file_of
from preprocess.readers.options import ReadOptions
from preprocess.readers.sources import read_texts

pytest.importorskip("onnxruntime", reason="pip install -r tools/export/requirements.txt")
pytest.importorskip("onnxscript", reason="pip install -r tools/export/requirements.txt")

from tools.export import compare, graph, shrink
from tools.export import settings as export_settings
from tools.export.__main__ import CODE, ExportConfig, export
from tools.export.decoding import HEADS as DECODERS
from tools.export.loading import PROVIDERS, InputError
from tools.export.predictor import Predictor
from tools.export.reading import read_rows
from tools.export.scoring import viterbi

WILD = [
    "",
    "   ",
    "👍 a good 👍🏽 film",
    "\u200b",
    "播放 周杰伦 的 歌，好!",
    "İstanbul ﬁ e\u0301 ½ 3,000.5 jazz-rock's!",
]
WILD += ["a\u2028b\x1cc\u3000d", "x" * 500, "play the song 播放音乐 " * 12]
HUGE = ("play the song 播放音乐, " * 5000)[:100_000]
HOSTILE = [
    "西",
    "👍🏽" * 300,
    "\t \r\u3000" * 50,
    "去北京大学吧" * 833 + "，好",
    "".join(map(chr, range(0x20, 0x3000, 7))),
]
CPU = torch.device("cpu")
EXAMPLES = settings(max_examples=200, deadline=None)


class Shipped:
    """A tiny model that was trained briefly, and its export."""

    def __init__(self, config, folder, **options):
        config.run_dir.mkdir(parents=True)
        seed_torch(config.random_seed)
        trainer = build_trainer(load_data(config, CPU), CPU)
        trainer.train()
        self.best, self.folder = config.run_dir / "checkpoints/best", folder
        export(ExportConfig(checkpoint=str(self.best), output_dir=str(folder), **options))
        self.trainer, self.featurizer = load_trained(self.best, config, CPU)
        self.predictor, self.data_path = Predictor(folder, 1), Path(config.data_path)

    def of_torch(self, source):
        """Returns the rows that main.py --do_predict writes for a processed file or for examples."""
        loader = MyDataLoader(MyDataset(source, self.featurizer), 16)
        path = self.folder.parent / "of_torch.jsonl"
        self.trainer.predict(loader, path)
        return rows_of(path)

    def require_same(self, *more):
        """Compares the predictions for the test split, in batches of several sizes, and for unusual texts."""
        theirs = self.of_torch(self.data_path / "test.jsonl")
        given = [
            {key: row[key] for key in ("id", "text", "tokens", "text_pair", "extras") if key in row}
            for row in rows_of(self.data_path / "test.jsonl")
        ]
        for batch_size in (1, 7, 64):
            require_same(self.predictor(given, batch_size), theirs)
        rows = [{"id": str(i), "text": text} for i, text in enumerate((*WILD, *more))]
        if self.predictor.encode.pairs:
            rows = [row | {"text_pair": text} for row, text in zip(rows, (*WILD[::-1], *more))]
        theirs = self.of_torch(list(prepare_inputs([dict(row) for row in rows], self.trainer.tasks)))
        require_same(self.predictor(rows, 7), theirs)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def require_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        columns = [key for key in other if not key.endswith(("_gold", "_gold_tags", "_right")) and key != "right"]
        assert list(one) == columns
        for key in columns:
            assert is_same(one[key], other[key]), (key, one, other)


def is_same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    return abs(one - other) < 1e-4 if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def joint(sample, tmp_path_factory):
    """A model of intents and slots with a CRF, which reads long texts in windows."""
    folder = tmp_path_factory.mktemp("joint")
    own = dict(
        data_path=str(sample),
        output_dir=str(folder / "output"),
        model_version="run",
        epochs=25,
        lr=1e-2,
        monitor="slots_f1",
    )
    return Shipped(Config(**{**TINY, **own, "use_crf": True, "max_length": 48}), folder / "shipped")


# ---- the same predictions --------------------------------------------------------------------------------------------


def test_a_joint_model_predicts_the_same_as_in_torch(joint):
    joint.require_same(HUGE)
    rows = joint.predictor([row["tokens"] for row in rows_of(joint.data_path / "test.jsonl")])
    assert sum(len(row["slots"]) for row in rows) > 5


def test_without_torch_and_in_another_process(joint, tmp_path):
    """Runs the predictor from another folder, with only its three packages."""
    texts = tmp_path / "texts.txt"
    texts.write_bytes("\n".join(text.replace("\n", " ") for text in WILD).encode() + b"\r\n")
    blocked = ("torch", "transformers", "engine", "regex", "seqeval", "pandas", "datasets", "pyarrow", "safetensors")
    start = f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked})); sys.argv[1:] = sys.argv[2:]; "
    start += "runpy.run_path(sys.argv[0], run_name='__main__')"
    script, theirs = (
        str(joint.folder / "predictor.py"),
        joint.of_torch(list(prepare_inputs(read_texts(texts, ReadOptions()), joint.trainer.tasks))),
    )
    for name in ("out.jsonl", "out.csv"):
        command = f"sys.argv[0] = {script!r}; "
        done = subprocess.run(
            [sys.executable, "-I", "-c", "import sys; " + command + start, "-", str(texts), name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    require_same(rows_of(tmp_path / "out.jsonl"), theirs)
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [row["slots_tags"] for row in cells] == [json.dumps(r["slots_tags"], ensure_ascii=False) for r in theirs]
    assert not list(tmp_path.glob(".*"))


def test_the_folder_is_complete(joint):
    names = {path.name for path in joint.folder.iterdir()}
    expected = {"model.onnx", "predictor.json", "arrays.npz", "tokenizer.json", "requirements.txt", "README.md"}
    assert names == expected | {"manifest.json", *CODE} and verify(joint.folder) is None
    tasks = read_json(joint.best / "labels.json")
    assert {name: task["labels"] for name, task in joint.predictor.tasks.items()} == {
        name: task["labels"] for name, task in tasks.items()
    }
    for name in CODE:  # all imports are in the folder
        code = (joint.folder / name).read_text(encoding="utf-8")
        assert {f"{module}.py" for module in re.findall(r"^from (predictor_\w+)", code, re.M)} <= {*CODE}
        assert not re.search(r"^(from|import) (engine|tools)", code, re.M)


def test_rows_of_all_kinds_in_one_call(joint):
    tokens = ["play", "the", "song"]
    rows = ["play the song", tokens, {"text": "play the song"}, {"id": "7", "tokens": tokens, "text": "play the song"}]
    first, *others = joint.predictor(rows)
    for other in others:
        other.pop("id", None)
        require_same([other], [first])
    assert joint.predictor([]) == []
    lengths = joint.predictor.count_tokens(["play", "play the song", HUGE])
    assert lengths[0] < lengths[1] < 48 < 10_000 < lengths[2]


def test_the_provider_can_be_chosen(joint, monkeypatch):
    """This onnxruntime only has the CPU provider; predictions of onnxruntime-openvino are compared by hand."""
    import onnxruntime

    rows = ["play the song", "turn on the light"]
    require_same(Predictor(joint.folder, 1, provider="cpu")(rows), joint.predictor(rows))
    for provider, package in (("cuda", "onnxruntime-gpu"), ("openvino", "onnxruntime-openvino")):
        if PROVIDERS[provider][0] not in onnxruntime.get_available_providers():
            with pytest.raises(
                InputError, match=f"provider {provider}: is not in this onnxruntime; pip install {package}"
            ):
                Predictor(joint.folder, provider=provider)
    with pytest.raises(InputError, match="provider 'npu': must be auto, cpu, cuda, tensorrt, openvino"):
        Predictor(joint.folder, provider="npu")
    # a provider that is installed but fails to start, such as CUDA without a driver
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(InputError, match="provider cuda: fails to start"):
        Predictor(joint.folder, provider="cuda")
    require_same(Predictor(joint.folder, 1)(rows), joint.predictor(rows))


@pytest.mark.parametrize("row", [3, None, [], [1], {"id": "x"}, {"text": 3}, {"tokens": "x"}, "half \ud83d"])
def test_an_invalid_row_is_reported_with_its_number(row, joint):
    with pytest.raises(InputError, match="row 2: "):
        joint.predictor(["a", row])


PAIRS = dict(label_type="score=regression,topics=multilabel", label_column="mood,topics,score")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs of texts with a class, any number of topics, a score, and a numeric column."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("pairs")
    with open(folder / "pairs.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("text text_pair mood topics score size split".split())
        for i in range(120):
            words = [rng.choice("good bad film song 歌 play fine".split()) for _ in range(rng.randint(2, 40))]
            topics = ",".join(topic for topic in ("film", "song") if topic in words)
            mood, score = "pos" if words.count("good") > words.count("bad") else "neg", words.count("good") + 0.5
            part = "train" if i < 80 else "dev" if i < 100 else "test"
            writer.writerow([" ".join(words), " ".join(words[::-1]), mood, topics, score, i % 7, part])
    process(DataConfig(input=str(folder / "pairs.csv"), output_dir=str(folder / "data"), extra_columns="", **PAIRS))
    return folder / "data"


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    """Chinese characters with nested spans, relations between them, events, and tags."""
    rng, folder, rows = random.Random(0), tmp_path_factory.mktemp("chinese"), []
    for i in range(120):
        city, other = rng.choice(["北京", "上海", "西安"]), rng.choice(["明天", "今天", "周五"])
        text = rng.choice([f"{other}去{city}大学吧", f"我在{city}大学 {other}见", f"{city}大学好👍，{other}来"])
        start, day = text.index(city), text.index(other)
        spans = [[start, start + 4, "school"], [start, start + 2, "city"]]
        part = "train" if i < 80 else "dev" if i < 100 else "test"
        row = {"text": text, "places": spans, "days": [[day, day + 2, "day"]], "split": part}
        rows.append(json.dumps(row, ensure_ascii=False))
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    options = dict(label_column="places,days", unit="character")
    process(DataConfig(input=str(folder / "rows.jsonl"), output_dir=str(folder / "data"), **options))
    add_relations(folder / "data", "places")
    add_events(folder / "data", "places")
    return folder / "data"


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(max_length=24, pooling="mean"), dict(max_length=24, long_text="tail")])
def test_pairs_labels_and_numbers(options, pairs, tiny, tmp_path):
    shipped = Shipped(tiny(data_path=str(pairs), epochs=4, **options), tmp_path / "shipped")
    shipped.require_same("good film " * 100)
    with pytest.raises(InputError, match="pairs"):
        shipped.predictor(["one text"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, dict(encoder="bilstm", num_layers=2, use_crf=True, word_pooling="mean")])
def test_spans_relations_events_and_tags_of_chinese_characters(options, chinese, tiny, tmp_path):
    """Also tests a temperature and `abstain_below`."""
    shipped = Shipped(tiny(data_path=str(chinese), epochs=8, max_length=16, lr=1e-2, **options), tmp_path / "shipped")
    shipped.require_same("明天去北京大学吧" * 40, *HOSTILE)
    texts = [row["text"] for row in rows_of(chinese / "test.jsonl")]
    rows = shipped.predictor(texts)
    assert all(any(row[name] for row in rows) for name in ("places", "facts", "acts"))
    chances = sorted(fact["probability"] for row in rows for fact in row["facts"])
    lowest = (chances[len(chances) // 2] + chances[len(chances) // 2 + 1]) / 2
    kept = Predictor(shipped.folder, 1, abstain_below=f"facts={lowest}")(texts)
    assert [row["facts"] for row in kept] == [
        [fact for fact in row["facts"] if fact["probability"] >= lowest] for row in rows
    ]
    kept = Predictor(shipped.folder, 1, abstain_below="acts=0.6")(texts)
    for row, rest in zip(rows, kept):
        strong = [event for event in row["acts"] if event["probability"] >= 0.6]
        expected = [[one for one in event["arguments"] if one["probability"] >= 0.6] for event in strong]
        assert [event["arguments"] for event in rest["acts"]] == expected
    for name in ("places", "facts", "acts"):
        shipped.trainer.model.output_layer.heads[name].temperature.fill_(1.7)
        shipped.predictor.tasks[name]["temperature"] = 1.7
    shipped.require_same()


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [("GPT-2", {}), ("Llama", dict(lora_rank=4))])
def test_decoders_and_adapters(name, options, sample, tiny, tmp_path):
    pretrained = save_family(name, tmp_path / "pretrained", sample)
    config = tiny(pretrain_model_path=pretrained, epochs=2, max_length=40, window_stride=-1, **options)
    Shipped(config, tmp_path / "shipped").require_same()


@pytest.mark.slow
@pytest.mark.parametrize("long_text", ["tail", "head_tail"])
def test_truncated_single_texts(long_text, tiny, tmp_path):
    rows = [f"{'good ' * (i % 30)}film {'bad ' * (i % 23)},{'pos' if i % 2 else 'neg'}" for i in range(80)]
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(rows))
    process(DataConfig(input=str(tmp_path / "data.csv"), output_dir=str(tmp_path / "data")))
    config = tiny(data_path=str(tmp_path / "data"), long_text=long_text, max_length=16, shared_layers=1)
    Shipped(config, tmp_path / "shipped").require_same(HUGE)


# ---- components, compared with the ones used in training -------------------------------------------------------------


@pytest.fixture(scope="module")
def words_of():
    by_unit, _ = export_settings.patterns()
    return {unit: re.compile(pattern) for unit, pattern in by_unit.items()}


@EXAMPLES
@given(
    text=st.text() | st.text("aé7.,-'字の1 \u3000\u0301_@"),
    unit=st.sampled_from(["word", "character", "character+blank"]),
)
def test_words_are_split_the_same_as_in_training(text, unit, words_of):
    assert words_of[unit].findall(text) == [token for token, _, _ in split_text(text, unit) if token]


def test_every_character_has_the_same_class_as_in_training(words_of):
    for first in (*range(0, 0x33000, 4096), 0xE0000):  # the code points in between are unassigned
        text = "".join(f"a{chr(code)}1 " for code in range(first, first + 4096))
        assert words_of["word"].findall(text) == [token for token, _, _ in split_text(text, "word")]


@EXAMPLES
@given(tags=st.lists(st.sampled_from([f"{p}-{t}" for p in "BIES" for t in ("x", "y", "x-y")] + ["O"])))
def test_entities_match_seqeval(tags):
    assert entities_in(tags) == get_entities(tags)


@EXAMPLES
@given(one=st.integers(1, 40), other=st.integers(1, 40), room=st.integers(2, 50))
def test_pairs_are_truncated_the_same_as_by_tokenizers(one, other, room):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(room, strategy="longest_first")
    ids = tokenizer.encode("a " * one, "b " * other).ids
    assert tuple(min(pair) for pair in zip((one, other), longest_first(one, other, room))) == (
        ids.count(0),
        ids.count(1),
    )


def test_viterbi_matches_the_crf():
    torch.manual_seed(0)
    crf = CRF(["O", "B-x", "I-x", "B-y", "I-y"])
    emissions, lengths = 3 * torch.randn(40, 9, 5), torch.randint(1, 10, (40,))
    mask = torch.arange(9) < lengths[:, None]
    masked = [
        scores.detach().masked_fill(rule, -1e4).numpy()
        for scores, rule in (
            (crf.start_transitions, crf.forbidden_start),
            (crf.transitions, crf.forbidden),
            (crf.end_transitions, crf.forbidden_end),
        )
    ]
    found = viterbi([emissions.numpy(), *masked], mask.numpy())
    np.testing.assert_array_equal(found * mask.numpy(), crf.viterbi(emissions, mask).numpy())


@pytest.mark.parametrize("kind, types", [("spans", 0), ("relations", 0), ("relations", 3)])  # types: of entities
@pytest.mark.parametrize("steps", [1, 1e6])  # resolution of the scores: at 1 most are tied
@pytest.mark.parametrize("threshold, temperature", [(-9.0, 1.0), (0.5, 2.5), (2.0, 1.0), (90.0, 1.0)])
def test_spans_and_relations_match_torch(kind, types, steps, threshold, temperature):
    """Includes texts with more items than the limit, with a single word and with none."""
    head, sizes = HEADS[kind](8, Task(kind, labels=["a", "b", "c"])), [12, 30, 1, 0, 7]
    head.threshold.fill_(threshold)
    head.temperature.fill_(temperature)
    width = {"spans": 30 + 6, "relations": 3 * 30 + 4 + 12}[kind]
    if types:
        head.read_task("entities")
        width += 30 + 2 * types
    logits = torch.randn(5, 30, width, generator=torch.Generator().manual_seed(1))
    logits = (2 * logits * steps).round() / steps
    mask = torch.arange(30) < torch.tensor(sizes).unsqueeze(1)
    ours = DECODERS[kind](dict(labels=["a", "b", "c"], threshold=threshold, temperature=temperature), {}, {})
    decoded, items = ours.decode(logits.numpy(), mask.numpy(), sizes), 0
    for size, (found, probabilities), *theirs in zip(
        sizes, decoded, *head.distribution.decode(logits, {"word_mask": mask})
    ):
        labels, scores = head.to_labels(*theirs)
        assert [[*places, head.task.labels[label]] for *places, label in found] == labels
        np.testing.assert_allclose(probabilities, head.distribution.at_temperature(scores, temperature), rtol=1e-12)
        items += len(found)
        assert threshold > -9 or size < 5 or len(found) >= SPANS_PER_WORD * size  # the limit is reached
    assert items > 30 or threshold == 90


def test_files_are_read_the_same_as_by_main(tmp_path):
    rows = ['id,question,other\n7,"a, ""b""",x\n\n,\u2028c,y\n', "\ufefftext\tsize\na\t1\n\nb\t2\n"]
    files = {"a.csv": rows[0], "a.tsv": rows[1], "a.txt": "a\r\n\nb\u2028c", "b": "a\n"}
    files["b.jsonl"] = '{"sentence1": "a", "sentence2": "b"}\n{"sentence1": "c", "sentence2": ""}\n'
    files["c.jsonl"] = '{"passage": "a", "question": "b"}\n'
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    (tmp_path / "wide.txt").write_bytes("播放\nb".encode("utf-16"))
    for path in sorted(tmp_path.iterdir()):
        theirs, ours = list(read_texts(path, ReadOptions())), list(read_rows(path, Config()))
        keys = ("id", "text", "tokens", "text_pair")
        assert [{k: r[k] for k in keys if k in r} for r in ours] == [{k: r[k] for k in keys if k in r} for r in theirs]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "x,y\n1,2\n", "cannot tell which column is the text"),
        ("a.csv", "text,y\n1\n", "1 cells"),
        ("a.jsonl", "[1]\n", "not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "row 2: no key 'text'"),
        ("a.jsonl", "{\n", "row 1: not JSON"),
        ("a.pdf", "x", "ends in .pdf, but the supported formats are .txt"),
        ("a.txt", "fly O\nto O\n\nOslo B-city\n", "seems to contain tokens with tags"),
        ("a.txt", "Anna PERSON\nsaid O\n\nno O\n", "seems to contain tokens with tags"),
        ("a.txt", '{"text": "a"}\n', "seems to contain JSON lines"),
        ("a.txt", "text\tlabel\na\tb\n", "seems to contain a table"),
        ("a.txt", "id,text\n1,b\n", "seems to contain a table"),
        ("a.txt", "__label__good a film\n", "fastText"),
        ("a.txt", "我/r 爱/v 你/r\n", "seems to contain words with tags"),
        ("a.csv", "text,tags\nto Oslo,O B-city\n", "a tag for each word"),
        ("a.csv", "text,label\nOslo,city\nto,O\n", "a tag for each word"),
        ("a.csv", "text\n\"['a', 'b']\"\n", "lists"),
        ("a.tsv", "text\ngo [Rome](city)\nsee [Oslo](city)\n", "entity markup"),
        ("a.jsonl", '{"prompt": "a", "query": "b", "output": "c"}\n', "instructions"),
        ("a.json", "[]", "ends in .json"),
        ("", "", "is a folder"),
    ],
)
def test_unsupported_files_are_reported(name, content, message, tmp_path):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name, Config()))


INPUT_KEYS = ("id", "text", "tokens", "text_pair")
ODD = ["a/n b/v", "1\ta", "text;label", "[", '{"a": 1}', "", "text\tlabel", "好\t1", "fly O", "Oslo B-city", "#x"]
ODD += ["x O", "text,label", "good,1", "text", "Anna PERSON", '{"text": "a b", "tokens": ["a", "b"]}', '{"text": "c"}']
ODD += ['{"tokens": ["a"], "id": 7}', "[laughs] hi", "n/a", "tokens,tags", "a b,O O", "id,text", "7,hello", "null"]
ODD += ["w:O x:B-a <=> i", "Text,ID", "see [Oslo](city)", "go [Rome](city)", "## intent:greet", "- hi", "__label__a b"]
ODD += ["{name} hello"]


def same_or_rejected(path):
    """Returns whether the exported predictor reads a file the same as main.py, or None if it rejects the file."""
    with contextlib.suppress(InputError, UnicodeError, csv.Error):
        ours = [{key: row[key] for key in INPUT_KEYS if key in row} for row in read_rows(path, Config())]
        with contextlib.suppress(UserError):
            return ours == [{k: row[k] for k in INPUT_KEYS if k in row} for row in read_texts(path, ReadOptions())]
    return None


# for the excluded case, main.py also reads the file next to the texts
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"shapes: tags next to texts"}))
def test_files_are_read_the_same_as_by_main_or_rejected(name, tmp_path):
    CASES[name][0](tmp_path / "raw")
    files = [path for path in (tmp_path / "raw").rglob("*") if path.is_file()]
    files = [path for path in files if not label_file_of(path)]  # the exported predictor does not read other files
    assert False not in [same_or_rejected(path) for path in files]


def test_random_files_are_read_the_same_as_by_main_or_rejected(tmp_path):
    rng, found = random.Random(1), Counter()
    for number in range(600):
        path = tmp_path / f"{number}{rng.choice(['.txt', '', '.csv', '.tsv', '.jsonl'])}"
        rows = rng.sample(ODD, rng.randint(1, 3))
        path.write_text("\n".join(rng.choices(rows, k=rng.randint(1, 6))) + rng.choice(["\n", ""]))
        found[same_or_rejected(path)] += 1
    assert set(found) == {True, None} and found[True] > 60


# ---- lower precision, and rejected exports ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_lower_precision(kind, joint, tmp_path, caplog):
    folder = tmp_path / "small"
    options = dict(checkpoint=str(joint.best), output_dir=str(folder), max_drop=1.0)
    export(ExportConfig(**options, **{kind: True}))
    size, whole = ((path / "model.onnx").stat().st_size for path in (folder, joint.folder))
    assert size < (0.75 if kind == "fp16" else 0.6) * whole
    texts = [row["tokens"] for row in rows_of(joint.data_path / "test.jsonl")]
    pairs = list(zip(Predictor(folder, 1)(texts), joint.predictor(texts)))
    assert sum(a["slots_tags"] == b["slots_tags"] for a, b in pairs) > 0.7 * len(pairs)
    assert f"in {kind} (" in caplog.text


@pytest.mark.slow
def test_a_large_graph_stores_its_tensors_in_a_second_file(joint, tmp_path, monkeypatch):
    """Sets a limit of 0 bytes, so the tiny model counts as large."""
    monkeypatch.setattr(graph, "MAX_BYTES", 0)
    options = dict(checkpoint=str(joint.best), output_dir=str(tmp_path / "shipped"), max_drop=1.0)
    for kind in ("fp32", "fp16"):
        export(ExportConfig(**options, fp16=kind == "fp16"))
        assert (tmp_path / "shipped/model.onnx.data").exists()
        rows = Predictor(tmp_path / "shipped", 1)(WILD)
        assert kind != "fp32" or rows == joint.predictor(WILD)


@pytest.fixture
def damaged(joint, tmp_path):
    """damaged(name, part, add, unread=()) adds a constant to part of a tensor of the joint model, sets the weights of
    the heads for the hidden dimensions `unread` to zero, and returns options for exporting this model."""

    def make(name, part, add, unread=()):
        best, data = tmp_path / "best", tmp_path / "data"
        shutil.copytree(joint.best, best)
        tensors = load_file(best / "weights.safetensors")
        tensors[name][part] += add
        for number in unread:
            for head in ("intent", "slots"):
                tensors[f"output_layer.heads.{head}.linear.weight"][:, number] = 0
        save_file(tensors, best / "weights.safetensors")
        seal(best)
        data.mkdir()
        shutil.copy(joint.data_path / "labels.json", data)
        shutil.copy(joint.data_path / "train.jsonl", data / "dev.jsonl")  # on which the model has almost no errors
        return dict(checkpoint=str(best), output_dir=str(tmp_path / "shipped"), data_path=str(data))

    return make


@pytest.mark.slow
def test_matrix_products_with_outliers_stay_in_fp32(damaged, tmp_path, caplog):
    """Creates a huge outlier in a hidden dimension that no head reads. It does not matter in fp32, but with int8 all
    other values of the tensor are rounded to 0."""
    options = damaged("encoder.encoder.layer.0.output.LayerNorm.bias", 0, 1e6, [0])
    export(ExportConfig(**options, int8=True, max_drop=0.1))
    drops = dict(re.findall(r"dev sentence_accuracy: .* in (.*) \(([-+].*)\)", caplog.text))
    assert list(drops) == ["int8", "static int8", "static int8 except 1 of 8 matrix products", last := [*drops][-1]]
    assert last == "static int8 except 2 of 8 matrix products" and float(drops[last]) >= -0.1
    assert all(float(drop) < -0.1 for way, drop in drops.items() if way != last)
    predictor, texts = (
        Predictor(tmp_path / "shipped", 1),
        [row["tokens"] for row in rows_of(tmp_path / "data/dev.jsonl")],
    )
    together, alone = predictor(texts, 64), predictor(texts, 1)
    assert [row["slots_tags"] for row in together] == [row["slots_tags"] for row in alone]
    for one, other in zip(
        together, alone
    ):  # with fixed scales, predictions do not depend on the other texts of a batch
        assert one["intent_probability"] == pytest.approx(other["intent_probability"], abs=1e-5)


@pytest.mark.slow
def test_an_export_above_max_drop_is_rejected_and_an_earlier_one_is_kept(damaged, joint, tmp_path):
    """Makes the embedding of an unused token huge, so every int8 graph rounds the others to 0."""
    options = damaged("encoder.embeddings.word_embeddings.weight", joint.featurizer.tokenizer.mask_token_id, 1e6)
    export(ExportConfig(**options))
    folder = tmp_path / "shipped"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ways = r"\(int8\), 0.* \(static int8\), .* \(static int8 except 4 of 8 matrix products\)"
    ways = rf"sentence_accuracy on dev by 0.* {ways}"
    with pytest.raises(UserError, match=rf"--int8 lowers {ways}, more than --max_drop 0\.005; nothing was written"):
        export(ExportConfig(**options, int8=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"best", "data", "shipped"}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2**30, 0])  # above the limit, tensors are in a second file
def test_each_int8_graph_can_be_used(limit, joint, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "MAX_BYTES", limit)
    folder = tmp_path / "shipped"
    export(ExportConfig(checkpoint=str(joint.best), output_dir=str(folder)))
    data = MyDataset(joint.data_path / "dev.jsonl", joint.featurizer)
    texts = [row["tokens"] for row in rows_of(joint.data_path / "test.jsonl")]
    expected, sizes = joint.predictor(texts), []
    for _ in shrink.versions(folder / "model.onnx", "int8", lambda: compare.inputs_of(joint.predictor, data)):
        seal(folder)
        found = Predictor(folder, 1)(texts)
        assert sum(a["slots_tags"] == b["slots_tags"] for a, b in zip(expected, found)) > 0.7 * len(texts)
        sizes.append((folder / "model.onnx").stat().st_size)
        assert not (folder / "model.onnx.data").exists()
    assert (
        len(sizes) == 5 and sizes[1:] == sorted(sizes[1:]) and sizes[-1] < (joint.folder / "model.onnx").stat().st_size
    )


@pytest.mark.parametrize("wild", ["x", "z"])
def test_matrix_products_are_ordered_by_their_quantisation_error(wild, tmp_path):
    """Of x @ a and z @ b.T + c, the product whose input has a huge value with zero weights must come first."""
    import onnx

    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=size).astype(np.float32) for size in ((6, 3), (2, 6), (2,)))
    a[0], b[:, 0] = 0, 0
    nodes = [onnx.helper.make_node("MatMul", ["x", "a"], ["of x"], name="x")]
    nodes.append(onnx.helper.make_node("Gemm", ["z", "b", "c"], ["of z"], name="z", transB=1))
    inputs = [onnx.helper.make_tensor_value_info(name, 1, ["rows", 6]) for name in "xz"]
    outputs = [
        onnx.helper.make_tensor_value_info(f"of {name}", 1, ["rows", size]) for name, size in (("x", 3), ("z", 2))
    ]
    fixed = [onnx.numpy_helper.from_array(array, name) for name, array in zip("abc", (a, b, c))]
    whole = onnx.helper.make_graph(nodes, "two", inputs, outputs, fixed)
    onnx.save(
        onnx.helper.make_model(whole, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "model.onnx",
    )
    feeds = [{name: rng.normal(size=(rows, 6)).astype(np.float32) for name in "xz"} for rows in (1, 2, 90)]
    feeds[2][wild][0, 0] = 1e4
    assert shrink.by_error(tmp_path / "model.onnx", feeds)[0] == wild


def test_errors_are_reported_before_anything_is_loaded(joint, tmp_path, monkeypatch):
    def rejected(message, **options):
        with pytest.raises(UserError, match=message):
            export(ExportConfig(**{"checkpoint": str(joint.best), "output_dir": str(tmp_path / "new"), **options}))
        assert not (tmp_path / "new").exists()

    rejected("are required", checkpoint="")
    rejected("cannot be combined", int8=True, fp16=True)
    rejected("no checkpoint there", checkpoint=str(tmp_path / "none"))
    rejected("contains other files", output_dir=str(ROOT / "docs"))
    rejected("no labels.json", data_path=str(tmp_path))
    with monkeypatch.context() as older:
        older.delattr(torch.onnx, "ops")
        rejected("needs torch 2.8 or newer")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    rejected("onnxscript; pip install -r tools/export/requirements.txt")


class DataDependent(torch.nn.Module):
    """An encoder that cannot be exported because its control flow depends on the input."""

    def __init__(self):
        super().__init__()
        self.embeddings = torch.nn.Embedding(50, 8)

    def forward(self, input_ids, attention_mask):
        hidden = self.embeddings(input_ids)
        return SimpleNamespace(last_hidden_state=-hidden if input_ids.sum().item() > 3 else hidden)


@pytest.mark.slow
def test_an_encoder_that_torch_cannot_export_ends_in_a_one_line_error(tmp_path, capfd):
    model = MyModel(DataDependent(), 8, {"mood": Task("classification", labels=["a", "b"])}).eval()
    ids = torch.ones(2, 7, dtype=torch.long)
    with pytest.raises(UserError, match=r"^torch cannot export DataDependent to ONNX \(.*\)$") as error:
        graph.write_graph(model, {"input_ids": ids, "attention_mask": ids}, tmp_path / "model.onnx")
    assert "\n" not in str(error.value) and "".join(capfd.readouterr()) == "" and not list(tmp_path.iterdir())


def test_int8_needs_a_dev_split(joint, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "labels.json").write_bytes((joint.data_path / "labels.json").read_bytes())
    options = dict(checkpoint=str(joint.best), output_dir=str(tmp_path / "new"), data_path=str(data))
    with pytest.raises(UserError, match="no dev split for the comparison"):
        export(ExportConfig(**options, int8=True))


def test_a_slow_tokenizer_is_rejected(joint, tmp_path):
    folder = tmp_path / "best"
    shutil.copytree(joint.best, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    ByT5Tokenizer().save_pretrained(folder)
    seal(folder)
    with pytest.raises(UserError, match="has a slow tokenizer"):
        export(ExportConfig(checkpoint=str(folder), output_dir=str(tmp_path / "new")))


def test_a_head_that_overrides_decoding_is_rejected():
    class Own(ClassificationHead):
        def decode(self, logits, inputs):
            return logits.argmin(-1), logits.amin(-1)

    task = Task("classification", labels=["a", "b"])
    with pytest.raises(UserError, match="does not support"):
        export_settings.kind_of_head("mood", Own(8, task))
    for name, kind in HEADS.items():
        head = kind(8, Task("classification", labels=["O", "B-x"]))
        assert export_settings.kind_of_head("x", head) == {"crf_tagging": "crf"}.get(
            name, name.removeprefix("hierarchical_")
        )


def which_families_export(folder):
    """Prints for each family of tests/engine/test_families.py whether it can be exported, or the error of torch."""
    folder = Path(folder)
    raw = folder / "rows.csv"
    raw.write_text("text,label\n" + "\n".join(f"a {'good' if i % 2 else 'bad'} film {i},{i % 2}" for i in range(60)))
    process(DataConfig(input=str(raw), output_dir=str(folder / "data")))
    for number, name in enumerate(FAMILIES):
        run = folder / str(number)
        own = dict(data_path=str(folder / "data"), output_dir=str(run), model_version="run", max_length=32)
        pretrained = save_family(name, run / "pretrained", folder / "data")
        try:
            Shipped(Config(**{**TINY, **own, "epochs": 1, "pretrain_model_path": pretrained}), run / "shipped")
            print(f"{name}: exported")
        except UserError as error:
            print(f"{name}: {error}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        which_families_export(folder)
