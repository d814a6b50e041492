"""Who waits, whose turn it is, and the one thread that computes: clients take turns, whoever sends most.

A job is accepted whole or refused at once; what was accepted is finished, also when the server is asked to stop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from opd.errors import OpdError
from opd.serve import wire
from opd.serve.counters import Counters
from opd.serve.limits import Limits, Refusal
from opd.serve.work import Engine, Question

LIFE = 2.0  # seconds between signs of life
PIECE = 2**20  # bytes handed to a connection at a time, so that a slow one fills no buffer


@dataclass(eq=False)
class Job:
    """One accepted question, and the blocks of its answer on their way to the connection."""

    client: str
    question: Question
    tokens: int
    loop: asyncio.AbstractEventLoop
    blocks: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    gone: bool = False  # nobody waits for the answer any more

    def put(self, block: bytes | None) -> None:
        """From the computing thread; a server that was stopped by force takes no more."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.blocks.put_nowait, block)


class Desk:
    """Jobs by client; `merge` answers several of one kind in common passes of at most `tokens` tokens."""

    def __init__(self, engine: Engine, limits: Limits, counters: Counters, merge: bool = False) -> None:
        self.engine, self.limits, self.counters, self.merge = engine, limits, counters, merge
        self.waiting: dict[str, deque[Job]] = {}
        self.open = set[Job]()
        self.turn = threading.Condition()
        self.stopping = False
        self.thread = threading.Thread(target=self._work, name="opd-serve-work", daemon=True)

    def accept(self, client: str, question: Question, tokens: int) -> Job:
        """The job of a question, or a refusal that says when to come back."""
        if len(self.open) >= self.limits.queue:
            raise Refusal(503, f"{len(self.open)} requests wait already; come back later.", self._soon())
        own = sum(job.client == client for job in self.open)
        if own >= self.limits.per_client:
            raise Refusal(429, f"This client has {own} requests that are not answered yet.", self._soon())
        job = Job(client, question, tokens, asyncio.get_running_loop())
        self.open.add(job)
        with self.turn:
            self.waiting.setdefault(client, deque()).append(job)
            self.turn.notify()
        return job

    async def answer(self, job: Job) -> AsyncIterator[bytes | memoryview]:
        """The bytes of an answer as they come, with a sign of life where nothing comes."""
        get = asyncio.ensure_future(job.blocks.get())
        try:
            while True:
                while not (await asyncio.wait({get}, timeout=LIFE))[0]:
                    yield wire.ALIVE
                if (block := get.result()) is None:
                    return
                get = asyncio.ensure_future(job.blocks.get())
                self.counters.add(sent_bytes_total=len(block))
                for start in range(0, len(block), PIECE):
                    yield memoryview(block)[start : start + PIECE]
        except BaseException:
            job.gone = True
            self.counters.add(gone_total=1)
            raise
        finally:
            get.cancel()
            self.open.discard(job)

    def _soon(self) -> int:
        return max(1, min(30, len(self.open) // 8))

    # -- the computing thread -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends the thread once nothing waits."""
        with self.turn:
            self.stopping = True
            self.turn.notify()
        self.thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            start = time.perf_counter()
            try:
                self._answer(jobs)
            except Exception as error:
                self._fail(jobs, error)
            self.counters.add(busy_seconds_total=time.perf_counter() - start)

    def _answer(self, jobs: list[Job]) -> None:
        if all(job.gone for job in jobs):
            return
        for number, block in self.engine.answer([job.question for job in jobs]):
            if all(job.gone for job in jobs):
                return
            self.counters.add(passes_total=1)
            jobs[number].put(wire.packed(block))
        for job in jobs:
            self.counters.add(tokens_total=job.tokens)
            job.put(wire.packed(wire.Block(said={"end": "1"})))
            job.put(None)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """A fault of the question would be the same the next time; want of memory may not be."""
        sentence = said(error)
        again = {} if isinstance(error, OpdError) else {"again": "1"}
        print(f"opd serve: {sentence}", flush=True)
        for job in jobs:
            job.put(wire.packed(wire.Block(said={"error": sentence, **again})))
            job.put(None)

    def _next(self) -> list[Job]:
        """The oldest job of the client whose turn it is, and what can be answered with it; none at the end."""
        with self.turn:
            while not self.waiting:
                if self.stopping:
                    return []
                self.turn.wait()
            first = self._pop(next(iter(self.waiting)))
            jobs, tokens = [first], first.tokens
            for client in list(self.waiting) if self.merge else ():
                other = self.waiting[client][0]
                if tokens + other.tokens <= self.engine.model.micro_tokens and self.engine.alike(
                    first.question, other.question
                ):
                    jobs, tokens = [*jobs, self._pop(client)], tokens + other.tokens
            return jobs

    def _pop(self, client: str) -> Job:
        """Takes a client's oldest job; the client goes to the end of the row."""
        own = self.waiting.pop(client)
        job = own.popleft()
        if own:
            self.waiting[client] = own
        return job


def said(error: Exception) -> str:
    """What went wrong, in a sentence that a client may read."""
    if isinstance(error, OpdError):
        return str(error)
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"The model could not answer ({type(error).__name__}: {first[:200]})."
