"""What the fork server of ``fault_children`` imports once."""

import importlib.util
import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import s2a_bench.cli
import s2a_bench.commands
import s2a_bench.report
import s2a_bench.run  # noqa: F401
import sklearn.datasets  # noqa: F401

if importlib.util.find_spec("mlflow") is not None:
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking  # noqa: F401
