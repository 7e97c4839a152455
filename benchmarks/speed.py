"""Compares the speed of training and evaluation with other implementations: same machine, model, data and batch size,
interleaved, medians.

    python benchmarks/speed.py --data_path dataset/atis --pretrain_model_path FOLDER [--examples 893] [--rounds 3]
    [--only train eval]

Needs a processed folder with `intent` and `slots`, and an idle machine. Prints a table with examples per second and
this template's speed relative to each baseline; above 1 means faster. Further measurements:

    --only overhead    cost of logs and checkpoints per epoch
    --only tricks      cost of each trick
    --only growth      memory and speed of reading 100,000 and 2,000,000 rows (a few minutes, 3 GB of temporary disk)
    --only start       time from launch to the first step
    --only scaling     main.py in one single-threaded process, and in two under torchrun
    --only layers      all layers of the encoder, two thirds and half of them (`--keep_layers`)
    --only precision   bf16 and fp32, for encoders from scratch with several hidden sizes
    --only launches    number of kernels that the heads would launch on a GPU, counted on any machine without data
"""

import argparse
import ctypes
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import launches
import numpy as np
import torch
import torch.nn.functional as F
import torchcrf
from seqeval.metrics import f1_score
from torch import nn
from transformers import Trainer as HuggingFaceTrainer
from transformers import TrainerCallback, TrainingArguments, set_seed

from config import Config
from data_loader import MyDataLoader, MyDataset
from engine.data.features import Featurizer
from engine.data.tokenizer import load_tokenizer
from engine.model.crf import CRF
from engine.run.device import keep_freed_memory, synchronize
from engine.task.task import IGNORE
from engine.train.automatic import TrainingFacts, resolve_training_options
from engine.train.optimization import merge_groups, parameter_groups
from engine.train.progress import RunningLosses
from logging_config import TensorBoard
from model_utils import build_model
from preprocess.schema import load_labels
from trainer import Trainer, TrainingSetup, build_optimizer, build_scheduler
from tricks import build_tricks


