"""Every option of the command line, in one typed dataclass per command, and the checks on them.

A field *is* its flag: name, type, default, line of help. Edit here when you want a new option: add one field,
then read it as `config.<name>` where it is used. `--flag`, `--flag=True`, `--flag=False` and `--no_flag` all work.
"""

import dataclasses
import json
import logging
import math
import os
import random
from dataclasses import dataclass
from pathlib import Path

from engine.command_line import UserError, option, parse_layers, require_range, require_seed

logger = logging.getLogger("template")
ROOT = Path(__file__).resolve().parent  # of the repository


STRENGTHS = {  # option of a trick: the switches it needs
    "fgm_eps": "use_fgm use_pgd",
    **dict.fromkeys(("pgd_alpha", "pgd_steps"), "use_pgd"),
    **dict.fromkeys(("freelb_alpha", "freelb_steps"), "use_freelb"),
    **dict.fromkeys(("awp_gamma", "awp_start"), "use_awp"),
    "smart_weight": "use_smart",
    "rdrop_alpha": "use_rdrop",
    "ema_decay": "use_ema",
    "swa_start": "use_swa",
}


# Options that may differ when a run is resumed: they do not change the result. All others must be what they were.
RESUME_SAFE = frozenset(
    "do_train do_eval do_predict resume force_resume debug output_dir model_version log_output_path log_output_file checkpoint "
    "predict_file predict_output text_column text_pair_column encoding num_workers log_steps save_epoch save_steps device".split(
        " "
    )
)


