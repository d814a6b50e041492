"""What it costs that a teacher is in another process: seconds against the same model here, bytes, and many clients.

    OMP_NUM_THREADS=1 python benchmarks/served.py            # --write puts the tables into docs/benchmarks.md

A random Llama of width 256 and 6 layers over 32,000 tokens. Here and in the server one thread computes; both are asked
the same in turn, and a ratio is the median over the ratios of pairs. Processor seconds, of client and server together,
say the same on a machine that has other work to do; seconds say what waiting for each other adds. Every text has a
prompt of its own, so that neither side is spared anything.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import TEACHER, Sizes, begun, llama, prompts, put, tokenizer

from opd.engines.hf import HFModel
from opd.protocols import Want
from opd.rollout import Problem, Rollout
from opd.teachers.local import LocalTeacher
from opd.teachers.served import Served

SIZES = Sizes(vocab=32_000, batch=16)
K = 64
WANTS = {
    "score": ("the log-prob of the token", Want(chosen=True)),
    "topk": (f"{K} best tokens", Want(topk=K)),
    "gather": (f"{K} tokens that the client names", Want(gather="mine")),
    "hidden": ("the whole distribution", Want(dist=True)),
}
CLIENTS = 1, 4, 16
QUESTIONS, TEXTS = 32, 2  # of all clients together; texts of one question


@dataclass(frozen=True)
class Server:
    """`opd serve` in a process of its own, which computes with one thread."""

    url: str
    pid: int

    @classmethod
    @contextmanager
    def of(cls, folder: Path, *words: str) -> Iterator[Server]:
        command = [sys.executable, "-m", "opd", "serve", str(folder), "--port", "0", "--threads", "1", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = (re.search(r"at (http://\S+)$", line) for line in process.stdout)
            try:
                yield cls(next(found[1] for found in said if found), process.pid)
            finally:
                process.kill()

    @property
    def cpu(self) -> float:
        """Processor seconds that it has used."""
        user, system = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def texts(model: HFModel, sizes: Sizes) -> list[Rollout]:
    """`batch` texts of `new` random tokens, each after its own prompt and each position with K ids to ask for."""
    rng, found = np.random.default_rng(sizes.seed), list[Rollout]()
    for words in prompts(sizes, sizes.batch):
        given = np.asarray(model.tokenizer.encode(words), np.int32)
        own = rng.integers(3, sizes.vocab, sizes.new)
        author = np.r_[np.zeros(len(given), np.int8), np.ones(len(own), np.int8)]
        named = {"mine": rng.integers(0, sizes.vocab, (sizes.new, K)).astype(np.int32)}
        found.append(Rollout(np.r_[given, own].astype(np.int32), author, Problem("", ""), columns=named))
    return found


def spent(server: Server, work: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Seconds, and processor seconds here and in the server."""
    start, before = time.perf_counter(), time.process_time() + server.cpu
    work(*arguments)
    return time.perf_counter() - start, time.process_time() + server.cpu - before


