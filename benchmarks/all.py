"""All benchmarks with one command: opd and TRL in turn, three processes each, and the tables of docs/benchmarks.md.

    make bench

TRL lives in an environment of its own (.venv-bench), with the same torch and transformers. Machines are noisy: opd and
TRL alternate, and the ratio is the one of medians over all steps of all processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import torch
from common import HERE, begun, put, seconds

PYTHON = {"opd": sys.executable, "trl": str(HERE.parent / ".venv-bench/bin/python")}
STEPS = {64: 12, 32_000: 6}
PHASES = ("total", "sample", "teach", "learn")


def run(who: str, script: str, *arguments: object) -> Any:
    """What a benchmark prints, as an object, or as text where it is none."""
    command = [PYTHON[who], str(HERE / script), *map(str, arguments)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(text[text.index("{") :]) if "{" in text else text.strip()


def steps(processes: int) -> dict[int, dict[str, list[Any]]]:
    """Results by vocabulary and side, opd and TRL in turn."""
    found: dict[int, dict[str, list[Any]]] = {vocab: {"opd": [], "trl": []} for vocab in STEPS}
    for _ in range(processes):
        for vocab, n in STEPS.items():
            for who in ("opd", "trl"):
                found[vocab][who].append(run(who, f"{who}_step.py", "--vocab", vocab, "--steps", n))
                print(vocab, who, found[vocab][who][-1]["seconds"]["total"], file=sys.stderr)
    return found


def step_table(found: dict[int, dict[str, list[Any]]]) -> list[str]:
    """Medians over processes of the medians over steps, and their ratio."""
    lines = ["| V | | total | sample | teach | learn | peak memory |", "|---|---|---|---|---|---|---|"]
    for vocab, sides in found.items():
        middle = {who: [_median(runs, "seconds", phase) for phase in PHASES] for who, runs in sides.items()}
        memory = {who: statistics.median(run["mib"]["peak"] for run in runs) for who, runs in sides.items()}
        for who in ("opd", "trl"):
            numbers = [f"{value:.3f} s" for value in middle[who]]
            lines.append(f"| {vocab:,} | {who} | {' | '.join(numbers)} | {memory[who]:.0f} MiB |")
        ratios = [f"{ours / theirs:.2f}" for ours, theirs in zip(middle["opd"], middle["trl"], strict=True)]
        lines.append(f"| | **opd / trl** | {' | '.join(ratios)} | {memory['opd'] / memory['trl']:.2f} |")
    return lines


def _median(runs: list[Any], *path: str) -> float:
    values = []
    for value in runs:
        for name in path:
            value = value[name]
        values.append(value["median"])
    return statistics.median(values)


def bound() -> list[str]:
    """The speed of one large float32 product today: what everything else is held against."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    speed = 2 * 2048**3 / min(seconds(lambda: a @ b, 9)) / 1e9
    return [f"One float32 product of two 2,048 x 2,048 matrices: {speed:.0f} GFLOP/s, the best of 9."]


def others() -> list[str]:
    """The smaller benchmarks, one line each."""
    names = ("sampling", "chunks", "divergence", "measurements")
    sampling, chunks, divergence, measurements = (run("opd", f"{name}.py") for name in names)
    lines = ["| writing, tokens per second | opd | transformers | ratio |", "|---|---|---|---|"]
    lines += [f"| {k} | {v['opd']:,} | {v['transformers']:,} | {v['ratio']} |" for k, v in sampling["cases"].items()]
    timed, ratio = divergence["seconds"], chunks["ratio"]
    measuring = ", ".join(f"{name} {found['ratio']['seconds']}" for name, found in measurements["methods"].items())
    memory = ", ".join(f"{mib:,} MiB for {int(n):,} rows" for n, mib in divergence["mib_above"].items())
    return [
        *lines, "",
        f"- Chunk loop, 256 chunks against 16 of the same 16,384 rows: {ratio['median']} times (best {ratio['min']}).",
        f"- Reverse KL at V = 151,936, D = 1,024 and 2,048: {memory} above what exists before.",
        f"- The same in time: {timed['ratio']} times its matrix products.",
        f"- The step at V = 32,000 with its measurements, against the same without: {measuring} times.",
        f"- GPU: {run('opd', 'gpu.py')}",
    ]  # fmt: skip


def main() -> None:
    arguments, load = begun("processes", 3)
    tables = "\n".join([load, "", *bound(), "", *step_table(steps(arguments.processes)), "", *others()])
    print(tables)
    if arguments.write:
        put("all.py", tables)


if __name__ == "__main__":
    main()