class Bench:
    """Provides all systems with the same rows, and with a new model for each run."""

    def __init__(self, options):
        self.options, self.data_path = options, Path(options.data_path)
        self.device = torch.device(options.device)
        self.tasks = load_labels(self.data_path)
        self.tokenizer = load_tokenizer(self.config(), None)
        self.featurizer = Featurizer(self.tokenizer, self.tasks, 256)
        self.train_set, self.test_set = (self.dataset(split) for split in ("train", "test"))
        self.rows = sum(self.tasks["intent"].counts)  # in the whole train split

    def config(self, **changes):
        run = dict(
            output_dir=tempfile.gettempdir(),
            model_version="speed",
            epochs=1,
            batch_size=self.options.batch_size,
            use_crf=False,  # the baselines have no CRF
            precision="fp32",
            pretrain_model_path=self.options.pretrain_model_path,
        )
        return Config(data_path=str(self.data_path), **(run | changes))

    def dataset(self, split):
        whole = MyDataset(self.data_path / f"{split}.jsonl", self.featurizer)
        rows = np.random.default_rng(0).permutation(len(whole))[: self.options.examples]
        return MyDataset([whole[int(row)] for row in rows], self.featurizer)

    def model(self, **changes):
        set_seed(self.options.seed)
        return build_model(self.config(**changes), self.tokenizer, self.tasks).to(self.device)

    def trainer(self, **changes):
        config, model = self.config(**changes), self.model(**changes)
        loader = MyDataLoader(self.train_set, config.batch_size, self.options.seed)
        facts = TrainingFacts(model.encoder, self.device, self.tasks, loader.dataset.num_labelled_rows, len(loader))
        config = resolve_training_options(config, facts)
        tricks = build_tricks(model, config)
        groups = tricks.param_groups(parameter_groups(model, config))
        optimizer = merge_groups(build_optimizer(groups, config, self.device))
        scheduler = build_scheduler(optimizer, config, len(loader))
        tricks.begin(loader, loader, config)
        config.run_dir.mkdir(exist_ok=True)
        setup = TrainingSetup(loader, loader, optimizer, scheduler, tricks)
        return Trainer(model, self.tokenizer, self.tasks, config, self.device, setup)

    def seconds(self, function):
        synchronize(self.device)
        began = time.perf_counter()
        function()
        synchronize(self.device)
        return time.perf_counter() - began

    # ---- training: seconds for one pass over the rows, without start-up -------------------------------------------

    def ours(self, **changes):
        trainer = self.trainer(**changes)
        with as_main_does():
            return self.seconds(lambda: trainer.train_one_epoch(0))

    def teacher(self):
        """Returns the run folder of a model trained for one epoch."""
        trainer = self.trainer(use_crf=True, model_version="speed_teacher")
        trainer.train_one_epoch(0)
        trainer.save_model("best")
        trainer.writer.wait()
        return str(trainer.config.run_dir)

    def bare_loop(self):
        """Trains on pre-tokenised tensors in memory, sorted by length, with only gradient clipping and fused AdamW."""
        model = self.model()
        model.train()
        return self.bare_epoch(model, lambda inputs, labels: model(inputs, labels).total_loss)

    def bare_loop_plain_heads(self):
        """Trains like `bare_loop`, with a linear layer on the first token, another on all tokens, and cross-entropy."""
        encoder = self.model().encoder
        width, sizes = encoder.config.hidden_size, [len(self.tasks[name].labels) for name in ("intent", "slots")]
        model = nn.ModuleList([encoder, *(nn.Linear(width, size) for size in sizes)]).to(self.device)

        def loss(inputs, labels):
            names = ("input_ids", "attention_mask", "token_type_ids")
            hidden = encoder(**{name: inputs[name] for name in names}).last_hidden_state
            intents = F.cross_entropy(model[1](hidden[:, 0]), labels["intent"])
            return intents + F.cross_entropy(model[2](hidden).flatten(0, 1), labels["tokens"].flatten())

        return self.bare_epoch(model, loss)

    def bare_epoch(self, model, loss):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        loader = MyDataLoader(self.train_set, self.options.batch_size, 0)
        loader.set_position(0)
        batches = [batch.to(self.device) for batch in loader]
        plain = [(batch.inputs, {**batch.labels, "tokens": labels_of_tokens(batch)}) for batch in batches]

        def run():
            for inputs, labels in plain:
                loss(inputs, labels).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

        return self.seconds(run)

    def hugging_face(self, sampling="random"):
        trainer, clock = self.hugging_face_trainer(sampling)
        trainer.add_callback(clock)
        trainer.train()
        return clock.ended - clock.began

    def hugging_face_grouped(self):
        return self.hugging_face("group_by_length")

    def hugging_face_trainer(self, sampling="random", sorted_test=False, **changes):
        class Clock(TrainerCallback):
            def on_epoch_begin(self, *args, **kwargs):
                self.began = time.perf_counter()

            def on_epoch_end(self, *args, **kwargs):
                self.ended = time.perf_counter()

        options = (
            dict(num_train_epochs=1, learning_rate=1e-4, per_device_train_batch_size=self.options.batch_size) | changes
        )
        args = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_eval_batch_size=Config.eval_batch_size,
            train_sampling_strategy=sampling,
            length_column_name="length",
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["intent", "slots"],
            use_cpu=self.device.type == "cpu",
            **options,
        )
        rows = [self.as_row(self.train_set, i) for i in range(len(self.train_set))]
        test = [self.as_row(self.test_set, i) for i in range(len(self.test_set))]
        test.sort(key=lambda row: -row["length"] if sorted_test else 0)
        trainer = HuggingFaceTrainer(
            ForHuggingFace(self.model()),
            args,
            train_dataset=rows,
            eval_dataset=test,
            data_collator=self.collate,
            compute_metrics=self.scores,
        )
        return trainer, Clock()

    @staticmethod
    def as_row(dataset, i):
        (inputs, labels, _) = dataset.batch([i])
        row = {name: tensor[0].tolist() for name, tensor in {**inputs, **labels}.items()}
        return {**row, "length": len(row["input_ids"])}

    def collate(self, rows):
        """Collates lists like DataCollatorForTokenClassification, padded to the longest text of the batch."""
        fill = {"slots": IGNORE, "input_ids": self.tokenizer.pad_token_id}
        batch = {}
        for name in rows[0]:
            if name == "length":
                continue
            values = [row[name] for row in rows]
            if isinstance(values[0], list):
                longest = max(map(len, values))
                values = [value + [fill.get(name, 0)] * (longest - len(value)) for value in values]
            batch[name] = torch.tensor(values)
        return {**batch, "word_mask": batch["word_mask"].bool()}

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def our_eval(self, **changes):
        trainer = self.trainer(**changes)
        with as_main_does():
            return self.seconds(lambda: trainer.eval(MyDataLoader(self.test_set, Config.eval_batch_size)))

    # ---- bookkeeping: logs, TensorBoard, the progress bar and checkpoints -------------------------------------------

    def pass_with(self, bookkeeping):
        """Returns the seconds of one pass over the rows, with or without logs, and a best and a resumable checkpoint
        written in the background."""
        import trainer as room

        trainer = self.trainer(log_steps=Config.log_steps if bookkeeping else 10**9)
        with tempfile.TemporaryDirectory() as folder, as_main_does(), closing(TensorBoard(trainer.config, 0)) as board:
            trainer.writer.root, trainer.trackers = Path(folder), [board]

            def run(step):
                if bookkeeping:
                    trainer.save_model("best")
                    trainer.save_model(f"step_{step}", resumable=True)
                trainer.train_one_epoch(0)
                trainer.writer.wait()
                trainer.losses, trainer.progress.batch = RunningLosses(trainer.progress, self.device), 0

            for step in range(3):  # warm-up: creates Adam's moments, allocates memory, deletes old checkpoints
                run(step)
            before, room.tqdm = room.tqdm, functools.partial(room.tqdm, disable=not bookkeeping)
            try:
                return self.seconds(lambda: run(3))
            finally:
                room.tqdm = before

    def hugging_face_eval(self, sorted_test=False):
        trainer, _ = self.hugging_face_trainer(sorted_test=sorted_test)
        return self.seconds(trainer.evaluate)

    def scores(self, output):
        (intents, slots), (gold_intents, gold_slots) = output.predictions, output.label_ids
        names, kept = self.tasks["slots"].labels, gold_slots != IGNORE
        gold, found = (
            [[names[n] for n in row[mask]] for row, mask in zip(tags, kept)] for tags in (gold_slots, slots.argmax(-1))
        )
        right = intents.argmax(-1) == gold_intents
        whole = [one and tags == gold_tags for one, tags, gold_tags in zip(right, found, gold)]
        scores = {"intent_accuracy": right.mean(), "slots_f1": f1_score(gold, found, zero_division=0)}
        return scores | {"sentence_accuracy": np.mean(whole)}


