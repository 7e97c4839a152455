"""A WordPiece tokenizer of your own, from texts. `main.py` uses it when there is no pretrained model.

Edit here when your language or domain needs another normalisation or another model of sub-words.
"""

from collections import Counter
from itertools import tee

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def train_tokenizer(texts, vocab_size, lowercase=True):
    """Texts (any iterable of strings) -> a fast transformers tokenizer, as BERT's: Chinese characters apart, [CLS] A [SEP] B [SEP].

    Characters that occur once are left out, so that the embedding of [UNK] is trained too.
    """
    from transformers import PreTrainedTokenizerFast

    texts, counted = tee(texts)
    characters = Counter(character for text in counted for character in (text.lower() if lowercase else text))
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), show_progress=False,
                                        limit_alphabet=max(1, sum(count > 1 for count in characters.values())))
    tokenizer.train_from_iterator(texts, trainer)
    cls, sep = (SPECIAL[name] for name in ("cls_token", "sep_token"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
