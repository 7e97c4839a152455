"""Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365): the contribution of each word to a logit.

Let x be the word vectors of a text, and x' the word vectors after all words are replaced by padding (special tokens are
not replaced). The score of a word is

    sum over its sub-tokens of (x - x') . integral over a in [0, 1] of the gradient of f at x' + a (x - x')

The scores of all words add up to f(x) - f(x'), except for the error of numerical integration (Gauss-Legendre). The
number of points doubles until this error is below TOLERANCE.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from engine.data.windows import Cutter, encode_texts
from engine.errors import UserError
from engine.task.text import HAN_CHARACTER, split_text, text_and_offsets
from engine.task.words import Offsets, place_tokens, texts_to_encode

STEPS = (16, 32, 64, 128, 256, 512)
TOLERANCE = 0.01  # the largest error, as a fraction of f(x) - f(x')
ROWS = 16  # points per batch


class Word(NamedTuple):
    """A word with its score. start, end: character offsets in the text, or in the second text if `pair`."""

    word: str
    score: float
    start: int
    end: int
    pair: bool = False


@dataclass(frozen=True)
class Explanation:
    """The contribution of each word to a logit. The scores add up to `logit - baseline`, with relative error `gap`."""

    task: str
    label: str | None  # None for regression, whose logit is the standardised value
    words: list[Word]
    logit: float  # for the text
    baseline: float  # for the text with all words replaced by padding
    gap: float
    steps: int

    def __str__(self) -> str:
        width = max((len(word.word) for word in self.words), default=0)
        head = f"{self.task} {self.label or ''}: {self.baseline:.3f} without words, {self.logit:.3f} with them"
        gap = f"\nthe sum of the scores has an error of {self.gap:.1%}" if self.gap > TOLERANCE else ""
        return "\n".join([head, *(f"{word.word:{width}}  {word.score:+.3f}" for word in self.words)]) + gap

    def _repr_html_(self) -> str:
        """Renders the words in a notebook: green if they raise the logit, red if they lower it."""
        most = max((abs(word.score) for word in self.words), default=0.0) or 1.0
        spans = []
        for word in self.words:
            colour, share = "46,160,67" if word.score > 0 else "218,54,51", 0.7 * abs(word.score) / most
            style = f"background:rgba({colour},{share:.2f});padding:2px 3px;border-radius:3px"
            spans.append(f'<span style="{style}" title="{word.score:+.3f}">{html.escape(word.word)}</span>')
        head = html.escape(str(self).partition("\n")[0])
        return f'<div style="line-height:2"><small>{head}</small><br>{" ".join(spans)}</div>'


def explain(trainer: Any, loader: Any, task: str | None, label: str | None, word: int | None) -> Explanation:
    """Explains a prediction of a Trainer's model. loader: of the single text; task, label, word: see Model.explain."""
    model, data = trainer.model, loader.dataset
    heads = model.output_layer.heads
    task = task or next((name for name, head in heads.items() if not head.by_words), next(iter(heads)))
    if task not in heads:
        raise UserError(f"there is no task {task!r}; the tasks are {', '.join(heads)}")
    if heads[task].finds_spans:
        found = heads[task].task.kind
        raise UserError(f"{task!r} finds {found}, whose scores are not label logits; explain another task")
    if not model.hidden_size:
        raise UserError("this model has no text input, so there are no words to explain")
    if model.output_layer.reads_pairs:
        raise UserError("this model encodes the texts of a pair separately, which explain does not support")
    if heads[task].by_words and word is None:
        raise UserError("this task labels words: select one by its index, as in explain(text, task=…, word=0)")
    if not heads[task].by_words and word is not None:
        raise UserError("`word` requires a word-level task")
    row = row_of_word(data, word)
    inputs = data.batch([row]).to(trainer.device).inputs
    place = None if word is None else word - int(data.columns["first_word"][row])
    if model.window and inputs["input_ids"].shape[1] > model.window:
        raise UserError(f"explain reads one window of {model.window} tokens, but this text has several; shorten it")
    words, of_token = words_of(data[0], row, data.featurizer)
    is_word = torch.tensor([len(numbers) > 0 for numbers in of_token], device=trainer.device)
    # cuDNN cannot compute gradients of an LSTM in eval mode
    with torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        index = index_of(heads[task], model(inputs).logits[task], inputs, label, place)
        scores, logit, baseline, steps = integrate(
            model, inputs, is_word, data.pad_id, lambda logits: logits[task][(slice(None), *index)]
        )
    by_word = np.zeros(len(words))
    for score, numbers in zip(scores, of_token):
        by_word[numbers] += score / max(1, len(numbers))
    read = sorted({number for numbers in of_token for number in numbers})
    name = heads[task].task.labels[index[-1]] if heads[task].task.labels else None
    explained: list[Word] = [words[number]._replace(score=float(by_word[number])) for number in read]
    return Explanation(task, name, explained, logit, baseline, gap_of(scores.sum(), logit - baseline), steps)


