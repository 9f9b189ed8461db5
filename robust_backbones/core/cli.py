"""Command-line parsers with readable help and one-line errors."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from robust_backbones.core.eps import parse_number
from robust_backbones.core.errors import UserError, choose_from, either, nearest, print_error
from robust_backbones.core.paths import expand
from robust_backbones.core.workers import MOST_WORKERS

MAX_CHOICES = 6  # more choices are listed after the help text instead of in the metavar
MAX_OPTIONS = 12  # with more options, the usage line shows only the required ones


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help formatter with 100 columns. It shows defaults, and lists many choices after the text."""

    def __init__(self, prog: str):
        super().__init__(prog, width=100)

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Any,
        prefix: str | None = None,
    ) -> None:
        actions = list(actions)
        if usage is None and len(actions) > MAX_OPTIONS:
            required = [self._as_typed(action) for action in actions if action.required]
            usage = " ".join(["%(prog)s", *required, "[options]"])
        super().add_usage(usage, actions, groups, prefix)

    def _as_typed(self, action: argparse.Action) -> str:
        value = action.metavar or self._get_default_metavar_for_optional(action)
        return " ".join([*action.option_strings[:1], str(value)])

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if _has_many_choices(action):
            text += " (choose from %(choices)s)"
        if "default" in text or not action.option_strings or isinstance(action, _PRINT_AND_EXIT):
            return text
        if action.required:
            return f"{text} (required)"
        if action.nargs == 0 and not action.default:
            return f"{text} (default: no)"
        if action.default in (None, []):
            return f"{text} (default: none)"
        values = action.default if isinstance(action.default, list) else [action.default]
        return f"{text} (default: {' '.join(map(shown, values))})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if _has_many_choices(action):
            return "NAME"
        kind = None if action.choices else getattr(action.type, "metavar", None)
        return kind or super()._get_default_metavar_for_optional(action)

    def _metavar_formatter(
        self, action: argparse.Action, default_metavar: str
    ) -> Callable[[int], tuple[str, ...]]:
        if _has_many_choices(action) and not action.metavar:
            return lambda size: (default_metavar,) * size
        return super()._metavar_formatter(action, default_metavar)


