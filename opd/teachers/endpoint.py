"""Asks a chat endpoint, many requests at a time: patient with busy servers, and never twice for what is on the disk."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, model_validator

from opd.checkpoint import write_bytes
from opd.errors import SaveError, SettingError, Unanswered
from opd.rollout import End

if TYPE_CHECKING:
    import httpx

KEY = "OPENAI_API_KEY"  # used where it is set; a server of one's own wants none
BUSY = {408, 409, 429, 500, 502, 503, 504, 529}  # worth another attempt
FIRST, LONGEST = 0.5, 30.0  # seconds before the second attempt, and before any
SHOWN = 200  # letters of what a server says
MILLION = 1_000_000


class Endpoint(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Where to ask, how many at a time, and what an answer costs."""

    url: str
    model: str
    key: str = Field("", description="the environment variable that holds the key")
    parallel: int = Field(8, ge=1, description="requests at a time")
    cache: str = Field("", description="folder of the answers that were had; default ~/.cache/opd/chat")
    price_in: float = Field(0.0, ge=0, description="of a million tokens of prompts")
    price_out: float = Field(0.0, ge=0, description="of a million tokens of answers")
    budget: float = Field(0.0, ge=0, description="the run stops when so much is spent; 0: no bound")

    @property
    def has_prices(self) -> bool:
        return bool(self.price_in or self.price_out)

    @model_validator(mode="after")
    def _priced(self) -> Endpoint:
        if self.budget and not self.has_prices:
            raise SettingError(
                "a budget of a chat teacher", got=self.budget, expected="price_in and price_out, per million tokens"
            )
        return self

    def secret(self) -> str:
        """The key, which stands in the environment and nowhere else; it is never shown."""
        found = os.environ.get(self.key or KEY, "")
        if self.key and not found:
            raise SettingError(f"the environment variable {self.key}", got="nothing", expected=f"the key of {self.url}")
        return found


@dataclass(frozen=True)
class Reply:
    """What an endpoint wrote, why it ended, and what it counted."""

    text: str
    end: End
    read: int  # tokens of the prompt, as the endpoint counts them
    written: int


class GaveUp(Unanswered):
    """Another request failed, or the run was asked to stop."""