def gap_of(total: float, difference: float) -> float:
    return float(abs(total - difference) / max(abs(difference), 1e-6))


def row_of_word(data: Any, word: int | None) -> int:
    """Returns the row of the window that has this word farthest from its edges; for None, the first row."""
    if word is None:
        return 0
    if not isinstance(word, int | np.integer):
        raise UserError(f"word={word!r} must be a word index, starting at 0")
    firsts = data.columns["first_word"].tolist()
    ends = [first + size for first, size in zip(firsts, data.columns["word_starts"].lengths.tolist())]
    rows = [row for row, (first, end) in enumerate(zip(firsts, ends)) if first <= word < end]
    if not rows:
        raise UserError(f"word={word}: the words of the text are numbered 0 to {max(ends) - 1}")
    return max(rows, key=lambda row: min(word - firsts[row], ends[row] - word))


def index_of(
    head: Any, logits: torch.Tensor, inputs: dict[str, torch.Tensor], label: str | None, word: int | None
) -> tuple[int, ...]:
    """Returns the index of the logit to explain within the logits of the text: the logit of a label, the logit of a
    word's tag, or the regression value."""
    names = head.task.labels
    if not names and logits.ndim == 1 and label is None:
        return ()
    if logits.shape[-1] != max(1, len(names)):
        raise UserError(f"explain needs one logit per label, which the head {type(head).__name__} does not have")
    if label is not None and label not in names:
        raise UserError(f"there is no label {label!r}; the labels are {', '.join(names) or 'numbers'}")
    place = () if word is None else (word,)
    if label is not None or not names:
        return (*place, names.index(label or "") if names else 0)
    predicted = head.decode(logits, inputs)[0][(0, *place)]
    is_id = predicted.ndim == 0 and predicted.dtype == torch.long  # for a set of labels, explain the most probable one
    return (*place, int(predicted if is_id else logits[(0, *place)].argmax()))


