"""A teacher behind a stock vLLM server: log-probs of the written tokens, its best tokens, and texts of its own.

--teacher vllm:http://HOST:PORT[,http://HOST:PORT ...][#MODEL]

Tokens travel as ids, in both directions. Nobody can ask such a server about tokens of one's own choice, for whole
distributions or for hidden states; `opd serve` gives those, and what the first may be worth can be guessed (spread.py).

Axes: N rows, n rows of one text, K best tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from opd.dist import TopDist
from opd.errors import TeacherError, Unanswered
from opd.protocols import Answer, Want
from opd.rollout import Array, End, Message, Piece, Rollout, Sampling
from opd.teachers import vllm_server
from opd.teachers.completions import Completions
from opd.teachers.early import Read
from opd.teachers.prompt_logprobs import ENTRY, Malformed, rows_of
from opd.teachers.remote import Remote
from opd.teachers.replicas import RESUME, Question, Replica

TOKENS, ENTRIES = 8192, 2**18  # of one question, and log-probs in its answer
READINGS, TEXTS = 2, 64  # questions per server at a time; of texts, which it batches as it likes
SLACK = 2**20  # bytes of an answer beside its log-probs
SEEDS = 2**63  # what vLLM takes for a seed
COMPLETIONS = "/v1/completions"


class VLLMTeacher(Remote):
    """One model behind one or several addresses, for one student, whose token ids must mean the same to both.

    timeout and patience, in seconds, as for any server. Before the first question it is held to what it says, see
    `meet`. Every question carries one short text more, whose log-probs are known: another model is noticed at once.
    """

    can = frozenset({"chosen", "topk", "text"})

    def __init__(self, urls: Sequence[str], model: str, student: Any, timeout: float, patience: float) -> None:
        self.learner = student
        addresses = [url.strip().rstrip("/").removesuffix("/v1") for url in urls]
        self.replicas = Completions(addresses, timeout, patience, in_flight=READINGS)
        self.name = "vllm:" + ",".join(addresses)
        self.server = vllm_server.told(self.replicas, model)
        self.most = {"topk": self.server.best}
        self.vocab = 0  # ids that the student shares, once somebody was met
        self.known: Array | None = None  # [n] log-probs of the short text, from then on
        self.gaps: dict[str, float] = {}

    @property
    def context(self) -> int:
        """The longest text that it reads: it must write one token more."""
        return self.server.context - 1

    @classmethod
    def of(cls, spec: str, student: Any, timeout: float, patience: float) -> VLLMTeacher:
        """The teacher that `vllm:URL,URL#MODEL` names."""
        urls, _, model = spec.removeprefix("vllm:").partition("#")
        return cls(urls.split(","), model, student, timeout, patience)

    # -- is it what it should be? -------------------------------------------------------------------------------------

    def meet(self, student: Any) -> None:
        """Before the run: every id means the same to both, and an answer depends on nothing but its question.

        Raises ModelError for another tokenizer, Unanswered for answers that differ from one time to another.
        """
        if self.known is not None:
            return
        self.vocab = vllm_server.common(self.replicas, self.server, student)
        student.vocab = self.vocab
        self.witness = vllm_server.witness(self.vocab)
        self.known, self.gaps = vllm_server.probe(self._log_probs, self.replicas.members, self.witness, self.server)

    @property
    def manifest(self) -> dict[str, Any]:
        """Who answers; `identity` must not change while a run lasts, log-probs by no more than rounding."""
        known = [] if self.known is None else [round(float(value), 4) for value in self.known]
        return {
            "identity": {"model": self.server.model, "log-probs": known}, "kind": "vllm",
            "addresses": list(self.replicas.urls), "probe": self.gaps, **self.server.told(),
        }  # fmt: skip

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        if want.needs - self.can or want.topk > self.server.best:
            asked = [*sorted(want.needs), *([f"K={want.topk}"] if want.topk else [])]
            expected = f"{sorted(self.can)}, K={self.server.best}"
            raise TeacherError(f"{self.name} cannot answer", got=asked, expected=expected)
        if self.learner.vocab != self.vocab:
            got, expected = f"{self.learner.vocab} tokens that all have", f"{self.vocab} as in {self.name}"
            raise TeacherError("log-probs of vLLM are over all of its tokens", got=got, expected=expected)
        texts = [context for context in contexts if context.n]
        if not texts:
            return Answer()
        k, device = want.topk, self.learner.device
        found = self._columns(texts, want)
        columns = {name: torch.from_numpy(np.concatenate([one[name] for one in found])).to(device) for name in found[0]}
        decided = torch.from_numpy(np.concatenate([text.decisions for text in texts])).long().to(device)
        chosen = columns["chosen"] if want.chosen else None
        return Answer(TopDist(columns["ids"], columns["top"], decided, chosen) if k else None, chosen)

    def _sent(self, texts: Sequence[Rollout], want: Want) -> tuple[Future[Any], Read]:
        whole, k = self._whole(self._parts(texts, want.topk)), want.topk
        self.replicas.in_flight = READINGS
        answers = self.replicas.start([self._question(part, k) for part in whole])
        return answers, lambda found: self._said(found, whole, k)

    def _parts(self, texts: Sequence[Rollout], k: int) -> list[list[Rollout]]:
        """The texts of each question: some for every server, and no answer of it too large."""
        self._fit(len(text.tokens) for text in texts)
        each = -(-sum(len(text.tokens) for text in texts) // len(self.replicas.members))
        most = max(1, min(TOKENS, ENTRIES // (k + 1), each))
        parts, used = [list[Rollout]()], 0
        for text in texts:
            if parts[-1] and used + len(text.tokens) > most:
                parts.append([])
                used = 0
            parts[-1].append(text)
            used += len(text.tokens)
        return parts

    def _fit(self, lengths: Iterable[int]) -> None:
        if (longest := max(lengths)) >= self.server.context:
            raise TeacherError(
                f"a text does not fit the context of {self.name}",
                got=f"{longest} tokens",
                expected=f"at most {self.server.context - 1}",
                remedy="Start it with a larger --max-model-len, or lower --max-new",
            )

    def _whole(self, parts: Sequence[Sequence[Rollout]]) -> list[list[Rollout]]:
        """The texts of each question, with the short text as its last."""
        return [[*part, self.witness] for part in parts]

    def _asked(self, parts: Sequence[Sequence[Rollout]], k: int, of: Replica | None = None) -> list[dict[str, Array]]:
        """What is said of every text; each part is one question."""
        whole = self._whole(parts)
        return self._said(self.replicas.ask([self._question(part, k) for part in whole], of), whole, k)

    def _said(self, answers: Sequence[Any], parts: Sequence[Sequence[Rollout]], k: int) -> list[dict[str, Array]]:
        """What the answers say of every text but the short one, which is only to be recognised."""
        found: list[dict[str, Array]] = []
        for part, (answer,) in zip(parts, answers, strict=True):
            said = [self._rows(*pair, k) for pair in zip(_choices(answer, len(part)), part, strict=True)]
            self._recognise(said.pop()["chosen"])
            found += said
        return found

    def _question(self, texts: Sequence[Rollout], k: int) -> Question:
        asked = {"model": self.server.model, "max_tokens": 1, "prompt_logprobs": k, "return_token_ids": True}
        body = json.dumps({**asked, "prompt": [text.tokens.tolist() for text in texts]}).encode()
        return Question(COMPLETIONS, body, SLACK + ENTRY * sum(len(text.tokens) for text in texts) * (k + 1))

    def _rows(self, choice: Any, text: Rollout, k: int) -> dict[str, Array]:
        try:
            return rows_of(choice, text, k, self.vocab)
        except Malformed as error:
            raise self._wrong(str(error)) from None

    def _recognise(self, log_probs: Array) -> None:
        """Stops when the short text is worth something else than at the start of the run."""
        if self.known is not None and (far := vllm_server.apart(self.known, log_probs)) > vllm_server.GAP:
            raise Unanswered(
                f"another model answers at {self.name} than when the run began",
                got=f"log-probs of one text {far:.3g} nats apart in the mean",
                expected=f"at most {vllm_server.GAP:g}",
                remedy="Serve that model again; a resumed run takes another one with another_teacher = true in its "
                "run.toml",
            )

    def _log_probs(self, texts: Sequence[Rollout], of: Replica) -> list[Array]:
        """[n] per text, from one question to one server."""
        return [said["chosen"] for said in self._asked([texts], 0, of)]

    def _wrong(self, what: str) -> Unanswered:
        return Unanswered(f"{self.name} {what}", remedy=RESUME)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """For prompt i one piece per seed in seeds[i]; the server's own end-of-text tokens end a piece, too.

        Same seed, same piece, as far as vLLM keeps that. How likely a token was is known at temperature 1 without
        truncation alone: `behaviour` is nan otherwise.
        """
        self._fit(len(prompt) + 1 for prompt in prompts)
        rooms = [min(sampling.max_new or self.learner.max_new, self.server.context - len(prompt)) for prompt in prompts]
        questions = [
            self._writing(prompt, room, sampling, seed)
            for prompt, room, own in zip(prompts, rooms, seeds, strict=True)
            for seed in own
        ]
        self.replicas.in_flight = TEXTS
        answers = iter(self.replicas.ask(questions))
        written = [
            [self._piece(next(answers), room, sampling) for _ in own] for room, own in zip(rooms, seeds, strict=True)
        ]
        self._asked([[]], 0)  # it is still the same model
        return written

    def _writing(self, prompt: Array, room: int, sampling: Sampling, seed: int) -> Question:
        how = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        asked = {"model": self.server.model, "max_tokens": room, "seed": seed % SEEDS, "repetition_penalty": 1.0}
        body = {**asked, **how, "logprobs": 0, "return_token_ids": True, "prompt": prompt.tolist()}
        if sampling.stop:
            body["stop_token_ids"] = list(sampling.stop)
        return Question(COMPLETIONS, json.dumps(body).encode(), SLACK + 2 * ENTRY * (room + len(prompt)))

    def _piece(self, answer: Sequence[Any], room: int, sampling: Sampling) -> Piece:
        (choice,) = _choices(answer[0], 1)
        try:
            tokens = np.asarray(choice["token_ids"], np.int32)
            plain = np.asarray(choice["logprobs"]["token_logprobs"], np.float64)
            end = End(choice["finish_reason"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._wrong(f"wrote something else than was asked ({type(error).__name__} {error})") from None
        fits = tokens.shape == plain.shape == (len(tokens),) and 1 <= len(tokens) <= room
        if not fits or tokens.min() < 0 or tokens.max() >= self.vocab:
            raise self._wrong(f"wrote tokens outside 0 to {self.vocab - 1}, or not as many as was asked")
        if not np.isfinite(plain).all() or plain.max() > 1e-4:
            raise self._wrong("gave log-probs of its text that cannot be")
        return Piece(tokens, _behaviour(plain, sampling), plain, end)

    def render(self, messages: Sequence[Message]) -> Array:
        """As the student renders them: what is asked is what the student was asked."""
        return self.learner.render(messages)

    def decode(self, tokens: Array) -> str:
        return self.learner.decode(tokens)


def _behaviour(plain: Array, sampling: Sampling) -> Array:
    """Log-probs under what drew the tokens, where those of the model itself tell them."""
    if sampling.greedy:
        return np.zeros_like(plain)
    drawn_plainly = sampling.temperature == 1 and sampling.top_p == 1 and not sampling.top_k and not sampling.min_p
    return plain if drawn_plainly else np.full_like(plain, np.nan)


def _choices(answer: Any, n: int) -> list[Mapping[str, Any]]:
    """The n choices of an answer, in the order in which they were asked."""
    found = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(found, list) or [c.get("index") if isinstance(c, dict) else None for c in found] != [*range(n)]:
        raise Unanswered(
            f"vLLM answered {len(found or [])} questions, or not in their order", expected=n, remedy=RESUME
        )
    return found
