"""A vLLM server that writes for a student: token ids in and out, the log-prob under which each was drawn, new weights.

Asked are `/v1/completions`, and of the endpoints that VLLM_SERVER_DEV_MODE=1 opens `/collective_rpc` (reload_weights
from a folder that both see), `/reset_prefix_cache`, `/weight_info` and `/update_weight_version`.

Axes: n tokens of a text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opd.errors import SettingError, Unanswered
from opd.rollout import Array, End, Piece, Sampling
from opd.teachers.completions import Completions
from opd.teachers.replicas import RESUME, Question, Replica, said_by

if TYPE_CHECKING:
    import httpx

RATIO, WEIGHTS = "sampler.ratio", "sampler.version"  # a column and a tag of what such a server wrote, see Sampled.write
IN_FLIGHT = 256  # texts at a time; the server batches them as it likes
MOST = 2**26  # bytes of an answer
CERTAIN = 1e-4  # nats by which rounding may lift a log-prob above 0
NEVER = -100.0  # added to the logit of an id that is no token
RELOAD, CACHE, VERSION = "/collective_rpc", "/reset_prefix_cache", "/weight_info"


def started(folder: Path | str) -> str:
    """The command that starts such a server."""
    return (
        "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server "
        f"--model {folder} --host 127.0.0.1 --logprobs-mode processed_logprobs"
    )


def how(student: str = "STUDENT") -> str:
    """What a user does who has no such server yet."""
    return (
        f"Make a folder with 'opd sampler FOLDER --student {student}', and start vLLM with the command that it prints"
    )


class Requests(Completions):
    """The same care as with a teacher, and what a user does about a server that takes no weights."""

    def _refused(self, member: Replica, response: httpx.Response) -> Exception:
        path, said = response.request.url.path, f"{response.status_code} {said_by(response)}"
        if response.status_code == 404 and path in (RELOAD, CACHE, VERSION):
            return Unanswered(f"{member.url} refused {path}", got=said, remedy=f"Start it so: {started('FOLDER')}")
        if path == RELOAD:
            return Unanswered(f"{member.url} refused {path}", got=said, remedy=how())
        return super()._refused(member, response)


class VLLM:
    """One server. Raises Unanswered when it is silent for `patience` seconds or says what cannot be.

    timeout: seconds without the whole answer after which a text is asked for again. name: of the model served; root:
    the folder that it was started from; context: the longest sequence that it takes.
    """

    live = False
    can = frozenset[str]()

    def __init__(self, url: str, timeout: float = 600.0, patience: float = 300.0) -> None:
        url = url.strip().rstrip("/")
        self.requests = Requests([url], timeout, patience, in_flight=IN_FLIGHT)
        self.numbers = dict[str, float]()  # of the last push
        (served,) = self.requests.models()
        if len(served) != 1:
            raise SettingError(f"{url} serves {len(served)} models", got=", ".join(served), expected="the student's")
        (card,) = served.values()
        self.name, self.root, self.context, self.url = card.model, card.root, card.context, url

    def fits(self, longest: int) -> None:
        """A text that the server would refuse is refused before it is begun."""
        if longest > self.context:
            raise SettingError(
                f"{self.url} takes shorter texts than the student may write",
                got=f"{self.context} tokens with the prompt",
                expected=f"at least {longest}",
                remedy=f"Start it with --max-model-len {longest}, or lower --max-new",
            )

    # -- for the run that it belongs to -------------------------------------------------------------------------------

    @property
    def manifest(self) -> dict[str, Any]:
        """Who writes. Nothing about it must stay as it is: its weights are the student's, and are verified."""
        told = {"address": self.url, "model": self.name, "folder": self.root, "context": self.context}
        return {"identity": {}, "kind": "vllm sampler", **told}

    def tell(self) -> dict[str, float]:
        """What asking and pushing has cost since this was last told."""
        new = self.requests.spent()
        numbers, self.numbers = self.numbers, {}
        costs = {f"sampler.{name}": new.get(name, 0.0) for name in ("requests", "retries", "seconds")}
        return {**costs, **numbers}

    def give_up(self) -> None:
        """What does not answer now is not asked again: somebody wants to stop."""
        self.requests.hurried = True

    def follow(self, student: object, step: int) -> None:
        """Weights are pushed before the next text is written."""

    # -- weights ------------------------------------------------------------------------------------------------------

    def version(self) -> str:
        """What was last said to be the version of its weights; another text after a restart."""
        return str(self._one(VERSION)["weight_version"])

    def load(self, folder: Path, version: str) -> None:
        """The server takes the weights in `folder` and forgets what it computed with others."""
        self._one(RELOAD, method="reload_weights", kwargs={"weights_path": str(folder)})
        for attempt in count():
            if self._one(CACHE)["success"]:
                break
            if attempt == 10:
                raise self.wrong("did not let go of what it computed with the weights before")
        self._one("/update_weight_version", new_version=version)

    # -- texts --------------------------------------------------------------------------------------------------------

    def write(
        self,
        prompts: Sequence[Array],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        limits: Sequence[int],
        stops: Iterable[int],
        vocab: int,
        head: int,
    ) -> list[list[Piece]]:
        """For prompt i one piece per seed, of at most limits[i] tokens, ended by any of the ids `stops`.

        Ids from `vocab` on, up to `head`, are in the model's head and are no tokens: they are never drawn. `behaviour`
        is the log-prob under what drew the token, 0 when greedy, and `untruncated` nan: the server does not tell both.
        """
        ends = sorted({*stops, *sampling.stop})
        bodies = [
            self._body(prompt, limit, sampling, ends, range(vocab, head)) | {"seed": seed % 2**63}
            for prompt, limit, own in zip(prompts, limits, seeds, strict=True)
            for seed in own
        ]
        answers = iter(self._ask("/v1/completions", bodies))
        return [
            [self._piece(next(answers), limit, frozenset(ends), vocab, sampling) for _ in own]
            for limit, own in zip(limits, seeds, strict=True)
        ]

    def logprobs(self, texts: Sequence[Array]) -> list[Array]:
        """[n - 1] log-probs of every token but the first, at temperature 1, over all ids of the head."""
        asked = {"model": self.name, "max_tokens": 1, "prompt_logprobs": 0}
        answers = self._ask("/v1/completions", [asked | {"prompt": ids.tolist()} for ids in texts])
        found: list[Array] = []
        for ids, answer in zip(texts, answers, strict=True):
            try:
                rows = answer["choices"][0]["prompt_logprobs"][1:]
                own = np.array([row[str(i)]["logprob"] for row, i in zip(rows, ids[1:].tolist(), strict=True)], float)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise self.wrong(f"gave no log-probs of a text ({type(error).__name__} {error})") from None
            if not np.isfinite(own).all():
                raise self.wrong("gave log-probs that are not finite")
            found.append(own)
        return found

    def _body(
        self, prompt: Array, limit: int, sampling: Sampling, ends: Sequence[int], never: Iterable[int]
    ) -> dict[str, Any]:
        """Everything is said: what is left out, a server takes from the model's own generation settings."""
        return {
            "model": self.name, "prompt": prompt.tolist(), "max_tokens": limit, "logprobs": 0,
            "return_token_ids": True, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1, "min_p": sampling.min_p, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0, "ignore_eos": True,
            "stop_token_ids": list(ends), "logit_bias": {str(i): NEVER for i in never} or None,
        }  # fmt: skip

    def _piece(
        self, answer: Mapping[str, Any], limit: int, ends: frozenset[int], vocab: int, sampling: Sampling
    ) -> Piece:
        try:
            (choice,) = answer["choices"]
            ids = np.array(choice["token_ids"], np.int32)
            logprobs = np.array(choice["logprobs"]["token_logprobs"], float)
        except (KeyError, TypeError, ValueError) as error:
            raise self.wrong(f"wrote no text with log-probs ({type(error).__name__} {error})") from None
        inside = np.isin(ids[:-1], list(ends)).any()
        ended = len(ids) > 0 and int(ids[-1]) in ends
        if ids.ndim != 1 or ids.shape != logprobs.shape or inside or not (ended or len(ids) == limit):
            raise self.wrong(f"wrote {len(ids)} tokens with {len(logprobs)} log-probs, where {limit} or an end was due")
        if ids.min() < 0 or ids.max() >= vocab:
            raise self.wrong(f"wrote tokens outside 0 to {vocab - 1}")
        if not np.isfinite(logprobs).all() or logprobs.max() > CERTAIN:
            raise self.wrong("gave log-probs of its text that cannot be")
        drawn = np.zeros(len(ids)) if sampling.greedy else logprobs
        return Piece(ids, drawn, np.full(len(ids), math.nan), End.STOP if ended else End.LENGTH)

    # -- asking -------------------------------------------------------------------------------------------------------

    def wrong(self, what: str) -> Unanswered:
        return Unanswered(f"{self.url} {what}", remedy=RESUME)

    def _one(self, path: str, **body: Any) -> dict[str, Any]:
        """One question; a POST where it has a body or must be one."""
        (answer,) = self._ask(path, [body if body or path == CACHE else None])
        return answer

    def _ask(self, path: str, bodies: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
        questions = [Question(path, b"" if body is None else json.dumps(body).encode(), MOST) for body in bodies]
        return [answer[0] for answer in self.requests.ask(questions)]
