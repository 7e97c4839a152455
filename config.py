"""The options of `main.py`: a typed dataclass from which the command line is generated.

To add an option, add a field with its type, default, help text and bounds, and read `config.<name>` where you need it.
`--flag`, `--flag=True`, `--flag=False` and `--no_flag` all work. A resumed run may change only options that are marked
`resume_safe`, because they do not affect its result.
"""

import dataclasses
import logging
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.run.command_line import option, parse_auto_bool, parse_epochs, parse_layers
from engine.run.option_checks import CheckedOptions, check_options
from engine.run.reading import ReadingOptions
from engine.run.run_folder import SavedOptions, changed_options

logger = logging.getLogger("template")
ROOT = Path(__file__).resolve().parent  # the repository


@dataclass(frozen=True)
class Config(ReadingOptions, SavedOptions, CheckedOptions):
    """Options of `main.py`."""

    # What to do
    do_train: bool = option(
        False, "train, and save the best and the last checkpoints", group="what to do", resume_safe=True
    )
    do_eval: bool = option(False, "evaluate the best checkpoint on dev and test; writes eval.json", resume_safe=True)
    do_predict: bool = option(
        False, "label --predict_file (default: the test split) with the best checkpoint", resume_safe=True
    )
    report_language: Literal["auto", "en", "zh"] = option(
        "auto", "language of report.html; auto: the language of the texts", resume_safe=True
    )
    resume: bool = option(
        False, "continue training or labelling where it stopped; if there is no run, start one", resume_safe=True
    )
    force_resume: bool = option(
        False, "resume even if options, data or tokenizer have changed since the run started", resume_safe=True
    )
    debug: bool = option(
        False, "trial run on 64 examples per split, then model checks; exit code 3 if one fails", resume_safe=True
    )

    # Files
    data_path: str = option("dataset/sample", "processed folder, written by data_process.py", group="files")
    fold: int | None = option(None, "train on this fold of --data_path; tools.cross_validate trains on all folds")
    output_dir: str = option("output", "parent folder of all runs", aliases=["model_output_path"], resume_safe=True)
    model_version: str = option(
        "", "name of the run folder in --output_dir (default: the name of the checkpoint or data)", resume_safe=True
    )
    log_output_path: str = option("", "folder of the log file (default: the run folder)", resume_safe=True)
    log_output_file: str = option("train.log", "name of the log file", resume_safe=True)
    checkpoint: str = option(
        "", "checkpoint folder to evaluate or predict with (default: best of the run)", resume_safe=True
    )
    predict_file: str = option(
        "",
        "file to label, in any format that data_process.py reads, with or without labels (default: the test split)",
        resume_safe=True,
    )
    predict_output: str = option(
        "", "output file, .csv or .jsonl (default: predictions.csv in the run folder)", resume_safe=True
    )
    embed: str = option("", "write text embeddings to this .npy file instead of labelling", resume_safe=True)
    shard: str = option("", "label only this shard of the rows, such as 3/16, into a separate file", resume_safe=True)
    abstain_below: str = option(
        "", "omit predictions below this probability, such as 0.8, or per task: intent=0.8,slots=0.9", resume_safe=True
    )
    target_precision: str = option(
        "", "with --do_eval: choose --abstain_below on dev to reach this precision, such as 0.98", resume_safe=True
    )
    spreadsheet_safe: bool = option(
        False, "put an apostrophe before cells that a spreadsheet would evaluate as formulas", resume_safe=True
    )

    # Model
    pretrain_model_path: str = option("", "save_pretrained folder or hub name; empty: from scratch", group="model")
    model_hub: Literal["hf", "modelscope"] = option(
        "hf", "hub to download models from; hf: Hugging Face, or the mirror set in HF_ENDPOINT (docs/download.md)"
    )
    init_from: str = option(
        "", "run or checkpoint to start from: its encoder, tokenizer, and head weights of shared labels"
    )
    encoder: Literal["transformer", "bilstm", "none"] = option(
        "transformer", "bilstm: a BiLSTM instead of a transformer; none: the heads read only FIELDS of data_loader.py"
    )
    hidden_size: int = option(256, "hidden size of an encoder built from scratch", low=1, high=2**17)
    num_layers: int = option(3, "layers of an encoder built from scratch", low=1, high=1000)
    vocab_size: int = option(
        8000, "vocabulary size of the tokenizer that is trained without --pretrain_model_path", low=1, high=2**24
    )
    keep_layers: int = option(0, "keep N evenly spaced layers of a pretrained encoder; 0: all", low=0)
    special_tokens: str = option("", "tokens to add to the tokenizer, comma-separated, such as '<e1>,</e1>'")
    load_dtype: Literal["fp32", "bf16"] = option("fp32", "dtype of a frozen encoder's weights; bf16 halves the memory")
    pooling: Literal["auto", "first", "mean", "last"] = option(
        "auto",
        "vector of a text: its first token, its last token, or the mean; auto: as specified in the model's folder "
        "(sentence-transformers), otherwise first, or last for decoders",
        auto="auto",
    )
    word_pooling: Literal["auto", "first", "mean", "last"] = option(
        "auto", "vector of a word, from its sub-tokens; auto: first, or last for decoders"
    )
    word_shapes: bool | None = option(
        None,
        "word-level heads also read the shape of each word: its case and digits (default: auto, on if a pretrained "
        "encoder's tokenizer ignores case and the training texts have words with and without capitals)",
        parse=parse_auto_bool,
        auto=None,
    )
    shared_layers: int = option(0, "hidden layers between the encoder and all heads", low=0, high=1000)
    dropout: float = option(0.1, "dropout before the heads and in an encoder built from scratch", low=0, high=1)
    use_crf: bool = option(True, "conditional random field over the words in tagging tasks (--no_use_crf disables it)")
    task_weights: str = option("", "weights of the tasks' losses, such as 'intent=1,slots=2' (default: 1 each)")
    class_weights: Literal["none", "balanced"] = option("none", "balanced: rare labels get a larger weight in the loss")
    label_smoothing: float = option(0.0, "target probability spread over all labels; ignored with a CRF", low=0, high=1)
    focal_gamma: float = option(0.0, "gamma of the focal loss, commonly 2; 0: cross-entropy; ignored with a CRF", low=0)
    calibrate: bool = option(
        True, "fit a temperature per task on dev, so that probabilities match the accuracy of predictions"
    )
    freeze_layers: int = option(
        0, "freeze the embeddings and the first N layers; 'all': the encoder", parse=parse_layers, low=-1
    )
    lora_rank: int = option(0, "train LoRA matrices of this rank and freeze the encoder; 0: no LoRA", low=0)
    lora_alpha: float = option(16.0, "LoRA's update is scaled by alpha / rank", needs="lora_rank", low=0)
    lora_dropout: float = option(0.0, "dropout before LoRA's matrices", needs="lora_rank", low=0, high=1)
    lora_targets: str = option(
        "auto",
        "modules that LoRA adapts, such as 'query,value'; auto: all linear ones in the encoder's layers",
        needs="lora_rank",
    )
    merge_lora: bool = option(False, "save merged weights in best, which then needs no base model", needs="lora_rank")
    gradient_checkpointing: bool = option(False, "recompute activations instead of storing them: less memory, slower")

    # Data
    max_length: int = option(
        256, "maximum length in sub-tokens; truncated tokens are counted and logged", group="data", low=8, high=2**20
    )
    long_text: Literal["auto", "windows", "head", "tail", "head_tail"] = option(
        "auto",
        "how texts longer than --max_length are classified; windows: in full, in overlapping windows; head, tail or "
        "head_tail (a quarter from the head, the rest from the tail): truncated; auto: windows if there are many, "
        "else head",
        aliases=["truncation"],
        auto="auto",
    )
    window_stride: int | None = option(
        None,
        "overlap of the windows of long texts in sub-tokens (default: max_length / 4; -1: truncate in tagging tasks)",
    )
    streaming: bool = option(
        False, "read the training file in constant memory; tagging tasks truncate texts longer than --max_length"
    )
    shuffle_buffer: int = option(8192, "rows shuffled together when streaming", low=1)
    clear_cache: bool = option(
        False, "first remove the token caches of --data_path; otherwise the last 24 are kept", resume_safe=True
    )
    num_workers: int = option(
        0, "worker processes that prepare batches; does not change the batches", low=0, high=1000, resume_safe=True
    )

    # Training
    epochs: int = option(
        -1,
        "passes over the training data; 0: none (default: auto, from the number of steps per epoch)",
        group="training",
        parse=parse_epochs,
        auto=-1,
        low=-1,
    )
    batch_size: int | None = option(
        None,
        "examples per micro-batch (default: 32; 16 or 8 for a pretrained encoder and a small tagging data set)",
        low=1,
        auto=None,
    )
    gradient_accumulation_steps: int = option(1, "micro-batches per optimizer step", low=1)
    eval_batch_size: int = option(
        64, "examples per batch in evaluation and prediction; does not change the scores", low=1
    )
    lr: float | None = option(
        None,
        "peak learning rate of the encoder (default: depends on its hidden size)",
        low=0,
        high=1,
        exclusive=True,
        auto=None,
    )
    head_lr: float | None = option(
        None,
        "peak learning rate of heads and CRF (default: 10 times --lr, more with a frozen encoder; from scratch: --lr)",
        low=0,
        high=1,
        exclusive=True,
        auto=None,
    )
    scheduler: Literal["cosine", "linear", "constant", "plateau"] = option(
        "cosine", "learning rate schedule after warmup; plateau: halved after two epochs without a better dev score"
    )
    warmup_epochs: float | None = option(
        None, "epochs of linear warmup (default: a tenth of --epochs)", aliases=["warm_up_epochs"], low=0, auto=None
    )
    warmup_ratio: float | None = option(None, "warmup as a fraction of all epochs (or --warmup_epochs)", low=0, high=1)
    lrf: float = option(0.01, "final learning rate as a fraction of the peak", low=0, high=1)
    weight_decay: float = option(0.01, "AdamW's weight decay; not applied to biases, norms and the CRF", low=0)
    max_grad_norm: float = option(1.0, "clip the gradient of each step to this norm; 0: no clipping", low=0)
    monitor: str = option(
        "", "dev score that selects the best checkpoint, such as slots_f1 or loss (default: depends on the task)"
    )
    early_stop_patience: int | None = option(
        None,
        "stop after N epochs without a better score; 0: never (default: a quarter of --epochs, at least 5)",
        aliases=["earlystop_patient", "earlystop_patience"],
        auto=None,
        low=0,
    )
    save_epoch: int = option(
        1, "save a resumable checkpoint every N epochs; 0: only at the end", low=0, resume_safe=True
    )
    save_steps: int = option(0, "also save every N optimizer steps; 0: no", low=0, resume_safe=True)
    log_steps: int = option(20, "log every N optimizer steps", low=1, resume_safe=True)
    report_to: str = option(
        "tensorboard",
        "experiment trackers, comma-separated: tensorboard, wandb, swanlab, mlflow; all: all that are installed; none",
        resume_safe=True,
    )

    # Tricks
    use_fgm: bool = option(
        False, "adversarial training on the word embeddings (FGM)", group="tricks", traits="adversarial embeddings"
    )
    fgm_eps: float = option(1.0, "norm of the perturbation of FGM and PGD", needs="use_fgm use_pgd", low=0)
    use_pgd: bool = option(False, "like --use_fgm, but in several steps (PGD)", traits="adversarial embeddings")
    pgd_alpha: float = option(0.4, "step size of PGD", needs="use_pgd", low=0)
    pgd_steps: int = option(3, "steps of PGD", needs="use_pgd", low=1, high=1000)
    use_freelb: bool = option(
        False,
        "adversarial training on word vectors, with gradients averaged over the steps (FreeLB)",
        traits="adversarial noise",
    )
    freelb_alpha: float = option(0.1, "step size of FreeLB", needs="use_freelb", low=0)
    freelb_steps: int = option(3, "steps of FreeLB", needs="use_freelb", low=1, high=1000)
    use_awp: bool = option(False, "adversarial training on the weights (AWP)", traits="adversarial")
    awp_gamma: float = option(
        0.0002, "size of AWP's perturbation, as a fraction of each matrix's norm", needs="use_awp", low=0
    )
    awp_start: float = option(0.2, "fraction of the epochs before AWP begins", needs="use_awp", low=0, high=1)
    use_smart: bool = option(
        False, "penalise predictions that change under small adversarial noise (SMART, VAT)", traits="adversarial noise"
    )
    smart_weight: float = option(1.0, "weight of SMART's divergence in the loss", needs="use_smart", low=0)
    use_rdrop: bool = option(False, "penalise predictions that change under dropout (R-Drop)")
    rdrop_alpha: float = option(1.0, "weight of R-Drop's divergence in the loss", needs="use_rdrop", low=0)
    dropout_samples: int = option(1, "dropout masks per text in the heads (multi-sample dropout)", low=1, high=1000)
    few_shot: bool | None = option(
        None,
        "for few labels per class: a contrastive loss, and class priors from dev (default: auto, on with a "
        "pretrained encoder and at most 400 labelled texts, if all tasks classify texts)",
        parse=parse_auto_bool,
        auto=None,
    )
    teacher: str = option("", "runs or checkpoints, comma-separated, to distil from in addition to the labels")
    teacher_weight: float = option(
        0.5, "weight of the teachers in the loss; 1: only the teachers", needs="teacher", low=0, high=1
    )
    temperature: float = option(
        1.0, "temperature that divides the logits of teacher and student", needs="teacher", low=0.01, high=1000
    )
    unlabelled: str = option("", "file of additional texts for the teachers to label", needs="teacher")
    unlabelled_ratio: float = option(1.0, "unlabelled texts per labelled text in an epoch", needs="unlabelled", low=0)
    use_ema: bool = option(False, "use an exponential moving average of the weights (EMA)")
    ema_decay: float | None = option(
        None,
        "decay of EMA per step: 0.99 averages over about 100 steps (default: over a twentieth of all steps)",
        needs="use_ema",
        low=0,
        high=1,
        auto=None,
    )
    use_swa: bool = option(False, "use the mean weights of the last epochs, at a constant learning rate (SWA)")
    swa_start: float = option(0.7, "fraction of training before SWA begins", needs="use_swa", low=0, high=1)
    use_soup: bool = option(False, "use the mean weights of epochs that do not lower the dev score (model soup)")
    layer_decay: float = option(
        1.0, "learning rate of each encoder layer as a fraction of the rate of the layer above", low=0, high=1
    )
    unfreeze_layers: int = option(
        0, "start with a frozen encoder and unfreeze N more layers per epoch, from the top; 0: no", low=0
    )

    # Machine
    device: str = option("auto", "auto, cpu, cuda, cuda:0, mps, xpu, npu", group="machine", resume_safe=True)
    gpus: str = option("", "index of the GPU, as in nvidia-smi; run.sh accepts several: 0,1", resume_safe=True)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "autocast to half precision; weights, losses and CRF stay fp32; auto: bf16 if it is much faster, else fp32",
        auto="auto",
    )
    compile: bool = option(False, "compile the encoder with torch.compile; pays off on a GPU after a few minutes")
    random_seed: int = option(666, "seed of all random numbers", low=0, high=2**32 - 1)
    deterministic: bool = option(False, "on a GPU: deterministic algorithms only, somewhat slower")
    ddp_timeout: int = option(
        1800, "under torchrun: seconds after which an unresponsive process ends the run", low=1, resume_safe=True
    )

    def __post_init__(self) -> None:
        check_options(self)
        self.check_reading()

    @property
    def run_dir(self) -> Path:
        """The folder of this run. A trial run (--debug) has a separate folder."""
        name = self.model_version or Path(self.checkpoint or self.data_path).resolve().name
        name += "" if self.fold is None else f"-fold_{self.fold}"
        return Path(self.output_dir) / (name + ("-debug" if self.debug else ""))

    @property
    def data_dir(self) -> Path:
        """The processed folder to read: --data_path, or one of its folds. The default sample is also found from other
        directories."""
        path = Path(self.data_path)
        if self.data_path == Config.data_path and not path.exists():
            path = ROOT / path
        return path if self.fold is None else path / f"fold_{self.fold}"

    def changes_since(self, before: dict[str, Any]) -> list[str]:
        """Returns ['lr was 0.001, is 0.01', …] for the changed options that affect the result.

        With a constant learning rate, a larger --epochs does not count as a change. An option that the saved run does
        not have is compared with its default value, and an option set to auto matches any value. before: the options of
        the saved run.
        """
        constant = self.scheduler in ("constant", "plateau") and self.warmup_epochs is not None
        longer = constant and not (self.use_awp or self.use_swa) and self.epochs >= before.get("epochs", self.epochs)
        before = {option_field.name: option_field.default for option_field in dataclasses.fields(self)} | before
        before |= {name: auto for name, auto in self.auto_values().items() if self.is_auto(name)}
        return changed_options(before, dataclasses.asdict(self), RESUME_SAFE | ({"epochs"} if longer else set()))


RESUME_SAFE = frozenset(f.name for f in dataclasses.fields(Config) if f.metadata["resume_safe"])


def seed_torch(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and torch on all devices. cuDNN stays enabled.

    deterministic: also select reproducible CUDA kernels. This must be called before CUDA is initialised.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
