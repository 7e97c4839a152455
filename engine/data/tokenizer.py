"""Loads a pretrained tokenizer, or trains one on texts."""

from __future__ import annotations

import io
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import regex
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.errors import UserError
from engine.model.hub import locate
from engine.run.command_line import first_line
from engine.run.run_folder import check_not_a_run, checkpoint_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from config import Config

logger = logging.getLogger("template")
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}

# Characters that BERT's normaliser surrounds with spaces: ideographs, but not kana or hangul
IDEOGRAPH = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f"
# Characters that are always separate words, including ASCII symbols
APART = regex.compile(rf"[{IDEOGRAPH}\p{{P}}$+<=>^`|~]")


def load_tokenizer(config: Config, texts: Callable[[], Iterator[str]], own: Path | None = None) -> Any:
    """Loads the tokenizer of --pretrain_model_path or --init_from, or trains one on the texts (see `train_tokenizer`).

    own: the checkpoint of a resumed run that started from --init_from; its tokenizer is loaded. Returns None with
    --encoder none.
    """
    if config.encoder == "none":
        return None
    name: str = config.pretrain_model_path
    needed: Sequence[str] = ("pad_token", "unk_token", "cls_token")
    if own or config.init_from:
        tokenizer = saved_tokenizer(own or checkpoint_of(config.init_from))
        tokenizer.add_tokens(named_tokens(config), special_tokens=True)
        return tokenizer
    if not name:
        logger.info("no --pretrain_model_path: training a tokenizer on the training texts")
        tokenizer = train_tokenizer(texts, config.vocab_size)
    else:
        check_not_a_run(name, "checkpoints")
        place = locate(name, config.model_hub)
        if causal := reads_causally(config):
            needed = ()
        tokenizer = pretrained_tokenizer(place, needed)
        if causal:
            require_padding(tokenizer, name)
        elif isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
            # As in RoBERTa, words start with a space, so the first word and pre-split words need one too
            tokenizer = pretrained_tokenizer(place, needed, add_prefix_space=True)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        if "is_local" in tokenizer.init_kwargs:  # it is saved, and must not depend on whether the hub responded
            tokenizer.init_kwargs["is_local"] = Path(name).is_dir()
    if config.special_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": named_tokens(config)})
    return tokenizer


def named_tokens(config: Config) -> list[str]:
    """Returns the tokens listed in --special_tokens."""
    return [token.strip() for token in config.special_tokens.split(",")] if config.special_tokens else []


def saved_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a checkpoint. Raises UserError if that fails."""
    from transformers import AutoTokenizer

    from engine.model.encoders import require_plausible, shape_file  # imported here, because it imports torch
    from engine.run.compat import accept_words

    try:
        if shape_file(folder).exists():  # a BiLSTM has none
            require_plausible(shape_file(folder))
        return accept_words(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except UserError:
        raise
    except Exception as error:  # transformers can raise any error for an arbitrary folder
        raise UserError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)})") from None


def reads_causally(config: Config) -> bool:
    from engine.model.encoders import is_causal, pretrained_shape  # here, because other commands do not need it

    return is_causal(pretrained_shape(config))


def require_padding(tokenizer: Any, name: str) -> None:
    """Sets the padding token of a decoder's tokenizer to the end-of-text token, if it has none."""
    if tokenizer.pad_token is None:
        token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
        if token is None:
            raise UserError(f"--pretrain_model_path {name}: no padding, EOS, BOS or unknown token to pad with")
        logger.info(f"{name} has no padding token; using {token}, which is masked in attention and in the loss")
        tokenizer.pad_token = token


def pretrained_tokenizer(name: str, needed: Sequence[str], **options: Any) -> Any:
    """Loads the fast tokenizer of a folder or hub name. Raises UserError if it lacks a special token in `needed`."""
    from transformers import AutoTokenizer

    from engine.model.encoders import require_plausible  # imported here, because it imports torch
    from engine.run.compat import accept_words

    try:
        if (Path(name) / "config.json").exists():
            require_plausible(name)
        tokenizer = accept_words(AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options))
    except Exception as error:  # transformers may raise any exception for a third-party folder
        raise UserError(f"--pretrain_model_path {name}: its tokenizer cannot be loaded ({first_line(error)})") from None
    missing = [kind for kind in needed if getattr(tokenizer, kind) is None]
    if missing or not tokenizer.is_fast:
        problem = f"its tokenizer has no {', '.join(missing) or 'fast version'}"
        raise UserError(f"--pretrain_model_path {name}: {problem}; use a BERT-like model")
    return tokenizer


