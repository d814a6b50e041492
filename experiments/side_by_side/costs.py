"""What a batch costs each method: seconds of one core by the processor's clock, which others do not disturb."""

import json
import time
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from opd.build import build
from opd.checkpoint import write_text
from opd.loop import train
from opd.settings import Settings

BATCHES = 8  # the first of which is not counted: it fits, fetches and fills caches


class Costs:
    """Seconds per batch by method and task, measured once each and kept in a file; without it measured anew."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def of(self, what: str, settings: Settings) -> float:
        if what not in self.known:
            self.known[what] = seconds(settings)
            write_text(self.file, json.dumps(self.known, indent=1))
        return self.known[what]


def seconds(settings: Settings) -> float:
    """The median over batches that are written, read and learned from as in a run, on one thread."""
    torch.set_num_threads(1)
    batches, times = islice(train(build(settings)), BATCHES), list[float]()
    start = time.process_time()
    for _ in batches:
        times.append(time.process_time() - start)
        start = time.process_time()
    return median(times[1:])
