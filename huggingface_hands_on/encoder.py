"""Loads the encoder to pretrain with its masked-language-model head and tokenizer, and adds new words to both."""

from collections.abc import Iterable
from typing import Any

import regex
import torch
from tokenizers import AddedToken
from transformers import AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from engine.data.tokenizer import pretrained_tokenizer
from engine.errors import UserError
from engine.model.encoders import bert_config, num_positions, read_shape
from engine.model.hub import locate
from engine.run.command_line import first_line
from engine.run.compat import dtype_option


def load_model(config: Any) -> tuple[Any, Any]:
    """Loads (masked language model, tokenizer). Raises UserError if they cannot be trained on masked words."""
    needed = ("mask_token", "pad_token", "cls_token", "sep_token")
    name = locate(config.pretrain_model_path, config.model_hub, weights=not config.from_scratch)
    tokenizer = pretrained_tokenizer(name, needed)
    if config.from_scratch:
        num_layers, hidden_size = config.size
        shape = bert_config(tokenizer, num_layers, hidden_size, config.max_length)
        return AutoModelForMaskedLM.from_config(shape, trust_remote_code=False), tokenizer
    named = f"--pretrain_model_path {name}"
    try:
        shape = read_shape(name)
    except UserError:
        raise
    except Exception as error:  # transformers may raise any exception for a third-party folder
        raise UserError(f"{named}: contains no model ({first_line(error)}); --from_scratch trains a new one") from None
    if type(shape) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(f"{named}: {shape.model_type} is not a masked language model; use an encoder such as BERT")
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            name, config=shape, trust_remote_code=False, output_loading_info=True, **dtype_option(torch.float32)
        )
    except Exception as error:
        raise UserError(f"{named}: its encoder cannot be loaded ({first_line(error)})") from None
    prefix = model.base_model_prefix
    missing = [key for key in info["missing_keys"] if key.startswith(prefix) and "pooler" not in key]
    if missing:
        raise UserError(f"{named}: {len(missing)} weights of its config are missing, such as {missing[0]}")
    if info["missing_keys"]:
        print(f"{name}: adding a new masked-language-model head, so the perplexity before training is meaningless")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(f"{named}: its tokenizer has more entries than its embedding matrix; use a matching tokenizer")
    if (longest := num_positions(model)) and config.max_length > longest:
        raise UserError(f"--max_length={config.max_length} is more than the encoder's {longest} positions; lower it")
    return model, tokenizer


def add_words(words: Iterable[str], model: Any, tokenizer: Any) -> int:
    """Adds domain words as new tokens, initialised to the mean of their former sub-tokens. Returns their number.

    Words with Chinese characters match anywhere in a text; other words only match as whole words. Words without known
    sub-tokens are initialised randomly.
    """
    pieces, normalizer = {}, tokenizer.backend_tokenizer.normalizer
    for word in words:
        chinese = bool(regex.search(r"\p{Han}", word))
        word = word if chinese or normalizer is None else normalizer.normalize_str(word).strip()
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) > 1 or ids == [tokenizer.unk_token_id]:  # otherwise it is already one token
            pieces[AddedToken(word, single_word=not chinese, normalized=not chinese)] = ids
    if not pieces:
        return 0
    tokenizer.add_tokens(list(pieces))
    numbers = {tokenizer.convert_tokens_to_ids(token.content): ids for token, ids in pieces.items()}
    size = max(len(tokenizer), model.get_input_embeddings().num_embeddings)
    try:
        model.resize_token_embeddings(size, mean_resizing=False)
        output = model.get_output_embeddings()
        assert output.weight.shape[0] == size and (output.bias is None or len(output.bias) == size)
    except (TypeError, AssertionError):
        kind = model.config.model_type
        raise UserError(f"--new_tokens: the vocabulary of {kind} cannot be extended; use a BERT-like model") from None
    tables = [model.get_input_embeddings().weight, output.weight, *([] if output.bias is None else [output.bias])]
    with torch.no_grad():
        for number, ids in numbers.items():
            if known := [item for item in ids if item != tokenizer.unk_token_id]:
                for table in tables:
                    table[number] = table[known].mean(0)
    return len(numbers)
