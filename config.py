"""Every option of the command line, in one typed dataclass per command, and the checks on them.

A field *is* its flag: name, type, default, line of help. Edit here when you want a new option: add one field,
then read it as `config.<name>` where it is used. `--flag`, `--flag=True`, `--flag=False` and `--no_flag` all work.
"""

import argparse
import ctypes
import dataclasses
import errno
import json
import math
import os
import random
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args, get_origin


def is_tagging(kind):
    """Whether a task of this type has one label a word. Types of your own end in "tagging" then; all others label texts."""
    return kind.endswith("tagging")


class UserError(ValueError):
    """A mistake that the user can correct. `main` prints its one line and exits with code 2, without a traceback."""


def first_line(error):
    """What another library's error says, short enough for a one-line message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


ROOT = Path(__file__).resolve().parent  # of the repository

OS_ADVICE = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EFBIG: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EACCES: "make it readable and writable for you, or choose another place",
    errno.EPERM: "make it readable and writable for you, or choose another place",
    errno.EROFS: "it cannot be written there: choose another place",
    errno.EEXIST: "something of that name is in the way: move or remove it",
    errno.ENOTDIR: "a part of that path is a file: move it, or choose another place",
    errno.EISDIR: "that is a folder: name a file",
    errno.ENOENT: "check the name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def os_error_line(error):
    """An error of the operating system as one line: which file, what is wrong, what to do."""
    if error.filename is None or error.strerror is None:
        return first_line(error)
    advice = OS_ADVICE.get(error.errno)
    return f"{error.filename2 or error.filename}: {error.strerror.lower()}" + (f"; {advice}" if advice else "")


def option(default, help, group=None, choices=None, aliases=(), parse=None):
    """A dataclass field that becomes a flag. `group` opens a new section of `--help` that lasts until the next one."""
    return field(default=default, metadata=dict(help=help, group=group, choices=choices, aliases=aliases, parse=parse))


def parse_bool(text):
    """'True', 'yes', '1', … -> True and 'False', 'no', '0', … -> False (plain `type=bool` reads 'False' as true)."""
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(str(text).lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return value


def parse_layers(text):
    """'True' or 'all' -> -1 (the whole encoder), 'False' -> 0 (nothing), else a number of layers."""
    named = {"true": -1, "all": -1, "false": 0}.get(str(text).lower())
    if named is None and not str(text).isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of layers nor 'all' nor False")
    return int(text) if named is None else named


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


@dataclass
class Config:
    """Options of `main.py`."""

    # What to do
    do_train: bool = option(False, "train, and keep the best and the last checkpoints", group="what to do")
    do_eval: bool = option(False, "score the best checkpoint on dev and test, into eval.json")
    do_predict: bool = option(False, "label --predict_file, or else the test part, with the best checkpoint")
    resume: bool = option(False, "go on from the newest good checkpoint of the run folder; start afresh if there is none")
    force_resume: bool = option(False, "resume although options, data or tokenizer differ from those of the run")
    debug: bool = option(False, "rehearse the whole road on the first 64 examples of each part, with detailed logs")

    # Files
    data_path: str = option("dataset/sample", "processed folder, made by data_process.py", group="files")
    fold: int | None = option(None, "train on this fold of --data_path (see data_process.py --n_splits); cross_validate.py takes all")
    output_dir: str = option("output", "runs are kept here", aliases=["model_output_path"])
    model_version: str = option(
        "", "name of this run: its folder is OUTPUT_DIR/MODEL_VERSION (default: the name of --checkpoint, else of the data folder)"
    )
    log_output_path: str = option("", "folder of the log file (default: the run folder)")
    log_output_file: str = option("train.log", "name of the log file")
    checkpoint: str = option("", "checkpoint folder to evaluate or predict with, from any machine (default: the run's best)")
    predict_file: str = option("", "what to label: .txt (a text a line), .csv, .tsv or .jsonl (default: the test part)")
    predict_output: str = option("", ".csv or .jsonl to write (default: predictions.csv in the run folder)")
    text_column: str = option("", "column of the text in --predict_file (default: found by its name)")
    text_pair_column: str = option("", "column of the second text in --predict_file")
    encoding: str = option("auto", "of --predict_file: auto (UTF-8 or UTF-16 by its mark), gb18030, …")

    # Model
    pretrain_model_path: str = option(
        "", "folder made by save_pretrained, or a hub name; empty: a small encoder from scratch", group="model"
    )
    encoder: str = option("transformer", "bilstm needs no transformer; it reads the same tokens", choices=["transformer", "bilstm"])
    hidden_size: int = option(256, "width of an encoder built from scratch")
    num_layers: int = option(3, "layers of an encoder built from scratch")
    vocab_size: int = option(8000, "vocabulary of the tokenizer trained when there is no --pretrain_model_path")
    special_tokens: str = option("", "tokens to add to the tokenizer, comma-separated, such as '<e1>,</e1>'")
    pooling: str = option(
        "first", "what classifies a text: its first token, or the mean of its tokens, as sentence encoders learn", choices=["first", "mean"]
    )
    shared_layers: int = option(0, "hidden layers between the encoder and all heads")
    dropout: float = option(0.1, "dropout before the heads and in an encoder built from scratch")
    use_crf: bool = option(False, "conditional random field over the words of tagging tasks")
    task_weights: str = option("", "weights of the tasks' losses, such as 'intent=1,slots=2' (default: 1 each)")
    class_weights: str = option("none", "balanced: rare labels weigh more in the loss, by their counts", choices=["none", "balanced"])
    label_smoothing: float = option(0.0, "share of the target that is spread over all labels; not with a CRF")
    focal_gamma: float = option(0.0, "focal loss: easy examples weigh less, the more so the larger it is (2 is usual); not with a CRF")
    freeze_layers: int = option(0, "keep the embeddings and the first N layers as they are; 'all' for the encoder", parse=parse_layers)

    # Data
    max_length: int = option(256, "longest input in sub-tokens; what is cut is counted and told", group="data")
    truncation: str = option(
        "head",
        "what is kept of longer texts to classify; head_tail: a quarter of head, the rest of tail",
        choices=["head", "tail", "head_tail"],
    )
    window_stride: int | None = option(
        None, "longer texts to tag become windows that share so many sub-tokens (default: a quarter of --max_length; -1: they are cut)"
    )
    streaming: bool = option(False, "read the training file as a stream, in constant memory")
    shuffle_buffer: int = option(8192, "rows shuffled together when streaming")
    num_workers: int = option(0, "processes that prepare batches beside the training; any number gives the same batches")

    # Training
    epochs: int = option(10, "passes over the training data; 0: none", group="training", aliases=["num_train_epochs"])
    batch_size: int = option(32, "examples in a micro-batch")
    gradient_accumulation_steps: int = option(1, "micro-batches in one optimizer step")
    eval_batch_size: int = option(64, "examples in a batch of evaluation and prediction; scores do not depend on it")
    lr: float | None = option(
        None, "peak learning rate of the encoder (default: by its size, see model_utils.default_lr)", aliases=["learning_rate"]
    )
    head_lr: float | None = option(None, "of heads and CRF (default: 10 times --lr; equal to it when training from scratch)")
    scheduler: str = option("cosine", "course of the rate after warmup", choices=["cosine", "linear", "constant"])
    warmup_epochs: float | None = option(
        None, "the rate rises linearly for so long (default: a tenth of --epochs)", aliases=["warm_up_epochs"]
    )
    lrf: float = option(0.01, "final rate as a fraction of the peak")
    weight_decay: float = option(0.01, "AdamW's decoupled decay; none on biases, norms and the CRF")
    max_grad_norm: float = option(1.0, "clip the gradient of each step to this norm; 0: never")
    monitor: str = option("", "dev score that picks the best checkpoint, such as intent_accuracy, slots_f1, loss (default: by task)")
    early_stop_patience: int = option(
        5, "stop after so many epochs without a better score; 0: never", aliases=["earlystop_patient", "earlystop_patience"]
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
    use_freelb: bool = option(False, "adversarial training on each text's word vectors, averaged over the steps (FreeLB)")
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
    ema_decay: float = option(0.99, "its decay for each step: 0.99 averages over the last hundred or so; take less if a run is short")
    use_swa: bool = option(False, "score and keep the mean weights of the last epochs, under a constant rate (SWA)")
    swa_start: float = option(0.7, "share of training before SWA begins")
    layer_decay: float = option(1.0, "each layer of the encoder learns at so much of the rate of the one above it")
    unfreeze_layers: int = option(0, "the encoder is frozen at first; in each epoch so many more layers join, from the top; 0: no")

    # Machine
    device: str = option("auto", "auto, cpu, cuda, cuda:0, …", group="machine")
    precision: str = option("fp32", "autocast to half precision; weights, losses and CRF stay fp32", choices=["fp32", "bf16", "fp16"])
    compile: bool = option(False, "torch.compile the encoder; pays on a GPU after some minutes")
    random_seed: int = option(666, "seed of everything random", aliases=["seed"])
    deterministic: bool = option(False, "on a GPU: deterministic algorithms only, somewhat slower")

    def __post_init__(self):
        require_range(
            self, 1, "hidden_size num_layers vocab_size batch_size gradient_accumulation_steps eval_batch_size log_steps shuffle_buffer"
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
            raise UserError(f"--hidden_size={self.hidden_size} must be even: a BiLSTM halves it between its two directions")
        if self.encoder == "transformer" and not self.pretrain_model_path and self.hidden_size % 32:
            raise UserError(f"--hidden_size={self.hidden_size} must be a multiple of 32, the size of an attention head")
        if self.window_stride is not None and not -1 <= self.window_stride <= self.max_length // 2:
            raise UserError(f"--window_stride={self.window_stride} must be at most half of --max_length, or -1")
        if self.predict_output and Path(self.predict_output).suffix not in (".csv", ".jsonl"):
            raise UserError(f"--predict_output={self.predict_output} must end in .csv or .jsonl")
        if os.sep in self.model_version or self.model_version in (".", ".."):
            raise UserError(f"--model_version={self.model_version} must be a plain name; --output_dir says where runs are kept")
        self.task_weights_by_name()

    @property
    def run_dir(self):
        """Where this run is kept; a rehearsal (--debug) never touches the real run's folder."""
        name = self.model_version or Path(self.checkpoint or self.data_path).resolve().name
        name += "" if self.fold is None else f"-fold_{self.fold}"
        return Path(self.output_dir) / (name + ("-debug" if self.debug else ""))

    def refuse_senseless_tricks(self):
        adversaries = [name for name in ("use_fgm", "use_pgd", "use_freelb", "use_awp", "use_smart") if getattr(self, name)]
        pretrained = self.pretrain_model_path and self.encoder != "bilstm"
        rules = [
            (len(adversaries) > 1, f"{' and '.join(f'--{name}' for name in adversaries)} are each an adversary; choose one"),
            (self.use_ema and self.use_swa, "--use_ema and --use_swa both replace the weights that are scored; choose one"),
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

    def idle(self):
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
        temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path):
        """Options as `save` wrote them. Names that this version does not know are refused, never guessed."""
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"{path}: unknown options {', '.join(unknown)}; it was written by another version of config.py")
        return cls(**values)


