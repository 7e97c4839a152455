"""The model: an encoder, shared layers, one head a task, and the loss that joins them.

Edit here for your own model. A head of your own is one class with the methods of `ClassificationHead` and one line in HEADS;
its name there is the task's "type" in labels.json (a name that ends in "tagging" if it labels words). An encoder of your own
is a module whose output has `last_hidden_state` (B, L, H) (see `BiLSTM`) and one line in `build_encoder`.
Nothing else in the repository needs to change.
"""

import inspect
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from config import Config
from engine.checkpoint import load_weights, require_whole
from engine.command_line import UserError, first_line
from engine.crf import CRF
from engine.encoders import bert_config, check_encoder, layer_ids, load_pretrained, lr_of_width, num_positions
from engine.tags import IGNORE

WIDE_MASK = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "albert",
)  # take a (B, 1, L, L) mask as it is


@dataclass
class MyModelOutput:
    total_loss: torch.Tensor | None = None  # (), the weighted sum of the losses
    losses: dict = field(default_factory=dict)  # {task: ()}, each a mean over its labels
    logits: dict = field(default_factory=dict)  # {task: (B, C) or (B, W, C)}
    counts: dict = field(default_factory=dict)  # {task: ()}, what each loss was divided by


def mean_output(outputs, total_loss):
    """One MyModelOutput of several, with the mean of their losses, and this total."""
    losses = {name: sum(output.losses[name] for output in outputs) / len(outputs) for name in outputs[0].losses}
    return MyModelOutput(total_loss, losses, outputs[0].logits, outputs[0].counts)


class MyModel(nn.Module):
    """Featurizer -> OutputLayer -> MyLoss. Holds any encoder; is no subclass of one, so pretrained weights load as they are.

    tasks: {name: {"type", "labels", …}} as in labels.json.
    """

    def __init__(
        self,
        encoder,
        hidden_size,
        tasks,
        use_crf=False,
        num_shared_layers=0,
        dropout=0.1,
        task_weights=None,
        pooling="first",
    ):
        super().__init__()
        unknown = set(task_weights or {}) - set(tasks)
        if unknown:
            raise UserError(f"--task_weights names {', '.join(sorted(unknown))}, but the tasks are {', '.join(tasks)}")
        self.encoder = encoder
        self.output_layer = OutputLayer(hidden_size, tasks, use_crf, num_shared_layers, dropout, pooling)
        self.loss = MyLoss(task_weights)
        self.takes_types = "token_type_ids" in inspect.signature(encoder.forward).parameters
        # Of a (B, L) mask transformers asks whether all is real, and on a GPU the host would wait for the answer in each step.
        self.takes_wide_mask = getattr(getattr(encoder, "config", None), "model_type", None) in WIDE_MASK
        self.wide_mask_on = "cuda"

    def forward(self, inputs, labels=None, totals=None):
        """inputs, labels: as data_loader.Batch has them. totals: how many labels of each task the mean is taken over, if not
        only those of this batch (gradient accumulation: those of the whole group). -> MyModelOutput, with losses if labels."""
        types = {"token_type_ids": inputs["token_type_ids"]} if self.takes_types else {}
        mask = inputs["attention_mask"]
        if self.takes_wide_mask and mask.device.type == self.wide_mask_on:
            mask = mask.bool()[:, None, None, :].expand(-1, -1, mask.shape[1], -1)  # (B, 1, L, L)
        hidden = self.encoder(input_ids=inputs["input_ids"], attention_mask=mask, **types).last_hidden_state
        return self.read(hidden, inputs, labels, totals)

    def read(self, hidden, inputs, labels, totals):
        """What the heads make of the encoder's output. -> MyModelOutput"""
        logits = self.output_layer(hidden, inputs)
        if labels is None:
            return MyModelOutput(logits=logits)
        with torch.autocast(hidden.device.type, enabled=False):  # losses and the CRF stay in fp32
            return self.loss(self.output_layer.heads, logits, labels, inputs, totals)

    def divergence(self, one, other, batch):
        """How far apart two outputs for a batch are: KL(p || q) + KL(q || p), weighted and averaged over labels as the losses are. -> ()"""
        heads = self.output_layer.heads
        with torch.autocast(batch.inputs["input_ids"].device.type, enabled=False):
            return sum(
                self.loss.task_weights.get(name, 1.0)
                * heads[name].divergence(one.logits[name], other.logits[name], batch.labels[name], batch.inputs)
                / count
                for name, count in one.counts.items()
            )

    def decode(self, logits, inputs):
        """{task: (label numbers, probabilities)} for logits of `forward`; training never pays for it."""
        return {name: head.decode(logits[name], inputs) for name, head in self.output_layer.heads.items()}

    def count_labels(self, inputs, labels):
        """{task: how many labels have a loss}, the number that `loss` divides by; computed where the batch lies."""
        return {
            name: head.count(labels[name], inputs) for name, head in self.output_layer.heads.items() if name in labels
        }


