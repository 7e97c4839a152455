"""Correct but unusual models, for which no check of `main.py --debug` may fail."""

import math

import torch
import torch.nn.functional as F
from broken_models import AlwaysOn, Cosine, LogScale, Markers, Numbers, Ordinal, encoded_apart, only_trick, scores_with
from collection import correct
from torch import nn
from torch.nn.utils import parametrizations

import model_utils
import trainer as trainer_module
from engine.model.pooling import mean_of_tokens, vector_at
from engine.task.task import IGNORE
from model_utils import ClassificationHead, MultilabelHead, MyModel, RegressionHead, RelationHead, Softmax, TaggingHead

# ---- pooling ---------------------------------------------------------------------------------------------------------


@correct()
class AttentionPooling(ClassificationHead):
    level = "tokens"

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.query = nn.Linear(hidden_size, 1)

    def forward(self, hidden, inputs):
        scores = self.query(hidden).masked_fill(inputs["attention_mask"].unsqueeze(-1) == 0, -math.inf)
        return self.linear((scores.softmax(1) * hidden).sum(1))


@correct()
class GRUPooling(ClassificationHead):
    level = "tokens"

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)

    def forward(self, hidden, inputs):
        lengths = inputs["attention_mask"].sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
        return self.linear(self.gru(packed)[1][0])


@correct()
class MaxAndMeanAndFirst(ClassificationHead):
    level = "tokens"

    def __init__(self, hidden_size, task):
        super().__init__(3 * hidden_size, task)

    def forward(self, hidden, inputs):
        mask = inputs["attention_mask"]
        highest = hidden.masked_fill(mask.unsqueeze(-1) == 0, -1e4).amax(1)
        return self.linear(torch.cat([hidden[:, 0], highest, mean_of_tokens(hidden, mask)], 1))


@correct()
class ConvolutionsOverWords(ClassificationHead):
    level = "tokens"

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.convolution = nn.Conv1d(hidden_size, hidden_size, 3, padding=1)

    def forward(self, hidden, inputs):
        mask = inputs["attention_mask"].unsqueeze(1)
        features = self.convolution(hidden.transpose(1, 2) * mask).relu()
        return self.linear(features.masked_fill(mask == 0, 0.0).amax(2))


@correct()
class OnlyTheFirstState(ClassificationHead):
    level = "tokens"

    def forward(self, hidden, inputs):
        return self.linear(hidden[:, 0])


@correct(data="tags", kind="tagging")
class TagsAndTheirNeighbours(TaggingHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.gru = nn.GRU(hidden_size, hidden_size // 2, batch_first=True, bidirectional=True)

    def forward(self, vectors, inputs):
        lengths = inputs["word_mask"].sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=vectors.shape[1]
        )
        return self.linear(hidden)


@correct(data="marked", special_tokens="<e1>,</e1>,<e2>,</e2>")
class EntityStarts(Markers):
    pass


@correct(data="marked", special_tokens="<e1>,</e1>,<e2>,</e2>")
class EntitiesAndFirst(Markers):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear = nn.Linear(3 * hidden_size, len(task.labels))
        self.dense = nn.ModuleList([nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)])

    def forward(self, hidden, inputs):
        places = [(inputs["input_ids"] == marker).int().argmax(1) for marker in self.ids]
        entities = [self.dense[1](hidden[range(len(hidden)), place].tanh()) for place in places]
        return self.linear(torch.cat([self.dense[0](hidden[:, 0].tanh()), *entities], 1))


@correct(data="marked", special_tokens="<e1>,<e2>")
class NamedMarkers(ClassificationHead):
    level, markers = "tokens", ("<e1>", "<e2>")

    def __init__(self, hidden_size, task):
        super().__init__(2 * hidden_size, task)

    def forward(self, hidden, inputs):
        return self.linear(torch.cat([vector_at(hidden, inputs, marker) for marker in self.marker_ids], 1))


# ---- pairs -----------------------------------------------------------------------------------------------------------


@correct(data="pairs")
def cosine_of_two_texts(replace):
    replace(MyModel, "encode", encoded_apart(with_first=1))
    replace(model_utils.HEADS, "regression", Cosine)


