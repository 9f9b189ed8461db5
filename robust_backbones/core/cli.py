"""What the command lines have in common: help that reads well, mistakes told in one line."""

import argparse
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

MANY = 6  # choices that still fit where argparse would put them, in front of the explanation
MANY_OPTIONS = 12  # in the usage line; beyond, only those that are required


class _Help(argparse.RawDescriptionHelpFormatter):
    """100 columns; defaults where there is one to tell; long lists of choices as sentences."""

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
        if usage is None and len(actions) > MANY_OPTIONS:
            needed = [self._as_typed(action) for action in actions if action.required]
            usage = " ".join(["%(prog)s", *needed, "[options]"])
        super().add_usage(usage, actions, groups, prefix)

    def _as_typed(self, action: argparse.Action) -> str:
        value = "NAME" if _many(action) else action.metavar or action.dest.upper()
        return " ".join([*action.option_strings[-1:], str(value)])

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if _many(action):
            text += " (one of: %(choices)s)"
        if "default" in text or not action.option_strings or isinstance(action, _NO_VALUE):
            return text
        if action.required:
            return f"{text} (required)"
        if action.nargs == 0 and not action.default:
            return f"{text} (default: no)"
        if action.default in (None, [], argparse.SUPPRESS):
            return f"{text} (default: none)"
        values = action.default if isinstance(action.default, list) else [action.default]
        return f"{text} (default: {' '.join(map(str, values))})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "NAME" if _many(action) else super()._get_default_metavar_for_optional(action)

    def _metavar_formatter(
        self, action: argparse.Action, default_metavar: str
    ) -> Callable[[int], tuple[str, ...]]:
        if _many(action) and not action.metavar:
            return lambda size: (default_metavar,) * size
        return super()._metavar_formatter(action, default_metavar)


# Actions that print something and end.
_NO_VALUE = (argparse._HelpAction, argparse._VersionAction)


def _many(action: argparse.Action) -> bool:
    # Commands of a parser are choices, too: a dict with a line of help each.
    return isinstance(action.choices, tuple | list) and len(action.choices) > MANY


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake as a `UserError` is told: one line, exit code 2.

    argparse prints its usage first; with fifty options the mistake is then hard to find.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """End the program with the mistake and where to find what is allowed."""
        before, found, words = message.partition("unrecognized arguments: ")
        if found and (near := self._nearest(words.split()[0])):
            message += f"; did you mean {near}?"
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def _nearest(self, word: str) -> str | None:
        known = difflib.get_close_matches(word.split("=")[0], self._option_string_actions, 1)
        return known[0] if known else None


def number(convert: Callable, allowed: Callable, description: str) -> Callable:
    """A parser of one value: `allowed` decides, the error explains.

    Args:
        convert: text -> number; may raise ValueError or ArithmeticError.
        allowed: number -> whether it may be used. It is false for NaN.
        description: what is allowed, to follow "'x' is not".

    Returns:
        text -> number; raises `argparse.ArgumentTypeError`.
    """

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except (ValueError, ArithmeticError):  # 1/0, 1e999
            value = math.nan
        if not allowed(value):  # NaN is never allowed: each comparison with it is false
            raise argparse.ArgumentTypeError(f"'{text}' is not {description}")
        return value

    return parse


count = number(int, lambda v: v >= 1, "a whole number of at least 1")
whole = number(int, lambda v: v >= 0, "a whole number of at least 0")
