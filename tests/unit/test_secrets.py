"""Secrets by reference: nothing but the one who needs a secret ever shows it."""

from __future__ import annotations

import json
import pickle
import traceback
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import wiring
from cluster.agents.models import build_model
from cluster.agents.registration import parse_registration
from cluster.errors import ConfigurationError, InvalidRequestError
from cluster.identity.secrets import (
    MAX_SECRET_BYTES,
    EnvironmentSource,
    FileSource,
    KubernetesSource,
    Secret,
    Secrets,
    check_reference,
    named_references,
)
from cluster.settings import Settings

PLANTED = "planted-4f9c2a71"


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """One reference of each kind, each to PLANTED with its kind behind it."""
    file = tmp_path / "key"
    file.write_text(f"{PLANTED}-file\n")
    file.chmod(0o600)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "key").write_text(f"{PLANTED}-k8s")
    return {"env": "env:PLANTED_KEY", "file": f"file:{file}", "k8s": "k8s:store/key"}


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    environment = {"PLANTED_KEY": f"{PLANTED}-env", "EMPTY": " "}
    return Secrets({"env": EnvironmentSource(environment), "file": FileSource(), "k8s": KubernetesSource(tmp_path)})


@pytest.mark.parametrize("kind", ["env", "file", "k8s"])
def test_each_kind_of_reference_leads_to_its_secret(secrets: Secrets, places: dict[str, str], kind: str) -> None:
    assert secrets.resolve(places[kind]).reveal() == f"{PLANTED}-{kind}"


def test_a_secret_shows_itself_to_nobody(secrets: Secrets, places: dict[str, str]) -> None:
    """Not in text, not in JSON, not in a pickle, not in a traceback with its locals (control: Secret)."""
    secret = secrets.resolve(places["env"])
    assert PLANTED not in f"{secret} {secret!r} {[secret]} {vars(type(secret))}"
    for dump in (pickle.dumps, json.dumps, orjson.dumps):
        with pytest.raises(TypeError) as refused:
            dump(secret)
        shown = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
        assert PLANTED not in "".join(shown.format())


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("env:NOT_THERE", "is not set here"),
        ("env:EMPTY", "is empty"),
        ("file:/nowhere/at/all", "No such file"),
        ("k8s:store/none", "No such file"),
        ("k8s:../key", "must be a reference"),
        ("k8s:store/..", "outside|Is a directory"),
    ],
)
def test_what_can_not_be_read_is_named(secrets: Secrets, places: dict[str, str], reference: str, why: str) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=why):
        secrets.resolve(reference)


def test_a_file_that_everybody_may_read_is_no_place_for_a_secret(secrets: Secrets, places: dict[str, str]) -> None:
    path = Path(places["file"].removeprefix("file:"))
    path.chmod(0o604)
    with pytest.raises(ConfigurationError, match="chmod") as refused:
        secrets.resolve(places["file"])
    assert PLANTED not in str(refused.value)


def test_a_file_that_is_no_secret_is_not_swallowed(secrets: Secrets, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    large.chmod(0o600)
    with pytest.raises(ConfigurationError, match="more than"):
        secrets.resolve(f"file:{large}")


@given(st.text(min_size=1))
def test_only_a_reference_is_one_and_no_refusal_repeats_it(text: str) -> None:
    """A secret that was put where a reference belongs is not shown by the error (control: check_reference)."""
    with pytest.raises(ValueError, match="must be a reference") as refused:
        check_reference(f"x{text}")
    assert text not in str(refused.value) or len(text) < 4


@pytest.mark.parametrize("name", ["s3_secret_key", "model_keys", "otlp_headers"])
@pytest.mark.parametrize("value", [f"sk-{PLANTED}", f"openai={PLANTED}", f"vault:{PLANTED}"])
def test_a_setting_takes_no_secret_itself(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings.load(**{name: value})
    assert f"SOVEREIGN_{name.upper()}" in str(refused.value)
    assert PLANTED not in str(refused.value)


def test_names_are_given_once() -> None:
    assert named_references("openai=env:A, anthropic=file:/b") == {"openai": "env:A", "anthropic": "file:/b"}
    with pytest.raises(ValueError, match="each name once"):
        named_references("openai=env:A,openai=env:B")


def test_what_settings_name_is_looked_for_before_anything_starts(tmp_path: Path) -> None:
    """The start is refused, and not the first call that would have needed it (control: wiring.check_secrets)."""
    settings = Settings.load(home=tmp_path, model_keys=f"openai=file:{tmp_path}/none")
    with pytest.raises(ConfigurationError, match="none can't be read"):
        wiring.check_secrets(settings)


def test_half_of_the_stores_credentials_are_none(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path, lake_url="s3://b/p", s3_secret_key="env:PLANTED_KEY")
    with pytest.raises(ConfigurationError, match="half"):
        wiring.open_object_store(settings)


def test_a_model_has_its_key_and_shows_it_nowhere() -> None:
    model: Any = build_model("openai:gpt-5-mini", api_key=Secret("env:K", PLANTED))
    assert model.openai_api_key.get_secret_value() == PLANTED
    assert PLANTED not in f"{model!r} {model} {model.asdict()}"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-sov-abc-defg",
        "sk-proj-0123456789abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
        "-----BEGIN PRIVATE KEY-----\nMII",
    ],
)
def test_a_registration_holds_no_secret(secret: str) -> None:
    """It would be kept, listed and logged; the refusal names the field and not the secret (control: _without_secret)."""
    body = {"agent_id": "a", "capabilities": ["market_analysis"], "instructions": f"Use {secret} to log in."}
    with pytest.raises(InvalidRequestError) as refused:
        parse_registration(json.dumps(body).encode())
    assert [e.field for e in refused.value.errors] == ["instructions"]
    assert secret not in str(refused.value)
    parse_registration(json.dumps(body | {"instructions": "Ask for the password: never write it down."}).encode())