def labels_of_tokens(batch):
    """Returns each word's tag at its first token, and IGNORE elsewhere, as (B, L)."""
    mask, (rows, length) = batch.inputs["word_mask"], batch.inputs["input_ids"].shape
    tokens = torch.full((rows, length + 1), IGNORE, device=mask.device)  # one extra position, for padded words
    places = torch.where(mask, batch.inputs["word_starts"], length)
    return tokens.scatter(1, places, torch.where(mask, batch.labels["slots"], IGNORE))[:, :-1].contiguous()


@contextmanager
def as_main_does():
    """Makes glibc keep freed memory, like main.py. The baselines run without it."""
    keep_freed_memory()
    try:
        yield
    finally:
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            for option, value in ((-4, 65536), (-1, 128 << 10), (-2, 128 << 10)):
                libc.mallopt(option, value)
            libc.malloc_trim(0)


class ForHuggingFace(nn.Module):
    """The same model, with outputs in the format that Hugging Face's Trainer expects."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, intent, slots, **inputs):
        output = self.model(inputs, {"intent": intent, "slots": slots})
        return {"loss": output.total_loss, "logits": (output.logits["intent"], output.logits["slots"])}


def compare(bench, systems, count, rounds):
    """Returns {name: median examples per second}. The systems take turns, and the first round is a warm-up."""
    times = {name: [] for name in systems}
    for number in range(rounds + 1):
        for name, system in systems.items():
            times[name].append(system())
            print(f"  round {number}  {name:<40} {count / times[name][-1]:8.1f} examples/s", flush=True)
    return {name: count / statistics.median(values[1:]) for name, values in times.items()}


def layers(bench, rounds):
    """Measures training and evaluation with fewer encoder layers. Returns table rows."""
    count, rows = bench.model().encoder.config.num_hidden_layers, []
    runs = ("training", bench.ours, bench.train_set), ("evaluation", bench.our_eval, bench.test_set)
    for what, run, dataset in runs:
        kept = dict.fromkeys((count, max(1, 2 * count // 3), max(1, count // 2)))
        systems = {n: functools.partial(run, use_crf=True, keep_layers=n) for n in kept}
        speed = compare(bench, systems, len(dataset), rounds)
        all_layers = speed.pop(count)
        for n, ours in speed.items():
            speeds = f"all {count} layers {all_layers:.1f} | {n} layers {ours:.1f} | {ours / all_layers:.2f}"
            rows.append(f"| {what} with a CRF, examples/s | {speeds} |")
    return rows


def precisions(bench, rounds):
    """Measures training and evaluation in bf16 and fp32, from scratch, by hidden size. Returns table rows."""
    rows = []
    for size in SIZES:
        options = dict(use_crf=True, pretrain_model_path="", hidden_size=size, num_layers=3)
        for what, run, dataset in (
            ("training", bench.ours, bench.train_set),
            ("evaluation", bench.our_eval, bench.test_set),
        ):
            systems = {name: functools.partial(run, precision=name, **options) for name in ("fp32", "bf16")}
            speed = compare(bench, systems, len(dataset), rounds)
            speeds = f"fp32 {speed['fp32']:.1f} | bf16 {speed['bf16']:.1f} | {speed['bf16'] / speed['fp32']:.2f}"
            rows.append(f"| {what}, 3 layers of hidden size {size}, examples/s | {speeds} |")
    return rows


def crf_rows(rounds, num_tags, length):
    """Measures loss + backward, and decoding, of 32 texts of different lengths, here and with pytorch-crf. Returns
    medians of interleaved calls in ms."""
    torch.manual_seed(0)
    crf = CRF([f"B-{i}" for i in range(num_tags)])
    peer = torchcrf.CRF(num_tags, batch_first=True)
    peer.load_state_dict(crf.state_dict())
    emissions, tags = torch.randn(32, length, num_tags), torch.randint(0, num_tags, (32, length))
    mask = torch.arange(length) < torch.randint(5, length + 1, (32, 1))
    mask[0] = True
    e = emissions.clone().requires_grad_()

    def timed(function):
        began = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - began)

    calls = {
        "loss, ours": lambda: (crf.log_partition(e, mask) - crf.path_score(e, tags, mask)).sum().backward(),
        "loss, pytorch-crf": lambda: (-peer(e, tags, mask)).backward(),
        "decode, ours": lambda: crf.viterbi(emissions, mask),
        "decode, pytorch-crf": lambda: peer.decode(emissions, mask),
    }
    times = {name: [] for name in calls}
    for _ in range(10 * rounds):
        for name, call in calls.items():
            times[name].append(timed(call))
    ms = {name: statistics.median(values[2:]) for name, values in times.items()}
    return [(f"CRF {kind}", ms[f"{kind}, pytorch-crf"], ms[f"{kind}, ours"]) for kind in ("loss", "decode")]


ALL = ["train", "eval", "crf", "overhead", "growth", "start", "tricks", "launches", "scaling", "layers", "precision"]
SIZES = 32, 64, 128, 256, 384, 768  # hidden sizes of --only precision
TRICKS = {
    **{f"--use_{name}": {f"use_{name}": True} for name in ("fgm", "pgd", "freelb", "smart", "rdrop", "ema")},
    "--use_awp": {"use_awp": True, "awp_start": 0.0},
    "--use_swa": {"use_swa": True, "swa_start": 0.0, "epochs": 2},
    "--dropout_samples 5": {"dropout_samples": 5},
    "--layer_decay 0.9": {"layer_decay": 0.9},
    "--unfreeze_layers 2, first epoch": {"unfreeze_layers": 2, "epochs": 3},
}
READ = """
import json, resource, sys, time
from pathlib import Path
from config import Config
from engine.run.device import keep_freed_memory
from engine.data.features import Featurizer
from data_loader import MyDataLoader, MyDataset, MyIterableDataLoader, MyIterableDataset
from engine.data.tokenizer import load_tokenizer
from preprocess.schema import load_labels
kind, path, model = sys.argv[1:]
featurizer = Featurizer(load_tokenizer(Config(pretrain_model_path=model), None), load_labels(Path(path).parent), 64)
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
began = time.perf_counter()
if kind == "streaming":
    loader = MyIterableDataLoader(MyIterableDataset(path, featurizer, 32, Config.shuffle_buffer, 0))
