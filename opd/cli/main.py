"""The entry point: a word chooses a command, and whatever goes wrong becomes one sentence and an exit code.

0    done
1    a method broke its contract, the doctor found a fault, a run of a comparison broke, or a bug of opd
2    an input that cannot be: option, file, model
130  stopped by Ctrl-C or SIGTERM
141  nobody reads the output any more
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from opd import __version__
from opd.errors import OpdError, SettingError, nearest

COMMANDS = {  # name -> where it lives, what it does
    "demo": ("demo", "demo", "distil the embedded student: three short runs, a table, a page"),
    "list": ("methods", "list_", "all methods, one line each"),
    "show": ("methods", "show", "a method: equation, slots, columns, model passes, parameters"),
    "check": ("methods", "check", "run a method's contract on a toy, within seconds"),
    "doctor": ("doctoring", "doctor", "find out what is wrong with a run before it is paid for"),
    "probe": ("probing", "probe", "can the student be its teacher: do SFT, OPD or neither pay here"),
    "train": ("training", "train", "let a student learn"),
    "store": ("storing", "store", "ask a teacher once about a student's texts, and keep its answers"),
