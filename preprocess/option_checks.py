"""Checks of the options of data_process.py: allowed values and combinations."""

from engine.errors import UserError
from engine.run.command_line import check_values
from preprocess.labels.kinds import KINDS


def check_options(config):
    """Raises UserError for invalid options of data_process.py, or combinations that exclude each other."""
    if not config.input or not (config.output_dir or config.check):
        raise UserError("both --input FILE_OR_FOLDER and --output_dir dataset/NAME are needed")
    check_values(config)
    label_types_by_name(config.label_type)
    if config.n_splits < 0 or config.n_splits == 1:
        raise UserError(f"--n_splits={config.n_splits} must be at least 2")
    if not config.label_separator:
        raise UserError("--label_separator must not be empty")
    if set(config.delimiter) & {'"', "\n", "\r"}:
        raise UserError(f"--delimiter={config.delimiter!r} cannot be a delimiter: it quotes cells or ends a row")
    if not (config.dev_ratio > 0 and config.test_ratio >= 0 and config.dev_ratio + config.test_ratio < 1):
        raise UserError(
            f"--dev_ratio={config.dev_ratio} and --test_ratio={config.test_ratio} must leave examples to train on"
        )


def label_types_by_name(label_type):
    """'score=regression,tags=multilabel' -> {'score': 'regression', 'tags': 'multilabel'}"""
    types = dict(part.strip().rpartition("=")[::2] for part in label_type.split(",") if part.strip())
    if "" in types or not set(types.values()) <= set(KINDS):
        raise UserError(
            f"--label_type={label_type!r} must look like 'score=regression,topics=multilabel,"
            f"mood=classification'; the types are {', '.join(KINDS)}"
        )
    return types
