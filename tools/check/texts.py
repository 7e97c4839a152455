"""Checks of how a model processes its texts: markers, [CLS], words, and pairs of texts."""

import copy
import re
from typing import Any

import torch
from torch import nn

from data_loader import Batch, MyDataset
from engine.data.tokenizer import named_tokens
from engine.model.distributions import Spans
from model_utils import MyModel
from tools.check.case import Case, Failed, Skipped, Tensors, difference, logits_of, require_same

MARKER = re.compile(r"[^\w\s]\S*[^\w\s]|[^\w\s]")  # such as <e1>, [E1] or $


class RecordingTokenizer:
    """Wraps a tokenizer and records the strings that a head looks up, with their ids."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.found = tokenizer, dict[str, list[int]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        for token in [tokens] if isinstance(tokens, str) else tokens:
            self.found[token] = [self.tokenizer.convert_tokens_to_ids(token)]
        return self.tokenizer.convert_tokens_to_ids(tokens)

    def encode(self, text: Any, *args: Any, **options: Any) -> Any:
        self.record(text)
        return self.tokenizer.encode(text, *args, **options)

    def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
        self.record(text)
        return self.tokenizer(text, *args, **options)

    def record(self, text: Any) -> None:
        for one in [text] if isinstance(text, str) else text:
            if MARKER.fullmatch(one):  # other strings may consist of several tokens
                self.found[one] = self.tokenizer.encode(one, add_special_tokens=False)


def check_markers(case: Case) -> None:
    tokenizer = case.data.featurizer.tokenizer
    if tokenizer is None:
        raise Skipped("the model has no tokenizer")
    recorder = RecordingTokenizer(tokenizer)
    for head in copy.deepcopy(case.trainer.model.output_layer.heads).values():
        if hasattr(head, "set_tokenizer"):
            head.set_tokenizer(recorder)
    looked_up = dict(recorder.found)
    recorder.convert_tokens_to_ids(named_tokens(case.trainer.config))
    ordinary = {tokenizer.cls_token, tokenizer.sep_token, tokenizer.pad_token, tokenizer.mask_token}
    found = {token: ids for token, ids in recorder.found.items() if token not in {*ordinary, tokenizer.unk_token}}
    if not found:
        raise Skipped("no head looks up tokens, and --special_tokens is empty")
    for token, ids in found.items():
        pieces = tokenizer.encode(token, add_special_tokens=False)
        if ids[0] in (None, tokenizer.unk_token_id) or (MARKER.fullmatch(token) and len(pieces) != 1):
            is_now = f"{len(pieces)} tokens ({' '.join(tokenizer.convert_ids_to_tokens(pieces))})"
            raise Failed(f"{token!r} is not a single token but {is_now}; add it to --special_tokens")
        require_in_texts(case, token, ids[0], token in looked_up)


def require_in_texts(case: Case, token: str, number: int, looked_up: bool) -> None:
    """Raises Failed if texts lose this token through truncation, or if it is a marker that no text contains."""
    data, num_lost, num_texts = case.data, 0, 0
    for row in map(int, data.first_rows):
        example = data[int(data.example_index[row])]
        texts = [example.get(key) or "" for key in ("text", "tokens", "text_pair")]
        if token in " ".join(text if isinstance(text, str) else " ".join(text) for text in texts):
            num_texts += 1
            num_lost += number not in data.batch([row]).inputs["input_ids"]
    if num_lost:
        length = data.featurizer.max_length
        raise Failed(f"{token!r} is truncated by --max_length {length} in {num_lost} of {num_texts} texts")
    if not num_texts and looked_up and MARKER.fullmatch(token):
        raise Failed(f"a head looks up {token!r}, which does not occur in any of the {len(data)} texts")


def check_read_twice(case: Case) -> None:
    """Checks that no head adds the first hidden state twice, or concatenates the same vector twice."""
    model, batch = case.model_and_batch()
    hidden = inputs_of(model.output_layer, model, batch)[0].detach()
    mask = batch.inputs["attention_mask"].bool()
    if hidden.shape[:2] != mask.shape or not hidden.numel():
        raise Skipped("the heads do not read the hidden states of one text")
    for name, head in model.output_layer.heads.items():
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                for vectors in inputs_of(layer, model, batch):
                    require_distinct_blocks(name, vectors, hidden[:, 0])
        if head.by_words:
            continue
        with torch.enable_grad():
            states = hidden.clone().requires_grad_()
            logits = model.output_layer(states, batch.inputs)[name].clamp(min=-1e4)
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits.device)
            (gradients,) = torch.autograd.grad((logits * weights).sum() + 0 * states.sum(), states)
        if all(counts_twice(gradient[real]) for gradient, real in zip(gradients, mask)):
            raise Failed(f"{name!r}: the first token, [CLS], is pooled twice")


def inputs_of(layer: nn.Module, model: nn.Module, batch: Batch) -> list[torch.Tensor]:
    """Returns the first argument of each call of a layer in a forward pass of the model."""
    found: list[torch.Tensor] = []
    with layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])):
        model(batch.inputs)
    return found


def require_distinct_blocks(name: str, vectors: torch.Tensor, first: torch.Tensor) -> None:
    """Raises Failed if the input of a layer contains the same vector twice for all texts, or the [CLS] vector twice for
    any text."""
    size = first.shape[1]
    if (
        vectors.ndim != 2
        or len(vectors) != len(first)
        or vectors.shape[1] % size
        or vectors.shape[1] < 2 * size
        or len(vectors) < 2
    ):
        return
    blocks = vectors.unflatten(1, (-1, size))
    for i in range(blocks.shape[1]):
        for j in range(i):
            same = (blocks[:, i] == blocks[:, j]).all(1) & blocks[:, i].any(1)
            is_first = same & (blocks[:, i] == first).all(1)
            if is_first.any() or same.all():
                vector = "the vector of [CLS]" if is_first.any() else "the same vector"
                share = f"{int(same.sum())} of {len(same)} texts"
                raise Failed(f"{name!r} reads {vector} twice in {share}; are the positions of its markers found?")


def counts_twice(gradients: torch.Tensor) -> bool:
    """Returns whether the gradient at position 0 is twice the gradient at all other positions, or the sum of the two
    gradients that occur there. gradients: (L, H)."""
    first, others = gradients[0], gradients[1:]
    kinds = [others[0], others[-1]] if len(others) > 1 else []
    if not kinds or not all(kind.any() for kind in kinds):
        return False

    def near(a: torch.Tensor, b: torch.Tensor) -> bool:
        return bool((a - b).norm() <= 1e-3 * b.norm())

    if not all(any(near(other, kind) for kind in kinds) for other in others):
        return False
    return near(first, kinds[0] + kinds[1])


def check_words(case: Case) -> None:
    """Changes the hidden states of one word at a time, and checks that the logits of that word change."""
    model, batch = case.model_and_batch(4)
    heads = {name: head for name, head in model.output_layer.heads.items() if head.by_words and scores_words(head)}
    hidden = inputs_of(model.output_layer, model, batch)[0]
    if not heads or not hidden.numel():
        raise Skipped("no task labels words")
    starts, mask = batch.inputs["word_starts"], batch.inputs["word_mask"]
    ends = batch.inputs.get("word_ends", starts)
    plain, places = model.output_layer(hidden, batch.inputs), torch.arange(hidden.shape[1], device=hidden.device)
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden)
    other = model.output_layer(hidden + noise, batch.inputs)
    for word in range(mask.shape[1]):
        own = (places >= starts[:, word : word + 1]) & (places <= ends[:, word : word + 1])
        changed = model.output_layer(hidden + noise * own.unsqueeze(-1), batch.inputs)
        for name, head in heads.items():
            before, *after = [scores_of(head, logits[name], word) for logits in (plain, changed, other)]
            gaps = [(new - before).abs().amax(-1) for new in after]
            if (mask[:, word] & (gaps[0] == 0) & (gaps[1] > 0)).any():
                advice = "word_starts are positions in input_ids, which include [CLS]"
                raise Failed(f"{name!r}: the prediction for word {word + 1} does not depend on its tokens; {advice}")


def scores_words(head: Any) -> bool:
    return not head.finds_spans or isinstance(head.distribution, Spans)


def scores_of(head: Any, logits: torch.Tensor, word: int) -> torch.Tensor:
    """Returns the logits of a word (B, …), or those of the pair (word, word) if the head scores pairs of words."""
    return head.distribution.dense(logits)[:, :, word, word] if head.finds_spans else logits[:, word]


def check_pairs(case: Case) -> None:
    """Checks that a model that encodes the texts of a pair separately gives equal texts equal vectors."""
    model, _ = case.model_and_batch(1)
    examples = [case.data[i] for i in range(len(case.data)) if (case.data.example_index == i).sum() == 1]
    if not examples or "text_pair" not in examples[0] or case.data.featurizer.tagging:
        raise Skipped("the texts are not pairs")
    texts = sorted({example["text_pair"] for example in examples}, key=len)[:6]
    require_read(case, examples[0], texts)
    if any(head.level == "pair" for head in model.output_layer.heads.values()):
        return require_equal_vectors(model, batch_of(case, examples[0], list(zip(texts, texts))))
    same, other = [batch_of(case, examples[0], list(zip(texts, seconds))) for seconds in (texts, texts[1:] + texts[:1])]
    if not same.inputs["token_type_ids"].any():
        raise Skipped("token_type_ids do not distinguish the two texts")
    first, second = words_of(same.inputs)
    states, changed = model.encode(same.inputs), model.encode(other.inputs)
    states, changed = [one / states.abs().max() for one in (states, changed)]
    if any((a[f] - b[f]).abs().max() > 1e-4 for a, b, f in zip(states, changed, first)):
        raise Skipped("the two texts are encoded together")
    gaps = [float((a[f] - a[s]).abs().max()) if f.sum() == s.sum() else 1.0 for a, f, s in zip(states, first, second)]
    if max(gaps) > 1e-4:
        gap = f"hidden states that differ by {max(gaps):.1%}"
        raise Failed(f"a text paired with itself has {gap}; do both texts get the same special tokens?")
    require_same_pooling(case, same)


def require_read(case: Case, example: dict[str, Any], texts: list[str]) -> None:
    """Raises Failed if no prediction depends on the first text of a pair, or on the second one."""
    model, fixed = case.model_and_batch(1)[0], [texts[0]] * len(texts)
    for which, pairs in (("first", list(zip(texts, fixed))), ("second", list(zip(fixed, texts)))):
        logits = logits_of(model, batch_of(case, example, pairs).inputs)
        same = {name: values[:1].expand_as(values) for name, values in logits.items()}
        if len(texts) > 1 and difference(same, logits, tolerance=1e-6) is None:
            raise Failed(f"no prediction depends on the {which} text; does a head read vectors[:, 0] and [:, 1]?")


def require_equal_vectors(model: MyModel, same: Batch) -> None:
    """Raises Failed if a head gets different vectors (B, 2, H) for the two texts of a pair of a text with itself."""
    for name, head in model.output_layer.heads.items():
        vectors = inputs_of(head, model, same)[0]
        if not torch.allclose(vectors[:, 0], vectors[:, 1], atol=1e-4):
            raise Failed(f"{name!r} gets two different vectors for a text paired with itself")


def require_same_pooling(case: Case, same: Batch) -> None:
    """Raises Failed if a head that computes cosine similarities scores texts paired with themselves differently."""
    model = case.model_and_batch(1)[0]
    hidden, factor = model.encode(same.inputs), 2.0 + same.inputs["token_type_ids"].unsqueeze(-1)
    logits: list[Tensors] = [model.output_layer(states, same.inputs) for states in (hidden, factor * hidden)]
    for name, scores in logits[0].items():
        if not torch.allclose(scores, logits[1][name], rtol=1e-4, atol=1e-4):
            continue  # not a cosine of the two vectors
        expected = {name: scores[:1].expand_as(scores)}
        require_same("for texts paired with themselves, whose cosine is 1,", expected, {name: scores})


def batch_of(case: Case, example: dict[str, Any], pairs: list[tuple[str, str]]) -> Batch:
    rows = [example | {"text": first, "text_pair": second} for first, second in pairs]
    data = MyDataset(rows, case.data.featurizer, quiet=True)
    return data.batch(range(len(data.lengths))).to(case.trainer.device)


def words_of(inputs: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the token masks of the first and the second text, (B, L) each, without [CLS] and [SEP]."""
    mask, second = inputs["attention_mask"].bool(), inputs["token_type_ids"].bool()
    places = torch.arange(mask.shape[1], device=mask.device)
    last = mask.sum(1, keepdim=True) - 1
    of_second = second & mask & (places < last)
    boundary = last - of_second.sum(1, keepdim=True) - 1  # the first [SEP]
    return (places > 0) & (places < boundary), of_second
