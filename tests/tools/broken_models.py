"""Broken models, each with the check of `main.py --debug` that must detect it and a pattern for its message or hint."""

import math
import random
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from collection import broken
from torch import nn

import metrics
import model_utils
import tricks
from engine.model.pooling import mean_of_tokens
from engine.task.task import IGNORE
from engine.tricks.trick import Trick
from model_utils import (
    ClassificationHead,
    Head,
    MultilabelHead,
    MyModel,
    OutputLayer,
    RegressionHead,
    RelationHead,
    TaggingHead,
)
from trainer import Trainer

# ---- padding and pooling ---------------------------------------------------------------------------------------------


@broken("padding", "attention_mask")
class MeanOverPadding(ClassificationHead):
    level = "tokens"

    def forward(self, hidden, inputs):
        return self.linear(hidden.mean(1))


@broken("padding", "attention_mask")
class LastTokenOfPaddedText(ClassificationHead):
    level = "tokens"

    def forward(self, hidden, inputs):
        return self.linear(hidden[:, -1])


@broken("padding", "attention_mask")
class MaxOverPadding(ClassificationHead):
    level = "tokens"

    def forward(self, hidden, inputs):
        return self.linear(hidden.amax(1))


@broken("padding", "attention_mask")
class AttentionOverPadding(ClassificationHead):
    level = "tokens"

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.query = nn.Linear(hidden_size, 1)

    def forward(self, hidden, inputs):
        return self.linear((self.query(hidden).softmax(1) * hidden).sum(1))