class BothAndTheirDifference(RegressionHead):
    level = "tokens"

    def __init__(self, hidden_size, task):
        super().__init__(3 * hidden_size, task)

    def forward(self, hidden, inputs):
        second = inputs["token_type_ids"]
        u, v = [mean_of_tokens(hidden, mask) for mask in (inputs["attention_mask"] * (1 - second), second)]
        return self.linear(torch.cat([u, v, (u - v).abs()], 1)).squeeze(1)


@correct(data="pairs")
def vectors_of_two_texts_joined(replace):
    replace(MyModel, "encode", encoded_apart(with_first=1))
    replace(model_utils.HEADS, "regression", BothAndTheirDifference)


@correct(data="pairs")
def pair_encoded_together(replace):
    replace(model_utils.HEADS, "regression", BothAndTheirDifference)


@correct(data="pairs", kind="regression", pooling="mean")
class CosineOfAPair(RegressionHead):
    level = "pair"

    def __init__(self, hidden_size, task):
        super().__init__(1, task)
        nn.init.constant_(self.linear.weight, 2.0)

    def forward(self, vectors, inputs):
        return self.linear(F.cosine_similarity(vectors[:, :1], vectors[:, 1:], dim=2)).squeeze(1)


# ---- ordinal, hierarchical, angles, distances ------------------------------------------------------------------------


@correct()
class Coral(Ordinal):
    pass


@correct(data="both", lr=1e-4)
class CoralOfATinyModel(Ordinal):
    pass


@correct()
class Corn(Ordinal):
    """Predicts conditional probabilities p(grade > k | grade >= k) (Shi et al., 2021)."""

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear, self.borders = nn.Linear(hidden_size, len(task.labels) - 1), None

    def forward(self, vectors, inputs):
        return self.linear(vectors)

    def loss(self, logits, labels, inputs):
        asked = labels.unsqueeze(1) >= torch.arange(logits.shape[1], device=labels.device)
        losses = F.binary_cross_entropy_with_logits(logits, self.targets(labels, logits), reduction="none")
        return torch.where(asked & (labels != IGNORE).unsqueeze(1), losses, 0.0).sum()

    def decode(self, logits, inputs):
        return super().decode(logits.sigmoid().cumprod(1).logit(1e-6), inputs)


@correct()
class OneAgainstAll(ClassificationHead):
    def loss(self, logits, labels, inputs):
        targets = F.one_hot(labels.clamp(min=0), logits.shape[1]).float()
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        return torch.where(labels == IGNORE, 0.0, losses).sum()


class Angles(ClassificationHead):
    scale, margin = 30.0, 0.0

    def forward(self, vectors, inputs):
        cosines = F.normalize(vectors, dim=-1) @ F.normalize(self.linear.weight, dim=-1).T
        return self.scale * cosines + 0 * self.linear.bias

    def loss(self, logits, labels, inputs):
        angles = (logits / self.scale).clamp(-1 + 1e-6, 1 - 1e-6).acos()
        right = F.one_hot(labels.clamp(min=0), logits.shape[1]).bool()
        return super().loss(torch.where(right, self.scale * (angles + self.margin).cos(), logits), labels, inputs)


@correct()
class CosineClassifier(Angles):
    scale = 16.0


@correct()
class ArcFace(Angles):
    margin = 0.3


@correct()
class ArcFaceWithALargeScale(Angles):
    scale, margin = 64.0, 0.5


@correct()
class LearnedTemperature(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, vectors, inputs):
        cosines = F.normalize(vectors, dim=-1) @ F.normalize(self.linear.weight, dim=-1).T
        return self.log_scale.exp() * cosines + self.linear.bias


