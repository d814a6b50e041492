"""On-policy distillation: the student writes, the teacher reads what it wrote, the student learns from that.

    from opd import Run, Settings
    run = Run.new(Settings.of(method="gkd", teacher="embedded:teacher", steps=100, batch=64, lr=3e-3))
    print(run.train())

Everything else is imported from its own module. Names here are loaded when they are first used, so that
`import opd` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from opd.errors import OpdError as OpdError
    from opd.method import Ask as Ask
    from opd.method import Method as Method
    from opd.method import Term as Term
    from opd.method import chain as chain
    from opd.run import Run as Run
    from opd.settings import Settings as Settings
    from opd.tasks import load_task as load_task

HOME = {
    "Ask": "opd.method",
    "Method": "opd.method",
    "OpdError": "opd.errors",
    "Run": "opd.run",
    "Settings": "opd.settings",
    "Term": "opd.method",
    "chain": "opd.method",
    "load_task": "opd.tasks",
}
__all__ = ["Ask", "Method", "OpdError", "Run", "Settings", "Term", "chain", "load_task"]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'opd' has no attribute {name!r}")
    return getattr(import_module(HOME[name]), name)
