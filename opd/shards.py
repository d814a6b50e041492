"""A store is a folder of texts with a teacher's answers about them, in shards whose hashes stand in a manifest.

STORE/manifest.json            what was asked of whom about whose texts; every shard with its hash; its own hash
      shard-00000.safetensors  texts of some problems, and per decided token what the teacher said

Of a shard: tokens [T] and length [B] of all texts one after the other, prompt [B] how many tokens of each were given,
end and seed [B]; per decision behaviour, untruncated (the writer's log-probs, nan where nobody drew it) and chosen [N],
and where the K best tokens were asked for their ids and top (log-probs) [N, K], and rest [N], the log of what is left
for all others. Logs are natural and normalised over the whole vocabulary. `problems` in the file's metadata: JSON, the
id of each text's problem.

Axes: B texts of a shard, T tokens and N decisions of all of them, K best tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from opd.checkpoint import plain, write_bytes, write_text
from opd.errors import DataError, TeacherError
from opd.rollout import GIVEN, OTHER, Array, End, Problem, Rollout, Sampling

FORMAT = 1
MANIFEST = "manifest.json"
ENDS = tuple(End)
AGAIN = "The same 'opd store' command makes that part again"
COLUMNS = ("behaviour", "untruncated")
SLACK = 1e-3  # by how much rounding may lift a probability above 1


@dataclass(frozen=True)
class Shard:
    """One file: its name, its hash and what is in it."""

    file: str
    sha256: str
    texts: int
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """`made` says what was asked of whom about whose texts: teacher, student, tokenizer, k, sampling, seed ..."""

    made: Mapping[str, Any]
    shards: tuple[Shard, ...] = ()
    complete: bool = False

    @property
    def k(self) -> int:
        return int(self.made["k"])

    def body(self) -> dict[str, Any]:
        shards = [vars(shard) for shard in self.shards]
        return plain({"format": FORMAT, "made": self.made, "complete": self.complete, "shards": shards})

    def digest(self) -> str:
        """A hash of everything, and so of every file."""
        return hashlib.sha256(json.dumps(self.body(), sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        text = json.dumps(self.body() | {"sha256": self.digest()}, indent=1)
        write_text(folder / MANIFEST, text + "\n")

    def plus(self, number: int, shard: Shard) -> Manifest:
        """With shard `number` made, or made again."""
        return replace(self, shards=(*self.shards[:number], shard, *self.shards[number + 1 :]))


def read_manifest(folder: Path) -> Manifest:
    """What a store says of itself, checked against its own hash."""
    file = folder / MANIFEST
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        found = Manifest(body["made"], tuple(Shard(**one) for one in body["shards"]), body["complete"])
        sound = body["format"] == FORMAT and body["sha256"] == found.digest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise TeacherError(f"{file} cannot be read", got=got, expected="a store that 'opd store' made") from error
    if not sound:
        raise TeacherError(
            f"{file} is not as it was written", got="another hash, or another format", remedy="Store to a new folder"
        )
    return found


@dataclass(frozen=True)
class Kept:
    """What is kept of one text: the text itself, and what the teacher said of its n decisions."""

    rollout: Rollout
    chosen: Tensor  # [n]
    ids: Tensor | None = None  # [n, K] best first
    top: Tensor | None = None  # [n, K]

    @property
    def rest(self) -> Tensor:
        """[n] the log of the probability outside the K best; -inf where rounding leaves nothing."""
        assert self.top is not None
        return torch.log1p(-self.top.double().logsumexp(-1).exp().clamp(max=1)).to(self.top)


def write_shard(folder: Path, number: int, kept: Sequence[Kept]) -> Shard:
    """The file appears whole or not at all."""
    rollouts = [one.rollout for one in kept]
    tensors = {
        "tokens": _joined([r.tokens for r in rollouts]),
        "length": torch.tensor([len(r.tokens) for r in rollouts], dtype=torch.int32),
        "prompt": torch.tensor([int(r.positions[0]) for r in rollouts], dtype=torch.int32),
        "end": torch.tensor([ENDS.index(r.end) for r in rollouts], dtype=torch.uint8),
        "seed": torch.from_numpy(np.array([r.seed or 0 for r in rollouts], np.uint64).view(np.int64)),
        **{name: _joined([r.columns[name] for r in rollouts]) for name in COLUMNS},
        "chosen": torch.cat([one.chosen for one in kept]),
    }
    if kept[0].top is not None:
        tensors["ids"] = torch.cat([one.ids for one in kept if one.ids is not None]).to(torch.int32)
        tensors["top"] = torch.cat([one.top for one in kept if one.top is not None])
        tensors["rest"] = torch.cat([one.rest for one in kept])
    data = safetensors.save(tensors, {"problems": json.dumps([r.problem.id for r in rollouts])})
    file = f"shard-{number:05d}.safetensors"
    write_bytes(folder / file, data)
    return Shard(file, hashlib.sha256(data).hexdigest(), len(rollouts), sum(r.n for r in rollouts))


def _joined(parts: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def is_whole(folder: Path, shard: Shard) -> bool:
    """Whether a file is there and holds what was written."""
    file = folder / shard.file
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == shard.sha256


def read_shard(folder: Path, shard: Shard) -> list[Kept]:
    """The very bytes whose hash was compared; the problems have their ids alone."""
    file = folder / shard.file
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TeacherError(f"{file} cannot be read", got=error.strerror, remedy=AGAIN) from error
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise TeacherError(f"{file} is not as it was written", got="another hash", remedy=AGAIN)
    try:
        size = int.from_bytes(data[:8], "little")
        ids = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["problems"])
        kept = _unpacked(safetensors.load(data), ids)
    except (SafetensorError, ValueError, KeyError) as error:
        raise TeacherError(f"{file} is no shard of a store", got=f"{type(error).__name__}: {error}") from error
    for one in kept:
        check(one, str(file))
    return kept


def _unpacked(tensors: Mapping[str, Tensor], ids: Sequence[str]) -> list[Kept]:
    lengths, prompts = tensors["length"].tolist(), tensors["prompt"].tolist()
    text, row, found = 0, 0, list[Kept]()
    for number, (problem, length, prompt) in enumerate(zip(ids, lengths, prompts, strict=True)):
        rows = slice(row, row + length - prompt)
        author = np.full(length, OTHER, np.int8)
        author[:prompt] = GIVEN
        rollout = Rollout(
            tensors["tokens"][text : text + length].numpy(), author, Problem(problem, ""), Sampling(),
            ENDS[int(tensors["end"][number])], {name: tensors[name][rows].numpy() for name in COLUMNS},
            seed=int(tensors["seed"][number]) % 2**64,
        )  # fmt: skip
        best = (tensors["ids"][rows].long(), tensors["top"][rows]) if "top" in tensors else (None, None)
        found.append(Kept(rollout, tensors["chosen"][rows], *best))
        text, row = text + length, rows.stop
    return found


def check(kept: Kept, where: str) -> None:
    """A teacher's numbers are log-probabilities; anything else is never learned from."""
    columns = {"the decided token": kept.chosen} | ({} if kept.top is None else {"the best tokens": kept.top})
    for what, values in columns.items():
        odd = values.isnan() | (values > SLACK)
        if bool(odd.any()):
            raise DataError(
                f"{where}: no log-prob of {what} of problem {kept.rollout.problem.id}",
                got=float(values[odd][0]),
                expected="a number up to 0",
            )
    if kept.top is not None and bool((kept.top.double().logsumexp(-1) > SLACK).any()):
        raise DataError(f"{where}: the best tokens of problem {kept.rollout.problem.id} have more than all probability")
