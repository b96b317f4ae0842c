"""The only file that imports gin: --gin_file and --gin.NAME=VALUE to the frozen dataclasses that verbs take."""

import ast
import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin

from fiat_jax.errors import UserError, did_you_mean

C = TypeVar("C")


class Config:
    """Bindings from files and flags, over a set of named sections (dataclasses).

    `build` makes a section: each field comes from gin, or is a section itself, or keeps its default.
    """

    def __init__(self, sections: Mapping[str, type], files: Sequence[str] = (), bindings: Sequence[str] = ()):
        gin.clear_config(clear_constants=True)
        self._sections = dict(sections)
        for name, section in sections.items():
            if f"fiat.{name}" not in gin.config._REGISTRY:  # pyright: ignore  # gin registers a name once a process
                gin.external_configurable(section, name=name, module="fiat")
        self._parse(files, bindings)

    def _parse(self, files: Sequence[str], bindings: Sequence[str]) -> None:
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"--gin_file={file}: no such file")
            for parent in Path(file).resolve().parents:  # so that a file includes others wherever `fiat` is started
                gin.add_config_file_search_path(str(parent))
        parsed = [_forgiving(binding) for binding in bindings]
        try:
            gin.parse_config_files_and_bindings(list(files), parsed, skip_unknown=False, finalize_config=False)
        except (ValueError, SyntaxError, TypeError, OSError, AttributeError, NameError) as error:
            raise UserError(_explain(str(error), self._sections)) from None

    def build(self, section: type[C], **given: Any) -> C:
        """Return a section; `given` fields overrule what gin says."""
        name = next(n for n, s in self._sections.items() if s is section)
        hints = typing.get_type_hints(section)
        kwargs = dict(given)
        for field in dataclasses.fields(section):  # pyright: ignore
            if field.name not in kwargs and hints[field.name] in self._sections.values():
                kwargs[field.name] = self.build(hints[field.name])
        try:
            return gin.get_configurable(name)(**kwargs)
        except UserError as error:  # gin appends where a call came from to the message
            raise UserError(str(error).split("\n  In call to configurable")[0]) from None
        except (TypeError, ValueError) as error:
            raise UserError(_explain(str(error), self._sections)) from None

    def binds(self, section: str) -> bool:
        """Whether any file or flag sets a parameter of this section."""
        return any(selector.split(".")[-1] == section for _, selector in gin.config._CONFIG)  # pyright: ignore

    def text(self) -> str:
        """Return every binding in force, in gin's own syntax: what is written beside results as config.gin."""
        return gin.config_str()


def _forgiving(binding: str) -> str:
    """Return "NAME = VALUE"; a value that is no Python literal, reference or macro is taken as a string."""
    name, separator, value = binding.partition("=")
    if not separator:
        raise UserError(f"--gin.{binding}: expected --gin.NAME=VALUE")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if not value.startswith(("@", "%")) and "%" not in value:
            value = repr(value)
    return f"{name.strip()} = {value}"


def _explain(message: str, sections: Mapping[str, type]) -> str:
    message = message.split("\n  In call to configurable")[0].strip()
    unknown = re.search(r"No configurable matching '([^']*)'", message)
    if unknown:
        name = unknown.group(1).split(".")[0].split("/")[-1]
        return f"unknown gin name {name!r}; known are {', '.join(sections)}.{did_you_mean(name, sections)}"
    misspelt = re.search(r"Configurable '([^']*)' doesn't have a parameter named '([^']*)'", message)
    if misspelt:
        section, parameter = misspelt.group(1).split(".")[-1], misspelt.group(2)
        known = [field.name for field in dataclasses.fields(sections[section])]
        hint = did_you_mean(parameter, known)
        return f"{section} has no parameter {parameter!r}; it has {', '.join(known)}.{hint}"
    return message
