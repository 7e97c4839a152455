"""Builds the command line from a dataclass, with one flag per field. User errors end the program with one line."""

import argparse
import dataclasses
import errno
import io
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from engine.errors import UserError
from engine.run import flags
from engine.run.environment import require_versions
from engine.run.field_flags import ALIASES, SWITCHES, similar, unexpected_argument, unknown_flag
from engine.run.flags import one_line, printable
from engine.run.launch import claims_error_report, end_process, is_launched, select_gpus
from engine.run.options_file import file_words
from engine.run.signals import Interrupted

VERSION = (Path(__file__).resolve().parents[2] / "VERSION").read_text(encoding="utf-8").strip()
MAX_COUNTED = 10**9  # limit for epochs, steps, examples, …: libraries accept at most 2**31 or 2**63


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


OS_ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "free some space, or choose another location",
    errno.EFBIG: "free some space, or choose another location",
    errno.EDQUOT: "free some space, or choose another location",
    errno.EACCES: "make it readable and writable, or choose another location",
    errno.EPERM: "make it readable and writable, or choose another location",
    errno.EROFS: "it is read-only: choose another location",
    errno.EEXIST: "something with that name is in the way: move or remove it",
    errno.ENOTDIR: "part of that path is a file: move it, or choose another location",
    errno.EISDIR: "that is a folder: choose a file",
    errno.ENOENT: "check the name",
    errno.ELOOP: "a symbolic link with that name is in the way: remove it, or choose another location",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def os_error_line(error: OSError) -> str:
    """Formats an operating-system error on one line: the file, the problem, and what to do."""
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
    traits: str = "",
) -> Any:
    """Declares a dataclass field that becomes a flag. Its annotation gives the type; a `Literal` lists the choices.

    low, high: bounds of a number, inclusive unless `exclusive`. resume_safe: a run can be resumed with a different
    value because the option does not change the result. auto: the value that engine/train/automatic.py replaces.
    group: title of the `--help` section that starts here. aliases: other names of the flag. needs: names of options;
    this one has no effect unless at least one of them is on. parse: converts text to the value, if the type alone is
    not enough. choices: choices known only at run time. positional: makes this a positional argument of one or more
    words, shown under this name in `--help`. traits: of a trick, see TRAITS in engine/run/option_checks.py.
    """
    metadata: dict[str, Any] = dict(
        help=help, low=low, high=high, exclusive=exclusive, resume_safe=resume_safe, group=group
    )
    metadata |= dict(
        auto=auto, aliases=aliases, needs=needs.split(), parse=parse, choices=tuple(choices), positional=positional
    )
    metadata["traits"] = traits.split()
    return field(default=default, metadata=metadata)


def choices_of(option_field: dataclasses.Field) -> tuple[str, ...]:
    """Returns the allowed values of an option, or () if any value is allowed."""
    return get_args(option_field.type) if get_origin(option_field.type) is Literal else option_field.metadata["choices"]


def type_of(option_field: Any) -> type:
    """Returns the type of an option's value, or of its items: int for `int | None`, str for `Literal["a"]`."""
    if get_origin(option_field.type) is Literal:
        return str
    kinds = [kind for kind in get_args(option_field.type) if kind not in (type(None), Ellipsis)]
    return kinds[0] if kinds else option_field.type