@dataclass
class Config:
    """Options of `main.py`."""

    # What to do
    do_train: bool = option(False, "train, and keep the best and the last checkpoints", group="what to do")
    do_eval: bool = option(False, "score the best checkpoint on dev and test, into eval.json")
    do_predict: bool = option(False, "label --predict_file, or else the test part, with the best checkpoint")
    resume: bool = option(
        False, "go on from the newest good checkpoint of the run folder; start afresh if there is none"
    )
    force_resume: bool = option(False, "resume although options, data or tokenizer differ from those of the run")
    debug: bool = option(False, "rehearse the whole road on the first 64 examples of each part, with detailed logs")

    # Files
    data_path: str = option("dataset/sample", "processed folder, made by data_process.py", group="files")
    fold: int | None = option(
        None, "train on this fold of --data_path (see data_process.py --n_splits); cross_validate.py takes all"
    )
    output_dir: str = option("output", "runs are kept here", aliases=["model_output_path"])
    model_version: str = option(
        "",
        "name of this run: its folder is OUTPUT_DIR/MODEL_VERSION (default: the name of --checkpoint, else of the data folder)",
    )
    log_output_path: str = option("", "folder of the log file (default: the run folder)")
    log_output_file: str = option("train.log", "name of the log file")
    checkpoint: str = option(
        "", "checkpoint folder to evaluate or predict with, from any machine (default: the run's best)"
    )
    predict_file: str = option("", "what to label: .txt (a text a line), .csv, .tsv or .jsonl (default: the test part)")
    predict_output: str = option("", ".csv or .jsonl to write (default: predictions.csv in the run folder)")
    text_column: str = option("", "column of the text in --predict_file (default: found by its name)")
    text_pair_column: str = option("", "column of the second text in --predict_file")
    encoding: str = option("auto", "of --predict_file: auto (UTF-8 or UTF-16 by its mark), gb18030, …")

    # Model
    pretrain_model_path: str = option(
        "", "folder made by save_pretrained, or a hub name; empty: a small encoder from scratch", group="model"
    )
    encoder: str = option(
        "transformer", "bilstm needs no transformer; it reads the same tokens", choices=["transformer", "bilstm"]
    )
    hidden_size: int = option(256, "width of an encoder built from scratch")
    num_layers: int = option(3, "layers of an encoder built from scratch")
    vocab_size: int = option(8000, "vocabulary of the tokenizer trained when there is no --pretrain_model_path")
    special_tokens: str = option("", "tokens to add to the tokenizer, comma-separated, such as '<e1>,</e1>'")
    pooling: str = option(
        "first",
        "what classifies a text: its first token, or the mean of its tokens, as sentence encoders learn",
        choices=["first", "mean"],
    )
    shared_layers: int = option(0, "hidden layers between the encoder and all heads")
    dropout: float = option(0.1, "dropout before the heads and in an encoder built from scratch")
    use_crf: bool = option(False, "conditional random field over the words of tagging tasks")
    task_weights: str = option("", "weights of the tasks' losses, such as 'intent=1,slots=2' (default: 1 each)")
    class_weights: str = option(
        "none", "balanced: rare labels weigh more in the loss, by their counts", choices=["none", "balanced"]
    )
    label_smoothing: float = option(0.0, "share of the target that is spread over all labels; not with a CRF")
    focal_gamma: float = option(
        0.0, "focal loss: easy examples weigh less, the more so the larger it is (2 is usual); not with a CRF"
    )
    freeze_layers: int = option(
        0, "keep the embeddings and the first N layers as they are; 'all' for the encoder", parse=parse_layers
    )

    # Data
    max_length: int = option(256, "longest input in sub-tokens; what is cut is counted and told", group="data")
    truncation: str = option(
        "head",
        "what is kept of longer texts to classify; head_tail: a quarter of head, the rest of tail",
        choices=["head", "tail", "head_tail"],
    )
    window_stride: int | None = option(
        None,
        "longer texts to tag become windows that share so many sub-tokens (default: a quarter of --max_length; -1: they are cut)",
    )
    streaming: bool = option(False, "read the training file as a stream, in constant memory")
    shuffle_buffer: int = option(8192, "rows shuffled together when streaming")
    num_workers: int = option(
        0, "processes that prepare batches beside the training; any number gives the same batches"
    )

    # Training
    epochs: int = option(10, "passes over the training data; 0: none", group="training", aliases=["num_train_epochs"])
    batch_size: int = option(32, "examples in a micro-batch")
    gradient_accumulation_steps: int = option(1, "micro-batches in one optimizer step")
    eval_batch_size: int = option(64, "examples in a batch of evaluation and prediction; scores do not depend on it")
    lr: float | None = option(
        None,
        "peak learning rate of the encoder (default: by its size, see model_utils.default_lr)",
        aliases=["learning_rate"],
    )
    head_lr: float | None = option(
        None, "of heads and CRF (default: 10 times --lr; equal to it when training from scratch)"
    )
    scheduler: str = option("cosine", "course of the rate after warmup", choices=["cosine", "linear", "constant"])
    warmup_epochs: float | None = option(
        None, "the rate rises linearly for so long (default: a tenth of --epochs)", aliases=["warm_up_epochs"]
    )
    lrf: float = option(0.01, "final rate as a fraction of the peak")
    weight_decay: float = option(0.01, "AdamW's decoupled decay; none on biases, norms and the CRF")
    max_grad_norm: float = option(1.0, "clip the gradient of each step to this norm; 0: never")
    monitor: str = option(
        "", "dev score that picks the best checkpoint, such as intent_accuracy, slots_f1, loss (default: by task)"
    )
    early_stop_patience: int = option(
        5,
        "stop after so many epochs without a better score; 0: never",
        aliases=["earlystop_patient", "earlystop_patience"],
    )
    save_epoch: int = option(1, "save a checkpoint to resume from every N epochs; 0: none but at the end")
    save_steps: int = option(0, "and every N optimizer steps; 0: no")
    log_steps: int = option(20, "log every N optimizer steps")

    # Tricks
    use_fgm: bool = option(False, "adversarial training on the word embeddings (FGM)", group="tricks")
    fgm_eps: float = option(1.0, "norm of the perturbation of FGM and PGD")
    use_pgd: bool = option(False, "the same in several steps (PGD)")
    pgd_alpha: float = option(0.4, "length of a step of PGD")
    pgd_steps: int = option(3, "steps of PGD")
    use_freelb: bool = option(
        False, "adversarial training on each text's word vectors, averaged over the steps (FreeLB)"
    )
    freelb_alpha: float = option(0.1, "length of a step of FreeLB")
    freelb_steps: int = option(3, "steps of FreeLB")
    use_awp: bool = option(False, "adversarial training on the weights (AWP)")
    awp_gamma: float = option(0.0002, "size of AWP's perturbation, as a share of each matrix's norm")
    awp_start: float = option(0.2, "share of the epochs before AWP begins")
    use_smart: bool = option(False, "answers must not change under small adversarial noise (SMART, VAT)")
    smart_weight: float = option(1.0, "weight of SMART's divergence in the loss")
    use_rdrop: bool = option(False, "answers must not change under dropout (R-Drop)")
    rdrop_alpha: float = option(1.0, "weight of R-Drop's divergence in the loss")
    dropout_samples: int = option(1, "dropout masks under which the heads read each text (multi-sample dropout)")
    use_ema: bool = option(False, "score and keep an exponential moving average of the weights (EMA)")
    ema_decay: float = option(
        0.99, "its decay for each step: 0.99 averages over the last hundred or so; take less if a run is short"
    )
    use_swa: bool = option(False, "score and keep the mean weights of the last epochs, under a constant rate (SWA)")
    swa_start: float = option(0.7, "share of training before SWA begins")
    layer_decay: float = option(1.0, "each layer of the encoder learns at so much of the rate of the one above it")
    unfreeze_layers: int = option(
        0, "the encoder is frozen at first; in each epoch so many more layers join, from the top; 0: no"
    )

    # Machine
    device: str = option("auto", "auto, cpu, cuda, cuda:0, …", group="machine")
    precision: str = option(
        "fp32", "autocast to half precision; weights, losses and CRF stay fp32", choices=["fp32", "bf16", "fp16"]
    )
    compile: bool = option(False, "torch.compile the encoder; pays on a GPU after some minutes")
    random_seed: int = option(666, "seed of everything random", aliases=["seed"])
    deterministic: bool = option(False, "on a GPU: deterministic algorithms only, somewhat slower")

    def __post_init__(self):
        require_range(
            self,
            1,
            "hidden_size num_layers vocab_size batch_size gradient_accumulation_steps eval_batch_size log_steps shuffle_buffer",
        )
        require_range(
            self,
            0,
            "epochs warmup_epochs weight_decay max_grad_norm early_stop_patience save_epoch save_steps num_workers shared_layers "
            "fgm_eps pgd_alpha freelb_alpha awp_gamma smart_weight rdrop_alpha focal_gamma unfreeze_layers",
        )
        require_range(self, 1, "pgd_steps freelb_steps dropout_samples")
        require_range(self, 8, "max_length")
        require_range(self, -1, "freeze_layers")
        for name in ("lr", "head_lr"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)} must lie between 0 and 1")
        for name in ("dropout", "lrf", "label_smoothing", "ema_decay", "awp_start", "swa_start", "layer_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name}={getattr(self, name)} must lie between 0 and 1")
        if self.warmup_epochs is not None and self.warmup_epochs > self.epochs > 0:
            raise UserError(
                f"--warmup_epochs={self.warmup_epochs:g} is longer than --epochs={self.epochs}: the rate would never reach its peak"
            )
        require_seed(self.random_seed)
        self.refuse_senseless_tricks()
        if self.encoder == "bilstm" and self.hidden_size % 2:
            raise UserError(
                f"--hidden_size={self.hidden_size} must be even: a BiLSTM halves it between its two directions"
            )
        if self.encoder == "transformer" and not self.pretrain_model_path and self.hidden_size % 32:
            raise UserError(f"--hidden_size={self.hidden_size} must be a multiple of 32, the size of an attention head")
        if self.window_stride is not None and not -1 <= self.window_stride <= self.max_length // 2:
            raise UserError(f"--window_stride={self.window_stride} must be at most half of --max_length, or -1")
        if self.predict_output and Path(self.predict_output).suffix not in (".csv", ".jsonl"):
            raise UserError(f"--predict_output={self.predict_output} must end in .csv or .jsonl")
        if os.sep in self.model_version or self.model_version in (".", ".."):
            raise UserError(
                f"--model_version={self.model_version} must be a plain name; --output_dir says where runs are kept"
            )
        self.task_weights_by_name()

    @property
    def run_dir(self):
        """Where this run is kept; a rehearsal (--debug) never touches the real run's folder."""
        name = self.model_version or Path(self.checkpoint or self.data_path).resolve().name
        name += "" if self.fold is None else f"-fold_{self.fold}"
        return Path(self.output_dir) / (name + ("-debug" if self.debug else ""))

    def refuse_senseless_tricks(self):
        adversaries = [
            name for name in ("use_fgm", "use_pgd", "use_freelb", "use_awp", "use_smart") if getattr(self, name)
        ]
        pretrained = self.pretrain_model_path and self.encoder != "bilstm"
        rules = [
            (
                len(adversaries) > 1,
                f"{' and '.join(f'--{name}' for name in adversaries)} are each an adversary; choose one",
            ),
            (
                self.use_ema and self.use_swa,
                "--use_ema and --use_swa both replace the weights that are scored; choose one",
            ),
            (self.use_ema and self.ema_decay == 1, "--ema_decay=1 would never move; it must be below 1"),
            (
                self.use_swa and 0 < self.epochs < math.floor(self.swa_start * self.epochs) + 2,
                f"--use_swa would average fewer than two of {self.epochs} epochs; lower --swa_start={self.swa_start:g}",
            ),
            (
                self.use_awp and 0 < self.epochs <= math.ceil(self.awp_start * self.epochs - 1e-9),
                f"--awp_start={self.awp_start:g} leaves none of {self.epochs} epochs for AWP",
            ),
            (
                self.unfreeze_layers and self.compile,
                "--unfreeze_layers changes what is trained each epoch, and --compile would compile anew; drop one",
            ),
            (
                self.unfreeze_layers and self.epochs == 1,
                "--unfreeze_layers trains the heads alone in the first epoch; --epochs=1 has no second",
            ),
            (self.layer_decay == 0, "--layer_decay=0 would stop all layers but the last; see --freeze_layers"),
            (
                (self.layer_decay < 1 or self.unfreeze_layers) and (not pretrained or self.freeze_layers == -1),
                "--layer_decay and --unfreeze_layers spare pretrained layers: they need --pretrain_model_path, and layers that are trained",
            ),
            (
                (self.freeze_layers or self.unfreeze_layers) and (self.use_fgm or self.use_pgd),
                "--use_fgm and --use_pgd need the gradient of the word embeddings, but --freeze_layers and --unfreeze_layers freeze them",
            ),
            (
                self.pooling == "mean" and self.encoder == "bilstm",
                "--pooling=mean: what a BiLSTM classifies from is its two last states; leave it at first",
            ),
        ]
        for senseless, why in rules:
            if senseless:
                raise UserError(why)

    def unused_options(self):
        """What is said of each option of a trick that has no effect, or leaves its trick without one."""
        found = []
        for name, switches in STRENGTHS.items():
            on, value = any(getattr(self, switch) for switch in switches.split()), getattr(self, name)
            use = " or ".join(f"--{switch}" for switch in switches.split())
            if not on and value != getattr(Config, name):
                found.append(f"--{name}={value:g} has no effect without {use}")
            if on and value == 0 and not name.endswith("start"):
                found.append(f"--{name}=0 leaves {use} without effect")
        return found

    @property
    def data_dir(self):
        """The processed folder to read: --data_path, or a fold in it. The sample is the repository's own, wherever this was started."""
        path = Path(self.data_path)
        if self.data_path == Config.data_path and not path.exists():
            path = ROOT / path
        return path if self.fold is None else path / f"fold_{self.fold}"

    def task_weights_by_name(self):
        """'intent=1,slots=2' -> {'intent': 1.0, 'slots': 2.0}"""
        try:
            pairs = [part.rsplit("=", 1) for part in self.task_weights.split(",") if part.strip()]
            weights = {name.strip(): float(value) for name, value in pairs}
        except ValueError:
            raise UserError(f"--task_weights={self.task_weights!r} must look like 'intent=1,slots=2'") from None
        if not all(0 <= weight < float("inf") for weight in weights.values()):
            raise UserError(f"--task_weights={self.task_weights!r}: weights must be finite and not negative")
        return weights

    def save(self, path):
        """Writes the options as JSON; the file is replaced whole."""
        temporary = Path(path).with_name(f".{Path(path).name}.tmp")
        temporary.write_text(
            json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        os.replace(temporary, path)

    @classmethod
    def load(cls, path):
        """Options as `save` wrote them. Those that this version no longer has are told and left out."""
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if unknown := sorted(set(values) - {f.name for f in dataclasses.fields(cls)}):
            logger.warning(
                f"{path}: options that no longer exist are left out: {', '.join(f'{name}={values[name]!r}' for name in unknown)}"
            )
        return cls(**{name: value for name, value in values.items() if name not in unknown})

    def differences(self, before):
        """['lr was 0.001, is 0.01', …] of the options that change the result; before: those of a run, as `save` wrote them.

        More epochs change nothing under a constant rate. An option that the run did not have yet was at its default.
        """
        same_course = (
            self.scheduler == "constant" and self.warmup_epochs is not None and not (self.use_awp or self.use_swa)
        )
        free = RESUME_SAFE | ({"epochs"} if same_course and self.epochs >= before["epochs"] else set())
        now = dataclasses.asdict(self)
        before = {f.name: f.default for f in dataclasses.fields(self)} | before
        gone = [f"{name} was {before[name]!r}, which no longer exists" for name in sorted(before.keys() - now.keys())]
        return gone + [
            f"{name} was {before[name]!r}, is {now[name]!r}"
            for name in now
            if name not in free and before[name] != now[name]
        ]


def seed_torch(seed, deterministic=False):
    """Seeds Python, NumPy and torch (CPU and every GPU). cuDNN stays on.

    `deterministic` also asks CUDA for reproducible kernels; it must come before CUDA starts.
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
