"""Flags of other training scripts: aliases for those that exist here, and advice for those that do not."""

import difflib
import re
from collections.abc import Collection, Sequence

# {option: its names in scripts of Hugging Face, LLaMA-Factory and bert4torch}
ALIASES: dict[str, tuple[str, ...]] = {
    "pretrain_model_path": ("model_name_or_path", "model_name", "model", "pretrained_model_name_or_path"),
    "max_length": ("max_seq_length", "max_seq_len", "max_len", "maxlen", "cutoff_len"),
    "batch_size": ("per_device_train_batch_size", "per_gpu_train_batch_size", "train_batch_size"),
    "eval_batch_size": ("per_device_eval_batch_size", "per_gpu_eval_batch_size"),
    "gradient_accumulation_steps": ("gradient_accumulation",),
    "epochs": ("num_train_epochs", "num_epochs"),
    "lr": ("learning_rate",),
    "scheduler": ("lr_scheduler_type",),
    "warmup_ratio": ("warmup_proportion",),
    "log_steps": ("logging_steps",),
    "num_workers": ("dataloader_num_workers",),
    "label_smoothing": ("label_smoothing_factor",),
    "early_stop_patience": ("early_stopping_patience",),
    "random_seed": ("seed", "manual_seed"),
    "lora_rank": ("lora_r",),
    "lora_targets": ("lora_target", "lora_target_modules", "target_modules"),
    "compile": ("torch_compile",),
    "deterministic": ("full_determinism",),
    "gpus": ("gpu_ids",),
}
# {option: ({switch: value that it sets}, value if all given switches are off)}
SWITCHES: dict[str, tuple[dict[str, str], str]] = {"precision": ({"fp16": "fp16", "bf16": "bf16"}, "fp32")}
# (flags of other scripts, advice); an entry applies only to commands that have all flags named in the advice
INSTEAD: list[tuple[str, str]] = [
    ("warmup_steps", "use --warmup_ratio (a fraction of all steps) or --warmup_epochs"),
    ("max_steps", "use --epochs"),
    ("resume_from_checkpoint", "use --resume, which continues from the newest intact checkpoint of the run"),
    ("overwrite_output_dir", "choose another --model_version, or remove the run folder"),
    ("run_name", "use --model_version"),
    ("do_lower_case tokenizer_name", "leave it out; the tokenizer of --pretrain_model_path is used unchanged"),
    ("cache_dir", "set the environment variable HF_HOME; --pretrain_model_path is downloaded there"),
    ("metric_for_best_model greater_is_better", "use --monitor, such as --monitor slots_f1"),
    ("save_total_limit", "leave it out; the best checkpoint and the last two are kept (--save_epoch, --save_steps)"),
    ("eval_steps evaluation_strategy eval_strategy", "leave it out; dev is scored after every epoch"),
    ("logging_dir", "use --output_dir; TensorBoard logs are in the run folder"),
    ("no_cuda use_cpu", "use --device cpu"),
    ("use_cuda cuda use_mps_device", "use --device; by default it selects the accelerator, if there is one"),
    ("save_strategy", "use --save_epoch N or --save_steps N"),
    ("logging_strategy logging_first_step", "use --log_steps N"),
    ("load_best_model_at_end", "leave it out; the checkpoint with the best --monitor is always saved and evaluated"),
    ("optim optimizer adam_beta1 adam_beta2 adam_epsilon", "use --lr and --weight_decay; the optimizer is AdamW"),
    ("amp use_amp use_fp16 use_bf16 half mixed_precision fp16_opt_level", "use --precision, or --fp16 or --bf16"),
    ("fp16_full_eval bf16_full_eval tf32 torch_dtype pure_bf16", "use --precision, which also applies to evaluation"),
    ("trust_remote_code", "leave it out; code in the repository of --pretrain_model_path is never run"),
    ("token use_auth_token hub_token", "set the environment variable HF_TOKEN, for --pretrain_model_path"),
    ("push_to_hub hub_model_id", "leave it out; after training, upload checkpoints/best of the run with `hf upload`"),
    ("model_revision revision", "download it with `hf download`, then use --pretrain_model_path FOLDER"),
    ("use_hf use_ms use_modelscope", "use --model_hub hf or --model_hub modelscope"),
    ("use_wandb use_swanlab use_mlflow use_tensorboard", "use --report_to wandb, swanlab, mlflow or tensorboard"),
    ("wandb_project project swanlab_project", "set WANDB_PROJECT or SWANLAB_PROJECT, and use --report_to"),
    ("finetuning_type train_type tuner_type use_lora lora use_peft", "use --lora_rank N, or --freeze_layers"),
    ("max_train_samples max_eval_samples max_predict_samples", "use --debug, or smaller files"),
    ("num_labels labels", "leave it out; the labels come from the data in --data_path"),
    ("do_test do_infer", "use --do_eval for scores, --do_predict for predictions"),
    ("pad_to_max_length", "leave it out; a batch is padded to its longest text, at most --max_length"),
    ("overwrite_cache disable_tqdm group_by_length remove_unused_columns dataloader_drop_last", "leave it out"),
    ("dataloader_pin_memory preprocessing_num_workers ddp_find_unused_parameters", "leave it out"),
    ("deepspeed fsdp ddp_backend", "leave it out; run.sh and torchrun train on several GPUs, see --ddp_timeout"),
    ("local_rank", "leave it out; torchrun sets it; leave --device at auto"),
    ("num_gpus n_gpu", "use `sh run.sh --num_gpus N` or torchrun for several GPUs; --gpus selects one GPU"),
    ("train_file validation_file test_file eval_file", "run data_process.py, then use --data_path"),
    ("dataset dataset_name dataset_dir data_dir task_name", "run data_process.py, then use --data_path"),
    ("train_file validation_file test_file dataset_name dataset_dir", "use --input; put several files into one folder"),
]


def similar(name: str, names: Collection[str], before: str = "--") -> str:
    """Returns '; did you mean --batch_size?' if one of `names` resembles a mistyped name, otherwise ''."""
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.7)
    words = {*name.lower().split("_")}
    close += sorted((each for each in names if words <= {*each.split("_")}), key=len)
    return f"; did you mean {before}{close[0]}?" if close else ""


def unknown_flag(name: str, known: Collection[str], before: str = "--") -> str:
    """Returns the error line for an unknown flag, or an unknown key of an options file (before: '')."""
    for flags, advice in INSTEAD:
        if name in flags.split() and {*re.findall(r"--(\w+)", advice)} - {"num_gpus"} <= {*known}:
            return f"{before}{name} is not an option here: {advice}"
    names = known if name.startswith("no") else [each for each in known if not each.startswith("no_")]
    return f"{before}{name} is not an option" + similar(name, names, before)


def unexpected_argument(words: Sequence[str], known: Collection[str]) -> str:
    """Returns the error line for the first unexpected argument, such as -epochs, —fp16, epochs=3 or a second value."""
    word = next((each for each in words if each != "--"), words[0])
    bare = word.lstrip("-\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}")
    name = re.split("[=:]", bare)[0].replace("-", "_")
    if name in known:
        return f"{word} is not an option; did you mean --{name}?"
    if name and bare != word:
        return unknown_flag(name, known)
    return f"unexpected argument {word}; quote values that contain spaces, and separate several values with commas"
