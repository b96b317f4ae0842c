"""The only file that imports gin: --gin_file and --gin.NAME=VALUE to the frozen dataclasses that verbs take."""

import ast
import copy
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin

from fiat_jax.errors import UserError, did_you_mean
from fiat_jax.remote import fetched

C = TypeVar("C")


class Config:
    """Bindings from files and flags, over a set of named sections (dataclasses).

    `build` makes a section: each field comes from gin, or is a section itself, or keeps its default. `scopes` are names
    besides the parts of a mixture that settings may stand under, as in `other/Endpoint.url`.
    """

    def __init__(
        self,
        sections: Mapping[str, type],
        files: Sequence[str] = (),
        bindings: Sequence[str] = (),
        scopes: Sequence[str] = (),
    ):
        gin.clear_config(clear_constants=True)
        gin.config._LOCATION_PREFIXES[:] = [""]  # pyright: ignore  # gin keeps the places of earlier files
        del gin.config._FILE_READERS[1:]  # pyright: ignore  # files alone: no Python package is looked into for them
        self._sections = dict(sections)
        for name, section in sections.items():
            if f"fiat.{name}" not in gin.config._REGISTRY:  # pyright: ignore  # gin registers a name once a process
                gin.external_configurable(_maker(name, section), name=name, module="fiat")
        self._parse(files, bindings, scopes)

    def _parse(self, files: Sequence[str], bindings: Sequence[str], scopes: Sequence[str]) -> None:
        self._read(files, bindings)
        mixture = gin.config._CONFIG.get(("", "fiat.Mixture"), {})  # pyright: ignore
        for part, file in dict(mixture.get("files", {})).items():
            self._read_part(part, file)
        parts = mixture.get("rates", {})
        for scope, selector in gin.config._CONFIG:  # pyright: ignore
            if scope and selector != "gin.macro" and scope not in (*parts, *scopes):
                known = f"; parts are {', '.join(parts)}.{did_you_mean(scope, parts)}" if parts else ""
                name = selector.split(".")[-1]
                raise UserError(f"{scope}/{name}: {scope!r} is no part of Mixture.rates; leave out {scope}/{known}")

    def _read(self, files: Sequence[str], bindings: Sequence[str]) -> None:
        files = [str(fetched(file)) for file in files]
        for file in files:
            if not Path(file).is_file():
                what = "is a folder" if Path(file).is_dir() else "no such file"
                raise UserError(f"--gin_file={file}: {what}")
            try:
                Path(file).read_text("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"--gin_file={file}: byte {error.start + 1} is not UTF-8; save it as UTF-8") from None
            for parent in Path(file).resolve().parents:  # so that a file includes others wherever `fiat` is started
                gin.add_config_file_search_path(str(parent))
        parsed = [_forgiving(binding) for binding in bindings]
        try:
            gin.parse_config_files_and_bindings(list(files), parsed, skip_unknown=False, finalize_config=False)
        except (ValueError, SyntaxError, TypeError, OSError, AttributeError, NameError) as error:
            raise UserError(_explain(_own_words(error), self._sections)) from None

    def _read_part(self, part: str, file: str) -> None:
        """Read the file of a part of a mixture: its settings are the part's, where none has been given by name.

        Its macros are its own too, but for those that flags and the mixture's files set.
        """
        bound: dict[Any, dict[str, Any]] = gin.config._CONFIG  # pyright: ignore
        held = dict(bound)
        bound.clear()
        self._read([file], [])
        bound.update({key: params for key, params in held.items() if key[1] == "gin.macro"})
        try:  # gin copies a macro as its value
            own = {key: copy.deepcopy(params) for key, params in bound.items() if key[1] != "gin.macro"}
        except ValueError as error:
            raise UserError(_explain(_own_words(error), self._sections)) from None
        bound.clear()
        bound.update(held)
        for (scope, selector), params in own.items():
            if scope:
                raise UserError(f"{file} sets {scope}/{selector.split('.')[-1]}; the file of a part has no parts")
            bound[part, selector] = {**params, **bound.get((part, selector), {})}

    def build(self, section: type[C], scope: str = "", **given: Any) -> C:
        """Return a section, with what is set for the part `scope`; `given` fields overrule what gin says."""
        hints = typing.get_type_hints(section)
        kwargs = dict(given)
        for field in dataclasses.fields(section):  # pyright: ignore
            if field.name not in kwargs and hints[field.name] in self._sections.values():
                kwargs[field.name] = self.build(hints[field.name], scope)
        try:
            with gin.config_scope(scope or None):
                return gin.get_configurable(self._name(section))(**kwargs)
        except UserError as error:  # gin appends where a call came from to the message
            raise UserError(_own_words(error)) from None
        except (TypeError, ValueError) as error:
            raise UserError(_explain(_own_words(error), self._sections)) from None

    def binds(self, section: str, scope: str | None = None) -> bool:
        """Whether any file or flag sets a parameter of this section: of any part, or of the one named."""
        bound = gin.config._CONFIG  # pyright: ignore
        return any(selector.split(".")[-1] == section and scope in (None, part) for part, selector in bound)

    def overlay(self, value: C) -> C:
        """Return a section with those of its fields replaced that a file or flag sets."""
        name = self._name(type(value))
        hints = typing.get_type_hints(type(value))
        found = [p for key, p in gin.config._CONFIG.items() if key == ("", f"fiat.{name}")]  # pyright: ignore
        bound = {key: _typed(f"{name}.{key}", item, hints[key]) for params in found for key, item in params.items()}
        return dataclasses.replace(value, **bound)  # pyright: ignore  # sections are dataclasses

    def _name(self, section: type) -> str:
        return next(name for name, known in self._sections.items() if known is section)


def _maker(name: str, section: type) -> Callable[..., Any]:
    """Return what gin calls in place of a section: it checks that what it is given is of the fields' types."""
    hints = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}

    def make(**kwargs: Any) -> Any:
        for field in fields.values():
            has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
            if field.name not in kwargs and not has_default:
                raise UserError(f"{name}.{field.name} is not set; give it as --gin.{name}.{field.name}=VALUE")
        return section(**{key: _typed(f"{name}.{key}", value, hints[key]) for key, value in kwargs.items()})

    make.__signature__ = inspect.signature(section)  # pyright: ignore  # gin refuses parameters that are not in it
    make.__name__ = section.__name__
    return make