def questions(model: HFModel, server: Server, asked: Sequence[Rollout], pairs: int) -> list[str]:
    """What both sides need, their ratios, and bytes per decided token against two ways to send more."""
    local, served = LocalTeacher(model), Served([server.url])
    counts, rows, stock = served.replicas.counts, sum(text.n for text in asked), stock_bytes(local, asked)
    lines = [
        "| question | processor s, here | served | ratio | ratio of seconds | bytes up | down | all logits | JSON |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (words, want) in WANTS.items():
        for side in (local, served):
            side.read(asked, want)  # the head travels once, with the first question for a whole distribution
        before = dict(counts)
        taken = np.array([[spent(server, side.read, asked, want) for side in (local, served)] for _ in range(pairs)])
        wall, cpu = np.median(taken[:, 1] / taken[:, 0], axis=0)
        here, there = np.median(taken[:, :, 1], axis=0)
        up, down = ((counts[f"bytes.{way}"] - before[f"bytes.{way}"]) / pairs / rows for way in ("sent", "received"))
        sizes = f"{up:.0f} | {down:.0f} | {4 * model.vocab:,} | {stock.get(name, 'cannot')}"
        lines.append(f"| {words} | {here:.2f} | {there:.2f} | {cpu:.2f} | {wall:.2f} | {sizes} |")
        print(lines[-1], file=sys.stderr)
    return lines


def stock_bytes(local: LocalTeacher, asked: Sequence[Rollout]) -> dict[str, str]:
    """Bytes per position of `prompt_logprobs` as OpenAI-compatible servers write them, by question.

    One JSON object per position, an entry per token: {"17": {"logprob": -3.2, "rank": 4, "decoded_token": "t14"}}. The
    token itself is always among them.
    """
    some = asked[:4]
    dist = local.read(some, Want(dist=True)).dist
    assert dist is not None
    logprobs, tokens = dist.logprobs(), torch.from_numpy(np.concatenate([text.decisions for text in some])).long()
    ranks = (logprobs > logprobs.gather(1, tokens[:, None])).sum(-1) + 1
    names = local.engine.tokenizer.convert_ids_to_tokens

    def entry(row: int, token: int, rank: int) -> tuple[str, dict[str, object]]:
        return str(token), {"logprob": float(logprobs[row, token]), "rank": rank, "decoded_token": names(token)}

    own = [dict([entry(n, int(token), int(ranks[n]))]) for n, token in enumerate(tokens)]
    best = logprobs.topk(K, dim=-1).indices.tolist()
    top = [{**own[n], **dict(entry(n, token, i + 1) for i, token in enumerate(row))} for n, row in enumerate(best)]
    return {name: f"{len(json.dumps(found)) / len(tokens):,.0f}" for name, found in (("score", own), ("topk", top))}


def throughput(servers: dict[str, Server], asked: Sequence[Rollout], repeats: int) -> list[str]:
    """Decided tokens per second, and per processor second of the server, where clients ask one thing at a time."""
    parts = [asked[i : i + TEXTS] for i in range(0, len(asked), TEXTS)]
    clients = {how: [Served([server.url]) for _ in range(max(CLIENTS))] for how, server in servers.items()}

    def ask(client: Served, n: int) -> None:
        for i in range(n):
            client.read(parts[i % len(parts)], Want(chosen=True))

    lines = [f"| clients | {' | '.join(f'{how} | per processor s' for how in servers)} |", "|---|" + "---|---|" * 2]
    for n in CLIENTS:
        speeds: dict[str, list[tuple[float, float]]] = {how: [] for how in servers}
        for _ in range(repeats):
            for how, server in servers.items():
                start, before = time.perf_counter(), server.cpu
                with ThreadPoolExecutor(n) as pool:
                    list(pool.map(ask, clients[how][:n], [QUESTIONS // n] * n))
                taken = time.perf_counter() - start, server.cpu - before
                speeds[how].append((QUESTIONS * TEXTS * SIZES.new / taken[0], QUESTIONS * TEXTS * SIZES.new / taken[1]))
        middle = [f"{x:,.0f}" for own in speeds.values() for x in np.median(own, axis=0)]
        lines.append(f"| {n} | {' | '.join(middle)} |")
        print(lines[-1], file=sys.stderr)
    return lines


def main() -> None:
    arguments, load = begun("pairs", 5)
    torch.set_num_threads(1)
    torch.manual_seed(SIZES.seed)
    os.environ["OPD_SERVE_TOKEN"] = os.environ["OPD_TEACHER_TOKEN"] = secrets.token_urlsafe(24)
    model = HFModel(llama(SIZES, TEACHER).eval(), tokenizer(SIZES, eos=False), "random")
    asked = texts(model, SIZES)
    with tempfile.TemporaryDirectory() as place:
        model.save(folder := Path(place))
        with Server.of(folder) as plain, Server.of(folder, "--merge") as merging:
            both = questions(model, plain, asked, arguments.pairs)
            many = throughput({"a question at a time": plain, "`--merge`": merging}, asked, 3)
    tables = "\n".join([load, "", *both, "", *many])
    print(tables)
    if arguments.write:
        put("served.py", tables)


if __name__ == "__main__":
    main()
