"""Masked language modelling with Hugging Face's Trainer. Computes logits for masked positions only, and verifies
checkpoints."""

import inspect
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from engine.errors import UserError
from engine.model.encoders import first_position
from engine.run import files
from engine.run.command_line import first_line
from engine.run.compat import takes_4d_mask, warmup_option
from engine.run.device import can_pin, to_device
from engine.run.signals import StopSignals
from engine.task.task import IGNORE
from engine.train.optimization import lr_of_width
from huggingface_hands_on.blocks import batch_of, mask


def inputs_of(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the items of a batch that the model's forward accepts."""
    accepted, mask = inspect.signature(model.forward).parameters, batch["attention_mask"]
    if mask.dim() == 4 and not takes_4d_mask():
        batch = batch | {"attention_mask": mask.squeeze(1).long()}
    return {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in accepted}


def masked_logits(model: Any, inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> torch.Tensor:
    """Computes logits (N, V) only for the positions `chosen` (B, L), to save time in the vocabulary projection."""
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, hidden: (hidden[0][chosen],))
    try:
        return model(**inputs).logits
    finally:
        hook.remove()


def check_model(model: Any, tokenizer: Any, max_length: int, packing: bool) -> None:
    """Raises UserError unless the model can compute logits for selected positions and keep packed texts separate.

    With packing, two texts in one block must get the same logits as each text alone.
    """
    kind, half = model.config.model_type, max(1, max_length // 2 - 2)
    words = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)) or [tokenizer.mask_token_id]
    drawn = torch.randint(len(words), (2, half), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [[tokenizer.cls_token_id, *(words[number] for number in text), tokenizer.sep_token_id] for text in drawn]
    alone = {"input_ids": torch.tensor(texts), "attention_mask": torch.ones(2, half + 2, dtype=torch.long)}
    row = {"input_ids": [*texts[0], *texts[1]], "words": 2 * [-1, *range(half), -1]}
    packed = batch_of([row], tokenizer, first_position(model))
    model.eval()
    with torch.no_grad():
        try:
            separate = model(input_ids=alone["input_ids"]).logits.flatten(0, 1)
            tolerance = 1e-3 * float(separate.std())
            second = torch.arange(half + 2).expand(2, -1) == 1
            is_equal = torch.allclose(masked_logits(model, alone, second), separate[second.flatten()], atol=tolerance)
        except Exception as error:  # unusual architectures may raise any exception
            reason = f"cannot be trained on masked words ({first_line(error)})"
            raise UserError(f"{kind} {reason}; use a BERT-like model") from None
        if not is_equal:
            raise UserError(f"{kind} computes logits in an unsupported way; use a BERT-like model")
        if packing:
            is_equal = False
            with suppress(Exception):
                is_equal = torch.allclose(model(**inputs_of(model, packed)).logits[0], separate, atol=tolerance)
            if not is_equal:
                raise UserError(f"{kind} cannot keep the texts of a block separate; add --no_packing")


class MaskedTrainer(Trainer):
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
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
    """Writes the SHA-256 manifest that makes a checkpoint valid, and saves and stops after a signal."""

    def __init__(self, stop: StopSignals | None) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop and self.stop.number:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        files.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def held_out_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the mean loss of the masked tokens, the perplexity, and the number of masked tokens."""
    total, count = prediction.predictions.astype("float64").sum(0)
    perplexity = math.exp(min(total / count, 700.0))
    return {"masked_loss": total / count, "perplexity": perplexity, "masked_tokens": int(count)}


def build_trainer(
    model: Any, collator: Any, sets: Sequence[Any], config: Any, stop: StopSignals | None = None
) -> MaskedTrainer:
    """Creates Hugging Face's Trainer for masked language modelling. sets: (train, held-out)"""
    first = first_position(model)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = batch_of(rows, collator.tokenizer, first)
        return batch if "labels" in batch else mask(collator, batch)

    patience = config.early_stop_patience
    trainer = MaskedTrainer(
        model=model,
        args=training_arguments(config, model.config.hidden_size),
        data_collator=collate,
        train_dataset=sets[0],
        eval_dataset=sets[1],
        compute_metrics=held_out_scores,
        callbacks=[SealCheckpoints(stop), *([EarlyStoppingCallback(patience)] if patience else [])],
    )
    trainer.model_accepts_loss_kwargs = True  # compute_loss divides by the labels of the whole optimizer step
    return trainer


def training_arguments(config: Any, hidden_size: int) -> TrainingArguments:
    every = "steps" if config.eval_steps else "epoch"
    return TrainingArguments(
        output_dir=str(Path(config.output_dir) / "checkpoints"),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.lr or (1e-3 if config.from_scratch else lr_of_width(hidden_size)),
        **warmup_option(0.06),
        weight_decay=config.weight_decay,
        eval_strategy=every,
        save_strategy=every,
        eval_steps=config.eval_steps or None,
        save_steps=config.eval_steps or 500,
        save_total_limit=3,
        load_best_model_at_end=True,
        metric_for_best_model="masked_loss",
        restore_callback_states_from_checkpoint=True,
        logging_steps=20,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        use_cpu=config.device == "cpu",
        dataloader_pin_memory=can_pin(to_device(config.device).type),
        seed=config.random_seed,
        disable_tqdm=bool(os.environ.get("TQDM_DISABLE")),
    )