def parse_bool(text: str) -> bool:
    """Parses 'True', 'yes' or '1' as True, and 'False', 'no' or '0' as False (`bool('False')` would be True)."""
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(str(text).lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return value


def parse_auto_bool(text: str) -> bool | None:
    """Parses a value like `parse_bool`, except that 'auto' becomes None (resolved by engine/train/automatic.py)."""
    return None if text.lower() == "auto" else parse_bool(text)


def parse_off(text: str) -> bool:
    """Parses the value of --no_NAME: an options file may contain `no_use_crf: true`."""
    return not parse_bool(text)


def number_of(kind: type) -> Callable[[str], Any]:
    """Returns a parser for int or float, to be used as an argparse type, with a readable error message."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text[:30]!r} is not {expected}") from None

    return parse


def parse_layers(text: str) -> int:
    """Parses a number of layers; 'True', 'all' and '-1' become -1 (the whole encoder), 'False' becomes 0."""
    named = {"true": -1, "all": -1, "-1": -1, "false": 0}.get(str(text).lower())
    if named is None and not str(text).isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of layers nor 'all' nor False")
    return int(text) if named is None else named


def parse_epochs(text: str) -> int:
    """Parses a number of epochs, which may end in '.0'; 'auto' becomes -1 (resolved by engine/train/automatic.py)."""
    number = re.fullmatch(r"([0-9]+)(\.0+)?", text)
    if text != "auto" and not number:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number of epochs nor 'auto'")
    return int(number[1]) if number else -1


def check_values(config: Any) -> None:
    """Raises UserError if an option is not among its choices, or outside its bounds. Integers without an upper bound
    are limited to MAX_COUNTED."""
    for option_field in dataclasses.fields(config):
        value, bounds = getattr(config, option_field.name), option_field.metadata
        low, high, literal = bounds["low"], bounds["high"], get_origin(option_field.type) is Literal
        if literal and value not in choices_of(option_field):
            near = similar(str(value), choices_of(option_field), "")
            raise UserError(f"--{option_field.name}={value} must be one of {', '.join(choices_of(option_field))}{near}")
        if value is None or low is None:
            continue
        if isinstance(value, int) and high == float("inf"):
            high = MAX_COUNTED
        inside = low < value < high if bounds["exclusive"] else low <= value <= high
        if not inside or value == float("inf"):
            bounded = bounds["high"] < float("inf") or value > high
            must = f"between {low} and {high}" if bounded else f"at least {low}"
            must += " (exclusive)" if bounds["exclusive"] else ""
            raise UserError(f"--{option_field.name}={str(value)[:30]} must be {must}")


def options_without_switch(config: Any) -> list[str]:
    """Returns one line per option that has no effect because the options it needs are off, and one per option whose
    value 0 disables an option that is on."""
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


class OneLineParser(flags.OneLineParser):
    """Prints a one-line error; under torchrun, only one process prints it."""

    source = ""  # 'FILE: ' while the options of a file are parsed

    def error(self, message: str) -> NoReturn:
        shown = f"error: {self.source}{message} (--help lists all flags)"
        self.exit(2, one_line(shown) + "\n" if claims_error_report() else None)


def inherited_last(config_class: type) -> list[dataclasses.Field]:
    """Returns the fields of a dataclass, inherited ones last."""
    depths = {n: depth for depth, c in enumerate(config_class.__mro__) for n in vars(c).get("__annotations__", ())}
    return sorted(dataclasses.fields(config_class), key=lambda f: depths[f.name])


def aliases_of(config_class: type) -> dict[str, str]:
    """Returns {alias of a flag: its option}."""
    names = {f.name: (*f.metadata["aliases"], *ALIASES.get(f.name, ())) for f in dataclasses.fields(config_class)}
    return {alias: name for name, aliases in names.items() for alias in aliases if alias not in names}


def flag_names(config_class: type) -> dict[str, str]:
    """Returns {name of a flag: the option that it sets}, including aliases, --no_* and switches such as --fp16."""
    options = [f for f in dataclasses.fields(config_class) if not f.metadata["positional"]]
    switches = {switch: f.name for f in options for switch in SWITCHES.get(f.name, ({}, ""))[0]}
    negated = {f"no_{f.name}": f.name for f in options if type_of(f) is bool}
    negated |= {f"no_{switch}": name for switch, name in switches.items()}
    return negated | switches | aliases_of(config_class) | {f.name: f.name for f in options}


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Returns a parser that accepts only these words, to be used as an argparse type."""

    def parse(text: str) -> str:
        if text not in choices:
            near = similar(text, choices, "")
            raise argparse.ArgumentTypeError(f"{text!r} must be one of {', '.join(choices)}{near}")
        return text

    return parse


def parser_of(config_class: type, source: str = "") -> OneLineParser:
    """Builds the parser of a command's flags, which returns only the options that were given. source: 'FILE: ' if the
    parser reads an options file, which has no positional arguments."""
    words = [f.metadata["positional"] for f in dataclasses.fields(config_class) if f.metadata["positional"]]
    aliases = aliases_of(config_class)
    others: dict[str, list[str]] = {}
    for name, option_name in flag_names(config_class).items():
        if name != option_name and not name.startswith("no_"):
            others.setdefault(option_name, []).append(f"--{name}")
    other_names = "; ".join(f"{' '.join(names)} for --{option_name}" for option_name, names in others.items())
    parser = OneLineParser(
        description=sys.modules["__main__"].__doc__,
        usage=" ".join(["%(prog)s", *(f"{word} {word} ..." for word in words), "[--flag VALUE] ..."]),
        epilog=textwrap.fill(f"other names: {other_names}", 120) if others else None,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=120),
    )
    parser.source = source
    parser.add_argument("--version", action="version", version=VERSION, help="show the version and exit")
    if "config" not in config_class.__dataclass_fields__:  # type: ignore[attr-defined]
        file_help = "JSON or YAML file of options; flags override it"
        parser.add_argument("--config", metavar="FILE", dest="options_file", action="append", help=file_help)
    section: Any = parser
    for f in inherited_last(config_class):
        if f.metadata["group"]:
            section = parser.add_argument_group(f.metadata["group"])
        if not (source and f.metadata["positional"]):
            add_flags(section, f, [alias for alias, name in aliases.items() if name == f.name])
    return parser


