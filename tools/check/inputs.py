"""Checks that outputs depend on the right inputs, and checks of devices and precision."""

import copy
import random
import traceback
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from data_loader import Batch
from engine.data.own_inputs import fields_of
from engine.model.encoders import is_causal, num_positions
from engine.run.command_line import first_line
from engine.run.device import random_state, set_random_state
from model_utils import MyModel
from tools.check.case import (
    BY_TOKEN,
    Case,
    Failed,
    Skipped,
    Tensors,
    custom_inputs,
    difference,
    is_own,
    is_usable,
    logits_of,
    padding_mixer,
    require_same,
    with_other_rows,
)


def check_padding(case: Case) -> None:
    model, batch = case.model_and_batch()
    together, fill = logits_of(model, batch.inputs), {"input_ids": case.data.pad_id}
    width = batch.inputs["input_ids"].shape[1] if "input_ids" in batch.inputs else 0
    extra = min(8, (num_positions(model.encoder) or 10**6) - width)
    by_token = {name: tensor for name, tensor in batch.inputs.items() if name in BY_TOKEN}
    padded = {name: pad(tensor, (0, extra), value=fill.get(name, 0)) for name, tensor in by_token.items()}
    error, when = difference(together, logits_of(model, batch.inputs | padded)), f"with {extra} more padding tokens"
    if error is None:
        when = "alone instead of in a batch, that is, without padding,"
        single = [case.batch([row]) for row in case.rows[:8]]
        alone = [logits_of(model, one.inputs) for one in single]
        error = difference({name: torch.cat([logits[name] for logits in alone]) for name in together}, together)
        error = error or difference_in_loss(model, batch, single)
    if error and (name := batch_dependent(batch, case)):
        raise Failed(f"inputs[{name!r}] depends on other rows of the batch; compute each row independently")
    if error and (family := padding_mixer(model.encoder)):
        by_design = f"{family} outputs depend on padding by design"
        case.notes.append(f"{by_design}, so they differ between single and batched inputs: {error}")
    elif error:
        raise Failed(f"{when} {error}")


def batch_dependent(batch: Batch, case: Case) -> str | None:
    """Returns the name of a custom input whose values depend on other rows of the batch, or None."""
    for row, number in enumerate(batch.rows.tolist()):
        for name, alone in custom_inputs(case.batch([number])).items():
            if alone.shape[1:] == batch.inputs[name].shape[1:] and not torch.equal(alone[0], batch.inputs[name][row]):
                return name
    return None


def difference_in_loss(model: MyModel, batch: Batch, single: list[Batch]) -> str | None:
    """Returns a description of the difference between a batch's loss and the sum of its rows' losses, or None."""
    if any(head.compares_rows for head in model.output_layer.heads.values()):
        return None
    counts = model.count_labels(batch.inputs, batch.labels)
    whole, alone = [[model(one.inputs, one.labels, counts).losses for one in group] for group in ([batch], single)]
    for name, loss in whole[0].items():
        rows = float(sum(losses[name] for losses in alone))
        if not abs(rows - float(loss)) <= 1e-3 * max(abs(float(loss)), 1e-3):
            return f"the loss of {name!r} is {float(loss):.4g} in the batch and {rows:.4g} alone"
    return None


def check_order(case: Case) -> None:
    model, batch = case.model_and_batch()
    order = list(range(len(batch.rows)))[::-1]
    inverted = {name: tensor[order] for name, tensor in batch.inputs.items()}
    expected = {name: logits[order] for name, logits in model(batch.inputs).logits.items()}
    require_same("with the texts in another order", expected, model(inverted).logits)


def check_other_rows(case: Case) -> None:
    model, batch = case.model_and_batch()
    device = case.trainer.device
    changed, state = with_other_rows(batch), random_state(device)
    heads = model.output_layer.heads
    for training in (False, True):
        checked = [name for name, head in heads.items() if not (training and head.compares_rows)]
        rows: list[Tensors] = []
        for inputs in (batch.inputs, changed):
            set_random_state(state, device)
            one = copy.deepcopy(model).train(training)  # copied because training mode can change buffers
            logits = one(inputs).logits
            rows.append({name: logits[name][:1] for name in checked})
        mode = "training" if training else "evaluation"
        require_same(f"in {mode}, when the other rows of a batch change,", rows[0], rows[1])
    single = case.batch(case.rows[:1])
    loss = model.train()(single.inputs, single.labels).total_loss
    if not torch.isfinite(loss):
        raise Failed(f"a batch of one text has a loss of {loss.item():g}")


def check_later_words(case: Case) -> None:
    """Checks that later tokens do not change earlier hidden states of a causal encoder."""
    model, batch = case.model_and_batch(4)
    if not is_causal(model.encoder):
        raise Skipped("the encoder is not causal")
    changed = batch.inputs["input_ids"].clone()
    last = batch.inputs["attention_mask"].sum(1) - 1
    changed[range(len(changed)), last] = changed[:, 0]
    first, second = model.encode(batch.inputs), model.encode(batch.inputs | {"input_ids": changed})
    earlier = torch.arange(first.shape[1], device=first.device) < last[:, None]
    if not (first - second)[earlier].abs().max() < 1e-3:
        raise Failed("changing the last token changes earlier hidden states")


