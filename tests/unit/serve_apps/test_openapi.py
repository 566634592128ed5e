"""The document at /openapi.json: a client can be made from it, and what it says of bodies is what is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openapi_spec_validator
import pytest
from jsonschema import Draft202012Validator

from actors.directory import Directory, Governance
from actors.invoker import Invoker
from cluster import wiring
from cluster.agents.registration import parse_registration
from cluster.clock import SystemClock
from cluster.errors import InvalidRequestError
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from serve_apps.app import create_app
from serve_apps.edge import Edge


@pytest.fixture
async def document(tmp_path: Path) -> dict[str, Any]:
    """As a client fetches it, of a gateway that has not spoken to anybody yet."""
    settings = Settings.load(home=tmp_path)
    metrics, governance = Metrics(settings.metrics_dir, "gateway"), Governance()
    edge = Edge(
        settings,
        authenticator=wiring.build_authenticator(settings),
        governance=governance,
        invoker=Invoker(Directory(governance, metrics), places=64),
        journal=wiring.open_journal(settings, "gateway.test"),
        gate=wiring.journal_gate(settings),
        metrics=metrics,
        clock=SystemClock(),
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(edge)), base_url="http://gateway") as client:
        answer = await client.get("/openapi.json")
    edge.close()
    document: dict[str, Any] = answer.json()
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def values_of(node: Any, name: str) -> Iterator[Any]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == name:
                yield value
            yield from values_of(value, name)
    elif isinstance(node, list):
        for each in node:
            yield from values_of(each, name)


def test_the_document_is_whole(document: dict[str, Any]) -> None:
    """It is valid OpenAPI, and every schema and security scheme that it names is in it."""
    openapi_spec_validator.validate(document)
    components = document["components"]
    named = set(values_of(document, "$ref"))
    assert named
    assert {ref.removeprefix("#/components/schemas/") for ref in named} <= components["schemas"].keys()
    assert not list(values_of(document, "$defs"))
    schemes = {scheme for _, o in operations(document) for choice in o.get("security", []) for scheme in choice}
    assert schemes == components["securitySchemes"].keys() == {"bearer"}


def test_every_operation_says_what_it_is_for(document: dict[str, Any]) -> None:
    """In a few words, which are not its path again; and everything but health needs a key."""
    for name, operation in operations(document):
        assert re.fullmatch(r"[A-Z][^/]{3,}", operation["summary"]), name
        assert ("security" in operation) != ("/health/" in name), name
        assert operation["responses"]["4XX"]["content"].popitem()[1]["schema"]["$ref"], name


def test_a_stream_of_events_is_an_answer_of_chat_completions(document: dict[str, Any]) -> None:
    """Beside the whole completion."""
    done = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert done.keys() == {"application/json", "text/event-stream"}


@pytest.mark.parametrize(
    ("limits", "taken"),
    [
        ({"cpu": "1000m", "memory": "2Gi"}, True),
        ({"cpu": 2, "memory": 1 << 30}, True),
        ({"cpu": "0.5", "memory": "1G"}, True),
        *(({"cpu": wrong}, False) for wrong in (True, "-1", [], "1000 m", "1 Gi", -1)),
    ],
)
def test_quantities_are_described_as_they_are_taken(document: dict[str, Any], limits: dict[str, Any], taken: bool) -> None:
    """As text with a unit, or as a whole number: a generated client can send what the parser takes."""
    body = {"agent_id": "a", "capabilities": ["conversation"], "security_policy": {"resource_limits": limits}}
    schema = document["paths"]["/api/v1/agents"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert Draft202012Validator(schema | {"components": document["components"]}).is_valid(body) == taken
    if taken:
        parse_registration(json.dumps(body).encode())
    else:
        with pytest.raises(InvalidRequestError):
            parse_registration(json.dumps(body).encode())
