"""The search space: options of main.py and their possible values.

    lr=1e-4..1e-3:log head_multiple=3..30:log weight_decay=0..0.1 epochs=3,6,10 use_fgm=True,False

Values are a range or a list; :log after a range selects a logarithmic scale. Two names are not options of main.py:
head_multiple is --head_lr / --lr, and warmup_share is --warmup_epochs / --epochs.
"""

import argparse
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, replace
from types import SimpleNamespace
from typing import Any

from config import Config
from engine.errors import UserError
from engine.run.command_line import choices_of, parse_bool, type_of
from engine.task.task import needs_words
from tools.search.child import SET_BY_SCRIPT

MADE_OF = {"head_multiple": "head_lr", "warmup_share": "warmup_epochs"}
HIGHEST_HEAD_LR = 0.5
# Not allowed in --options, because the search sets them or they do not apply to training
NOT_FOR_TRIALS = [
    *SET_BY_SCRIPT,
    *"do_train do_eval do_predict resume force_resume predict_file predict_output shard monitor".split(),
]


@dataclass(frozen=True)
class Dimension:
    """The values of an option: `choices`, or the range from `low` to `high`."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def __contains__(self, value: object) -> bool:
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        return isinstance(value, int | float) and self.low <= value <= self.high

    def ends(self) -> tuple[Any, ...]:
        """Returns the values to validate. A range is valid if both ends are."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        if self.choices:
            return ",".join(map(str, self.choices))
        return f"{self.low:g}..{self.high:g}" + (":log" if self.log else "")


Space = dict[str, Dimension]
Values = Mapping[str, Any]  # {name: value} for options of main.py, or for a point in the space


# ---- the syntax of --space -------------------------------------------------------------------------------------------


def parse_space(text: str, fields: dict[str, Field], fixed: set[str]) -> tuple[Space, list[str]]:
    """Parses --space. Returns (space, one line per error). fields: {name: field} of the main.py options that trials may
    vary. fixed: names set by --options."""
    space: Space = {}
    errors: list[str] = []
    for item in text.split():
        name, _, values = item.partition("=")
        try:
            if not name or not values:
                raise UserError(f"{item!r} must look like lr=1e-4..1e-3:log or batch_size=16,32")
            if name in space:
                raise UserError(f"{name} is given twice")
            if clash := ({name, MADE_OF.get(name, name)} & fixed) or ({name, MADE_OF.get(name)} & set(space)):
                raise UserError(f"{name}: {clash.pop()} is already set by --options or elsewhere in --space")
            require_known(name, fields)
            space[name] = parse_values(name, values, fields.get(name))
        except UserError as error:
            errors.append(f"--space: {error}")
    return space, errors


def require_known(name: str, fields: dict[str, Field]) -> None:
    """Raises UserError if trials cannot vary this option."""
    if name in NOT_FOR_TRIALS:
        raise UserError(f"{name} is not a hyperparameter; tools.search sets it")
    if name not in fields and name not in MADE_OF:
        similar = difflib.get_close_matches(name, [*fields, *MADE_OF], 1)
        advice = f"; did you mean {similar[0]}?" if similar else "; see python main.py --help"
        raise UserError(f"{name} is not an option of main.py that changes the result{advice}")


def parse_values(name: str, values: str, field: Field | None) -> Dimension:
    """Parses '1e-4..1e-3:log' or '16,32' as a Dimension. field: the field of the option; None for names in MADE_OF."""
    if ".." not in values:
        choices = tuple(parse_value(name, value, field) for value in values.split(","))
        if len(set(choices)) < len(choices) or len(choices) < 2:
            raise UserError(f"{name}={values}: list at least two different values; set a single value with --options")
        return Dimension(choices)
    if field is not None and (type_of(field) not in (int, float) or field.metadata["parse"]):
        example = "True,False" if type_of(field) is bool else ",".join(choices_of(field) or ("a", "b"))
        raise UserError(f"{name}={values}: this option has no ranges; list its values, such as {name}={example}")
    ends, _, scale = values.partition(":")
    low, high = (parse_value(name, end, field) for end in ends.split("..", 1))
    if not low < high:
        raise UserError(f"{name}={values}: the range is empty, because {low:g} is not less than {high:g}")
    if scale not in ("", "log") or values.endswith(":"):
        raise UserError(f"{name}={values}: only :log may follow the range")
    if scale and low <= 0:
        raise UserError(f"{name}={values}: a range with :log must start above 0")
    return Dimension(low=low, high=high, log=scale == "log")


def parse_value(name: str, text: str, field: Field | None) -> Any:
    """Parses a value of an option. Raises UserError if it is invalid."""
    kind: type = float if field is None else type_of(field)
    parse = (field and field.metadata["parse"]) or (parse_bool if kind is bool else kind)
    try:
        value = parse(text)
    except (ValueError, argparse.ArgumentTypeError):
        words = {int: "a whole number", float: "a number", bool: "True or False"}.get(kind, "a valid value")
        raise UserError(f"{name}: {text!r} is not {words}") from None
    if name == "epochs" and value == Config.auto_values()["epochs"]:
        raise UserError("epochs: auto cannot be searched, because it depends on the data; list numbers")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: {text!r} is not finite")
    if field is not None and choices_of(field) and value not in choices_of(field):
        raise UserError(f"{name}: {text!r} must be one of {', '.join(choices_of(field))}")
    return value


