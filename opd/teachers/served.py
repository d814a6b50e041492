"""A teacher behind `opd serve`, on this machine or another: it answers what a local one answers, or stops the run.

Axes: N rows, n rows of one block, K support, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.dist import HeadDist
from opd.engines.answered import answered
from opd.engines.hf_text import Speaker
from opd.errors import ModelError, Unanswered
from opd.protocols import Answer, Want, resolve_layers
from opd.rollout import Array, Piece, Problem, Rollout, Sampling
from opd.serve import identity, wire
from opd.serve.wire import Block
from opd.teachers.early import Read
from opd.teachers.remote import Remote
from opd.teachers.replicas import Question, Replica, Replicas

KEPT = "weights", "head", "tokenizer", "vocab", "dtype"  # what makes a model that model
TOLD = "model", "server", "device", "width", "layers", "context", "can", "limits"
CERTAIN = 1e-4  # nats by which rounding may lift a log-prob above 0
GAP = {"float32": 1e-4, "float64": 1e-4}  # nats between two answers to one question; other precisions: COARSE
COARSE = 0.05
SLACK = 2**16  # bytes of a block beside its numbers


class Served(Remote, Speaker):
    """Servers of one model, at least one. Reads and writes; the tokenizer and the head are fetched once.

    timeout: seconds without a sign of life after which a question is asked again; patience: seconds of trying after
    which the run stops. `vocab` is lowered where the student has fewer tokens, as for any model.
    """

    def __init__(
        self,
        urls: Sequence[str],
        max_new: int = 256,
        device: torch.device | str = "cpu",
        timeout: float = 60.0,
        patience: float = 300.0,
    ) -> None:
        self.max_new, self.device = max_new, torch.device(device)
        self.replicas = Replicas([url.strip().rstrip("/") for url in urls], timeout, patience)
        self.info = self._agreed(self.replicas.get("/v1/info"))
        self.replicas.model = self.info["weights"]
        self.name = ",".join(self.replicas.urls)
        self.can = frozenset(self.info["can"])
        self.most = dict.fromkeys(("topk", "gather"), int(self.info["limits"]["k"]))
        self.vocab, self.width, self.depth = (int(self.info[name]) for name in ("vocab", "width", "layers"))
        self.tokenizer = identity.tokenizer_of(self.replicas.get("/v1/tokenizer")[0])
        if (found := identity.tokenizer_hash(self.tokenizer)) != self.info["tokenizer"]:
            raise ModelError(f"the tokenizer of {self.name} arrived as another one", got=found)
        self.gaps = self.probe()

    @property
    def stops(self) -> frozenset[int]:
        return frozenset(self.info["stops"])

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.info["dtype"] == "float64" else torch.float32

    @property
    def context(self) -> int:
        return int(self.info["context"])

    @property
    def manifest(self) -> dict[str, Any]:
        """Who answers; `identity` must not change while a run lasts."""
        told = {name: self.info[name] for name in TOLD}
        return {
            "identity": {name: self.info[name] for name in KEPT}, "kind": "served",
            "addresses": list(self.replicas.urls), **told, "probe": self.gaps,
        }  # fmt: skip

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        texts = [context for context in contexts if context.n]
        if not texts:
            return Answer()
        said = self._columns(texts, want)
        found = {name: torch.cat([one[name] for one in said]) for name in said[0]}
        return self._answer(found, torch.from_numpy(np.concatenate([text.decisions for text in texts])).long(), want)

    def _sent(self, texts: Sequence[Rollout], want: Want) -> tuple[Future[Any], Read]:
        parts = self._parts(texts, want)
        about = [[texts[i] for i in part] for part in parts]

        def read(answers: Sequence[Sequence[Block]]) -> list[dict[str, Tensor]]:
            said = [self._said(blocks, some, want) for blocks, some in zip(answers, about, strict=True)]
            whose = dict(zip(chain(*parts), chain(*said), strict=True))
            return [whose[i] for i in range(len(texts))]

        return self.replicas.start([self._question(some, want) for some in about]), read

    def _parts(self, contexts: Sequence[Rollout], want: Want) -> list[list[int]]:
        """Numbers of contexts by question: those of one prompt together, about one pass each, some for every server."""
        alike: dict[bytes, list[int]] = {}
        for i, context in enumerate(contexts):
            alike.setdefault(context.tokens[: context.positions[0]].tobytes(), []).append(i)
        groups = sorted(alike.values(), key=lambda group: -max(len(contexts[i].tokens) for i in group))
        limits, total = self.info["limits"], sum(len(context.tokens) for context in contexts)
        each = -(-total // len(self.replicas.members))
        tokens = min(self.info["batch_tokens"], limits["tokens"], each)
        rows = max(1, (limits["answer_bytes"] - SLACK) // self._row_bytes(want))
        parts, used, filled = [list[int]()], 0, 0
        for i in (i for group in groups for i in group):
            size, n = len(contexts[i].tokens), contexts[i].n
            if parts[-1] and (used + size > tokens or filled + n > rows):
                parts.append([])
                used = filled = 0
            parts[-1].append(i)
            used, filled = used + size, filled + n
        return parts

    def _row_bytes(self, want: Want) -> int:
        states = want.dist + len(self._layers(want))
        return 8 + 8 * self.width * states + 12 * want.topk + 8 * self.info["limits"]["k"] * bool(want.gather)

    def _layers(self, want: Want) -> dict[int, int]:
        return resolve_layers(want.layers, self.depth, self.name) if want.layers else {}

    def _question(self, contexts: Sequence[Rollout], want: Want) -> Question:
        whole = "hidden" if want.dist or want.layers else ""
        path = whole or ("gather" if want.gather else "topk" if want.topk else "score")
        size = sum(context.n for context in contexts) * self._row_bytes(want) + 8 * len(contexts) + SLACK
        return Question(f"/v1/{path}", wire.reading(contexts, want, self.vocab), size)

    def _shapes(self, contexts: Sequence[Rollout], want: Want) -> dict[str, tuple[int, ...]]:
        """What a row of every expected tensor looks like."""
        best = min(want.topk, self.vocab)
        shapes: dict[str, tuple[int, ...]] = {str(layer): (self.width,) for layer in self._layers(want)}
        shapes |= {"chosen": ()} if want.chosen else {}
        shapes |= {"top": (best,), "ids": (best,)} if want.topk else {}
        shapes |= {"hidden": (self.width,)} if want.dist else {}
        return shapes | ({"gathered": contexts[0].columns[want.gather].shape[1:]} if want.gather else {})

    def _said(self, blocks: Sequence[Block], texts: Sequence[Rollout], want: Want) -> list[dict[str, Tensor]]:
        """What one answer says of every text, after a look at every number."""
        seen, shapes = np.zeros(len(texts), int), self._shapes(texts, want)
        said: list[dict[str, Tensor]] = [{} for _ in texts]
        for block in blocks:
            whose = block.tensors.pop("texts", torch.empty(0)).numpy()
            if not (
                whose.dtype == np.int32
                and whose.ndim == 1
                and len(whose)
                and ((whose >= 0) & (whose < len(texts))).all()
            ):
                raise self._wrong("does not say whose answer it gives")
            seen[whose] += 1
            sizes = [texts[i].n for i in whose]
            if set(block.tensors) != set(shapes):
                raise self._wrong(f"gave {sorted(block.tensors)}, expected {sorted(shapes)}")
            for name, x in block.tensors.items():
                if x.shape != (sum(sizes), *shapes[name]):
                    raise self._wrong(f"gave {name} of shape {list(x.shape)}, expected {[sum(sizes), *shapes[name]]}")
                self._check(name, x)
                for i, own in zip(whose, x.split(sizes), strict=True):
                    said[i][name] = own
        if not (seen == 1).all():
            raise self._wrong(f"answered {int((seen == 1).sum())} of {len(texts)} texts once")
        return said

    def _check(self, name: str, x: Tensor) -> None:
        """Every number is one that can be."""
        if name == "ids":
            if x.is_floating_point() or not bool(((x >= 0) & (x < self.vocab)).all()):
                raise self._wrong(f"named tokens outside 0 to {self.vocab - 1}")
            return
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise self._wrong(f"gave numbers that are not finite ({name})")
        if name in ("chosen", "top", "gathered") and float(x.max()) > CERTAIN:
            raise self._wrong(f"gave a log-prob of {float(x.max()):.3g} ({name})")

    def _wrong(self, what: str) -> Unanswered:
        return Unanswered(f"{self.name} {what}", remedy="Look at the server and its log, then: opd train --resume")

    def _answer(self, found: dict[str, Tensor], decided: Tensor, want: Want) -> Answer:
        layers = self._layers(want)
        columns: dict[Any, Tensor] = {layer: found.pop(str(layer)).to(self.device) for layer in layers}
        columns |= {name: x.to(self.device) for name, x in found.items()}
        if "ids" in columns:
            columns["ids"] = columns["ids"].long()
        decided = decided.to(self.device)
        whole = lambda hidden, states: HeadDist(hidden, self.head, decided, self.vocab, states=states)
        return answered(columns, decided, want, layers, self.dtype, whole)

    @cached_property
    def head(self) -> Tensor:
        """[V, D] fetched when a whole distribution is first asked for, and held to its hash."""
        blocks = self.replicas.fetch("/v1/head", 2**30)
        parts = [block.tensors["head"] for block in blocks if "head" in block.tensors]
        head = torch.cat(parts) if parts else torch.empty(0)
        if (found := identity.weights_hash({"head": head})) != self.info["head"]:
            raise self._wrong(f"gave a head that is not its own (hash {found}, expected {self.info['head']})")
        return head.to(self.device)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """For prompt i one piece per seed in seeds[i]; the server's own end-of-text tokens end a piece, too."""
        sampling = replace(sampling, max_new=sampling.max_new or self.max_new)
        written: list[list[Piece]] = [[] for _ in prompts]
        parts = self._writing_parts(prompts, sampling, seeds)
        counts = [[len(seeds[i]) for i in part] for part in parts]
        questions = [
            Question(
                "/v1/text",
                wire.writing([prompts[i] for i in part], sampling, [seeds[i] for i in part], self.vocab),
                SLACK + 32 * sum(own) * (sampling.max_new or 0) + 64 * sum(own),
            )
            for part, own in zip(parts, counts, strict=True)
        ]
        for part, own, blocks in zip(parts, counts, self.replicas.ask(questions), strict=True):
            for i, pieces in zip(part, self._pieces(blocks, own), strict=True):
                written[i] = pieces
        return written

    def _writing_parts(
        self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """Prompts of similar length together, as many texts as the server writes at one time."""
        parts, texts, tokens = list[list[int]](), 0, 0
        for i in sorted((i for i in range(len(prompts)) if seeds[i]), key=lambda i: -len(prompts[i])):
            n = len(seeds[i])
            more = len(prompts[i]) + n * (sampling.max_new or 0)
            full = texts + n > self.info["batch_sequences"] or tokens + more > self.info["limits"]["tokens"]
            if not parts or full:
                parts.append([])
                texts = tokens = 0
            parts[-1].append(i)
            texts, tokens = texts + n, tokens + more
        return parts

    def _pieces(self, blocks: Sequence[Block], counts: Sequence[int]) -> list[list[Piece]]:
        try:
            (block,) = blocks
            pieces = wire.read_pieces(block, counts)
        except (ValueError, wire.Malformed) as error:
            raise self._wrong(f"wrote something else than was asked ({error})") from None
        for piece in (piece for some in pieces for piece in some):
            numbers = np.concatenate([piece.behaviour, piece.untruncated])
            if not np.isfinite(numbers).all() or numbers.max() > CERTAIN:
                raise self._wrong("gave log-probs of its text that cannot be")
            if piece.tokens.min() < 0 or piece.tokens.max() >= self.vocab:
                raise self._wrong(f"wrote tokens outside 0 to {self.vocab - 1}")
        return pieces

    # -- is it what it says? ------------------------------------------------------------------------------------------

    def _agreed(self, infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What all servers say of themselves; they must be one model."""
        needed = {*KEPT, *TOLD, "stops", "batch_tokens", "batch_sequences"}
        for url, info in zip(self.replicas.urls, infos, strict=True):
            if missing := sorted(needed - set(info)):
                raise Unanswered(f"{url} is no opd serve", got=f"an info without {missing[0]!r}")
            if info["format"] != wire.VERSION:
                got, remedy = f"format {info['format']}", "Use the same version of opd on both sides"
                raise Unanswered(f"{url} speaks another format", got=got, expected=wire.VERSION, remedy=remedy)
            if odd := [name for name in KEPT if info[name] != infos[0][name]]:
                got = f"{odd[0]} {info[odd[0]]} and {infos[0][odd[0]]}"
                raise Unanswered(f"{url} and {self.replicas.urls[0]} serve different models", got=got)
        return dict(infos[0])

    def probe(self) -> dict[str, float]:
        """The largest gaps (nats) between answers to one question: asked twice, in another order, of another server."""
        ids = (np.arange(24) * 7 + 3) % self.vocab
        texts = [_text(ids[:12], 5), _text(ids[8:], 3), _text(ids[:16], 5)]
        first: list[Array] = []
        gaps = {"again": 0.0, "order": 0.0, "servers": 0.0}
        for member in self.replicas.members:
            here, again = self._asked(texts, member), self._asked(texts, member)
            turned = self._asked(texts[::-1], member)[::-1]
            first = first or here
            for name, others in (("again", again), ("order", turned), ("servers", first)):
                far = max(float(np.abs(a - b).max()) for a, b in zip(here, others, strict=True))
                gaps[name] = max(gaps[name], far)
        most = GAP.get(str(self.info["dtype"]), COARSE)
        if worst := [name for name, gap in gaps.items() if not gap <= most]:
            how = {"again": "twice", "order": "in another order", "servers": "of two servers"}[worst[0]]
            got = f"log-probs {gaps[worst[0]]:.3g} nats apart"
            raise Unanswered(f"{self.name} was asked the same {how}", got=got, expected=f"at most {most:g}")
        return gaps

    def _asked(self, texts: Sequence[Rollout], member: Replica) -> list[Array]:
        """[n] log-probs per text, from one server."""
        want = Want(chosen=True)
        (blocks,) = self.replicas.ask([self._question(texts, want)], member)
        return [said["chosen"].double().numpy() for said in self._said(blocks, texts, want)]


def _text(ids: Array, first: int) -> Rollout:
    """A text whose rows begin at `first`."""
    author = (np.arange(len(ids)) >= first).astype(np.int8)
    return Rollout(ids.astype(np.int32), author, Problem("probe", ""))
