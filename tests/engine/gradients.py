"""Computes an epoch's gradients for tests/engine/test_distributed.py. RUNS is JSON: {name: flags of main.py}.

    torchrun --nproc_per_node 2 tests/engine/gradients.py FOLDER 0 RUNS
        in several processes
    python tests/engine/gradients.py FOLDER 2 RUNS
        in one process with the same rows: the shares of 2 processes one after another, with their random numbers
    python tests/engine/gradients.py FOLDER 1 RUNS
        in one process, with all rows of a step in one batch

Writes {step.parameter: gradient}, before clipping, and the row numbers of each step."""

import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import save_file

from config import Config, seed_torch
from engine.run import distributed
from engine.run.command_line import parse_args
from engine.run.launch import end_process
from main import build_trainer, load_data

distributed.SPARSE_FROM = 0  # also for the tests' small word embeddings


def shares(loader, processes):
    """Splits each batch into the batches of several processes."""
    for rows in loader.batch_sampler:
        for number in range(processes):
            yield loader.dataset.batch(rows[number::processes])


def own_random_numbers(trainer, processes):
    """Computes each micro-batch of a step with the random numbers of the process to which it belongs."""
    states, turn, passes = [], [0], trainer.tricks.passes
    for number in range(processes):
        if number:
            torch.manual_seed(trainer.config.random_seed + number * 1_000_003)
        states.append(torch.get_rng_state())

    def in_turn(batch):
        number = turn[0] % processes
        torch.set_rng_state(states[number])
        yield from passes(batch)
        states[number], turn[0] = torch.get_rng_state(), turn[0] + 1

    trainer.tricks.passes = in_turn


def run(path, processes, argv):
    config = parse_args(Config, argv)
    device = distributed.join(config.device, config.ddp_timeout)
    seed_torch(config.random_seed)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(load_data(config, device), device)
    distributed.seed_each(config.random_seed)
    gradients, rows = {}, []
    names = {p: name for name, p in trainer.model.named_parameters()}
    end_step = trainer.losses.end_step
    trainer.losses.end_step = lambda norm, finite, numbers: (rows.append(numbers), end_step(norm, finite, numbers))

    unscale = trainer.scaler.unscale_

    def keep(optimizer):
        gradients.update({f"{len(rows)}.{names[p]}": p.grad.clone() for p in trainer.trained if p.grad is not None})
        unscale(optimizer)

    trainer.scaler.unscale_ = keep
    trainer.progress.best_score = 0.0
    trainer.end_epoch = lambda: setattr(trainer.progress, "epoch", trainer.progress.epoch + 1)
    if processes > 1:
        accumulated = config.gradient_accumulation_steps * processes
        trainer.config = replace(trainer.config, gradient_accumulation_steps=accumulated)
        own_random_numbers(trainer, processes)
        type(trainer.train_loader).__iter__ = lambda loader: shares(loader, processes)
    with torch.no_grad():  # train() loads the best checkpoint at its end
        trainer.save_model("best")
    trainer.train()
    assert trainer.replica is None or trainer.replica.left_out
    everyone = distributed.gather(rows)
    if distributed.is_main_process():
        save_file(gradients, f"{path}.safetensors")
        Path(f"{path}.json").write_text(json.dumps(everyone))


def main(folder, processes, runs):
    for name, argv in json.loads(runs).items():
        run(f"{folder}/{name}", int(processes), [*argv, "--output_dir", folder, "--model_version", f"run of {name}"])
    distributed.leave(torch.device("cpu"))
    end_process(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
