"""huggingface_hands_on: training a tokenizer, continued pretraining, and use of the results in main.py."""

import json
import os
import re
import signal
import time
import tracemalloc
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, read_json
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from huggingface_hands_on import blocks, encoder, masked_training
from huggingface_hands_on.continue_pretrain_task import PretrainConfig
from huggingface_hands_on.continue_pretrain_task import main as pretrain
from huggingface_hands_on.corpus import read_corpus, read_words
from huggingface_hands_on.train_tokenizer_from_scratch import TokenizerConfig
from huggingface_hands_on.train_tokenizer_from_scratch import main as train_command

MODELS = ["wordpiece", "bpe", "unigram", "wordlevel"]
TEXTS = [
    "Turn on the light in the kitchen, please!",
    "play the song 'Yesterday' at 7:30",
    "播放周杰伦的歌曲",
    "打开客厅的灯，谢谢。",
    "用 Spotify 播放 Hello World 这首歌",
    "I ♥ naïve cafés 😀 👨‍👩‍👧 很好 😀",
    "the lights in the kitchen and the songs of the kitchen",
] * 3
TRAIN = "huggingface_hands_on/train_tokenizer_from_scratch.py"
PRETRAIN = "huggingface_hands_on/continue_pretrain_task.py"


def bare(text):
    """Removes blanks, and the zero-width joiner of emoji, which BERT's normaliser drops like control characters."""
    return re.sub(r"[\s\u200d]", "", text)


# ---- tokenizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_round_trip_and_offsets(model, chinese, tmp_path):
    train_tokenizer(lambda: TEXTS, 500, False, model, chinese).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in set(TEXTS):
        encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        assert tokenizer.unk_token_id not in encoded["input_ids"]
        assert bare(tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)) == bare(text)
        spans = [
            span for span, special in zip(encoded["offset_mapping"], encoded["special_tokens_mask"]) if not special
        ]
        covered = {place for start, end in spans for place in range(start, end)}
        assert covered >= {place for place, character in enumerate(text) if bare(character)}
        assert spans == sorted(spans)
        if model in ("wordpiece", "wordlevel"):  # each piece matches its offsets
            pieces = tokenizer.convert_ids_to_tokens(encoded["input_ids"], skip_special_tokens=True)
            assert [bare(text[start:end]) for start, end in spans] == [piece.removeprefix("##") for piece in pieces]
        if chinese:  # no piece contains two Chinese characters
            assert all(len(re.findall("[一-鿿]", text[start:end])) <= 1 for start, end in spans)
        words = text.split(" ")
        apart = tokenizer(words, is_split_into_words=True)["input_ids"]
        assert apart == encoded["input_ids"]  # words for tagging, the text for classification
    pair = tokenizer("the song", "the light")
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]).count("[SEP]") == 2 and 1 in pair["token_type_ids"]
    assert tokenizer.mask_token_id is not None


def test_chinese_words_are_learned_if_asked():
    texts = ["播放音乐", "停止播放", "播放歌曲", "音乐播放"] * 5
    together = train_tokenizer(lambda: texts, 300, chinese=False)
    assert "播放" in together.get_vocab() and len(together.tokenize("播放")) == 1
    assert train_tokenizer(lambda: texts, 300).tokenize("播放") == ["播", "放"]


@pytest.mark.parametrize("size", [40, 60, 100])
def test_the_vocabulary_does_not_exceed_its_size(size):
    for model in ("wordpiece", "unigram", "wordlevel"):
        assert len(train_tokenizer(lambda: TEXTS[:2] * 3, size, True, model)) <= size, model


