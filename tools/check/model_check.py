"""Runs the checks of `main.py --debug`, which test invariants that every model must have, also after your edits.

A check is a function that takes a Case and raises Failed with a description of the error, or Skipped. Any other
exception also counts as a failure. Checks run under torch.no_grad unless they enable gradients. Add checks of your own
model to CHECKS.
"""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.run.signals import Interrupted, StopSignals
from tools.check import checkpoints, inputs, learning, losses, scores, texts, training
from tools.check.case import Case, Failed, Skipped, Undecided, is_own

logger = logging.getLogger("template")


def check_build(case: Case) -> None:
    case.trainer.model  # noqa: B018 (builds it)


# (invariant, function, what to inspect on failure)
CHECKS: list[tuple[str, Callable[[Case], None], str]] = [
    ("the model and its training can be built", check_build, "the line that raised it"),
    (
        "scores are finite, and correct predictions score best",
        scores.check_scores,
        "SCORES and LOWER_IS_BETTER in metrics.py",
    ),
    ("shapes, labels and label counts", losses.check_shapes, "the head's forward, decode and label_mask"),
    ("the first loss is close to random guessing", losses.check_first_loss, "initial weights; the head's loss; MyLoss"),
    ("the loss is a mean over labels", losses.check_mean_loss, "the head's loss: a sum, which MyLoss averages"),
    (
        "accumulation equals one batch",
        losses.check_accumulation,
        "losses that depend on other rows; terms that are added once per batch regardless of labels",
    ),
    ("texts without labels have no loss", losses.check_no_labels, "the head's loss where labels are IGNORE or NaN"),
    (
        "trainable parameters get gradients, frozen ones do not",
        training.check_gradients,
        ".detach(), .data, no_grad, unused layers",
    ),
    ("all modules and tensors are registered", training.check_registered, "nn.ModuleDict, ModuleList, register_buffer"),
    (
        "the model can overfit a few texts",
        learning.check_overfitting,
        "differences between loss and decode: shifted labels, softmax twice",
    ),
    ("predictions do not depend on the labels", training.check_labels_unseen, "how forward uses the labels"),
    ("custom inputs change the predictions", inputs.check_own_inputs, "inputs[NAME] in a head or the encoder"),
    ("markers are tokens that occur in texts", texts.check_markers, "--special_tokens, set_tokenizer, --max_length"),
    ("no token is pooled twice", texts.check_read_twice, "pooling over [CLS], positions of markers"),
    ("the prediction for a word depends on its tokens", texts.check_words, "word_starts, word_ends, shifted positions"),
    ("texts of a pair are encoded the same way", texts.check_pairs, "special tokens and pooling of the second text"),
    (
        "padding does not change the outputs",
        inputs.check_padding,
        "attention_mask in encode, pooling, the head and its loss; the masks of custom inputs",
    ),
    ("the order of a batch does not change the outputs", inputs.check_order, "sums and norms over dimension 0"),
    (
        "other rows of a batch do not change the outputs",
        inputs.check_other_rows,
        "BatchNorm; means over dimension 0 (if intended, set compares_rows)",
    ),
    ("a causal encoder ignores later words", inputs.check_later_words, "the encoder's attention mask"),
    ("evaluation is deterministic", inputs.check_determinism, "F.dropout without training=self.training; randomness"),
    (
        "forward does not change its inputs or the mode",
        inputs.check_inputs_unchanged,
        "methods ending in _, assignments to inputs or buffers, train() and eval()",
    ),
    ("the model follows .to(device)", inputs.check_device, "torch.zeros, arange, tensor without device="),
    ("half precision is close to full", inputs.check_half_precision, "large constants, long sums, exp"),
    (
        "a step updates the weights once",
        training.check_step,
        "optimizer_step and train_one_epoch in trainer.py; forward and backward passes of tricks",
    ),
    ("predictions equal evaluation", checkpoints.check_prediction, "decode (does it depend on the batch?); calibrate"),
    ("the best checkpoint is saved", checkpoints.check_best, "keep_best in trainer.py; LOWER_IS_BETTER"),
    (
        "resuming equals an uninterrupted run",
        checkpoints.check_resume,
        "plain attributes, globals and closures, other sources of randomness, state that is updated after save_model",
    ),
    ("a new process makes the same predictions", checkpoints.check_other_process, "load_checkpoint and build_model"),
]