else:
    loader = MyDataLoader(MyDataset(path, featurizer), 32, 0)
ready = time.perf_counter()
loader.set_position(0)
rows = sum(len(batch.rows) for batch in loader)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
speed = rows / (time.perf_counter() - ready)
print(json.dumps({"base": base, "peak": peak, "ready": ready - began, "rows": rows, "per_second": speed}))
"""


def growth(options, sizes=(100_000, 2_000_000)):
    """Measures peak memory and speed of a pass over files of short rows, in separate processes. Returns table rows."""
    lines = (Path(options.data_path) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    words = [json.loads(line)["tokens"] for line in lines]
    rng, results = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        tasks = {"intent": {"type": "classification", "labels": ["a", "b"]}}
        (Path(folder) / "labels.json").write_text(json.dumps(tasks))
        for size in sizes:
            path = Path(folder) / f"rows{size}.jsonl"
            with open(path, "w", encoding="utf-8") as file:
                for number in range(size):
                    file.write(
                        json.dumps({"id": str(number), "text": " ".join(rng.choice(words)), "intent": "ab"[number % 2]})
                        + "\n"
                    )
            for kind in ("streaming", "in memory"):
                command = [sys.executable, "-c", READ, kind, str(path), options.pretrain_model_path]
                root = Path(__file__).resolve().parent.parent
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    check=True,
                    cwd=root,
                    env=os.environ | {"TQDM_DISABLE": "1"},
                )
                found = json.loads(done.stdout.splitlines()[-1])
                assert found["rows"] == size
                results.append(
                    f"| {kind}, {size:,} rows | peak {found['peak']:.0f} MB ({found['peak'] - found['base']:.0f} "
                    "above start) | "
                    f"{found['per_second']:.0f} rows/s | ready after {found['ready']:.1f} s |"
                )
                print(results[-1], flush=True)
    return results


def scaling(options):
    """Measures main.py in one single-threaded process and in two. Returns a table row with median examples/s."""
    root = Path(__file__).resolve().parent.parent
    launchers = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
    speed = {processes: [] for processes in launchers}
    for number in range(options.rounds):
        for processes, launcher in launchers.items():
            with tempfile.TemporaryDirectory() as folder:
                words = ["main.py", "--do_train", "--epochs", "1", "--output_dir", folder, "--model_version", "run"]
                words += [
                    "--no_use_crf",
                    "--data_path",
                    options.data_path,
                    "--pretrain_model_path",
                    options.pretrain_model_path,
                ]
                words += ["--batch_size", str(options.batch_size), "--log_steps", "10", "--device", "cpu"]
                environment = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
                subprocess.run(
                    [sys.executable, *launcher, *words], cwd=root, env=environment, capture_output=True, check=True
                )
                lines = (Path(folder) / "run/throughput.jsonl").read_text().splitlines()[1:]  # the first warms up
                speed[processes].append(statistics.median(json.loads(line)["examples_per_second"] for line in lines))
                print(f"  round {number}  {processes} processes {speed[processes][-1]:8.1f} examples/s", flush=True)
    one, two = (statistics.median(values) for values in speed.values())
    return f"| training, examples/s | one process, one thread {one:.1f} | two {two:.1f} | {two / one:.2f} |"


def start(rounds):
    """Measures the seconds from launch to --help, to an error message, and to the first step on the sample. Returns
    table rows."""
    root = Path(__file__).resolve().parent.parent
    rows = []

    def median(command, **options):
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=root, capture_output=True, **options)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    rows.append(f"| python main.py --help | | {median(['main.py', '--help']):.2f} s | |")
    rows.append(f"| an invalid flag | | {median(['main.py', '--no_such_flag']):.2f} s | |")
    imports = median(["-c", "import torch; from transformers import AutoModel, AutoTokenizer, BertModel"])
    times = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            flags = [
                "--do_train",
                "--log_steps",
                "1",
                "--output_dir",
                folder,
                "--model_version",
                "run",
                "--data_path",
                f"{folder}/sample",
            ]
            prepare = [
                sys.executable,
                "data_process.py",
                "--input",
                "dataset/sample_raw",
                "--output_dir",
                f"{folder}/sample",
            ]
            subprocess.run(prepare, cwd=root, capture_output=True, check=True)
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "main.py", *flags], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            log = Path(folder) / "run/metrics.jsonl"
            while not (log.exists() and log.stat().st_size) and process.poll() is None:
                time.sleep(0.01)
            times.append(time.perf_counter() - began)
            process.kill()
            process.wait()
    rows.append(
        f"| launch to the first step, sample | importing torch and transformers {imports:.2f} s | "
        f"{statistics.median(times):.2f} s | |"
    )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path")
    parser.add_argument("--pretrain_model_path")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--examples", type=int, help="number of rows of train and of test to use (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=["train", "eval", "crf"], choices=ALL)
    options = parser.parse_args()
    if set(options.only) - {"crf", "start", "launches"} and not (options.data_path and options.pretrain_model_path):
        parser.error("--data_path and --pretrain_model_path are needed")
    if "launches" in options.only:
        print("\n".join(launches.rows()))
    if options.only == ["launches"]:
        return
    table = []
    if "crf" in options.only:
        for num_tags, length in ((120, 50), (9, 128)):
            for name, theirs, ours in crf_rows(options.rounds, num_tags, length):
                name = f"{name}, K={num_tags}, B=32, L={length}"
                table.append(f"| {name} | pytorch-crf {theirs:.1f} ms | {ours:.1f} ms | {theirs / ours:.2f} |")
    bench = (
        Bench(options) if {"train", "eval", "overhead", "tricks", "layers", "precision"} & set(options.only) else None
    )
    if "train" in options.only:
        systems = {
            "ours": bench.ours,
            "bare loop": bench.bare_loop,
            "bare loop with plain heads": bench.bare_loop_plain_heads,
            "Hugging Face Trainer": bench.hugging_face,
            "Hugging Face Trainer, grouped by length": bench.hugging_face_grouped,
        }
        speed = compare(bench, systems, len(bench.train_set), options.rounds)
        for name in list(systems)[1:]:
            table.append(
                f"| training, examples/s | {name} {speed[name]:.1f} | {speed['ours']:.1f} | "
                f"{speed['ours'] / speed[name]:.2f} |"
            )
    if "eval" in options.only:
        speed = compare(
            bench,
            {
                "ours": bench.our_eval,
                "Hugging Face Trainer": bench.hugging_face_eval,
                "Hugging Face Trainer, texts sorted by length": lambda: bench.hugging_face_eval(sorted_test=True),
            },
            len(bench.test_set),
            options.rounds,
        )
        ours = speed.pop("ours")
        for name, peer in speed.items():
            what = "evaluation with span scores, examples/s"
            table.append(f"| {what} | {name} {peer:.1f} | {ours:.1f} | {ours / peer:.2f} |")
    if "overhead" in options.only:
        pairs = []
        for number in range(options.rounds):
            order = (True, False) if number % 2 else (False, True)
            seconds = {bookkeeping: bench.pass_with(bookkeeping) for bookkeeping in order}
            pairs.append((seconds[True], seconds[False]))
            print(f"  round {number}  with bookkeeping {pairs[-1][0]:.2f} s, without {pairs[-1][1]:.2f} s", flush=True)
        extra = statistics.median(a - b for a, b in pairs)
        epoch = statistics.median(b for _, b in pairs) / len(bench.train_set) * bench.rows
        what = "logs, TensorBoard, bar, checkpoints, share of an epoch"
        table.append(f"| {what} | {epoch:.1f} s | {extra:.2f} s more | {extra / epoch:.2%} |")
    if "tricks" in options.only:
        systems, teacher = {"plain": lambda: bench.ours(use_crf=True)}, bench.teacher()
        tricks = TRICKS | {f"{n} teachers": {"teacher": ",".join([teacher] * n)} for n in (1, 4)}
        systems |= {name: lambda change=change: bench.ours(use_crf=True, **change) for name, change in tricks.items()}
        speed = compare(bench, systems, len(bench.train_set), options.rounds)
        for name in tricks:
            table.append(
                f"| a step with {name} ÷ a plain one, both with a CRF | | | {speed['plain'] / speed[name]:.2f} |"
            )
    if "layers" in options.only:
        table += layers(bench, options.rounds)
    if "precision" in options.only:
        table += precisions(bench, options.rounds)
    if "scaling" in options.only:
        table.append(scaling(options))
    if "growth" in options.only:
        table += growth(options)
    if "start" in options.only:
        table += start(options.rounds)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}\n")
    print("\n".join(["| what | peer | this template | ratio |", "| --- | --- | --- | --- |", *table]))


if __name__ == "__main__":
    main()