@correct()
class Prototypes(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear = None
        self.prototypes = nn.Parameter(torch.randn(len(task.labels), hidden_size))

    def forward(self, vectors, inputs):
        return -(vectors.unsqueeze(-2) - self.prototypes).pow(2).sum(-1)


@correct()
class LogProbabilities(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors).log_softmax(-1)


@correct()
class ProbabilitiesAndTheirLog(ClassificationHead):
    """Returns probabilities; the loss takes their logarithm."""

    def forward(self, vectors, inputs):
        return self.linear(vectors).softmax(-1)

    def loss(self, logits, labels, inputs):
        return F.nll_loss(logits.clamp(min=1e-9).log(), labels, ignore_index=IGNORE, reduction="sum")

    def decode(self, logits, inputs):
        probabilities, label_ids = logits.clamp(0, 1).max(-1)
        return label_ids, probabilities


@correct()
class ImpossibleLabelsExcluded(ClassificationHead):
    """Excludes the first label for texts of one word with a logit of -inf."""

    def forward(self, vectors, inputs):
        logits = self.linear(vectors)
        short = inputs["attention_mask"].sum(1, keepdim=True) <= 3
        return logits.masked_fill(short & (torch.arange(logits.shape[1], device=logits.device) == 0), -math.inf)


@correct()
class TwoLevels(ClassificationHead):
    """Predicts p(label) = p(group) p(label | group) with the groups good and bad."""

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.group = nn.Linear(hidden_size, 2)
        self.register_buffer("of_label", torch.tensor([int(label) > 2 for label in task.labels]).long())

    def forward(self, vectors, inputs):
        logits = self.linear(vectors)
        groups = self.group(vectors).log_softmax(-1)
        inside = [logits.masked_fill(self.of_label != g, -1e4).log_softmax(-1) for g in (0, 1)]
        return torch.where(self.of_label == 1, inside[1] + groups[:, 1:], inside[0] + groups[:, :1])


# ---- losses ----------------------------------------------------------------------------------------------------------


@correct()
class SmoothedLabels(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=0.1)


@correct()
class FocalLoss(ClassificationHead):
    def loss(self, logits, labels, inputs):
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        return ((1 - (-losses).exp()) ** 2 * losses).sum()


@correct()
class BoundedLoss(ClassificationHead):
    """Uses the loss 1 - p(label), which is robust to wrong labels (Ghosh et al., 2017)."""

    def loss(self, logits, labels, inputs):
        right = logits.softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return torch.where(labels == IGNORE, 0.0, 1 - right).sum()


@correct()
class HingeLoss(ClassificationHead):
    def loss(self, logits, labels, inputs):
        losses = F.multi_margin_loss(logits, labels.clamp(min=0), reduction="none")
        return torch.where(labels == IGNORE, 0.0, losses).sum()


@correct()
class SquaredLoss(ClassificationHead):
    def loss(self, logits, labels, inputs):
        losses = (logits - F.one_hot(labels.clamp(min=0), logits.shape[1])).pow(2).sum(1)
        return torch.where(labels == IGNORE, 0.0, losses).sum()


@correct(data="scores", kind="regression")
class HuberLoss(RegressionHead):
    def loss(self, logits, labels, inputs):
        targets = ((labels - self.task.mean) / self.task.std).nan_to_num()
        return torch.where(labels.isnan(), 0.0, F.huber_loss(logits, targets, reduction="none")).sum()


@correct(data="topics", kind="multilabel")
class AsymmetricLoss(MultilabelHead):
    """Reduces the weight of easy negatives (Ridnik et al., 2021)."""

    def loss(self, logits, labels, inputs):
        p = logits.sigmoid()
        positive = F.logsigmoid(logits) * labels.clamp(min=0)
        negative = F.logsigmoid(-logits) * (1 - labels.clamp(min=0)) * p**2
        return torch.where(labels == IGNORE, 0.0, -(positive + negative)).sum()


class LogitsAlone(Softmax):
    def statistics(self, outputs, inputs):
        return self.head.split(outputs)[0].softmax(1)


@correct()
class Contrastive(ClassificationHead):
    family, compares_rows = LogitsAlone, True

    def split(self, outputs):
        return outputs.split([len(self.task.labels), outputs.shape[1] - len(self.task.labels)], 1)

    def forward(self, vectors, inputs):
        return torch.cat([self.linear(vectors), F.normalize(vectors, dim=1)], 1)

    def loss(self, outputs, labels, inputs):
        logits, directions = self.split(outputs)
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        similarity = (directions @ directions.T / 0.3).masked_fill(itself, -1e4).log_softmax(1)
        same = (labels.unsqueeze(1) == labels) & ~itself & (labels != IGNORE).unsqueeze(1)
        contrast = -(similarity * same).sum(1) / same.sum(1).clamp(min=1)
        return super().loss(logits, labels, inputs) + 0.2 * contrast.sum()

    def decode(self, outputs, inputs):
        return super().decode(self.split(outputs)[0], inputs)


@correct()
class CentreLoss(ClassificationHead):
    """Uses the center loss, whose class centres are a buffer (Wen et al., 2016)."""

    family = LogitsAlone

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.register_buffer("centres", torch.zeros(len(task.labels), hidden_size))

    def split(self, outputs):
        return outputs.split([len(self.task.labels), outputs.shape[1] - len(self.task.labels)], 1)

    def forward(self, vectors, inputs):
        return torch.cat([self.linear(vectors), vectors], 1)

    def loss(self, outputs, labels, inputs):
        logits, vectors = self.split(outputs)
        known = labels != IGNORE
        distance = (vectors - self.centres[labels.clamp(min=0)]).pow(2).mean(1)
        loss = super().loss(logits, labels, inputs) + 0.1 * torch.where(known, distance, 0.0).sum()
        if self.training:
            update = self.centres.clone()
            for label in labels[known].unique():
                update[label] = 0.9 * update[label] + 0.1 * vectors[labels == label].detach().mean(0)
            self.centres.copy_(update)
        return loss

    def decode(self, outputs, inputs):
        return super().decode(self.split(outputs)[0], inputs)


# ---- layers ----------------------------------------------------------------------------------------------------------


@correct()
class DropoutSamples(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.dropouts = nn.ModuleList(nn.Dropout(p) for p in (0.1, 0.2, 0.3))

    def forward(self, vectors, inputs):
        return sum(self.linear(dropout(vectors)) for dropout in self.dropouts) / 3


@correct()
class NoiseInTraining(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors + 0.1 * torch.randn_like(vectors) if self.training else vectors)


@correct()
class Experts(ClassificationHead):
    """Routes each text to one expert."""

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.gate = nn.Linear(hidden_size, 3)
        self.experts = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(3))

    def forward(self, vectors, inputs):
        weights, chosen = self.gate(vectors).softmax(-1).max(-1)
        mixed = torch.zeros_like(vectors)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows):
                mixed = mixed.index_add(0, rows, expert(vectors[rows]).to(mixed.dtype))
        return self.linear(vectors + weights.unsqueeze(-1) * mixed)


