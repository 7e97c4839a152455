"""Reproduces on your GPU, in at most eight minutes, the measurements that this template reports for GPUs.

    python benchmarks/gpu.py [--pretrain_model_path FOLDER] [--minutes 8]

It needs no data and downloads nothing: texts are random words, and the large encoder has BERT-base's shape and random
weights. The small encoder has MiniLM's shape, or is loaded from FOLDER. Baselines: Hugging Face's Trainer with its best
settings (bf16, fused AdamW, grouped by length, with and without torch.compile) and pytorch-crf. Rounds are interleaved,
the first is a warm-up, and values are medians. Measurements that do not fit into the time limit are skipped, and marked
in the table. Without a GPU, everything runs on the CPU at tiny sizes, only to test the script. Memory, compilation and
host synchronisation are measured only on CUDA; other accelerators use the CPU's sizes.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torchcrf
import transformers
from speed import Bench
from transformers import BertConfig, BertModel, TrainerCallback, set_seed

from config import Config
from data_process import DataConfig, process
from engine.data.tokenizer import train_tokenizer
from engine.model import viterbi
from engine.model.crf import CRF
from engine.run.device import name_of, synchronize, to_device
from main import build_trainer, load_data

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {  # name: layers, hidden size, attention heads, feed-forward size
    "BERT-base": (12, 768, 12, 3072),
    "MiniLM": (6, 384, 12, 1536),
}


def sizes_for(device):
    if device.type == "cuda":
        kinds = dict(matmul=8192, steps=100, batch=32, kinds=60, crf=((9, 50), (9, 512), (120, 50), (120, 512)))
        return SimpleNamespace(**kinds, precision="bf16", rounds=3, repeats=10, longest=100, shrink=1)
    kinds = dict(matmul=512, steps=6, batch=8, kinds=5, crf=((9, 50), (9, 128), (20, 50)))
    return SimpleNamespace(**kinds, precision="fp32", rounds=1, repeats=3, longest=40, shrink=8)


class Clock:
    """Measures the seconds of an operation on this device, and the seconds left in total."""

    def __init__(self, device, minutes):
        self.device, self.end = device, time.monotonic() + 60 * minutes

    def left(self):
        return self.end - time.monotonic()

    def now(self):
        synchronize(self.device)
        return time.perf_counter()

    def seconds(self, function):
        began = self.now()
        function()
        return self.now() - began


def interleaved(calls, rounds, clock, reserve, first=0.0):
    """Runs the calls in turn. Returns {name: median of the results} for calls that reached a second round.

    reserve: seconds to reserve for later measurements. first: maximum seconds of a call's first round.
    """
    values, took = {name: [] for name in calls}, dict.fromkeys(calls, first)
    for number in range(rounds + 1):
        for name, call in calls.items():
            if clock.left() - reserve < took[name]:
                continue
            began = time.monotonic()
            values[name].append(call())
            took[name] = time.monotonic() - began
            print(f"  round {number}  {name:<60} {values[name][-1]:12.2f}", flush=True)
    return {name: statistics.median(found[1:]) for name, found in values.items() if len(found) > 1}


# ---- data and encoders -----------------------------------------------------------------------------------------------


def make_data(folder, rows, kinds, longest):
    """Writes a processed folder with texts of random words, intents and 2 * kinds + 1 tags."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(4000)]
    tags = ["O"] * kinds + [f"B-{kind}" for kind in range(kinds)]
    lines = []
    for number in range(rows + 128):
        length = min(longest, 3 + int(rng.lognormvariate(2.8, 0.6)))
        slots = [rng.choice(tags) for _ in range(length)]
        for t in range(1, length):
            if slots[t - 1] != "O" and rng.random() < 0.3:
                slots[t] = "I" + slots[t - 1][1:]
        row = dict(tokens=rng.choices(words, k=length), intent=f"intent{rng.randrange(20)}", slots=slots)
        lines.append(json.dumps(row | {"split": ["train", "dev", "test"][max(0, (number - rows) // 64 + 1)]}))
    raw = folder / "raw.jsonl"
    raw.write_text("\n".join(lines) + "\n", encoding="utf-8")
    process(DataConfig(input=str(raw), output_dir=str(folder / "data")))
    return folder / "data"


def make_encoder(folder, shape, data):
    """Writes a folder with a randomly initialised encoder of this shape, and a tokenizer trained on these texts."""
    layers, width, heads, between = shape

    def texts():
        lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
        return (" ".join(json.loads(line)["tokens"]) for line in lines)

    set_seed(0)
    tokenizer = train_tokenizer(texts, 30522)
    shape = BertConfig(
        vocab_size=30522,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=between,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(shape, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- training --------------------------------------------------------------------------------------------------------


class Ours:
    """This template, built like in main.py. `run` trains one epoch."""

    def __init__(self, data, encoder, device, sizes, **changes):
        options = dict(data_path=str(data), output_dir=str(data.parent), model_version="gpu", log_steps=10)
        options |= dict(pretrain_model_path=str(encoder), batch_size=sizes.batch, precision=sizes.precision)
        options |= dict(epochs=1, use_crf=False)
        self.config = Config(**(options | changes))
        self.config.run_dir.mkdir(exist_ok=True)
        set_seed(0)
        self.trainer = build_trainer(load_data(self.config, device), device)
        self.epoch = 0

    def run(self, clock):
        self.trainer.progress.batch = 0
        seconds = clock.seconds(lambda: self.trainer.train_one_epoch(self.epoch))
        self.epoch += 1
        return seconds

    def tokens(self):
        return int(self.trainer.train_loader.dataset.lengths.sum())

    def flops(self):
        """Returns the encoder's FLOPs per epoch, forward and backward: 6 per token and layer weight, plus attention."""
        encoder, lengths = self.trainer.model.encoder, self.trainer.train_loader.dataset.lengths.astype(float)
        weights = sum(p.numel() for name, p in encoder.named_parameters() if "embeddings" not in name)
        shape = encoder.config
        attention = 12 * shape.num_hidden_layers * shape.hidden_size * (lengths**2).sum()
        return 6 * weights * lengths.sum() + attention


class HuggingFace:
    """Hugging Face's Trainer with the same model, rows and batch size. `run` trains one epoch; the first call may
    compile."""

    def __init__(self, data, encoder, device, sizes, compiled):
        options = dict(data_path=data, pretrain_model_path=str(encoder), device=str(device), seed=0)
        bench = Bench(SimpleNamespace(**options, batch_size=sizes.batch, examples=10**9))
        best = dict(bf16=sizes.precision == "bf16", optim="adamw_torch_fused", torch_compile=compiled)
        self.trainer, _ = bench.hugging_face_trainer("group_by_length", num_train_epochs=1, **best)

    def run(self, clock):
        took = []

        class Epoch(TrainerCallback):
            def on_epoch_begin(self, *args, **kwargs):
                took.append(clock.now())

            def on_epoch_end(self, *args, **kwargs):
                took.append(clock.now())

        callback = Epoch()
        self.trainer.add_callback(callback)
        self.trainer.train()
        self.trainer.remove_callback(callback)
        return took[1] - took[0]


class Lane:
    """One system to measure. It is built when it first runs, so that its memory use can be measured."""

    def __init__(self, build, clock):
        self.build, self.clock, self.system, self.memory = build, clock, None, None

    def __call__(self):
        cuda = self.clock.device.type == "cuda"
        if self.system is not None:
            return self.system.run(self.clock)
        before = torch.cuda.memory_allocated() if cuda else 0
        self.system = self.build()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = self.system.run(self.clock)
        self.memory = (torch.cuda.max_memory_allocated() - before) / 1e9 if cuda else None
        return seconds


def training_rows(name, data, encoder, device, sizes, clock, peak, reserve):
    """Measures training with one encoder. Returns table rows: tokens per second, share of the matmul peak, memory."""
    with_compile = device.type == "cuda"
    lanes = {"this template": lambda: Ours(data, encoder, device, sizes)}
    if with_compile:
        lanes["this template, `--compile`"] = lambda: Ours(data, encoder, device, sizes, compile=True)
    lanes["this template, `--use_crf`"] = lambda: Ours(data, encoder, device, sizes, use_crf=True)
    lanes["Hugging Face Trainer"] = lambda: HuggingFace(data, encoder, device, sizes, False)
    if with_compile:
        lanes["Hugging Face Trainer, torch_compile"] = lambda: HuggingFace(data, encoder, device, sizes, True)
    lanes = {f"{name}, {lane}": Lane(build, clock) for lane, build in lanes.items()}
    seconds = interleaved(lanes, sizes.rounds, clock, reserve, first=60 if with_compile else 0)
    ours, rows = lanes[f"{name}, this template"].system, []
    for lane, system in lanes.items():
        if lane not in seconds:
            rows.append(f"| {lane} | not measured: out of time | | |")
            continue
        share = f"{ours.flops() / seconds[lane] / peak:.0%}"
        memory = "" if system.memory is None else f"{system.memory:.2f} GB"
        rows.append(f"| {lane} | {ours.tokens() / seconds[lane]:,.0f} tokens/s | {share} | {memory} |")
    return rows


def sync_row(data, encoder, device, sizes):
    """Returns a table row: whether the host waits for the GPU in a training step (torch then raises an error)."""
    if device.type != "cuda":
        return "| host waits in training steps with a CRF | not measured: no GPU | | |"
    ours = Ours(data, encoder, device, sizes, use_crf=True, log_steps=10**9)
    ours.trainer.train_one_epoch(0)
    ours.trainer.progress.batch = 0
    steps = min(50, len(ours.trainer.train_loader))
    found, torch_mode = "none", torch.cuda.get_sync_debug_mode()
    try:
        ours.trainer.stop.check = lambda: steps_done(ours.trainer, steps)
        ours.trainer.train_one_epoch(1)
    except StopIteration:
        pass
    except RuntimeError as error:
        found = f"yes: {str(error).splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode(torch_mode)
    return f"| host waits in {steps - 1} training steps with a CRF | {found} | | |"


def steps_done(trainer, steps):
    """Forbids synchronisation after the first step, in which the CRF reads its largest transition."""
    torch.cuda.set_sync_debug_mode("error")
    if trainer.progress.batch >= steps:
        raise StopIteration


# ---- the CRF ---------------------------------------------------------------------------------------------------------


def crf_rows(device, sizes, clock, reserve, batch=32):
    """Measures the CRF's loss with backward, and decoding: by scan, sequentially and with pytorch-crf. Returns table
    rows."""
    rows = []
    for num_tags, length in sizes.crf:
        torch.manual_seed(0)
        crf = CRF([f"B-{i}" for i in range(num_tags)]).to(device)
        peer = torchcrf.CRF(num_tags, batch_first=True).to(device)
        peer.load_state_dict(crf.state_dict())
        emissions = torch.randn(batch, length, num_tags, device=device, requires_grad=True)
        tags = torch.randint(num_tags, (batch, length), device=device)
        mask = torch.arange(length, device=device) < torch.randint(5, length + 1, (batch, 1), device=device)
        mask[0] = True
        case = crf, peer, emissions, tags, mask
        calls = {
            name: lambda run=run, case=case: 1000 * statistics.median(clock.seconds(lambda: run(*case)) for _ in "abc")
            for name, run in CRF_CALLS.items()
            if name != "decoding, by scan" or viterbi.is_for_scan(batch, num_tags)
        }
        found = interleaved(calls, sizes.repeats, clock, reserve)
        sizes_text = f"CRF, {num_tags} tags, {batch} texts of up to {length} words"
        rows += [f"| {sizes_text}, {name} | {ms:.2f} ms | | |" for name, ms in found.items()]
    return rows


def loss_by(scan):
    def loss(crf, peer, emissions, tags, mask):
        crf.takes_scan = lambda emissions: scan
        (crf.log_partition(emissions, mask) - crf.path_score(emissions, tags, mask)).sum().backward()

    return loss


def decode_by(way):
    def decode(crf, peer, emissions, tags, mask):
        with torch.no_grad():
            way(emissions, crf.start_transitions, crf.transitions, crf.end_transitions, mask)

    return decode


def decode_by_loop(crf, peer, emissions, tags, mask):
    crf.launch_free = (emissions.device.type,)
    crf.viterbi(emissions, mask)


CRF_CALLS = {
    "loss, by scan": loss_by(scan=True),
    "loss, sequential": loss_by(scan=False),
    "loss, pytorch-crf": lambda crf, peer, emissions, tags, mask: (-peer(emissions, tags, mask)).backward(),
    "decoding, by scan": decode_by(viterbi.by_scan),
    "decoding, three launches per word": decode_by(viterbi.by_words),
    "decoding, sequential": decode_by_loop,
    "decoding, pytorch-crf": lambda crf, peer, emissions, tags, mask: peer.decode(emissions, mask),
}


# ---- resuming --------------------------------------------------------------------------------------------------------


def resume_row(data, folder, device, clock, reserve):
    """Returns a table row: whether resuming a killed run is bit-exact."""
    flags = ["--do_train", "--resume", "--deterministic", "--use_crf", "--data_path", data, "--output_dir", folder]
    flags += ["--hidden_size", 64, "--num_layers", 2, "--epochs", 4, "--batch_size", 16, "--save_steps", 3]
    flags += ["--log_steps", 2, "--device", device, "--precision", "bf16" if device.type == "cuda" else "fp32"]

    def start(name):
        command = [sys.executable, ROOT / "main.py", *flags, "--model_version", name]
        return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def sums(name):
        files = ("checkpoints/best/weights.safetensors", "metrics.jsonl")
        return [hashlib.sha256((folder / name / file).read_bytes()).hexdigest() for file in files]

    killed = start("stopped")
    while killed.poll() is None and not any((folder / "stopped/checkpoints").glob("step_*/args.json")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    for name in ("stopped", "whole"):
        process = start(name)
        try:
            _, errors = process.communicate(timeout=max(1, clock.left() - reserve))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return "| bit-exact resume with `--deterministic` | not measured: out of time | | |"
        if process.returncode:
            return f"| bit-exact resume with `--deterministic` | no: {errors.splitlines()[-1]} | | |"
    same = "yes" if sums("stopped") == sums("whole") else "NO"
    was = "killed" if killed.returncode == -signal.SIGKILL else "not killed in time"
    return f"| bit-exact resume with `--deterministic` (weights, log; the run was {was}) | {same} | | |"


# ---- main ------------------------------------------------------------------------------------------------------------


def matmul_peak(device, sizes, clock):
    """Returns the operations per second of a large matrix product in the training precision."""
    dtype = torch.bfloat16 if sizes.precision == "bf16" else torch.float32
    one, other = (torch.randn(sizes.matmul, sizes.matmul, device=device, dtype=dtype) for _ in range(2))
    times = [clock.seconds(lambda: one @ other) for _ in range(20)]
    return 2 * sizes.matmul**3 / statistics.median(times[5:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain_model_path", help="the small encoder (default: MiniLM's shape with random weights)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=8)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    device = to_device(options.device)
    sizes, clock = sizes_for(device), Clock(device, options.minutes)
    cuda = device.type == "cuda"
    what = name_of(device) if device.type != "cpu" else "NO GPU: run on the CPU at tiny sizes, speeds are meaningless"
    print(f"{what}; torch {torch.__version__}, {sizes.precision}, batches of {sizes.batch}\n", flush=True)
    budget = 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data = make_data(folder, sizes.steps * sizes.batch, sizes.kinds, sizes.longest)
        peak = matmul_peak(device, sizes, clock)
        table = [f"| product of two {sizes.matmul} × {sizes.matmul} matrices | {peak / 1e12:.2f} TFLOP/s | 100% | |"]
        table.append(resume_row(data, folder, device, clock, 0.75 * budget))
        table += crf_rows(device, sizes, clock, 0.65 * budget)
        for number, (name, shape) in enumerate(SHAPES.items()):
            encoder = options.pretrain_model_path if name == "MiniLM" else None
            smaller = tuple(max(1, part // sizes.shrink) for part in (shape[0], shape[1], shape[1], shape[3]))
            shape = shape if sizes.shrink == 1 else (*smaller[:2], 4, smaller[3])
            encoder = encoder or make_encoder(folder / name, shape, data)
            if number == 0:
                table.append(sync_row(data, encoder, device, sizes))
            table += training_rows(name, data, encoder, device, sizes, clock, peak, 0.3 * budget * (1 - number))
            if cuda:
                torch.cuda.empty_cache()
        print(f"\n{what}; torch {torch.__version__}, {sizes.precision}, batches of {sizes.batch}\n")
        print("\n".join(["| what | | share of the matmul peak | peak memory |", "| --- | --- | --- | --- |", *table]))


if __name__ == "__main__":
    main()