@pytest.mark.parametrize("model", [MODELS[0], *(pytest.param(model, marks=pytest.mark.slow) for model in MODELS[1:])])
def test_the_same_texts_give_byte_identical_tokenizers(model, tmp_path, command):
    rows = [
        json.loads(line)["tokens"]
        for line in (ROOT / "dataset/sample_raw/en.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    (tmp_path / "a.txt").write_text("\n".join(map(" ".join, rows)), encoding="utf-8")
    written = []
    flags = ["--input", "a.txt", "--vocab_size", "600", "--model", model]
    for number in range(3):  # in new processes, which have different hash seeds
        done = command(TRAIN, *flags, "--output_dir", f"t{number}", fresh=True)
        assert done.returncode == 0, done.stderr
        written.append((tmp_path / f"t{number}/tokenizer.json").read_bytes())
    assert written[0] == written[1] == written[2]


def test_every_format_gives_the_same_texts(tmp_path):
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    words = [text.split() for text in texts]
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(texts), encoding="utf-16")
    (tmp_path / "c.tsv").write_text("n\ttext\n" + "".join(f"1\t{text}\n" for text in texts), encoding="utf-8")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in texts), encoding="utf-8")
    (tmp_path / "e.jsonl").write_text(
        "".join(json.dumps({"tokens": row, "slots": ["O"] * len(row)}) + "\n" for row in words)
    )
    (tmp_path / "f.conll").write_text(
        "\n".join("".join(f"{word}\tO\n" for word in row) for row in words), encoding="utf-8"
    )
    (tmp_path / "shards").mkdir()
    for number in range(3):
        (tmp_path / f"shards/{number}.txt").write_text("\n".join(texts[number * 7 : number * 7 + 7]), encoding="utf-8")
    seen = {}
    for name in ("a.txt", "b.txt", "c.tsv", "d.jsonl", "e.jsonl", "f.conll", "shards", "shards/?.txt"):
        sides = read_corpus(TokenizerConfig(input=str(tmp_path / name), output_dir="x", held_out_ratio=0.3))[:2]
        seen[name] = [[text if isinstance(text, str) else " ".join(text) for text in side()] for side in sides]
    assert all(sides == seen["a.txt"] for sides in seen.values())
    assert sorted(seen["a.txt"][0] + seen["a.txt"][1]) == sorted(texts) and not set(seen["a.txt"][0]) & set(
        seen["a.txt"][1]
    )


