"""Whoever looks on while a probe is at work; here nobody does."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    def said(self, line: str) -> None: ...  # something is done
    def went(self, what: str, done: int, total: int) -> None: ...  # something is going on


class Nobody:
    def said(self, line: str) -> None:
        pass

    def went(self, what: str, done: int, total: int) -> None:
        pass
