"""The addresses of a server, and who may use them.

    GET  /v1/health     whether it answers; needs no token
    GET  /v1/info       which model, what it can, what is taken at most
    GET  /v1/tokenizer  its files
    GET  /v1/head       [V, D] the head, in blocks
    POST /v1/score      log-probs of the decided tokens
    POST /v1/topk       the K most probable tokens
    POST /v1/gather     log-probs of the ids that the client names, per position
    POST /v1/hidden     last hidden states; states of layers
    POST /v1/text       what the model writes
    GET  /metrics       for Prometheus

The four that read take one form: whatever else the question asks is answered by the same pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from opd.errors import OpdError
from opd.serve import bearer, wire
from opd.serve.counters import Counters
from opd.serve.desk import PIECE, Desk
from opd.serve.identity import tokenizer_files
from opd.serve.limits import Limits, Refusal
from opd.serve.work import Engine, Question

READS = {"score": "chosen", "topk": "topk", "gather": "gather", "hidden": "dist"}
HEAD_ROWS = 2**24  # elements of the head in one block
Handler = Callable[[Request], Awaitable[Response]]
Asked = TypeVar("Asked", wire.Reading, wire.Writing)


@dataclass(frozen=True)
class Service:
    """What the addresses stand for."""

    engine: Engine
    desk: Desk
    limits: Limits
    counters: Counters
    info: dict[str, Any]
    token: str  # '' asks for none

    def app(self) -> Starlette:
        reads = [Route(f"/v1/{name}", self.guarded(self.reads(name)), methods=["POST"]) for name in READS]
        gets = {"/v1/info": self.tell, "/v1/tokenizer": self.tokenizer, "/v1/head": self.head, "/metrics": self.metrics}
        routes = [
            Route("/v1/health", self.health),
            *(Route(path, self.guarded(handler)) for path, handler in gets.items()),
            *reads,
            Route("/v1/text", self.guarded(self.text), methods=["POST"]),
        ]
        app = Starlette(routes=routes, lifespan=self.lifespan)
        app.add_exception_handler(HTTPException, unknown)
        return app

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.desk.thread.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.summarise)
            yield
            tasks.cancel_scope.cancel()
        self.desk.stop()
        if line := self.counters.line(len(self.desk.open)):
            print(line, flush=True)

    async def summarise(self) -> None:
        """One line per second in which something happened."""
        while True:
            await anyio.sleep(1)
            if line := self.counters.line(len(self.desk.open)):
                print(line, flush=True)

    # -- who may ----------------------------------------------------------------------------------------------------

    def guarded(self, handler: Handler) -> Handler:
        """The handler for those who show the token; whatever goes wrong is a status and a sentence."""

        async def guard(request: Request) -> Response:
            try:
                self.check_token(request)
                response = await handler(request)
            except Refusal as refusal:
                response = refused(refusal)
            except wire.Malformed as error:
                response = refused(Refusal(400, f"The question cannot be read: {error}."))
            except OpdError as error:
                response = refused(Refusal(400, str(error)))
            except ClientDisconnect:
                self.counters.add(gone_total=1)
                response = Response(status_code=400)
            except Exception as error:
                print(f"opd serve: {type(error).__name__}: {error}", flush=True)
                response = refused(Refusal(500, f"A fault of the server ({type(error).__name__}); its log says more."))
            self.counters.request(request.url.path, response.status_code)
            return response

        return guard

    def check_token(self, request: Request) -> None:
        if self.token and not bearer.fits(request.headers.get("authorization", ""), self.token):
            raise Refusal(
                401, "The token is missing or wrong; it is in the file that the server named when it started."
            )

    # -- what they get ----------------------------------------------------------------------------------------------

    async def health(self, _: Request) -> Response:
        return JSONResponse({"ok": True, "waiting": len(self.desk.open)})

    async def tell(self, _: Request) -> Response:
        return JSONResponse(self.info)

    async def tokenizer(self, _: Request) -> Response:
        return JSONResponse(tokenizer_files(self.engine.model.tokenizer))

    async def metrics(self, _: Request) -> Response:
        text = self.counters.prometheus(len(self.desk.open))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def head(self, _: Request) -> Response:
        head = self.engine.model.head.detach()[: self.engine.real]

        async def blocks() -> AsyncIterator[bytes | memoryview]:
            for rows in head.split(max(1, HEAD_ROWS // head.shape[1])):
                block = await anyio.to_thread.run_sync(wire.packed, wire.Block({"head": rows}))
                self.counters.add(sent_bytes_total=len(block))
                for start in range(0, len(block), PIECE):
                    yield memoryview(block)[start : start + PIECE]
            yield wire.packed(wire.Block(said={"end": "1"}))

        return StreamingResponse(blocks(), media_type=wire.ANSWER)

    def reads(self, name: str) -> Handler:
        async def handler(request: Request) -> Response:
            asked = await self.question(request, wire.read_reading)
            if READS[name] not in asked.want.needs and not (name == "hidden" and asked.want.layers):
                raise wire.Malformed(f"/v1/{name} was not asked for {READS[name]!r}")
            return self.answered(request, asked)

        return handler

    async def text(self, request: Request) -> Response:
        return self.answered(request, await self.question(request, wire.read_writing))

    async def question(self, request: Request, read: Callable[[bytes, int], Asked]) -> Asked:
        """What is asked, checked in a thread: a long question holds up nobody."""

        def checked(body: bytes) -> Asked:
            asked = read(body, self.engine.real)
            self.engine.check(asked)
            return asked

        return await anyio.to_thread.run_sync(checked, await self.body(request))

    def answered(self, request: Request, asked: Question) -> Response:
        model = self.engine.model
        size = model.head.element_size()
        tokens = self.limits.check(asked, model.width, self.info["layers"], size)
        client = request.headers.get("opd-client", "")[:64] or (request.client.host if request.client else "")
        job = self.desk.accept(client, asked, tokens)
        return StreamingResponse(self.desk.answer(job), media_type=wire.ANSWER)

    async def body(self, request: Request) -> bytes:
        """The question, read no further than the limit; a client that means another model is told so."""
        meant = request.headers.get("opd-model", self.info["weights"])
        if meant != self.info["weights"]:
            raise Refusal(409, f"Another model is served here: weights {self.info['weights']}, not {meant[:64]}.")
        if request.headers.get("content-type", "") != wire.QUESTION:
            raise Refusal(415, f"A question has the content type {wire.QUESTION}.")
        declared = request.headers.get("content-length", "0")
        self.limits.check_size(int(declared) if declared.isdecimal() else 0)
        found = bytearray()
        async for piece in request.stream():
            found += piece
            self.limits.check_size(len(found))
        self.counters.add(received_bytes_total=len(found))
        return bytes(found)


def refused(refusal: Refusal) -> Response:
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": f"{refusal.sentence.rstrip('.')}."}, refusal.status, headers)


async def unknown(_: Request, error: Exception) -> Response:
    """An address or method that is not there."""
    assert isinstance(error, HTTPException)
    return refused(Refusal(error.status_code, f"{error.detail}; the addresses are in docs/serving.md."))