class OutputLayer(nn.Module):
    """Hidden states (B, L, H) -> {task: logits}. Shared layers first, then a head for each task.

    Heads see one vector for the text (B, H), that of the first token ([CLS]) or the mean over its tokens, and one for each word,
    that of its first sub-token (B, W, H); nothing is computed for other positions.
    """

    def __init__(self, hidden_size, tasks, use_crf=False, num_shared_layers=0, dropout=0.1, pooling="first"):
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.shared = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Dropout(dropout))
            for _ in range(num_shared_layers)
        )
        if unknown := {task["type"] for task in tasks.values()} - set(HEADS):
            raise UserError(
                f"labels.json: no head for the type {', '.join(sorted(unknown))}; HEADS in model_utils.py has {', '.join(HEADS)}"
            )
        self.heads = TaskDict({name: HEADS[task["type"]](hidden_size, task, use_crf) for name, task in tasks.items()})

    def forward(self, hidden, inputs):
        vectors = {
            "text": hidden[:, 0] if self.pooling == "first" else mean_of_tokens(hidden, inputs["attention_mask"])
        }
        if "word_starts" in inputs:
            places = inputs["word_starts"].unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
            vectors["words"] = hidden.gather(1, places)
        for kind, vector in vectors.items():
            vector = self.dropout(vector)
            for layer in self.shared:
                vector = layer(vector)
            vectors[kind] = vector
        return {name: head(vectors[head.reads]).float() for name, head in self.heads.items()}


def mean_of_tokens(hidden, mask):
    """Hidden states (B, L, H), mask (B, L) -> their mean over the real tokens (B, H), in fp32."""
    shares = mask / mask.sum(1, keepdim=True)
    return (hidden * shares.unsqueeze(-1)).sum(1)


class TaskDict(nn.ModuleDict):
    """A ModuleDict that accepts task names such as 'type' or 'items', which torch reserves."""

    def add_module(self, name, module):
        self._modules[name] = module


# ---- heads ---------------------------------------------------------------------------------------------------------------