def _typed(where: str, value: Any, hint: Any) -> Any:
    """Return a value as its field's type, whole numbers as floats and one value as a tuple of one; else UserError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for one in args:
            try:
                return _typed(where, value, one)
            except UserError:
                continue
    elif origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_typed(where, item, args[0]) for item in items)
    elif origin is Mapping:
        if isinstance(value, Mapping):
            return {_typed(where, key, args[0]): _typed(where, item, args[1]) for key, item in value.items()}
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, float, str, bool, types.NoneType):
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    else:
        return value
    wanted = hint.__name__ if isinstance(hint, type) else str(hint)
    raise UserError(f"{where} is {value!r}; it must be of type {wanted}")


def _forgiving(binding: str) -> str:
    """Return "NAME = VALUE"; a value that is no Python literal, reference or macro is taken as a string."""
    name, separator, value = binding.partition("=")
    if not separator:
        raise UserError(f"--gin.{binding}: expected --gin.NAME=VALUE")
    try:
        value = repr(ast.literal_eval(value))  # 30,0 is a tuple to Python, and is one to gin in brackets
    except (ValueError, SyntaxError):
        if "%" not in value and not value.startswith("@"):
            value = repr(value)
    return f"{name.strip()} = {value}"


def _own_words(error: Exception) -> str:
    return str(error).split("\n  In call to configurable")[0].strip()


def _explain(message: str, sections: Mapping[str, type]) -> str:
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
    if message.startswith("macro()"):
        return "a value names a %MACRO that no file or flag sets; give it as --gin.MACRO=VALUE"
    return re.sub(r"\s*\n\s*", "; ", message)
