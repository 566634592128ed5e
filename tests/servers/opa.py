"""OPA's own engine, as an oracle for the embedded one. `tests/servers/install_opa.sh` installs it into .tools/opa."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from cluster.admission.bundle import PolicyBundle
from cluster.admission.policy_engine import PolicyEngineError
from cluster.settings import PROJECT_ROOT

FOLDER = PROJECT_ROOT / ".tools" / "opa"


def opa_module() -> Any:
    """Return the module; skips the test when it is not installed, and fails it in CI."""
    if not (FOLDER / "opa_bindings").is_dir():
        missing = "OPA's engine is not installed: run tests/servers/install_opa.sh"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    import opa_bindings

    return opa_bindings


class OpaOracle:
    """The policy-engine port over OPA's engine in this process."""

    def __init__(self, bundle: PolicyBundle, *, extra: tuple[tuple[str, str], ...] = ()) -> None:
        self._opa = opa_module()
        self._bundle = bundle
        self._engine = self._opa.OpaEngine()
        for name, text in (*bundle.modules, *extra):
            self._engine.add_policy(name, text)
        self._engine.add_data(json.loads(bundle.data_json))

    @property
    def revision(self) -> str:
        return self._bundle.revision

    @property
    def digest(self) -> str:
        return self._bundle.digest

    def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
        answer = self.value(entrypoint, input_json)
        if not isinstance(answer, dict):
            raise PolicyEngineError(f"The policy has no answer at {entrypoint}.")
        return answer

    def value(self, entrypoint: str, input_json: str) -> Any:
        try:
            return self._engine.eval_document(entrypoint.removeprefix("data."), json.loads(input_json))
        except (self._opa.OpaError, ValueError) as e:
            raise PolicyEngineError(str(e)) from None

    def close(self) -> None:
        self._engine.close()
