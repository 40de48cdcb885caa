"""What one GPU says: memory, time and gradients of every method on the three backbones, in at most ten minutes.

    python3 benchmarks/device.py [--output device.json] [--limit 600] [--weights BACKBONE=FILE ...]
    python3 benchmarks/device.py --dry-run            # without a card: every part, on mini backbones on the CPU
    python3 benchmarks/device.py table device.json    # the results as Markdown

It needs a checkout, torch, timm and safetensors (the packages need not be installed; no Ray, no MLflow; pytest for
the tests). Each part is a process of its own: the tests of the kernels; steps of each backbone; an epoch of each method
of the paper's Table 1 (``s2a-bench estimate --measured device.json``); the kernels that a lean step spends its time in;
Triton's kernels beside the reference. What no longer fits the time is skipped and named in the
file, which is written after every part.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PATHS = [HERE, ROOT / "tests", *(ROOT / "packages" / name / "src" for name in ("s2a", "baselines", "bench"))]
TESTS = (
    "tests/s2a/kernels_on_matrices.py",
    "tests/s2a/test_lean_kernels.py::test_operators_on_a_device_give_what_they_give_on_the_cpu",
    "tests/bench/test_device_peak.py::test_on_a_device_the_three_numbers_agree",
)
"""What needs a card: Triton's kernels beside the reference, operators, the allocator's peak beside the simulation."""
SHARES = {"tests": 0.15, "steps": 0.5, "epochs": 0.2, "profile": 0.1, "kernels": 0.05}
"""Of the time: the most that a kind of part may take of what is left to it and those after it."""
GRACE = 15
"""Seconds after which a part that should have ended is killed."""


class Clock:
    """The seconds that are left, and how many a part may take.

    Args:
        limit: Seconds in all, from now.
    """

    def __init__(self, limit: float) -> None:
        self._end = time.monotonic() + limit

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self._end - time.monotonic()

    def share(self, kind: str, parts: int = 1) -> float:
        """Seconds of the first of ``parts`` parts of a kind that are to come: what earlier kinds left is shared too."""
        kinds = list(SHARES)
        coming = sum(SHARES[name] for name in kinds[kinds.index(kind) :])
        return max(0.0, (self.left - GRACE) * SHARES[kind] / coming / parts)


def plan(dry_run: bool) -> list[tuple[str, str]]:
    """Kind of each part, in order, and its backbone."""
    from device_parts import BUDGETS, MINIATURES

    backbones = list(MINIATURES if dry_run else BUDGETS)
    steps = [("steps", name) for name in backbones]
    epochs = [("epochs", name) for name in backbones]
    return [("tests", ""), *steps, *epochs, ("profile", backbones[0]), ("kernels", "")]


def run(request: argparse.Namespace) -> dict[str, Any]:
    """Runs all parts and writes the file after each.

    Returns:
        What the file holds.
    """
    clock, began = Clock(request.limit), time.monotonic()
    found = about(request)
    parts = plan(request.dry_run)
    for index, (kind, backbone) in enumerate(parts):
        same = sum(later == kind for later, _ in parts[index:])
        seconds = clock.share(kind, same)
        name = f"{kind} {backbone}".strip()
        print(f"{name}: at most {seconds:.0f} s", flush=True)
        started = time.monotonic()
        if seconds < (5 if request.dry_run else 20):
            found["skipped"].append({"what": name, "why": "no time left"})
            continue
        result = run_tests(request, seconds) if kind == "tests" else run_part(request, kind, backbone, seconds)
        for key, value in result.items():
            if isinstance(value, list):
                found[key] += value
            else:
                found[key] = value
        found["part_seconds"][name] = round(time.monotonic() - started, 1)
        found["seconds"] = round(time.monotonic() - began, 1)
        write(request.output, found)
    write(request.output, found)
    return found


def about(request: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions and settings; and empty lists for what is to be found."""
    import torch
    from s2a_bench.cells.provenance import git_state, hardware, versions

    device = "cpu" if request.dry_run else "cuda"
    machine = hardware(device)
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "gpu_memory_mb": properties.total_memory / 1e6,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    for name in ("triton", "timm", "safetensors"):
        machine.setdefault("modules", {})[name] = importlib.util.find_spec(name) is not None
    return {
        "dry_run": request.dry_run,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": machine,
        "versions": versions(),
        "commit": git_state(ROOT)[0],
        "settings": {"batch": request.batch, "rounds": request.rounds, "limit_seconds": request.limit},
        "weights": {
            "files": {name: Path(path).name for name, path in request.weights.items()},
            "note": "Other backbones have random weights (qkv times 4, layer scales 0.5) and random images: cosines on "
            "them only check those on trained weights.",
        },
        "tests": {},
        "steps": [],
        "epochs": [],
        "profile": [],
        "kernels": [],
        "skipped": [],
        "part_seconds": {},
        "seconds": 0.0,
    }


