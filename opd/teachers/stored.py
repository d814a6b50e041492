"""A teacher whose answers were computed once: it knows the texts of its store, and nothing about any other.

--teacher stored:FOLDER; `opd store` makes the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from opd.dist import TopDist
from opd.errors import TeacherError
from opd.protocols import Answer, Student, Want
from opd.rollout import GIVEN, Problem, Rollout
from opd.serve.identity import known, tokenizer_hash
from opd.shards import AGAIN, Kept, read_manifest, read_shard


class StoredTeacher:
    """Answers from the shards of a store, which are checked and held in memory.

    It can give log-probs of decided tokens, and the `most` best tokens where the store holds some. What it is asked
    about is found by problem and tokens; another prompt before the same decisions is another text.
    """

    live = False
    only_its_own = True  # it reads no other text, so nobody is examined against it

    def __init__(self, folder: str | Path, name: str = "teacher") -> None:
        self.folder, self.name = Path(folder), name
        self.store = read_manifest(self.folder)
        if not self.store.complete:
            made = f"{sum(shard.texts for shard in self.store.shards)} texts so far"
            raise TeacherError(f"the store {folder} is not finished", got=made, remedy=AGAIN.replace("again", "whole"))
        self.most = {"topk": self.store.k}
        self.learner: dict[str, Any] = {}  # who learns from these texts, once it is met
        self.can = frozenset({"chosen", "topk"} if self.store.k else {"chosen"})
        self._known: dict[bytes, Kept] = {}
        self._texts: dict[str, list[Rollout]] = {}
        for shard in self.store.shards:
            for kept in read_shard(self.folder, shard):
                self._known[key(kept.rollout)] = kept
                self._texts.setdefault(kept.rollout.problem.id, []).append(kept.rollout)

    def meet(self, student: Any) -> None:
        """The student must mean the same by every id, and gives log-probs over the tokens of the store alone."""
        ours, theirs = tokenizer_hash(student.tokenizer), self.store.made["tokenizer"]
        if ours != theirs:
            raise TeacherError(
                f"the texts in {self.folder} were written with another tokenizer than that of {student.name}",
                got=ours[:12],
                expected=theirs[:12],
                remedy="Store the answers with a student of this family",
            )
        student.vocab = int(self.store.made["vocab"])
        self.learner = known(student)

    def texts(self, problem: Problem) -> list[Rollout]:
        """What was written for a problem before this run, in the order of writing; nothing for one that is not there.

        The rollouts have no more of their problem than its id.
        """
        return self._texts.get(problem.id, [])

    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        if want.needs - self.can or want.topk > self.store.k:
            asked = [*sorted(want.needs), *([f"K={want.topk}"] if want.topk else [])]
            raise TeacherError(
                f"the store {self.folder} cannot answer", got=asked, expected=f"{sorted(self.can)}, K={self.store.k}"
            )
        found = [self._found(context) for context in contexts]
        chosen = torch.cat([one.chosen for one in found])
        dist = None
        if want.topk:
            ids = torch.cat([one.ids for one in found if one.ids is not None])
            top = torch.cat([one.top for one in found if one.top is not None])
            tokens = torch.cat([torch.from_numpy(context.decisions).long() for context in contexts])
            dist = TopDist(ids[:, : want.topk], top[:, : want.topk], tokens, chosen)
        return Answer(dist, chosen if want.chosen else None)

    def _found(self, context: Rollout) -> Kept:
        found = self._known.get(key(context))
        if found is None:
            stored = len(self.texts(context.problem))
            raise TeacherError(
                f"the store {self.folder} holds no answer about this text of problem {context.problem.id}",
                got=f"{context.n} decisions after {len(context.tokens) - context.n} given tokens",
                expected=f"one of {stored} texts" if stored else "another problem",
                remedy="Learn from the store's own texts, or take a teacher that reads",
            )
        return found

    def follow(self, student: Student, step: int) -> None:
        """What is written down stays."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Whose answers they are; `identity` must not change while a run lasts."""
        told = {"kind": "stored", "made": self.store.made, "learner": self.learner}
        return {"identity": {"store": self.store.digest()}, **told}


def key(rollout: Rollout) -> bytes:
    """Which text it is: its problem, its tokens, and which of them were given."""
    parts = (rollout.problem.id.encode(), rollout.tokens.tobytes(), (rollout.author != GIVEN).tobytes())
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()