def test_the_test_split_of_a_processed_folder_is_not_read(sample):
    train, held_out, _ = read_corpus(TokenizerConfig(input=str(sample), output_dir="x"))
    for side, split in ((train, "train"), (held_out, "dev")):
        rows = [json.loads(line) for line in (sample / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert list(side()) == [row["tokens"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head", "row"), [("a.txt", "", "%s"), ("a.jsonl", "", '{"text": "%s"}'), ("a.csv", "text,n\n", "%s,1")]
)
def test_texts_are_read_in_constant_memory(name, head, row, tmp_path):
    (tmp_path / name).write_text(head + "".join(row % f"{number:080d}" + "\n" for number in range(100_000)))
    tracemalloc.start()
    train, held_out, _ = read_corpus(TokenizerConfig(input=str(tmp_path / name), output_dir="x"))
    count = sum(1 for _ in train()) + sum(1 for _ in held_out())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000 and 2 * peak < (tmp_path / name).stat().st_size


def test_the_report_can_be_recomputed(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/train.txt").write_text("the cat sat\nthe cat ran\n" * 5)
    (tmp_path / "raw/dev.txt").write_text("the cat zzz\nsat the qqq cat\n")
    train_command(TokenizerConfig(input=str(tmp_path / "raw"), output_dir=str(tmp_path / "t"), model="wordlevel"))
    printed = capsys.readouterr().out
    assert "held out, 2 texts: [UNK] 28.57% of 7 tokens, 1.000 tokens per word" in printed  # zzz and qqq of seven words
    assert "vocabulary of 9" in printed  # five special tokens and the, cat, sat, ran


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, [], "no such file"),
        ("", [], "no text"),
        ("\n \n\t\n", [], "no texts to train on"),
        ("one text\n", ["--held_out_ratio", "0.000001"], "no texts to hold out"),
        ('{"n": 1}\n', ["--format", "jsonl"], "--text_column"),
        ("good\n" * 30, ["--vocab_size", "5"], "--vocab_size=5"),
        ("good\nbad\n" * 30, ["--output_dir", "full", "--held_out_ratio", "0.5"], "is not empty"),
        (b"\xff\xfe\xfd", [], "row 1"),
    ],
)
def test_invalid_input_raises_a_one_line_error_and_changes_nothing(content, flags, message, tmp_path, command):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").write_text("mine")
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    for script, more in ((TRAIN, []), (PRETRAIN, ["--pretrain_model_path", "nowhere"])):
        if script == PRETRAIN and flags[:1] in (["--vocab_size"], ["--output_dir"]):
            continue
        done = command(script, "--input", "a.txt", "--output_dir", "out", *more, *flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
        assert not (tmp_path / "out").exists() and (tmp_path / "full/precious").read_text() == "mine"


# ---- continued pretraining -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Returns a folder with texts that are easy to learn, and a tiny BERT with a masked-LM head and its tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [
        f"{verb} the {thing} in the {place}"
        for verb in ("open", "close")
        for thing in ("door", "window", "box", "bag")
        for place in ("hall", "shop", "house")
    ]
    texts = [text + end for text in texts for end in ("", " now", " please", " again")]
    (folder / "texts.txt").write_text("\n".join(texts))
    tokenizer = train_tokenizer(lambda: texts, 200)
    tokenizer.save_pretrained(folder / "bert")
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    model = BertForMaskedLM(shape)
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    model.save_pretrained(folder / "bert")
    return folder


@pytest.fixture
def options(corpus, tmp_path):
    def make(**more):
        given = dict(
            input=str(corpus / "texts.txt"), pretrain_model_path=str(corpus / "bert"), output_dir=str(tmp_path / "out")
        )
        return PretrainConfig(
            **{**given, "max_length": 16, "batch_size": 4, "device": "cpu", "epochs": 2, "lr": 3e-3, **more}
        )

    return make


def collator_of(tokenizer):
    return blocks.masking_collator(SimpleNamespace(whole_word=True, mlm_probability=0.15), tokenizer)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_blocks_contain_all_words(packing, kind, corpus):
    tokenizer = AutoTokenizer.from_pretrained(corpus / "bert")
    texts = [
        "open the door now",
        "a",
        "close the box in the hall please again and again and again and again and again",
        "door",
        "open it",
    ]
    texts = [text if kind == "text" else text.split() for text in texts]
    made = list(blocks.blocks(texts, tokenizer, 10, packing))
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    assert all(
        len(block["input_ids"]) == len(block["words"]) <= 10 and block["input_ids"][0] == tokenizer.cls_token_id
        for block in made
    )
    assert all(
        block["input_ids"].count(tokenizer.cls_token_id) == block["input_ids"].count(tokenizer.sep_token_id)
        for block in made
    )
    assert all(
        (word == -1) == (token in special) for block in made for token, word in zip(block["input_ids"], block["words"])
    )
    plain = [
        tokenizer(text, add_special_tokens=False, is_split_into_words=kind == "tokens")["input_ids"] for text in texts
    ]
    assert [token for block in made for token in block["input_ids"] if token not in special] == [
        token for ids in plain for token in ids
    ]
    alone = sum(-(-len(ids) // 8) for ids in plain)
    assert len(made) == alone if not packing else len(made) < alone


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_packing_does_not_change_the_loss(kind, tmp_path):
    from transformers import AutoConfig

    tokenizer = train_tokenizer(lambda: TEXTS, 300)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "distilbert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), max_position_embeddings=40, initializer_range=0.3, pad_token_id=0, **sizes
    )
    model = AutoModelForMaskedLM.from_config(shape)
    masked_training.check_model(model, tokenizer, 38, True)
    config = PretrainConfig(input="x", output_dir=str(tmp_path), pretrain_model_path="x", device="cpu")
    packed, apart = (list(blocks.blocks(TEXTS[:7], tokenizer, 38, packing)) for packing in (True, False))
    assert len(packed) < len(apart) == 7
    trainer = masked_training.build_trainer(model, collator_of(tokenizer), (packed, packed), config)
    model.eval()
    sums = []
    for rows in (packed, apart):  # every word is labelled here
        rows = [
            row | {"labels": [token if word >= 0 else -100 for token, word in zip(row["input_ids"], row["words"])]}
            for row in rows
        ]
        sums.append(trainer.compute_loss(model, trainer.data_collator(rows), num_items_in_batch=1))
    torch.testing.assert_close(*sums)


def test_a_model_that_mixes_packed_texts_is_rejected():
    from transformers import AutoConfig

    tokenizer = train_tokenizer(lambda: TEXTS, 300)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("deberta-v2", vocab_size=len(tokenizer), **sizes))
    with pytest.raises(UserError, match="--no_packing"):
        masked_training.check_model(model, tokenizer, 32, True)
    masked_training.check_model(model, tokenizer, 32, False)


def test_words_of_a_block():
    assert blocks.word_numbers("don't 播放周杰伦的歌 x1").tolist()[:-1] == [1] * 6 + [2, 2, 3, 3, 3, 4, 5, 5, 6, 6]


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_whole_words_are_masked(kind):
    tokenizer = train_tokenizer(
        lambda: ["播放周杰伦的歌", "unbelievable lights of the kitchens", "abcdefghijklmnopqrstuvwxyz" * 2] * 2, 90
    )
    text = "播放周杰伦的歌 unbelievable kitchens"
    given = text if kind == "text" else [*text.split()[0], *text.split()[1:]]
    rows = list(blocks.blocks([given] * 3000, tokenizer, 40, packing=True))
    assert max(len(row["input_ids"]) for row in rows) > 20
    torch.manual_seed(1)
    batch = blocks.mask(collator_of(tokenizer), blocks.batch_of(rows, tokenizer))
    chosen = batch["labels"] != blocks.IGNORE
    partly, words, masked = 0, 0, 0
    for row, hit in zip(rows, chosen.tolist()):
        for word in set(row["words"]) - {-1}:
            hits = [h for h, w in zip(hit, row["words"]) if w == word]
            partly += any(hits) and not all(hits)
            words, masked = words + 1, masked + all(hits)
        assert not any(h for h, w in zip(hit, row["words"]) if w == -1)
    assert partly == 0 and words == 6 * 3000 and abs(masked / words - 0.15) < 0.01
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row["input_ids"]) for row in rows], True, tokenizer.pad_token_id
    )
    assert torch.equal(batch["labels"][chosen], ids[chosen]) and torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    replaced = (batch["input_ids"] == tokenizer.mask_token_id)[chosen].float().mean().item()
    kept = (batch["input_ids"] == ids)[chosen].float().mean().item()
    assert abs(replaced - 0.8) < 0.02 and abs(kept - 0.1) < 0.02


