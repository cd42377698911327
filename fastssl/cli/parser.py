"""The argument parser of every command: help that keeps its lines, errors of one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from fastssl.errors import UserError, unknown


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's types and defaults; descriptions and examples as they are written."""


class Parser(ArgumentParser):
    """Parser of ``fastssl COMMAND``.

    Args:
        usage: what follows ``fastssl`` on the usage line.
        description: what the command does.
        examples: indented command lines.
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
        inner = [name for name in self._options() if name.rpartition(".")[2] == word.lstrip("-")]
        if inner:  # a setting of a group, without the group's name
            return UserError(f"unknown option {word!r}: did you mean {inner[0]!r}?")
        return unknown("option", word, self._options())

    def _options(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--") and name != "--print_shtab"]

    def _spelled(self, key: str) -> str:
        return f"--{key}" if f"--{key}" in self._options() else key.upper()