def shown(value: object) -> str:
    """Return the text of a default: `600` for 600.0, `yes` for True."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def by_kind(values: Mapping[str, object]) -> str:
    """Return defaults that depend on another option: `90 (paper), 5 (quick, tiny)`.

    Args:
        values: default for each value of the other option. The most frequent default comes last,
            without its names if it has more than three.
    """
    kinds: dict[str, list[str]] = {}
    for name, value in values.items():
        kinds.setdefault(shown(value), []).append(name)
    if len(kinds) == 1:
        return next(iter(kinds))
    last = max(kinds, key=lambda value: len(kinds[value]))
    if len(kinds[last]) > 3:
        kinds = {value: names for value, names in kinds.items() if value != last} | {last: []}
    parts = [f"{v} ({', '.join(names)})" if names else f"else {v}" for v, names in kinds.items()]
    return ", ".join(parts)


# Messages of argparse
_ONE_OF = re.compile(r"one of the arguments (.*) is required")
_VALUE_OF_FLAG = re.compile(r"argument (.*): ignored explicit argument (.*)")
_PRINT_AND_EXIT = (argparse._HelpAction, argparse._VersionAction)


# Names of options in other tools -> our name. Spelling does not reveal their similarity.
_SYNONYMS = {
    "--alpha": "--step-size",
    "--checkpoint": "--weights",
    "--epsilon": "--eps",
    "--gpus": "--num-gpus",
    "--learning-rate": "--lr",
    "--model": "--arch",
    "--norm": "--constraint",
    "--num-workers": "--workers",
    "--out": "--output",
    "--out-dir": "--output",
    "--output-dir": "--output",
    "--threat-model": "--constraint",
}


def _has_many_choices(action: argparse.Action) -> bool:
    # Choices of subcommands are a dictionary, and the help shows each subcommand on its own line.
    return isinstance(action.choices, tuple | list) and len(action.choices) > MAX_CHOICES


def program_name() -> str:
    """Return the program name as the user types it, such as `python -m classification.transfer`."""
    name = os.path.basename(sys.argv[0])
    spec = sys.modules["__main__"].__spec__
    if name == "__main__.py" and spec is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return name


@dataclass(frozen=True)
class _Restriction:
    """Condition for options; see `Parser.restrict`."""

    options: tuple[str, ...]
    to: str
    when: Callable[[argparse.Namespace], bool]


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors like a `UserError`: one line, exit code 2.

    By default, argparse prints the usage before the error. Users easily miss an error that comes
    after fifty options.

    Args:
        prog: name of the program; None: as the user typed it.
        instead: fix for options that only other commands have, as `{"--lr": "Set SOLVER.BASE_LR"}`.
        kwargs: as in `argparse.ArgumentParser`.
    """

    _typed: Sequence[str] = ()  # arguments of the current parse, for the error message
    _raises = False  # whether errors are raised instead of printed
    _is_checking = False  # whether `_given` parses the arguments for the second time

    def __init__(
        self, prog: str | None = None, instead: Mapping[str, str] | None = None, **kwargs: Any
    ):
        kwargs.setdefault("formatter_class", _Help)
        kwargs.setdefault("allow_abbrev", False)  # an option may get a longer sibling later
        self._instead = instead or {}
        self._restrictions: list[_Restriction] = []
        super().__init__(prog or program_name(), **kwargs)

    def restrict(self, *options: str, to: str, when: Callable[[argparse.Namespace], bool]) -> None:
        """Refuse options where they have no effect, instead of ignoring them.

        Args:
            options: options, such as `--beta`.
            to: text for the message that describes the option they need, such as `--method trades`.
            when: function from the parsed arguments to whether the options have an effect.
        """
        self._restrictions.append(_Restriction(options, to, when))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and save the arguments for the error message."""
        self._typed = sys.argv[1:] if args is None else args
        parsed, rest = super().parse_known_args(args, namespace)
        violated = [r for r in self._restrictions if not self._is_checking and not r.when(parsed)]
        given = self._given() if violated else set()
        for restriction in violated:
            for option in restriction.options:
                if self._option_string_actions[option].dest in given:
                    self.error(
                        f"{option} has no effect without {restriction.to}. Remove {option}, or use "
                        f"{restriction.to}"
                    )
        return parsed, rest

    def parse_options(self, options: dict[str, Any]) -> argparse.Namespace:
        """Parse options that are given by name, such as `{"image_size": 32}`.

        Raises:
            UserError: an option does not exist, or its value is invalid.
        """
        self._raises = True
        try:
            return self.parse_args(words_of(options))
        finally:
            self._raises = False

    def _given(self) -> set[str]:
        """Return the destinations of the options that were typed, even if they equal a default."""
        actions = [(action, action.default) for action in self._actions]
        try:
            self._is_checking = True
            for action, _ in actions:
                action.default = argparse.SUPPRESS
            return set(vars(super().parse_known_args(self._typed)[0]))
        finally:
            self._is_checking = False
            for action, default in actions:
                action.default = default

    def error(self, message: str) -> NoReturn:
        """Print the error with a reference to --help, and exit with code 2."""
        if found := _ONE_OF.fullmatch(message):
            message = f"give {either(found[1].split())}"
        elif found := _VALUE_OF_FLAG.fullmatch(message):
            message = f"{found[1]} takes no value, but {found[2]} is given"
        unknown: list[str] = []
        if "arguments are required: " in message:  # an option may be misspelled
            unknown = [word for word in self._typed if self._is_unknown_option(word)][:1]
            message += f". {unknown[0]} is not an option" if unknown else ""
        elif rest := message.partition("unrecognized arguments: ")[2].split():
            unknown = [rest[0].split("=")[0]]
            kind = "an option" if rest[0].startswith("-") else "expected here"
            message = f"{unknown[0]} is not {kind}"
        for name in unknown:
            if fix := self._instead.get(name):
                message += f". {fix}"
            elif similar := self.most_similar(name):
                message += f". Did you mean {similar}?"
        if self._raises:
            raise UserError(f"{message.rstrip('.')}{'.' * (message[-1] != '?')}")
        print_error(f"error: {message.removesuffix('.')} (see {self.prog} --help)")
        self.exit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = choose_from(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}. {known}")

    def _is_unknown_option(self, word: str) -> bool:
        return word[:2] == "--" and word.split("=")[0] not in self._option_string_actions

    def most_similar(self, word: str) -> str | None:
        """Return the option that is most similar to the word, or None if no option is similar."""
        # Compare without dashes, which would make short options similar to any word.
        options = {option.strip("-"): option for option in self._option_string_actions}
        name = word.split("=")[0]
        if (known := _SYNONYMS.get(name)) in self._option_string_actions:
            return known
        begun = [option for option in self._option_string_actions if option.startswith(name)]
        near = [options[found] for found in nearest(name.strip("-"), options, 1)]
        return next(iter(begun + near), None)


def add_command(commands: Any, name: str, about: str, example: str) -> Parser:
    """Add a command of a command, such as `list` of `zoo`, and return its parser.

    Args:
        commands: output of `add_subparsers`.
        name: name of the command.
        about: description, such as "download models".
        example: complete command line.
    """
    description = f"{about[0].upper()}{about[1:]}.\n\nExample:\n  {example}"
    return commands.add_parser(name, help=about, description=description)


def option_name(name: str) -> str:
    """Return the option of a setting: `--image-size` for `image_size`."""
    return f"--{str(name).replace('_', '-')}"


def words_of(options: dict[str, Any]) -> list[str]:
    """Return options as command-line arguments."""
    words = []
    for name, value in options.items():
        if value is True:
            words.append(option_name(name))
        elif value is not False:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [option_name(name), *map(str, values)]
    return words


@dataclass(frozen=True)
class Number:
    """`type` of a numeric argument: a function from text to a number.

    Attributes:
        convert: function that converts text to a number; may raise ValueError or ArithmeticError.
        allowed: function that returns whether a number is allowed; must return False for NaN.
        description: description of the allowed values, which completes the error "'x' is not ...".
        metavar: placeholder for the number in the help.
    """

    convert: Callable
    allowed: Callable
    description: str
    metavar: str = "X"

    def __call__(self, text: str) -> Any:
        """Convert an argument, or raise `argparse.ArgumentTypeError`."""
        try:
            value = self.convert(text)
        except (ValueError, ArithmeticError):  # for example, 1/0 or 1e999
            value = math.nan
        if not self.allowed(value):
            raise argparse.ArgumentTypeError(f"'{text}' is not {self.description}")
        return value


def path(text: str) -> Path:
    """Convert the argument of an option to a local path, with `~` and variables replaced.

    `Path` would change the URL s3://bucket/x to the local folder s3:/bucket/x.

    Raises:
        argparse.ArgumentTypeError: the text is a URL.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"'{text}' is a URL. Give a local path")
    return Path(expand(text))