FORMATS = ["csv", "tsv", "jsonl", "json", "parquet", "conll", "seq"]


@dataclass
class DataConfig:
    """Options of `data_process.py`."""

    input: str = option("", "file or folder of raw data")
    output_dir: str = option("", "processed folder to write, such as dataset/NAME")
    format: str = option(
        "auto", "what the input is; auto finds it by its names and first rows; hf: a Hugging Face dataset", choices=["auto", *FORMATS, "hf"]
    )
    encoding: str = option("auto", "of the input: auto (UTF-8 or UTF-16 by its mark), gb18030, …")
    text_column: str = option("", "column or key of the text (default: found by its name)")
    text_pair_column: str = option("", "column or key of the second text of a pair")
    label_column: str = option(
        "", "column or key of the label, or several, comma-separated; each becomes a task (default: found by its name)"
    )
    label_type: str = option(
        "", "types of tasks where they should not be guessed, such as 'score=regression,topics=multilabel' (else classification, tagging)"
    )
    label_separator: str = option(",", "what parts the labels in a cell of a multilabel column")
    tag_scheme: str = option(
        "auto", "how entities' tags are written: auto is BIO, or BIOES if the data has ends", choices=["auto", "bio", "bioes", "keep"]
    )
    unit: str = option(
        "auto", "what a token of a text with spans is (auto: characters if most are Chinese)", choices=["auto", "word", "character"]
    )
    n_splits: int = option(0, "make so many folds of train and dev for cross-validation; 0: none")
    group_column: str = option("", "column whose equal values stay in one part and one fold")
    check: bool = option(False, "only examine the input, raw or processed, and write nothing")
    max_length: int = option(256, "for --check: the length that training will use")
    pretrain_model_path: str = option("", "for --check: the model whose tokenizer training will use")
    dev_ratio: float = option(0.1, "share of examples for dev, if the data has no dev part")
    test_ratio: float = option(0.1, "share of examples for test, if the data is a single part")
    random_seed: int = option(666, "seed of the split", aliases=["seed"])

    def __post_init__(self):
        if not self.input or not (self.output_dir or self.check):
            raise UserError("both --input FILE_OR_FOLDER and --output_dir dataset/NAME are needed")
        require_seed(self.random_seed)
        self.label_types_by_name()
        if self.n_splits < 0 or self.n_splits == 1:
            raise UserError(f"--n_splits={self.n_splits} must be at least 2")
        if not self.label_separator:
            raise UserError("--label_separator must not be empty")
        if not (self.dev_ratio > 0 and self.test_ratio >= 0 and self.dev_ratio + self.test_ratio < 1):
            raise UserError(f"--dev_ratio={self.dev_ratio} and --test_ratio={self.test_ratio} must leave something to train on")

    def label_types_by_name(self):
        """'score=regression,tags=multilabel' -> {'score': 'regression', 'tags': 'multilabel'}"""
        types = dict(part.strip().rpartition("=")[::2] for part in self.label_type.split(",") if part.strip())
        if "" in types or not set(types.values()) <= {"classification", "multilabel", "regression", "tagging"}:
            raise UserError(f"--label_type={self.label_type!r} must look like 'score=regression,topics=multilabel,mood=classification'")
        return types


SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768)}  # layers, width (Turc et al., 2019)


@dataclass
class CorpusConfig:
    """Options of all that reads texts without labels."""

    input: str = option(
        "", "texts: a file, a folder of files, or a pattern such as 'texts/*.txt'; plain text, CSV, JSONL, … or a processed folder"
    )
    output_dir: str = option("", "folder to write")
    format: str = option("auto", "what the input is; auto finds it by its names and first rows", choices=["auto", "txt", *FORMATS, "hf"])
    encoding: str = option("auto", "of the input: auto (UTF-8 or UTF-16 by its mark), gb18030, …")
    text_column: str = option("", "column or key of the text (default: found by its name)")
    text_pair_column: str = option("", "column or key of a second text")
    held_out_ratio: float = option(0.05, "share of the texts that is kept apart to measure on, if the input has no dev part")

    def __post_init__(self):
        if not self.input or not self.output_dir:
            raise UserError("both --input TEXTS and --output_dir FOLDER are needed")
        if not 0 < self.held_out_ratio < 1:
            raise UserError(f"--held_out_ratio={self.held_out_ratio} must lie between 0 and 1")


@dataclass
class TokenizerConfig(CorpusConfig):
    """Options of `huggingface_hands_on/train_tokenizer_from_scratch.py`."""

    model: str = option(
        "wordpiece",
        "wordpiece (BERT), bpe over bytes (RoBERTa), unigram (XLM-RoBERTa) or wordlevel (whole words)",
        choices=["wordpiece", "bpe", "unigram", "wordlevel"],
    )
    vocab_size: int = option(8000, "entries of the vocabulary; of a small corpus it may be fewer")
    lowercase: bool = option(True, "'Play' and 'play' are one word; accents go too")
    chinese: bool = option(True, "each Chinese character is a word of its own, as tagging wants it")

    def __post_init__(self):
        super().__post_init__()
        require_range(self, 300 if self.model == "bpe" else 6, "vocab_size")


