"""A WordPiece tokenizer of your own, from texts. `main.py` uses it when there is no pretrained model.

Edit here when your language or domain needs another normalisation or another model of sub-words.
"""

import re
import string
import unicodedata
from collections import Counter

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# What BERT's normaliser sets apart: ideographs, but not kana or hangul.
IDEOGRAPH = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f"
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def train_tokenizer(texts, vocab_size, lowercase=True):
    """Texts -> a fast transformers tokenizer, as BERT's: Chinese characters apart, [CLS] A [SEP] B [SEP].

    texts: a function that returns a fresh iterator of strings; it is called twice and nothing is kept. Deterministic.
    Characters that occur once are left out, so that the embedding of [UNK] is trained too.
    """
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    characters = Counter()
    for character, count in Counter(character for text in texts() for character in text).items():
        for normalized in normalizer.normalize_str(character).strip():
            characters[normalized] += count
    kept = sorted(character for character, count in characters.items() if count > 1)
    # The trainer numbers the ##pieces of single characters by a hash, so ties between merges would fall differently in
    # each run (huggingface/tokenizers#1794). Named beforehand, they have a fixed order.
    inner = [f"##{character}" for character in kept if not is_apart(character)]
    tokenizer = assemble({}, normalizer)
    tokenizer.train_from_iterator(
        texts(),
        trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=[*SPECIAL.values(), *inner], limit_alphabet=max(1, len(kept)), show_progress=False
        ),
    )
    tokenizer = assemble(tokenizer.get_vocab(), normalizer)  # anew: the ##pieces are no special tokens
    cls, sep = (SPECIAL[name] for name in ("cls_token", "sep_token"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def assemble(vocab, normalizer):
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def is_apart(character):
    """Whether BERT's pre-tokeniser always makes the character a word of its own: punctuation and Chinese."""
    return character in string.punctuation or unicodedata.category(character)[0] == "P" or bool(re.match(f"[{IDEOGRAPH}]", character))
