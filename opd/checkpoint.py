"""A checkpoint is a folder of safetensors and JSON that appears whole or not at all.

It is written beside its final place and renamed; whatever goes wrong while writing, the one before it still stands.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from opd.errors import ModelError, SaveError

SEPARATOR = "/"


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes `folder` by filling a temporary one beside it and renaming that; replaces an older one."""
    temporary = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SaveError(
            f"could not write {folder}", got=str(error), remedy="Free some space; what was saved before still stands"
        ) from error


def write_text(file: Path, text: str) -> None:
    """A file that is replaced as a whole."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """The same; two who write the same file at the same time do not meet."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.writing")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise SaveError(f"could not write {file}", got=str(error), remedy="Free some space") from error


def plain(value: Any) -> Any:
    """A value as JSON can hold it: keys are text, and what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_state(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    """A nested state of tensors and plain values as NAME.safetensors and NAME.json."""
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    save_file(separate(tensors), folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(plain), encoding="utf-8")


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the processor, each on its own: safetensors refuses one storage (tied weights, a mask) of two names."""
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}


def load_state(folder: Path, name: str) -> Any:
    """What save_state wrote, nested as it was."""
    try:
        tensors = load_file(folder / f"{name}.safetensors")
        plain = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(
            f"checkpoint {folder} cannot be read",
            got=str(error),
            remedy="Delete that folder to resume from the one before",
        ) from error
    return _join(plain, tensors)


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"map": [[key, _split(item, f"{path}{SEPARATOR}{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_split(item, f"{path}{SEPARATOR}{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"state {path}: got {type(value).__name__}, expected tensors, maps, lists and plain values")


def _join(value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "map" in value:
        return {key: _join(item, tensors) for key, item in value["map"]}
    if "list" in value:
        return [_join(item, tensors) for item in value["list"]]
    return value["value"]


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def forget_old(folder: Path, keep: int) -> None:
    for path in checkpoints(folder)[:-keep]:
        shutil.rmtree(path)
