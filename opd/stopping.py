"""Ctrl-C and SIGTERM as a question to whoever is at work, instead of the end of the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = signal.SIGINT, signal.SIGTERM


@contextmanager
def asked_to_stop(ask: Callable[[], None]) -> Iterator[None]:
    """While it lasts, `ask` is called for every such signal; threads beside the main one get none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: ask()) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
