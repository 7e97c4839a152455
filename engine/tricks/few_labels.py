"""Tricks for few labels (--few_shot): a contrastive loss on text vectors, and class frequencies from dev."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import chi2_contingency

from engine.model.head import Head, paths_of
from engine.model.temperature import MIN_LABELS, best_temperature
from engine.task.task import IGNORE, Task, classifies_texts
from engine.tricks.trick import Trick

logger = logging.getLogger("template")
SIGNIFICANCE = 0.01  # significance level: label frequencies count as different if the p-value is below this


class Contrast(Trick):
    """Supervised contrastive loss: adds weight * the mean over texts i of -sum_j a_ij log p_ij / sum_j a_ij.

    p_ij is the softmax over j != i of v_i . v_j / temperature, where v are the unit vectors of the labelled texts in a
    micro-batch. a_ij is 1 if i and j have the same label, else 0; for label sets and for paths in a hierarchy, it is
    the size of the intersection divided by the size of the union. A text i is excluded from the mean if all a_ij are 0.

    L_out of Khosla et al., 2020 (arXiv:2004.11362), in addition to cross-entropy as in Gunel et al., 2021
    (arXiv:2011.01403). Texts are compared within a micro-batch, and only within a process.
    """

    @classmethod
    def build(cls, model: Any, config: Any) -> "Contrast | None":
        if not config.few_shot:
            return None
        if not any(p.requires_grad for p in model.encoder.parameters()):
            logger.info("--few_shot: no contrastive loss, because the encoder is not trained")
            return None
        trick = cls(model)
        others = [name for name in model.output_layer.heads if name not in trick.heads]
        if others:
            names = ", ".join(others)
            logger.info(f"--few_shot: no contrastive loss for {names}, which needs one vector and one label per text")
        return trick if trick.heads else None

    def __init__(self, model: Any, weight: float = 1.0, temperature: float = 0.1):
        self.layer, self.task_weights = model.output_layer, model.loss.task_weights
        self.weight, self.temperature = weight, temperature
        heads = self.layer.heads.items()
        self.heads = {name: head for name, head in heads if head.level == "text" and classifies_texts(head.task.kind)}
        device = next(model.parameters()).device
        self.sets = {name: label_sets(head.task).to(device) for name, head in self.heads.items()}

    def wrap_forward(self, forward: Callable[[], Any], batch: Any) -> Any:
        hidden: list[torch.Tensor] = []
        handle = self.layer.register_forward_pre_hook(lambda layer, inputs: hidden.append(inputs[0]))
        try:
            output = forward()
        finally:
            handle.remove()
        with torch.autocast(hidden[0].device.type, enabled=False):
            vectors = self.layer.text_vectors(hidden[0].float(), batch.inputs)
            for name, head in self.heads.items():
                labels = batch.labels[name]
                # the micro-batch's share of the mean over the optimizer step, as for the cross-entropy
                share = head.label_weights(labels, batch.inputs).sum() / output.counts[name]
                labelled = head.label_mask(labels, batch.inputs).reshape(len(labels), -1).any(1)
                alike = label_overlap(labels, self.sets[name], labelled)
                loss = contrastive_loss(vectors, alike, labelled, self.temperature)
                weight = self.weight * self.task_weights.get(name, 1.0)
                output.total_loss = output.total_loss + weight * share * loss
        return output


def label_sets(task: Task) -> torch.Tensor:
    """Returns the nodes on the path of each label as zeros and ones, (C, N). Without a hierarchy, the only node is the
    label itself."""
    paths = paths_of(task)
    return torch.zeros(len(paths), len(task.nodes) + 1).scatter_(1, paths, 1.0)[:, :-1]


def label_overlap(labels: torch.Tensor, sets: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Computes a_ij, (B, B): the intersection over the union of two texts' labels or nodes; 1 if both texts have none.

    labels: (B,) ids or (B, C) zeros and ones, negative where unlabelled; sets: see `label_sets`; labelled: (B,)
    """
    known = labels.clamp(min=0)
    own = known.float() if labels.ndim > 1 else sets[known]
    own = torch.cat([own, 1 - own.amax(1, keepdim=True)], 1) * labelled.unsqueeze(1)
    shared, sizes = own @ own.T, own.sum(1)
    return shared / (sizes.unsqueeze(1) + sizes - shared).clamp(min=1)


