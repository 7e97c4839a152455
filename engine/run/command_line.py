"""Builds the command line from a dataclass, with a flag for each field. A user error is one line with exit code 2."""

import argparse
import dataclasses
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from engine.errors import UserError
from engine.run import flags
from engine.run.launch import claims_error_report, end_process, is_launched, local_rank
from engine.run.signals import Interrupted

VERSION = (Path(__file__).resolve().parents[2] / "VERSION").read_text(encoding="utf-8").strip()
MAX_COUNTED = 10**9  # limit for epochs, steps, examples, …: libraries accept at most 2**31 or 2**63
# Escape sequences, control characters except \t and \n, bidirectional controls, and Unicode line separators
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def printable(text: str) -> str:
    """Escapes characters that would control a terminal or start a new line, such as \\x1b."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """`printable`, on a single line: a file name may contain line breaks."""
    return printable(text).replace("\n", "\\n")


def first_line(error: BaseException) -> str:
    """The first line of another library's error, for a one-line message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


OS_ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "free some space, or choose another location",
    errno.EFBIG: "free some space, or choose another location",
    errno.EDQUOT: "free some space, or choose another location",
    errno.EACCES: "make it readable and writable, or choose another location",
    errno.EPERM: "make it readable and writable, or choose another location",
    errno.EROFS: "nothing can be written there: choose another location",
    errno.EEXIST: "something with that name is in the way: move or remove it",
    errno.ENOTDIR: "a part of that path is a file: move it, or choose another location",
    errno.EISDIR: "that is a folder: choose a file",
    errno.ENOENT: "check the name",
    errno.ELOOP: "a symbolic link with that name is in the way: remove it, or choose another location",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def os_error_line(error: OSError) -> str:
    """An operating-system error as one line: the file, the problem, what to do."""
    if error.filename is None or error.strerror is None:
        return first_line(error)
    advice = OS_ADVICE.get(error.errno)
    return f"{error.filename2 or error.filename}: {error.strerror.lower()}" + (f"; {advice}" if advice else "")


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float = float("inf"),
    exclusive: bool = False,
    resume_safe: bool = False,
    auto: Any = dataclasses.MISSING,
    group: str | None = None,
    aliases: Sequence[str] = (),
    needs: str = "",
    parse: Callable[[str], Any] | None = None,
    choices: Sequence[str] = (),
    positional: str = "",
) -> Any:
    """A dataclass field that becomes a flag. Its annotation gives the type; a `Literal` lists its choices.

    low, high: bounds of a number, inclusive unless `exclusive`. resume_safe: a run can be resumed with another value,
    since it does not change the result. auto: the value that engine/train/automatic.py replaces. group: starts a
    section of `--help`. aliases: other names of the flag. needs: switches, at least one of which must be on for the
    option to have an effect. parse: text -> value, if the type alone is not enough. choices: choices known only at run
    time. positional: name in `--help` of an argument that is one or more words without a flag.
    """
    metadata: dict[str, Any] = dict(
        help=help, low=low, high=high, exclusive=exclusive, resume_safe=resume_safe, group=group
    )
    metadata |= dict(
        auto=auto, aliases=aliases, needs=needs.split(), parse=parse, choices=tuple(choices), positional=positional
    )
    return field(default=default, metadata=metadata)


def choices_of(option_field: dataclasses.Field) -> tuple[str, ...]:
    """The values that an option can take; () if any value is allowed."""
    return get_args(option_field.type) if get_origin(option_field.type) is Literal else option_field.metadata["choices"]


def type_of(option_field: Any) -> type:
    """The type of an option's value, or of each of several: int for `int | None`, str for `Literal["a"]`."""
    if get_origin(option_field.type) is Literal:
        return str
    kinds = [kind for kind in get_args(option_field.type) if kind not in (type(None), Ellipsis)]
    return kinds[0] if kinds else option_field.type


