"""What an exported folder answers, beside what the checkpoint answers in torch."""

import logging

from engine.errors import UserError
from engine.run.files import seal

logger = logging.getLogger("template")
TOLERANCE = 1e-4  # of probabilities, and of numbers in standard deviations


def load_predictor(folder):
    """The Predictor of an exported folder, by this repository's own predictor.py, of which the folder has a copy."""
    from tools.export.predictor import Predictor  # here, as onnxruntime may be missing

    seal(folder)  # the predictor reads nothing that its manifest does not vouch for
    return Predictor(folder)


def answers_of(predictor, data):
    """{task: its labels} and {task: its probabilities} of a Predictor for the examples of a MyDataset."""
    rows = [data[i] for i in range(len(data))]
    answers = predictor.answers(predictor.encode(rows))
    return [{name: [answer[name][part] for answer in answers] for name in data.tasks} for part in (0, 1)]


def num_different(predictor, theirs, ours):
    """How many examples are not answered alike. theirs: Predictions of the checkpoint; ours: of `answers_of`."""
    labels, probabilities = ours
    different = set()
    for name, task in predictor.tasks.items():
        for i, pair in enumerate(zip(theirs.labels[name], labels[name])):
            if task["head"] == "regression":
                alike = abs(pair[0] - pair[1]) <= TOLERANCE * task["std"]
            else:
                alike = pair[0] == pair[1] and is_close(theirs.probabilities[name][i], probabilities[name][i])
            if not alike:
                different.add(i)
    return len(different)


def is_close(theirs, ours):
    """Whether probabilities agree; None of those that a Predictor does not tell, of single tags."""
    if ours is None or theirs is None:
        return True
    pairs = zip(theirs, ours) if isinstance(ours, list) else [(theirs, ours)]
    return all(abs(a - b) <= TOLERANCE for a, b in pairs)


def require_same(predictor, theirs, ours):
    """UserError unless a Predictor in fp32 answers as the checkpoint does, but for what rounding decides."""
    number = len(next(iter(theirs.labels.values())))
    wrong = num_different(predictor, theirs, ours)
    logger.info(f"{number - wrong} of {number} dev examples are answered as in torch, probabilities within {TOLERANCE}")
    if wrong > 0.01 * number:
        raise UserError(
            f"{wrong} of {number} dev examples are answered otherwise than in torch: a head or an encoder of yours "
            "does what tools/export does not know; nothing was written"
        )
