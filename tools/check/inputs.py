"""Checks that outputs depend only on the right inputs, and checks of devices and precision."""

import copy
import random
import traceback
from pathlib import Path

import torch
from torch.nn.functional import pad

from engine.model.encoders import is_causal, num_positions
from engine.run.command_line import first_line
from engine.run.device import random_state, set_random_state
from tools.check.case import Case, Failed, Skipped, difference, is_own, logits_of, padding_mixer, require_same, shorten


def check_padding(case: Case) -> None:
    model, batch = case.model_and_batch()
    together, fill = logits_of(model, batch.inputs), {"input_ids": case.data.pad_id}
    extra = min(8, (num_positions(model.encoder) or 10**6) - batch.inputs["input_ids"].shape[1])
    by_token = {name: batch.inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    padded = {name: pad(tensor, (0, extra), value=fill.get(name, 0)) for name, tensor in by_token.items()}
    wrong = difference(together, logits_of(model, batch.inputs | padded))
    if wrong is None:
        alone = [logits_of(model, case.batch([row]).inputs) for row in case.rows[:8]]
        wrong = difference({name: torch.cat([logits[name] for logits in alone]) for name in together}, together)
    if wrong and (family := padding_mixer(model.encoder)):
        by_design = f"{family} mixes padding into its answers by design"
        case.notes.append(f"{by_design}, so single and batched inputs give different outputs: {wrong}")
    elif wrong:
        raise Failed(f"with {extra} more padding tokens, or alone instead of in a batch, {wrong}")


def check_order(case: Case) -> None:
    model, batch = case.model_and_batch()
    order = list(range(len(batch.rows)))[::-1]
    inverted = {name: tensor[order] for name, tensor in batch.inputs.items()}
    expected = {name: logits[order] for name, logits in model(batch.inputs).logits.items()}
    require_same("with the texts in another order", expected, model(inverted).logits)


def check_other_rows(case: Case) -> None:
    model, batch = case.model_and_batch()
    device = case.trainer.device
    changed = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    mask = batch.inputs["attention_mask"].bool()
    ids, other_rows = batch.inputs["input_ids"][mask], mask.clone()
    other_rows[0] = False
    drawn = torch.randint(len(ids), (int(other_rows.sum()),), generator=torch.Generator().manual_seed(0))
    changed["input_ids"][other_rows] = ids[drawn.to(device)]
    for name in case.data.featurizer.fields:
        changed[name][1:] = moved(changed[name])[1:]
    for mode in ("evaluation", "training"):
        model.train(mode == "training")
        state = random_state(device)
        before = model(batch.inputs).logits
        set_random_state(state, device)
        after = model(changed).logits
        first, second = [{name: tensor[:1] for name, tensor in logits.items()} for logits in (before, after)]
        require_same(f"in {mode}, when the other texts of a batch change,", first, second)
    model.train()
    single = case.batch(case.rows[:1])
    loss = model(single.inputs, single.labels).total_loss
    if not torch.isfinite(loss):
        raise Failed(f"a batch of one text has a loss of {loss.item():g}")


def moved(values: torch.Tensor) -> torch.Tensor:
    """Returns other valid values of an own input: numbers plus 1; ids and bools of the rows in reverse order."""
    return values + 1.0 if values.is_floating_point() else values.flip(0)


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
            outputs.append(logits_of(model, batch.inputs))
    require_same("between two runs of the same batch", outputs[0], outputs[1], tolerance=1e-5)


def check_extras(case: Case) -> None:
    model, batch = case.model_and_batch()
    fields = case.data.featurizer.fields
    if not fields:
        raise Skipped("the data has no own inputs")
    logits, ignored = model(batch.inputs).logits, []
    for name, field in fields.items():
        of_columns = name == "extras"  # each of its columns is an input of its own
        for number, column in enumerate(field.columns if of_columns else [name]):
            changed = batch.inputs[name].clone()
            part = changed[:, number] if of_columns else changed
            part.copy_(moved(part))
            if difference(logits, model(batch.inputs | {name: changed}).logits, tolerance=1e-7) is None:
                ignored.append(column)
    if ignored:
        raise Failed(f"no answer changes when {shorten(ignored)} change; no head reads them")


def check_inputs_unchanged(case: Case) -> None:
    model, batch = case.model_and_batch(training=True)
    before = copy.deepcopy(batch)
    output = model(batch.inputs, batch.labels)
    model.decode(output.logits, batch.inputs)
    for part, earlier in ((batch.inputs, before.inputs), (batch.labels, before.labels)):
        for name in part.keys() | earlier.keys():
            is_new_or_missing = name not in part or name not in earlier
            if is_new_or_missing or not torch.equal(part[name].nan_to_num(), earlier[name].nan_to_num()):
                raise Failed(f"forward or decode changes {name!r} of the batch")


def check_device(case: Case) -> None:
    """Changes the default device, so tensors that are created without a device cause an error."""
    model, batch = case.model_and_batch(4)
    model(batch.inputs, batch.labels)  # fills lazy caches on the right device
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
        raise Failed(f"{line} uses a tensor that was created without a device ({first_line(error)})") from None
    if wrong := [name for name, logits in output.logits.items() if logits.device != batch.inputs["input_ids"].device]:
        raise Failed(f"the logits of {wrong[0]!r} are not on the device of the inputs")


def check_half_precision(case: Case) -> None:
    model, batch = case.model_and_batch()
    dtype, device = case.trainer.dtype or torch.bfloat16, case.trainer.device
    full = logits_of(model, batch.inputs)
    with torch.autocast(device.type, dtype):
        half = logits_of(model, batch.inputs)
    for name, logits in full.items():
        if not torch.isfinite(half[name]).all():
            raise Failed(f"in {dtype} the logits of {name!r} are not finite")
        gap = float((half[name] - logits).abs().mean() / logits.abs().mean().clamp(min=0.3))
        if not gap <= 0.15:
            raise Failed(f"in {dtype} the logits of {name!r} differ by {gap:.0%} from full precision")
