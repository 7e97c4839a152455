import json
import logging
import resource
import signal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_trainer import make_trainer

from config import Config
from data_loader import IGNORE, MyDataLoader, MyDataset, MyIterableDataLoader, MyIterableDataset
from engine.data import token_cache
from engine.data.features import Featurizer
from engine.data.ragged import Ragged
from engine.data.tokenizer import load_tokenizer, train_tokenizer
from engine.data.windows import merge_windows
from engine.errors import UserError
from engine.run.atomic import sha256
from engine.run.device import to_device
from engine.run.run_folder import close_log
from engine.task.task import Task
from model_utils import load_checkpoint
from preprocess.schema import read_processed, training_texts

TASKS = {
    "intent": Task("classification", labels=["go", "stay"]),
    "slots": Task("tagging", labels=["O", "B-x", "I-x"], unit="word"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(lambda: ["abc def ghi jkl unbelievable 你好吗", "abc def 7.7 unbelievable 你好吗"] * 4, 120)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Returns a processed file of 203 rows. Row i has the id i and 1 to 12 words."""
    path = tmp_path_factory.mktemp("many") / "train.jsonl"
    with open(path, "w") as file:
        for i in range(203):
            words = ["abc"] * (1 + i * 7 % 12)
            file.write(
                json.dumps(
                    {"id": str(i), "tokens": words, "intent": ["go", "stay"][i % 2], "slots": ["O"] * len(words)}
                )
                + "\n"
            )
    return path


def test_ragged_pads_to_the_longest_selected_row():
    column = Ragged.from_lists([[1, 2, 3], [], [4], [5, 6]])
    padded, mask = column.pad(np.array([3, 1, 2]), -1)
    assert padded.tolist() == [[5, 6], [-1, -1], [4, -1]] and mask.tolist() == [
        [True, True],
        [False, False],
        [True, False],
    ]


ODD = [
    "abc",
    " ",
    "",
    "\u200b",
    "\ufe0f",
    "\u3000",
    "\u00ad",
    "\x00",
    "7.7",
    "unbelievable",
    "你",
    "👍🏽",
    "[SEP]",
    "é",
    "def",
]


def test_every_word_has_one_position_even_if_the_tokenizer_drops_it(tokenizer):
    examples = [
        {"tokens": ODD, "intent": "go", "slots": ["O"] * len(ODD)},
        {"tokens": ["\u200b"], "intent": "go", "slots": ["B-x"]},
        {"tokens": ["abc", "\u200b"], "intent": "go", "slots": ["O", "B-x"]},
    ]
    data = MyDataset(examples, Featurizer(tokenizer, TASKS, 64))
    inputs, labels, _ = data.batch([0, 1, 2])
    assert inputs["word_mask"].sum(1).tolist() == [len(ODD), 1, 2]
    for row, example in enumerate(examples):
        starts = inputs["word_starts"][row, : len(example["tokens"])].tolist()
        assert starts == sorted(set(starts)) and starts[0] == 1
        for word, start in zip(example["tokens"], starts):
            alone = tokenizer([[word]], is_split_into_words=True)["input_ids"][0][1:-1] or [tokenizer.unk_token_id]
            assert inputs["input_ids"][row, start : start + len(alone)].tolist() == alone, repr(word)
    assert labels["slots"][1].tolist() == [1] + [IGNORE] * (len(ODD) - 1) and labels["slots"][2, :2].tolist() == [0, 1]


def test_truncated_words_are_counted_and_have_no_labels(tokenizer, caplog):
    logging.getLogger("template").propagate = True
    words = ["abc"] * 5 + ["\u200b"] + ["unbelievable"] + ["abc"] * 30
    data = MyDataset(
        [
            {"tokens": words, "intent": "go", "slots": ["B-x"] * len(words)},
            {"tokens": ["abc"], "intent": "go", "slots": ["O"]},
        ],
        Featurizer(tokenizer, TASKS, 16),
    )
    inputs, labels, _ = data.batch([0, 1])
    kept = int(inputs["word_mask"][0].sum())
    assert inputs["input_ids"].shape[1] == 16 and kept < len(words) and labels["slots"].shape[1] == kept
    assert f"their last {len(words) - kept} words" in caplog.text and "1 of 2 examples" in caplog.text
    assert inputs["word_starts"][0, :kept].tolist() == list(range(1, 1 + kept)) if kept < 7 else True


def test_pairs_have_token_types_and_unknown_labels_are_ignored(tokenizer):
    tasks = {"intent": TASKS["intent"]}
    data = MyDataset(
        [{"text": "abc def", "text_pair": "ghi", "intent": "go"}, {"text": "abc", "text_pair": "abc", "intent": "new"}],
        Featurizer(tokenizer, tasks, 32),
    )
    inputs, labels, rows = data.batch([1, 0])
    expected = tokenizer(
        ["abc", "abc def"], ["abc", "ghi"], padding=True, return_tensors="pt", return_token_type_ids=True
    )
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert torch.equal(inputs[name], expected[name]), name
    assert labels["intent"].tolist() == [IGNORE, 0] and rows.tolist() == [1, 0]
    assert "word_starts" not in inputs


def test_cache_depends_on_data_and_max_length(tokenizer, many, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(many.read_bytes())

    def built(length):
        MyDataset(path, Featurizer(tokenizer, TASKS, length))
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".cache").iterdir()}

    first = built(32)
    assert len(first) == 1 and built(32).keys() == first.keys()
    assert len(built(16)) == 2
    path.write_bytes(many.read_bytes().replace(b'"abc", "abc"', b'"abc", "def"'))
    assert len(built(32)) == 3
    data = MyDataset(path, Featurizer(tokenizer, TASKS, 32))
    assert data[7]["id"] == "7" and len(data[7]["tokens"]) == data.columns["num_words"][7]


def loader_of(kind, path, tokenizer, workers=0, seed=5, buffer=64):
    featurizer = Featurizer(tokenizer, TASKS, 32)
    if kind == "memory":
        return MyDataLoader(MyDataset(path, featurizer), 8, seed, workers)
    return MyIterableDataLoader(MyIterableDataset(path, featurizer, 8, buffer, seed), workers)


def contents(loader, epoch, batch=0):
    loader.set_position(epoch, batch)
    return [(b.rows.tolist(), b.inputs["input_ids"].tolist(), b.labels["slots"].tolist()) for b in loader]


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_order_depends_on_seed_and_epoch_and_each_row_occurs_once(kind, many, tokenizer):
    loader = loader_of(kind, many, tokenizer)
    first, second = contents(loader, 0), contents(loader, 1)
    assert len(first) == len(loader) == 26 and first != second
    for epoch in (first, second):
        assert sorted(row for rows, _, _ in epoch for row in rows) == list(range(203))
    assert contents(loader_of(kind, many, tokenizer), 1) == second
    assert contents(loader_of(kind, many, tokenizer, seed=6), 0) != first
    for rows, _, tags in first:  # row numbers match the rows in the batch
        assert [sum(tag != IGNORE for tag in row) for row in tags] == [1 + row * 7 % 12 for row in rows]


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_two_workers_return_the_same_batches(kind, many, tokenizer):
    assert contents(loader_of(kind, many, tokenizer, workers=2), 3) == contents(loader_of(kind, many, tokenizer), 3)


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("workers", [0, 2])
def test_iteration_can_start_at_any_position(kind, workers, many, tokenizer):
    whole = contents(loader_of(kind, many, tokenizer), 2)
    for start in (1, 7, 8, 19, 25, 26):
        assert contents(loader_of(kind, many, tokenizer, workers), 2, start) == whole[start:]


def test_stream_does_not_read_rows_before_its_position(many, tokenizer, monkeypatch):
    import data_loader

    loader, read = loader_of("stream", many, tokenizer), []
    monkeypatch.setattr(
        data_loader,
        "read_processed",
        lambda *given, **more: (read.append(e) or e for e in read_processed(*given, **more)),
    )
    contents(loader, 0)
    everything = len(read)
    read.clear()
    contents(loader, 0, 20)
    assert everything == 203 and len(read) <= 80


def test_length_batches_need_little_padding_and_evaluation_starts_with_the_longest(many, tokenizer):
    loader = loader_of("memory", many, tokenizer)
    loader.set_position(0)
    masks = [b.inputs["attention_mask"] for b in loader]
    assert sum(m.sum() for m in masks) / sum(m.numel() for m in masks) > 0.93
    lengths = [b.inputs["input_ids"].shape[1] for b in MyDataLoader(loader.dataset, 16)]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(pretrain_model_path="./nowhere"), "no such folder"),
        (dict(pretrain_model_path="no/such-model"), "no/such-model"),
    ],
)
def test_missing_tokenizer_raises_a_one_line_error(options, named, many):
    with pytest.raises(UserError, match=named) as error:
        load_tokenizer(Config(**options), lambda: training_texts(many))
    assert "\n" not in str(error.value)


def test_devices():
    assert to_device("cpu").type == "cpu"
    for name in ("cuda:99", "gpu"):
        with pytest.raises(UserError, match=name):
            to_device(name)


def test_stream_reports_truncated_examples(many, tokenizer, monkeypatch):
    messages = []
    monkeypatch.setattr("data_loader.logger.warning", messages.append)
    loader = MyIterableDataLoader(MyIterableDataset(many, Featurizer(tokenizer, TASKS, 8), 8, 64, 5))
    for epoch in range(2):
        contents(loader, epoch)
    assert len(messages) == 1 and f"{sum(i * 7 % 12 + 1 > 6 for i in range(203))} examples" in messages[0]


@pytest.mark.parametrize(
    "row, named",
    [
        ('["a"]', "JSON object"),
        ('{"text": "a", "intent": "go", "slots": ["O"]}', "`tokens`"),
        ('{"tokens": ["a"], "slots": ["O"]}', "no label for the task 'intent'"),
        ('{"tokens": ["a"], "intent": ["go"], "slots": ["O"]}', "not a string"),
        ('{"tokens": ["a"], "intent": "go", "slots": ["O", "O"]}', "1 tokens, but 2 tags"),
        ('{"tokens": [], "intent": "go", "slots": []}', "one or more"),
        ("", "not JSON"),
    ],
)
def test_invalid_row_in_a_processed_file_raises_a_one_line_error(row, named, tokenizer, tmp_path):
    good = '{"tokens": ["a"], "intent": "go", "slots": ["O"]}'
    (tmp_path / "train.jsonl").write_text(f"{good}\n{row}\n{good}\n")
    with pytest.raises(UserError, match=named) as error:
        MyDataset(tmp_path / "train.jsonl", Featurizer(tokenizer, TASKS, 32))
    assert "row 2" in str(error.value)
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(UserError, match="no examples"):
        MyDataset(tmp_path / "train.jsonl", Featurizer(tokenizer, TASKS, 32))


@pytest.mark.parametrize("tokenizer_class", ["RobertaTokenizer", "PreTrainedTokenizerFast"])
def test_byte_level_tokenizers_prefix_each_word_with_a_space(tokenizer_class, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(
        ["abc def"] * 9,
        trainers.BpeTrainer(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    names = dict(cls_token="<s>", pad_token="<pad>", sep_token="</s>", unk_token="<unk>", mask_token="<mask>")
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": tokenizer_class}))
    loaded = load_tokenizer(Config(pretrain_model_path=str(tmp_path)), None)
    encoding = loaded([["abc", "abc"]], is_split_into_words=True, add_special_tokens=False).encodings[0]
    first, second = (
        [token for token, word in zip(encoding.tokens, encoding.word_ids) if word == number] for number in (0, 1)
    )
    assert first == second and first[0].startswith("\u0120")


# ---- longer than max_length ------------------------------------------------------------------------------------------

LONG = {
    "tokens": [f"{word}" for word in ("abc unbelievable def \u200b 你 ghi jkl 7.7 " * 6).split(" ")[:-1]],
    "intent": "go",
}
LONG["slots"] = ["B-x" if i % 3 == 0 else "O" for i in range(len(LONG["tokens"]))]
PAIRS = [(12, 0), (12, 3), (12, 6), (16, 1), (16, 4), (16, 8), (20, 5), (24, 12), (32, 7), (40, 20)]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("length", "stride"), PAIRS)
def test_windows_contain_whole_words_with_their_tags(tokenizer, length, stride, paired):
    short = {"tokens": ["abc", "def"], "intent": "stay", "slots": ["O", "B-x"]}
    examples = [one | ({"text_pair": "ghi"} if paired else {}) for one in (short, LONG, short)]
    data = MyDataset(examples, Featurizer(tokenizer, TASKS, length, stride))
    assert len(data) == 3 and data[1] == examples[1] and data[2]["intent"] == "stay"
    inputs, labels, rows = data.batch(np.arange(len(data.lengths)))
    assert data.lengths.max() <= length
    ids = {label: number for number, label in enumerate(TASKS["slots"].labels)}
    firsts, ends, seen = [], [], set()
    known = [word if word != "\u200b" else "[UNK]" for word in LONG["tokens"]]

    def pieces_of(words):
        whole = tokenizer([words], is_split_into_words=True, add_special_tokens=False) if words else None
        return len(whole["input_ids"][0]) if whole else 0

    for row in rows[1:-1].tolist():
        assert data.example_index[row] == 1
        first, size = int(data.columns["first_word"][row]), int(inputs["word_mask"][row].sum())
        expected = tokenizer([known[first : first + size]], [["ghi"]] if paired else None, is_split_into_words=True)
        real = data.lengths[row]
        assert inputs["input_ids"][row][:real].tolist() == expected["input_ids"][0]  # the encoding of these words alone
        assert inputs["token_type_ids"][row][:real].tolist() == (
            expected["token_type_ids"][0] if paired else [0] * real
        )
        assert labels["slots"][row][:size].tolist() == [ids[tag] for tag in LONG["slots"][first : first + size]]
        assert labels["intent"][row].item() == (0 if first == 0 else IGNORE)
        if ends:  # the overlap has as many words as fit into `stride` sub-tokens, but not the whole previous window
            shared, more = (pieces_of(known[start : ends[-1]]) for start in (first, first - 1))
            assert shared <= stride and (more > stride or first == firsts[-1] + 1)
        firsts.append(first)
        ends.append(first + size)
        seen |= set(range(first, first + size))
    assert seen == set(range(len(LONG["tokens"]))) and ends[-1] == len(LONG["tokens"])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=6))
def test_word_in_two_windows_is_predicted_by_the_one_with_the_farther_edge(sizes):
    """Compares the distances to the edges for each word. sizes: (words of a window, words shared with the last)."""
    windows, end = [], 0
    for size, shared in sizes:
        first = max(end - shared, windows[-1][0] + 1 if windows else 0)
        end = max(end, first + size)
        windows.append((first, [(len(windows), word) for word in range(first, end)]))
    merged = merge_windows(windows[::-1])
    assert [word for _, word in merged] == list(range(end))
    for position, (window, _) in enumerate(merged):
        holding = [
            (n, first, first + len(items) - 1)
            for n, (first, items) in enumerate(windows)
            if items and first <= position < first + len(items)
        ]
        if len(holding) == 2:
            (left, _, last), (right, first, _) = holding
            assert window == (left if last - position >= position - first else right)


def test_word_longer_than_a_window_has_a_position(tokenizer):
    words = ["abc", "x" * 60, "def"]
    data = MyDataset(
        [{"tokens": words, "intent": "go", "slots": ["O", "B-x", "O"]}], Featurizer(tokenizer, TASKS, 12, 4)
    )
    tags = {}
    for row in range(len(data.lengths)):
        batch = data.batch([row])
        first = int(data.columns["first_word"][row])
        tags |= {
            first + i: tag for i, tag in enumerate(batch.labels["slots"][0][batch.inputs["word_mask"][0]].tolist())
        }
    assert tags == {0: 0, 1: 1, 2: 0} and data.lengths.max() <= 12


@pytest.mark.parametrize("long_text", ["head", "tail", "head_tail"])
def test_truncation_of_a_long_text_to_classify(tokenizer, long_text, caplog):
    logging.getLogger("template").propagate = True
    text = " ".join(["abc"] * 10 + ["def"] * 20 + ["ghi"] * 10)
    tasks = {"intent": TASKS["intent"]}
    data = MyDataset(
        [{"text": text, "intent": "go"}, {"text": "abc", "intent": "go"}],
        Featurizer(tokenizer, tasks, 18, long_text=long_text),
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    kept = {"head": ids[:16], "tail": ids[-16:], "head_tail": ids[:4] + ids[-12:]}[long_text]
    assert data.batch([0]).inputs["input_ids"][0].tolist() == [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id]
    assert f"1 of 2 examples are longer than --max_length 18; {len(ids) - 16} sub-tokens are not read" in caplog.text


def test_streams_truncate_long_texts_and_warn(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), **LONG}) + "\n" for i in range(5)))
    config = Config(streaming=True, max_length=16, batch_size=2, window_stride=4)
    (tmp_path / "dev.jsonl").write_bytes(path.read_bytes())
    train_loader, dev_loader = __import__("data_loader").build_loaders(
        config, tmp_path, Featurizer(tokenizer, TASKS, 16, 4), torch.device("cpu")
    )
    train_loader.set_position(0)
    assert [len(batch.rows) for batch in train_loader] == [2, 2, 1] or sum(
        len(batch.rows) for batch in train_loader
    ) == 5
    assert len(dev_loader.dataset) == 5 < len(dev_loader.dataset.lengths)


def test_labels_of_every_type(tokenizer):
    tasks = {
        "topics": Task("multilabel", labels=["a", "b", "c"]),
        "score": Task("regression", mean=0, std=1),
        "intent": TASKS["intent"],
        "slots": TASKS["slots"],
    }
    examples = [
        {"tokens": ["abc", "def"], "topics": ["c", "a", "new"], "score": 2.5, "intent": None, "slots": None},
        {"tokens": ["abc"], "topics": None, "score": None, "intent": "stay", "slots": ["B-x"]},
        {"tokens": ["abc"], "topics": [], "score": -1.0, "intent": "go", "slots": ["O"]},
    ]
    labels = MyDataset(examples, Featurizer(tokenizer, tasks, 16)).batch([2, 1, 0]).labels
    assert labels["topics"].tolist() == [[0, 0, 0], [IGNORE] * 3, [1, 0, 1]]
    assert (
        labels["score"].dtype == torch.float32
        and labels["score"][0] == -1
        and labels["score"][1].isnan()
        and labels["score"][2] == 2.5
    )
    assert labels["intent"].tolist() == [0, 1, IGNORE] and labels["slots"].tolist() == [
        [0, IGNORE],
        [1, IGNORE],
        [IGNORE, IGNORE],
    ]


def test_batches_on_a_gpu_are_padded_to_a_multiple(tokenizer, many):
    featurizer = Featurizer(tokenizer, TASKS, 32)
    data = MyDataset(many, featurizer)
    plain = data.batch([3, 4, 5])
    data.pad_to_multiple = 8
    wide = data.batch([3, 4, 5])
    length = plain.inputs["input_ids"].shape[1]
    assert wide.inputs["input_ids"].shape[1] == -(-length // 8) * 8 > length
    assert torch.equal(wide.inputs["input_ids"][:, :length], plain.inputs["input_ids"])
    assert wide.inputs["attention_mask"].sum() == plain.inputs["attention_mask"].sum()
    assert all(torch.equal(wide.inputs[name], plain.inputs[name]) for name in ("word_starts", "word_mask"))
    assert all(torch.equal(wide.labels[name], plain.labels[name]) for name in plain.labels)


@pytest.mark.parametrize("kind", ["flip", "truncate", "empty"])
def test_damaged_cache_is_logged_and_rebuilt(kind, tokenizer, many, tmp_path, caplog):
    path = tmp_path / "train.jsonl"
    path.write_bytes(many.read_bytes())
    featurizer = Featurizer(tokenizer, TASKS, 32)
    whole = MyDataset(path, featurizer)
    (cache,) = (tmp_path / ".cache").iterdir()
    good, rng = cache.read_bytes(), np.random.default_rng(0)
    logging.getLogger("template").propagate = True
    for _ in range(5):
        bad = bytearray(good)
        if kind == "flip":
            bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        else:
            bad = bad[: rng.integers(len(bad)) if kind == "truncate" else 0]
        cache.unlink()  # `whole` still maps the intact file
        cache.write_bytes(bad)
        caplog.clear()
        again = MyDataset(path, featurizer)
        assert "damaged" in caplog.text and cache.read_bytes() == good
        rows = np.arange(203)
        assert torch.equal(again.batch(rows).inputs["input_ids"], whole.batch(rows).inputs["input_ids"])
        assert again[202] == whole[202]


@pytest.mark.parametrize("kind", ["a file in its place", "a broken link"])
def test_tokens_stay_in_memory_if_the_cache_cannot_be_written(kind, tokenizer, many, tmp_path, caplog):
    path = tmp_path / "train.jsonl"
    path.write_bytes(many.read_bytes())
    if kind == "a broken link":
        (tmp_path / ".cache").symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / ".cache").write_text("")
    logging.getLogger("template").propagate = True
    data = MyDataset(path, Featurizer(tokenizer, TASKS, 32))
    assert len(data) == 203 and data[7]["id"] == "7"
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path / ".cache") in line and "in the way" in line and "in memory" in line and "Errno" not in line


def test_full_disk_leaves_no_partial_cache(tokenizer, many, tmp_path, caplog):
    """A write beyond RLIMIT_FSIZE fails, as on a full disk."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(many.read_bytes())
    logging.getLogger("template").propagate = True
    close_log()  # the log of another test would exceed the limit
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        assert len(MyDataset(path, Featurizer(tokenizer, TASKS, 32))) == 203
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "in memory" in caplog.text and not list((tmp_path / ".cache").iterdir())


def test_least_recently_used_caches_are_removed_first(tokenizer, many, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "MAX_CACHES", 2)
    path = tmp_path / "train.jsonl"
    path.write_bytes(many.read_bytes())

    def caches(length):
        MyDataset(path, Featurizer(tokenizer, TASKS, length))
        return set((tmp_path / ".cache").iterdir())

    (of_16,) = caches(16)
    (of_24,) = caches(24) - {of_16}
    caches(16)
    assert of_16 in caches(32) and not of_24.exists()
    token_cache.clear(tmp_path / ".cache")
    token_cache.clear(tmp_path / "nowhere")
    assert not any((tmp_path / ".cache").iterdir())


UNKNOWN = {  # kind: (a task, a known label, an unknown label)
    "classification": (Task("classification", labels=["go", "stay"]), "go", "left"),
    "multilabel": (Task("multilabel", labels=["go", "stay"]), ["go"], ["go", "left"]),
    "tagging": (Task("tagging", labels=["O", "B-x"], unit="word"), ["O", "B-x"], ["O", "B-left"]),
    "spans": (Task("spans", labels=["x"], unit="word"), [[0, 1, "x"]], [[0, 0, "x"], [1, 1, "left"]]),
    "own": (Task("ordinal", labels=["go"], kind="classification"), "go", "left"),
}


@pytest.mark.parametrize("way", ["memory", "streaming"])
@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_training_label_raises_a_one_line_error_with_its_row(kind, way, tokenizer, tmp_path):
    task, known, unknown = UNKNOWN[kind]
    featurizer, path = Featurizer(tokenizer, {"t": task}, 32), tmp_path / "train.jsonl"

    def write(label):
        rows = [{"tokens": ["abc", "def"], "t": known}, {"tokens": ["abc", "ghi"], "t": label}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read():
        if way == "memory":
            return MyDataset(path, featurizer, strict=True)
        return list(MyIterableDataLoader(MyIterableDataset(path, featurizer, 2, 8, seed=1)))

    write(known)
    assert len(read()) == (2 if way == "memory" else 1)
    write(unknown)
    MyDataset(path, featurizer)  # in evaluation, it counts as wrong; its cache does not hide the error from training
    with pytest.raises(UserError, match=r"train.jsonl, row 2.*'(B-)?left' of 't' is not in labels.json"):
        read()


def test_empty_stream_raises_a_one_line_error(tokenizer, tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"train.jsonl: no examples"):
        MyIterableDataset(tmp_path / "train.jsonl", Featurizer(tokenizer, TASKS, 32), 4, 64, seed=1)


@pytest.mark.parametrize("change", ["a column is missing", "a column has another type", "a column has another name"])
def test_cache_with_other_columns_is_rebuilt(change, tokenizer, many, tmp_path, caplog):
    path, featurizer = tmp_path / "train.jsonl", Featurizer(tokenizer, TASKS, 32)
    path.write_bytes(many.read_bytes())
    right = MyDataset(path, featurizer).batch([3, 1])
    (cache,) = (tmp_path / ".cache").iterdir()
    with pa.memory_map(str(cache)) as file:
        table = pa.ipc.open_stream(file).read_all()
    number = table.column_names.index("labels.intent")
    if change == "a column is missing":
        table = table.remove_column(number)
    elif change == "a column has another type":
        table = table.set_column(number, "labels.intent", table["labels.intent"].cast(pa.float64()))
    else:
        table = table.rename_columns({"labels.intent": "intent"})
    with pa.OSFile(str(tmp_path / "new"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "new").rename(cache.with_name(f"{cache.name.split('.')[0]}.{sha256(tmp_path / 'new')[:16]}.arrow"))
    cache.unlink()
    caplog.set_level(logging.WARNING, "template")
    again = MyDataset(path, featurizer).batch([3, 1])
    assert torch.equal(again.labels["intent"], right.labels["intent"])


OURS = "training input_ids word_starts word_ends token_type_ids num_words example_index example first_word num_cut"


def test_tasks_may_have_the_names_of_built_in_columns(tiny, sample, tmp_path):
    """Each row of the sample also has its intent under each of these names, and its slots under some of them."""
    names = [*OURS.split(), "attention_mask", "word_mask", "items", "forward", "labels", "rows"]
    folder, tagged = tmp_path / "named", ("word_starts", "example")
    folder.mkdir()
    tasks = json.loads((sample / "labels.json").read_text(encoding="utf-8"))
    more = {name: tasks["slots" if name in tagged else "intent"] for name in names}
    (folder / "labels.json").write_text(json.dumps(tasks | more), encoding="utf-8")
    for part in ("train", "dev"):
        rows = [json.loads(line) for line in (sample / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()[:12]]
        rows = [row | {name: row["slots" if name in tagged else "intent"] for name in names} for row in rows]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for streaming in (False, True):
        config = tiny(data_path=str(folder), epochs=1, streaming=streaming, model_version=f"run{streaming}")
        trainer = make_trainer(config)
        assert trainer.train() is not None
        best = config.run_dir / "checkpoints/best"
        model, tokenizer, loaded, _ = load_checkpoint(best)
        featurizer = Featurizer(tokenizer, loaded, 32)
        data = MyDataset(folder / "dev.jsonl", featurizer)
        assert all(torch.equal(data.batch([0]).labels[name], data.batch([0]).labels["intent"]) for name in ["training"])
        assert model.eval()(data.batch([0]).inputs).logits.keys() == loaded.keys()
