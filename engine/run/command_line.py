"""Builds the command line from a dataclass, with a flag for each field. User errors exit with one line and code 2."""

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
from engine.run.field_flags import ALIASES, SWITCHES, similar, stray_word, unknown_flag
from engine.run.launch import claims_error_report, end_process, is_launched, select_gpus
from engine.run.options_file import file_words
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
    errno.EROFS: "it is read-only: choose another location",
    errno.EEXIST: "something with that name is in the way: move or remove it",
    errno.ENOTDIR: "part of that path is a file: move it, or choose another location",
    errno.EISDIR: "that is a folder: choose a file",
    errno.ENOENT: "check the name",
    errno.ELOOP: "a symbolic link with that name is in the way: remove it, or choose another location",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def os_error_line(error: OSError) -> str:
    """An operating-system error as one line: the file, the problem, and what to do."""
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
    """The type of an option's value, or of its items: int for `int | None`, str for `Literal["a"]`."""
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


def parse_auto_bool(text: str) -> bool | None:
    """Like `parse_bool`, but 'auto' -> None (resolved by engine/train/automatic.py)."""
    return None if text.lower() == "auto" else parse_bool(text)


def parse_off(text: str) -> bool:
    """The value of --no_NAME=TEXT: an options file may contain `no_use_crf: true`."""
    return not parse_bool(text)


def number_of(kind: type) -> Callable[[str], Any]:
    """A type for argparse: int or float, with an error message that names the type."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text[:30]!r} is not {wanted}") from None

    return parse


def parse_layers(text: str) -> int:
    """'True', 'all' or '-1' -> -1 (the whole encoder), 'False' -> 0 (nothing), otherwise a number of layers."""
    named = {"true": -1, "all": -1, "-1": -1, "false": 0}.get(str(text).lower())
    if named is None and not str(text).isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of layers nor 'all' nor False")
    return int(text) if named is None else named


def parse_epochs(text: str) -> int:
    """'auto' -> -1 (resolved by engine/train/automatic.py), otherwise a number of epochs, which may end in '.0'."""
    number = re.fullmatch(r"([0-9]+)(\.0+)?", text)
    if text != "auto" and not number:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number of epochs nor 'auto'")
    return int(number[1]) if number else -1


def check_values(config: Any) -> None:
    """Raises UserError unless each option is one of its choices or within its bounds. Whole numbers without an upper
    bound are limited to MAX_COUNTED."""
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
            must = f"lie between {low} and {high}" if bounded else f"be a number of at least {low}"
            must += ", and be neither" if bounds["exclusive"] else ""
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
    """Prints an error as one line; under torchrun, only the first process does."""

    source = ""  # 'FILE: ' while options of a file are read

    def error(self, message: str) -> NoReturn:
        shown = f"error: {self.source}{message} (--help lists all flags)"
        self.exit(2, one_line(shown) + "\n" if claims_error_report() else None)


def own_first(config_class: type) -> list[dataclasses.Field]:
    """The fields of a dataclass, its own before inherited ones."""
    depths = {n: depth for depth, c in enumerate(config_class.__mro__) for n in vars(c).get("__annotations__", ())}
    return sorted(dataclasses.fields(config_class), key=lambda f: depths[f.name])


def aliases_of(config_class: type) -> dict[str, str]:
    """{other name of a flag: its option}"""
    names = {f.name: (*f.metadata["aliases"], *ALIASES.get(f.name, ())) for f in dataclasses.fields(config_class)}
    return {alias: name for name, aliases in names.items() for alias in aliases if alias not in names}


def flag_names(config_class: type) -> dict[str, str]:
    """{name of a flag: the option that it sets}, with other names, --no_* and switches such as --fp16."""
    options = [f for f in dataclasses.fields(config_class) if not f.metadata["positional"]]
    switches = {switch: f.name for f in options for switch in SWITCHES.get(f.name, ({}, ""))[0]}
    negated = {f"no_{f.name}": f.name for f in options if type_of(f) is bool}
    negated |= {f"no_{switch}": name for switch, name in switches.items()}
    return negated | switches | aliases_of(config_class) | {f.name: f.name for f in options}


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """A type for argparse: one of these words."""

    def parse(text: str) -> str:
        if text not in choices:
            near = similar(text, choices, "")
            raise argparse.ArgumentTypeError(f"{text!r} must be one of {', '.join(choices)}{near}")
        return text

    return parse


def parser_of(config_class: type, source: str = "") -> OneLineParser:
    """The parser of a command's flags. It returns only the options that were given. source: 'FILE: ' to parse an
    options file, which has no positional arguments."""
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
        formatter_class=lambda prog: HelpFormatter(prog, max_help_position=32, width=120),
    )
    parser.source = source
    parser.add_argument("--version", action="version", version=VERSION, help="show the version and exit")
    if "config" not in config_class.__dataclass_fields__:  # type: ignore[attr-defined]
        file_help = "JSON or YAML file of options; flags win over it"
        parser.add_argument("--config", metavar="FILE", dest="options_file", action="append", help=file_help)
    section: Any = parser
    for f in own_first(config_class):
        if f.metadata["group"]:
            section = parser.add_argument_group(f.metadata["group"])
        if not (source and f.metadata["positional"]):
            add_flags(section, f, [alias for alias, name in aliases.items() if name == f.name])
    return parser


def add_flags(section: Any, f: dataclasses.Field, aliases: Sequence[str]) -> None:
    """Adds the flag of an option to a section of --help, and its other names, which only the end of --help lists."""
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
        off = kind | {"type": parse_off, "const": False}
        section.add_argument(f"--no_{f.name}", help=argparse.SUPPRESS, **off)
    shown = "" if f.default is None or f.default is False or f.default in ("", (), -1) else f" [{f.default}]"
    section.add_argument(f"--{f.name}", help=meta["help"] + shown, **kind)
    for alias in aliases:
        section.add_argument(f"--{alias}", help=argparse.SUPPRESS, **kind)
    for switch in SWITCHES.get(f.name, ({}, ""))[0]:
        section.add_argument(f"--{switch}", type=parse_bool, nargs="?", const=True, help=argparse.SUPPRESS)
        off = {"dest": switch, "type": parse_off, "nargs": "?", "const": False, "help": argparse.SUPPRESS}
        section.add_argument(f"--no_{switch}", **off)


def read_flags(parser: OneLineParser, config_class: type, argv: Sequence[str]) -> dict[str, Any]:
    """{option: value} of the flags. Raises UserError for a flag that does not exist, or a contradictory switch."""
    known, words = flag_names(config_class), []
    for word in argv:
        flag = re.match(r"--(\w[\w-]*)(?==|$)", word) if "--" not in words else None
        name = flag[1].replace("-", "_") if flag else ""
        if name and name not in {*known, "config", "help", "version"}:
            raise UserError(unknown_flag(name, {*known, "config"}))
        words.append(f"--{name}{word[flag.end() :]}" if flag else word)
    parsed, extra = parser.parse_known_intermixed_args(words)
    if extra:
        raise UserError(stray_word(extra, known))
    given = vars(parsed)
    for name, (values, otherwise) in SWITCHES.items():
        if name not in known:
            continue  # in tools.export, --fp16 is a separate option
        switches = {switch: given.pop(switch) for switch in values if switch in given}
        wanted = {values[switch] for switch, on in switches.items() if on}
        wanted |= {given[name]} if name in given else set()
        if len(wanted) > 1 or any(values[switch] in wanted for switch, on in switches.items() if not on):
            shown = [f"--{switch}={on}" for switch, on in switches.items()]
            shown += [f"--{name}={given[name]}"] if name in given else []
            raise UserError(f"{' and '.join(shown)} contradict each other; choose one")
        if switches:
            given[name] = wanted.pop() if wanted else otherwise
    return given


def not_of_a_run(config_class: type) -> set[str]:
    """The options that --config does not take from a run's args.json: the run's actions, folders, name and machine. The
    other options determine the result, or how often it was saved and logged."""
    names, section = set(), ""
    for f in own_first(config_class):
        section = f.metadata["group"] or section
        if f.metadata["resume_safe"] and section != "training":
            names.add(f.name)
    return names


def given_options(config_class: type, argv: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """({option: value} set by flags and the file of --config, {option: that file} for those set only by the file).

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
            words = file_words(path, flag_names(config_class), not_of_a_run(config_class))
            of_file = read_flags(parser, config_class, words)
    except UserError as error:
        parser.error(str(error))
    return of_file | given, dict.fromkeys(of_file.keys() - given.keys(), path)