def held_out_oracle(config, model):
    """Returns (mean loss over the masked tokens of the held-out texts, their number), computed by plain torch."""
    tokenizer = AutoTokenizer.from_pretrained(config.pretrain_model_path)
    torch.manual_seed(config.random_seed)
    collator = collator_of(tokenizer)
    batches = [
        blocks.mask(collator, blocks.batch_of([row], tokenizer))
        for row in blocks.blocks(read_corpus(config)[1](), tokenizer, config.max_length)
    ]
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for batch in batches:
            begins = [place for place, token in enumerate(batch["input_ids"][0]) if token == tokenizer.cls_token_id]
            for start, stop in zip(begins, [*begins[1:], None]):  # each text of a block is encoded separately
                logits = model(input_ids=batch["input_ids"][:, start:stop]).logits.double()
                total += F.cross_entropy(
                    logits[0], batch["labels"][0, start:stop], ignore_index=-100, reduction="sum"
                ).item()
            count += (batch["labels"] != -100).sum().item()
    return total / count, count


def test_perplexity_starts_at_the_initial_models_and_falls(options, corpus, tmp_path, command):
    config = options(epochs=8, held_out_ratio=0.3)
    pretrain(config)
    figures = read_json(tmp_path / "out/pretraining.json")
    for side, folder in (("before", corpus / "bert"), ("after", tmp_path / "out")):
        loss, count = held_out_oracle(config, AutoModelForMaskedLM.from_pretrained(folder))
        assert figures[side]["masked_loss"] == pytest.approx(loss, rel=1e-5) and figures[side]["masked_tokens"] == count
        assert figures[side]["perplexity"] == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-4)
    assert figures["after"]["perplexity"] < figures["before"]["perplexity"] / 3
    older = {"generation_config.json", "special_tokens_map.json"}  # which transformers 4 also saves
    assert {path.name for path in (tmp_path / "out").iterdir()} - older == {
        *(
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "args.json",
            "pretraining.json",
            ".lock",
        )
    }
    with pytest.raises(UserError, match="already contains a finished model"):
        pretrain(config)


