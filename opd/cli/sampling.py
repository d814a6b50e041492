"""`opd sampler`: the folder from which a vLLM server is started that shall write for a student."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from opd.cli import options
from opd.cli.examining import located
from opd.settings import Settings, checked


class Copied(BaseModel, allow_inf_nan=False):
    """The options of `opd sampler`."""

    student: str = Field("embedded:student", description="who will learn: a model folder, hub name or run folder")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the student, as for train")
    trust_remote_code: bool = Field(False, description="allow code from a model folder to run")


ABOUT = (
    "Writes a copy of the student into FOLDER and prints the command that starts a vLLM server from it. The folder is"
    " then the run's: whenever the student has learned, it is replaced and the server loads it. docs/sampling.md says"
    " more."
)


def sampler(words: list[str]) -> int:
    """Makes the folder and says what comes next."""
    known = options.of_fields(Copied)
    if options.asks_help(words):
        print(options.page(["opd sampler FOLDER [options]"], ABOUT, known))
        return 0
    places, given = options.parse(words, known, "sampler")
    folder = Path(options.one_place(places, "folder", "sampler")).resolve()
    chosen = checked(Copied, given)
    from opd.engines import vllm_folder
    from opd.engines.vllm import started

    vllm_folder.check(folder)
    copy(chosen, folder)
    print(f"{folder}: the student, its head on its own\n\nin the environment of vLLM:\n  {started(folder)}\nthen:")
    print(f"  opd train METHOD --student {chosen.student} --sampler vllm:http://127.0.0.1:8000 ...")
    return 0


def copy(chosen: Copied, folder: Path) -> None:
    """Loads the student and writes it."""
    from opd.cli.quiet import hush

    hush()
    from opd import cast
    from opd.engines import vllm_folder

    settings = Settings(method="", **chosen.model_dump(include={"trust_remote_code"}))
    vllm_folder.write(cast.open_model(located(chosen.student), settings, chosen.dtype, "cpu"), folder)