def check_determinism(case: Case) -> None:
    model, batch = case.model_and_batch()
    outputs = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            outputs.append(logits_of(model, batch.inputs))
    require_same("between two runs of the same batch", outputs[0], outputs[1], tolerance=1e-5)


def check_own_inputs(case: Case) -> None:
    model, batch = case.model_and_batch()
    custom = custom_inputs(batch)
    if not custom:
        raise Skipped("the model has no inputs in addition to the text")
    require_empty_values(case, model, batch)
    logits, ignored = model(batch.inputs).logits, []
    for name, tensor in custom.items():
        if name.removesuffix("_mask") in custom.keys() - {name}:
            continue  # mask of another input
        columns = list(case.data.featurizer.fields[name].columns) if name == "extras" else []
        for number, column in enumerate(columns or [None]):
            index = (slice(None), number) if column else ()
            changed = tensor.clone()
            changed[index] = tensor[index].flip(0) if not tensor.is_floating_point() else tensor[index].flip(0) + 1.0
            if torch.equal(changed, tensor):
                case.notes.append(f"{name!r} is the same in all tested rows")
            elif difference(logits, model(batch.inputs | {name: changed}).logits, tolerance=1e-7) is None:
                ignored.append(repr(f"{name}: {column}" if column else name))
    if ignored:
        raise Failed(f"custom inputs without effect on any prediction: {', '.join(ignored)}; does a head read them?")


def require_empty_values(case: Case, model: MyModel, batch: Batch) -> None:
    """Raises Failed if the model cannot process id 0 (for names that do not occur in train) or empty lists."""
    for name, field in fields_of(case.trainer.tasks).items():
        if field.dtype == "name":
            changed, value = {name: torch.zeros_like(batch.inputs[name])}, "0 (a name that does not occur in train)"
        elif field.level in ("list", "spans"):
            changed = {one: batch.inputs[one][:, :0] for one in (name, f"{name}_mask")}
            value = "empty in all rows of a batch"
        else:
            continue
        try:
            logits = model(batch.inputs | changed).logits
        except Exception as error:
            raised = f"{type(error).__name__}: {first_line(error)}"
            raise Failed(f"inputs[{name!r}] can be {value}, which raises {raised}") from None
        if not all(map(is_usable, logits.values())):
            raise Failed(f"inputs[{name!r}] can be {value}, for which the logits are not finite")


def check_inputs_unchanged(case: Case) -> None:
    for training in (True, False):
        model, batch = case.model_and_batch(training=training)
        before, modes = copy.deepcopy(batch), [module.training for module in model.modules()]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        output = model(batch.inputs, batch.labels)
        model.decode(output.logits, batch.inputs)
        for after, earlier in ((batch.inputs, before.inputs), (batch.labels, before.labels)):
            for name in after.keys() | earlier.keys():
                is_new_or_missing = name not in after or name not in earlier
                if is_new_or_missing or not torch.equal(after[name].nan_to_num(), earlier[name].nan_to_num()):
                    raise Failed(f"forward or decode changes {name!r} of the batch")
        if modes != [module.training for module in model.modules()]:
            raise Failed("forward or decode calls train() or eval() without restoring the mode")
        wrong = [name for name, old in buffers.items() if not torch.equal(model.get_buffer(name), old)]
        if wrong and not training:
            raise Failed(f"evaluation changes the buffer {wrong[0]}; change it only if self.training")


def check_device(case: Case) -> None:
    """Runs the model with another default device, which makes tensors created without a device cause an error."""
    model, batch = case.model_and_batch(4)
    model(batch.inputs, batch.labels)  # fills caches on the correct device
    try:
        with torch.device("meta"):
            output = model(batch.inputs, batch.labels)
            model.decode(output.logits, batch.inputs)
    except Exception as error:
        in_torch = Path(torch.__file__).parent
        frames = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in frames if not Path(frame.filename).is_relative_to(in_torch)][-1]
        if not is_own(last.filename):  # raised by another library
            raise Skipped(f"this encoder cannot be checked ({first_line(error)})") from None
        line = f"{Path(last.filename).name}:{last.lineno} ({last.line})"
        raise Failed(f"{line} uses a tensor created without device= ({first_line(error)})") from None
    device = next(iter(batch.inputs.values())).device  # including the device index
    if wrong := [name for name, logits in output.logits.items() if logits.device != device]:
        raise Failed(f"the logits of {wrong[0]!r} are not on the device of the inputs")


def check_half_precision(case: Case) -> None:
    model, batch = case.model_and_batch()
    dtype, device = case.trainer.dtype or torch.bfloat16, case.trainer.device
    full = logits_of(model, batch.inputs)
    with torch.autocast(device.type, dtype):
        half = logits_of(model, batch.inputs)
    for name, logits in full.items():
        finite = torch.isfinite(logits)
        if not torch.equal(torch.isfinite(half[name]), finite):
            raise Failed(f"in {dtype} the logits of {name!r} are not finite")
        gap = float((half[name] - logits)[finite].abs().mean() / logits[finite].abs().mean().clamp(min=0.3))
        if not gap <= 0.15:
            raise Failed(f"in {dtype} the logits of {name!r} differ by {gap:.0%} from full precision")
