"""The student, whose texts a server writes: pushed to it whenever it has learned, and verified to have arrived.

What comes back is read once by the student itself, so that the table holds its own log-probs as if it had written, and
beside them by how much the server's differ.

Axes: N decisions, n decisions of one text, T positions, V vocabulary.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from opd.dist import HeadDist
from opd.engines import vllm_folder
from opd.engines.sampling import truncate
from opd.engines.vllm import RATIO, VLLM, WEIGHTS, how, started
from opd.errors import SaveError, SettingError, Unanswered
from opd.protocols import Want
from opd.rollout import STUDENT, Array, Piece, Problem, Sampling, continued

if TYPE_CHECKING:
    from opd.engines.hf import HFModel

LOCAL = ("take_turns", "reading", "write_aloud")  # what only a model in this process can do
CHUNK = 512  # decisions whose [V] distributions exist at the same time
TRIED = 0.1  # how far weights are moved to see whether the server follows, as a share of their size
TRIED_HEAD = 1.0  # and the head: if that stays behind, it is by more than any precision could be off
ROUGH = 0.1  # how far 16 bits may then be off, as a share of how far the log-probs were moved
ROUNDS = 2  # a text is written again when the server turns out to have been restarted under it


class Sampled:
    """Everything is the student's own, but for `write`.

    folder: the server's, replaced at every push; step: the number of batches that the student has learned from, which
    is the version of its weights; tolerance: mean nats by which student and server may differ on the same tokens.
    """

    def __init__(self, student: HFModel, server: VLLM, folder: Path, step: Callable[[], int], tolerance: float) -> None:
        self.student, self.server, self.folder, self.step, self.tolerance = student, server, folder, step, tolerance
        self.name, self.run = student.name, uuid.uuid4().hex[:12]

    def __getattr__(self, name: str) -> Any:
        if name in LOCAL or name == "student":
            raise AttributeError(f"texts of {self.__dict__.get('name')} are written by a server: no {name}")
        return getattr(self.student, name)

    # -- before the first text ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Refuses a server that does not follow, weights that are moved on purpose included, or says what it drew with.

        A tied head that stays behind is off by little after one update, and by much after this.
        """
        texts = _probes(self.student.head.shape[0])
        own = self._own(texts)
        with self.student.wearing(_moved(self.student.weights(), self.student.head)):
            moved = _far(self._own(texts), own)
            gap = self._push(f"{self.run}:trial")
        rough = ROUGH * moved if self.student.head.element_size() < 4 else 0.0
        if not gap <= (most := max(self.tolerance, rough)):
            raise Unanswered(
                f"{self.server.url} does not take all of the weights that it is given: its log-probs are off",
                got=f"{gap:.3g} nats on weights that were moved by {moved:.3g}",
                expected=f"at most {most:g}",
                remedy=f"A server that ties the head to the embedding keeps the old one. {how(self.student.name)}",
            )
        self._sync()
        self._check_mode()

    def _check_mode(self) -> None:
        """The server gives log-probs after the temperature, not before it."""
        warm, prompt = Sampling(temperature=0.5, max_new=16), _probes(self.student.vocab)[0][:4]
        ((piece,),) = self._asked([prompt], warm, [[0]])
        plain, drawn = self._read([prompt], [[piece]], warm)
        if _far([piece.behaviour], [plain]) < _far([piece.behaviour], [drawn]):
            raise SettingError(
                f"{self.server.url} says log-probs at temperature 1, whatever it draws with",
                expected="those of what really drew a token",
                remedy=f"Start it so: {started(self.server.root)}",
            )

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """For prompt i one piece per seed in seeds[i], by the server with the weights that the student has now.

        `untruncated` and `behaviour` are what the student itself gives the token; the column sampler.ratio [n] is
        log student - log server under the distributions that draw (-inf where the student's truncation would never
        have drawn it; 0 when greedy), the tag sampler.version the number of batches learned from.
        """
        self.student.check(prompts, room=1)
        for _ in range(ROUNDS):
            self._sync()
            pieces = self._asked(prompts, sampling, seeds)
            if self.server.version() == self._due:
                return self._compared(prompts, pieces, sampling)
        raise self.server.wrong("was given other weights while it wrote, twice; is another run using it")

    def _asked(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        most = sampling.max_new or self.student.max_new
        limits = [min(most, self.student.context - len(prompt)) for prompt in prompts]
        longest = max((len(p) + limit for p, limit in zip(prompts, limits, strict=True)), default=0)
        self.server.fits(longest)
        head = self.student.head.shape[0]
        return self.server.write(prompts, sampling, seeds, limits, self.student.stops, self.student.vocab, head)

    def _compared(self, prompts: Sequence[Array], pieces: list[list[Piece]], sampling: Sampling) -> list[list[Piece]]:
        """The pieces with the student's own log-probs; stops where they are not the server's."""
        if not any(pieces):
            return pieces
        plain, drawn = self._read(prompts, pieces, sampling)
        flat = [piece for some in pieces for piece in some]
        theirs = np.concatenate([piece.behaviour for piece in flat])
        ratio = drawn - theirs
        seen = np.isfinite(ratio)
        drawn = np.where(seen, drawn, theirs)  # such a row weighs nothing, and must not divide by zero
        if seen.any() and not (gap := float(np.abs(ratio[seen]).mean())) <= self.tolerance:
            raise self._apart(gap, "on what it wrote")
        ends = np.cumsum([len(piece.tokens) for piece in flat])[:-1]
        parts = zip(flat, *(np.split(column, ends) for column in (plain, drawn, ratio)), strict=True)
        tags = {WEIGHTS: float(self.step())}
        done = iter(
            replace(piece, untruncated=own, behaviour=by, columns={RATIO: far}, tags=tags)
            for piece, own, by, far in parts
        )
        return [[next(done) for _ in some] for some in pieces]

    @torch.no_grad()
    def _read(
        self, prompts: Sequence[Array], pieces: Sequence[Sequence[Piece]], sampling: Sampling
    ) -> tuple[Array, Array]:
        """[N], [N] float64: the student's log-probs of the tokens at temperature 1, and under what would draw them."""
        nobody = Problem("sampled", "")
        texts = [
            continued(prompt, piece, nobody, sampling, STUDENT)
            for prompt, some in zip(prompts, pieces, strict=True)
            for piece in some
        ]
        whole = sampling == Sampling(max_new=sampling.max_new, stop=sampling.stop)
        answer = self.student.read(texts, Want(chosen=True, dist=not whole and not sampling.greedy))
        assert answer.chosen is not None
        plain = answer.chosen.double().cpu().numpy()
        if whole or sampling.greedy:
            return plain, np.zeros(len(plain)) if sampling.greedy else plain
        assert isinstance(answer.dist, HeadDist)
        return plain, drawn(answer.dist, sampling).double().cpu().numpy()

    # -- weights ------------------------------------------------------------------------------------------------------

    @property
    def _due(self) -> str:
        """What the server should say that its weights are."""
        return f"{self.run}:{self.step()}"

    def _sync(self) -> None:
        """The server has the student's weights; pushes them if it says that it has others."""
        if self.server.version() == self._due:
            return
        start = time.perf_counter()
        gap = self._push(self._due)
        self.server.numbers |= {"sampler.push.gap": gap, "sampler.push.seconds": time.perf_counter() - start}
        if not gap <= self.tolerance:
            raise self._apart(gap, "after new weights were pushed")

    def _push(self, version: str) -> float:
        """Mean nats between the two on texts that nobody wrote, after the push."""
        try:
            vllm_folder.write(self.student, self.folder)
        except SaveError as error:
            what = f"the weights for {self.server.url} could not be saved in {self.folder}"
            raise Unanswered(what, got=str(error.__cause__), remedy="Free some space and resume the run") from error
        self.server.load(self.folder, version)
        texts = _probes(self.student.head.shape[0])
        return _far(self.server.logprobs(texts), self._own(texts))

    @torch.no_grad()
    def _own(self, texts: Sequence[Array]) -> list[Array]:
        """[n - 1] per text as VLLM.logprobs, by the student as it is now: over all ids of its head."""
        forward = self.student.trunk(texts, [np.arange(1, len(ids)) for ids in texts])
        tokens = torch.from_numpy(np.concatenate([ids[1:] for ids in texts]).astype(np.int64)).to(self.student.device)
        dist = HeadDist(forward.hidden, forward.head, tokens, forward.head.shape[0])
        ends = np.cumsum([len(ids) - 1 for ids in texts])[:-1]
        return np.split(dist.chosen.double().cpu().numpy(), ends)

    def _apart(self, gap: float, when: str) -> Unanswered:
        return Unanswered(
            f"the student and {self.server.url} differ {when}",
            got=f"{gap:.3g} nats per token",
            expected=f"at most {self.tolerance:g}",
            remedy="Look at the server and its precision, then go on with opd train --resume; "
            "sampler_tolerance in run.toml allows more",
        )


def drawn(dist: HeadDist, sampling: Sampling) -> Tensor:
    """[N] log-probs of the decided tokens under what would have drawn them; -inf for one that never would have been."""
    parts = [dist.index(places) for places in torch.arange(len(dist), device=dist.tokens.device).split(CHUNK)]
    chosen = [truncate(part.logits(), sampling).gather(1, part.tokens[:, None]).squeeze(1) for part in parts]
    return torch.cat(chosen) if chosen else dist.chosen


def _probes(vocab: int) -> list[Array]:
    """Two texts over all of the vocabulary, the same for every model."""
    ids = (np.arange(24) * 7919 + 3) % vocab
    return [ids.astype(np.int32), ids[::-1].astype(np.int32)]


def _moved(weights: Mapping[str, Tensor], head: Tensor) -> dict[str, Tensor]:
    """Other values for what learns, the same every time; the head is moved furthest."""
    found: dict[str, Tensor] = {}
    for number, (name, p) in enumerate(sorted(weights.items())):
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float32)
        size = float(p.detach().float().square().mean().sqrt())
        share = TRIED_HEAD if p is head else TRIED
        found[name] = (p.detach() + (share * size + 0.01) * noise.to(p)).to(p.dtype)
    return found


def _far(some: Sequence[Array], others: Sequence[Array]) -> float:
    """Mean absolute difference."""
    return float(np.abs(np.concatenate(some) - np.concatenate(others)).mean())
