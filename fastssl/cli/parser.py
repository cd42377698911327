"""The argument parser of every command: help that keeps its lines, errors of one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from fastssl.errors import UserError, nearest, slips, unknown

PRESET_HAS = "The preset has "  # begins the sentence that tells what an option is if it is not given


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's types and defaults, where a help does not tell them; descriptions and examples as written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = super()._get_help_string(action)
        if PRESET_HAS in told:
            return told.replace(", default: %(default)s", "")
        return told.replace("default: %(default)s", "not set") if action.default is None else told


class Parser(ArgumentParser):
    """Parser of ``fastssl COMMAND``.

    Args:
        usage: what follows ``fastssl`` on the usage line.
        description: what the command does.
        examples: indented command lines.

    Attributes:
        refused: what there is no option for though one may look for it, and what is said of it then.
    """

    def __init__(self, usage: str, description: str, examples: str) -> None:
        super().__init__(
            usage=f"fastssl {usage}",
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=_Formatter,
            exit_on_error=False,
            allow_abbrev=False,
            print_config=None,
        )

        self.refused: dict[str, str] = {}

    def parse(self, words: Sequence[str]) -> Namespace:
        """The values of ``words``.

        Raises:
            UserError: saying which word is wrong.
        """
        try:
            return self.parse_args(list(words))
        except ArgumentError as error:
            raise self._short(" ".join(str(error).split())) from error

    def _short(self, message: str) -> UserError:
        if found := re.match(r"unrecognized arguments: ([^\s=]+)", message):
            return self._unknown(found[1])
        if found := re.match(r'Parser key "(.+?)": Unable to load config (\S+)', message):
            group = f"--{found[1]}"
            settings = ", ".join(name for name in self._options() if name.startswith(f"{group}."))
            return UserError(f"{group} {found[2]} is no YAML file of settings: give one, or set {settings}")
        if found := re.match(r'Parser key "(.+?)": Expected an? (.+?)\. Got value: (.*)', message):
            name, kind, value = found.groups()
            if kind.startswith("typing.Literal"):
                return unknown(f"--{name}", value, re.findall(r"'([^']+)'", kind))
            kind = re.sub(r"<class '(\w+)'>", r"\1", kind).replace("typing.", "")
            if re.fullmatch(r"[-+.]*(nan|inf|infinity)", value.lower()):
                return UserError(f"--{name} must be a finite number; got {value}")
            return UserError(f"--{name} must be of type {kind}; got {value}")
        if found := re.match(
            r'Parser key "(.+?)": Does not validate .*? Subtypes: (.*?) Errors: .* Given value: (.*)', message
        ):
            name, kinds, value = found.groups()
            if "typing.Literal" in kinds:
                return unknown(f"--{name}", value, re.findall(r"'([^']+)'", kinds.partition("]")[0]))
            kinds = " or ".join(re.findall(r"'(\w+)'", kinds)).replace("NoneType", "null")
            return UserError(f"--{name} must be of type {kinds}; got {value}")
        if found := re.match(r"the following arguments are required: (\w+)", message):
            return UserError(f"{self._spelled(found[1])} is missing: {self.usage}")
        return UserError(message.removeprefix("argument "))

    def _unknown(self, word: str) -> UserError:
        if not word.startswith("-"):
            return UserError(f"unexpected word {word!r}: see --help")
        if word in self.refused:
            return UserError(self.refused[word])
        options = self._options()
        # a setting without its group's name, or with another one
        alike = [name for name in options if _last(name) == _last(word)]
        near = min(alike, key=lambda name: slips(word, name)) if alike else nearest(word, options)
        return UserError(f"unknown option {word!r}: {f'did you mean {near!r}?' if near else 'see --help'}")

    def _options(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--") and name != "--print_shtab"]

    def _spelled(self, key: str) -> str:
        return f"--{key}" if f"--{key}" in self._options() else key.upper()


def _last(option: str) -> str:
    """``blur`` of ``--plan.second.blur``."""
    return option.lstrip("-").rpartition(".")[2]
