"""`sovereign invoke`: one call of one agent, whole or word by word."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cli.http import ApiClient
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, printable


def invoke(
    agent_id: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's id.", show_default=False)],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to ask; `-` reads it from stdin.", show_default=False)],
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer as it comes; with --json, one chunk a line.")
    ] = False,
    conversation: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on with this conversation, which the agent remembers.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="At most this many tokens of answer.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Ask an agent something and print its answer."""
    content = sys.stdin.read() if text == "-" else text
    body: dict[str, Any] = {"model": agent_id, "messages": [{"role": "user", "content": content}]}
    if conversation is not None:
        body["metadata"] = {"conversation_id": conversation}
    if max_tokens is not None:
        body["max_completion_tokens"] = max_tokens
    with ApiClient(settings_of(home), calls=True) as api:
        if stream:
            _print_stream(api, {**body, "stream": True, "stream_options": {"include_usage": True}})
            return
        answer = api.request("POST", "/v1/chat/completions", body=body)
    OUTPUT.result(answer, lambda console: print(printable(_content(answer))))


def _content(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"].get("content") or "")


def _print_stream(api: ApiClient, body: dict[str, Any]) -> None:
    with api.events("/v1/chat/completions", body) as events:
        for event in events:
            if OUTPUT.as_json:
                OUTPUT.record(event)
                continue
            for choice in event.get("choices", ()):
                print(printable(choice.get("delta", {}).get("content") or ""), end="", flush=True)
    if not OUTPUT.as_json:
        print()
