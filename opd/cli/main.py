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
import signal
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
    "serve": ("serving", "serve", "let a model be the teacher of students elsewhere"),
    "sampler": ("sampling", "sampler", "let a vLLM server write for a student: the folder that it starts from"),
    "store": ("storing", "store", "ask a teacher once about a student's texts, and keep its answers"),
    "eval": ("examining", "eval_", "examine a model on a task's held-out problems"),
    "compare": ("comparing", "compare", "hold methods against one another: same start, problems, budget, examination"),
    "reproduce": ("reproducing", "reproduce", "try what a paper claims of its method on a small task"),
    "report": ("reporting", "report", "write the page of a run, beside others for comparison"),
    "geometry": ("measuring", "geometry", "what a run did to the weights of its student"),
    "lab": ("lab", "lab", "theory as programs: noisy experts, weak students"),
}
EXAMPLES = """\
Examples
  opd train gkd                                    with the small models and the task that come along
  opd train gkd --lam 1 --student S --teacher T --task jsonl:problems.jsonl
  opd train --resume runs/gkd-sums-0

--debug anywhere shows the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without these letters is no reason to stop
    try:
        code = command(words)(words[1:]) if (words := [w for w in words if w != "--debug"]) else usage()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        if argv is None:  # the process ends now, and a second Ctrl-C has nothing left to interrupt
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("opd: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, sentence = explained(error)
        print(f"opd: {sentence}", file=sys.stderr)
        return code


def command(words: Sequence[str]) -> Callable[[list[str]], int]:
    """The function behind the first word."""
    match words[0]:
        case "--version" | "-V":
            return lambda rest: print(f"opd {__version__}") or 0
        case "--help" | "-h" | "help":
            return lambda rest: command([rest[0]])(["--help"]) if rest else usage()
    if words[0] not in COMMANDS:
        raise SettingError("unknown command", got=repr(words[0]), remedy=nearest(words[0], COMMANDS))
    module, function, _ = COMMANDS[words[0]]
    return getattr(importlib.import_module(f"opd.cli.{module}"), function)


def usage() -> int:
    print("usage: opd COMMAND [options]\n\nOn-policy distillation of language models.\n")
    wide = max(map(len, COMMANDS))
    for name, (_, _, summary) in COMMANDS.items():
        print(f"  opd {name:<{wide}} {summary}")
    print(f"\n  opd COMMAND --help explains one of them\n\n{EXAMPLES}")
    return 0


def explained(error: Exception) -> tuple[int, str]:
    """Exit code and sentence of whatever went wrong."""
    if isinstance(error, OpdError):
        return 2, str(error)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return 2, f"{error.strerror or error}{where}."
    kind = type(error).__name__
    if kind == "OutOfMemoryError":
        return 2, "the device has no memory left. Lower --micro-tokens or --batch, or give --gradient-checkpointing."
    if kind == "SafetensorError":
        return 2, f"a file of tensors could not be written or read: {error}."
    bug = f"{kind}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    return 1, f"a bug of opd, not of yours: {bug}. The same command with --debug shows where."


if __name__ == "__main__":
    sys.exit(main())