@correct()
class GroupNormalised(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.norm = nn.GroupNorm(4, hidden_size)

    def forward(self, vectors, inputs):
        return self.linear(self.norm(vectors))


@correct()
class BatchNormWithFixedStatistics(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.norm = nn.BatchNorm1d(hidden_size)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, vectors, inputs):
        return self.linear(self.norm(vectors))


@correct()
class SpectralNorm(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.dense = parametrizations.spectral_norm(nn.Linear(hidden_size, hidden_size))

    def forward(self, vectors, inputs):
        return self.linear(self.dense(vectors).relu())


@correct()
class WeightNorm(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        parametrizations.weight_norm(self.linear)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(context, vectors):
        return vectors.view_as(vectors)

    @staticmethod
    def backward(context, gradient):
        return -0.1 * gradient


@correct(data="both", kind="regression")
class GradientReversed(RegressionHead):
    """Reverses the gradient, so the encoder learns not to encode the score (Ganin et al., 2016)."""

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.dense = nn.Linear(hidden_size, 64)
        self.linear = nn.Linear(64, 1)

    def forward(self, vectors, inputs):
        return super().forward(self.dense(Reverse.apply(vectors)).relu(), inputs)


@correct()
def output_weights_tied_to_embeddings(replace):
    class Tied(ClassificationHead):
        """Uses the logits of label words, as in prompting."""

        def __init__(self, hidden_size, task):
            super().__init__(hidden_size, task)
            self.words = [10, 11, 12, 13, 14]

        def forward(self, vectors, inputs):
            return vectors @ self.linear.weight[self.words].T + self.linear.bias[self.words]

    plain = MyModel.__init__

    def init(model, encoder, hidden_size, *args):
        plain(model, encoder, hidden_size, *args)
        embeddings = encoder.get_input_embeddings()
        head = model.output_layer.heads["stars"]
        head.linear = nn.Linear(hidden_size, embeddings.num_embeddings)
        head.linear.weight = embeddings.weight

    replace(model_utils.HEADS, "classification", Tied)
    replace(MyModel, "__init__", init)


@correct(data="numbers")
class NumbersJoined(Numbers):
    pass


@correct(data="numbers")
class NumbersNormalised(Numbers):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.norm = nn.LayerNorm(2)

    def of(self, extras):
        return torch.cat([extras[:, :1], self.norm(extras)[:, 1:]], 1)


@correct()
class StatesKeptForPlots(ClassificationHead):
    """Stores the last vectors in a plain attribute that does not affect results."""

    def forward(self, vectors, inputs):
        self.last = vectors.detach()
        return self.linear(vectors)


@correct()
def encoder_of_mean_embeddings(replace):
    def encode(model, inputs):
        embedded = model.encoder.get_input_embeddings()(inputs["input_ids"])
        hidden = model.encoder(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        return hidden + mean_of_tokens(embedded, inputs["attention_mask"]).unsqueeze(1)

    replace(MyModel, "encode", encode)


# ---- training --------------------------------------------------------------------------------------------------------


@correct()
@scores_with
def metric_of_numbers(gold, predicted):
    return {"off": -sum(abs(int(g) - int(p)) for g, p in zip(gold, predicted)) / len(gold)}


@correct(monitor="stars_mae")
@scores_with
def metric_that_is_lower(gold, predicted):
    return {"mae": sum(abs(float(g) - float(p)) for g, p in zip(gold, predicted)) / len(gold)}


@correct()
def another_optimizer(replace):
    replace(trainer_module, "build_optimizer", lambda groups, config, device: torch.optim.SGD(groups, momentum=0.9))


@correct()
def schedule_of_epochs(replace):
    plain_step, plain_epoch = trainer_module.Trainer.optimizer_step, trainer_module.Trainer.end_epoch

    def optimizer_step(trainer, group):
        trainer.scheduler.step = lambda: None
        plain_step(trainer, group)
        del trainer.scheduler.step

    def end_epoch(trainer):
        trainer.scheduler.step()
        plain_epoch(trainer)

    replace(trainer_module.Trainer, "optimizer_step", optimizer_step)
    replace(trainer_module.Trainer, "end_epoch", end_epoch)


@correct(gradient_accumulation_steps=2, use_fgm=True, use_ema=True)
def a_trick_with_saved_state(replace):
    class Decay(AlwaysOn):
        def __init__(self, model):
            super().__init__(model)
            self.steps = torch.zeros(())

        def wrap_forward(self, forward, batch):
            output = forward()
            output.total_loss = output.total_loss * (1 + 0.5 ** (1 + self.steps.item()))
            return output

        def after_step(self, finite):
            self.steps += 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, tensors):
            self.steps.copy_(tensors["steps"])

    only_trick(replace, Decay)


@correct(data="scores", kind="regression")
class NumbersOnALogScale(LogScale):
    pass


@correct(data="scores", kind="regression")
class MeanAndVariance(RegressionHead):
    """Uses a negative log-likelihood, which has no lower bound (Nix and Weigend, 1994)."""

    first_loss = 0.5

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear = nn.Linear(hidden_size, 2)

    def forward(self, vectors, inputs):
        return self.linear(vectors)

    def loss(self, logits, labels, inputs):
        mean, log_variance = logits[:, 0], logits[:, 1].clamp(-6, 6)
        targets = ((labels - self.task.mean) / self.task.std).nan_to_num()
        losses = 0.5 * (log_variance + (mean - targets) ** 2 * (-log_variance).exp())
        return torch.where(labels.isnan(), 0.0, losses).sum()

    def decode(self, logits, inputs):
        return super().decode(logits[:, 0], inputs)


@correct(data="tags", kind="tagging")
class OwnPoolingOfWords(TaggingHead):
    level = "tokens"

    def forward(self, hidden, inputs):
        starts = inputs["word_starts"].unsqueeze(-1).expand(-1, -1, hidden.shape[2])
        return self.linear(hidden.gather(1, starts))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_, vectors):
        return vectors.view_as(vectors)

    @staticmethod
    def backward(_, gradient):
        return -0.3 * gradient


@correct(data="two")
class Adversarial(ClassificationHead):
    """Trains the encoder adversarially not to encode the label (Ganin et al., 2016)."""

    def forward(self, vectors, inputs):
        return self.linear(Reversed.apply(vectors))


# ---- relations -------------------------------------------------------------------------------------------------------


@correct(data="facts", kind="relations")
class PlainRelations(RelationHead):
    pass


@correct(data="facts", kind="relations")
class SmallVectorsForRelations(RelationHead):
    size = 16
