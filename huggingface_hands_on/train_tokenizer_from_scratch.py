"""Trains a tokenizer on your own texts. `main.py` also trains one if there is no pretrained model.

    python huggingface_hands_on/train_tokenizer_from_scratch.py --input TEXTS --output_dir models/tokenizer

TEXTS: a file, a folder, or a quoted pattern; plain text (one text per row), CSV, JSONL, CoNLL, or a processed folder.
Edit engine/data/tokenizer.py if your language or domain needs another normalisation or pre-tokenizer.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository is not in the path of a script

from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.run.command_line import option, run_command
from engine.task.text import split_text
from huggingface_hands_on.corpus import CorpusConfig, read_corpus, require_free_folder


@dataclass(frozen=True)
class TokenizerConfig(CorpusConfig):
    """Options of `huggingface_hands_on/train_tokenizer_from_scratch.py`."""

    model: Literal["wordpiece", "bpe", "unigram", "wordlevel"] = option(
        "wordpiece", "wordpiece (BERT), bpe over bytes (RoBERTa), unigram (XLM-RoBERTa) or wordlevel (whole words)"
    )
    vocab_size: int = option(8000, "size of the vocabulary; use fewer entries for a small corpus", low=6)
    lowercase: bool = option(True, "convert texts to lower case and remove accents")
    chinese: bool = option(True, "make every Chinese character a separate word, which tagging needs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "bpe" and self.vocab_size < 300:
            raise UserError(f"--vocab_size={self.vocab_size} must be at least 300, because bpe starts with all bytes")


def main(config: TokenizerConfig) -> None:
    from tqdm import tqdm

    folder = Path(config.output_dir)
    train, held_out, _ = read_corpus(config)
    require_free_folder(folder)
    bar = partial(tqdm, unit=" texts", leave=False, delay=2)

    def texts() -> Iterator[str]:
        for text in bar(train(), desc="reading"):
            yield text if isinstance(text, str) else " ".join(text)

    show = sys.stderr.isatty()
    tokenizer = train_tokenizer(texts, config.vocab_size, config.lowercase, config.model, config.chinese, show)
    counts: Counter[str] = Counter()
    for text in bar(held_out(), desc="held-out texts"):
        words = [word for word, _, _ in split_text(text, "word")] if isinstance(text, str) else text
        tokens = tokenizer(text, add_special_tokens=False, is_split_into_words=isinstance(text, list))["input_ids"]
        counts["texts"] += 1
        counts["words"] += sum(bool(word.strip()) for word in words)
        counts["tokens"] += len(tokens)
        counts["unknown"] += tokens.count(tokenizer.unk_token_id)
    if not counts["tokens"]:
        raise UserError(f"{config.input}: tokenizing the texts gives no tokens; the tokenizer drops all characters")
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {config.model}, vocabulary of {len(tokenizer)}")
    if len(tokenizer) > config.vocab_size:
        needed = f"{config.model} needs this many for the characters alone"
        print(f"that is more than --vocab_size {config.vocab_size}: {needed}")
    unknown = f"[UNK] {counts['unknown'] / counts['tokens']:.2%} of {counts['tokens']} tokens"
    per_word = counts["tokens"] / max(1, counts["words"])
    print(f"held out, {counts['texts']} texts: {unknown}, {per_word:.3f} tokens per word")


if __name__ == "__main__":
    sys.exit(run_command(main, TokenizerConfig))
