"""Counts, on any machine, the kernels that would be launched on a GPU.

Counts the operations that reach PyTorch's dispatcher, forward and backward, except those that only create a view or
allocate memory. An operation may launch several kernels (a padded copy is a fill and a copy), so the counts are lower
bounds.
"""

from collections import Counter
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.task.task import IGNORE, Task
from model_utils import HeadOptions, MyModel

NO_KERNEL = set(
    "view _unsafe_view _reshape_alias t transpose permute expand unsqueeze squeeze slice select split split_with_sizes "
    "unbind unfold as_strided diagonal detach alias lift_fresh "
    "empty empty_like new_empty empty_strided new_empty_strided".split()
)
LENGTHS = (32, 128, 512)


class LaunchCounter(TorchDispatchMode):
    """Counts the operations that launch a kernel while it is active. counts: {operation: number of calls}"""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in NO_KERNEL:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


class HiddenStates(nn.Module):
    """An encoder whose input is its output."""

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=input_ids)


def model_of(use_crf, num_tags, hidden_size=64):
    """Returns a joint model (intents and slots) whose input is hidden states."""
    tasks = {
        "intent": Task("classification", tuple("abcdefgh")),
        "slots": Task("tagging", tuple(f"B-{i}" for i in range(num_tags))),
    }
    return MyModel(HiddenStates(), hidden_size, tasks, HeadOptions(use_crf=use_crf))


def case(batch, length, num_tags, hidden_size=64):
    """Returns random (inputs, labels) for texts of up to `length` words, one token each."""
    lengths = torch.randint(1, length + 1, (batch, 1))
    lengths[0] = length
    mask = torch.arange(length) < lengths
    inputs = {
        "attention_mask": mask.long(),
        "word_mask": mask,
        "word_starts": torch.arange(length).expand(batch, -1) * mask,
    }
    slots = torch.where(mask, torch.randint(num_tags, mask.shape), IGNORE)
    labels = {"intent": torch.randint(8, (batch,)), "slots": slots}
    inputs["input_ids"] = torch.randn(batch, length, hidden_size, requires_grad=True)
    return inputs, labels


def count(use_crf, length, num_tags, batch=4, on_gpu=True, largest=0.1):
    """Returns (launches of the heads in a training step, launches of decoding). on_gpu: use the GPU code paths, not the
    CPU's sequential ones. largest: value of the transitions."""
    torch.manual_seed(0)
    model, (inputs, labels) = model_of(use_crf, num_tags), case(batch, length, num_tags)
    if use_crf:
        crf = model.output_layer.heads["slots"].crf
        crf.launch_free = () if on_gpu else ("cpu",)
        nn.init.constant_(crf.transitions, largest)
    with LaunchCounter() as step:
        output = model(inputs, labels)
        output.total_loss.backward()
    with torch.no_grad(), LaunchCounter() as decode:
        model.output_layer.heads["slots"].decode(output.logits["slots"], inputs)
    return step.counts.total(), decode.counts.total()


def rows(many=120, few=9):
    """Returns the lines of a table: launches of the heads in a training step, and of decoding tags, by scan and
    sequentially."""
    table = [
        "| words | heads without a CRF | with a CRF | added by the CRF | added by a sequential CRF "
        f"| decoding, {few} tags | decoding, {many} tags | decoding, sequential |",
        "| --- " * 8 + "|",
    ]
    for length in LENGTHS:
        plain, _ = count(False, length, many)
        crf, decode_many = count(True, length, many, batch=32)
        loop, decode_loop = count(True, length, many, on_gpu=False)
        _, decode_few = count(True, length, few)
        numbers = length, plain, crf, crf - plain, loop - plain, decode_few, decode_many, decode_loop
        table.append("| " + " | ".join(map(str, numbers)) + " |")
    return table
