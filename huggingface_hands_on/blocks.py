"""Converts texts to blocks of sub-tokens, and blocks to batches of tensors with masked words.

For another pretraining task, edit `mask` and `MaskedTrainer.compute_loss`.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import regex
import rjieba
import torch
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForLanguageModeling

from engine.errors import UserError
from engine.run import files
from engine.run.command_line import first_line
from engine.task.task import IGNORE
from engine.task.text import join_tokens, split_text
from huggingface_hands_on.corpus import Texts


def word_numbers(text: str) -> np.ndarray:
    """Returns the word index of each character of a text, for masking the sub-tokens of a word together. Chinese is
    segmented by rjieba. Every kana, punctuation mark or other symbol is a word."""
    starts = np.zeros(len(text) + 1, int)
    for _, start, _ in split_text(text, "word"):
        starts[start] = 1
    for run in regex.finditer(r"\p{Han}{2,}", text):
        position = run.start()
        for word in rjieba.cut(run.group()):
            starts[position + 1 : position + len(word)] = 0
            position += len(word)
    return starts.cumsum()


def encode_texts(
    texts: Iterable[str | list[str]], tokenizer: Any, whole_word: bool
) -> Iterator[tuple[list[int], Sequence[int]]]:
    """Yields (token ids, word indices) for each text, without special tokens. Words of a list are never joined."""
    texts = iter(texts)
    while chunk := list(islice(texts, 1000)):
        for kind, group in groupby(chunk, type):
            same: list[Any] = list(group)
            encoded = tokenizer(same, is_split_into_words=kind is list, add_special_tokens=False, verbose=False)
            for text, encoding in zip(same, encoded.encodings):
                if not whole_word:
                    words: Sequence[int] = range(len(encoding.ids))
                elif kind is list:
                    joined, spans = join_tokens(text, "word")
                    words = word_numbers(joined)[[spans[word][0] for word in encoding.word_ids]].tolist()
                else:
                    words = word_numbers(text)[[max(start, end - 1) for start, end in encoding.offsets]].tolist()
                yield encoding.ids, words


def blocks(
    texts: Iterable[str | list[str]], tokenizer: Any, max_length: int, packing: bool = True, whole_word: bool = True
) -> Iterator[dict[str, list[int]]]:
    """Packs texts into blocks of [CLS] text [SEP] … with at most max_length tokens, and yields {"input_ids", "words"}.
    "words" is -1 at special tokens. A text that is too long is split, so nothing is lost."""
    room = max_length - 2
    ids: list[int] = []
    words: list[int] = []
    for text_ids, text_words in encode_texts(texts, tokenizer, whole_word):
        for start in range(0, len(text_ids), room):
            piece = [tokenizer.cls_token_id, *text_ids[start : start + room], tokenizer.sep_token_id]
            if ids and (not packing or len(ids) + len(piece) > max_length):
                yield {"input_ids": ids, "words": words}
                ids, words = [], []
            first = max(words, default=-1) + 1
            ids = ids + piece
            words = [*words, -1, *(first + word for word in text_words[start : start + room]), -1]
    if ids:
        yield {"input_ids": ids, "words": words}


def batch_of(rows: Sequence[dict[str, Any]], tokenizer: Any, first_position: int = 0) -> dict[str, torch.Tensor]:
    """Converts rows of `blocks`, optionally with "labels", to tensors for the model. The texts of a block do not attend
    to each other, and their positions all start at first_position, so packing only affects speed."""
    fill = {"input_ids": tokenizer.pad_token_id, "words": -2, "labels": IGNORE}
    batch = {name: pad_sequence([torch.tensor(row[name]) for row in rows], True, fill[name]) for name in rows[0]}
    starts = (batch["words"] == -1) & (batch["input_ids"] == tokenizer.cls_token_id)
    text = starts.cumsum(1).masked_fill(batch["words"] == -2, 0)
    positions = torch.arange(starts.shape[1]).expand_as(text)
    batch["position_ids"] = positions - torch.where(starts, positions, 0).cummax(1).values + first_position
    # (B, L), or (B, 1, L, L) if texts share a block
    batch["attention_mask"] = text if text.max() == 1 else (text[:, :, None] == text[:, None, :]).unsqueeze(1)
    return batch


def masking_collator(config: Any, tokenizer: Any) -> DataCollatorForLanguageModeling:
    """Creates the collator that masks words: 80 % [MASK], 10 % another token, 10 % unchanged (Devlin et al., 2019)."""
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=config.mlm_probability)
    # Set afterwards, because the constructor rejects random replacement with whole words
    collator.whole_word_mask = config.whole_word
    if config.whole_word and not hasattr(DataCollatorForLanguageModeling, "whole_word_mask"):
        collator.share_of_words, collator.mlm_probability = config.mlm_probability, 1.0
    return collator


def mask(collator: DataCollatorForLanguageModeling, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Masks words of a batch from `batch_of` with Hugging Face's collator, and adds the labels. The collator detects
    word boundaries by gaps between token offsets, so these offsets have a gap where the word index changes."""
    words = batch["words"].clamp(min=-1)
    special: tuple[torch.Tensor, ...] = ((words < 0).long(),)
    if hasattr(DataCollatorForLanguageModeling, "whole_word_mask"):
        starts = torch.arange(words.shape[1]) + words.clamp(min=0)
        special += (torch.stack([starts, starts + 1], 2),)
    elif collator.whole_word_mask:
        special = (outside_drawn_words(words, collator.share_of_words).long(),)
    ids, labels = collator.torch_mask_tokens(batch["input_ids"].clone(), *special)
    return batch | {"input_ids": ids, "labels": labels}


