"""What travels between `opd serve` and its clients: safetensors, so that no number ever becomes a Python object.

A question is one safetensors file. An answer is a stream of blocks, each a length of 8 bytes (little-endian) and a
safetensors file of that length; a length of 0 is a sign of life, and the last block says `end` or `error` in its
metadata. docs/serving.md is the description for others.

Axes: P prompts, B texts, N rows, n rows of one block, K support, D width, V vocabulary.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from opd.protocols import Want
from opd.rollout import GIVEN, STUDENT, Array, End, Piece, Problem, Rollout, Sampling

VERSION = "1"
QUESTION, ANSWER = "application/x-opd-question", "application/x-opd-answer"
IDS = "ids"  # the column of a context that names the ids to be gathered
ALIVE = struct.pack("<Q", 0)
NOBODY = Problem("", "")


class Malformed(Exception):
    """A question or block that cannot be read; the message is a sentence."""


@dataclass(frozen=True)
class Reading:
    """What is wanted about the decided tokens of some texts, over the first `vocab` ids."""

    contexts: Sequence[Rollout]
    want: Want
    vocab: int


@dataclass(frozen=True)
class Writing:
    """Texts to be written: for prompt i one per seed in seeds[i]."""

    prompts: Sequence[Array]
    sampling: Sampling
    seeds: Sequence[Sequence[int]]
    vocab: int


@dataclass
class Block:
    """One part of an answer: tensors by name, and what is said beside them."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    said: dict[str, str] = field(default_factory=dict[str, str])


# ---- questions


def reading(contexts: Sequence[Rollout], want: Want, vocab: int) -> bytes:
    """Every different prompt travels once."""
    firsts = [int(context.positions[0]) for context in contexts]
    prompts, of = _distinct([context.tokens[:first] for context, first in zip(contexts, firsts, strict=True)])
    tensors = {**_ragged("prompt", prompts), "of": np.asarray(of, np.int32)}
    tensors |= _ragged("text", [c.tokens[first:] for c, first in zip(contexts, firsts, strict=True)])
    rows = np.concatenate([c.author[first:] > GIVEN for c, first in zip(contexts, firsts, strict=True)])
    if not rows.all():
        tensors["rows"] = rows.astype(np.uint8)
    if want.gather:
        tensors[IDS] = np.concatenate([c.columns[want.gather] for c in contexts]).astype(np.int32)
    asked = {"chosen": str(int(want.chosen)), "topk": str(want.topk), "hidden": str(int(want.dist))}
    asked["layers"] = ",".join(map(str, want.layers))
    return safetensors.numpy.save(tensors, {**asked, "vocab": str(vocab)})


def writing(prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]], vocab: int) -> bytes:
    flat = np.asarray([seed % 2**64 for own in seeds for seed in own], np.uint64)
    tensors = {**_ragged("prompt", prompts), "seed": flat, "seeds": np.asarray(list(map(len, seeds)), np.int32)}
    how = {name: str(getattr(sampling, name)) for name in ("temperature", "top_p", "top_k", "min_p", "max_new")}
    return safetensors.numpy.save(tensors, {**how, "stop": ",".join(map(str, sampling.stop)), "vocab": str(vocab)})


def read_reading(body: bytes, vocab: int) -> Reading:
    """The question in `body`, for a model of `vocab` tokens; Malformed says what is wrong with it."""
    tensors, said = _opened(body)
    prompts, texts = _rows(tensors, "prompt"), _rows(tensors, "text")
    of = _column(tensors, "of", np.int32, len(texts))
    _demand(bool(((of >= 0) & (of < len(prompts))).all()), "'of' names a prompt that is not there")
    _demand(all(map(len, prompts)) and all(map(len, texts)), "an empty prompt or text")
    total = sum(map(len, texts))
    decided = _column(tensors, "rows", np.uint8, total) > 0 if "rows" in tensors else np.ones(total, bool)
    cut = np.cumsum([len(text) for text in texts])[:-1]
    marks = np.split(decided, cut)
    _demand(all(mark[0] for mark in marks), "a text whose first token is no row belongs to the prompt")
    vocab = _number(said, "vocab", vocab, 1, vocab)
    want = Want(
        chosen=_number(said, "chosen", 0, 0, 1) == 1,
        topk=_number(said, "topk", 0, 0, vocab),
        gather=IDS if IDS in tensors else "",
        dist=_number(said, "hidden", 0, 0, 1) == 1,
        layers=_numbers(said, "layers"),
    )
    _demand(bool(want.needs), "nothing is asked: give chosen, topk, hidden, layers or ids")
    columns = _named(tensors, int(decided.sum()), vocab, [int(mark.sum()) for mark in marks])
    contexts = [
        _context(prompts[p], text, mark, column)
        for p, text, mark, column in zip(of, texts, marks, columns, strict=True)
    ]
    return Reading(contexts, want, vocab)