@broken("padding", "attention_mask")
class BackwardGRUReadsPadding(ClassificationHead):
    level = "tokens"

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.gru = nn.GRU(hidden_size, hidden_size // 2, batch_first=True, bidirectional=True)

    def forward(self, hidden, inputs):
        return self.linear(self.gru(hidden)[0][:, 0])


@broken("padding", "loss", data="tags", kind="tagging")
class LossOverPaddedWords(TaggingHead):
    def loss(self, logits, labels, inputs):
        return super().loss(logits, labels, inputs) + 0.1 * logits.pow(2).mean(-1).sum() * (labels != IGNORE).any()


@broken("padding", "attention_mask")
def encoder_ignores_the_mask(replace):
    def encode(model, inputs):
        return model.encoder(inputs["input_ids"], torch.ones_like(inputs["attention_mask"])).last_hidden_state

    replace(MyModel, "encode", encode)


@broken("padding", "attention_mask")
def scaled_by_the_longest(replace):
    plain = MyModel.encode
    replace(MyModel, "encode", lambda model, inputs: plain(model, inputs) * (1 + 0.1 * inputs["input_ids"].shape[1]))


@broken("read_twice", "twice")
class FirstTokenInTheMeanTwice(ClassificationHead):
    level = "tokens"

    def forward(self, hidden, inputs):
        return self.linear(
            mean_of_tokens(hidden, inputs["attention_mask"]) + hidden[:, 0] / inputs["attention_mask"].sum(1, True)
        )


@broken("read_twice", "CLS.*twice")
class MarkersNotFound(ClassificationHead):
    """Uses token ids of another tokenizer, so argmax returns position 0."""

    level = "tokens"

    def __init__(self, hidden_size, task):
        super().__init__(2 * hidden_size, task)

    def forward(self, hidden, inputs):
        places = [(inputs["input_ids"] == marker).int().argmax(1) for marker in (30522, 30523)]
        return self.linear(torch.cat([hidden[range(len(hidden)), place] for place in places], 1))


class Markers(ClassificationHead):
    level, names = "tokens", ("<e1>", "<e2>")

    def __init__(self, hidden_size, task):
        super().__init__(2 * hidden_size, task)

    def set_tokenizer(self, tokenizer):
        self.ids = [tokenizer.convert_tokens_to_ids(name) for name in self.names]

    def forward(self, hidden, inputs):
        places = [(inputs["input_ids"] == marker).int().argmax(1) for marker in self.ids]
        return self.linear(torch.cat([hidden[range(len(hidden)), place] for place in places], 1))


@broken("markers", "not a single token.*special_tokens", data="marked", vocab_size=150)
class MarkersNotInTheTokenizer(Markers):
    names = ("[E1]", "[E2]")


@broken("markers", "does not occur", data="marked", special_tokens="<e1>,<e2>,[E1],[E2]")
class MarkersThatNoTextHas(Markers):
    names = ("[E1]", "[E2]")


@broken("markers", "max_length", data="marked", special_tokens="<e1>,</e1>,<e2>,</e2>", max_length=9)
class MarkersCutOff(Markers):
    pass


# ---- pairs -----------------------------------------------------------------------------------------------------------


def encoded_apart(with_first):
    """Returns MyModel.encode for pairs whose texts are encoded separately. with_first: the second text also starts with
    [CLS]."""

    def encode(model, inputs):
        ids, second = inputs["input_ids"], inputs["token_type_ids"]
        first = inputs["attention_mask"] * (1 - second)
        start = first.sum(1, keepdim=True) - with_first
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        moved = ids.gather(1, (places + start).clamp(max=ids.shape[1] - 1))
        moved = torch.where((places == 0) & bool(with_first), ids[:, :1], moved)
        mask = (places < second.sum(1, keepdim=True) + with_first).long()
        of_first = model.encoder(input_ids=ids, attention_mask=first).last_hidden_state
        of_second = model.encoder(input_ids=moved, attention_mask=mask).last_hidden_state
        back = (places - start).clamp(min=0).unsqueeze(-1).expand_as(of_first)
        return torch.where(second.unsqueeze(-1) == 1, of_second.gather(1, back), of_first)

    return encode


class Cosine(RegressionHead):
    """Computes the cosine similarity of the mean vectors of both texts, without [CLS]."""

    level, skipped = "tokens", 1

    def __init__(self, hidden_size, task):
        super().__init__(1, task)
        nn.init.constant_(self.linear.weight, 2.0)

    def forward(self, hidden, inputs):
        second = inputs["token_type_ids"]
        first = inputs["attention_mask"] * (1 - second)
        first = first * (torch.arange(hidden.shape[1], device=hidden.device) >= self.skipped)
        cosine = F.cosine_similarity(mean_of_tokens(hidden, first), mean_of_tokens(hidden, second), dim=1)
        return self.linear(cosine.unsqueeze(1)).squeeze(1)


@broken("pairs", "special tokens", data="pairs")
def second_text_without_cls(replace):
    replace(MyModel, "encode", encoded_apart(with_first=0))
    replace(model_utils.HEADS, "regression", Cosine)


@broken("pairs", "pool", data="pairs")
def first_text_pooled_with_cls(replace):
    replace(MyModel, "encode", encoded_apart(with_first=1))
    replace(model_utils.HEADS, "regression", type("WithCls", (Cosine,), {"skipped": 0}))


@broken("words", "word_starts", data="tags", kind="tagging")
class TokenBehindTheWord(TaggingHead):
    level = "tokens"

    def forward(self, hidden, inputs):
        starts = (inputs["word_starts"] + 1).unsqueeze(-1).expand(-1, -1, hidden.shape[2])
        return self.linear(hidden.gather(1, starts))


@broken("pairs", "second text", data="pairs", kind="regression")
class SecondTextNotRead(RegressionHead):
    level = "pair"

    def forward(self, vectors, inputs):
        return self.linear(vectors[:, 0]).squeeze(1)


# ---- rows of the batch -----------------------------------------------------------------------------------------------


@broken("other_rows", "BatchNorm")
class BatchNormOverRows(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.norm = nn.BatchNorm1d(hidden_size)

    def forward(self, vectors, inputs):
        return self.linear(self.norm(vectors))


@broken("other_rows", "dimension 0")
class MeanOverRows(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors - vectors.mean(0))


@broken("other_rows", "dimension 0")
class LayerNormOverTheBatch(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(F.layer_norm(vectors, vectors.shape))


@broken("other_rows", "dimension 0")
class SoftmaxOverRows(ClassificationHead):
    def forward(self, vectors, inputs):
        return 9 * self.linear(vectors).softmax(0)


@broken("order", "dimension 0")
class SumOverEarlierRows(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors.cumsum(0))


class Numbers(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size + 2, task)

    def of(self, extras):
        return extras

    def forward(self, vectors, inputs):
        return self.linear(torch.cat([vectors, self.of(inputs["extras"])], 1))


@broken("other_rows", "BatchNorm", data="numbers")
class BatchNormOverOwnInputs(Numbers):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.norm = nn.BatchNorm1d(2)

    def of(self, extras):
        return self.norm(extras)


@broken("order", "dimension 0", data="numbers")
class OwnInputsOfAnotherRow(Numbers):
    def of(self, extras):
        return extras.roll(1, 0)


@broken("other_rows", "dimension 0", data="numbers")
class OwnInputsCentredByTheBatch(Numbers):
    def of(self, extras):
        return extras - extras.mean(0)


@broken("own_inputs", "inputs", data="numbers")
class OwnInputsNotRead(ClassificationHead):
    pass


@broken("own_inputs", "price", data="numbers")
class OneOwnInputNotRead(Numbers):
    def of(self, extras):
        return extras * torch.tensor([1.0, 0.0], device=extras.device)


@broken("prediction", "decode", data="topics", kind="multilabel")
class ThresholdOfTheBatch(MultilabelHead):
    def decode(self, logits, inputs):
        probabilities = logits.sigmoid()
        return probabilities >= probabilities.mean(0), probabilities


# ---- losses ----------------------------------------------------------------------------------------------------------


@broken("overfitting", "shifted")
class LabelsShifted(ClassificationHead):
    def loss(self, logits, labels, inputs):
        shifted = torch.where(labels == IGNORE, labels, (labels + 1) % logits.shape[-1])
        return super().loss(logits, shifted, inputs)


@broken("overfitting", "reversed")
class LevelsReversed(ClassificationHead):
    def decode(self, logits, inputs):
        probabilities, label_ids = logits.softmax(-1).max(-1)
        return logits.shape[1] - 1 - label_ids, probabilities


class Ordinal(ClassificationHead):
    """Predicts cumulative logits of p(grade > k), as in CORAL (Cao et al., 2020)."""

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear = nn.Linear(hidden_size, 1, bias=False)
        self.borders = nn.Parameter(torch.zeros(len(task.labels) - 1))

    def forward(self, vectors, inputs):
        return self.linear(vectors) + self.borders

    def targets(self, labels, logits):
        return (labels.unsqueeze(1) > torch.arange(logits.shape[1], device=labels.device)).float()

    def loss(self, logits, labels, inputs):
        losses = F.binary_cross_entropy_with_logits(logits, self.targets(labels, logits), reduction="none").sum(1)
        return torch.where(labels == IGNORE, 0.0, losses).sum()

    def decode(self, logits, inputs):
        above = logits.sigmoid()
        padded = F.pad(F.pad(above, (1, 0), value=1.0), (0, 1))
        grades = (above > 0.5).sum(1)
        probabilities = (padded[:, :-1] - padded[:, 1:]).clamp(min=0)
        return grades, probabilities.gather(1, grades.unsqueeze(1)).squeeze(1)


@broken("overfitting", "reversed")
class OrdinalLevelsReversed(Ordinal):
    def decode(self, logits, inputs):
        grades, probabilities = super().decode(logits, inputs)
        return logits.shape[1] - grades, probabilities


@broken("overfitting", "shifted")
class OrdinalThresholdsOffByOne(Ordinal):
    def targets(self, labels, logits):
        return (labels.unsqueeze(1) >= torch.arange(logits.shape[1], device=labels.device)).float()


@broken("overfitting", "softmax")
class SoftmaxTwice(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors).softmax(-1)


@broken("overfitting", "softmax", data="two")
class SoftmaxTwiceOfTwo(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors).softmax(-1)


@broken("overfitting", "sigmoid")
class SigmoidBeforeCrossEntropy(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors).sigmoid()


@broken("overfitting", "scale")
class CosineWithoutScale(ClassificationHead):
    def forward(self, vectors, inputs):
        return F.normalize(vectors, dim=-1) @ F.normalize(self.linear.weight, dim=-1).T + 0 * self.linear.bias


@broken("overfitting", "argmin")
class Argmin(ClassificationHead):
    def decode(self, logits, inputs):
        probabilities, label_ids = logits.softmax(-1).min(-1)
        return label_ids, probabilities


@broken("overfitting", "threshold", data="topics", kind="multilabel")
class ThresholdOnTheWrongSide(MultilabelHead):
    def decode(self, logits, inputs):
        probabilities = logits.sigmoid()
        return probabilities < self.threshold, probabilities


@broken("overfitting", "to_labels")
class LabelNamesShifted(ClassificationHead):
    def to_labels(self, answer, probability):
        return self.task.labels[answer - 1], probability


class LogScale(RegressionHead):
    """Learns log(1 + x) of positive numbers."""

    first_loss = 1.0

    def loss(self, logits, labels, inputs):
        return torch.where(labels.isnan(), 0.0, (logits - labels.nan_to_num().log1p()) ** 2).sum()

    def decode(self, logits, inputs):
        numbers = logits.double().expm1()
        return numbers, torch.ones_like(numbers)


@broken("overfitting", "do they use the same scale", data="scores", kind="regression")
class ExpForLog1p(LogScale):
    def decode(self, logits, inputs):
        numbers = logits.double().exp()
        return numbers, torch.ones_like(numbers)


@broken("overfitting", "self.training")
def conditioned_in_training_only(replace):
    def joint(layer, logits, inputs, labels=None):
        if labels is None:
            return logits
        half = torch.nn.functional.one_hot(labels["stars"].clamp(min=0), 5)[:, [0, 2, 4]].sum(1, keepdim=True) > 0
        even = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], device=half.device) > 0
        return {name: values.masked_fill(half != even, -30.0) for name, values in logits.items()}

    replace(OutputLayer, "joint", joint)


@broken("overfitting", "decode disagree", data="scores", kind="regression")
class NotScaledBack(RegressionHead):
    def decode(self, logits, inputs):
        return logits.double(), torch.ones_like(logits)


@broken("overfitting", "depend on the text")
class DoesNotReadTheText(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(0 * vectors + 1)


@broken("overfitting", "decode disagree")
class SignReversed(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return -super().loss(logits, labels, inputs)


@broken("mean_loss", "sum")
class LossAveragedTwice(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return F.cross_entropy(logits, labels, ignore_index=IGNORE)


@broken("mean_loss", "sum, which MyLoss averages")
class LossTimesTheBatch(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return super().loss(logits, labels, inputs) * len(labels)


@broken("accumulation", "rows")
class WeightsNormalisedByTheBatch(ClassificationHead):
    def loss(self, logits, labels, inputs):
        weights = torch.arange(1.0, 1 + logits.shape[1], device=logits.device) ** 2
        mean = F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE)
        return torch.where((labels != IGNORE).any(), mean, 0.0) * (labels != IGNORE).sum()


@broken("first_loss", "normalised twice")
class WeightsNormalisedTwice(ClassificationHead):
    def loss(self, logits, labels, inputs):
        weights = torch.arange(1.0, 1 + logits.shape[1], device=logits.device)
        weights = weights / weights.sum()
        return F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE, reduction="sum")


@broken("first_loss", "initial weights")
class HugeWeights(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        nn.init.normal_(self.linear.weight, std=10.0)


@broken("accumulation", "other rows")
class ContrastOfRows(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return super().loss(logits, labels, inputs) + (logits @ logits.T).mean()


@broken("no_labels", "IGNORE")
class NanWithoutLabels(ClassificationHead):
    def loss(self, logits, labels, inputs):
        known = labels != IGNORE
        return super().loss(logits, labels, inputs) * len(labels[known]) / known.sum()


@broken("no_labels", "torch.where")
class NanInUnusedBranch(ClassificationHead):
    """The loss is correct, but its gradient is NaN: 0 * inf in a branch of torch.where."""

    def loss(self, logits, labels, inputs):
        right = logits.softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        known = labels != IGNORE
        return torch.where(known, -(right * known).log(), 0.0).sum()


@broken("no_labels", "IGNORE")
class UnlabelledAsFirstClass(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return F.cross_entropy(logits, labels.clamp(min=0), reduction="sum")


@broken("gradients", "not finite")
class RootAtZero(ClassificationHead):
    """Computes the distance of each row to itself, the root of 0, whose gradient is infinite."""

    compares_rows = True

    def loss(self, logits, labels, inputs):
        distances = (logits.unsqueeze(0) - logits.unsqueeze(1)).pow(2).sum(-1).sqrt()
        return super().loss(logits, labels, inputs) + 0.01 * distances.mean() * (labels != IGNORE).sum()


@broken("no_labels", "gradient", data="scores", kind="regression")
class RootOfTheError(RegressionHead):
    def loss(self, logits, labels, inputs):
        targets = (labels - self.task.mean) / self.task.std
        return ((logits - targets.nan_to_num()) * ~labels.isnan()).pow(2).sqrt().sum()


# ---- shapes ----------------------------------------------------------------------------------------------------------


@broken("shapes", "decode")
class ArgmaxOverTheWrongAxis(ClassificationHead):
    def decode(self, logits, inputs):
        probabilities, label_ids = logits.softmax(-1).max(0)
        return label_ids, probabilities


@broken("shapes", "one logit per label")
class OneClassTooMany(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear = nn.Linear(hidden_size, len(task.labels) + 1)


@broken("shapes", "never returns")
class OneClassTooFew(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear = nn.Linear(hidden_size, len(task.labels) - 1)

    def loss(self, logits, labels, inputs):
        return super().loss(logits, labels.clamp(max=logits.shape[-1] - 1), inputs)


@broken("shapes", "logit per label|never returns")
class NumberOfLabelsHardCoded(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear = nn.Linear(hidden_size, 12)


@broken("shapes", "broken_models.py")
class BatchSizeHardCoded(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors.view(8, -1))


@broken("shapes", "broken_models.py")
class WrongDtype(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return F.nll_loss(logits.log_softmax(-1), labels.float(), reduction="sum")


@broken("shapes", "not finite")
class NotFinite(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors) / 0


# ---- gradients and state ---------------------------------------------------------------------------------------------


@broken("gradients", "data")
class CutByData(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors.data)


@broken("gradients", "detach")
def encoder_detached(replace):
    plain = MyModel.encode
    replace(MyModel, "encode", lambda model, inputs: plain(model, inputs).detach())


@broken("gradients", "frozen")
class FrozenHead(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear.requires_grad_(False)


@broken("gradients", "unused")
class LayerNotUsed(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.dense = nn.Linear(hidden_size, hidden_size)


@broken("gradients", "optimizer")
def heads_missing_from_the_optimizer(replace):
    import trainer

    plain = trainer.build_optimizer
    replace(trainer, "build_optimizer", lambda groups, config, device: plain(groups[:1], config, device))


@broken("registered", "ModuleList")
class LayerInAList(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.layers = [nn.Linear(hidden_size, hidden_size)]

    def forward(self, vectors, inputs):
        return self.linear(self.layers[0](vectors).relu())


@broken("registered", "register_buffer")
class TensorInADict(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.scales = {"text": torch.full((hidden_size,), 0.5)}

    def forward(self, vectors, inputs):
        return self.linear(vectors * self.scales["text"])


@broken("registered", "register_buffer")
class BufferNotRegistered(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.scale = torch.full((hidden_size,), 0.5)

    def forward(self, vectors, inputs):
        return self.linear(vectors * self.scale)


@broken("resume", "plain attributes")
class StateInAnAttribute(ClassificationHead):
    steps = 0

    def forward(self, vectors, inputs):
        self.steps = self.steps + self.training
        return self.linear(vectors) * (1 - 0.5**self.steps if self.training else 1)


@broken("resume", "attributes")
class BufferNotSaved(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.register_buffer("mean", torch.zeros(hidden_size), persistent=False)

    def forward(self, vectors, inputs):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * vectors.detach().mean(0)
        return self.linear(vectors - self.mean)


NOISE = np.random.default_rng()


@broken("resume", "randomness")
class UnseededNoise(ClassificationHead):
    def forward(self, vectors, inputs):
        noise = torch.from_numpy(NOISE.normal(size=vectors.shape)).to(vectors) if self.training else 0
        return self.linear(vectors + 0.1 * noise)


@broken("determinism", "F.dropout")
class DropoutLeftOn(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(F.dropout(vectors, 0.1))


@broken("determinism", "randomness")
class RandomAtEvaluation(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors + 0.1 * torch.randn_like(vectors))


@broken("determinism", "randomness")
class PythonsRandomAtEvaluation(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors * random.uniform(0.9, 1.1))


@broken("determinism", "randomness")
class NumpysRandomAtEvaluation(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors * np.random.uniform(0.9, 1.1))


@broken("inputs_unchanged", "buffer")
class BufferChangedAtEvaluation(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.register_buffer("mean", torch.zeros(hidden_size))

    def forward(self, vectors, inputs):
        logits = self.linear(vectors - self.mean)
        self.mean = 0.9 * self.mean + 0.1 * vectors.detach().mean(0)
        return logits


@broken("inputs_unchanged", "methods ending in _")
class MaskChangedInPlace(ClassificationHead):
    def forward(self, vectors, inputs):
        inputs["attention_mask"].clamp_(max=0)
        return self.linear(vectors)


@broken("inputs_unchanged", r"eval\(\)")
class LeavesTrainingMode(ClassificationHead):
    def forward(self, vectors, inputs):
        self.eval()
        return self.linear(vectors)


@broken("device", "device")
class AnotherDevice(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors) + torch.zeros(len(vectors), 1)


@broken("device", "device")
class LogitsOnAnotherDevice(ClassificationHead):
    def forward(self, vectors, inputs):
        return torch.zeros(len(vectors), len(self.task.labels)).copy_(self.linear(vectors))


@broken("half_precision", "large constants")
class FarFromZero(ClassificationHead):
    def forward(self, vectors, inputs):
        return (self.linear(vectors) + 1000) - 1000


@broken("labels_unseen", "labels")
def sees_the_labels(replace):
    plain = MyModel.forward

    def forward(model, inputs, labels=None, label_counts=None):
        output = plain(model, inputs, labels, label_counts)
        if labels is not None:
            known = labels["stars"].clamp(min=0)
            output.logits["stars"] = output.logits["stars"] + F.one_hot(known, output.logits["stars"].shape[1])
        return output

    replace(MyModel, "forward", forward)


@broken("later_words", "mask")
def claims_to_be_causal(replace):
    plain = MyModel.__init__

    def init(model, encoder, *args):
        encoder.is_causal = True
        plain(model, encoder, *args)

    replace(MyModel, "__init__", init)


# ---- metrics ---------------------------------------------------------------------------------------------------------


def scores_with(score):
    """Adds score(gold, predicted) to the scores of classification tasks."""

    def apply(replace):
        plain = metrics.SCORES["classification"]
        replace(
            metrics.SCORES, "classification", lambda gold, predicted: plain(gold, predicted) | score(gold, predicted)
        )

    apply.__name__ = score.__name__
    return apply


@broken("build", "broken_models.py.*not_numbers")
@scores_with
def metric_of_labels_that_are_no_numbers(gold, predicted):
    return {"mae": sum(abs(not_numbers[a] - not_numbers[b]) for a, b in zip(gold, predicted))}


not_numbers = {"low": 0, "high": 1}


@broken("scores", "broken_models.py")
@scores_with
def metric_that_fails_for_one_class(gold, predicted):
    return {"lift": 1 / (len({*predicted}) - 1) if len(gold) > 1 else 0.0}


@broken("scores", "broken_models.py.*KeyError|KeyError.*broken_models.py")
@scores_with
def metric_that_knows_only_the_labels_of_gold(gold, predicted):
    wrong = dict.fromkeys(gold, 0)
    for g, p in zip(gold, predicted):
        wrong[p] += g != p
    return {"most_wrong": max(wrong.values())}


@broken("scores", "metrics.py")
@scores_with
def metric_that_is_not_a_number(gold, predicted):
    errors = sum(g != p for g, p in zip(gold, predicted))
    return {"skill": 1 / errors if errors else math.inf}


@broken("scores", "LOWER_IS_BETTER", monitor="stars_error")
@scores_with
def metric_that_prefers_wrong_answers(gold, predicted):
    return {"error": sum(g != p for g, p in zip(gold, predicted)) / len(gold)}


# ---- the trainer and tricks ------------------------------------------------------------------------------------------


@broken("step", "schedule advances by 2")
def schedule_stepped_twice(replace):
    plain = Trainer.optimizer_step

    def optimizer_step(trainer, group):
        plain(trainer, group)
        trainer.scheduler.step()

    replace(Trainer, "optimizer_step", optimizer_step)


@broken("best", "worse in every score")
def the_highest_loss_is_kept(replace):
    def keep_best(trainer, scores):
        if trainer.progress.best_score is None or scores["loss"] > trainer.progress.best_score:
            trainer.progress.best_score = scores["loss"]
            trainer.save_model("best")

    replace(Trainer, "keep_best", keep_best)


@broken("step", "divided")
def loss_divided_by_the_micro_batches_too(replace):
    def scaled(trainer, group):
        for p in trainer.trained:
            if p.grad is not None:
                p.grad /= len(group)
        plain(trainer, group)

    plain = Trainer.optimizer_step
    replace(Trainer, "optimizer_step", scaled)


@broken("step", "zero_grad")
def gradients_reset_before_the_step(replace):
    plain = Trainer.optimizer_step

    def optimizer_step(trainer, group):
        trainer.optimizer.zero_grad()
        plain(trainer, group)

    replace(Trainer, "optimizer_step", optimizer_step)


@broken("step", "zero_grad")
def gradients_not_reset(replace):
    plain = Trainer.optimizer_step

    def optimizer_step(trainer, group):
        reset, trainer.optimizer.zero_grad = trainer.optimizer.zero_grad, lambda: None
        plain(trainer, group)
        trainer.optimizer.zero_grad = reset

    replace(Trainer, "optimizer_step", optimizer_step)


@broken("resume", "after save_model")
def schedule_stepped_after_the_save(replace):
    plain = Trainer.end_epoch

    def end_epoch(trainer):
        plain(trainer)
        trainer.scheduler.step()

    replace(Trainer, "end_epoch", end_epoch)


def only_trick(replace, trick):
    """Adds a trick that is always enabled."""
    replace(tricks, "TRICKS", [*tricks.TRICKS, trick])


class AlwaysOn(Trick):
    def __init__(self, model):
        self.model = model

    @classmethod
    def build(cls, model, config):
        return cls(model)


@broken("step", "restore")
def perturbation_not_restored(replace):
    class Perturb(AlwaysOn):
        def passes(self, batch):
            yield True
            weight = self.model.encoder.get_input_embeddings().weight
            weight.data += 0.1 * weight.grad
            yield False

    only_trick(replace, Perturb)


@broken("resume", "attributes|randomness")
def state_of_a_trick_not_saved(replace):
    class Noise(AlwaysOn):
        def __init__(self, model):
            super().__init__(model)
            self.steps = count(1)

        def wrap_forward(self, forward, batch):
            output = forward()
            output.total_loss = output.total_loss / next(self.steps)
            return output

    only_trick(replace, Noise)


@broken("resume", "best")
def average_kept_in_a_list(replace):
    from contextlib import contextmanager

    class Average(AlwaysOn):
        def __init__(self, model):
            super().__init__(model)
            self.average = [p.detach().clone() for p in model.parameters()]

        def after_step(self, finite):
            for mean, p in zip(self.average, self.model.parameters()):
                mean.lerp_(p.detach(), 0.5)

        @contextmanager
        def swap_weights(self):
            kept = [p.detach().clone() for p in self.model.parameters()]
            for weights in (self.average, kept):
                for p, value in zip(self.model.parameters(), weights):
                    p.data.copy_(value)
                if weights is self.average:
                    yield

    only_trick(replace, Average)


@broken("resume", "randomness")
def random_order_of_the_process(replace):
    import data_loader

    plain = data_loader.make_batch
    rng = random.Random()

    def make_batch(columns, rows, *args, **options):
        batch = plain(columns, rows, *args, **options)
        if len(rows) == 8:
            ids = batch.inputs["input_ids"]
            ids[torch.rand(ids.shape, generator=torch.Generator().manual_seed(rng.randrange(10**9))) < 0.1] = 1
        return batch

    replace(data_loader, "make_batch", make_batch)


@broken("padding", "length.*independently")
def input_scaled_by_the_longest_of_the_batch(replace):
    import data_loader

    plain = data_loader.make_batch

    def make_batch(*args, **options):
        batch = plain(*args, **options)
        sizes = batch.inputs["attention_mask"].sum(1).float()
        return batch._replace(inputs=batch.inputs | {"length": sizes / sizes.max()})

    replace(data_loader, "make_batch", make_batch)
    replace(model_utils.HEADS, "classification", HeadWithLength)


class HeadWithLength(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size + 1, task)

    def forward(self, vectors, inputs):
        return self.linear(torch.cat([vectors, inputs["length"].unsqueeze(1)], 1))


@broken("prediction", "training mode")
def evaluation_in_training_mode(replace):
    plain = Trainer.infer

    def infer(trainer, *args, **options):
        eval_mode, trainer.model.eval = trainer.model.eval, lambda: None
        try:
            return plain(trainer, *args, **options)
        finally:
            trainer.model.eval = eval_mode

    replace(Trainer, "infer", infer)


@broken("prediction", "threshold", data="topics", kind="multilabel")
class ThresholdOnLogits(MultilabelHead):
    def decode(self, logits, inputs):
        return logits >= self.threshold, logits.sigmoid()


@broken("padding", "attention_mask")
def pooled_over_padding(replace):
    replace(model_utils, "text_vectors", lambda hidden, inputs, pooling: hidden.mean(1))


@broken("gradients", "softmax over a dimension of size 1")
class SoftmaxOverOneScore(ClassificationHead):
    level = "tokens"

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.query = nn.Linear(hidden_size, 1)

    def forward(self, hidden, inputs):
        mask = inputs["attention_mask"].unsqueeze(-1)
        return self.linear((self.query(hidden).softmax(-1) * mask * hidden).sum(1) / mask.sum(1))


@broken("gradients", "no_grad")
def shared_layer_without_gradient(replace):
    plain = OutputLayer.forward

    def forward(layer, hidden, inputs):
        with torch.no_grad():
            return plain(layer, hidden, inputs)

    replace(OutputLayer, "forward", forward)


assert issubclass(Ordinal, Head)


# ---- relations -------------------------------------------------------------------------------------------------------


class Answers(RelationHead):
    """Changes each predicted relation: (s_first, s_last, o_first, o_last, predicate)."""

    def decode(self, logits, inputs):
        answers, probabilities = super().decode(logits, inputs)
        return [[self.changed(*item) for item in answer] for answer in answers], probabilities


@broken("shapes", "span . to . in a text of . words", data="facts", kind="relations")
class WordsAreCountedFromOne(Answers):
    def changed(self, a, b, c, d, predicate):
        return a + 1, b + 1, c + 1, d + 1, predicate


@broken("shapes", "span . to", data="facts", kind="relations")
class EndsAreExclusive(Answers):
    def changed(self, a, b, c, d, predicate):
        return a, b + 1, c, d + 1, predicate


@broken("shapes", "span . to . in a text of", data="facts", kind="relations")
class PlacesInAnotherOrder(Answers):
    def changed(self, a, b, c, d, predicate):
        return a, c, b, d, predicate


@broken("shapes", "returns label 3 of 3", data="facts", kind="relations")
class PredicatesAreCountedFromOne(Answers):
    def changed(self, a, b, c, d, predicate):
        return a, b, c, d, predicate + 1


@broken("overfitting", "loss and decode", data="facts", kind="relations")
class SubjectsAndObjectsSwapped(Answers):
    def changed(self, a, b, c, d, predicate):
        return c, d, a, b, predicate


@broken("overfitting", "loss and decode", data="facts", kind="relations")
class OtherPredicates(Answers):
    def changed(self, a, b, c, d, predicate):
        return a, b, c, d, (predicate + 1) % len(self.task.labels)


@broken("overfitting", "", data="facts", kind="relations")
class LossOfRelationsReversed(RelationHead):
    def loss(self, logits, labels, inputs):
        return -super().loss(logits, labels, inputs)


@broken("overfitting", "loss and decode", data="facts", kind="relations")
class ObjectsInTheLossSwapped(RelationHead):
    """Swaps subjects and objects in the loss, but not in decode."""

    def loss(self, logits, labels, inputs):
        items, size = labels.clone(), 5
        for place in (0, 1):
            first, second = labels[:, 1 + place :: size], labels[:, 3 + place :: size]
            items[:, 1 + place :: size], items[:, 3 + place :: size] = second, first
        return super().loss(logits, items, inputs)


@broken("overfitting", "", data="facts", kind="relations")
class ThresholdOfProbabilities(RelationHead):
    def to_labels(self, answer, probability):
        accepted = [(item, p) for item, p in zip(answer, probability) if p <= 0.5]
        return [[*places, self.task.labels[kind]] for (*places, kind), _ in accepted], [p for _, p in accepted]


@broken("padding", "word_mask|loss", data="facts", kind="relations")
class RelationsOfPaddedWords(RelationHead):
    def loss(self, logits, labels, inputs):
        return super().loss(logits, labels, {**inputs, "word_mask": torch.ones_like(inputs["word_mask"])})


@broken("words", "word_starts", data="facts", kind="relations")
def relations_of_the_words_before(replace):
    plain = RelationHead.forward
    replace(RelationHead, "forward", lambda head, vectors, inputs: plain(head, vectors.roll(1, 1), inputs))


@broken("no_labels", "IGNORE", data="facts", kind="relations")
class UnlabelledTextsHaveNoRelations(RelationHead):
    def loss(self, logits, labels, inputs):
        return super().loss(logits, labels.where(labels[:, :1] != IGNORE, torch.zeros_like(labels)), inputs)