def test_the_training_loss_equals_the_loss_of_full_logits(options, corpus):
    model, tokenizer = encoder.load_model(options())
    rows = list(blocks.blocks((corpus / "texts.txt").read_text().split("\n"), tokenizer, 16))[:8]
    trainer = masked_training.build_trainer(model, collator_of(tokenizer), (rows, rows), options())
    torch.manual_seed(3)
    batch = trainer.data_collator(rows)
    model.eval()
    expected = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "position_ids", "labels")}).loss
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for parameter, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient)
    halves = trainer.compute_loss(model, dict(batch), num_items_in_batch=2 * (batch["labels"] != -100).sum())
    torch.testing.assert_close(2 * halves, expected)


@pytest.mark.slow
def test_killed_pretraining_resumes(corpus, tmp_path, background):
    flags = [
        "--input",
        corpus / "texts.txt",
        "--pretrain_model_path",
        corpus / "bert",
        "--max_length",
        16,
        "--batch_size",
        2,
    ]
    flags += ["--epochs", 6, "--eval_steps", 5, "--lr", 3e-3, "--early_stop_patience", 0, "--device", "cpu"]
    whole = background(PRETRAIN, *flags, "--output_dir", "whole")
    assert whole.printed() and whole.returncode == 0
    killed = background(PRETRAIN, *flags, "--output_dir", "out")
    checkpoints, deadline = tmp_path / "out/checkpoints", time.time() + 120
    while not list(checkpoints.glob("checkpoint-*/manifest.json")):
        assert time.time() < deadline and killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "out/pretraining.json").exists()
    (checkpoints / "checkpoint-99999").mkdir()  # as left by a process that is killed while saving
    (checkpoints / "checkpoint-99999/weights.safetensors").write_bytes(b"half")
    other = background(PRETRAIN, *flags, "--output_dir", "out", "--mlm_probability", "0.3")
    assert "mlm_probability was 0.15, is 0.3" in other.printed() and other.returncode == 2
    again = background(PRETRAIN, *flags, "--output_dir", "out")
    printed = again.printed()
    assert again.returncode == 0 and re.search(r"resuming from \S*checkpoint-\d{1,3}\n", printed), printed
    figures = [read_json(tmp_path / name / "pretraining.json") for name in ("out", "whole")]
    assert figures[0]["before"] == figures[1]["before"] and figures[0]["epochs"] == figures[1]["epochs"]
    assert figures[0]["after"]["masked_loss"] == pytest.approx(figures[1]["after"]["masked_loss"], rel=0.2)


