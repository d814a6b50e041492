"""Requests to servers that may be slow, busy, gone or back: what can be asked again is, everything else stops the run.

Every question to `opd serve` can be asked again: reading changes nothing, and a text is a function of its seeds.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import SplitResult, urlsplit

from opd.errors import SettingError, Unanswered
from opd.serve import bearer, wire
from opd.serve.wire import Block, Blocks

if TYPE_CHECKING:
    import httpx

IN_FLIGHT = 2  # questions per server of opd serve at a time: one is computed while the other travels
FIRST, LONGEST = 0.25, 20.0  # seconds of rest after a failure; doubled at each further one
AGAIN = {408, 425, 429, 500, 502, 503, 504}
Result = TypeVar("Result")


class Again(Exception):
    """Something went wrong that may go well the next time."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        self.what, self.after = what, after
        super().__init__(what)


@dataclass(frozen=True)
class Question:
    """A body for a path, whose answer has no block larger than `limit` bytes."""

    path: str
    body: bytes
    limit: int


@dataclass
class Replica:
    """One server."""

    url: str
    client: httpx.AsyncClient
    busy: int = 0
    failures: int = 0  # in a row
    rests_until: float = 0.0

    def failed(self, after: float, most: float) -> None:
        """It is left alone for at `most` so many seconds; longer each time, and never at the same moment as others."""
        self.failures += 1
        rest = min(LONGEST, FIRST * 2 ** min(self.failures - 1, 10)) * random.uniform(0.75, 1.25)
        self.rests_until = time.monotonic() + min(max(rest, after), most)


class Background:
    """An event loop in a thread of its own, so that whoever asks need not know of asyncio."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=_forever, args=(self.loop,), name="opd-served", daemon=True).start()

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return waited(self.start(work))


def waited(future: Future[Result]) -> Result:
    """The result; a Ctrl-C that arrives here cancels the work."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _forever(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@dataclass
