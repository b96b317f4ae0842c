"""All plans of docs/plans.md, one after the other, and its table; a plan that is there is not made again.

    pip install -e '.[plan]' && python benchmarks/plans.py --workdir runs/plans
    python benchmarks/plans.py --workdir runs/plans --only llama-3.1-8b-v5e-16

Each is a `fiat plan` in a process of its own, minutes on two cores. `--write` puts the table into docs/plans.md.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "plans.md"
BEGIN, END = "<!-- the table: benchmarks/plans.py --write -->", "<!-- end of the table -->"
SLICES = {  # mesh preset → topology, chips
    "v5e-16": ("v5e:4x4", 16),
    "v6e-16": ("v6e:4x4", 16),
    "v5p-64": ("v5p:4x4x4", 64),
    "v5e-64": ("v5e:8x8", 64),
    "v5e-256": ("v5e:16x16", 256),
}
TRAINED = ("llama-3.1-8b", "gemma-2-2b", "qwen2.5-32b")
WRITING = ("llama-3.1-70b", "qwen3-30b-a3b")
MESHES = {  # where tensor alone divides layers too little for the chip, or its memory's bandwidth
    ("llama-3.1-70b", "v5e-64"): ["--gin.Mesh.fsdp=4"],
    ("qwen3-30b-a3b", "v5e-64"): ["--gin.Mesh.expert=4"],
    ("qwen3-30b-a3b", "v6e-16"): ["--gin.Mesh.expert=4"],
}


def cases() -> dict[str, list[str]]:
    """Return the arguments of every plan by its name."""
    found = {}
    for preset, (topology, chips) in SLICES.items():
        for model in TRAINED:
            found[f"{model}-{preset}"] = [
                f"--gin_file=configs/plans/{model}.gin",
                f"--gin_file=configs/meshes/{preset}.gin",
                f"--gin.Train.batch_rows={chips}",
                f"--topology={topology}",
            ]
    for preset in ("v6e-16", "v5e-64"):
        for model in WRITING:
            found[f"{model}-engine-{preset}"] = [
                f"--gin_file=configs/plans/{model}-engine.gin",
                *MESHES.get((model, preset), []),
                f"--topology={SLICES[preset][0]}",
            ]
    return found


def read(name: str, workdir: Path) -> dict | None:
    """Return a plan; None where there is none yet."""
    path = workdir / name / "results.json"
    return json.loads(path.read_text())["details"]["plan"] if path.exists() else None


def most(plan: dict) -> float:
    """Return the bytes a chip of the largest program, and what is kept besides."""
    return max(one["memory"]["total"] for one in plan["programs"].values()) + plan.get("kept_besides", 0)


def line(plan: dict, arguments: list[str]) -> str:
    """Return a plan's line of the table."""
    target, programs = plan["target"], plan["programs"]
    mesh = ", ".join(str(size) for size in target["mesh"].values())
    share = f"{most(plan) / 2**30:.2f} of {target['memory'] / 2**30:.2f} ({most(plan) / target['memory']:.0%})"
    main = programs.get("step") or programs.get("decode") or {}
    roof = main.get("roofline")
    if roof is None:
        times, rate, mfu = "–", "–", "–"
    else:
        times = " / ".join(f"{1e3 * roof[key]:,.1f}" for key in ("compute", "memory", "network"))
        rate, mfu = f"{plan['tokens_per_second']:,.0f}", f"{plan['mfu']:.0%}"
    sent = sum(one["bytes"] for one in main.get("collectives", []))
    asked = main.get("weights_asked", 0)
    theory = f"{main['weights_moved'] / asked:.2f}" if asked else "–"
    amounts = main.get("flops", 0) / 1e12, main.get("bytes", 0) / 1e9, sent / 1e9
    fields = (
        *(f"{Path(plan['model']).name}, {plan['kind']}", target["topology"], mesh, "yes" if plan["fits"] else "**no**"),
        *(share, *(f"{amount:.3g}" for amount in amounts), theory, times, rate, mfu),
        f"`{' '.join(['fiat plan', *arguments])}`",
    )
    return f"| {' | '.join(fields)} |"


def shares(plans: Iterable[dict]) -> dict[str, float]:
    """Return for each model the least share of a chip's memory that it takes on a slice of v5e where it fits."""
    found: dict[str, float] = {}
    for plan in plans:
        if plan["target"]["topology"].startswith("v5e:") and plan["fits"]:
            name = f"{Path(plan['model']).name}, {plan['kind']}"
            found[name] = min(found.get(name, 1.0), most(plan) / plan["target"]["memory"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/plans"))
    parser.add_argument("--only", action="append", help="the plan of this name; repeatable")
    parser.add_argument("--write", action="store_true", help="make none, write the table of those that are there")
    args = parser.parse_args()
    found = cases()
    for name, arguments in found.items():
        done = (args.workdir / name / "results.json").exists()
        if args.write or done or (args.only and name not in args.only):
            continue
        command = [sys.executable, "-m", "fiat_jax", "plan", *arguments, f"--workdir={args.workdir / name}"]
        print(" ".join(command), flush=True)
        args.workdir.mkdir(parents=True, exist_ok=True)
        with open(args.workdir / f"{name}.txt", "w", encoding="utf-8") as log:
            status = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
        print(f"{name}: status {status}", flush=True)
    plans = {name: plan for name in found if (plan := read(name, args.workdir))}
    lines = [line(plan, found[name]) for name, plan in plans.items()]
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text("\n".join([before + BEGIN, "", *HEAD, *lines, "", END + after]), encoding="utf-8")
    ratios = {f"{name}: share of a v5e's memory": round(share, 3) for name, share in shares(plans.values()).items()}
    moved = [one for plan in plans.values() for one in plan["programs"].values() if one.get("weights_asked")]
    if moved:
        ratios["weights moved over theory, at most"] = round(
            max(one["weights_moved"] / one["weights_asked"] for one in moved), 3
        )
    goals = {name: 0.9 if "share" in name else 1.2 for name in ratios}
    print(json.dumps({"ratios": ratios, "goals": goals, "plans": len(lines), "of": len(found)}))


HEAD = [
    "| model | slice | data, fsdp, expert, tensor | fits | GiB a chip | TFLOP a chip | GB of memory a chip "
    "| GB sent a chip | weights sent over theory | ms: compute / memory / network | tokens/s | MFU | command |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
]


if __name__ == "__main__":
    main()