class ClassificationHead(nn.Module):
    """One label a text: (B, H) -> logits (B, C).

    For imbalanced labels `build_model` may set: label_smoothing (Szegedy et al., 2016), focal_gamma (Lin et al., 2017,
    arXiv:1708.02002: each loss times (1 - p)^gamma), and class_weights (C,), by which losses are weighted and averaged.
    """

    reads = "text"
    fits = False  # whether `fit` chooses something on dev
    label_smoothing, focal_gamma = 0.0, 0.0

    def __init__(self, hidden_size, task, use_crf=False):
        super().__init__()
        self.task = task
        self.linear = nn.Linear(hidden_size, len(task["labels"]))
        self.register_buffer("class_weights", None, persistent=False)

    def forward(self, vectors):
        return self.linear(vectors)

    def loss(self, logits, labels, inputs):
        """Sum, not mean, of the cross-entropies of the labels that are there."""
        options = dict(weight=self.class_weights, ignore_index=IGNORE, label_smoothing=self.label_smoothing)
        if not self.focal_gamma:
            return F.cross_entropy(logits, labels, reduction="sum", **options)
        losses = F.cross_entropy(logits, labels, reduction="none", **options)
        chance = logits.softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return ((1 - chance) ** self.focal_gamma * losses).sum()

    def known(self, labels, inputs):
        """Which labels have a loss, in the labels' shape."""
        return labels != IGNORE

    def count(self, labels, inputs):
        """What `loss` is divided by: how many labels it sums over, or the sum of their weights."""
        return self.share(labels, inputs).sum()

    def share(self, labels, inputs):
        """What each label weighs in the loss, in the labels' shape: 1, or its class's weight, and 0 if there is none."""
        known = self.known(labels, inputs)
        if self.class_weights is None:
            return known
        return (
            self.weights_of_host.to(labels.device)[labels.clamp(min=0)] * known
        )  # on a GPU labels are counted before they move

    def means(self, logits, inputs):
        """The gradient of the distribution's log normaliser by its logits."""
        return logits.softmax(-1)

    def divergence(self, one, other, labels, inputs):
        """KL(p || q) + KL(q || p) of the answers by two logits, summed over what has labels: <means_p - means_q, logits_p - logits_q>,
        as in any exponential family (Amari, Information Geometry and Its Applications, 2016)."""
        products = (self.means(one, inputs) - self.means(other, inputs)) * (one - other)
        share = self.share(labels, inputs)
        return (products * share.view(*share.shape, *[1] * (products.ndim - share.ndim))).sum()

    def decode(self, logits, inputs):
        """(answers, their probabilities), each (B,); an answer is a label's number."""
        probabilities, numbers = logits.softmax(-1).max(-1)
        return numbers, probabilities

    def named(self, answer, probability):
        """(label, probability) of one text, as the data has labels, from what `decode` gave for it, as Python values."""
        return self.task["labels"][answer], probability

    def fit(self, logits, labels):
        """Chooses on dev, if `fits`: logits, labels: of the whole part."""

    def probabilities(self, logits):
        """What may be averaged over several models; `from_probabilities` is its inverse as far as `decode` is concerned."""
        return logits.softmax(-1)

    def from_probabilities(self, probabilities):
        return probabilities.clamp(min=1e-12).log()


class MultilabelHead(ClassificationHead):
    """Any number of labels a text: (B, H) -> logits (B, C). Labels (B, C) are 0 or 1, or IGNORE where the text has none.

    A label is taken if its probability reaches `threshold`, which is fitted on dev (best micro F1) and kept with the weights.
    """

    fits = True

    def __init__(self, hidden_size, task, use_crf=False):
        super().__init__(hidden_size, task)
        self.register_buffer("threshold", torch.tensor(0.5))

    def loss(self, logits, labels, inputs):
        """Sum of the binary cross-entropies; class_weights weigh those of labels that are there."""
        targets = labels.clamp(min=0).float() * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.class_weights, reduction="none")
        if self.focal_gamma:
            losses = losses * (labels - logits.sigmoid()).abs() ** self.focal_gamma
        return torch.where(labels != IGNORE, losses, 0.0).sum()

    def share(self, labels, inputs):
        return self.known(labels, inputs)

    def means(self, logits, inputs):
        return logits.sigmoid()

    def decode(self, logits, inputs):
        """(0 or 1, probabilities), each (B, C)."""
        probabilities = logits.sigmoid()
        return probabilities >= self.threshold, probabilities

    def named(self, answer, probability):
        labels = [label for label, taken in zip(self.task["labels"], answer) if taken]
        return labels, [chance for chance, taken in zip(probability, answer) if taken]

    def fit(self, logits, labels):
        known = labels[:, 0] != IGNORE
        chances, order = logits[known].sigmoid().flatten().sort(descending=True)
        right = labels[known].flatten()[order].cumsum(0)
        if len(right) and right[-1] > 0:
            f1 = 2 * right / (torch.arange(1, len(right) + 1, device=right.device) + right[-1])
            f1[:-1][chances[:-1] == chances[1:]] = 0  # no threshold parts equal probabilities
            best = f1.argmax()
            after = chances[best + 1] if best + 1 < len(chances) else torch.zeros_like(chances[0])
            self.threshold.copy_((chances[best] + after) / 2)

    def probabilities(self, logits):
        return logits.sigmoid()

    def from_probabilities(self, probabilities):
        return probabilities.clamp(1e-7, 1 - 1e-7).logit()