def parse_args(config_class: type, argv: Sequence[str] | None = None) -> Any:
    """Parses the command line into a dataclass of `option`s; exits with code 2 if a flag is invalid."""
    given, files = given_options(config_class, argv)
    try:
        config = config_class(**given)
        object.__setattr__(config, "given", frozenset(given))  # not a field; a changed copy has none
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
# {pattern in an error of an accelerator that lacks a feature: what to do}
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
        require_versions()
        return main(config) or 0
    except Interrupted as interrupted:
        return 128 + interrupted.signal_number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except UserError as error:
        # without the traceback that a worker of the data loader adds
        mistake = str(error).rpartition("engine.errors.UserError: ")[2].strip()
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
    """The error line for a torch error that is not a bug in this program, or None."""
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
    """Whether an error means that another process of the run has ended or does not respond."""
    names = {kind.__name__ for kind in type(error).__mro__}  # by name, because torch.distributed may not be imported
    is_gloo = any(words in str(error).lower() for words in ("gloo", "caused pair closure"))
    return is_launched() and ("DistError" in names or is_gloo)


def print_error(mistake: str | UserError) -> None:
    """Prints why the program ends; under torchrun, only the first process that calls this prints."""
    if claims_error_report(patience=2 if mistake == LOST else 0):
        print(one_line(f"error: {mistake}"), file=sys.stderr)