def _named(tensors: Mapping[str, Array], n: int, vocab: int, sizes: Sequence[int]) -> list[dict[str, Array]]:
    """The ids to be gathered, by context."""
    if IDS not in tensors:
        return [{} for _ in sizes]
    ids = tensors[IDS]
    _demand(ids.dtype == np.int32 and ids.ndim == 2 and len(ids) == n, f"'ids' must be int32 [{n}, K]")
    _demand(ids.size > 0 and ids.min() >= 0 and ids.max() < vocab, f"'ids' must be from 0 to {vocab - 1}")
    return [{IDS: part} for part in np.split(ids, np.cumsum(sizes)[:-1])]


def _context(prompt: Array, text: Array, mark: Array, columns: dict[str, Array]) -> Rollout:
    author = np.concatenate([np.zeros(len(prompt), np.int8), mark.astype(np.int8) * STUDENT])
    return Rollout(np.concatenate([prompt, text]), author, NOBODY, columns=columns)


def read_writing(body: bytes, vocab: int) -> Writing:
    tensors, said = _opened(body)
    prompts = _rows(tensors, "prompt")
    counts = _column(tensors, "seeds", np.int32, len(prompts))
    _demand(all(map(len, prompts)), "an empty prompt")
    _demand(bool((counts >= 0).all()) and bool(counts.any()), "no seed: nothing is to be written")
    flat = _column(tensors, "seed", np.uint64, int(counts.sum()))
    vocab = _number(said, "vocab", vocab, 1, vocab)
    sampling = Sampling(
        temperature=_real(said, "temperature", 1.0, 0.0, 1e6),
        top_p=_real(said, "top_p", 1.0, 1e-9, 1.0),
        top_k=_number(said, "top_k", 0, 0, 2**31),
        min_p=_real(said, "min_p", 0.0, 0.0, 1.0),
        max_new=_number(said, "max_new", 0, 1, 2**31),
        stop=_numbers(said, "stop"),
    )
    seeds = [part.tolist() for part in np.split(flat, np.cumsum(counts)[:-1])]
    return Writing(prompts, sampling, seeds, vocab)


def pieces(written: Sequence[Sequence[Piece]]) -> Block:
    """What was written, all pieces one after the other."""
    flat = [piece for some in written for piece in some]
    tensors = _ragged("text", [piece.tokens for piece in flat])
    tensors |= {name: np.concatenate([getattr(p, name) for p in flat]) for name in ("behaviour", "untruncated")}
    tensors["stopped"] = np.asarray([piece.end == End.STOP for piece in flat], np.uint8)
    return Block({name: torch.from_numpy(array) for name, array in tensors.items()})


def read_pieces(block: Block, counts: Sequence[int]) -> list[list[Piece]]:
    """As many pieces per prompt as were asked for."""
    tensors = {name: tensor.numpy() for name, tensor in block.tensors.items()}
    texts = _rows(tensors, "text")
    stopped = _column(tensors, "stopped", np.uint8, len(texts))
    ends = np.cumsum([len(text) for text in texts])
    numbers = [np.split(_column(tensors, name, None, ends[-1]), ends[:-1]) for name in ("behaviour", "untruncated")]
    _demand(len(texts) == sum(counts) and all(map(len, texts)), f"{len(texts)} texts, expected {sum(counts)}")
    made = iter(
        Piece(text, drew, plain, End.STOP if stop else End.LENGTH)
        for text, drew, plain, stop in zip(texts, *numbers, stopped, strict=True)
    )
    return [[next(made) for _ in range(count)] for count in counts]