def outside_drawn_words(words: torch.Tensor, share: float) -> torch.Tensor:
    """Samples a fraction of the words and returns the mask of the tokens outside them, (B, L). For collators of
    transformers before 4.57, which sample single tokens. words: word indices (B, L) as in `blocks`"""
    numbers = (words != words.roll(1, 1)).cumsum(1)  # from 0 or 1, unique in a block
    drawn = torch.rand(len(words), words.shape[1] + 1) < share
    return (words < 0) | ~drawn.gather(1, numbers)


class Keyed:
    """A generator function that is serialized as its key, because `datasets` names a cache by the serialized hash."""

    def __init__(self, function: Callable[..., Iterator[Any]], key: str) -> None:
        self.function, self.key = function, key

    def __call__(self, **options: Any) -> Iterator[Any]:
        return self.function(**options)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return str, (self.key,)


def build_sets(
    config: Any, collator: DataCollatorForLanguageModeling, texts: Sequence[Texts], key: str
) -> tuple[Dataset, Dataset]:
    """Builds the (train, held-out) datasets on disk. Held-out words are masked only once, so losses are comparable.

    texts: functions that read the training texts and the held-out texts; key: identifies the cached blocks
    """

    def rows(side: int) -> Iterator[dict[str, list[int]]]:
        return blocks(texts[side](), collator.tokenizer, config.max_length, config.packing, config.whole_word)

    def masked() -> Iterator[dict[str, list[int]]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.random_seed)
            for row in islice(rows(1), 5000):  # enough for evaluation
                batch = mask(collator, batch_of([row], collator.tokenizer))
                yield {name: batch[name][0].tolist() for name in ("input_ids", "words", "labels")}

    cache = Path(config.output_dir) / ".cache"
    if cache.exists() and (reason := files.verify(cache)):  # no manifest: the run was killed while writing it
        if (cache / "manifest.json").exists():
            print(f"{cache}: damaged ({reason}); rebuilding it")
        shutil.rmtree(cache)
    try:
        train = Dataset.from_generator(Keyed(rows, f"train-{key}"), gen_kwargs={"side": 0}, cache_dir=str(cache))
        held_out = Dataset.from_generator(Keyed(masked, f"held-out-{key}"), cache_dir=str(cache))
        files.seal(cache)
    except DatasetGenerationError as error:
        cause: Any = error
        while cause := cause.__cause__ or cause.__context__:
            if isinstance(cause, UserError | OSError):  # an error of the texts or the disk
                raise cause from None
        raise UserError(f"{config.input}: tokenizing the texts gives no tokens ({first_line(error)})") from None
    if all(label == IGNORE for row in held_out for label in row["labels"]):
        few = "too few held-out texts: none of their words is masked"
        raise UserError(f"{config.input}: {few}; raise --held_out_ratio")
    return train, held_out
