"""Trains a masked language model on your own texts, to adapt an encoder to a domain or to train a new one.

    python huggingface_hands_on/continue_pretrain_task.py --input TEXTS --pretrain_model_path DIR_OR_HUB \\
        --output_dir models/mine
    … --pretrain_model_path models/tokenizer --from_scratch --config mini      trains a new encoder for that tokenizer

Use the result with `main.py --pretrain_model_path models/mine`. To resume a killed run, repeat the command. For another
pretraining task, edit `blocks.mask` and `MaskedTrainer.compute_loss`.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository is not in the path of a script

from engine.errors import UserError
from engine.model.hub import locate
from engine.run import files
from engine.run.command_line import option, run_command
from engine.run.environment import gpu_problem
from engine.run.run_folder import changed_options, lock_folder
from engine.run.signals import StopSignals
from huggingface_hands_on.corpus import CorpusConfig, read_corpus, read_words, require_free_folder

ANOTHER = "choose another --output_dir"
# layers and hidden size (Turc et al., 2019)
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768)}


@dataclass(frozen=True)
class PretrainConfig(CorpusConfig):
    """Options of `huggingface_hands_on/continue_pretrain_task.py`."""

    pretrain_model_path: str = option("", "encoder to continue from, or tokenizer of a new encoder: folder or hub name")
    model_hub: Literal["hf", "modelscope"] = option("hf", "where a name is looked up (docs/download.md)")
    from_scratch: bool = option(False, "pretrain a new encoder with the tokenizer of --pretrain_model_path")
    config: str = option("mini", "size of a new encoder, as in the small BERT models by Google", choices=list(SIZES))
    new_tokens: str = option("", "words to add to the vocabulary: comma-separated, or a file with one word per row")
    max_length: int = option(128, "length of a block in sub-tokens; texts may continue in the next block", low=8)
    packing: bool = option(True, "fill each block with as many texts as fit")
    whole_word: bool = option(True, "mask whole words; Chinese is segmented by rjieba")
    mlm_probability: float = option(0.15, "fraction of words to mask", low=0, high=1, exclusive=True)
    epochs: int = option(10, "number of passes over the texts", low=1)
    batch_size: int = option(32, "blocks per micro-batch", low=1)
    gradient_accumulation_steps: int = option(1, "micro-batches per optimizer step", low=1)
    lr: float | None = option(None, "peak learning rate (default: from hidden size)", low=0, high=1, exclusive=True)
    weight_decay: float = option(0.01, "weight decay of AdamW", low=0)
    early_stop_patience: int = option(3, "stop after N evaluations without a lower held-out loss; 0: never", low=0)
    eval_steps: int = option(0, "evaluate and save every N optimizer steps; 0: every epoch", low=0)
    device: Literal["auto", "cpu", "cuda", "mps", "xpu", "npu"] = option("auto", "auto: the accelerator, if any")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "autocast to half precision")
    random_seed: int = option(666, "seed of all random numbers", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pretrain_model_path:
            either = "pass the encoder to continue from or, with --from_scratch, the tokenizer's folder"
            raise UserError(f"--pretrain_model_path is required; {either}")

    @property
    def size(self) -> tuple[int, int]:
        """(layers, hidden size) of a new encoder."""
        return SIZES[self.config]


# ---- the run ---------------------------------------------------------------------------------------------------------


def main(config: PretrainConfig) -> None:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the Trainer would split batches over several GPUs
    reject_finished(Path(config.output_dir))
    words = read_words(config.new_tokens, config.encoding)
    train, held_out, texts = read_corpus(config)
    locate(config.pretrain_model_path, config.model_hub, weights=not config.from_scratch, download=False)

    # Imported here because it is slow: errors in options, texts and hub names are reported first
    from engine.run.device import to_device

    to_device(config.device)  # raises UserError for a missing device; the Trainer selects the device itself
    from transformers import logging, set_seed

    from huggingface_hands_on import blocks, encoder, masked_training

    logging.set_verbosity_error()  # encoder.load_model reports missing heads
    set_seed(config.random_seed)
    model, tokenizer = encoder.load_model(config)
    added = encoder.add_words(words, model, tokenizer)
    if words:
        num_known = len(words) - added
        note = f"; {num_known} are already tokens or duplicates" if num_known else ""
        print(f"--new_tokens: {added} words added{note}")
    masked_training.check_model(model, tokenizer, config.max_length, config.packing)
    fingerprint = digest_of(model, tokenizer, texts)
    with claim(config, fingerprint), StopSignals(partial(print, file=sys.stderr)) as stop:
        collator = blocks.masking_collator(config, tokenizer)
        key = hashlib.sha256(f"{fingerprint}{asdict(config)}".encode()).hexdigest()[:20]
        sets = blocks.build_sets(config, collator, (train, held_out), key)
        trainer = masked_training.build_trainer(model, collator, sets, config, stop)
        pretrain(trainer, tokenizer, Path(config.output_dir), stop, added)


def pretrain(trainer: Any, tokenizer: Any, folder: Path, stop: StopSignals, words_added: int) -> None:
    """Trains from the newest checkpoint, if there is one, and saves the model to --output_dir."""
    millions = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    num_blocks = [len(trainer.train_dataset), len(trainer.eval_dataset)]
    counted = f"{num_blocks[0]} blocks to train on, {num_blocks[1]} held out"
    print(f"{millions:.1f} M parameters on {trainer.args.device}; {counted}")
    if trainer.args.device.type == "cpu" and not trainer.args.use_cpu and (problem := gpu_problem()):
        print(f"this run uses the CPU: {problem}")

    before_path, start = folder / "before.json", newest_checkpoint(folder / "checkpoints")
    if not before_path.exists():  # scores before training; a resumed run already has them
        files.write_json(before_path, scores_of(trainer))
    before = json.loads(before_path.read_text(encoding="utf-8"))
    print(f"before: {shown(before)}")
    if start:
        print(f"resuming from {start}")
    trainer.train(resume_from_checkpoint=start)
    if stop.number:
        print("stopped and saved; the same command resumes")
        stop.check()
    after = scores_of(trainer)
    lower = before["perplexity"] / after["perplexity"]
    print(f"after {trainer.state.epoch:.1f} epochs, best model: {shown(after)}, {lower:.2f} times lower")

    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {"before": before, "after": after, "epochs": trainer.state.epoch}
    record |= {"words_added": words_added, "blocks": num_blocks}
    files.write_json(folder / "pretraining.json", record)  # written last, it marks the run as finished
    remove_leftovers(folder)
    command = f"python main.py --do_train --do_eval --pretrain_model_path {folder} --data_path dataset/NAME"
    print(f"{folder} is ready: {command}")


def scores_of(trainer: Any) -> dict[str, float]:
    scores = trainer.evaluate()
    return {name: scores[f"eval_{name}"] for name in ("masked_loss", "perplexity", "masked_tokens")}


def shown(scores: dict[str, float]) -> str:
    loss = f"loss {scores['masked_loss']:.4f} over {scores['masked_tokens']} masked tokens"
    return f"held-out perplexity {scores['perplexity']:.2f} ({loss})"


# ---- output folder ---------------------------------------------------------------------------------------------------


@contextmanager
def claim(config: PretrainConfig, fingerprint: str) -> Iterator[None]:
    """Locks the output folder. Raises UserError unless it is empty or contains an unfinished run with these options."""
    folder, now = Path(config.output_dir), asdict(config) | {"texts, tokenizer and first weights": fingerprint}
    if (folder / "args.json").exists():
        reject_finished(folder)
    else:
        require_free_folder(folder)
    with lock_folder(folder, ANOTHER):
        if newest_checkpoint(folder / "checkpoints"):
            before = {"model_hub": "hf"} | json.loads((folder / "args.json").read_text(encoding="utf-8"))
            if changes := changed_options(before, now, resume_safe=("device", "output_dir")):
                raise UserError(f"{folder} has an unfinished run with other options ({'; '.join(changes)}); {ANOTHER}")
        else:
            remove_leftovers(folder)
            files.write_json(folder / "args.json", now)
        yield


def reject_finished(folder: Path) -> None:
    if (folder / "pretraining.json").exists():
        remove_leftovers(folder)  # the run may have been killed during its cleanup
        raise UserError(f"{folder} already contains a finished model; {ANOTHER}")


def remove_leftovers(folder: Path) -> None:
    """Removes the files that only an unfinished run needs."""
    for name in ("checkpoints", ".cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "before.json").unlink(missing_ok=True)


def newest_checkpoint(root: Path) -> str | None:
    """Returns the newest valid checkpoint, or None. Removes newer ones, which are damaged or incomplete."""
    for folder in sorted(root.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        if files.verify(folder) is None:
            return str(folder)
        shutil.rmtree(folder)
    return None


def digest_of(model: Any, tokenizer: Any, texts: str) -> str:
    """Returns a digest of everything that must not change when a run is resumed. texts: digest of the texts"""
    digest = hashlib.sha256(f"{texts}{tokenizer.backend_tokenizer.to_str()}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:20]


if __name__ == "__main__":
    sys.exit(run_command(main, PretrainConfig))
