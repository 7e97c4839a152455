"""Several models with the same heads, put together: the folds of a cross-validation."""

import json
import statistics

import torch

from engine import span_pointer
from engine.predictions import Predictions, add_cut_words


def mean_scores(paths):
    """{"folds": [eval.json of each], "mean": …, "std": …}; a score that one of them lacks has no mean."""
    result = {"folds": [json.loads(path.read_text(encoding="utf-8")) for path in paths]}
    for part in result["folds"][0]:
        for name in result["folds"][0][part]:
            values = [fold[part][name] for fold in result["folds"] if name in fold[part]]
            if len(values) == len(paths):
                result.setdefault("mean", {}).setdefault(part, {})[name] = statistics.fmean(values)
                result.setdefault("std", {}).setdefault(part, {})[name] = statistics.stdev(values)
    return result


def deciding_state(model):
    """{task: {name: tensor}} of what the heads decide by beside their logits: thresholds, transitions of a CRF."""
    heads = model.output_layer.heads.items()
    return {
        task: {name: tensor for name, tensor in head.state_dict().items() if not name.startswith("linear.")}
        for task, head in heads
    }


def average_heads(model, states):
    """Gives the model's heads the mean of several models' `deciding_state`."""
    for task, head in model.output_layer.heads.items():
        means = {
            name: torch.stack([state[task][name].cpu().float() for state in states]).mean(0) for name in states[0][task]
        }
        head.load_state_dict(means, strict=False)


@torch.inference_mode()
def mean_predictions(model, averages, data):
    """[{task: (label, probability)}] of each example: what `model` decodes from the mean of what several gave for it.

    averages: of each model, what `Trainer.infer` gives with keep_averages.
    """
    device, answers = next(model.parameters()).device, []
    for i in range(len(data)):
        answers.append({})
        for name, head in model.output_layer.heads.items():
            if head.finds_spans:
                found = span_pointer.mean_of([average[name][i] for average in averages])
                answers[i][name] = head.to_labels(*found)
                continue
            mean = torch.stack([average[name][i] for average in averages]).mean(0)
            logits = head.from_average(mean).unsqueeze(0).to(device)
            by_words = head.level == "words"
            inputs = {"word_mask": torch.ones(logits.shape[:2], dtype=torch.bool, device=device)} if by_words else {}
            answer, probability = (tensor[0].tolist() for tensor in head.decode(logits, inputs))
            if by_words:
                num_cut = len(data[i]["tokens"]) - len(answer)
                answer, probability = add_cut_words(answer, probability, num_cut, head.task)
            answers[i][name] = head.to_labels(answer, probability)
    return answers


def as_predictions(answers, averages, model):
    """Predictions of what `mean_predictions` gave; of the labels of whole texts with the mean of what was averaged."""
    heads = model.output_layer.heads
    labels, probabilities = ({name: [answer[name][part] for answer in answers] for name in heads} for part in (0, 1))
    means = {
        name: [None] * len(answers)
        if head.level == "words"
        else [torch.stack(several).mean(0) for several in zip(*(average[name] for average in averages))]
        for name, head in heads.items()
    }
    return Predictions(labels, probabilities, means)
