"""YAML as files of policy and prices may have it: plain values, and each key once."""

from __future__ import annotations

from typing import Any

import yaml


class _StrictLoader(yaml.CSafeLoader):
    """Safe YAML in which a key can stand only once in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; raises a YAMLError for a key that stands twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_strict_yaml(text: str) -> Any:
    """Return the value of a YAML document; raises yaml.YAMLError."""
    return yaml.load(text, _StrictLoader)  # noqa: S506  # a SafeLoader
