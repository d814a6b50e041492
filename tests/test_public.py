"""The public surface is a list, and the README's ten lines use nothing else."""

import subprocess
import sys
from pathlib import Path

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


def test_the_ten_lines_of_the_readme_run(tmp_path, monkeypatch):
    readme = Path(__file__).parent.parent / "README.md"
    code = readme.read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) < 10
    monkeypatch.chdir(tmp_path)
    small = code.replace("steps=100, batch=64", "steps=1, batch=2, eval_problems=4, drafts=1")
    assert small != code
    exec(compile(small, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "gkd-sums-0" / "summary.json").is_file()


def test_the_readme_names_every_method_with_its_papers():
    """A method that nobody finds in the table is not there."""
    import re
    from pathlib import Path

    from opd import recipes

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    lines = {name: line for line in readme.splitlines() for name in re.findall(r"^\| `(\w+)` \| [A-Z]", line)}
    assert set(lines) == set(recipes.names())
    for name, line in lines.items():
        described = recipes.describe(name)
        assert described.summary in line
        assert set(re.findall(r"\d{4}\.\d{4,5}", described.paper)) <= set(re.findall(r"\d{4}\.\d{4,5}", line)), name
    assert f"there are {len(lines)}:" in readme