location = expand  # type of an argument that may also be a URL or a name

count = Number(int, lambda v: v >= 1, "a whole number of at least 1", "N")
whole = Number(int, lambda v: v >= 0, "a whole number of at least 0", "N")
batch = Number(int, lambda v: v >= 2, "a whole number of at least 2 (BatchNorm needs two)", "N")
seed = Number(int, lambda v: 0 <= v < 2**31, "a whole number in [0, 2**31)", "N")
amount = Number(parse_number, lambda v: v >= 0, "a finite number of at least 0")
positive = Number(parse_number, lambda v: v > 0, "a finite number above 0")
share = Number(parse_number, lambda v: 0 <= v < 1, "a number in [0, 1)")
factor = Number(parse_number, lambda v: 0 < v <= 1, "a number in (0, 1]")
fraction = Number(parse_number, lambda v: 0 < v < 1, "a number between 0 and 1")
part = Number(parse_number, lambda v: 0 < v <= 1, "a number above 0, at most 1")
proportion = Number(parse_number, lambda v: 0 <= v <= 1, "a number in [0, 1]")
eps = Number(
    parse_number, lambda v: v >= 0, "a finite number of at least 0, such as 3 or 4/255", "EPS"
)
positive_eps = Number(
    parse_number, lambda v: v > 0, "a finite number above 0, such as 3 or 4/255", "EPS"
)


class _Range(argparse.Action):
    """Store two numbers in ascending order."""

    def __call__(self, parser: Any, args: Any, values: Any, option_string: Any = None) -> None:
        low, high = values
        if not low < high:
            parser.error(f"argument {option_string}: MIN {low:g} must be below MAX {high:g}")
        setattr(args, self.dest, values)


def add_device(add: Callable) -> None:
    """Add the option for the device.

    Args:
        add: `add_argument` of a parser or option group.
    """
    add("--device", metavar="NAME", help="torch device (default: cuda if available, else cpu)")


def add_workers(add: Callable) -> None:
    """Add the option for the number of loading processes.

    Args:
        add: `add_argument` of a parser or option group.
    """
    add(
        "--workers",
        type=whole,
        metavar="N",
        help="processes that load images, per process of the command; 0: load in that process "
        f"(default: 0 on a CPU; on a GPU, the CPU cores per process, at most {MOST_WORKERS})",
    )


def add_image_range(add: Callable) -> None:
    """Add the option for images with more than 8 bits per channel.

    Args:
        add: `add_argument` of a parser or option group.
    """
    add(
        "--image-range",
        type=Number(float, math.isfinite, "a finite number"),
        nargs=2,
        action=_Range,
        metavar=("MIN", "MAX"),
        help="pixel values of black and white in images with more than 8 bits per channel, such as "
        "0 65535 (default: reject such images)",
    )