# ---- conversion between points of the space and options --------------------------------------------------------------


class Resolver:
    """Converts points of the space to options of main.py. base: Config shared by all trials. kinds: types of the tasks.
    shape: config of the pretrained encoder, or None."""

    def __init__(self, base: Config, kinds: Sequence[str], shape: Any) -> None:
        from engine.train.optimization import learning_rates  # imports torch, which is slow

        self.base, self.kinds, self.shape = base, kinds, shape
        self.lr, self.head_lr = learning_rates(SimpleNamespace(config=shape), base)

    def values(self, point: Values) -> dict[str, Any]:
        """Converts a point to {option of main.py: value}. Omits options that have no effect at this point."""
        values = {name: value for name, value in point.items() if name not in MADE_OF}
        if "head_multiple" in point:
            head_lr = values.get("lr", self.lr) * point["head_multiple"]
            values["head_lr"] = min(rounded(head_lr), HIGHEST_HEAD_LR)
        if "warmup_share" in point:
            values["warmup_epochs"] = rounded(values.get("epochs", self.base.epochs) * point["warmup_share"])
        needs = {field.name: field.metadata["needs"] for field in self.base.__dataclass_fields__.values()}
        on = {name for name in needs if values.get(name, getattr(self.base, name))}
        return {name: value for name, value in values.items() if not needs[name] or on & set(needs[name])}

    def config(self, point: Values) -> Config:
        """Returns the Config of a trial. Raises UserError if the options contradict each other."""
        return replace(self.base, **self.values(point))

    def default(self, space: Space) -> dict[str, Any]:
        """Returns the default values as a point. Omits options whose default is outside the space."""
        from engine.model.encoders import pooling_of
        from engine.train.automatic import resolve_pooling

        pooling, word_pooling = pooling_of(resolve_pooling(self.base, self.kinds), self.shape)
        epochs, warmup = self.base.epochs, self.base.warmup_epochs
        resolved = {
            "lr": self.lr,
            "head_lr": self.head_lr,
            "head_multiple": self.head_lr / self.lr,
            "warmup_epochs": epochs / 10 if warmup is None else warmup,
            "warmup_share": 0.1 if warmup is None or not epochs else warmup / epochs,
            "pooling": pooling,
            "word_pooling": word_pooling,
        }
        point = {}
        for name, dimension in space.items():
            value = getattr(self.base, name, None)
            if value not in dimension:
                value = resolved.get(name, value)
            value = rounded(value) if isinstance(value, float) else value
            if value in dimension:
                point[name] = value
        return point

    def errors(self, space: Space) -> list[str]:
        """Returns one line for each option with a value that main.py would reject or that would have no effect."""
        lines, before = [], set(self.base.unused_options(self.kinds))
        fields = self.base.__dataclass_fields__
        for name, dimension in space.items():
            needs = fields[name].metadata["needs"] if name in fields else []
            searched = [switch for switch in needs if switch in space][:1]
            switches = {switch: next(filter(None, space[switch].ends())) for switch in searched}  # on
            for value in dimension.ends():
                point = {name: value} | switches
                try:
                    idle = set(self.config(point).unused_options(self.kinds)) - before
                    kept = self.values(point)
                except UserError as error:
                    lines.append(f"--space: {name}={value}: {error}")
                    break
                if idle or MADE_OF.get(name, name) not in kept:
                    without = f"has no effect without {' or '.join(needs)}; add it to --options or --space"
                    why = sorted(idle)[0] if idle else without
                    lines.append(f"--space: {name}={value}: {why}")
                    break
        return lines


def rounded(value: float) -> float:
    """Rounds a value to four digits, for readable command lines."""
    return float(f"{value:.4g}")


# ---- the default space -----------------------------------------------------------------------------------------------


def default_space(resolver: Resolver, fixed: set[str]) -> Space:
    """Returns a space around the defaults of the main options for these tasks and this encoder. fixed: names set by
    --options, which are not searched."""
    lr, pretrained = resolver.lr, resolver.shape is not None
    space = {
        "lr": Dimension(low=rounded(lr / 4), high=min(rounded(lr * 4), 0.5), log=True),
        "head_multiple": Dimension(low=3.0 if pretrained else 0.3, high=30.0 if pretrained else 3.0, log=True),
        "batch_size": Dimension(tuple(sorted({16, 32, 64, resolver.base.batch_size}))),
        "warmup_share": Dimension(low=0.0, high=0.3),
        "weight_decay": Dimension(low=0.0, high=0.1),
        "dropout": Dimension(low=0.0, high=0.3 if pretrained else 0.5),
        "scheduler": Dimension(("cosine", "linear")),
    }
    words = [needs_words(kind) for kind in resolver.kinds]
    if resolver.base.encoder == "transformer" and not all(words):
        from engine.train.automatic import resolve_pooling

        chosen = resolve_pooling(resolver.base, resolver.kinds).pooling
        space["pooling"] = Dimension(("auto", "first" if chosen == "mean" else "mean"))
    if any(words):
        space["word_pooling"] = Dimension(("auto", "mean"))
    excluded = fixed | {name for name, of in MADE_OF.items() if of in fixed}
    return {name: dimension for name, dimension in space.items() if name not in excluded}
