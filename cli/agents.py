"""`sovereign agents`: register through governance, list, show, update, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from cli.http import ApiClient
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table
from cli.registration_file import read_registration
from cluster.errors import InvalidRequestError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(help="Register, list, show, update and remove agents.", no_args_is_help=True, rich_markup_mode=None)

AgentId = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's id.", show_default=False)]
Listed = list[str] | None


def _several(help_text: str, *names: str) -> Any:
    return typer.Option(*names, metavar="NAME", help=f"{help_text} (may be given more than once).", show_default=False)


@app.command()
def register(
    agent_id: Annotated[
        str | None, typer.Argument(metavar="AGENT", help="The agent's id, unless the file names it.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A JSON or YAML file of the request; `-` reads it from stdin.")
    ] = None,
    capability: Annotated[Listed, _several("A capability that it asks for", "--capability", "-c")] = None,
    tool: Annotated[Listed, _several("A tool that it may call", "--tool")] = None,
    network: Annotated[Listed, _several("A network that its tools may reach", "--network")] = None,
    compliance: Annotated[Listed, _several("A compliance framework that it must meet", "--compliance")] = None,
    agent_type: Annotated[str | None, typer.Option("--type", help="Kind of agent, for example planner.")] = None,
    cpu: Annotated[str | None, typer.Option(help="CPU that it declares, for example 500m or 1.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory that it declares, for example 512Mi.")] = None,
    data_access: Annotated[str | None, typer.Option(help="Data access level, for example strategic_read_only.")] = None,
    model: Annotated[str | None, typer.Option(help="Model as provider:model, for example openai:gpt-4o.")] = None,
    max_iterations: Annotated[int | None, typer.Option(min=1, help="Model calls that one call of the agent may make.")] = None,
    instructions: Annotated[str | None, typer.Option(help="What the agent is told before every call.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Register an agent through governance; a refusal names every failed check."""
    body = read_registration(file) if file is not None else {}
    policy = dict(body.get("security_policy") or {})
    resources = dict(policy.get("resource_limits") or {})
    resources |= _given(cpu=cpu, memory=memory)
    policy |= _given(
        agent_type=agent_type,
        allowed_tools=tool,
        network_access=network,
        data_access_level=data_access,
        max_iterations=max_iterations,
        resource_limits=resources,
    )
    body |= _given(
        agent_id=agent_id,
        capabilities=capability,
        compliance_requirements=compliance,
        model=model,
        instructions=instructions,
        security_policy=policy,
    )
    if "agent_id" not in body:
        raise InvalidRequestError("No agent is named.", hint="Give its id: sovereign agents register my-agent -c market_analysis")
    with ApiClient(settings_of(home)) as api:
        answer = api.request("POST", "/api/v1/agents", body=body)
    OUTPUT.result(answer, lambda console: _render_registered(console, answer))


@app.command("list")
def list_agents(
    after: Annotated[str | None, typer.Option(help="Start after this agent id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 100,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the registered agents, by id."""
    with ApiClient(settings_of(home)) as api:
        page = api.request("GET", "/api/v1/agents", params={"after": after, "limit": limit})
    OUTPUT.result(page, lambda console: _render_page(console, page))


@app.command()
def show(agent_id: AgentId, home: Home = None, as_json: Json = False) -> None:
    """Show one agent: what was admitted, and its state."""
    with ApiClient(settings_of(home)) as api:
        agent = api.request("GET", f"/api/v1/agents/{quote(agent_id, safe='')}")
    OUTPUT.result(agent, lambda console: console.print_json(data=agent))


@app.command()
def update(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON or YAML file of the whole request; `-` is stdin.")],
    if_match: Annotated[
        str | None, typer.Option(help="Only if the agent still has this specification (its spec_digest).")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Change a registered agent to what the file says; its next call runs it as a new generation."""
    body = read_registration(file)
    agent_id = body.get("agent_id")
    if not isinstance(agent_id, str) or not agent_id:
        raise InvalidRequestError("No agent is named.", hint="Give agent_id in the file.")
    headers = {"If-Match": if_match if if_match == "*" else f'"{if_match}"'} if if_match else {}
    with ApiClient(settings_of(home)) as api:
        answer = api.request("PUT", f"/api/v1/agents/{quote(agent_id, safe='')}", body=body, headers=headers)
    words = f"{agent_id} is {answer['status']}; security clearance: {answer.get('security_clearance', '')}"
    OUTPUT.result(answer, lambda console: console.print(words, markup=False, highlight=False))


@app.command()
def remove(agent_id: AgentId, home: Home = None, as_json: Json = False) -> None:
    """Revoke an agent: calls are refused from now on, and its quota is free again."""
    with ApiClient(settings_of(home)) as api:
        answer = api.request("DELETE", f"/api/v1/agents/{quote(agent_id, safe='')}")
    data = answer if answer is not None else {"status": "removed", "agent_id": agent_id}
    OUTPUT.result(data, lambda console: console.print(f"{agent_id} is removed.", markup=False, highlight=False))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value not in ({}, [])}


def _render_registered(console: Console, answer: dict[str, Any]) -> None:
    clearance = answer.get("security_clearance", "")
    console.print(f"{answer['agent_id']} is {answer['status']}; security clearance: {clearance}", markup=False, highlight=False)


def _render_page(console: Console, page: dict[str, Any]) -> None:
    agents = page["agents"]
    if not agents:
        console.print("No agent is registered.")
        return
    columns = ["agent", "state", "model", "cpu", "memory", "tools", "registered"]
    rows = [
        [
            agent["agent_id"],
            agent["state"],
            agent["model"],
            agent["resources"]["cpu"],
            agent["resources"]["memory"],
            ", ".join(agent["tools"]),
            agent["created_at"][:19].replace("T", " "),
        ]
        for agent in agents
    ]
    console.print(table(columns, rows, right=["cpu", "memory"]))
    if page.get("next"):
        console.print(f"More: sovereign agents list --after {page['next']}", markup=False, highlight=False)