def parse_bool(text: str) -> bool:
    """'True', 'yes', '1', … -> True and 'False', 'no', '0', … -> False (plain `type=bool` reads 'False' as true)."""
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(str(text).lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return value


def parse_layers(text: str) -> int:
    """'True' or 'all' -> -1 (the whole encoder), 'False' -> 0 (nothing), otherwise a number of layers."""
    named = {"true": -1, "all": -1, "false": 0}.get(str(text).lower())
    if named is None and not str(text).isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of layers nor 'all' nor False")
    return int(text) if named is None else named


def parse_epochs(text: str) -> int:
    """'auto' -> -1 (resolved by engine/train/automatic.py), otherwise a number of epochs."""
    if text != "auto" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of epochs nor 'auto'")
    return -1 if text == "auto" else int(text)


def check_values(config: Any) -> None:
    """Raises UserError unless each option is one of its choices, or within its bounds. A whole number without an upper
    bound may be at most MAX_COUNTED."""
    for option_field in dataclasses.fields(config):
        value, bounds = getattr(config, option_field.name), option_field.metadata
        low, high, literal = bounds["low"], bounds["high"], get_origin(option_field.type) is Literal
        if literal and value not in choices_of(option_field):
            raise UserError(f"--{option_field.name}={value} must be one of {', '.join(choices_of(option_field))}")
        if value is None or low is None:
            continue
        if isinstance(value, int) and high == float("inf"):
            high = MAX_COUNTED
        inside = low < value < high if bounds["exclusive"] else low <= value <= high
        if not inside or value == float("inf"):
            bounded = bounds["high"] < float("inf") or value > high
            must = f"lie between {low} and {high}" if bounded else f"be a number of at least {low}"
            raise UserError(f"--{option_field.name}={str(value)[:30]} must {must}")


def options_without_switch(config: Any) -> list[str]:
    """One line per option that has no effect because its switches are off, or that leaves its switch without effect."""
    unused = []
    for option_field in dataclasses.fields(config):
        name, value, switches = option_field.name, getattr(config, option_field.name), option_field.metadata["needs"]
        use = " or ".join(f"--{switch}" for switch in switches)
        on = any(getattr(config, switch) for switch in switches)
        if switches and not on and value != option_field.default:
            shown = value if isinstance(value, str | bool) else f"{value:g}"
            unused.append(f"--{name}={shown} has no effect without {use}")
        if on and value == 0 and value != option_field.default and not name.endswith("start"):
            unused.append(f"--{name}=0 leaves {use} without effect")
    return unused


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description, which contains commands to copy."""


class OneLineParser(flags.OneLineParser):
    """Of several processes started by torchrun, only the first reports."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, None if local_rank() else one_line(f"error: {message} (--help lists all flags)") + "\n")


def own_first(config_class: type) -> list[dataclasses.Field]:
    """The fields of a dataclass, its own before those that it inherits."""
    depths = {n: depth for depth, c in enumerate(config_class.__mro__) for n in vars(c).get("__annotations__", ())}
    return sorted(dataclasses.fields(config_class), key=lambda f: depths[f.name])


def parse_args(config_class: type, argv: Sequence[str] | None = None) -> Any:
    """Parses the command line into a dataclass of `option`s; exits with code 2 if a flag is wrong."""
    words = [f.metadata["positional"] for f in dataclasses.fields(config_class) if f.metadata["positional"]]
    parser = OneLineParser(
        description=sys.modules["__main__"].__doc__,
        usage=" ".join(["%(prog)s", *(f"{word} {word} ..." for word in words), "[--flag VALUE] ..."]),
        allow_abbrev=False,
        formatter_class=lambda prog: HelpFormatter(prog, max_help_position=32, width=120),
    )
    parser.add_argument("--version", action="version", version=VERSION, help="show the version and exit")
    section: Any = parser
    for f in own_first(config_class):
        meta = f.metadata
        if meta["group"]:
            section = parser.add_argument_group(meta["group"])
        flags = [f"--{name}" for name in (f.name, *meta["aliases"])]
        shown = "" if f.default is None or f.default is False or f.default in ("", (), -1) else f" [{f.default}]"
        described = dict(dest=f.name, default=f.default, help=meta["help"] + shown)
        if meta["positional"]:
            parser.add_argument(f.name, nargs="+", metavar=meta["positional"], help=meta["help"])
        elif f.type is bool:
            section.add_argument(*flags, type=parse_bool, nargs="?", const=True, metavar="BOOL", **described)
            section.add_argument(
                f"--no_{f.name}",
                dest=f.name,
                action="store_const",
                const=False,
                default=f.default,
                help=argparse.SUPPRESS,
            )
        else:
            several = {"nargs": "+", "metavar": "NAME"} if get_origin(f.type) is tuple else {}
            kinds = {"type": meta["parse"] or type_of(f), "choices": choices_of(f) or None}
            section.add_argument(*flags, **kinds, **several, **described)
    try:
        return config_class(**vars((parser.parse_intermixed_args if words else parser.parse_args)(argv)))
    except UserError as error:
        parser.error(str(error))


OUT_OF_MEMORY = (
    "out of GPU memory: lower --batch_size and raise --gradient_accumulation_steps, lower --max_length, "
    "or use --precision bf16; the last checkpoint is intact"
)


OUT_OF_HOST_MEMORY = (
    "this machine is out of memory: lower --batch_size, --eval_batch_size or --max_length, use --streaming, or a "
    "smaller model; the last checkpoint is intact"
)
# Patterns in the errors of an accelerator that lacks something: what to do
LACKING = {
    "not currently implemented for the MPS device": "set PYTORCH_ENABLE_MPS_FALLBACK=1, or add --device cpu",
    r"Could not run 'aten::.* from the '(?!\w*CPU)": "add --device cpu",
    "doesn't support float64": "add --device cpu",  # mps
    "aspect fp64": "add --device cpu",  # xpu
    "Torch not compiled with": "install the torch of that device, or use --device auto",
}
PIPE = 128 + 13  # exit code that a shell shows for a process ended by SIGPIPE
LOST = "another process of this run has ended or does not respond; checkpoints are intact, --resume continues"


def run_command(main: Callable[[Any], int | None], config_class: type, argv: Sequence[str] | None = None) -> int:
    """Runs main(config) with the flags of the command line. Returns its exit code, or 0.

    A user error, a full disk or too little memory prints one line and returns 2; a signal returns 128 plus its number.
    A closed output pipe counts as SIGPIPE.
    """
    make_output_printable()
    try:
        config = parse_args(config_class, argv)
        if is_launched():  # hides the warning that find_unused_parameters was not needed
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        code = exit_code(main, config)
        sys.stdout.flush()
    except BrokenPipeError:
        for stream in (1, 2):  # otherwise Python reports the closed pipe on exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code = PIPE
    return end_process(code)


class PrintableOutput(io.TextIOWrapper):
    """A standard output that escapes control characters in texts, labels and file names. styled: the text has
    our own escape sequences and is already escaped."""

    styled = False

    def write(self, text: str) -> int:
        super().write(text if self.styled else printable(text))
        return len(text)


def make_output_printable() -> None:
    """Escapes control characters, and characters that the terminal's encoding lacks: labels can contain both."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if type(sys.stdout) is io.TextIOWrapper:
        buffered: dict[str, Any] = {"encoding": sys.stdout.encoding, "line_buffering": sys.stdout.line_buffering}
        sys.stdout = PrintableOutput(sys.stdout.detach(), errors="backslashreplace", **buffered)


def exit_code(main: Callable[[Any], int | None], config: Any) -> int:
    try:
        return main(config) or 0
    except Interrupted as interrupted:
        return 128 + interrupted.signal_number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except UserError as error:
        mistake: str | UserError = error
    except BrokenPipeError:
        raise
    except OSError as error:
        mistake = os_error_line(error)
    except MemoryError:  # from Python, NumPy and Arrow
        mistake = OUT_OF_HOST_MEMORY
    except (RuntimeError, TypeError, AssertionError) as error:
        found = torch_mistake(error)
        if found is None:
            raise
        mistake = found
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # from the tokenizers' Rust code; not a subclass of Exception
            raise
        mistake = f"the tokenizer cannot be used ({first_line(error)}): its tokenizer.json is damaged"
    print_error(mistake)
    return 2


def torch_mistake(error: Exception) -> str | None:
    """The line for an error of torch that is not a fault of this program, or None."""
    text = str(error)
    advice = [advice for pattern, advice in LACKING.items() if re.search(pattern, text)]
    if advice:
        return f"the device lacks something ({first_line(error)[:200]}); {advice[0]}"
    if not isinstance(error, RuntimeError):
        return None
    if any(words in text for words in ("DefaultCPUAllocator", "not enough memory", "bad_alloc")):
        return OUT_OF_HOST_MEMORY
    if type(error).__name__ == "OutOfMemoryError" or "MPS backend out of memory" in text:
        return OUT_OF_MEMORY
    if "PytorchStreamWriter" in text or "No space" in text:
        return f"a checkpoint cannot be written ({first_line(error)}); the previous one is intact"
    if is_lost(error):
        return LOST
    if text.startswith("Symlink loop"):  # from Path.resolve
        return f"{first_line(error)}; remove the link"
    return None


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process of the run has ended or does not respond."""
    names = {kind.__name__ for kind in type(error).__mro__}  # by name, as torch.distributed may not be imported
    is_gloo = any(words in str(error).lower() for words in ("gloo", "caused pair closure"))
    return is_launched() and ("DistError" in names or is_gloo)


def print_error(mistake: str | UserError) -> None:
    """Prints why the program ends; of several processes started by torchrun, only the first to call this prints."""
    if claims_error_report(patience=2 if mistake == LOST else 0):
        print(one_line(f"error: {mistake}"), file=sys.stderr)
