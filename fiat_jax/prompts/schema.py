"""Reading a YAML file so that every mistake is named by its place in the file."""

from collections.abc import Mapping
from typing import Any

import yaml

from fiat_jax.errors import UserError, did_you_mean


class Section:
    """One mapping of the file; each key is taken once, and `done` refuses the keys that nobody took."""

    def __init__(self, content: Any, where: str):
        if not isinstance(content, dict):
            raise UserError(f"{where} must be a mapping of names to values, not {_kind(content)}")
        self.content: dict[Any, Any] = content
        self.where = where
        self._known: set[str] = set()

    def has(self, key: str) -> bool:
        self._known.add(key)
        return self.content.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        return self._take(key, str, "text (in quotes where it is a number or yes/no)", default)

    def section(self, key: str) -> "Section":
        return Section(self._take(key, dict, "a mapping"), self._place(key))

    def items(self, key: str) -> list[Any]:
        return self._take(key, list, "a list", [])

    def flag_or_mapping(self, key: str) -> dict[str, Any] | None:
        """Return None for `false` or nothing, {} for `true`, or the mapping that stands there."""
        self._known.add(key)
        value = self.content.get(key)
        if value is None or value is False:
            return None
        if value is True:
            return {}
        if not isinstance(value, dict):
            raise UserError(f"{self._place(key)} must be true, false or a mapping, not {_kind(value)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{self._place(key)} must be a list of texts, in quotes where they are numbers")
        return tuple(values)

    def done(self) -> None:
        """Refuse what the file says and nobody reads."""
        for key in self.content:
            if key not in self._known:
                known = ", ".join(sorted(self._known))
                hint = did_you_mean(str(key), self._known)
                raise UserError(f"{self.where}: unknown key {key!r}; known here are {known}.{hint}")

    def _take(self, key: str, kind: type, named: str, default: Any = None) -> Any:
        self._known.add(key)
        value = self.content.get(key)
        if value is None:
            if default is None:
                hint = did_you_mean(key, map(str, self.content))
                raise UserError(f"{self.where}: {key!r} is missing; add it.{hint}")
            return default
        if not isinstance(value, kind):
            raise UserError(f"{self._place(key)} must be {named}, not {_kind(value)}")
        return value

    def _place(self, key: str) -> str:
        return f"{self.where}: {key}" if ":" not in self.where else f"{self.where}.{key}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: `yes` and `no` are words, as whoever writes `neutral: no` means them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} appears twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str, where: str) -> Section:
    """Parse one YAML document; errors name the line."""
    try:
        return Section(yaml.load(text, _Loader), where)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {error.problem}; this is not valid YAML") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: {error}; this is not valid YAML") from None


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    names = {str: "a text", list: "a list", bool: "true/false", type(None): "nothing"}
    return names.get(type(value), f"the {type(value).__name__} {value!r}")
