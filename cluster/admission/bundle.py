"""The policy bundle: all rules and all data, read once, checked, and named by one digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import orjson
import yaml
from pydantic import ValidationError

from cluster.admission.catalog import Catalog
from cluster.admission.strict_yaml import parse_strict_yaml
from cluster.errors import ConfigurationError, FieldError

_MAX_FILE_BYTES: Final = 1 << 20
_TEST_SUFFIX: Final = "_test.rego"


@dataclass(frozen=True)
class PolicyBundle:
    """Rules and data of one revision. Two bundles with one digest decide everything alike."""

    revision: str
    # SHA-256 (hex) over names and contents of all files, in order of their names.
    digest: str
    # File name and text of each rule file, tests left out.
    modules: tuple[tuple[str, str], ...]
    catalog: Catalog
    # The document that the rules see: {"catalog": …}.
    data_json: str


def load_bundle(folder: Path) -> PolicyBundle:
    """Return the bundle of `folder` (`*.rego`, `data/*.yaml`).

    Raises ConfigurationError, which names file and field, when anything is missing, unknown or of the wrong form: there
    is no partly loaded policy.
    """
    return bundle_of(read_policies(folder), str(folder))


def read_policies(folder: Path) -> dict[str, bytes]:
    """Return the files that make up the policy in `folder`, by name, tests left out; raises ConfigurationError."""
    rules = sorted(p for p in folder.glob("*.rego") if not p.name.endswith(_TEST_SUFFIX))
    data = sorted((folder / "data").glob("*.yaml"))
    if not rules or not data:
        raise ConfigurationError(
            f"There is no policy in {folder}: it needs *.rego and data/*.yaml.",
            hint="Set SOVEREIGN_POLICY_DIR to a folder that has them.",
        )
    return {path.relative_to(folder).as_posix(): _read(path) for path in (*rules, *data)}


def bundle_of(files: Mapping[str, bytes], source: str) -> PolicyBundle:
    """Return the bundle of these files, which came from `source`; raises ConfigurationError as `load_bundle` does."""
    rules = sorted(name for name in files if "/" not in name)
    data = sorted(name for name in files if "/" in name)
    if not rules or not data:
        raise ConfigurationError(f"There is no policy in {source}: it needs *.rego and data/*.yaml.")
    digest = hashlib.sha256()
    texts: dict[str, str] = {}
    for name in (*rules, *data):
        content = files[name]
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        try:
            texts[name] = content.decode()
        except UnicodeDecodeError as e:
            raise ConfigurationError(f"The policy file {source}/{name} is not UTF-8 at byte {e.start}.") from None
    catalog = _catalog({PurePosixPath(n).stem: _yaml(f"{source}/{n}", texts[n]) for n in data}, source)
    return PolicyBundle(
        revision=catalog.manifest.revision,
        digest=digest.hexdigest(),
        modules=tuple((name, texts[name]) for name in rules),
        catalog=catalog,
        data_json=orjson.dumps({"catalog": catalog.model_dump(mode="json")}).decode(),
    )


def _yaml(path: str, text: str) -> Any:
    try:
        return parse_strict_yaml(text)
    except yaml.YAMLError as e:
        raise ConfigurationError(f"The policy file {path} is not YAML that can be taken: {e}") from None


def _catalog(files: dict[str, Any], source: str) -> Catalog:
    try:
        return Catalog.model_validate(files)
    except ValidationError as e:
        errors = [FieldError(".".join(map(str, x["loc"])) or "data", x["msg"].removeprefix("Value error, ")) for x in e.errors()]
    raise ConfigurationError(f"The policy data in {source}/data can't be taken; no policy was loaded.", errors=errors)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as e:
        raise ConfigurationError(f"The policy file {path} can't be read: {e.strerror}.") from None
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"The policy file {path} has {len(content)} bytes; the most is {_MAX_FILE_BYTES}.")
    return content
