"""Reading of YAML files: plain data by the YAML 1.2 core schema, and nothing that runs."""

from __future__ import annotations

import pathlib
import re

import yaml

from hjepa_jax.storage import files
from hjepa_jax.storage.schema import MAX_DEPTH

_MOST_BYTES = 2**20
_TAG = "tag:yaml.org,2002:"
# PyYAML follows YAML 1.1, where 1e-3 is text and `no` is False.
_CORE = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?\d+", "-+0123456789"),
    ("float", r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
)


class _Loader(yaml.SafeLoader):
    """Reads text, numbers, truth values, null, lists, and mappings; no aliases, no tags."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - add_implicit_resolver fills it
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias (*name): write the value itself")
        if tag := getattr(self.peek_event(), "tag", None):
            raise ValueError(f"it has the tag {tag[:60]!r}: write the value without it")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the field {str(twice[0])[:40]!r} occurs twice")
        return super().construct_mapping(node, deep)


def _whole_number(loader: yaml.Loader, node: yaml.ScalarNode) -> int:
    """Returns 10 for 010, which PyYAML reads as 8."""
    return int(str(loader.construct_scalar(node)))


for _tag, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(f"{_TAG}{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))
_Loader.add_constructor(f"{_TAG}int", _whole_number)


def read_yaml(path: pathlib.Path) -> dict[str, object]:
    """Reads a YAML file whose content is a mapping with text as keys.

    Args:
      path: the file; only a regular one of at most 1 MiB is read.

    Raises:
      OSError: if it cannot be read, is not a regular file or is too large.
      ValueError: one line that names the file, if it is not YAML or not a mapping.
    """
    try:
        loader = _Loader(files.read_regular(path, _MOST_BYTES).decode())
        content = loader.get_single_data()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{place}: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} cannot be read as YAML: {reason}.") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} must be a mapping of sections, such as 'train: {{lr: 0.1}}'.")
    return content
