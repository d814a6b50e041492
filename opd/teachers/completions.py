"""Asks vLLM's OpenAI-compatible server in JSON: as patient with it, and as careful, as with `opd serve`.

Teachers that read (opd/teachers/vllm.py) and servers that write for a student (opd/engines/vllm.py) are asked so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from opd.errors import SettingError, Unanswered
from opd.serve import bearer
from opd.teachers.replicas import RESUME, Again, Question, Replica, Replicas, named

JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Card:
    """What a server says of one model."""

    model: str  # its name
    root: str  # where the server found it
    context: int  # tokens of a text and of what is written after it


class Completions(Replicas):
    """Servers that take a question as JSON and answer it with one JSON object, which `ask` gives as the only block."""

    server: ClassVar[str] = "vLLM"
    another: ClassVar[int] = 404  # it knows no model of that name

    def models(self) -> list[dict[str, Card]]:
        """The models of every server, by name."""
        return [_cards(said, url) for url, said in zip(self.urls, self.get("/v1/models"), strict=True)]

    def tried(self, path: str, body: Mapping[str, Any], of: Replica) -> tuple[int, Any]:
        """The status and the JSON of one server's answer, asked once: what it refuses says what it can."""
        return self.background.run(self._tried(path, body, of))

    def _secret(self, local: bool) -> str:
        return bearer.of_client(local=False)  # the one that `opd serve` keeps on this machine is not vLLM's

    async def _tried(self, path: str, body: Mapping[str, Any], member: Replica) -> tuple[int, Any]:
        import httpx

        try:
            response = await member.client.post(path, json=body)
            return response.status_code, response.json()
        except httpx.TransportError as error:
            what = f"{member.url} did not answer at {path}"
            raise Unanswered(what, got=named(error), remedy="A longer --teacher-timeout may help") from None
        except ValueError:
            raise Unanswered(f"{member.url}{path} is no address of vLLM", got="no JSON") from None

    async def _sent(self, member: Replica, question: Question) -> list[Any]:
        import httpx

        self.counts["requests"] += 1
        self.counts["bytes.sent"] += len(question.body)
        method, body = "POST" if question.body else "GET", bytearray()
        try:
            async with member.client.stream(method, question.path, content=question.body, headers=JSON) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise self._refused(member, response)
                async for piece in response.aiter_bytes():
                    self.counts["bytes.received"] += len(piece)
                    body += piece
                    if len(body) > question.limit:
                        what = f"{member.url} answered with more than can be"
                        raise Unanswered(what, got=f"over {question.limit} bytes", remedy=RESUME)
            return [json.loads(body)]
        except httpx.TransportError as error:
            raise Again(named(error)) from None
        except ValueError:
            raise Again("an answer that is no JSON") from None


def _cards(said: Any, url: str) -> dict[str, Card]:
    try:
        cards = [Card(str(c["id"]), str(c.get("root", "")), int(c["max_model_len"])) for c in said["data"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{url} is no vLLM server, or says nothing of its models"
        raise SettingError(what, got=f"{type(error).__name__} {error}") from None
    return {card.model: card for card in cards}