class Cache:
    """Answers on the disk, one file each, found by a hash of what was asked; a damaged one is asked for again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, url: str, body: dict[str, Any]) -> Path:
        name = _hashed({"url": url, "body": body})
        return self.folder / name[:2] / f"{name}.json"

    def get(self, file: Path) -> Reply | None:
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            reply = kept["reply"]
            if kept["sha256"] != _hashed(reply):
                return None
            return Reply(reply["text"], End(reply["end"]), reply["read"], reply["written"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, file: Path, reply: Reply) -> None:
        plain = asdict(reply)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, json.dumps({"reply": plain, "sha256": _hashed(plain)}).encode())
        except (OSError, SaveError) as error:
            what = f"an answer could not be kept in {self.folder}"
            raise Unanswered(what, got=str(error.__cause__ or error), remedy="Free some space and resume") from error


def _hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Client:
    """Sends requests side by side and gives the replies in their order.

    Busy servers (429, 5xx), cut connections and answers that are late or not whole are asked again, each time after a
    longer pause, or after the one that the server names, which all keep. Raises Unanswered when nobody has had an
    answer for `patience` seconds, a request is refused or the budget is spent: what was answered is on the disk.
    """

    def __init__(self, endpoint: Endpoint, timeout: float = 60.0, patience: float = 300.0) -> None:
        self.endpoint, self.timeout, self.patience = endpoint, timeout, patience
        self._secret = endpoint.secret()
        self.counts: Counter[str] = Counter()  # of the whole run
        self.cache = Cache(Path(endpoint.cache or Path.home() / ".cache" / "opd" / "chat").expanduser())
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._resume_at = self._answered_at = 0.0  # by the monotonic clock
        _httpx()

    @property
    def spent(self) -> float:
        """Of the whole run, in the currency of the prices; what came from the disk cost nothing."""
        prices = {"read": self.endpoint.price_in, "written": self.endpoint.price_out}
        return sum(self.counts[name] * price for name, price in prices.items()) / MILLION

    def ask(self, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
        self._stop.clear()
        self._answered_at = time.monotonic()
        with self._connected() as http, self._workers() as workers:
            futures = [workers.submit(self._one, http, body) for body in bodies]
            wait(futures)  # after a failure, too: what is under way may be paid for already, and is kept
            failed = [error for future in futures if (error := future.exception())]
            for error in sorted(failed, key=lambda error: isinstance(error, GaveUp)):
                raise error
            return [future.result() for future in futures]

    def give_up(self) -> None:
        """Nothing is waited for or sent any more until somebody asks again."""
        self._stop.set()

    @contextmanager
    def _connected(self) -> Iterator[httpx.Client]:
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        limits = _httpx().Limits(max_connections=self.endpoint.parallel)
        with _httpx().Client(headers=headers, timeout=self.timeout, limits=limits) as http:
            yield http

    @contextmanager
    def _workers(self) -> Iterator[ThreadPoolExecutor]:
        """Whoever leaves early, by a second Ctrl-C, does not wait for requests that are under way."""
        workers = ThreadPoolExecutor(self.endpoint.parallel)
        try:
            yield workers
        finally:
            self.give_up()
            workers.shutdown(wait=False, cancel_futures=True)

    def _one(self, http: httpx.Client, body: dict[str, Any]) -> Reply:
        file = self.cache.file(self.endpoint.url, body)
        if (kept := self.cache.get(file)) is not None:
            self._count(cached=1)
            return kept
        try:
            reply = self._asked(http, body)
            self._count(read=reply.read, written=reply.written)
            self.cache.put(file, reply)
        except BaseException:
            self.give_up()
            raise
        return reply

    def _asked(self, http: httpx.Client, body: dict[str, Any]) -> Reply:
        for attempt in count():
            self._pause()
            self._afford()
            self._count(requests=1, retried=int(attempt > 0))
            rest = min(FIRST * 2 ** min(attempt, 10), LONGEST)
            try:
                response = http.post(f"{self.endpoint.url}/chat/completions", json=body)
                if response.status_code == 200:
                    reply = self._reply(response.json())
                    self._answered_at = time.monotonic()
                    return reply
                if response.status_code not in BUSY:
                    raise self._refused(response)
                why = f"{response.status_code} {self._said(response)}"
                self._put_off(response)
            except _httpx().RequestError as error:
                why = f"{type(error).__name__} {error}".strip()
            except (ValueError, KeyError, TypeError, IndexError) as error:
                why = f"an answer that is none ({type(error).__name__}: {error})"
            if time.monotonic() + rest > self._answered_at + self.patience:
                raise self._silent(why)
            # by chance up to a half less, so that not all come back at once
            self._wait(rest * random.uniform(0.5, 1.0))
        raise AssertionError("it is asked until it answers or is given up")

    def _reply(self, body: dict[str, Any]) -> Reply:
        choice, usage = body["choices"][0], body.get("usage") or {}
        text, why = choice["message"]["content"], choice["finish_reason"]
        if why not in tuple(End) or not isinstance(text, str):
            raise Unanswered(
                f"{self.endpoint.model} gave no whole text",
                got=f"finish_reason {why!r}",
                expected="'stop' or 'length'",
                remedy="Leave that problem out; the other answers are kept",
            )
        if self.endpoint.has_prices and not {"prompt_tokens", "completion_tokens"} <= usage.keys():
            raise Unanswered(f"{self.endpoint.url} counts no tokens", got="no usage", expected="it, to know the cost")
        return Reply(text, End(why), int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))

    def _silent(self, why: str) -> Unanswered:
        return Unanswered(
            f"{self.endpoint.url} gave nobody an answer for {self.patience:g} s",
            got=why,
            remedy="Look at the server; what it answered before is kept",
        )

    def _refused(self, response: httpx.Response) -> Unanswered:
        """An answer that will be the same next time."""
        remedies = {
            401: f"Put the key into the environment variable {self.endpoint.key or KEY}",
            403: f"Look at what the key in {self.endpoint.key or KEY} may do",
            404: f"Look at the URL and at the model's name {self.endpoint.model!r}",
        }
        return Unanswered(
            f"{self.endpoint.url} refused a request",
            got=f"{response.status_code} {self._said(response)}",
            remedy=remedies.get(response.status_code, ""),
        )

    def _said(self, response: httpx.Response) -> str:
        """What a server says of an error, without the key if it repeats it."""
        try:
            text = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            text = response.text
        text = text.replace(self._secret, "***") if self._secret else text
        return " ".join(text.split())[:SHOWN] or response.reason_phrase

    def _put_off(self, response: httpx.Response) -> None:
        """A server that names a time stops everybody until then."""
        seconds = _named(response.headers.get("Retry-After", ""))
        if seconds > self.patience:
            raise self._silent(f"{response.status_code} and the wish that we wait {seconds:.0f} s")
        with self._lock:
            self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    def _pause(self) -> None:
        """Waits as long as the server asked for."""
        while (left := self._resume_at - time.monotonic()) > 0:
            self._wait(left)
        self._wait(0)

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise GaveUp("nobody waits for this request any more")

    def _afford(self) -> None:
        budget = self.endpoint.budget
        if budget and self.spent >= budget:
            raise Unanswered(
                "the budget of the teacher is spent",
                got=f"{self.spent:.4g} so far",
                expected=f"less than {budget:g}",
                remedy="Raise budget= of the teacher in the run's run.toml and resume it; all answers are kept",
            )

    def _count(self, **numbers: int) -> None:
        with self._lock:
            self.counts.update(numbers)


def _named(header: str) -> float:
    """Seconds from now that a Retry-After names, as a number or as a date; 0 where it names none."""
    with suppress(ValueError):
        return max(float(header), 0.0)
    with suppress(ValueError):
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    return 0.0


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise SettingError("a chat teacher needs the package httpx", remedy="pip install opd[serve]") from None
    return httpx
