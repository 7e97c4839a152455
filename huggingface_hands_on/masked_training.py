"""Hugging Face's Trainer for masked words: logits for these alone, and checkpoints that can be verified."""

import inspect
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from engine import files
from engine.optimization import lr_of_width
from engine.tags import IGNORE


def inputs_of(model, batch):
    """Of a batch, what the model's forward takes."""
    names = ["input_ids", "attention_mask", "position_ids"]
    return {
        name: batch[name] for name in names if name in batch and name in inspect.signature(model.forward).parameters
    }


def masked_logits(model, inputs, chosen):
    """Logits (N, V) of the chosen places of (B, L) alone: the big product with the vocabulary sees nothing else."""
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, hidden: (hidden[0][chosen],))
    try:
        return model(**inputs).logits
    finally:
        hook.remove()


class MaskedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        chosen = labels != IGNORE
        bare = self.accelerator.unwrap_model(model)
        logits = masked_logits(bare, inputs_of(bare, inputs), chosen)
        losses = F.cross_entropy(logits.float(), labels[chosen], reduction="none")
        loss = losses.sum() / (chosen.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        by_row = torch.zeros(len(labels), 2, device=labels.device)
        by_row.index_add_(0, chosen.nonzero()[:, 0], torch.stack([losses.detach(), torch.ones_like(losses)], 1))
        return (loss, {"loss": loss, "by_row": by_row}) if return_outputs else loss


class SealCheckpoints(TrainerCallback):
    """A checkpoint counts once it has its manifest of SHA-256 sums. A signal asks for one, and for the end."""

    def __init__(self, stop=None):
        self.stop = stop

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop is not None and self.stop.number:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        files.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def held_out_scores(prediction):
    """Perplexity is exp(the mean loss of the masked words)."""
    total, count = prediction.predictions.astype("float64").sum(0)
    perplexity = math.exp(min(total / count, 700.0))
    return {"masked_loss": total / count, "perplexity": perplexity, "masked_tokens": int(count)}


def training_arguments(config, hidden_size):
    every = "steps" if config.eval_steps else "epoch"
    return TrainingArguments(
        output_dir=str(Path(config.output_dir) / "checkpoints"),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.lr or (1e-3 if config.from_scratch else lr_of_width(hidden_size)),
        warmup_steps=0.06,  # below 1 it is a share of all steps
        lr_scheduler_type="linear",
        weight_decay=config.weight_decay,
        eval_strategy=every,
        save_strategy=every,
        eval_steps=config.eval_steps or None,
        save_steps=config.eval_steps or 500,
        save_total_limit=3,
        load_best_model_at_end=True,
        metric_for_best_model="masked_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        logging_steps=20,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=config.device == "cpu",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.random_seed,
        disable_tqdm=bool(os.environ.get("TQDM_DISABLE")),
    )