def train_tokenizer(
    texts: Callable[[], Iterator[str]],
    vocab_size: int,
    lowercase: bool = True,
    model: str = "wordpiece",
    chinese: bool = True,
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Trains a fast transformers tokenizer on texts, with BERT's special tokens and [CLS] A [SEP] B [SEP].

    The result is deterministic. No piece crosses a word boundary, so pre-split and raw texts get the same pieces.
    texts: a function that returns a new iterator of strings; called up to twice, to save memory.
    model: "wordpiece" (BERT) or "wordlevel" (whole words), which exclude units that occur only once, so the embedding
    of [UNK] is trained too; "bpe" over bytes (RoBERTa), which can encode every text; "unigram" (XLM-RoBERTa). chinese:
    make every Chinese character a separate word; otherwise the model learns to segment them.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = assemble(model, lowercase, chinese)
    special, room = list(SPECIAL.values()), vocab_size - len(SPECIAL)
    options: dict[str, Any] = dict(vocab_size=vocab_size, special_tokens=special, show_progress=show_progress)
    if model == "wordpiece":
        # The trainer orders the ##pieces of single characters by hash, so ties between merges would be broken
        # differently in each run (huggingface/tokenizers#1794). Special tokens have a fixed order.
        characters = alphabet(texts(), tokenizer.normalizer, room, chinese)
        inner = [f"##{character}" for character in characters if not (chinese and APART.match(character))]
        options |= dict(special_tokens=special + inner, initial_alphabet=characters)
        options["limit_alphabet"] = max(1, len(characters))
        tokenizer.train_from_iterator(texts(), trainers.WordPieceTrainer(**options))
        vocabulary = tokenizer.get_vocab()
        tokenizer = assemble(model, lowercase, chinese, vocabulary)  # rebuilt with ##pieces as normal tokens
    elif model == "bpe":
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(texts(), trainers.BpeTrainer(**options))
    elif model == "unigram":
        pieces = unigram_pieces(texts(), tokenizer.normalizer, room)
        tokenizer = assemble(model, lowercase, chinese, [(token, 0.0) for token in special] + pieces)
    else:
        tokenizer.train_from_iterator(texts(), trainers.WordLevelTrainer(**options, min_frequency=2))
    cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **SPECIAL)


def assemble(model: str, lowercase: bool, chinese: bool, vocab: Any = None) -> Tokenizer:
    """Builds a Tokenizer with the pre-tokenizer and decoder of a model type. Only `vocab` is learned.

    All model types first split at whitespace and around punctuation. Decoded text has no spaces between Chinese
    characters.
    """
    unknown, decoder = SPECIAL["unk_token"], cast(Any, decoders.WordPiece())
    pieces: list[Any] = []
    if model == "wordpiece":
        body: Any = models.WordPiece(vocab or {}, unk_token=unknown)
    elif model == "wordlevel":
        body = models.WordLevel(vocab or {}, unk_token=unknown)
    elif model == "bpe":
        body, decoder = models.BPE(), decoders.ByteLevel()
        pieces = [pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]
    else:
        body = models.Unigram(vocab, list(SPECIAL).index("unk_token")) if vocab else models.Unigram()
        pieces, decoder = [pre_tokenizers.Metaspace()], decoders.Metaspace()
    join = [decoders.Fuse(), decoders.Replace(Regex(f"(?<=[{IDEOGRAPH}]) (?=[{IDEOGRAPH}])"), "")]
    tokenizer = Tokenizer(body)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, handle_chinese_chars=chinese)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), *pieces])
    tokenizer.decoder = decoders.Sequence([decoder, *join])
    return tokenizer


def unigram_pieces(texts: Iterable[str], normalizer: normalizers.Normalizer, size: int) -> list[tuple[str, float]]:
    """Learns [(piece, log probability)] with SentencePiece (Kudo, 2018) from at most 200,000 of the texts.

    The trainer of `tokenizers` is nondeterministic, and never learns a piece for a word that occurs in no other word.
    """
    import sentencepiece

    rng, sample = random.Random(0), []
    for number, text in enumerate(texts):  # reservoir sampling: each text is equally likely to be kept
        if number < 200_000:
            sample.append(text)
        elif (index := rng.randrange(number + 1)) < len(sample):
            sample[index] = text
    cut, trained = pre_tokenizers.BertPreTokenizer().pre_tokenize_str, io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(" ".join(word for word, _ in cut(normalizer.normalize_str(text))) for text in sample),
            model_writer=trained,
            vocab_size=size + 1,  # including SentencePiece's unknown piece
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            **cast(Any, dict(unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1)),
            max_sentence_length=1_000_000,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"--model unigram cannot be trained on these texts: {first_line(error)}") from None
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    return [(pieces.id_to_piece(number), pieces.get_score(number)) for number in range(1, len(pieces))]


def alphabet(texts: Iterable[str], normalizer: normalizers.Normalizer, size: int, chinese: bool) -> list[str]:
    """Returns the most frequent characters that occur more than once and fit into `size` vocabulary entries, sorted."""
    counts: Counter[str] = Counter()
    for character, count in Counter(chain.from_iterable(texts)).items():
        for normalized in normalizer.normalize_str(character).strip():
            counts[normalized] += count
    kept = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        size -= 1 if chinese and APART.match(character) else 2  # characters in words have two entries, X and ##X
        if count > 1 and size >= 0:
            kept.append(character)
    return sorted(kept)