def environment() -> dict[str, str]:
    """Of the processes: what they import lies in the checkout."""
    paths = [*map(str, PATHS), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(request: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Runs the tests that need a card; a dry run only collects them."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": [{"what": "tests", "why": "pytest is not installed"}]}
    # Neither the settings nor the conftest of the checkout, which want plugins.
    with tempfile.TemporaryDirectory() as folder:
        ini = Path(folder, "pytest.ini")
        ini.write_text("[pytest]\n")
        options = ["-q", "-p", "no:cacheprovider", "--noconftest", "-c", str(ini), "--rootdir", str(ROOT)]
        options += ["--import-mode=importlib", "-W", "ignore", *(["--collect-only"] if request.dry_run else [])]
        command = [sys.executable, "-m", "pytest", *options, *TESTS]
        code, said = in_time(command, seconds)
    summary = next((line for line in reversed(said.splitlines()) if re.search(r"\d+ (passed|failed|tests)", line)), "")
    tests = {"exit_code": code, "summary": summary.strip("= "), "files": list(TESTS)}
    if code:
        tests["end"] = said[-3000:]
    skipped = [] if code is not None else [{"what": "the rest of the tests", "why": "no time left"}]
    return {"tests": tests, "skipped": skipped}


def run_part(request: argparse.Namespace, kind: str, backbone: str, seconds: float) -> dict[str, Any]:
    """Runs one part in a process of its own; what it had found when it ended, however it ended.

    A dry run saves the time of imports: of its parts only the kernels are another process.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "part.json")
        if request.dry_run and kind != "kernels":
            run_here(
                argparse.Namespace(
                    **{**vars(request), "part": f"{kind} {backbone}", "limit": seconds, "output": output}
                )
            )
            return json.loads(output.read_text())
        command = [sys.executable, str(HERE / "device.py"), "--output", str(output), "--part", f"{kind} {backbone}"]
        command += ["--limit", str(seconds), "--batch", str(request.batch), "--rounds", str(request.rounds)]
        command += ["--weights", *(f"{name}={path}" for name, path in request.weights.items())]
        command += ["--dry-run"] if request.dry_run else []
        code, said = in_time(command, seconds + GRACE)
        found: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"skipped": []}
    if code != 0:
        last = (said.strip().splitlines() or ["it said nothing"])[-1][:500]
        why = "it took too long and was ended" if code is None else f"it ended with code {code}: {last}"
        found["skipped"].append({"what": f"the rest of {kind} {backbone}".strip(), "why": why})
    return found


def in_time(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit code of a process, ``None`` if it was killed for the time it took; and what it said."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=said, stderr=subprocess.STDOUT)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        said.seek(0)
        return code, said.read()


def run_here(request: argparse.Namespace) -> None:
    """One part, in this process."""
    import device_parts as parts

    device = "cpu" if request.dry_run else "cuda"
    deadline = time.monotonic() + request.limit
    told = parts.Request(device, request.batch, request.rounds, deadline, request.weights)
    kind, _, backbone = request.part.partition(" ")

    def keep(found: dict[str, Any]) -> None:
        write(request.output, found)

    if kind == "kernels":
        parts.compare_kernels(told, keep, *((64, 96) if request.dry_run else ()))
        return
    if kind == "epochs":
        from device_epochs import time_epochs

        time_epochs(backbone, told, keep)
        return
    budget = (parts.MINIATURES if request.dry_run else parts.BUDGETS)[backbone]
    (parts.profile if kind == "profile" else parts.measure_backbone)(backbone, budget, told, keep)


def write(path: Path, found: dict[str, Any]) -> None:
    """Writes the file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(found, indent=1) + "\n")
    temporary.replace(path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="*", metavar="table FILE", help="print a file's results as Markdown")
    parser.add_argument("--output", type=Path, help="default: device.json, or device_dry_run.json")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--limit", type=float, default=585, help="seconds in all")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--weights", nargs="*", default=[], metavar="BACKBONE=FILE", help="trained weights")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    request = parser.parse_intermixed_args(arguments)
    if request.table:
        if len(request.table) != 2 or request.table[0] != "table":
            parser.error("write `device.py table FILE.json`, or only options.")
        if not Path(request.table[1]).is_file():
            parser.error(f"{request.table[1]} is not there; measure first.")
        return request
    request.output = request.output or Path("device_dry_run.json" if request.dry_run else "device.json")
    request.batch = request.batch or (2 if request.dry_run else 32)
    request.rounds = request.rounds or (1 if request.dry_run else 10)
    request.output = request.output.absolute()
    if not request.output.parent.is_dir():
        parser.error(f"--output {request.output}: there is no such folder.")
    given = {}
    for text in request.weights:
        name, _, path = text.partition("=")
        if not path or not Path(path).exists():
            parser.error(f"--weights {text}: write BACKBONE=FILE, with a file that is there.")
        given[name] = str(Path(path).absolute())
    request.weights = given
    return request


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; 0 done, 1 no card, 2 bad input."""
    sys.path[:0] = [str(path) for path in PATHS if str(path) not in sys.path]
    request = parse(arguments)
    if request.table:
        from device_table import markdown

        print(markdown(json.loads(Path(request.table[1]).read_text())))
        return 0
    if request.part:
        run_here(request)
        return 0
    import torch

    if not request.dry_run and not torch.cuda.is_available():
        print("There is no CUDA device here; --dry-run runs every part without one.", file=sys.stderr)
        return 1
    found = run(request)
    print(
        f"{request.output}: {len(found['steps'])} measurements, {len(found['skipped'])} skipped, {found['seconds']} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
