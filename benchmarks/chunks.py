"""Time of the chunk loop for few and for many chunks of the same rows: it must not grow with their number.

    python benchmarks/chunks.py

With one detached leaf for all chunks the backward of every slice writes a zero [N, D], which is quadratic.
"""

from __future__ import annotations

import torch
from common import best, report, seconds
from divergence import Case

ROWS, FEW, MANY = 16_384, 16, 256


def main() -> None:
    torch.manual_seed(0)
    case = Case(ROWS, vocab=256, student=512, teacher=512)
    times: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in range(5):
        for chunks, measured in times.items():
            measured += seconds(lambda chunks=chunks: case.learn(ROWS // chunks), 2)
    few, many = best(times[FEW]), best(times[MANY])
    ratio = {how: round(many[how] / few[how], 2) for how in few}
    report(rows=ROWS, seconds={str(FEW): few, str(MANY): many}, ratio=ratio)


if __name__ == "__main__":
    main()