@dataclass
class PretrainConfig(CorpusConfig):
    """Options of `huggingface_hands_on/continue_pretrain_task.py`."""

    pretrain_model_path: str = option("", "encoder to go on from: folder or hub name; with --from_scratch only its tokenizer is taken")
    from_scratch: bool = option(False, "pretrain a new encoder with the tokenizer of --pretrain_model_path")
    config: str = option("mini", "size of a new encoder: layers and width of Google's small BERTs", choices=list(SIZES))
    new_tokens: str = option("", "words of your domain to add to the vocabulary: comma-separated, or a file with one a row")
    max_length: int = option(128, "length of a block in sub-tokens; longer texts go on in the next block")
    packing: bool = option(True, "fill each block with as many texts as fit")
    whole_word: bool = option(True, "mask whole words; Chinese words are told by rjieba")
    mlm_probability: float = option(0.15, "share of the words that are masked, anew in each epoch")
    epochs: int = option(10, "passes over the texts", aliases=["num_train_epochs"])
    batch_size: int = option(32, "blocks in a micro-batch")
    gradient_accumulation_steps: int = option(1, "micro-batches in one optimizer step")
    lr: float | None = option(None, "peak learning rate (default: by the encoder's width; 1e-3 from scratch)", aliases=["learning_rate"])
    weight_decay: float = option(0.01, "AdamW's decoupled decay")
    early_stop_patience: int = option(3, "stop after so many evaluations without a lower held-out loss; 0: never")
    eval_steps: int = option(0, "evaluate and save every N optimizer steps; 0: every epoch")
    device: str = option("auto", "auto takes a GPU if there is one", choices=["auto", "cpu", "cuda"])
    precision: str = option("fp32", "autocast to half precision", choices=["fp32", "bf16", "fp16"])
    random_seed: int = option(666, "seed of everything random", aliases=["seed"])

    def __post_init__(self):
        super().__post_init__()
        require_range(self, 1, "epochs batch_size gradient_accumulation_steps")
        require_range(self, 0, "weight_decay early_stop_patience eval_steps")
        require_range(self, 8, "max_length")
        require_seed(self.random_seed)
        if self.lr is not None and not 0 < self.lr < 1:
            raise UserError(f"--lr={self.lr} must lie between 0 and 1")
        if not 0 < self.mlm_probability < 1:
            raise UserError(f"--mlm_probability={self.mlm_probability} must lie between 0 and 1")
        if not self.pretrain_model_path:
            raise UserError("--pretrain_model_path is needed: the encoder to go on from, or with --from_scratch the tokenizer's folder")


