"""What a server has done: one line per second for a terminal, and numbers for Prometheus."""

from __future__ import annotations

import threading
import time
from collections import Counter

HELP = {
    "requests_total": "Requests by address and status.",
    "tokens_total": "Tokens of prompts and texts in answered questions.",
    "sent_bytes_total": "Bytes of answers.",
    "received_bytes_total": "Bytes of questions.",
    "passes_total": "Passes of the model, and texts written.",
    "busy_seconds_total": "Seconds in which the model computed.",
    "gone_total": "Clients that left before their answer was complete.",
    "waiting": "Requests that wait or are being answered.",
}


class Counters:
    """Counts from several threads."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.requests = Counter[tuple[str, int]]()
        self.lock = threading.Lock()
        self.told: Counter[str] = Counter()
        self.then = time.perf_counter()

    def add(self, **counts: float) -> None:
        with self.lock:
            for name, value in counts.items():
                self.counts[name] += value  # pyright: ignore[reportArgumentType]

    def request(self, address: str, status: int) -> None:
        with self.lock:
            self.requests[address, status] += 1

    def line(self, waiting: int) -> str:
        """What happened since the last line, '' for nothing."""
        with self.lock:
            now = Counter(self.counts)
            done = sum(n for (_, status), n in self.requests.items() if status == 200)
            refused = sum(n for (_, status), n in self.requests.items() if status >= 400)
        now |= Counter({"done": done, "refused": refused})
        new = {name: now[name] - self.told[name] for name in now}
        then, self.then, self.told = self.then, time.perf_counter(), now
        if not any(new.values()):
            return ""
        seconds = self.then - then
        parts = [f"{new.get('done', 0):g} requests", f"{new.get('tokens_total', 0) / seconds:,.0f} tokens/s"]
        parts += [f"{new.get('busy_seconds_total', 0) / seconds:.0%} busy", f"{waiting} waiting"]
        parts += [f"{new.get('sent_bytes_total', 0) / 1e6:.1f} MB out"]
        parts += [
            f"{new[name]:g} {word}" for name, word in (("refused", "refused"), ("gone_total", "gone")) if new.get(name)
        ]
        return f"{time.strftime('%H:%M:%S')}  {', '.join(parts)}"

    def prometheus(self, waiting: int) -> str:
        with self.lock:
            values = {name: [("", float(self.counts[name]))] for name in HELP}
            values["waiting"] = [("", float(waiting))]
            values["requests_total"] = [
                (f'{{path="{path}",status="{status}"}}', float(n))
                for (path, status), n in sorted(self.requests.items())
            ]
        lines = list[str]()
        for name, rows in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP opd_{name} {HELP[name]}", f"# TYPE opd_{name} {kind}"]
            lines += [f"opd_{name}{labels} {value:.10g}" for labels, value in rows]
        return "\n".join(lines) + "\n"
