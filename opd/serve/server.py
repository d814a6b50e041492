"""From a model to a process that listens: checked, announced, and ended by one Ctrl-C when its work is done."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from opd.errors import SettingError
from opd.serve.app import Service
from opd.serve.counters import Counters
from opd.serve.desk import Desk
from opd.serve.identity import info
from opd.serve.limits import Limits
from opd.serve.work import Engine
from opd.stopping import asked_to_stop

if TYPE_CHECKING:
    from opd.engines.hf import HFModel


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise SettingError(
            f"nothing can listen at {host} port {port}", got=str(error), remedy="Take another --port, or 0 for any"
        ) from None


class _Server(uvicorn.Server):
    """The first Ctrl-C or SIGTERM lets accepted work finish, the second one does not; neither is an error."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with asked_to_stop(self.ask):
            yield

    def ask(self) -> None:
        if not self.should_exit:
            print("stopping: finishing what was accepted (again to stop at once)", flush=True)
        self.force_exit, self.should_exit = self.should_exit, True
        logging.getLogger("uvicorn.error").disabled = self.force_exit  # an answer that is cut off then is no fault


def serve(model: HFModel, sock: socket.socket, limits: Limits, token: str, *, share: bool, merge: bool) -> bool:
    """Serves until it is asked to stop; whether everything that was accepted was finished."""
    engine, counters = Engine(model, share), Counters()
    desk = Desk(engine, limits, counters, merge)
    service = Service(engine, desk, limits, counters, info(model, limits), token)
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {model.name} ({service.info['dtype']} on {model.device}) at http://{shown}:{port}", flush=True)
    config = uvicorn.Config(
        service.app(), log_config=None, access_log=False, server_header=False, timeout_keep_alive=75, lifespan="on"
    )
    server = _Server(config)
    server.run(sockets=[sock])
    print("stopped", flush=True)
    return not server.force_exit
