"""The public surface is a list, and the README's ten lines use nothing else."""

import subprocess
import sys

import opd


def test_public_names():
    assert sorted(opd.HOME) == opd.__all__ == [
        "Ask", "Method", "OpdError", "Run", "Settings", "Term", "chain", "load_task",
    ]  # fmt: skip
    for name in opd.__all__:
        assert getattr(opd, name).__name__ == name


def test_import_is_free():
    code = "import sys, opd; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
