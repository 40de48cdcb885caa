"""A stand-in for the Hugging Face hub on this machine: repositories, uploads (LFS and plain), downloads with etags.

It speaks the part of the API that ``huggingface_hub`` uses for uploading and downloading, and keeps all in memory.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_of_the_test"


class Hub:
    """Repositories as ``{id: {branch: {path: bytes}}}``, what was asked for, and the server's address."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.commits: dict[str, tuple[str, dict[str, bytes]]] = {}
        self.private: dict[str, Any] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.url = ""

    def commit_of(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Hash and files of a branch or commit."""
        if revision in self.commits:
            return self.commits[revision]
        files = self.repositories[repository].get(revision)
        if files is None:
            return None
        digest = hashlib.sha1(repr((repository, sorted(files.items()))).encode()).hexdigest()
        self.commits[digest] = digest, dict(files)
        return self.commits[digest]


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


class Answer(Exception):
    """Ends a request with a status, a body and headers."""

    def __init__(self, status: int, body: Any = b"", **headers: str) -> None:
        super().__init__(status)
        self.status, self.headers = status, {key.replace("_", "-"): value for key, value in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def found(hub: Hub, repository: str, revision: str) -> tuple[str, dict[str, bytes]]:
    if repository not in hub.repositories:
        raise Answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
    commit = hub.commit_of(repository, unquote(revision))
    if commit is None:
        raise Answer(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
    return commit


def create(hub: Hub, body: bytes) -> None:
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    if name.startswith("somebody-else/"):
        raise Answer(403, {"error": "You don't have the rights to create a model under this namespace"})
    if name in hub.repositories:
        raise Answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
    hub.repositories[name] = {"main": {}}
    hub.private[name] = asked.get("visibility", "private" if asked.get("private") else None)
    raise Answer(200, {"url": f"{hub.url}/{name}", "name": name})


def branch(hub: Hub, body: bytes, repository: str, name: str) -> None:
    branches = hub.repositories[repository]
    if unquote(name) in branches:
        raise Answer(409, {"error": "exists"})
    branches[unquote(name)] = dict(branches["main"])
    raise Answer(200, {})


def validate_yaml(hub: Hub, body: bytes) -> None:
    """The hub's rules for a card's front matter that concern us."""
    content = json.loads(body)["content"]
    match = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", content, re.DOTALL)
    values = yaml.safe_load(match[1]) if match else None
    errors = [] if isinstance(values, dict) else [{"message": "no front matter"}]
    if isinstance(values, dict):
        if not re.fullmatch(r"[a-z0-9.-]+", str(values.get("license", "other"))):
            errors.append({"message": "license is no identifier"})
        if "base_model" in values and not re.fullmatch(r"[\w.-]+/[\w.-]+", values["base_model"]):
            errors.append({"message": "base_model is no id"})
    raise Answer(400 if errors else 200, {"errors": errors, "warnings": []})


def preupload(hub: Hub, body: bytes, repository: str, revision: str) -> None:
    found(hub, repository, revision)
    files = [
        {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False}
        for f in json.loads(body)["files"]
    ]
    raise Answer(200, {"files": files})


def lfs_batch(hub: Hub, body: bytes, repository: str) -> None:
    objects = [
        {
            **o,
            "actions": {
                "upload": {"href": f"{hub.url}/large/{o['oid']}"},
                "verify": {"href": f"{hub.url}/verify"},
            },
        }
        for o in json.loads(body)["objects"]
    ]
    raise Answer(200, {"transfer": "basic", "objects": objects})


def put_large(hub: Hub, body: bytes, oid: str) -> None:
    assert hashlib.sha256(body).hexdigest() == oid
    hub.large[oid] = body
    raise Answer(200)


def verify(hub: Hub, body: bytes) -> None:
    asked = json.loads(body)
    raise Answer(200 if len(hub.large.get(asked["oid"], b"")) == asked["size"] else 400, {})


def commit(hub: Hub, body: bytes, repository: str, revision: str) -> None:
    files = hub.repositories[repository][unquote(revision)]
    for line in body.splitlines():
        entry = json.loads(line)
        if entry["key"] == "file":
            files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        elif entry["key"] == "lfsFile":
            files[entry["value"]["path"]] = hub.large[entry["value"]["oid"]]
    digest = found(hub, repository, revision)[0]
    raise Answer(200, {"commitUrl": f"{hub.url}/{repository}/commit/{digest}", "commitOid": digest, "hookOutput": ""})


def info(hub: Hub, body: bytes, repository: str, revision: str = "main") -> None:
    digest, files = found(hub, repository, revision)
    siblings = [{"rfilename": path} for path in sorted(files)]
    raise Answer(200, {"id": repository, "modelId": repository, "sha": digest, "siblings": siblings, "tags": []})


def tree(hub: Hub, body: bytes, repository: str, revision: str) -> None:
    files = found(hub, repository, revision)[1]
    raise Answer(
        200,
        [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in sorted(files.items())
        ],
    )


def resolve(hub: Hub, body: bytes, repository: str, revision: str, path: str) -> None:
    digest, files = found(hub, repository, revision)
    path = unquote(path)
    if path not in files:
        raise Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=digest)
    data = files[path]
    if not is_large(path):
        raise Answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=digest)
    linked = {"X_Linked_Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Linked_Size": str(len(data))}
    raise Answer(200, data, X_Repo_Commit=digest, **linked)


ID = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"/api/models/{ID}/branch/([^/]+)", branch),
    ("POST", rf"/api/models/{ID}/preupload/([^/]+)", preupload),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/large/([0-9a-f]{64})", put_large),
    ("POST", r"/verify", verify),
    ("POST", rf"/api/models/{ID}/commit/([^/]+)", commit),
    ("GET", rf"/api/models/{ID}", info),
    ("GET", rf"/api/models/{ID}/revision/([^/]+)", info),
    ("GET", rf"/api/models/{ID}/tree/([^/]+)", tree),
    ("GET", rf"/{ID}/resolve/([^/]+)/(.+)", resolve),
]


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub at a free port of the loopback device, ended with the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {path}")
            method = "GET" if self.command == "HEAD" else self.command
            try:
                writes = method == "POST" and path.startswith("/api/") and "validate" not in path
                if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise Answer(401, {"error": "Invalid credentials in Authorization header"})
                for verb, pattern, function in ROUTES:
                    if verb == method and (match := re.fullmatch(pattern, path)):
                        function(hub, body, *match.groups())
                raise Answer(404, {"error": f"no such route: {path}"})
            except Answer as answer:
                self.send_response(answer.status)
                for key, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def use_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Any) -> None:
    """Has ``huggingface_hub`` of this process talk to the stand-in, with an empty cache."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HUGGINGFACE_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