class RegressionHead(ClassificationHead):
    """A number a text: (B, H) -> (B,), in units of the training part's standard deviation from its mean. Labels: NaN if missing."""

    def __init__(self, hidden_size, task, use_crf=False):
        super().__init__(hidden_size, task | {"labels": [None]})

    def forward(self, vectors):
        return self.linear(vectors).squeeze(-1)

    def loss(self, logits, labels, inputs):
        """Sum of the squared errors, scaled."""
        targets = (labels - self.task["mean"]) / self.task["std"]
        return torch.where(labels.isnan(), 0.0, (logits - targets.nan_to_num()) ** 2).sum()

    def known(self, labels, inputs):
        return ~labels.isnan()

    def means(self, logits, inputs):
        """Of a normal distribution of variance 1: the logits."""
        return logits

    def decode(self, logits, inputs):
        numbers = logits.double() * self.task["std"] + self.task["mean"]
        return numbers, torch.ones_like(numbers)

    def named(self, answer, probability):
        return answer, None

    def probabilities(self, logits):
        return logits

    from_probabilities = probabilities


class TaggingHead(ClassificationHead):
    """One tag a word: (B, W, H) -> logits (B, W, C); with a CRF over them if asked."""

    reads = "words"

    def __init__(self, hidden_size, task, use_crf=False):
        super().__init__(hidden_size, task)
        self.crf = CRF(task["labels"]) if use_crf else None

    def loss(self, logits, labels, inputs):
        """Sum over the words. The CRF leaves out a text with a word of no label: no path through it has a likelihood."""
        if self.crf is None:
            return super().loss(logits.flatten(0, 1), labels.flatten(), inputs)
        known = all_known(labels, inputs["word_mask"])
        return -(self.crf.log_likelihood(logits, labels.clamp(min=0), inputs["word_mask"]) * known).sum()

    def known(self, labels, inputs):
        if self.crf is None:
            return super().known(labels, inputs)
        return inputs["word_mask"] & all_known(labels, inputs["word_mask"]).unsqueeze(1)

    def share(self, labels, inputs):
        return super().share(labels, inputs) if self.crf is None else self.known(labels, inputs)

    def means(self, logits, inputs):
        return super().means(logits, inputs) if self.crf is None else self.crf.marginals(logits, inputs["word_mask"])

    def decode(self, logits, inputs):
        """(tags' numbers, their probabilities), each (B, W)."""
        if self.crf is None:
            return super().decode(logits, inputs)
        tags = self.crf.viterbi(logits, inputs["word_mask"])
        return tags, logits.softmax(-1).gather(2, tags.unsqueeze(2)).squeeze(2)

    def named(self, answer, probability):
        return [self.task["labels"][number] for number in answer], probability

    def probabilities(self, logits):
        """With a CRF the emissions: models are averaged by their scores, those of paths being sums."""
        return logits if self.crf else super().probabilities(logits)

    def from_probabilities(self, probabilities):
        return probabilities if self.crf else super().from_probabilities(probabilities)


def all_known(labels, mask):
    """Whether every word of a text has a label, (B,)."""
    return ((labels != IGNORE) | ~mask).all(1)


HEADS = {
    "classification": ClassificationHead,
    "multilabel": MultilabelHead,
    "regression": RegressionHead,
    "tagging": TaggingHead,
}