def add_flags(section: Any, f: dataclasses.Field, aliases: Sequence[str]) -> None:
    """Adds an option's flag to a section of --help, and its aliases, which are listed at the end of --help."""
    meta, choices = f.metadata, choices_of(f)
    if meta["positional"]:
        section.add_argument(f.name, nargs="+", metavar=meta["positional"], help=meta["help"])
        return
    kind: dict[str, Any] = {"type": meta["parse"] or (one_of(choices) if choices else type_of(f)), "dest": f.name}
    if kind["type"] in (int, float):
        kind |= {"type": number_of(kind["type"]), "metavar": f.name.upper()}
    if choices:
        kind["metavar"] = "{" + ",".join(choices) + "}"
    if type_of(f) is bool:
        kind |= {"type": meta["parse"] or parse_bool, "nargs": "?", "const": True, "metavar": "BOOL"}
        section.add_argument(f"--no_{f.name}", help=argparse.SUPPRESS, **kind | {"type": parse_off, "const": False})
    shown = "" if f.default is None or f.default is False or f.default in ("", (), -1) else f" [{f.default}]"
    section.add_argument(f"--{f.name}", help=meta["help"] + shown, **kind)
    for alias in aliases:
        section.add_argument(f"--{alias}", help=argparse.SUPPRESS, **kind)
    for switch in SWITCHES.get(f.name, ({}, ""))[0]:
        common: dict[str, Any] = {"dest": switch, "nargs": "?", "help": argparse.SUPPRESS}
        section.add_argument(f"--{switch}", type=parse_bool, const=True, **common)
        section.add_argument(f"--no_{switch}", type=parse_off, const=False, **common)


def read_flags(parser: OneLineParser, config_class: type, argv: Sequence[str]) -> dict[str, Any]:
    """Parses flags into {option: value}. Raises UserError for unknown flags and contradictory switches."""
    known, words = flag_names(config_class), []
    for word in argv:
        flag = re.match(r"--(\w[\w-]*)(?==|$)", word) if "--" not in words else None
        name = flag[1].replace("-", "_") if flag else ""
        if name and name not in {*known, "config", "help", "version"}:
            raise UserError(unknown_flag(name, {*known, "config"}))
        words.append(f"--{name}{word[flag.end() :]}" if flag else word)
    parsed, extra = parser.parse_known_intermixed_args(words)
    if extra:
        raise UserError(unexpected_argument(extra, known))
    given = vars(parsed)
    for name, (values, otherwise) in SWITCHES.items():
        if name not in known:
            continue  # in tools.export, --fp16 is a separate option
        switches = {switch: given.pop(switch) for switch in values if switch in given}
        chosen = {values[switch] for switch, on in switches.items() if on}
        chosen |= {given[name]} if name in given else set()
        if len(chosen) > 1 or any(values[switch] in chosen for switch, on in switches.items() if not on):
            shown = [f"--{switch}={on}" for switch, on in switches.items()]
            shown += [f"--{name}={given[name]}"] if name in given else []
            raise UserError(f"{' and '.join(shown)} contradict each other; choose one")
        if switches:
            given[name] = chosen.pop() if chosen else otherwise
    return given


def options_outside_runs(config_class: type) -> set[str]:
    """Returns the options that --config ignores in a run's args.json: actions, folders, the run's name and machine
    settings. All others affect the result, or how often the run is saved and logged."""
    names, section = set(), ""
    for f in inherited_last(config_class):
        section = f.metadata["group"] or section
        if f.metadata["resume_safe"] and section != "training":
            names.add(f.name)
    return names


