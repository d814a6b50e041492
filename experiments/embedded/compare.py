"""The demo's comparison with seeds and a search of learning rates: every run through the package, one table at the end.

    python -m experiments.embedded.compare --out runs/compare --seeds 3

Each seed has its own 128 training problems and its own samples; held-out problems are the same for all runs of a seed.
A run that is already in --out is not done again, so the command can be stopped and repeated. About 25 minutes on one
core.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from opd import Run, Settings

COMMON: dict[str, Any] = {
    "teacher": "embedded:teacher", "batch": 64, "max_new": 20, "schedule": "linear", "warmup": 10,
    "eval_problems": 512, "checkpoint_every": 0, "drafts": 0, "threads": 1,
}  # fmt: skip
ON_POLICY = {"lam": 1.0, "beta": 1.0, "mean": "token_mean"}
SFT_RATES, OWN_RATES = (1.6e-2, 3.2e-2, 4.8e-2, 6.4e-2), (8e-3, 1.6e-2, 3.2e-2)
GRID: list[dict[str, Any]] = [
    *({"method": "sft", "lr": lr, "steps": 300} for lr in SFT_RATES),
    *({"method": "sft", "lr": lr, "steps": 800} for lr in SFT_RATES),
    {"method": "gkd", "lr": 8e-3, "steps": 300, "parameters": {**ON_POLICY, "temperature": 1.0}},
    *({"method": "gkd", "lr": lr, "steps": 300, "parameters": {**ON_POLICY, "temperature": 1.5}} for lr in OWN_RATES),
]


def name(values: dict[str, Any]) -> str:
    temperature = values.get("parameters", {}).get("temperature")
    return "-".join(str(part) for part in (values["method"], temperature, values["lr"], values["steps"]) if part)


def once(values: dict[str, Any], seed: int, out: Path, problems: int) -> dict[str, Any]:
    """The summary of one run, made now or found."""
    folder = out / f"{name(values)}-seed{seed}"
    if not (folder / "summary.json").is_file():
        task = f"sums,train={problems},seed={seed}"
        settings = Settings.of(**COMMON, **values, seed=seed, task=task, out=str(folder))
        (Run.resume(folder) if (folder / "run.toml").is_file() else Run.new(settings)).train()
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def row(values: dict[str, Any], summaries: list[dict[str, Any]]) -> str:
    """One line of the table: mean over seeds, and the range."""
    cells = [
        values["method"],
        values.get("parameters", {}).get("temperature", ""),
        f"{values['lr']:g}",
        values["steps"],
    ]
    for kind in ("greedy", "sampled"):
        seen = [100 * s["student_after"][kind]["accuracy"]["value"] for s in summaries]
        cells.append(f"{statistics.mean(seen):.1f} ({min(seen):.1f}-{max(seen):.1f})")
    cells.append(f"{statistics.mean(s['student_after']['kl']['per_token'] for s in summaries):.2f}")
    cells.append(f"{statistics.median(s['seconds'] for s in summaries):.0f}")
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", type=int, default=128)
    given = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(given.seeds):
        for values in GRID:
            found.setdefault(name(values), []).append(once(values, seed, given.out, given.problems))
            print(f"seed {seed}: {row(values, found[name(values)][-1:])}", flush=True)
    print("\n| method | T | lr | updates | greedy % | sampled % | reverse KL | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(row(values, found[name(values)]) for values in GRID))


if __name__ == "__main__":
    main()