class MyLoss(nn.Module):
    """total = sum over tasks of weight * (sum of the task's losses / number of its labels)."""

    def __init__(self, task_weights=None):
        super().__init__()
        self.task_weights = task_weights or {}

    def forward(self, heads, logits, labels, inputs, totals=None):
        losses, counts = {}, {}
        for name, head in heads.items():
            if name in labels:
                total = head.count(labels[name], inputs) if totals is None else totals[name]
                counts[name] = torch.where(total > 0, total, 1)  # 0 / 1: no labels
                losses[name] = head.loss(logits[name], labels[name], inputs) / counts[name]
        weighted = [self.task_weights.get(name, 1.0) * loss for name, loss in losses.items()]
        return MyModelOutput(sum(weighted), losses, logits, counts)


# ---- CRF -----------------------------------------------------------------------------------------------------------------


# ---- building ------------------------------------------------------------------------------------------------------------


class BiLSTM(nn.Module):
    """An encoder without transformers: embeddings and bidirectional LSTMs. It shows what an encoder of your own needs.

    The layers are modules of their own: cuDNN's dropout between layers of one LSTM has a state that no checkpoint holds.
    """

    def __init__(self, vocab_size, hidden_size, num_layers, dropout, pad_id):
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx=pad_id)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.LSTM(hidden_size, hidden_size // 2, batch_first=True, bidirectional=True) for _ in range(num_layers)
        )

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask):
        lengths = attention_mask.sum(1).cpu()  # packed, so that padding never enters the backward pass
        vectors = self.dropout(self.embeddings(input_ids))
        packed, _ = self.layers[0](
            nn.utils.rnn.pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
        )
        for layer in self.layers[1:]:
            packed, _ = layer(packed._replace(data=self.dropout(packed.data)))
        hidden, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=input_ids.shape[1])
        hidden = hidden.unflatten(2, (2, -1))
        first = torch.cat(
            [hidden[range(len(lengths)), lengths - 1, 0], hidden[:, 0, 1]], 1
        )  # the whole text, both ways
        return SimpleNamespace(last_hidden_state=torch.cat([first.unsqueeze(1), hidden.flatten(2)[:, 1:]], 1))


def build_encoder(config, tokenizer, checkpoint=None):
    """(encoder, its width H). `checkpoint`: a folder of ours, whose weights are loaded afterwards; nothing else is read then."""
    if config.encoder == "bilstm":
        return BiLSTM(
            len(tokenizer), config.hidden_size, config.num_layers, config.dropout, tokenizer.pad_token_id
        ), config.hidden_size
    if checkpoint:
        try:
            shape = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
            encoder = AutoModel.from_config(shape, trust_remote_code=False).float()
        except Exception as error:  # a foreign folder can make transformers raise anything
            raise UserError(f"{checkpoint}: no encoder loads from it ({first_line(error)})") from None
    elif config.pretrain_model_path:
        encoder = load_pretrained(config.pretrain_model_path)
        vocab_size = getattr(encoder.get_input_embeddings(), "num_embeddings", None)
        if vocab_size is None:
            raise UserError(
                f"{config.pretrain_model_path}: {encoder.config.model_type} reads no text; take an encoder such as BERT"
            )
        if config.special_tokens:
            encoder.resize_token_embeddings(max(len(tokenizer), vocab_size))
        elif len(tokenizer) > vocab_size:
            raise UserError(
                f"{config.pretrain_model_path}: its tokenizer has {len(tokenizer)} entries, "
                f"its embedding {vocab_size} rows; they do not belong together"
            )
    else:
        shape = bert_config(tokenizer, config.num_layers, config.hidden_size, config.max_length, config.dropout)
        encoder = AutoModel.from_config(shape, trust_remote_code=False)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # our heads read the hidden states; its work would be thrown away
    if config.pretrain_model_path and not checkpoint:
        check_encoder(encoder, tokenizer, config.pretrain_model_path)
    if (longest := num_positions(encoder)) and config.max_length > longest:
        raise UserError(f"--max_length={config.max_length} is more than the {longest} positions of this encoder")
    return encoder, encoder.config.hidden_size


