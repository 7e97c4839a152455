"""Checks of the tokenized texts: lost tokens and entities, and unknown characters."""

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from engine.task.text import text_of
from preprocess.checks.base import Splits, Tasks
from preprocess.checks.entities import entities_of
from preprocess.example import Example
from preprocess.storage.arrow import blocks_of
from preprocess.storage.facts import Note, Sample

if TYPE_CHECKING:
    from engine.data.features import Featurizer


def check_encoding(splits: Splits, tasks: Tasks, featurizer: "Featurizer") -> Iterator[Note]:
    """Yields notes on the tokenized data: texts over max_length, lost tokens and unknown characters."""
    tokenizer, length = featurizer.tokenizer, featurizer.max_length
    special = [token for token in tokenizer.all_special_tokens if token.strip()]
    rows: dict[str, Sample] = defaultdict(Sample)
    for split, start, stop in tqdm(list(blocks_of(splits)), desc="tokenizer", leave=False, delay=2):
        chunk = splits[split][start:stop]
        words = [e["tokens"] if "tokens" in e else e["text"] for e in chunk]
        options = dict(is_split_into_words="tokens" in chunk[0], add_special_tokens=False, verbose=False)
        for e, encoding in zip(chunk, tokenizer(words, **options).encodings):
            for fault, detail in encoding_faults(e, encoding, featurizer, tasks, special):
                rows[fault].add(f"{e['_where']}: {detail}")
    advice = "they are split into windows or truncated (--long_text, --window_stride); a larger --max_length is faster"
    yield Note(f"texts are longer than --max_length {length}", rows["long"], advice)
    advice = "they are covered by windows (--window_stride); a larger --max_length is faster"
    yield Note(f"entities are beyond --max_length {length}", rows["entity"], advice)
    advice = "they are replaced with [UNK], so that tags do not shift; remove them if they are meaningless"
    yield Note("tokens that the tokenizer drops", rows["vanished"], advice)
    share = rows["unknown"].number / sum(map(len, splits.values()))
    if share > 0.1:
        advice = "use another tokenizer, or add them with --new_tokens of continue_pretrain_task.py"
        yield Note(f"characters become [UNK] ({share:.1%} of the rows)", rows["unknown"], advice)
    advice = "they are read as special tokens; add markers with --special_tokens"
    yield Note("texts contain special tokens of the tokenizer", rows["special"], advice)


def encoding_faults(
    e: Example, encoding: Any, featurizer: "Featurizer", tasks: Tasks, special: list[str]
) -> Iterator[tuple[str, str]]:
    """Yields (kind, detail) for each tokenization problem of an example."""
    tokenizer, pair, tokens = featurizer.tokenizer, e.get("text_pair"), e.get("tokens")
    max_tokens = featurizer.max_length - 2
    if pair:
        max_tokens -= len(tokenizer(pair, add_special_tokens=False)["input_ids"]) + 1
    if len(encoding.ids) > max_tokens:
        yield "long", f"{len(encoding.ids) + 2} sub-tokens"
        kept = set(encoding.word_ids[:max_tokens])
        for name, task in tasks.items():
            if task.needs_words and e[name]:
                lost = [(label, words) for label, _, last, words in entities_of(e, name) if last not in kept]
                yield from [("entity", f"{label} {' '.join(words)!r}") for label, words in lost[:1]]
    if tokens:
        present = set(encoding.word_ids)
        yield from [("vanished", ascii(token)) for i, token in enumerate(tokens) if i not in present][:1]
    if tokenizer.unk_token_id in encoding.ids:
        i = encoding.ids.index(tokenizer.unk_token_id)
        start, stop = encoding.offsets[i]
        yield "unknown", repr(tokens[encoding.word_ids[i]] if tokens else e["text"][start:stop])
    yield from [("special", token) for token in special if token in text_of(e)][:1]
