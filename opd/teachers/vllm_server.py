"""What a vLLM server can do is found out by asking it, and whether it means and says the same each time.

Axes: n rows of one text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from opd.errors import ModelError, SettingError, Unanswered
from opd.rollout import Array, Problem, Rollout
from opd.teachers.completions import Card, Completions
from opd.teachers.replicas import Replica

MANY = 10**9  # best tokens that no server gives, so that it says how many it does
AT_ONCE = 2048  # ids spelled in one request
PADDING = 1e-4  # of a distribution on ids that the student does not have, at most
SAMPLED = 32  # of these ids are looked at
GAP = 0.05  # nats per token by which rounding may change an answer: far less than between two models
SHARED = 512  # tokens that two texts of the probe have in common, or what fits: several blocks of a prefix cache
Ask = Callable[[Sequence[Rollout], Replica], list[Array]]  # [n] log-probs of each text, by one server


@dataclass(frozen=True)
class Server:
    """What all addresses say of themselves."""

    model: str
    root: str  # where the server found the model
    version: str
    context: int  # tokens of a text and the one that must be written after it
    best: int  # best tokens that it gives at most

    def told(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "model"}


def told(replicas: Completions, model: str) -> Server:
    """Of the model of this name, or of the only one that is served; all addresses must agree."""
    versions = [_version(said, url) for url, said in zip(replicas.urls, replicas.get("/version"), strict=True)]
    found = list[Server]()
    for member, served, version in zip(replicas.members, replicas.models(), versions, strict=True):
        card = _card(served, model, member.url)
        best = _best(replicas, card.model, member)
        found.append(Server(card.model, card.root, version, card.context, best))
        if (found[-1].model, found[-1].best) != (found[0].model, found[0].best):
            got = f"{found[-1].model}, {found[-1].best} best tokens"
            expected = f"{found[0].model}, {found[0].best}"
            raise Unanswered(f"{member.url} differs from {replicas.urls[0]}", got=got, expected=expected)
    return min(found, key=lambda server: server.context)


def _version(said: Any, url: str) -> str:
    if not isinstance(said, dict) or "version" not in said:
        raise Unanswered(f"{url} is no vLLM server", got="an answer without 'version'")
    return str(said["version"])


def _card(served: Mapping[str, Card], model: str, url: str) -> Card:
    if model not in served and (model or len(served) != 1):
        got, expected = repr(model) if model else f"{len(served)} models", f"#NAME, of {', '.join(served)}"
        raise SettingError(f"the model at {url}", got=got, expected=expected)
    return served[model or next(iter(served))]


def _best(replicas: Completions, model: str, member: Replica) -> int:
    """The limit --max-logprobs, out of the sentence in which more are refused."""
    status, said = replicas.tried("/v1/completions", _asking(model, [1, 1], prompt_logprobs=MANY), member)
    number = re.search(r"max(?:imum)? allowed:? (\d+)", str(said))
    if status != 400 or number is None:
        got, expected = f"status {status} for {MANY} of them", "a refusal that names the limit"
        raise Unanswered(f"{member.url} does not say how many best tokens it gives", got=got, expected=expected)
    return int(number[1])


def _asking(model: str, prompt: Sequence[Any], **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": list(prompt), "max_tokens": 1, **more}


# ---- the same tokens


def common(replicas: Completions, server: Server, student: Any) -> int:
    """How many ids mean the same to the student and to every server; ModelError names the first that does not.

    A server's log-probs are over all rows of its head. Rows that are no token of the student's must hold no mass.
    """
    vocab = int(student.vocab)
    for member in replicas.members:
        rows = _rows(replicas, server, member, vocab)
        shared = min(vocab, rows)
        for start in range(0, shared, AT_ONCE):
            _same_spelling(replicas, server, member, student, range(start, min(start + AT_ONCE, shared)))
        if rows > shared:
            _empty_padding(replicas, server, member, range(shared, rows))
        vocab = shared
    return vocab


def _rows(replicas: Completions, server: Server, member: Replica, near: int) -> int:
    """How many ids the server takes."""

    def takes(token: int) -> bool:
        return replicas.tried("/v1/completions", _asking(server.model, [token]), member)[0] == 200

    low, high = 0, near - 1  # `low` is taken, `high` is not
    if takes(near):
        low, high = near, 2 * near
        while takes(high):
            low, high = high, 2 * high
    elif takes(near - 1):
        return near
    elif not takes(0):
        raise Unanswered(f"{member.url} takes no token ids", got="a refusal of id 0")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return high


def _same_spelling(replicas: Completions, server: Server, member: Replica, student: Any, ids: range) -> None:
    """The ids one after the other are the same text to both."""

    def differ(n: int) -> tuple[str, str] | None:
        some = list(ids[:n])
        status, said = replicas.tried("/detokenize", {"model": server.model, "tokens": some}, member)
        if status != 200 or "prompt" not in said:
            got = f"status {status} of /detokenize"
            raise Unanswered(f"nobody can know how {member.url} spells its tokens", got=got)
        pair = said["prompt"], student.tokenizer.decode(some)
        return None if pair[0] == pair[1] else pair

    if differ(len(ids)) is None:
        return
    same, different = 0, len(ids)
    while different - same > 1:
        middle = (same + different) // 2
        same, different = (same, middle) if differ(middle) else (middle, different)
    theirs, ours = differ(different) or ("", "")
    raise ModelError(
        f"{student.name} and {member.url} have different tokenizers, first at id {ids[different - 1]}",
        got=f"a text that ends in {theirs[-20:]!r} in {member.url}",
        expected=f"{ours[-20:]!r} as in {student.name}",
    )


def _empty_padding(replicas: Completions, server: Server, member: Replica, ids: range) -> None:
    """What the server holds probable beyond the student's tokens, measured after three short texts."""
    some = [ids[i] for i in np.linspace(0, len(ids) - 1, min(SAMPLED, len(ids))).astype(int)]
    starts = [list(range(1 + shift, 9 + shift)) for shift in (0, 8, 16)]
    masses = list[float]()
    for start in starts:
        asked = _asking(server.model, [[*(i % ids.start for i in start), token] for token in some], prompt_logprobs=0)
        status, said = replicas.tried("/v1/completions", asked, member)
        try:
            log_probs = [
                choice["prompt_logprobs"][-1][str(token)]["logprob"]
                for choice, token in zip(said["choices"], some, strict=True)
            ]
        except (KeyError, TypeError, ValueError, IndexError):
            what = f"{member.url} does not say what it gives to ids from {ids.start} on"
            raise Unanswered(what, got=f"status {status}") from None
        masses.append(float(np.exp(log_probs).mean()) * len(ids))
    if (most := max(masses)) > PADDING:
        raise ModelError(
            f"{member.url} finds ids probable that the student does not have, {ids.start} to {ids.stop - 1}",
            got=f"a share of {most:.2g}",
            expected=f"at most {PADDING:g}",
            remedy="Use opd serve, whose distributions are over the common tokens",
        )


