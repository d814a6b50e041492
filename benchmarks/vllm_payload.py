"""What a stock vLLM server costs as a teacher: bytes and seconds per decided token, beside `opd serve`.

    make test-vllm                                                # makes vLLM's environment
    OMP_NUM_THREADS=1 python benchmarks/vllm_payload.py

The same model and texts for both: a random Llama of width 256 and 6 layers over 32,000 tokens, one thread in each
server; vLLM as it comes, but for the number of best tokens that it may give.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import TEACHER, Sizes, best, llama, report, seconds, tokenizer

from opd.engines.hf import HFModel, load_model, load_tokenizer
from opd.protocols import Want
from opd.rollout import Problem, Rollout
from opd.teachers.served import Served
from opd.teachers.vllm import VLLMTeacher

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "vllm")]

from serving import TOKEN, Serve  # noqa: E402
from vllm_server import VLLM  # noqa: E402

K = 64
WANTS = {"score": Want(chosen=True), f"top-{K}": Want(topk=K)}


def main() -> None:
    sizes = Sizes.parse(vocab=32_000, batch=16, steps=5)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        llama(sizes, TEACHER).save_pretrained(folder)
        tokenizer(sizes, eos=False).save_pretrained(folder)
        model = HFModel(load_model(str(folder), torch.float32, "cpu"), load_tokenizer(str(folder)), "student")
        ours = Serve(str(folder), "--port", "0", "--threads", "1")
        theirs = VLLM(folder, "--max-logprobs", str(K))
        try:
            teachers = {
                "opd serve": Served([ours.url]),
                "vLLM": VLLMTeacher.of(f"vllm:{theirs.url}", model, 600.0, 0.0),
            }
            teachers["vLLM"].meet(model)
            report(sizes, **{name: measured(teacher, sizes) for name, teacher in teachers.items()})
        finally:
            ours.kill()
            theirs.stop()


def measured(teacher: Served | VLLMTeacher, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Per decided token: bytes to the server and back, and microseconds."""
    asked, found, counts = texts(sizes), {}, teacher.replicas.counts
    for name, want in WANTS.items():
        before = dict(counts)
        taken = best(seconds(lambda want=want: teacher.read(asked, want), sizes.steps))
        times = sizes.steps + 1
        travelled = {way: counts[f"bytes.{way}"] - before.get(f"bytes.{way}", 0) for way in ("sent", "received")}
        found[name] = {way: round(n / times / sizes.tokens, 1) for way, n in travelled.items()} | {
            f"microseconds, {which}": round(1e6 * t / sizes.tokens) for which, t in taken.items()
        }
    return found


def texts(sizes: Sizes) -> list[Rollout]:
    """`batch` texts of `new` random tokens, each after a prompt of its own."""
    draw, author = np.random.default_rng(sizes.seed), np.repeat(np.int8([0, 1]), [sizes.prompt, sizes.new])
    ids = draw.integers(3, sizes.vocab, (sizes.batch, sizes.prompt + sizes.new)).astype(np.int32)
    return [Rollout(row, author, Problem("", "")) for row in ids]


if __name__ == "__main__":
    os.environ["OPD_TEACHER_TOKEN"] = TOKEN
    main()
