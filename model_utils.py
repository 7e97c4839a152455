"""The model: an encoder, shared layers, one head per task, and the loss that combines them.

To use your own model, edit this file. A custom head is a class with `forward`, `loss` and `decode`, and an entry in
HEADS; its key there is the "type" of the task in labels.json, while "kind" is the format of the labels (KINDS). A
custom encoder is a module whose output has `last_hidden_state` (B, L, H), such as `BiLSTM`, and is created in
`build_encoder`.
Shapes: B texts, L tokens, W words, H the encoder's hidden size, C labels.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from config import Config
from engine.data.features import Featurizer
from engine.data.own_inputs import require_same_fields
from engine.data.tokenizer import saved_tokenizer
from engine.errors import UserError
from engine.model import relations, span_pointer
from engine.model.crf import CRF, has_all_labels
from engine.model.distributions import Bernoulli, Normal, Paths, Relations, Softmax, Spans  # noqa: F401 (for others)
from engine.model.encoders import build_transformer, freeze_layers, is_causal, pooling_of, takes_wide_mask
from engine.model.head import READS_ENTITIES, Head, ImbalanceHead, TaskDict, paths_of
from engine.model.long_texts import encode_windows, windows_of
from engine.model.pooling import (
    mean_of_tokens,  # noqa: F401 (for custom heads)
    pooled_windows,
    separate_pairs,
    text_vectors,
    vector_at,  # noqa: F401
    word_vectors,
)
from engine.run.device import to_double
from engine.run.run_folder import checkpoint_of
from engine.task.tags import continuations
from engine.task.task import IGNORE, Task, read_tasks
from engine.task.words import NUM_SHAPES, in_events
from engine.train import checkpoint
from engine.train.initial import start_from

if TYPE_CHECKING:
    from data_loader import Batch


@dataclass
class MyModelOutput:
    total_loss: Any = None  # a tensor (), the weighted sum of the losses
    losses: dict = field(default_factory=dict)  # {task: ()}, each a mean over its labels
    logits: dict = field(default_factory=dict)  # {task: (B, C) or (B, W, C)}, as its head returns them
    counts: dict = field(default_factory=dict)  # {task: ()}, the divisor of each loss


def mean_output(outputs: Sequence[MyModelOutput]) -> MyModelOutput:
    """Averages the losses of several outputs; the logits come from the first."""
    losses = {name: sum(output.losses[name] for output in outputs) / len(outputs) for name in outputs[0].losses}
    total = sum(output.total_loss for output in outputs) / len(outputs)
    return replace(outputs[0], total_loss=total, losses=losses)


@dataclass(frozen=True)
class HeadOptions:
    """Options of the heads: how they read the encoder's output, and the weights of their losses."""

    use_crf: bool = False
    num_shared_layers: int = 0
    dropout: float = 0.1
    dropout_samples: int = 1  # number of dropout masks per training step (multi-sample dropout, arXiv:1905.09788)
    task_weights: dict[str, float] = field(default_factory=dict)
    pooling: str = "first"
    word_pooling: str = "first"
    word_shapes: bool = False
    window: int = 0  # texts with more tokens are split into windows of this size; 0: no windows


