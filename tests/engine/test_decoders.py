"""Decoder-only models: which token they are read at, independence of padding, tokenizers without special tokens."""

import logging

import pytest
import torch
import transformers as hf
from test_families import DECODERS, build, close, decoders_tokenizer, logits_of, save_family

from config import Config
from data_loader import MyDataset
from engine.data.features import Featurizer
from engine.data.tokenizer import load_tokenizer
from engine.errors import UserError
from engine.model.encoders import is_causal, pooling_of
from engine.model.pooling import text_vectors, word_vectors
from engine.task.task import Task

TEXTS = ["turn on the light in the kitchen", "play a song by the beatles", "wake me up at seven", "播放音乐"] * 5
KINDS = ("gpt2", "neox", "qwen", "llama", "gemma")
TASKS = {
    "intent": Task("classification", labels=["a", "b"]),
    "slots": Task("tagging", labels=["O", "B-x", "I-x"], unit="word"),
}
TAGGED = {"intent": "a", "slots": None}


def tokenizer_of(kind):
    tokenizer = decoders_tokenizer(kind, TEXTS)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def example(words, **more):
    return {"tokens": words, "intent": "a", "slots": ["O"] * len(words), **more}


def dataset(tokenizer, examples, length=64, stride=-1, tasks=TASKS):
    return MyDataset(examples, Featurizer(tokenizer, tasks, length, stride, word_ends=True))


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_tokenized_like_running_text(kind):
    tokenizer, words = tokenizer_of(kind), "play a song by the lightsongby beatles".split()
    inputs = dataset(tokenizer, [example(words)]).batch([0]).inputs
    ids = inputs["input_ids"][0].tolist()
    assert ids == tokenizer([" ".join(words)]).encodings[0].ids  # the tokens that occur in running text
    starts, ends = inputs["word_starts"][0].tolist(), inputs["word_ends"][0].tolist()
    assert [tokenizer.decode(ids[a : b + 1]).strip() for a, b in zip(starts, ends)] == words
    assert ends[-1] == len(ids) - 1 and starts[1:] == [end + 1 for end in ends[:-1]]


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_chinese_characters_are_joined_like_running_text(kind):
    tokenizer = tokenizer_of(kind)
    inputs = dataset(tokenizer, [example(list("播放"))]).batch([0]).inputs
    assert tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True).strip() == "播放"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length, stride", [(8, 0), (8, 2), (9, 4), (16, 5)])
