"""The folder in which a vLLM server finds a student's weights: the head always stands in it on its own.

A server that loads tied embeddings again keeps the head that it had. So the copy in this folder is untied, whatever the
student is, and the server is started from it.

FOLDER/config.json ...        a Hugging Face folder
       opd-sampler.json       says that the folder is ours: every push replaces it as a whole
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

from opd.checkpoint import write_folder
from opd.errors import SettingError

if TYPE_CHECKING:
    from opd.engines.hf import HFModel

MARK = "opd-sampler.json"


def is_ours(folder: Path) -> bool:
    return (folder / MARK).is_file()


def check(folder: Path) -> None:
    """Nothing is replaced that was not made here."""
    if folder.exists() and not is_ours(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(
            f"{folder} was not made by opd sampler, and it would be replaced", expected="a folder that is new or empty"
        )


def write(student: HFModel, folder: Path) -> None:
    """The student as it is now, adapters merged and the head untied; replaces the folder as a whole."""
    check(folder)
    write_folder(folder, lambda place: _fill(student, place))


def _fill(student: HFModel, folder: Path) -> None:
    import torch

    from opd.engines import hf_lora

    model = student.model
    state = model.state_dict() if student.lora is None else hf_lora.merged(model)
    config = copy.deepcopy(model.config)
    for part in {id(one): one for one in (config, config.get_text_config(decoder=True))}.values():
        part.tie_word_embeddings = False
    for name, source in model.all_tied_weights_keys.items():
        if source in state:
            state[name] = state[source].clone()
    with torch.device("meta"):
        plain = type(model)(config)
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder, state_dict=state)
    student.tokenizer.save_pretrained(folder)
    (folder / MARK).write_text(json.dumps({"student": student.name}), encoding="utf-8")
