"""Imports point downwards, and what is heavy is imported late: read from the sources."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import opd

ROOT = Path(opd.__file__).parent

# who may import whom inside the package; a module that is not named may be imported by nobody above it in this list
ALLOWED = {
    "errors": set(),
    "maths": set(),
    "estimators": {"maths"},
    "supports": {"maths", "estimators"},
    "rollout": set(),
    "dist": {"maths", "errors"},
    "rows": {"dist", "rollout", "errors"},
    "protocols": {"dist", "rollout", "errors"},
    "method": {"dist", "rollout", "rows", "protocols", "errors"},
}
ALLOWED["stated"], ALLOWED["shaping"] = set(), set()
FORMULAS = {"maths", "estimators", "supports", "shaping", "stated"}
# recipes for their templates
BELOW_PARTS = FORMULAS | {"dist", "rows", "rollout", "protocols", "method", "errors", "jsonlines", "recipes"}
ALLOWED["jsonlines"] = ALLOWED["tried"] = {"errors"}
ALLOWED["labels"] = {"dist", "rollout", "errors", "engines"}
ALLOWED["teach"] = {"dist", "rows", "rollout", "protocols", "method", "errors", "labels"}
ALLOWED["step"] = {"dist", "rows", "rollout", "protocols", "method", "errors", "teach"}
ALLOWED["budget"] = {"errors"}
ALLOWED["meter"] = {"protocols", "rollout"}
ALLOWED["routes"] = {"rows", "rollout", "protocols"}
ALLOWED["ahead"] = {"rollout", "protocols", "method", "teach"}
ALLOWED["loop"] = ALLOWED["step"] | {"step", "budget", "meter", "routes", "ahead"}
OUTSIDE_RECIPES = {"transformers", "vllm", "ray", "torch.distributed", "safetensors", "pydantic"}


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def inside(names: set[str]) -> set[str]:
    """Modules of the package among them: opd.x.y -> x."""
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    return {name.split(".")[1] for name in names if name.startswith("opd.")} & modules


def test_the_core_points_downwards():
    for module, allowed in ALLOWED.items():
        assert inside(imports(ROOT / f"{module}.py")) <= allowed, module


def test_parts_know_types_and_formulas_and_one_another_without_a_circle():
    known = {}
    for file in (ROOT / "parts").glob("[a-z]*.py"):
        names = imports(file)
        assert inside(names) <= BELOW_PARTS | {"parts"}, file.name
        known[file.stem] = {name.split(".")[2] for name in names if name.startswith("opd.parts.")}
    tuple(TopologicalSorter(known).static_order())  # raises at a circle


def test_maths_knows_torch_only():
    for module in ("maths", "estimators", "supports"):
        names = {name for name in imports(ROOT / f"{module}.py") if inside({name}) not in ({"maths"}, {"estimators"})}
        assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"torch"}, module


def test_recipes_know_maths_and_parts_only():
    for file in (ROOT / "recipes").glob("[a-z]*.py"):
        names = imports(file)
        assert inside(names) <= {"parts", "maths", "method", "protocols", "rollout", "errors"}, file.name
        assert not {name for name in names if any(name.startswith(out) for out in OUTSIDE_RECIPES)}, file.name


def test_the_core_names_no_method_and_no_column_of_one():
    """What is around step and loop knows the roles, and `rollout` the column in which the sampler's log-prob stands."""
    from opd import recipes

    core, around = ("step", "loop", "teach", "rows"), ("build", "run", "cast", "settings", "masks", "rollout", "ahead")
    for module in (*core, *around):
        file = ROOT / f"{module}.py"
        words = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert not words & {*recipes.names(), "advantage"}, module
        assert not {name for name in imports(file) if name.startswith("opd.recipes.")}, module
        assert module not in core or not words & {"teacher", "behaviour"}, module


def test_only_claims_and_the_command_line_know_of_comparisons():
    knowing = {file.relative_to(ROOT).parts[0] for file in ROOT.rglob("*.py") if "compare" in inside(imports(file))}
    assert knowing == {"cli", "claims", "compare"}


def test_the_core_is_light():
    heavy = ("transformers", "pydantic", "rich")
    code = f"import sys, opd.loop, opd.contract; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
