"""A teacher behind a chat endpoint that speaks OpenAI's language: it is sent messages and gives text, nothing else.

--teacher chat:URL#MODEL[,key=VARIABLE][,parallel=N][,cache=FOLDER][,price_in=X][,price_out=X][,budget=X]

Its text is what the student would have had to write: it is spelled in the student's tokens and ends as the student's
answers end. Nobody knows how likely its tokens were.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opd.errors import SettingError, TeacherError
from opd.protocols import Answer, Student, Want
from opd.rollout import Array, End, Message, Piece, Problem, Rollout, Sampling
from opd.settings import checked
from opd.tasks import parse
from opd.teachers.endpoint import Client, Endpoint, Reply

SEEDS = 2**31  # what endpoints take for a seed
COUNTED = ("answers", "changed", "cached", "requests", "retried", "read", "written")


class ChatTeacher:
    """Writes answers to the problems' messages; `student` says how a text is spelled."""

    can = frozenset({"text"})
    live = False
    is_free = False  # every answer may cost money, so it is asked for nothing but what is learned from

    def __init__(self, client: Client, student: Any, name: str = "teacher") -> None:
        self.client, self.student, self.name = client, student, name
        self.counts: Counter[str] = Counter()
        self.told: Counter[str] = Counter()

    @classmethod
    def of(cls, spec: str, student: Any, timeout: float, patience: float) -> ChatTeacher:
        """The teacher that `chat:URL#MODEL,...` names; timeout and patience as for Client, in seconds."""
        _, target, options = parse(spec)
        url, _, model = target.partition("#")
        if not re.match(r"https?://[^/@\s]+(/|$)", url) or not model:
            got = "a user or key in it" if "@" in url else repr(target)
            raise SettingError("the teacher's URL", got=got, expected="chat:http(s)://HOST/v1#MODEL")
        endpoint = checked(Endpoint, {**options, "url": url.rstrip("/"), "model": model})
        return cls(Client(endpoint, timeout, patience), student, spec)

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        raise TeacherError(f"{self.name} gives text alone", got=sorted(want.needs), expected="a method that reads none")

    def write_for(
        self, problems: Sequence[Problem], prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Piece]]:
        """One answer per seed to the messages of each problem; it sees the messages and not the student's prompt."""
        if sampling.top_k or sampling.min_p or sampling.stop:
            raise TeacherError(f"{self.name} draws by temperature and top_p alone", got=sampling)
        rooms = [self._room(prompt, sampling) for prompt in prompts]
        bodies = [
            self._body(problem, room, sampling, seed)
            for problem, room, own in zip(problems, rooms, seeds, strict=True)
            for seed in own
        ]
        replies = iter(self.client.ask(bodies))
        return [[self._piece(next(replies), room) for _ in own] for room, own in zip(rooms, seeds, strict=True)]

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        raise TeacherError(f"{self.name} takes messages", got="token ids", expected="the problem beside the prompt")

    def _room(self, prompt: Array, sampling: Sampling) -> int:
        """How many tokens an answer may have."""
        return min(sampling.max_new or self.student.max_new, self.student.context - len(prompt))

    def _body(self, problem: Problem, room: int, sampling: Sampling, seed: int) -> dict[str, Any]:
        body = {"model": self.client.endpoint.model, "messages": list(problem.messages), "max_tokens": room}
        drawn = {} if sampling.greedy else {"top_p": sampling.top_p, "seed": seed % SEEDS}
        return {**body, "temperature": sampling.temperature, **drawn}

    def _piece(self, reply: Reply, room: int) -> Piece:
        """A text in the student's tokens; what they cannot spell is counted, and so is what does not fit."""
        whole: Array = self.student.encode(reply.text)
        tokens = whole if reply.end == End.STOP or not self.student.stops else whole[:-1]
        self.counts["answers"] += 1
        self.counts["changed"] += self.student.decode(tokens) != reply.text
        end = reply.end if len(tokens) <= room else End.LENGTH
        unknown = np.full(len(tokens[:room]), np.nan)
        return Piece(tokens[:room], unknown, unknown, end)

    def render(self, messages: Sequence[Message]) -> Array:
        return self.student.render(messages)

    def decode(self, tokens: Array) -> str:
        return self.student.decode(tokens)

    def follow(self, student: Student, step: int) -> None:
        """It stays as it is."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Who answers; `identity` must not change while a run lasts."""
        endpoint = self.client.endpoint
        return {"identity": {"url": endpoint.url, "model": endpoint.model}, "kind": "chat"}

    def tell(self) -> dict[str, float]:
        """What was counted since this was last told, and all that was spent where there are prices."""
        now = self.counts + self.client.counts
        found = {f"chat.{name}": float(now[name] - self.told[name]) for name in COUNTED}
        self.told = now
        return found | ({"chat.spent": self.client.spent} if self.client.endpoint.has_prices else {})

    def give_up(self) -> None:
        self.client.give_up()

    def state_dict(self) -> dict[str, Any]:
        """A budget is that of the whole run."""
        return {"counts": dict(self.client.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.client.counts = Counter(state["counts"])
        self.told = self.counts + self.client.counts
