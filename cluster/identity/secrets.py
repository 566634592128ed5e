"""Secrets by reference: what is written down names where one is, and only the process that needs it reads it, when it does.

A reference is `<source>:<name>`. What stands behind a source is a `SecretSource`; one for a vault is one class more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, NoReturn, Protocol

from pydantic import AfterValidator

from cluster.errors import ConfigurationError

MAX_SECRET_BYTES: Final = 16 << 10
KUBERNETES_DIR: Final = Path("/var/run/secrets/sovereign")
_REFERENCE = re.compile(
    r"(env):([A-Za-z_][A-Za-z0-9_]{0,127})|(file):(/[^\0\n]{1,500})|(k8s):([a-z0-9][a-z0-9.-]{0,252}/[\w.-]{1,253})"
)


class SecretSource(Protocol):
    """Where secrets of one kind of reference are."""

    def read(self, name: str) -> str:
        """Return the secret of this name; raises LookupError or OSError, with nothing of the secret in it."""
        ...


class Secret:
    """A secret in memory: nothing but `reveal` shows it, and it can't leave the process by accident."""

    __slots__ = ("_value", "reference")

    def __init__(self, reference: str, value: str) -> None:
        self.reference = reference
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself, for the one who has to send it."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.reference})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} is not to leave its process; send its reference.")


class EnvironmentSource:
    """`env:NAME`: a variable of the process that reads it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def read(self, name: str) -> str:
        """Return the variable's value."""
        return self._environment[name]


class FileSource:
    """`file:/path`: a file that others than its owner and group can't read."""

    def read(self, name: str) -> str:
        """Return the file's text; raises PermissionError when everybody may read it."""
        with Path(name).open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o007:
                raise PermissionError("everybody on this machine may read it; chmod o-rwx")
            data = file.read(MAX_SECRET_BYTES + 1)
        if len(data) > MAX_SECRET_BYTES:
            raise LookupError(f"it has more than {MAX_SECRET_BYTES} bytes")
        return data.decode()


class KubernetesSource:
    """`k8s:secret/key`: a key of a Secret that is mounted below one folder, each Secret as a folder of its name."""

    def __init__(self, mounted: Path = KUBERNETES_DIR) -> None:
        self._mounted = mounted

    def read(self, name: str) -> str:
        """Return the key's text."""
        path = (self._mounted / name).resolve()
        if not path.is_relative_to(self._mounted.resolve()):
            raise LookupError("it is outside of the mounted secrets")
        data = path.read_bytes()  # who mounts it says who may read it
        if len(data) > MAX_SECRET_BYTES:
            raise LookupError(f"it has more than {MAX_SECRET_BYTES} bytes")
        return data.decode()


class Secrets:
    """Every source by the word that references begin with."""

    def __init__(self, sources: Mapping[str, SecretSource]) -> None:
        self._sources = dict(sources)

    def resolve(self, reference: str) -> Secret:
        """Return what `reference` names, without white space round it.

        Raises ConfigurationError, which names the reference and what is wrong with it, and nothing that was read.
        """
        source, _, name = check_reference(reference).partition(":")
        if source not in self._sources:
            raise ConfigurationError(
                f"No source of secrets answers for {reference}.", hint=f"There are: {', '.join(self._sources)}."
            )
        try:
            value = self._sources[source].read(name).strip()
        except UnicodeDecodeError:
            raise ConfigurationError(f"The secret {reference} is not text in UTF-8.") from None
        except KeyError:
            raise ConfigurationError(f"The secret {reference} is not set here.") from None
        except (LookupError, OSError) as e:
            why = (isinstance(e, OSError) and e.strerror) or e
            raise ConfigurationError(f"The secret {reference} can't be read: {why}.") from None
        if not value:
            raise ConfigurationError(f"The secret {reference} is empty.")
        return Secret(reference, value)


def check_reference(text: str) -> str:
    """Return `text` if it is a reference; raises ValueError that does not repeat it, for it may be a secret."""
    if not _REFERENCE.fullmatch(text):
        raise ValueError("must be a reference such as env:NAME, file:/path or k8s:secret/key; a secret itself is not taken")
    return text


def _check_optional(text: str) -> str:
    return check_reference(text) if text else text


def _check_named(text: str) -> str:
    named_references(text)
    return text


def named_references(text: str) -> dict[str, str]:
    """Return the references of `name=reference,…` by name; raises ValueError that repeats nothing of a reference."""
    named: dict[str, str] = {}
    for part in text.split(",") if text else []:
        name, equals, reference = part.strip().partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name) or name in named:
            raise ValueError("must be name=reference, separated by commas, each name once")
        named[name] = check_reference(reference)
    return named


# For settings: where a secret is, or nothing.
SecretReference = Annotated[str, AfterValidator(_check_optional)]
NamedSecretReferences = Annotated[str, AfterValidator(_check_named)]


def usual_secrets() -> Secrets:
    """Return the sources of this process: its environment, files, and mounted Kubernetes secrets."""
    environment = EnvironmentSource(os.environ)
    return Secrets({"env": environment, "file": FileSource(), "k8s": KubernetesSource()})
