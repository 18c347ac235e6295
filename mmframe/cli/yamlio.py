"""Reading and writing recipe YAML: places of the keys for error messages, no traps of YAML 1.1, no key twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mmframe.errors import UserError

KeyPath = tuple[str, ...]

# YAML 1.1 wants a dot in a float ("3e-4" would be a string); this is the form of YAML 1.2
_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)"
    r"|[-+]?(?:[0-9][0-9_]*)\.[0-9_]*|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


class RecipeLoader(yaml.SafeLoader):
    """SafeLoader with the numbers and booleans of YAML 1.2: 3e-4 is a number, `yes` and `no` are words."""


RecipeLoader.yaml_implicit_resolvers = {
    letter: [(tag, regexp) for tag, regexp in pairs if not tag.endswith((":float", ":int", ":bool", ":timestamp"))]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))


def parse_value(text: str) -> Any:
    """The value of a command-line override: YAML; what is not YAML is the text itself."""
    try:
        return yaml.load(text, RecipeLoader)
    except yaml.YAMLError:
        return text


def load(file: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Reads a YAML file.

    Returns:
        The content, and the place ("file:line") of every key path in it.

    Raises:
        UserError: If the file is missing, is not YAML, is not a mapping, or has a key twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, RecipeLoader)
        content = yaml.load(text, RecipeLoader)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise UserError(f"{file}: a recipe is a mapping of keys, this file holds a {type(content).__name__}")
    places: dict[KeyPath, str] = {}
    _walk(node, (), file, places)
    return content, places


def _walk(node: yaml.Node | None, path: KeyPath, file: Path, places: dict[KeyPath, str]) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, str(index)), file, places)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in seen and name != "<<":
            where = ".".join((*path, name))
            raise UserError(f"{file}:{line}: key '{where}' stands twice (also in line {seen[name]}); keep one")
        seen[name] = line
        places[(*path, name)] = f"{file}:{line}"
        _walk(value, (*path, name), file, places)


class _Dumper(yaml.SafeDumper):
    """Block style, but plain lists on one line. Quotes what any reader could take for a number or a boolean."""


def _represent_list(dumper: yaml.SafeDumper, data: list) -> yaml.Node:
    flat = all(not isinstance(item, (dict, list)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def dump(content: dict[str, Any]) -> str:
    """YAML text that `load` reads back as the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120)