# ---- the same answer


def witness(vocab: int) -> Rollout:
    """The short text whose log-probs say which model it is."""
    return text((np.arange(12) * 7 + 3) % vocab)


def text(ids: Array) -> Rollout:
    """A text all of whose tokens but the first are rows."""
    author = np.ones(len(ids), np.int8)
    author[0] = 0
    return Rollout(np.asarray(ids, np.int32), author, Problem("probe", ""))


def apart(ours: Array, theirs: Array) -> float:
    """Nats between two answers about one text, in the mean."""
    return float(np.abs(ours - theirs).mean())


def probe(ask: Ask, members: Sequence[Replica], known: Rollout, server: Server) -> tuple[Array, dict[str, float]]:
    """The log-probs of the known text, and the largest gaps (nats, in the mean over a text) between answers to it.

    again     the same question twice
    prefix    a text that nobody asked before; again, when its beginning is known from another text
    order     both of them in one question, and the other way round
    servers   the same question to another address
    """
    gaps: dict[str, float] = {"again": 0.0, "prefix": 0.0, "order": 0.0, "servers": 0.0}
    first: Array | None = None
    for member in members:
        (here,), (again,) = ask([known], member), ask([known], member)
        first = here if first is None else first
        one, other = _unasked(known, server.context)
        (cold,) = ask([one], member)
        ask([other], member)
        warm, later = ask([one, other], member)
        sooner, turned = ask([other, one], member)
        found = {
            "again": apart(here, again),
            "prefix": apart(cold, warm),
            "order": max(apart(warm, turned), apart(later, sooner)),
            "servers": apart(first, here),
        }
        gaps = {name: max(gap, found[name]) for name, gap in gaps.items()}
    if worst := [name for name, gap in gaps.items() if not gap <= GAP]:
        how = {"again": "twice", "prefix": "after a text that begins alike", "order": "in another order"}
        remedy = "" if worst[0] == "servers" else "Start it with --no-enable-prefix-caching"
        raise Unanswered(
            f"vLLM was asked the same {how.get(worst[0], 'at two addresses')}",
            got=f"log-probs {gaps[worst[0]]:.3g} nats apart in the mean",
            expected=f"at most {GAP:g}",
            remedy=remedy,
        )
    assert first is not None
    return first, gaps


def _unasked(known: Rollout, context: int) -> tuple[Rollout, Rollout]:
    """Two texts with one beginning, which the server cannot have met before."""
    ids, draw = np.unique(known.tokens), np.random.default_rng()
    start = draw.choice(ids, max(1, min(SHARED, context - 10)))
    return text(np.append(start, draw.choice(ids, 6))), text(np.append(start, draw.choice(ids, 4)))