# ---- blocks


def packed(block: Block) -> bytes:
    """A block with its length."""
    body = safetensors.torch.save({k: v.contiguous().cpu() for k, v in block.tensors.items()}, block.said or None)
    return struct.pack("<Q", len(body)) + body


class Blocks:
    """Puts the blocks of a stream together again, whatever pieces it arrives in."""

    def __init__(self, limit: int) -> None:
        self.limit, self.buffer = limit, bytearray()

    def feed(self, piece: bytes) -> Iterator[Block]:
        """The blocks that are whole now."""
        self.buffer += piece
        while len(self.buffer) >= 8:
            (size,) = struct.unpack_from("<Q", self.buffer)
            _demand(size <= self.limit, f"a block of {size} bytes")
            if len(self.buffer) < 8 + size:
                return
            body = bytes(self.buffer[8 : 8 + size])
            del self.buffer[: 8 + size]
            if size:
                try:
                    yield Block(safetensors.torch.load(body), _said(body))
                except (SafetensorError, ValueError, KeyError) as error:
                    raise Malformed(f"a block that is no safetensors file ({error})") from error


# ---- the parts of a question


def _demand(true: bool, what: str) -> None:
    if not true:
        raise Malformed(what)


def _opened(body: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    try:
        return safetensors.numpy.load(body), _said(body)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Malformed(f"this is no safetensors file ({error})") from error


def _said(body: bytes) -> dict[str, str]:
    """The metadata, which safetensors does not give for bytes."""
    (size,) = struct.unpack_from("<Q", body)
    return json.loads(body[8 : 8 + size]).get("__metadata__") or {}


def _distinct(arrays: Sequence[Array]) -> tuple[list[Array], list[int]]:
    """The different ones, and for each its place among them."""
    places: dict[bytes, int] = {}
    of = [places.setdefault(array.tobytes(), len(places)) for array in arrays]
    first = dict(zip(reversed(of), reversed(arrays), strict=True))
    return [first[place] for place in range(len(places))], of


def _ragged(name: str, rows: Sequence[Array]) -> dict[str, Array]:
    flat = np.concatenate(rows).astype(np.int32)
    return {name: flat, f"{name}.lengths": np.asarray(list(map(len, rows)), np.int32)}


def _rows(tensors: Mapping[str, Array], name: str) -> list[Array]:
    lengths = _column(tensors, f"{name}.lengths", np.int32, None)
    _demand(len(lengths) > 0 and bool((lengths >= 0).all()), f"'{name}.lengths' must hold at least one length")
    flat = _column(tensors, name, np.int32, int(lengths.sum(dtype=np.int64)))
    return np.split(flat, np.cumsum(lengths)[:-1])


def _column(tensors: Mapping[str, Array], name: str, dtype: Any, n: int | None) -> Array:
    found = tensors.get(name)
    _demand(found is not None, f"no tensor {name!r}")
    assert found is not None
    kind = np.dtype(dtype or found.dtype)
    fits = found.dtype == kind and found.ndim == 1 and n in (None, len(found))
    shape = "[any]" if n is None else f"[{n}]"
    _demand(fits, f"{name!r} must be {kind} {shape}, not {found.dtype} {list(found.shape)}")
    return found


def _number(said: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = said.get(name, str(default))
    _demand(
        text.isdecimal() and len(text) < 12 and low <= int(text) <= high,
        f"{name!r} must be from {low} to {high}, not {text[:20]!r}",
    )
    return int(text)


def _real(said: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    try:
        value = float(said.get(name, default))
    except ValueError:
        value = float("nan")
    _demand(low <= value <= high, f"{name!r} must be from {low:g} to {high:g}")
    return value


def _numbers(said: Mapping[str, str], name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in said.get(name, "").split(",") if part)
    except ValueError:
        raise Malformed(f"{name!r} must be whole numbers with commas between them") from None