def test_new_words_are_initialised_with_the_mean_of_their_pieces(corpus):
    model, tokenizer = encoder.load_model(
        PretrainConfig(input="x", output_dir="x", pretrain_model_path=str(corpus / "bert"), max_length=64)
    )
    old = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pieces = tokenizer("doorbag", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    words = ["doorbag", "DoorBag", "door", "阿司匹林"]  # "door" is one token already, and the texts are lower-cased
    assert encoder.add_words(words, model, tokenizer) == 2
    number = tokenizer.convert_tokens_to_ids("doorbag")
    assert tokenizer.tokenize("open the DoorBag now") == ["open", "the", "doorbag", "now"]
    assert "doorbag" not in tokenizer.tokenize("doorbags") and "阿司匹林" in tokenizer.tokenize("吃阿司匹林吗")
    embedding = model.get_input_embeddings().weight
    torch.testing.assert_close(embedding[number], embedding[pieces].mean(0))
    bias = model.get_output_embeddings().bias
    torch.testing.assert_close(bias[number], bias[pieces].mean())
    assert model.get_output_embeddings().weight is embedding and len(embedding) == len(bias) == len(tokenizer)
    torch.testing.assert_close(
        embedding[: len(old["bert.embeddings.word_embeddings.weight"])], old["bert.embeddings.word_embeddings.weight"]
    )


@pytest.mark.slow
def test_the_steps_from_texts_to_a_fine_tuned_model(sample, tmp_path, command):
    """The steps of the README: tokenizer, encoder from scratch, a domain word, fine-tuning with default options."""
    steps = [
        [TRAIN, "--input", sample, "--output_dir", "tokenizer", "--vocab_size", 400],
        [
            PRETRAIN,
            "--input",
            sample,
            "--pretrain_model_path",
            "tokenizer",
            "--from_scratch",
            "--config",
            "tiny",
            "--output_dir",
            "encoder",
        ],
        [
            "main.py",
            "--do_train",
            "--do_eval",
            "--data_path",
            sample,
            "--pretrain_model_path",
            "encoder",
            "--model_version",
            "mine",
        ],
    ]
    more = [
        [],
        ["--epochs", 1, "--batch_size", 4, "--device", "cpu", "--new_tokens", "living room"],
        ["--epochs", 1, "--device", "cpu"],
    ]
    for flags, extra in zip(steps, more):
        done = command(*flags, *extra)
        assert done.returncode == 0, done.stderr
    assert (
        len(AutoTokenizer.from_pretrained(tmp_path / "encoder"))
        == read_json(tmp_path / "encoder/config.json")["vocab_size"]
    )
    assert "dev" in read_json(tmp_path / "output/mine/eval.json")
    ours = load_file(tmp_path / "encoder/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert (
        load_file(tmp_path / "output/mine/checkpoints/best/weights.safetensors")[
            "encoder.embeddings.word_embeddings.weight"
        ].shape
        == ours.shape
    )


def test_models_without_a_masked_lm_head_are_rejected(corpus, tmp_path, options):
    tokenizer = AutoTokenizer.from_pretrained(corpus / "bert")
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path / "gpt"
    )
    tokenizer.save_pretrained(tmp_path / "gpt")
    with pytest.raises(UserError, match="gpt2 is not a masked language model"):
        pretrain(options(pretrain_model_path=str(tmp_path / "gpt")))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (corpus / "bert" / name).read_text()
        (tmp_path / "gpt" / name).write_text(
            text.replace('"mask_token": "[MASK]",', "").replace('"mask_token":"[MASK]",', "")
        )
    with pytest.raises(UserError, match="its tokenizer has no mask_token"):
        pretrain(options(pretrain_model_path=str(tmp_path / "gpt")))
    with pytest.raises(UserError, match="--from_scratch trains a new one"):
        tokenizer.save_pretrained(tmp_path / "alone")
        pretrain(options(pretrain_model_path=str(tmp_path / "alone")))
    with pytest.raises(UserError, match="positions"):
        pretrain(options(max_length=100))
    assert not (tmp_path / "out").exists()


# ---- regression tests -------------------------------------------------------------------------------------


def test_the_test_split_is_never_read(tmp_path):
    import datasets

    texts = {split: [f"{split} text {number}" for number in range(4)] for split in ("train", "dev", "test")}
    (tmp_path / "files").mkdir()
    for split, rows in texts.items():
        (tmp_path / f"files/{split}.txt").write_text("\n".join(rows))
    table = [
        {"text": text, "split": {"dev": "validation"}.get(split, split)}
        for split, rows in texts.items()
        for text in rows
    ]
    (tmp_path / "a.csv").write_text("text,split\n" + "".join(f"{row['text']},{row['split']}\n" for row in table))
    sets = {split: datasets.Dataset.from_dict({"text": rows}) for split, rows in texts.items()}
    datasets.DatasetDict(train=sets["train"], validation=sets["dev"], test=sets["test"]).save_to_disk(
        str(tmp_path / "saved")
    )
    for name in ("files", "files/*.txt", "a.csv", "saved"):
        train, held_out, _ = read_corpus(TokenizerConfig(input=str(tmp_path / name), output_dir="x"))
        assert sorted(train()) == texts["train"] and sorted(held_out()) == texts["dev"], name


