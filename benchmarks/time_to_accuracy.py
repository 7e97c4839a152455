"""How soon does this template reach the test score of Hugging Face's Trainer after ten epochs with default options?

    python benchmarks/time_to_accuracy.py --data_path dataset/atis --pretrain_model_path FOLDER [--epochs 2] [--seeds 0]

Both run one after the other on the same machine, with the same encoder, heads and batch size. The Trainer trains for
ten epochs at --peer_lr, with linear decay, random batches and no CRF. This template trains for --epochs with
`--use_crf` and its defaults, and is scored on test every few steps. Reports when it first exceeds the Trainer's
sentence accuracy, and whether it is still higher at the end. Only training time counts, without building the model and
scoring.
"""

import argparse
import time

import torch
from speed import Bench, as_main_does

from config import Config
from data_loader import MyDataLoader
from engine.run.device import synchronize
from trainer import Trainer

SCORE = "sentence_accuracy"


def peer(bench, epochs, lr):
    """Trains with Hugging Face's Trainer. Returns (seconds of training, score on test)."""
    trainer, _ = bench.hugging_face_trainer(num_train_epochs=epochs, learning_rate=lr)
    seconds = bench.seconds(trainer.train)
    return seconds, trainer.evaluate()[f"eval_{SCORE}"]


def ours(bench, epochs, every):
    """Trains with this template. Returns [(seconds of training, steps, score on test)], every `every` steps and at the
    end."""
    trainer = bench.trainer(use_crf=True, epochs=epochs)
    scorer = Trainer(trainer.model, bench.tokenizer, bench.tasks, trainer.config, bench.device)
    loader, last, found, scoring = (
        MyDataLoader(bench.test_set, Config.eval_batch_size),
        epochs * len(trainer.train_loader),
        [],
        0.0,
    )

    def check():
        nonlocal scoring
        if trainer.progress.step % every == 0 or trainer.progress.step == last:
            synchronize(bench.device)
            paused = time.perf_counter()
            found.append((paused - began - scoring, trainer.progress.step, scorer.eval(loader).scores[SCORE]))
            print(f"  step {found[-1][1]:>4}  {found[-1][0]:6.1f} s  {SCORE} {found[-1][2]:.4f}", flush=True)
            trainer.model.train()
            scoring += time.perf_counter() - paused

    trainer.stop.check = check
    with as_main_does():
        began = time.perf_counter()
        for epoch in range(epochs):
            trainer.train_one_epoch(epoch)
            trainer.progress.batch = 0
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--pretrain_model_path", required=True)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--peer_epochs", type=int, default=10)
    parser.add_argument("--peer_lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=int, default=2, help="epochs of this template's run")
    parser.add_argument("--every", type=int, default=10, help="score every N steps")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--examples", type=int, default=10**9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        options.seed = seed
        bench = Bench(options)
        seconds, score = peer(bench, options.peer_epochs, options.peer_lr)
        print(f"Hugging Face Trainer, {options.peer_epochs} epochs: {seconds:.1f} s, {SCORE} {score:.4f}", flush=True)
        found = ours(bench, options.epochs, options.every)
        for what, (took, steps, reached) in (
            ("first", next((one for one in found if one[2] > score), found[-1])),
            ("at its end", found[-1]),
        ):
            ratio = f"{seconds / took:.1f} × faster" if reached > score else "not reached"
            rows.append(
                f"| {seed} | {seconds:.1f} s, {score:.4f} | {what}: {took:.1f} s, {steps} steps, {reached:.4f} | "
                f"{ratio} |"
            )
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}\n")
    print(f"| seed | Hugging Face Trainer, {options.peer_epochs} epochs | this template until {SCORE} is higher | |")
    print("\n".join(["| --- | --- | --- | --- |", *rows]))


if __name__ == "__main__":
    main()
