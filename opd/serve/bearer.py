"""The token that clients show: made once for a user and kept in a file that nobody else may read."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from opd.errors import SettingError

SERVER, SERVER_FILE = "OPD_SERVE_TOKEN", "OPD_SERVE_TOKEN_FILE"
CLIENT, CLIENT_FILE = "OPD_TEACHER_TOKEN", "OPD_TEACHER_TOKEN_FILE"
SHORTEST = 16  # characters


def kept_at(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the token of this user lies."""
    state = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "opd" / "serve-token"


def of_server(file: str = "", environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The token that a server asks for, and in words where it comes from; made on the first start."""
    if found := _given(file, environment, SERVER, SERVER_FILE):
        return found
    place = kept_at(environment)
    if not place.exists():
        _make(place)
    return read(place), str(place)


def of_client(local: bool, environment: Mapping[str, str] = os.environ) -> str:
    """The token to show; the user's own is shown to servers of this machine alone. '' where there is none."""
    if found := _given("", environment, CLIENT, CLIENT_FILE):
        return found[0]
    place = kept_at(environment)
    return read(place) if local and place.is_file() else ""


def fits(shown: str, token: str) -> bool:
    """Whether a header shows the token, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(shown.encode(), f"Bearer {token}".encode())


def read(place: Path) -> str:
    """The token in a file that only its owner may read."""
    try:
        mode, text = place.stat().st_mode, place.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"the token in {place} cannot be read", got=str(error), expected="a file of text") from None
    if os.name == "posix" and mode & 0o077:
        got = f"mode {mode & 0o777:o}"
        raise SettingError(f"the token in {place} can be read by others", got=got, remedy=f"chmod 600 {place}")
    return _checked(text, str(place))


def _given(file: str, environment: Mapping[str, str], name: str, file_name: str) -> tuple[str, str] | None:
    """The token in a file, in the environment, or in a file that the environment names."""
    if place := file or environment.get(file_name, ""):
        if not file and environment.get(name):
            raise SettingError(f"{name} and {file_name} are both set", expected="one of them")
        return read(Path(place)), place
    return (_checked(environment[name], name), name) if environment.get(name) else None


def _checked(token: str, where: str) -> str:
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        got = f"{len(token)} characters"
        raise SettingError(f"the token in {where} is none", got=got, expected=f"{SHORTEST} or more letters and digits")
    return token


def _make(place: Path) -> None:
    """A new token; of two servers that start together one makes it."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    try:
        os.link(temporary, place)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