class MyModel(nn.Module):
    """Encoder -> OutputLayer -> MyLoss. The encoder can be any module; it is wrapped, so its weights load unchanged."""

    def __init__(
        self, encoder: nn.Module, hidden_size: int, tasks: dict[str, Task], options: HeadOptions | None = None
    ):
        super().__init__()
        options = options or HeadOptions()
        if unknown := set(options.task_weights) - set(tasks):
            raise UserError(f"--task_weights names {', '.join(sorted(unknown))}, but the tasks are {', '.join(tasks)}")
        self.encoder = encoder
        self.hidden_size = hidden_size
        self.output_layer = OutputLayer(hidden_size, tasks, options)
        self.loss = MyLoss(options.task_weights)
        self.window = options.window
        self.dropout_samples = options.dropout_samples
        takes_types = "token_type_ids" in inspect.signature(encoder.forward).parameters
        self.takes_token_types = takes_types and not is_causal(encoder)  # GPT-2 would add the word vector of token 0
        # With a (B, L) mask, transformers checks whether it is all ones, which forces a GPU sync. A (B, 1, L, L) mask
        # avoids this, but only CUDA is sure to support it
        self.takes_wide_mask = takes_wide_mask(encoder)
        self.encoder_in_fp32 = all(p.dtype == torch.float32 for p in encoder.parameters())
        self.wide_mask_on = "cuda"
        self.encoder_is_frozen = False

    def train(self, mode: bool = True) -> "MyModel":
        """Sets the mode, but keeps a frozen encoder in evaluation mode: without dropout, its outputs can be cached."""
        super().train(mode)
        if self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def forward(
        self,
        inputs: dict[str, torch.Tensor],
        labels: dict[str, torch.Tensor] | None = None,
        label_counts: dict[str, torch.Tensor] | None = None,
    ) -> MyModelOutput:
        """Computes the logits of each task and, given labels, its loss, averaged over its labels.

        inputs, labels: see data_loader.Batch. label_counts: {task: divisor of its loss}, for gradient accumulation;
        default: the label counts of this batch.
        """
        if "encoded_text" in inputs or "encoded_words" in inputs:  # cached outputs of a frozen encoder
            hidden = None
        elif self.output_layer.reads_pairs:  # encodes both texts separately: (B, 2, L, H)
            hidden = torch.stack([self.encode(text) for text in separate_pairs(inputs)], 1)
        else:
            hidden = self.encode(inputs)
        if labels is None:
            return MyModelOutput(logits=self.output_layer(hidden, inputs))
        outputs = []
        given = labels if self.training else None  # predictions must not depend on the labels
        for _ in range(self.dropout_samples if self.training else 1):
            logits, losses = self.output_layer(hidden, inputs, given), {}
            with torch.autocast(inputs["input_ids"].device.type, enabled=False):  # losses and the CRF stay in fp32
                counts = label_counts or self.count_labels(inputs, labels)
                counts = {name: torch.where(count > 0, count, 1) for name, count in counts.items()}  # 0 labels: 0 / 1
                for name, head in self.output_layer.heads.items():
                    if name in labels:
                        losses[name] = head.loss(logits[name], labels[name], inputs) / counts[name]
            outputs.append(MyModelOutput(self.loss(losses), losses, logits, counts))
        return outputs[0] if len(outputs) == 1 else mean_output(outputs)

    def encode(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the hidden states of the encoder, (B, L, H). The windows of a long text are encoded separately."""
        if self.window and inputs["input_ids"].shape[1] > self.window:
            return encode_windows(self.encode_rows, inputs, self.window)
        return self.encode_rows(inputs)

    def encode_rows(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        types = {"token_type_ids": inputs["token_type_ids"]} if self.takes_token_types else {}
        mask = inputs["attention_mask"]
        if self.takes_wide_mask and mask.device.type == self.wide_mask_on:
            mask = mask.bool()[:, None, None, :].expand(-1, -1, mask.shape[1], -1)  # (B, 1, L, L)
        hidden = self.encoder(input_ids=inputs["input_ids"], attention_mask=mask, **types).last_hidden_state
        return hidden if self.encoder_in_fp32 else hidden.float()

    def embed(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns one vector per text, (B, H): the input of heads of level "text", before dropout and shared layers. If
        the texts of a pair are encoded separately, this is the vector of the first text."""
        inputs = separate_pairs(inputs)[0] if self.output_layer.reads_pairs else inputs
        return self.output_layer.text_vectors(self.encode(inputs), inputs)

    def divergence(self, first: MyModelOutput, second: MyModelOutput, batch: "Batch") -> torch.Tensor:
        """Returns the divergence of two outputs for the same batch: KL(p || q) + KL(q || p), with the weights and
        averages of the losses. -> ()"""
        heads = self.output_layer.heads
        with torch.autocast(batch.inputs["input_ids"].device.type, enabled=False):
            return sum(
                self.loss.task_weights.get(name, 1.0)
                * heads[name].distribution.divergence(
                    first.logits[name], second.logits[name], batch.labels[name], batch.inputs
                )
                / count
                for name, count in first.counts.items()
            )

    def decode(self, logits: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> dict[str, tuple[Any, Any]]:
        """Returns {task: (label ids, probabilities)} for the logits of `forward`. Training does not call it."""
        return {name: head.decode(logits[name], inputs) for name, head in self.output_layer.heads.items()}

    def count_labels(self, inputs: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns {task: number of labels with a loss}, the divisors of the losses, on the batch's device."""
        heads = self.output_layer.heads
        return {name: head.label_weights(labels[name], inputs).sum() for name, head in heads.items() if name in labels}


class OutputLayer(nn.Module):
    """Hidden states (B, L, H) -> {task: logits}: pooling, shared layers, then one head per task.

    The input of a head depends on its level. "text": one vector per text (B, H), which is its first or last token, or
    the mean over its tokens. "words": one vector per word (B, W, H), pooled over its sub-tokens in the same way; with
    --word_shapes, an embedding of the word's shape is added. "tokens": the hidden states, unchanged. "pair": the
    vectors of both texts (B, 2, H), from hidden states (B, 2, L, H).
    """

    def __init__(self, hidden_size: int, tasks: dict[str, Task], options: HeadOptions):
        super().__init__()
        self.pooling, self.word_pooling, self.window = options.pooling, options.word_pooling, options.window
        # Initially 0, so all windows of a long text have the same weight
        self.window_query = nn.Parameter(torch.zeros(hidden_size)) if options.window else None
        # Initially 0, so word vectors depend only on the encoder
        self.word_shapes = nn.Parameter(torch.zeros(NUM_SHAPES, hidden_size)) if options.word_shapes else None
        self.dropout = nn.Dropout(options.dropout)
        self.shared = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Dropout(options.dropout))
            for _ in range(options.num_shared_layers)
        )
        heads = heads_of(tasks, options.use_crf)
        built = {name: heads[name](hidden_size, task) for name, task in tasks.items()}
        self.heads: Any = TaskDict(built)
        levels = {head.level for head in self.heads.values()}
        for name, task in tasks.items():
            if task.entities in tasks:
                built[name].read_task(task.entities)
        self.reads_pairs = "pair" in levels
        if self.reads_pairs and (len(levels) > 1 or not all(task.pairs for task in tasks.values())):
            raise UserError('heads of level "pair" need pairs of texts (text_pair), and cannot be combined with others')

    def forward(
        self, hidden: Any, inputs: dict[str, torch.Tensor], labels: dict[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Computes the logits of all tasks, in fp32. hidden: None if the inputs contain cached vectors, "encoded_text"
        and "encoded_words"."""
        if hidden is None:
            vectors = {name.removeprefix("encoded_"): inputs[name] for name in inputs if name.startswith("encoded_")}
        elif self.reads_pairs:
            texts = zip(hidden.unbind(1), separate_pairs(inputs))
            vectors = {"pair": torch.stack([text_vectors(*text, self.pooling) for text in texts], 1)}
        else:
            vectors = {"text": self.text_vectors(hidden, inputs)}
        if "word_starts" in inputs and hidden is not None:
            vectors["words"] = word_vectors(hidden, inputs, self.word_pooling)
        if self.word_shapes is not None:
            vectors["words"] = vectors["words"] + F.embedding(inputs["word_shapes"], self.word_shapes)
        for level, vector in vectors.items():
            vector = self.dropout(vector)
            for layer in self.shared:
                vector = layer(vector)
            vectors[level] = vector
        vectors["tokens"] = hidden
        logits = {name: head(vectors[head.level], inputs).float() for name, head in self.heads.items()}
        logits = self.joint(logits, inputs, labels)
        if self.training:  # only decoding reads the logits of other tasks
            return logits
        read = {name: head.reads_task for name, head in self.heads.items() if head.reads_task}
        return logits | {name: torch.cat([logits[name], logits[task].detach()], 2) for name, task in read.items()}

    def text_vectors(self, hidden: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns one vector per text, (B, H). The windows of a long text are pooled."""
        if self.window_query is None:
            return text_vectors(hidden, inputs, self.pooling)
        mask = inputs.get("window_mask")  # an export passes the windows separately
        if mask is None:
            size = min(self.window, hidden.shape[1])
            mask = windows_of(inputs["attention_mask"], size)
            hidden = windows_of(hidden, size).flatten(1, 2)
        return pooled_windows(hidden, mask, self.pooling, self.window_query)

    def joint(
        self,
        logits: dict[str, torch.Tensor],
        inputs: dict[str, torch.Tensor],
        labels: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Returns the logits of every task, in fp32. Edit it to make the logits of one task depend on other tasks.

        labels: in training, the labels of the batch, for teacher forcing (Williams and Zipser, 1989), otherwise None.
        A missing label is IGNORE or NaN.
        """
        return logits


# ---- heads ---------------------------------------------------------------------------------------------------------


class ClassificationHead(ImbalanceHead):
    """One label per text: (B, H) -> logits (B, C). With class_weights, the loss is a weighted mean."""

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        logits, labels = logits.flatten(0, -2), labels.flatten()
        options: dict[str, Any] = dict(
            weight=self.class_weights, ignore_index=IGNORE, label_smoothing=self.label_smoothing
        )
        if not self.focal_gamma:
            return F.cross_entropy(logits, labels, reduction="sum", **options)
        losses = F.cross_entropy(logits, labels, reduction="none", **options)
        probability = logits.softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return ((1 - probability) ** self.focal_gamma * losses).sum()

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities, label_ids = logits.softmax(-1).max(-1)
        return label_ids, probabilities

    def label_weights(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = self.label_mask(labels, inputs)
        if self.class_weights is None:
            return mask
        return torch.from_numpy(self.class_weights_on_host).to(labels.device)[labels.clamp(min=0)] * mask

    def balanced_weights(self, counts: torch.Tensor) -> torch.Tensor:
        """Returns, for each class, number of labels / (number of classes * labels of this class), like the option
        "balanced" of scikit-learn. counts: (C,)"""
        return counts.sum() / (len(counts) * counts)


class MultilabelHead(ImbalanceHead):
    """Any number of labels per text: (B, H) -> logits (B, C). Labels (B, C) are 0, 1 or IGNORE.

    A label is predicted if its probability is at least `threshold`, which maximises micro F1 on dev and is saved with
    the weights.
    """

    family, needs_calibration = Bernoulli, True
    threshold: torch.Tensor

    def __init__(self, hidden_size: int, task: Task):
        super().__init__(hidden_size, task)
        self.register_buffer("threshold", torch.tensor(0.5))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the sum of binary cross-entropies, with class_weights for positive labels. -> ()"""
        targets = labels.clamp(min=0).float() * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.class_weights, reduction="none")
        if self.focal_gamma:
            losses = losses * (labels - logits.sigmoid()).abs() ** self.focal_gamma
        return torch.where(labels != IGNORE, losses, 0.0).sum()

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (whether each label is predicted, probabilities), each (B, C)."""
        probabilities = self.probabilities(logits)
        return probabilities >= self.threshold, probabilities

    def to_labels(self, prediction: Any, probability: Any) -> tuple[Any, Any]:
        labels = [label for label, is_predicted in zip(self.task.labels, prediction) if is_predicted]
        return labels, [value for value, is_predicted in zip(probability, prediction) if is_predicted]

    def balanced_weights(self, counts: torch.Tensor) -> torch.Tensor:
        """Returns, for each label, number of rows without it / number of rows with it. counts: (C,)"""
        return ((self.task.rows or 0) - counts).clamp(min=1) / counts

    def calibrate(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        has_labels = labels[:, 0] != IGNORE
        scores, right = self.probabilities(logits[has_labels]).flatten(), labels[has_labels].flatten()
        threshold = span_pointer.best_threshold(scores, right, lowest=0.0)
        self.threshold.copy_(self.threshold if threshold is None else threshold)


class PathHead(ClassificationHead):
    """One path of a label hierarchy per text: (B, H) -> logits (B, C). The logit of a path is the sum of the logits of
    its nodes, so paths that share a node share its weights."""

    paths: torch.Tensor

    def __init__(self, hidden_size: int, task: Task):
        super().__init__(hidden_size, task, len(task.nodes))
        self.register_buffer("paths", paths_of(task), persistent=False)

    def forward(self, vectors: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.pad(self.linear(vectors).float(), (0, 1))[:, self.paths].sum(2)


class PathSetHead(MultilabelHead):
    """Any number of nodes of a label hierarchy per text, including all ancestors: (B, H) -> logits (B, C).

    The probability of a node is the product of p(node | parent) = sigmoid(linear layer) along its path.
    """

    paths: torch.Tensor

    def __init__(self, hidden_size: int, task: Task):
        super().__init__(hidden_size, task)
        self.register_buffer("paths", paths_of(task), persistent=False)

    def forward(self, vectors: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Computes the logit of p from s = -log p, as -log(exp(s) - 1), without overflow."""
        s = F.pad(F.softplus(-self.linear(vectors).float()), (0, 1))[:, self.paths].sum(2).clamp(min=1e-30)
        return -s - torch.log(-torch.expm1(-s))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the probabilities, capped at the parent's, so even after rounding no node is predicted without it."""
        return F.pad(logits.sigmoid(), (0, 1), value=1.0)[:, self.paths].amin(2)


class RegressionHead(Head):
    """One number per text: (B, H) -> (B,), in standard deviations from the mean of train. Missing labels are NaN."""

    family = Normal

    def __init__(self, hidden_size: int, task: Task):
        super().__init__(hidden_size, task, num_logits=1)

    def forward(self, vectors: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.linear(vectors).squeeze(-1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the sum of the squared errors of the standardised values. -> ()"""
        targets = (labels - self.task.mean) / self.task.std
        return torch.where(labels.isnan(), 0.0, (logits - targets.nan_to_num()) ** 2).sum()

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = to_double(logits) * self.task.std + self.task.mean
        return numbers, torch.ones_like(numbers)

    def to_labels(self, prediction: Any, probability: Any) -> tuple[Any, Any]:
        return prediction, None

    def label_mask(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return ~labels.isnan()

    def start_from(self, before: dict[str, torch.Tensor], task: Task, larger: Head) -> list[str]:
        """Rescales the weights so that they predict the same numbers, if mean or standard deviation differ."""
        scale, shift = task.std / self.task.std, (task.mean - self.task.mean) / self.task.std
        last = {"linear.weight": (scale, 0.0), "linear.bias": (scale, shift)}
        before = before | {name: before[name] * a + b for name, (a, b) in last.items() if name in before}
        return super().start_from(before, task, larger)


class TaggingHead(ClassificationHead):
    """One tag per word, predicted independently of the others: (B, W, H) -> logits (B, W, C)."""

    level = "words"
    continues: torch.Tensor

    def __init__(self, hidden_size: int, task: Task, num_logits: int | None = None):
        super().__init__(hidden_size, task, num_logits)
        self.register_buffer("continues", torch.tensor(continuations(task.labels)), persistent=False)

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the tags, (B, W), and three probabilities per word, (B, W, 3): that an entity begins with this tag,
        continues with it, and ends there. Their product over the words of an entity is its probability
        (`word_probabilities`). Words are independent.
        """
        probabilities = logits.softmax(-1)
        p, tags = probabilities.max(-1)
        before, after = probabilities[:, :-1], probabilities[:, 1:]
        # B- always begins an entity; I- only if it does not continue the previous tag
        continues = (before * self.continues.T[tags[:, 1:]]).sum(-1)
        goes_on = (after * self.continues[tags[:, :-1]]).sum(-1) * inputs["word_mask"][:, 1:]
        starts, ends = (
            (1 - F.pad(share, sides)).clamp(min=0) for share, sides in ((continues, (1, 0)), (goes_on, (0, 1)))
        )
        return tags, torch.stack([p * starts, p, ends], 2)

    def to_labels(self, prediction: Any, probability: Any) -> tuple[Any, Any]:
        return [self.task.labels[tag_id] for tag_id in prediction], probability


class CRFTaggingHead(Head):
    """One tag per word, predicted jointly for each text: (B, W, H) -> emissions (B, W, C) of a CRF."""

    level, family = "words", Paths

    def __init__(self, hidden_size: int, task: Task):
        super().__init__(hidden_size, task)
        self.crf = CRF(task.labels)

    def set_options(self, config: Config, task_name: str) -> None:
        # A step of Adam changes a weight by at most 3.2 times the rate; the default allows for rates up to 0.0125
        self.crf.largest.max_change = max(self.crf.largest.max_change, 4 * (config.head_lr or 0))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the sum of -log p(tags). Texts with an unlabelled word do not count: they have no path. -> ()"""
        mask = inputs["word_mask"]
        score = self.crf.path_score(logits, labels.clamp(min=0), mask)
        return ((self.crf.log_partition(logits, mask) - score) * has_all_labels(labels, mask)).sum()

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the tags of the best path, (B, W), and three probabilities per word, (B, W, 3), see `CRF.chain`."""
        tags = self.crf.viterbi(logits, inputs["word_mask"])
        return tags, self.crf.chain(logits, inputs["word_mask"], tags, float(self.temperature))

    def to_labels(self, prediction: Any, probability: Any) -> tuple[Any, Any]:
        return [self.task.labels[tag_id] for tag_id in prediction], probability

    def label_mask(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return inputs["word_mask"] & has_all_labels(labels, inputs["word_mask"]).unsqueeze(1)


class SpanHead(Head):
    """Spans of words that may nest and overlap (engine/model/span_pointer.py): (B, W, H) -> logits (B, W, W + 2T).

    A span is predicted if its score is at least `threshold`, which maximises F1 on dev and is saved with the weights.
    """

    level, family, size = "words", Spans, 64  # size: dimension of the vectors q and k
    finds_spans, needs_calibration = True, True
    rows_per_label: ClassVar = {"borders.weight": 2, "borders.bias": 2}  # one row for first words, one for last words
    threshold: torch.Tensor

    def __init__(self, hidden_size: int, task: Task):
        super().__init__(hidden_size, task, num_logits=2 * self.size)
        self.borders = nn.Linear(2 * self.size, 2 * len(task.labels))  # scores per type, for first and for last words
        nn.init.constant_(self.borders.bias, -5.0)  # spans are rare: a low initial probability (Lin et al., 2017)
        self.register_buffer("threshold", torch.tensor(0.0))

    def forward(self, vectors: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        vectors = self.linear(vectors).float()
        with torch.autocast(vectors.device.type, enabled=False):  # half precision is too coarse for the positions
            return torch.cat([span_pointer.scores_of_pairs(vectors), self.borders(vectors) / 2], 2)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return span_pointer.loss(logits, labels, inputs["word_mask"]).sum()

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[list, list]:
        """Returns the candidate spans above the minimum score; `to_labels` applies the threshold."""
        return span_pointer.find(logits, inputs["word_mask"])

    def to_labels(self, prediction: Any, probability: Any) -> tuple[Any, Any]:
        """Returns the candidates that reach the threshold, [[first word, last word, type]], and their probabilities."""
        lowest, names = float(to_double(self.threshold).sigmoid()), self.task.labels
        accepted = [(item, p) for item, p in zip(prediction, probability) if p >= lowest]
        return [[*places, names[kind]] for (*places, kind), _ in accepted], [p for _, p in accepted]

    def label_mask(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mask of labelled texts, at the first position of their labels: a text has one label, its set of
        spans."""
        first = torch.arange(labels.shape[1], device=labels.device).eq(0)
        return first & span_pointer.has_labels(labels).unsqueeze(1)

    def calibrate(self, logits: Any, labels: Any) -> None:
        """Sets the threshold that maximises F1."""
        threshold = span_pointer.threshold_of(logits, labels, self.task.labels)
        self.threshold.copy_(self.threshold if threshold is None else threshold)

    def real_logits(self: Any, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the scores of all pairs of real words, flattened."""
        return self.distribution.dense(logits)[self.distribution.are_cells(inputs)]

    def hits(self: Any, predictions: Any, probabilities: Any, labels: torch.Tensor) -> tuple[int, int]:
        """Returns numerator and denominator of F1: (twice the correct spans, predicted plus gold spans)."""
        right, total, names, size = 0, 0, self.task.labels, self.task.num_places + 1
        for prediction, probability, row in zip(predictions, probabilities, labels.tolist()):
            if row[0] != IGNORE:
                found = {tuple(item) for item in self.to_labels(prediction, probability)[0]}
                numbers = [number for number in row[1:] if number != IGNORE]
                gold = {(*places, names[kind]) for *places, kind in zip(*(numbers[i::size] for i in range(size)))}
                right, total = right + 2 * len(found & gold), total + len(found) + len(gold)
        return right, total


class RelationHead(SpanHead):
    """Relations between spans that may nest and overlap (engine/model/relations.py): (B, W, H) -> logits
    (B, W, 3W + 4 + 4P), from three projections of the word vectors, one per table. In evaluation, if the entities have
    types, the logits of their task follow, (B, W, W + 2T)."""

    family = Relations
    reads_entities: torch.Tensor
    rows_per_label: ClassVar = {f"{name}.{part}": 2 for name in ("heads", "tails") for part in ("weight", "bias")}

    def __init__(self, hidden_size: int, task: Task):
        Head.__init__(self, hidden_size, task, num_logits=6 * self.size)
        self.borders = nn.Linear(2 * self.size, 4)  # subjects and objects: for first words, then for last words
        self.heads = nn.Linear(2 * self.size, 2 * len(task.labels))  # per predicate: for subjects, then for objects
        self.tails = nn.Linear(2 * self.size, 2 * len(task.labels))
        for layer in (self.borders, self.heads, self.tails):
            nn.init.constant_(layer.bias, -5.0)
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer(READS_ENTITIES, torch.tensor(0.0))

    def read_task(self, name: str) -> None:
        """Makes decoding use the scores of this task, which has the types of the entities, for subjects and objects."""
        self.reads_task = name
        self.reads_entities.fill_(1)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.reads_task = self.reads_task if self.reads_entities else ""

    def forward(self, vectors: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        tables = self.linear(vectors).float().chunk(3, 2)
        with torch.autocast(vectors.device.type, enabled=False):
            pairs = [span_pointer.scores_of_pairs(table) for table in tables]
            biases = [layer(table) / 2 for layer, table in zip((self.borders, self.heads, self.tails), tables)]
            return torch.cat([part for both in zip(pairs, biases) for part in both], 2)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return relations.loss(logits, labels, inputs["word_mask"], len(self.task.labels)).sum()

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[list, list]:
        return relations.find(logits, inputs["word_mask"], len(self.task.labels))


class EventHead(RelationHead):
    """Events, as relations between triggers and arguments (`events_in` in engine/task/words.py)."""

    def to_labels(self, prediction: Any, probability: Any) -> tuple[Any, Any]:
        """Returns the candidates that reach the threshold, without arguments of triggers below it."""
        label, probabilities = super().to_labels(prediction, probability)
        is_valid = in_events(label, [True] * len(label))
        return [*compress(label, is_valid)], [*compress(probabilities, is_valid)]


# {"type" of a task in labels.json: its head}. With --use_crf, "tagging" means "crf_tagging", unless you replace its
# head. With a label hierarchy, a type means "hierarchical_<type>" if there is such a head
HEADS: dict[str, type[Head]] = {
    "classification": ClassificationHead,
    "multilabel": MultilabelHead,
    "hierarchical_classification": PathHead,
    "hierarchical_multilabel": PathSetHead,
    "regression": RegressionHead,
    "tagging": TaggingHead,
    "crf_tagging": CRFTaggingHead,
    "spans": SpanHead,
    "relations": RelationHead,
    "events": EventHead,
}


def heads_of(tasks: dict[str, Task], use_crf: bool) -> dict[str, type[Head]]:
    """Returns {task: class of its head}. Raises UserError for an unknown type."""
    types = {name: task.type for name, task in tasks.items()}
    if unknown := set(types.values()) - set(HEADS):
        raise UserError(
            f"labels.json: no head for the type {', '.join(sorted(unknown))}; "
            f"HEADS in model_utils.py has {', '.join(HEADS)}"
        )
    if use_crf and HEADS["tagging"] is TaggingHead:
        types = {name: "crf_tagging" if type == "tagging" else type for name, type in types.items()}
    paths = {name: f"hierarchical_{types[name]}" for name, task in tasks.items() if task.hierarchy}
    types |= {name: type for name, type in paths.items() if type in HEADS}
    return {name: HEADS[type] for name, type in types.items()}


class MyLoss(nn.Module):
    """The total loss in training and evaluation: the weighted sum of the losses of all tasks.

    Divergences (R-Drop, SMART, distillation) are always weighted by `task_weights`, not by this class.
    """

    def __init__(self, task_weights: dict[str, float] | None = None):
        super().__init__()
        self.task_weights = task_weights or {}

    def forward(self, losses: dict[str, torch.Tensor]) -> Any:  # a tensor (); 0 without tasks
        return sum(self.task_weights.get(name, 1.0) * loss for name, loss in losses.items())


# ---- building ------------------------------------------------------------------------------------------------------


class BiLSTM(nn.Module):
    """Embeddings and bidirectional LSTMs: a minimal example of a custom encoder, without transformers.

    Each layer is a separate module, because the dropout inside a multi-layer LSTM has a state that checkpoints cannot
    save.
    """

    def __init__(self, vocab_size: int, hidden_size: int, num_layers: int, dropout: float, pad_id: int):
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx=pad_id)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.LSTM(hidden_size, hidden_size // 2, batch_first=True, bidirectional=True) for _ in range(num_layers)
        )

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        lengths = attention_mask.sum(1).cpu()  # for packing, so the backward direction skips padding; a GPU sync
        vectors = self.dropout(self.embeddings(input_ids))
        packed, _ = self.layers[0](
            nn.utils.rnn.pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
        )
        for layer in self.layers[1:]:
            packed, _ = layer(packed._replace(data=self.dropout(packed.data)))
        hidden, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=input_ids.shape[1])
        hidden = hidden.unflatten(2, (2, -1))
        # the final states of both directions, each of which has seen the whole text
        first = torch.cat([hidden[range(len(lengths)), lengths - 1, 0], hidden[:, 0, 1]], 1)
        return SimpleNamespace(last_hidden_state=torch.cat([first.unsqueeze(1), hidden.flatten(2)[:, 1:]], 1))


class NoEncoder(nn.Module):
    """--encoder none: hidden states of size 0, for heads that read only custom inputs (FIELDS in data_loader.py)."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=attention_mask.new_zeros(*input_ids.shape, 0, dtype=torch.float32))


def build_encoder(
    config: Config,
    tokenizer: PreTrainedTokenizerBase | None,
    checkpoint: str | Path | None = None,
    base_path: str | None = None,
) -> tuple[nn.Module, int]:
    """Returns (encoder, its hidden size H). checkpoint: a checkpoint folder; only its config is read, not its weights.
    base_path: the new location of the base model of its LoRA adapter, if that was moved."""
    if tokenizer is None:
        return NoEncoder(), 0
    if config.encoder == "bilstm":
        encoder: Any = BiLSTM(
            len(tokenizer), config.hidden_size, config.num_layers, config.dropout, tokenizer.pad_token_id
        )
        return encoder, config.hidden_size
    encoder = build_transformer(config, tokenizer, checkpoint, base_path)
    return encoder, encoder.config.hidden_size


def build_model(
    config: Config,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: dict[str, Task],
    checkpoint: str | Path | None = None,
    base_path: str | None = None,
) -> MyModel:
    """Builds the model on the CPU, with the weights of --init_from, if given. checkpoint, base_path: see
    `build_encoder`; with a checkpoint, --init_from is ignored."""
    run = checkpoint_of(config.init_from) if config.init_from and not checkpoint else None
    moved_to = base_path or (config.pretrain_model_path if config.init_from else None)
    encoder, hidden_size = build_encoder(config, tokenizer, checkpoint or run, moved_to)
    pooling, word_pooling = pooling_of(config, getattr(encoder, "config", None))
    options = HeadOptions(
        use_crf=config.use_crf,
        num_shared_layers=config.shared_layers,
        dropout=config.dropout,
        dropout_samples=config.dropout_samples,
        task_weights=config.task_weights_by_name(),
        pooling=pooling,
        word_pooling=word_pooling,
        word_shapes=bool(config.word_shapes) and any(task.needs_words for task in tasks.values()),
        window=config.max_length if config.long_text == "windows" else 0,
    )
    model = MyModel(encoder, hidden_size, tasks, options)
    if run:
        start_from(model, run, hidden_size, tokenizer, config)
    for name, head in model.output_layer.heads.items():
        require_inputs(name, head)
        if not config.calibrate:
            head.temperature.fill_(1)  # --init_from may have set it
        if tokenizer is not None:
            head.set_tokenizer(tokenizer)
        head.set_options(config, name)
    freeze_layers(model.encoder, config.freeze_layers)
    model.encoder_is_frozen = config.freeze_layers == -1
    return model


def require_inputs(task_name: str, head: nn.Module) -> None:
    """Raises UserError if a head has a layer with input size 0: with --encoder none, it cannot read text vectors."""
    if any(not parameter.numel() for parameter in head.parameters()):
        advice = "write one that reads custom inputs (docs/cookbook/digits.md)"
        raise UserError(f"--encoder none: the head of {task_name!r}, {type(head).__name__}, needs a text; {advice}")


def load_checkpoint(
    folder: str | Path, base_path: str | None = None, base_hub: str = "hf"
) -> tuple[MyModel, PreTrainedTokenizerBase | None, dict[str, Task], Config]:
    """Loads a checkpoint on the CPU, without data or a hub. Returns (model, tokenizer, tasks, config). An unmerged LoRA
    adapter also needs its base model, at its original location or at base_path, which may be a name on base_hub."""
    import data_loader  # noqa: F401 (declares FIELDS)

    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no checkpoint there; train first (--do_train), or pass one with --checkpoint")
    if (folder / "checkpoints/best").is_dir():
        raise UserError(f"{folder} is a run folder; use its checkpoint {folder / 'checkpoints/best'}")
    checkpoint.require_whole(folder)
    config = Config.load(folder / "args.json")
    tasks = read_tasks(folder / "labels.json")
    require_same_fields(tasks, folder)
    tokenizer = None if config.encoder == "none" else saved_tokenizer(folder)
    where = replace(config, model_hub=base_hub) if base_hub != "hf" else config  # default: the hub used in training
    model = build_model(where, tokenizer, tasks, folder, base_path)
    checkpoint.load_weights(model, folder)
    return model, tokenizer, tasks, config


def load_with_featurizer(
    folder: str | Path, base_path: str | None = None, base_hub: str = "hf"
) -> tuple[MyModel, Featurizer, Config]:
    """Loads a checkpoint. Returns (model, Featurizer, config); the Featurizer processes texts as in training."""
    model, tokenizer, tasks, trained = load_checkpoint(folder, base_path, base_hub)
    heads, word_ends = map(type, model.output_layer.heads.values()), model.output_layer.word_pooling != "first"
    return model, Featurizer.from_config(trained, tokenizer, tasks, heads, word_ends), trained