def build_model(config, tokenizer, tasks, checkpoint=None):
    """MyModel as the options say, on the CPU."""
    encoder, hidden_size = build_encoder(config, tokenizer, checkpoint)
    model = MyModel(
        encoder,
        hidden_size,
        tasks,
        use_crf=config.use_crf,
        num_shared_layers=config.shared_layers,
        dropout=config.dropout,
        task_weights=config.task_weights_by_name(),
        pooling=config.pooling,
    )
    for name, head in model.output_layer.heads.items():
        balance(name, head, tasks[name], config)
    freeze(model.encoder, config.freeze_layers)
    return model


def balance(name, head, task, config):
    """Sets what the options say of imbalanced labels. "balanced" weights: all / (number of labels * uses of this one), as scikit-learn's;
    of multilabel tasks: rows without the label / rows with it."""
    if not isinstance(head, ClassificationHead) or isinstance(head, RegressionHead):
        return
    head.label_smoothing, head.focal_gamma = config.label_smoothing, config.focal_gamma
    if config.class_weights == "balanced":
        if "counts" not in task:
            raise UserError(
                f"--class_weights: labels.json has no counts for {name!r}; make the folder anew with data_process.py"
            )
        counts = torch.tensor(task["counts"], dtype=torch.float32).clamp(min=1)
        rows = task.get("rows", 0)
        head.class_weights = head.weights_of_host = (
            (rows - counts).clamp(min=1) / counts
            if isinstance(head, MultilabelHead)
            else counts.sum() / (len(counts) * counts)
        )


def freeze(encoder, num_layers):
    """Takes the gradient from the embeddings and the first `num_layers` layers; -1: from the whole encoder; 0: from nothing."""
    if num_layers == -1:
        encoder.requires_grad_(False)
    elif num_layers:
        places, layers = layer_ids(encoder)
        if num_layers > layers:
            raise UserError(
                f"--freeze_layers={num_layers}: this encoder has {layers} layers that can be frozen one by one; 'all' freezes it whole"
            )
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(places[name] > num_layers)


def default_lr(model, config):
    """The peak rate of the encoder when --lr is not given: small encoders want far more than BERT-base's 5e-5.

    Pretrained: 3e-4 at width 384, falling with the square of the width (7.5e-5 at 768, 4.2e-5 at 1024); from scratch 1e-3.
    """
    if not config.pretrain_model_path or config.encoder == "bilstm":
        return 1e-3
    return lr_of_width(model.encoder.config.hidden_size)


def parameter_groups(model, config):
    """Groups for AdamW: {encoder, heads} x {decay, no decay}. Biases, norms and the CRF do not decay; heads learn at head_lr."""
    lr = config.lr or default_lr(model, config)
    from_scratch = not config.pretrain_model_path or config.encoder == "bilstm"
    head_lr = config.head_lr or (lr if from_scratch else min(10 * lr, 1e-2))
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_head, decays = not name.startswith("encoder."), parameter.ndim > 1 and ".crf." not in name
            group = groups.setdefault(
                (is_head, decays),
                {
                    "params": [],
                    "lr": head_lr if is_head else lr,
                    "weight_decay": config.weight_decay if decays else 0.0,
                },
            )
            group["params"].append(parameter)
    return list(groups.values())


def load_checkpoint(folder):
    """(model, tokenizer, tasks, config) of a checkpoint, on the CPU; needs no data and no hub. UserError if it is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no checkpoint there; train first (--do_train), or name one with --checkpoint")
    require_whole(folder)
    config = Config.load(folder / "args.json")
    tasks = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a foreign folder can make transformers raise anything
        raise UserError(f"{folder}: no tokenizer loads from it ({first_line(error)})") from None
    model = build_model(config, tokenizer, tasks, checkpoint=folder)
    load_weights(model, folder)
    return model, tokenizer, tasks, config
