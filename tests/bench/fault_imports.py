"""What the fork server of ``fault_children`` imports once."""

import importlib.util
import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import sklearn.datasets  # noqa: F401

if importlib.util.find_spec("mlflow") is not None:
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking  # noqa: F401