class Replicas:
    """Servers of one model. Not one of them answering for `patience` seconds ends a request."""

    urls: Sequence[str]
    timeout: float  # seconds without a sign of life
    patience: float
    counts: Counter[str] = field(default_factory=Counter[str])
    model: str = ""  # the weights that are meant, once they are known
    hurried: bool = False  # nothing is tried again
    in_flight: int = IN_FLIGHT  # questions per server at a time
    rooms: dict[int, asyncio.Semaphore] = field(default_factory=dict[int, asyncio.Semaphore])  # one for each such limit
    told: Counter[str] = field(default_factory=Counter[str])
    server: ClassVar[str] = "opd serve"
    another: ClassVar[int] = 409  # the status by which a server says that it has another model

    def __post_init__(self) -> None:
        try:
            import httpx
        except ImportError:
            what = "a teacher behind http:// needs the package httpx"
            raise SettingError(what, remedy="Install it with pip install 'opd[serve]'") from None
        check_once(self.urls)
        self.background, name = Background(), uuid.uuid4().hex
        limits = httpx.Timeout(self.timeout, connect=min(self.timeout, 10.0), pool=None)
        self.members = list[Replica]()
        for url in self.urls:
            local = check_url(url)
            shown = self._secret(local)
            headers = {"opd-client": name} | ({"authorization": f"Bearer {shown}"} if shown else {})
            client = httpx.AsyncClient(base_url=url, headers=headers, timeout=limits, trust_env=not local)
            self.members.append(Replica(url, client))
        weakref.finalize(self, _close, self.background.loop, [member.client for member in self.members])

    @property
    def left_out(self) -> int:
        """Servers that did not answer when they were last asked."""
        return sum(member.failures > 0 for member in self.members)

    def spent(self) -> dict[str, float]:
        """By how much every count has grown since this was last asked."""
        counts = Counter(self.counts)
        new, self.told = {name: float(n - self.told[name]) for name, n in counts.items()}, counts
        return new

    def tell(self) -> dict[str, float]:
        """What asking has cost since this was last told."""
        new = {f"served.{name}": cost for name, cost in self.spent().items()}
        quiet = {f"served.{name}": 0.0 for name in ("requests", "retries", "bytes.sent", "bytes.received", "seconds")}
        return quiet | new | {"served.left_out": float(self.left_out)}

    def close(self) -> None:
        """Ends the connections; nothing can be asked any more."""
        _close(self.background.loop, [member.client for member in self.members])

    # -- asking -------------------------------------------------------------------------------------------------------

    def get(self, path: str) -> list[Any]:
        """JSON from every server, asked once: at the start a server that is not there is a mistake."""
        return [self.background.run(self._got(member, path)) for member in self.members]

    def ask(self, questions: Sequence[Question], of: Replica | None = None) -> list[list[Any]]:
        """The blocks of every answer; questions go to whoever is least busy, or all to one server."""
        return self.wait(self.start(questions, of))

    def start(self, questions: Sequence[Question], of: Replica | None = None) -> Future[list[list[Any]]]:
        """Asks, and does not wait: questions of several calls queue for the same places."""
        room = self.rooms.setdefault(self.in_flight, asyncio.Semaphore(self.in_flight * len(self.members)))
        return self.background.start(self._all(questions, of, room))

    def wait(self, answers: Future[list[list[Any]]]) -> list[list[Any]]:
        """What `start` has asked for."""
        start = time.perf_counter()
        try:
            return waited(answers)
        finally:
            self.counts["seconds"] += time.perf_counter() - start  # pyright: ignore[reportArgumentType]

    def fetch(self, path: str, limit: int) -> list[Block]:
        """Blocks that need no question."""
        return self.ask([Question(path, b"", limit)])[0]

    def _secret(self, local: bool) -> str:
        """The token that is shown to a server, on this machine or elsewhere."""
        return bearer.of_client(local)

    async def _got(self, member: Replica, path: str) -> Any:
        import httpx

        try:
            response = await member.client.get(path)
            if response.status_code != 200:
                raise Unanswered(f"{member.url} refused {path}: {said_by(response)}", remedy=remedy_for(response))
            return response.json()
        except httpx.TransportError as error:
            raise Unanswered(
                f"nobody answers at {member.url}", got=named(error), expected=self.server, remedy="Start it first"
            ) from None
        except ValueError:
            what = f"{member.url}{path} is no address of {self.server}"
            raise Unanswered(what, got="no JSON", expected=f"the address that '{self.server}' printed") from None

    async def _all(self, questions: Sequence[Question], of: Replica | None, room: asyncio.Semaphore) -> list[list[Any]]:
        async def one(question: Question) -> list[Any]:
            async with room:
                return await self._one(question, of)

        tasks = [asyncio.ensure_future(one(question)) for question in questions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, question: Question, of: Replica | None) -> list[Any]:
        since, tries = 0.0, 0
        while True:
            member = of or await self._turn()
            member.busy += 1
            try:
                found = await self._sent(member, question)
                member.failures = 0
                return found
            except Again as fault:
                now, tries = time.monotonic(), tries + 1
                since = since or now
                member.failed(fault.after, max(0.0, since + self.patience - now))  # and is asked once more then
                self.counts["retries"] += 1
                if self.hurried or now - since > self.patience:
                    raise self._lost(member, fault, tries, now - since) from None
            finally:
                member.busy -= 1
            if of:
                await asyncio.sleep(max(0.0, of.rests_until - time.monotonic()))

    async def _turn(self) -> Replica:
        """The least busy server that does not rest, as soon as there is one."""
        while True:
            now = time.monotonic()
            if awake := [member for member in self.members if member.rests_until <= now]:
                return min(awake, key=lambda member: (member.failures > 0 and member.busy > 0, member.busy))
            soonest = min(member.rests_until for member in self.members)
            await asyncio.sleep(min(soonest - now, 0.2) if not self.hurried else 0)
            if self.hurried:
                return self.members[0]

    async def _sent(self, member: Replica, question: Question) -> list[Any]:
        """The blocks of one server's whole answer; Again for what may go well the next time."""
        import httpx

        method = "POST" if question.body else "GET"
        headers = {"content-type": wire.QUESTION} | ({"opd-model": self.model} if self.model else {})
        self.counts["requests"] += 1
        self.counts["bytes.sent"] += len(question.body)
        found, parser, ended = list[Block](), Blocks(question.limit), False
        try:
            async with member.client.stream(
                method, question.path, content=question.body or None, headers=headers
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise self._refused(member, response)
                async for piece in response.aiter_raw():
                    self.counts["bytes.received"] += len(piece)
                    for block in parser.feed(piece):
                        if "again" in block.said:
                            raise Again(block.said["error"])
                        if "error" in block.said:
                            raise Unanswered(
                                f"{member.url} cannot answer: {block.said['error'].rstrip('.')}", remedy=RESUME
                            )
                        ended |= "end" in block.said
                        found += [block] if block.tensors else []
        except httpx.TransportError as error:
            raise Again(named(error)) from None
        except wire.Malformed as error:
            raise Unanswered(f"{member.url} answered with what cannot be read", got=str(error), remedy=RESUME) from None
        if not ended:
            raise Again("the answer stopped in the middle")
        return found

    def _refused(self, member: Replica, response: httpx.Response) -> Exception:
        sentence = said_by(response)
        if response.status_code in AGAIN:
            after = response.headers.get("retry-after", "")
            return Again(f"{response.status_code} {sentence}", float(after) if after.isdecimal() else 0.0)
        if response.status_code == self.another:
            return Unanswered(
                f"another model answers at {member.url} than when the run began ({sentence})", remedy=SAME
            )
        return Unanswered(f"{member.url} refused a question: {sentence}", remedy=remedy_for(response))

    def _lost(self, member: Replica, fault: Again, tries: int, seconds: float) -> Unanswered:
        who = member.url if len(self.members) == 1 else f"none of {len(self.members)} servers, the last {member.url},"
        what = f"{who} {'did not answer' if len(self.members) == 1 else 'answered'} in {tries} tries"
        return Unanswered(f"{what} over {seconds:.0f} s", got=fault.what.rstrip("."), remedy=RESUME)


RESUME = "Look at the server, then go on with opd train --resume"
SAME = "Serve that model again; a resumed run takes another one with another_teacher = true in its run.toml"


def check_url(url: str) -> bool:
    """Refuses what is no address of a server; whether it is this machine's own."""
    parts = urlsplit(url)
    more = parts.query or parts.fragment or not has_port(parts)
    if parts.scheme not in ("http", "https") or not parts.hostname or more:
        raise SettingError("no address of a server", got=repr(url), expected="http://HOST:PORT")
    if parts.username or parts.password:
        remedy = f"Put the token into {bearer.CLIENT}, or a file that {bearer.CLIENT_FILE} names"
        raise SettingError("a secret in an address is written into logs and run folders", remedy=remedy)
    return parts.hostname in ("localhost", "::1") or parts.hostname.startswith("127.")


def check_once(urls: Sequence[str]) -> None:
    """Refuses an address that is there twice: one server would count as two."""
    if twice := [url for url, n in Counter(url.lower() for url in urls).items() if n > 1]:
        raise SettingError("an address is given twice", got=twice[0], expected="every server once")


def has_port(parts: SplitResult) -> bool:
    """Whether the port is one that can be, or left out."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def _close(loop: asyncio.AbstractEventLoop, clients: Sequence[httpx.AsyncClient]) -> None:
    async def end() -> None:
        await asyncio.gather(*(client.aclose() for client in clients), return_exceptions=True)
        loop.stop()

    if loop.is_running():
        loop.call_soon_threadsafe(lambda: loop.create_task(end()))


def named(error: Exception) -> str:
    kind = type(error).__name__
    return {"ConnectError": "no connection", "ReadTimeout": "no sign of life"}.get(kind, f"{kind} {error}".strip())


def said_by(response: httpx.Response) -> str:
    """What a server says of a refusal."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error).rstrip(".")[:300]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"


def remedy_for(response: httpx.Response) -> str:
    if response.status_code == 401:
        return f"Put the server's token into {bearer.CLIENT}, or name its file in {bearer.CLIENT_FILE}"
    return ""