def test_new_words_from_files_and_lists(corpus, tmp_path):
    (tmp_path / "words.txt").write_bytes("阿司匹林\n\nheart attack\n".encode("gb18030"))
    assert read_words(str(tmp_path / "words.txt"), "gb18030") == ["阿司匹林", "heart attack"]
    assert len(read_words(",".join(f"word{n}" for n in range(900)), "auto")) == 900
    with pytest.raises(UserError, match="no such file"):
        read_words(str(tmp_path / "none.txt"), "auto")
    model, _ = encoder.load_model(
        PretrainConfig(input="x", output_dir="x", pretrain_model_path=str(corpus / "bert"), max_length=64)
    )
    words = train_tokenizer(lambda: (corpus / "texts.txt").read_text().split("\n"), 200, model="wordlevel")
    before = len(words)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    assert encoder.add_words(["cardiomegaly", "hepatitis"], model, words) == 2 and len(words) == before + 2
    rows = model.get_input_embeddings().weight[-2:]
    assert not torch.equal(rows[0], rows[1])  # both words are unknown to the old tokenizer


@pytest.mark.slow
def test_pretraining_does_not_resume_with_other_texts(corpus, tmp_path, background):
    (tmp_path / "t.txt").write_text((corpus / "texts.txt").read_text())
    flags = [
        "--input",
        "t.txt",
        "--pretrain_model_path",
        corpus / "bert",
        "--max_length",
        16,
        "--batch_size",
        2,
        "--device",
        "cpu",
    ]
    flags += ["--epochs", 60, "--eval_steps", 5, "--early_stop_patience", 0, "--output_dir", "out"]
    first = background(PRETRAIN, *flags)
    deadline = time.time() + 120
    while not list((tmp_path / "out/checkpoints").glob("checkpoint-*/manifest.json")):
        assert time.time() < deadline and first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)  # saves at the next step, and reports how to resume
    printed = first.printed()
    assert first.returncode == 143 and "the same command resumes" in printed and "Traceback" not in printed
    (tmp_path / "t.txt").write_text((corpus / "texts.txt").read_text() + "\nquite another text\n")
    again = background(PRETRAIN, *flags)
    printed = again.printed()
    assert again.returncode == 2 and "texts, tokenizer and first weights was" in printed and printed.count("\n") <= 2, (
        printed
    )


@pytest.mark.slow
def test_invalid_rows_and_blank_texts_raise_a_one_line_error(corpus, tmp_path, command):
    (tmp_path / "late.txt").write_bytes(b"open the door now\n" * 10 + b"close the box %d\n" * 3000 + b"bad \xff row\n")
    (tmp_path / "zero.txt").write_text("\u200b\n\u200b \u200b\n" * 40, encoding="utf-8")
    base = [
        "--pretrain_model_path",
        corpus / "bert",
        "--output_dir",
        "out",
        "--max_length",
        16,
        "--held_out_ratio",
        0.5,
    ]
    for name, words in (("late.txt", "row 3011: not UTF-8"), ("zero.txt", "token")):
        done = command(PRETRAIN, "--input", name, *base)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr


def test_an_output_folder_can_be_reused_after_an_error(options, tmp_path):
    with pytest.raises(UserError, match="raise --held_out_ratio"):
        pretrain(options(held_out_ratio=0.05, mlm_probability=1e-9))
    pretrain(options(held_out_ratio=0.3, epochs=1))  # as advised by the message
    assert (tmp_path / "out/pretraining.json").exists()