def require_range(config, low, names):
    for name in names.split():
        value = getattr(config, name)
        if value is not None and not low <= value < float("inf"):
            raise UserError(f"--{name}={value} must be a number of at least {low}")


def require_seed(seed):
    if not 0 <= seed < 2**32:
        raise UserError(f"--random_seed={seed} must be a whole number from 0 to 4294967295")


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message} (--help lists all flags)\n")


def parse_args(config_class, argv=None):
    """Builds an argparse parser from a dataclass of `option`s and returns the filled dataclass; a mistake exits with 2."""
    parser = OneLineParser(
        description=sys.modules["__main__"].__doc__,
        usage="%(prog)s [--flag VALUE] ...",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=120),
    )
    section = parser
    for f in dataclasses.fields(config_class):
        meta = f.metadata
        if meta["group"]:
            section = parser.add_argument_group(meta["group"])
        flags = [f"--{name}" for name in (f.name, *meta["aliases"])]
        shown = "" if f.default in (None, "", False) else f" [{f.default}]"
        described = dict(dest=f.name, default=f.default, help=meta["help"] + shown)
        if f.type is bool:
            section.add_argument(*flags, type=parse_bool, nargs="?", const=True, metavar="BOOL", **described)
            section.add_argument(
                f"--no_{f.name}", dest=f.name, action="store_const", const=False, default=f.default, help=argparse.SUPPRESS
            )
        else:
            kind = next(t for t in get_args(f.type) if t is not type(None)) if get_origin(f.type) or get_args(f.type) else f.type
            section.add_argument(*flags, type=meta["parse"] or kind, choices=meta["choices"], **described)
    try:
        return config_class(**vars(parser.parse_args(argv)))
    except UserError as error:
        parser.error(str(error))


def keep_freed_memory():
    """Lets glibc keep the memory that a batch frees for the next one, instead of giving it back page by page; faster on a CPU."""
    with suppress(OSError, AttributeError):  # other systems have no such thing
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)


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