def contrastive_loss(
    vectors: torch.Tensor, alike: torch.Tensor, labelled: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Computes the loss of `Contrast` for a micro-batch. vectors: (B, H); alike: a_ij (B, B); labelled: (B,) -> ()"""
    vectors = F.normalize(vectors, dim=1)
    others = labelled & ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    similarity = (vectors @ vectors.T / temperature).masked_fill(~others, -1e4)
    alike = alike * others  # excludes i = j and unlabelled texts j
    total = alike.sum(1)
    losses = -(alike * similarity.log_softmax(1)).sum(1) / torch.where(total > 0, total, 1.0)
    return losses.sum() / (total > 0).sum().clamp(min=1)


class LabelShift(Trick):
    """Label shift correction: adds T log(p_dev(c) / p_train(c)) to the bias of each class c in the weights that are
    evaluated and saved.

    A sample of K texts per class does not reflect the class frequencies, but a head's bias learns the frequencies of
    the sample. p are the relative frequencies in dev and train, after adding one to each count; with --class_weights
    balanced, p_train is uniform. A head is changed only if a chi-square test finds that the counts differ.

    T is the temperature that fits dev best. softmax(logits / T) are the probabilities at the label frequencies of
    train, and adding the logarithm gives the probabilities at the frequencies of dev (Alexandari et al., 2020,
    arXiv:1901.06852). With T = 1, the shift would outweigh the small logits of the first epochs, and hardly affect the
    large logits of an overfit model. Saerens et al., 2002 (Neural Computation 14), for known frequencies; Menon et al.,
    2021 (arXiv:2007.07314).
    """

    switch = "few_shot"

    def __init__(self, model: Any):
        self.heads = {name: head for name, head in model.output_layer.heads.items() if has_class_biases(head)}
        self.shifts: dict[str, torch.Tensor] = {}

    def begin(self, train_loader: Any, dev_loader: Any, config: Any) -> None:
        if config.init_from:  # its biases are already adjusted to the frequencies of dev
            logger.info("--few_shot: label frequencies are not adjusted, because the run starts from another run")
            return
        # The counts in labels.json may be outdated, if rows were added to train.jsonl
        counts = [count_labels(loader.dataset, list(self.heads)) for loader in (dev_loader, train_loader)]
        for name, head in self.heads.items():
            dev, train = (
                torch.tensor([counter[name][label] for label in head.task.labels], dtype=torch.float64)
                for counter in counts
            )
            if config.class_weights == "balanced":
                train = torch.full_like(train, float(train.mean()))
            if not differ(dev, train):
                continue
            shift = ((dev + 1) / (dev + 1).sum()).log() - ((train + 1) / (train + 1).sum()).log()
            self.shifts[name] = shift.to(head.linear.bias)
            raised = head.task.labels[int(shift.argmax())]
            logger.info(
                f"--few_shot: {name} has different label frequencies in dev than in train, mainly for {raised!r}; "
                "using the frequencies of dev"
            )

    def adapt_to_dev(self, logits_of_dev: Callable[[], dict[str, Any]]) -> None:
        dev = logits_of_dev() if self.shifts else {}
        with torch.no_grad():
            for name, shift in self.shifts.items():
                logits, labels = dev[name]
                self.heads[name].linear.bias += temperature_at(logits, labels, shift) * shift

    @contextmanager
    def swap_weights(self) -> Iterator[None]:
        biases = {name: self.heads[name].linear.bias for name in self.shifts}
        before = {name: bias.detach().clone() for name, bias in biases.items()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, bias in biases.items():
                    bias.copy_(before[name])


def temperature_at(logits: torch.Tensor, labels: torch.Tensor, shift: torch.Tensor) -> float:
    """Returns the T for which softmax(logits / T + shift) fits the labels best; 1 with fewer labels than MIN_LABELS.

    logits: (N, C), labels: (N,), shift: (C,)
    """
    there = labels != IGNORE
    if there.sum() < MIN_LABELS:
        return 1.0
    scores, labels, shift = logits[there].double(), labels[there].long(), shift.cpu().double()
    return best_temperature(lambda t: F.cross_entropy(scores / t + shift, labels))


def has_class_biases(head: Head) -> bool:
    """Returns whether a head's logits are the output of a linear layer with one bias per class."""
    task = head.task
    plain = task.kind == "classification" and not task.hierarchy and type(head).forward is Head.forward
    return plain and task.counts is not None and head.linear.out_features == len(task.labels)


def count_labels(data: Any, names: list[str]) -> dict[str, Counter[str]]:
    """Counts the labels of tasks in a dataset of data_loader.py, reading it as a stream."""
    counts = {name: Counter[str]() for name in names}
    for example in islice(data.examples(), data.num_labelled):
        for name, counter in counts.items():
            counter[example[name]] += 1
    return counts


def differ(dev: torch.Tensor, train: torch.Tensor) -> bool:
    """Returns whether the label frequencies of two samples differ, by a chi-square test. dev, train: counts (C,)

    Merges all labels with an expected count below five in one of the samples (Cochran, 1954).
    """
    table = torch.stack([dev, train]).numpy()
    rare = (table.sum(1).min() * table.sum(0) / max(table.sum(), 1)) < 5
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(1)])
    table = table[:, table.sum(0) > 0]
    return bool(table.shape[1] > 1 and table.sum(1).all() and chi2_contingency(table).pvalue < SIGNIFICANCE)