def given_options(config_class: type, argv: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns ({option: value} from the flags and the --config file, {option: file} for options set only in that file).

    Exits with code 2 if a flag is invalid.
    """
    parser, of_file = parser_of(config_class), dict[str, Any]()
    try:
        given = read_flags(parser, config_class, sys.argv[1:] if argv is None else argv)
        paths = given.pop("options_file", [])
        if len(paths) > 1:
            raise UserError("--config is given more than once; put the options into one file")
        path = "".join(paths)
        if paths:
            parser = parser_of(config_class, f"{path or '--config'}: ")
            words = file_words(path, flag_names(config_class), options_outside_runs(config_class))
            of_file = read_flags(parser, config_class, words)
    except UserError as error:
        parser.error(str(error))
    return of_file | given, dict.fromkeys(of_file.keys() - given.keys(), path)


def parse_args(config_class: type, argv: Sequence[str] | None = None) -> Any:
    """Parses the command line into a dataclass of `option`s; exits with code 2 if a flag is invalid."""
    given, files = given_options(config_class, argv)
    try:
        config = config_class(**given)
        object.__setattr__(config, "given", frozenset(given))  # not a field: dataclasses.replace() does not copy it
        return config
    except UserError as error:
        named = re.search(r"--(\w+)", str(error))
        file = files.get(named[1], "") if named else ""
        parser_of(config_class, f"{file}: " if file else "").error(str(error))


OUT_OF_MEMORY = (
    "out of GPU memory: lower --batch_size and raise --gradient_accumulation_steps, lower --max_length, "
    "or use --precision bf16; the last checkpoint is intact"
)
OUT_OF_HOST_MEMORY = (
    "this machine is out of memory: lower --batch_size, --eval_batch_size or --max_length, use --streaming, or a "
    "smaller model; the last checkpoint is intact"
)
# {pattern in the error of an accelerator that lacks a feature: what to do}
LACKING = {
    "not currently implemented for the MPS device": "set PYTORCH_ENABLE_MPS_FALLBACK=1, or add --device cpu",
    r"Could not run 'aten::.* from the '(?!\w*CPU)": "add --device cpu",
    "doesn't support float64": "add --device cpu",  # mps
    "aspect fp64": "add --device cpu",  # xpu
    "Torch not compiled with": "install the torch of that device, or use --device auto",
}
PIPE = 128 + 13  # exit code that a shell shows for a process ended by SIGPIPE
LOST = "another process of this run has ended or does not respond; checkpoints are intact, continue with --resume"


def run_command(main: Callable[[Any], int | None], config_class: type, argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs main(config) and returns its exit code, or 0 if it returns None.

    User errors, full disks and out-of-memory errors print one line and return 2. Signals return 128 plus their number;
    a closed output pipe counts as SIGPIPE.
    """
    make_output_printable()
    try:
        config = parse_args(config_class, argv)
        if gpus := getattr(config, "gpus", ""):
            select_gpus(gpus)
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
    """A text stream that escapes control characters in texts, labels and file names. styled: the text contains our own
    escape sequences and is already escaped."""

    styled = False

    def write(self, text: str) -> int:
        super().write(text if self.styled else printable(text))
        return len(text)


def make_output_printable() -> None:
    """Makes stdout and stderr escape control characters and characters that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if type(sys.stdout) is io.TextIOWrapper:
        buffered: dict[str, Any] = {"encoding": sys.stdout.encoding, "line_buffering": sys.stdout.line_buffering}
        sys.stdout = PrintableOutput(sys.stdout.detach(), errors="backslashreplace", **buffered)


def exit_code(main: Callable[[Any], int | None], config: Any) -> int:
    try:
        require_versions()
        return main(config) or 0
    except Interrupted as interrupted:
        return 128 + interrupted.signal_number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except UserError as error:
        # without the traceback that a data loader worker adds
        message = str(error).rpartition("engine.errors.UserError: ")[2].strip()
    except BrokenPipeError:
        raise
    except OSError as error:
        message = os_error_line(error)
    except MemoryError:  # from Python, NumPy and Arrow
        message = OUT_OF_HOST_MEMORY
    except (RuntimeError, TypeError, AssertionError) as error:
        found = torch_error_message(error)
        if found is None:
            raise
        message = found
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # from the tokenizers' Rust code; not a subclass of Exception
            raise
        message = f"the tokenizer cannot be used ({first_line(error)}): its tokenizer.json is damaged"
    if claims_error_report(patience=2 if message == LOST else 0):
        print(one_line(f"error: {message}"), file=sys.stderr)
    return 2


def torch_error_message(error: Exception) -> str | None:
    """Returns the error line for a torch error that is not a bug in this program, or None."""
    text = str(error)
    advice = [advice for pattern, advice in LACKING.items() if re.search(pattern, text)]
    if advice:
        return f"the device lacks a feature ({first_line(error)[:200]}); {advice[0]}"
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
    """Returns whether an error means that another process of the run has ended or does not respond."""
    names = {kind.__name__ for kind in type(error).__mro__}  # by name, because torch.distributed may not be imported
    is_gloo = any(words in str(error).lower() for words in ("gloo", "caused pair closure"))
    return is_launched() and ("DistError" in names or is_gloo)
