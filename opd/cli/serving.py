"""`opd serve`: a model becomes a teacher for students in other processes and on other machines."""

from __future__ import annotations

import os
import sys
from importlib import util
from typing import Literal

from pydantic import BaseModel, Field

from opd.cli import options
from opd.errors import SettingError
from opd.settings import Settings, checked

NEEDED = ("starlette", "uvicorn")
MEGABYTE = 2**20
ABOUT = """\
Serves a model folder, a hub name or embedded:NAME to students elsewhere: opd train METHOD --teacher http://HOST:PORT.
The token that clients must show is made on the first start and kept for this user; docs/serving.md says more."""


class Serving(BaseModel, allow_inf_nan=False):
    """The options of `opd serve`."""

    host: str = Field("127.0.0.1", description="interface to listen at; the default is seen by this machine alone")
    port: int = Field(8750, ge=0, le=65535, description="to listen at; 0 takes any free one")
    token_file: str = Field("", description="file of mode 600 with the token; or OPD_SERVE_TOKEN_FILE, OPD_SERVE_TOKEN")
    no_token: bool = Field(False, description="ask for none; on this machine alone")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field("auto", description="of the model")
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...")
    threads: int = Field(0, ge=0, description="of the CPU; 0 leaves it to torch")
    trust_remote_code: bool = Field(False, description="allow code from a model folder to run")
    batch_tokens: int = Field(16384, ge=1, description="padded tokens in one pass")
    share: bool = Field(True, description="a prompt of several answers is read once")
    merge: bool = Field(False, description="questions of several clients in one pass; last bits then depend on company")
    request_mb: int = Field(64, ge=1, description="megabytes of a question at most")
    answer_mb: int = Field(256, ge=1, description="megabytes of an answer at most")
    request_tokens: int = Field(262144, ge=1, description="tokens of a question at most")
    k: int = Field(1024, ge=1, description="ids per position at most")
    queue: int = Field(64, ge=1, description="questions that wait at most")
    per_client: int = Field(16, ge=1, description="of these from one client")


def serve(words: list[str]) -> int:
    """Serves until it is asked to stop; 0 when all that was accepted is done, else 130."""
    known = options.of_fields(Serving)
    if options.asks_help(words):
        print(options.page(["opd serve MODEL [options]"], ABOUT, known))
        return 0
    places, given = options.parse(words, known, "serve")
    model = options.one_place(places, "model", "serve")
    chosen = checked(Serving, given)
    check_installed()
    from opd.serve import bearer
    from opd.serve.server import is_loopback, listen

    token, where = ("", "") if chosen.no_token else bearer.of_server(chosen.token_file)
    if not token and not is_loopback(chosen.host):
        what = f"--no-token at {chosen.host}, which other machines can reach"
        raise SettingError(what, expected="a token", remedy="Leave --no-token out, or listen at 127.0.0.1")
    with listen(chosen.host, chosen.port) as sock:  # before a model is loaded for minutes
        print(f"token: {where}" if token else "no token is asked for", flush=True)
        return run(model, chosen, sock, token)


def run(model: str, chosen: Serving, sock: object, token: str) -> int:
    from socket import socket

    from opd.cli.quiet import hush

    hush()
    import torch

    from opd import cast
    from opd.serve.limits import Limits
    from opd.serve.server import serve

    assert isinstance(sock, socket)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    settings = Settings(method="", **chosen.model_dump(include={"trust_remote_code"}))
    engine = cast.open_model(model, settings, chosen.dtype, chosen.device)
    engine.micro_tokens = chosen.batch_tokens
    limits = Limits(
        chosen.request_mb * MEGABYTE, chosen.answer_mb * MEGABYTE, chosen.request_tokens, chosen.k, chosen.queue,
        chosen.per_client,
    )  # fmt: skip
    if serve(engine, sock, limits, token, share=chosen.share, merge=chosen.merge):
        return 0
    sys.stdout.flush()
    os._exit(130)  # a thread still computes, and an interpreter that ends around it aborts


def check_installed() -> None:
    if missing := [name for name in NEEDED if util.find_spec(name) is None]:
        what = f"opd serve needs the package {missing[0]}"
        raise SettingError(what, remedy="Install it with pip install 'opd[serve]'")
