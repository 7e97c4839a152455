"""What users of other training scripts type first: other names of our flags, and advice on flags that are not here."""

import difflib
import re
from collections.abc import Collection

# {option: its names in the scripts of Hugging Face, LLaMA-Factory and bert4torch}
ALIASES: dict[str, tuple[str, ...]] = {
    "pretrain_model_path": ("model_name_or_path", "model_name"),
    "max_length": ("max_seq_length", "max_seq_len", "max_len", "maxlen", "cutoff_len"),
    "batch_size": ("per_device_train_batch_size", "per_gpu_train_batch_size", "train_batch_size"),
    "eval_batch_size": ("per_device_eval_batch_size", "per_gpu_eval_batch_size"),
    "epochs": ("num_train_epochs", "num_epochs"),
    "lr": ("learning_rate",),
    "scheduler": ("lr_scheduler_type",),
    "log_steps": ("logging_steps",),
    "num_workers": ("dataloader_num_workers",),
    "label_smoothing": ("label_smoothing_factor",),
    "early_stop_patience": ("early_stopping_patience",),
    "random_seed": ("seed",),
    "gpus": ("gpu_ids",),
}
# {option: ({switch: the value that it stands for}, the value if all switches given are off)}
SWITCHES: dict[str, tuple[dict[str, str], str]] = {"precision": ({"fp16": "fp16", "bf16": "bf16"}, "fp32")}
# (flags of other scripts, what to do here); a row is for commands that have the flags that it names
INSTEAD: list[tuple[str, str]] = [
    ("warmup_steps", "use --warmup_ratio (a share of all steps) or --warmup_epochs"),
    ("max_steps", "use --epochs"),
    ("resume_from_checkpoint", "use --resume, which continues from the newest intact checkpoint of the run"),
    ("overwrite_output_dir", "choose another --model_version, or remove the folder of the run"),
    ("run_name", "use --model_version"),
    ("do_lower_case tokenizer_name", "leave it out; the tokenizer of --pretrain_model_path is used as it is"),
    ("cache_dir", "set the environment variable HF_HOME; --pretrain_model_path is downloaded there"),
    ("metric_for_best_model greater_is_better", "use --monitor, such as --monitor slots_f1"),
    ("save_total_limit", "leave it out; the best and the last two checkpoints are kept (--save_epoch, --save_steps)"),
    ("eval_steps evaluation_strategy eval_strategy", "leave it out; dev is scored after each of the --epochs"),
    ("logging_dir", "use --output_dir; the curves are in the folder of the run there"),
    ("no_cuda use_cpu", "use --device cpu"),
    ("local_rank", "leave it out; torchrun sets it, and --device stays at auto"),
    ("num_gpus n_gpu", "sh run.sh --num_gpus N, or torchrun, starts several processes; --gpus names one GPU"),
    ("train_file validation_file test_file dataset_name dataset_dir", "run data_process.py, then use --data_path"),
    ("train_file validation_file test_file dataset_name dataset_dir", "use --input; put several files into one folder"),
]


def similar(name: str, names: Collection[str], before: str = "--") -> str:
    """'; did you mean --batch_size?' for a mistyped name that is like one of these, otherwise ''."""
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {before}{close[0]}?" if close else ""


def unknown_flag(name: str, known: Collection[str], before: str = "--") -> str:
    """One line on a flag, or a key of an options file (before: ''), that does not exist, and what to use instead."""
    for flags, advice in INSTEAD:
        if name in flags.split() and {*re.findall(r"--(\w+)", advice)} - {"num_gpus"} <= {*known}:
            return f"{before}{name} is not an option here: {advice}"
    return f"{before}{name} is not an option" + similar(name, known, before)