def words_of(example: dict[str, Any], row: int, featurizer: Any) -> tuple[list[Word], list[list[int]]]:
    """Returns (the words of an example, the word indices of each token in one of its rows).

    Special tokens have no word. Without `tokens`, the words come from `split_text`; a token that covers several words
    belongs to all of them.
    """
    by_words, pair, separator = "tokens" in example, example.get("text_pair", ""), featurizer.separator or ""
    options = by_words, featurizer.unit, HAN_CHARACTER, featurizer.blanks, separator
    first, second = texts_to_encode(example, *options)
    [encoding] = encode_texts(featurizer.encode, [first], None if second is None else [second], featurizer.filler)
    text, offsets = text_and_offsets(example, featurizer.tasks)
    places = [offsets or places_in(text), (place_tokens(pair, pair.split()) if by_words else places_in(pair)) or []]
    sides = zip((text, pair), places, (False, True))
    words = [Word(source[start:end], 0.0, start, end, side) for source, of, side in sides for start, end in of]
    special = {*featurizer.tokenizer.all_special_ids} - {featurizer.tokenizer.unk_token_id}
    ids, sequences, tokens, word_ids = (
        encoding.ids,
        encoding.sequence_ids,
        encoding.offsets,
        list[Any](encoding.word_ids),
    )
    # Given positions instead of ids, the cutter returns the positions of the tokens in the row
    numbered: Any = SimpleNamespace(ids=range(len(sequences)), type_ids=encoding.type_ids)
    numbered.word_ids, numbered.sequence_ids = word_ids, sequences
    cutter = Cutter(featurizer.max_length, featurizer.stride, featurizer.long_text, featurizer.tagging)
    found: list[list[int]] = []
    for position in cutter.features(0, numbered, has_words=bool(first))[row].input_ids:
        side, inside = sequences[position], list[int]()
        if side is None or ids[position] in special:
            pass
        elif by_words:
            inside = [word_ids[position] - bool(side and separator)]  # -1 for the separator before the words
        else:
            start, end = (place - side * len(separator) for place in tokens[position])
            inside = covered(places[side], start, end)
        found.append([number + (side or 0) * len(places[0]) for number in inside if number >= 0])
    return words, found


def places_in(text: str) -> Offsets:
    return [(start, end) for _, start, end in split_text(text, "word")] if text else []


def covered(words: Offsets, start: int, end: int) -> list[int]:
    """Returns the indices of the words between two characters; if there are none, of the next or last word."""
    if end <= 0 or not words:
        return []
    inside = [number for number, (first, stop) in enumerate(words) if first < end and start < stop]
    return inside or [next((number for number, (first, _) in enumerate(words) if first >= end), len(words) - 1)]


def integrate(
    model: Any,
    inputs: dict[str, torch.Tensor],
    is_word: torch.Tensor,
    pad_id: int,
    logit_of: Callable[[Any], torch.Tensor],
) -> tuple[np.ndarray, float, float, int]:
    """Returns (the score of each token, f(x), f(x'), the number of points). is_word: mask of the tokens to replace,
    (L,); logit_of: selects one logit per text from the model's logits."""
    encoder = model.encoder
    if getattr(getattr(encoder, "config", None), "is_encoder_decoder", False):
        encoder = encoder.get_encoder()
    if not hasattr(encoder, "get_input_embeddings"):
        raise UserError(f"explain needs get_input_embeddings() in {type(encoder).__name__} (see BiLSTM)")
    table, ids = encoder.get_input_embeddings(), inputs["input_ids"]
    ends = table(ids).detach().float(), table(torch.where(is_word, pad_id, ids)).detach().float()
    step = ends[0] - ends[1]

    def logits_at(shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = (ends[1] + shares[:, None, None] * step).requires_grad_()
        used = []

        def put(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            used.append(output)
            return F.pad(points, (0, 0, 0, output.shape[1] - points.shape[1])).to(output.dtype)

        hook = table.register_forward_hook(put)
        try:
            output = model({name: tensor.expand(len(shares), *tensor.shape[1:]) for name, tensor in inputs.items()})
        finally:
            hook.remove()
        if len(used) != 1:
            raise UserError(f"explain cannot replace the word vectors of {type(encoder).__name__}")
        return logit_of(output.logits), points

    with torch.no_grad():
        logit, baseline = logits_at(torch.tensor([1.0, 0.0], device=ids.device))[0].tolist()
    scores = np.zeros(ids.shape[1])
    for steps in STEPS:
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        scores = np.zeros(ids.shape[1])
        for start in range(0, steps, ROWS):
            shares = torch.tensor((nodes[start : start + ROWS] + 1) / 2, dtype=torch.float32, device=ids.device)
            values, points = logits_at(shares)
            (gradient,) = torch.autograd.grad(values.sum(), points)
            each = (gradient * step).sum(2).cpu().double().numpy()
            scores += (weights[start : start + ROWS, None] / 2 * each).sum(0)
        if gap_of(scores.sum(), logit - baseline) <= TOLERANCE:
            break
    return scores, logit, baseline, steps