def test_windows_have_the_ends_of_words(kind, length, stride):
    tokenizer, words = tokenizer_of(kind), (" ".join(TEXTS[:3]) + " lightsongby").split()
    data = dataset(tokenizer, [example(words)], length, stride)
    assert len(data.lengths) > 1
    for row in range(len(data.lengths)):
        inputs, first = data.batch([row]).inputs, data.columns["first_word"][row]
        ids = inputs["input_ids"][0].tolist()
        for place, (start, end) in enumerate(zip(inputs["word_starts"][0].tolist(), inputs["word_ends"][0].tolist())):
            text = tokenizer.decode(ids[start : end + 1]).strip()
            assert text == words[first + place] or (end == len(ids) - 1 and words[first + place].startswith(text))


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_words_and_empty_texts_get_a_token(kind):
    tokenizer = tokenizer_of(kind)
    inputs = dataset(tokenizer, [example(["play", "", "song"]), example([""]), example([])]).batch([0, 1, 2]).inputs
    assert inputs["word_mask"].sum(1).tolist() == [3, 1, 0]
    ids, places = inputs["input_ids"][0], inputs["word_starts"][0].tolist()
    assert ids[places[1]] == tokenizer.convert_tokens_to_ids(tokenizer.unk_token or tokenizer.pad_token)
    assert (inputs["attention_mask"].sum(1) >= 1).all()
    texts = {"intent": TASKS["intent"]}
    inputs = dataset(tokenizer, [{"text": "", "intent": "a"}, {"text": "play", "intent": "b"}], tasks=texts).batch(
        [0, 1]
    )[0]
    assert (inputs["attention_mask"].sum(1) >= 1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_words", [False, True])
def test_pairs_are_joined_by_a_separator(kind, by_words):
    tokenizer, tasks = tokenizer_of(kind), TASKS if by_words else {"intent": TASKS["intent"]}
    row = example("play a song".split()) if by_words else {"text": "play a song", "intent": "a"}
    inputs = dataset(tokenizer, [row | {"text_pair": "wake me up"}], tasks=tasks).batch([0]).inputs
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    special = [place for place, token in enumerate(tokens) if token in tokenizer.all_special_tokens]
    between = [place for place in special if place > 0]
    assert len(between) == 1 and tokenizer.decode(
        inputs["input_ids"][0][: between[0]], skip_special_tokens=True
    ).strip() == ("play a song")
    if by_words:
        assert inputs["word_mask"].sum() == 3 and inputs["word_ends"][0, -1] == between[0] - 1


def test_positions_at_which_texts_and_words_are_read():
    torch.manual_seed(0)
    hidden, mask = torch.randn(2, 6, 4), torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    inputs = {"attention_mask": mask, "word_starts": torch.tensor([[1, 3], [0, 1]])}
    inputs["word_ends"] = torch.tensor([[2, 5], [0, 2]])
    assert torch.equal(text_vectors(hidden, inputs, "first"), hidden[:, 0])
    assert torch.equal(text_vectors(hidden, inputs, "last"), torch.stack([hidden[0, 5], hidden[1, 2]]))
    assert torch.equal(word_vectors(hidden, inputs, "last")[0], hidden[0, [2, 5]])
    assert torch.equal(word_vectors(hidden, inputs, "first")[1], hidden[1, [0, 1]])
    means = torch.stack([hidden[0, 1:3].mean(0), hidden[0, 3:6].mean(0)])
    torch.testing.assert_close(word_vectors(hidden, inputs, "mean")[0], means)


def test_auto_pooling_of_decoders_is_last_token_and_choices_are_kept():
    bert, llama, xlnet = hf.BertConfig(), hf.LlamaConfig(), hf.XLNetConfig()
    assert pooling_of(Config(), bert) == pooling_of(Config(), None) == ("first", "first")
    assert pooling_of(Config(), llama) == ("last", "last") and pooling_of(Config(), xlnet) == ("last", "first")
    assert pooling_of(Config(pooling="first", word_pooling="mean"), llama) == ("first", "mean")
    assert is_causal(hf.BertConfig(is_decoder=True)) and not is_causal(hf.BartConfig())
    assert not is_causal(hf.Gemma3TextConfig(use_bidirectional_attention=True))  # EmbeddingGemma


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Gemma 3, text", "Qwen3", "GPT-NeoX"])
def test_padding_does_not_change_predictions(name, tiny, tmp_path, sample):
    """Predictions are equal for a right-padded batch, for single texts, with another padding vector, and with another
    padding side of the tokenizer. Training does not change the padding vector."""
    folder = save_family(name, tmp_path / "model", sample)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, padding_side="left", truncation_side="left")
    tokenizer.save_pretrained(folder)
    trainer = build(tiny(pretrain_model_path=folder, use_crf=True, epochs=1, max_length=64, weight_decay=0.0))
    table, data = trainer.model.encoder.get_input_embeddings().weight, trainer.dev_loader.dataset
    before, train = table.detach().clone(), trainer.train_loader.dataset
    pad = data.pad_id
    assert not (train.columns["input_ids"].values == pad).any()
    trainer.train()
    assert torch.equal(table[pad], before[pad]) and not torch.equal(table, before)
    model = trainer.model.eval()
    together = logits_of(model, data, range(12))
    assert data.batch(range(12)).inputs["attention_mask"][:, 0].all()  # padded on the right
    close(together, [torch.cat(parts) for parts in zip(*(logits_of(model, data, [row]) for row in range(12)))])
    with torch.no_grad():
        table[pad] = 50 * torch.randn_like(table[pad])
    for ours, theirs in zip(together, logits_of(model, data, range(12))):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_missing_padding_token_is_logged(kind, tiny, tmp_path, sample, caplog):
    name = {"gpt2": "GPT-2", "llama": "Llama"}[kind]
    config = tiny(pretrain_model_path=save_family(name, tmp_path / "model", sample))
    logging.getLogger("template").propagate = True
    with caplog.at_level(logging.INFO, "template"):
        tokenizer = load_tokenizer(config, None)
    assert tokenizer.pad_token == tokenizer.eos_token and "has no padding token" in caplog.text


def test_decoder_length_limits_and_caches(tiny, tmp_path, sample):
    folder = save_family("GPT-2", tmp_path / "model", sample)
    shape = hf.AutoConfig.from_pretrained(folder)
    model = build(tiny(pretrain_model_path=folder, max_length=64)).model
    assert model.encoder.config.use_cache is False and not model.takes_token_types
    with pytest.raises(UserError, match=f"exceeds the {shape.n_positions} positions"):
        build(tiny(pretrain_model_path=folder, max_length=shape.n_positions + 1))


@pytest.mark.parametrize("pooling, word_pooling", [("mean", "mean"), ("first", "first"), ("last", "last")])
@pytest.mark.parametrize("name", ["BERT", "GPT-2"])
def test_every_pooling_trains_and_is_independent_of_the_batch(name, pooling, word_pooling, tiny, tmp_path, sample):
    folder = save_family(name, tmp_path / "model", sample)
    options = dict(pooling=pooling, word_pooling=word_pooling, epochs=1, max_length=16, window_stride=4)
    trainer = build(tiny(pretrain_model_path=folder, **options))
    trainer.train()
    model, data = trainer.model.eval(), trainer.dev_loader.dataset
    alone = [torch.cat(parts) for parts in zip(*(logits_of(model, data, [row]) for row in range(8)))]
    close(logits_of(model, data, range(8)), alone)


def test_every_decoder_family_is_recognised():
    assert all(is_causal(make()) for make, _ in DECODERS.values())
