# /// script
# requires-python = ">=3.11"
# dependencies = ["nox[uv]>=2025.5.1"]
# ///
"""Everything a user or developer runs: ``nox -l`` lists the sessions, ``nox -s NAME -- ARGUMENTS`` runs one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint"]

PACKAGES = ("packages/s2a", "packages/baselines", "packages/bench")
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
PATIENCE = 60
"""Seconds that a sweep is given to end by itself after Ctrl-C."""


def install(session: nox.Session, *groups: str, extras: str = "[all]", options: tuple[str, ...] = ()) -> None:
    """Installs the three packages as they lie here, and dependency groups; again only when what they need changes.

    Args:
        session: Where.
        groups: Dependency groups of the root ``pyproject.toml``.
        extras: Of s2a-bench; ``""``: none.
        options: Of the installer.
    """
    root = nox.project.load_toml("pyproject.toml")
    # In one command: pip would look for s2a on the package index otherwise.
    packages = [path + extras if path == "packages/bench" else path for path in PACKAGES]
    wanted = [text for path in packages for text in ("-e", path)] + list(nox.project.dependency_groups(root, *groups))
    wanted += options
    files = [Path(path, "pyproject.toml") for path in PACKAGES]
    state = hashlib.sha256(b"\0".join([repr(wanted).encode(), *(file.read_bytes() for file in files)])).hexdigest()
    stamp = Path(session.virtualenv.location, "installed")
    if not stamp.is_file() or stamp.read_text() != state:
        session.install(*wanted)
        stamp.write_text(state)


@nox.session
def bench(session: nox.Session) -> None:
    """Compares the methods on the embedded tasks; arguments go to `s2a-bench sweep`."""
    install(session)
    session.run(
        "s2a-bench", "sweep", *session.posargs, env=ENVIRONMENT, interrupt_timeout=PATIENCE, terminate_timeout=PATIENCE
    )


@nox.session
def tests(session: nox.Session) -> None:
    """Runs the fast ring of the tests in two processes; arguments go to pytest (`-n 0` for one process)."""
    run_pytest(session)


@nox.session
def tests_full(session: nox.Session) -> None:
    """Runs every test with all its combinations; arguments go to pytest."""
    run_pytest(session, "--full")


def run_pytest(session: nox.Session, *options: str) -> None:
    """Runs pytest in two processes; one that has nothing left to do takes over half of what waits for the other."""
    install(session, "test", "integrations")
    # A thread each: on two cores the threads of two would wait for each other.
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    session.run("pytest", "-n", "2", "--dist", "worksteal", *options, *session.posargs, env=environment)


@nox.session
def bare(session: nox.Session) -> None:
    """Installs without extras (no Ray, no MLflow, no readers' libraries); a cell, a sweep and a report run there."""
    install(session, extras="")
    session.install("filelock", "hypothesis", "pytest>=8", "pytest-benchmark", "pytest-timeout")
    session.run("pytest", "--full", "tests/bench/test_without_extras.py", *session.posargs, env={"S2A_BENCH_BARE": "1"})


@nox.session
def lowest(session: nox.Session) -> None:
    """Installs the oldest versions that pyproject.toml allows and runs the tests; arguments go to pytest."""
    install(session, "test", options=("--resolution", "lowest-direct"))
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    session.run("pytest", "-n", "2", "--dist", "loadfile", *session.posargs, env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Checks style, formatting, the direction of imports, and types."""
    install(session, "test", "integrations", "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache")
    session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the documentation's site into site/, strictly; with `-- --serve` shows it while it is edited."""
    root = nox.project.load_toml("pyproject.toml")
    session.install(*nox.project.dependency_groups(root, "docs"))  # the packages are read, not imported
    arguments = ["serve", *(a for a in session.posargs if a != "--serve")] if "--serve" in session.posargs else None
    session.run("mkdocs", *(arguments or ["build", *session.posargs]), env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Times kernels and training steps; arguments go to pytest."""
    install(session, "test")
    columns = "--benchmark-columns=min,median,rounds"
    session.run("pytest", "benchmarks", "--benchmark-enable", columns, *session.posargs, env=ENVIRONMENT)


@nox.session
def ui(session: nox.Session) -> None:
    """Shows results in MLflow's pages; arguments go to `s2a-bench ui` (`--output DIR`, `--port N`)."""
    install(session)
    session.run(
        "s2a-bench", "ui", *session.posargs, env=ENVIRONMENT, interrupt_timeout=PATIENCE, terminate_timeout=PATIENCE
    )


if __name__ == "__main__":
    nox.main()
