"""``s2a-bench ui``: MLflow's server on an output folder, from its start to Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import pytest
from bench.factories import make_grid
from s2a_bench.cells.record import write
from s2a_bench.cli.common import show_command
from s2a_bench.cli.main import main
from s2a_bench.errors import InputError
from s2a_bench.tracking import server
from s2a_bench.tracking import store as stores
from s2a_bench.tracking.sqlite_uris import sqlite_uri

needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed")


@needs_mlflow
def test_no_records_is_one_sentence(tmp_path, capsys):
    assert main(["ui", "--output", str(tmp_path / "none"), "--no-browser"]) == 2
    said = capsys.readouterr().err
    assert "no records" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_mlflow_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stores, "find_spec", lambda name: None)
    write(make_grid(["lora"], ["digits"])[0], tmp_path)
    assert main(["ui", "--output", str(tmp_path), "--no-browser"]) == 2
    said = capsys.readouterr().err
    assert "MLflow is not installed" in said and said.count("\n") == 1


@needs_mlflow
def test_a_port_in_use_is_one_sentence_before_anything_is_written(tmp_path, capsys):
    write(make_grid(["lora"], ["digits"])[0], tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", "--output", str(tmp_path), "--port", str(port)]) == 2
        with pytest.raises(InputError, match="in use"):
            server.choose_port(port)
    said = capsys.readouterr().err
    assert f"Port {port} is in use" in said and said.count("\n") == 1
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_no_port_is_refused(port):
    with pytest.raises(InputError, match="no port"):
        server.choose_port(port)


def test_without_a_port_the_first_free_one_is_taken():
    first = server.choose_port(None)
    with socket.create_server(("127.0.0.1", first)):
        assert server.choose_port(None) > first


def test_the_command_is_named_for_the_folders_own_store_alone(tmp_path):
    odd = tmp_path / "a b % ü"
    assert show_command(odd, sqlite_uri(odd / "mlflow.db")) == f"s2a-bench ui --output '{odd}'"
    assert show_command(odd, "http://host:5000") == "http://host:5000"
    assert show_command(odd, "sqlite:////else/where.db").startswith("mlflow server")


@pytest.mark.full
@needs_mlflow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_the_server_answers_and_ends_with_ctrl_c(tmp_path):
    output = tmp_path / "a b % ü?"
    for record in make_grid(["lora", "s2a"], ["digits"]):
        write(record, output)
    command = [sys.executable, "-u", "-m", "s2a_bench", "ui", "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        said = []
        assert process.stdout and process.stderr
        with contextlib.suppress(StopIteration):
            while "Ctrl-C" not in (line := next(process.stdout)):
                said.append(line)
        address = re.search(r"http://127.0.0.1:(\d+)/#/experiments/\d+/runs\?viewStateShareKey=s2a-\w+", "".join(said))
        assert address, process.stderr.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/health", timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "has ended" in rest
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/health", timeout=5)
    assert {path.name for path in tmp_path.iterdir()} == {output.name}