def check_model(case: Case) -> dict[str, str]:
    """Runs all checks, and logs one line per check and a summary. Returns {failed check: error}. Adds undecided checks
    to case.undecided.

    After SIGTERM or SIGINT, finishes the current check and raises Interrupted.
    """
    found: dict[str, dict[str, str]] = {"ok": {}, "skipped": {}, "undecided": case.undecided, "FAILED": {}}
    with ExitStack() as stack:
        if case.best is not None and case.command:
            case.other = stack.enter_context(checkpoints.other_process(case))
        stop = stack.enter_context(StopSignals(logger.warning))
        for number, (name, check, look_at) in enumerate(CHECKS, 1):
            state, message = run_check(check, case)
            found[state][name] = message
            line = f"check {number:2d}  {state:9s} {name}" + (f": {message}" if message else "")
            if state == "FAILED":
                logger.error(f"{line}. Look at: {look_at}")
            else:
                logger.info(line + "".join(f"; note: {note}" for note in case.notes))
            stop.check()
            not_finite = check is losses.check_shapes and "not finite" in message
            if state == "FAILED" and (check is check_build or not_finite):
                logger.error("skipping the remaining checks, which would fail for the same reason")
                break
    others = f"{len(found['ok'])} passed, {len(found['skipped'])} skipped as not applicable"
    if found["undecided"]:
        others += f", {len(found['undecided'])} UNDECIDED"
    if found["FAILED"]:
        logger.error(f"{len(found['FAILED'])} of {len(CHECKS)} checks FAILED (exit code 3), {others}")
    elif found["undecided"]:
        logger.warning(f"{', '.join(found['undecided'])}: UNDECIDED (exit code 4); {others}")
    else:
        logger.info(f"{len(found['ok'])} checks passed, {len(found['skipped'])} skipped as not applicable")
    return found["FAILED"]


def run_check(check: Callable[[Case], None], case: Case) -> tuple[str, str]:
    """Runs a check. Returns (state, message), where the state is "ok", "skipped", "undecided" or "FAILED"."""
    case.notes.clear()
    try:
        with ExitStack() as stack, torch.no_grad():
            for other in (logger, logging.getLogger("transformers")):  # log only errors during the check
                stack.callback(other.setLevel, other.level)
                other.setLevel(logging.ERROR)
            check(case)
    except Skipped as reason:
        return "skipped", str(reason)
    except Undecided as reason:
        return "undecided", str(reason)
    except Failed as error:
        return "FAILED", str(error)
    except Interrupted:
        raise
    except Exception as error:  # an edited model may raise any exception
        return "FAILED", describe(error)
    return "ok", ""


@contextmanager
def rehearsal() -> Iterator[list[Exception]]:
    """Catches an exception of the trial run, so that the checks can still run and find the cause. Logs it in one line,
    writes the traceback to the log file, and appends the exception to the yielded list. UserError, Interrupted and
    OSError propagate."""
    failures: list[Exception] = []
    try:
        yield failures
    except (UserError, Interrupted, OSError):
        raise
    except Exception as error:
        failures.append(error)
        advice = "The checks still run; the traceback is in the log file"
        logger.error(f"the trial run FAILED: {describe(error)}. {advice}")
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, traceback.format_exc(), (), None))


def describe(error: Exception) -> str:
    """Returns "type: first line (file:line: code)" for the innermost frame in this repository outside tools/check."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(frame.filename)]
    own = [frame for frame in frames if Path(frame.filename).parent != Path(__file__).parent]
    position = f" ({Path(own[-1].filename).name}:{own[-1].lineno}: {own[-1].line})" if own else ""
    return f"{type(error).__name__}: {first_line(error)}{position}"
