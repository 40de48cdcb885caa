"""Keeps what Serve opens besides the HTTP address on this machine."""

from __future__ import annotations

import os
from typing import Any

SWITCH = "S2A_SERVE_LOOPBACK"
"""Environment variable of the replicas of a Ray of our own."""


def keep_on_loopback() -> None:
    """Lets a replica's internal gRPC server listen on loopback only, where the environment says so.

    Serve binds it to all networks and unpickles what it is sent (behind Ray's token); Ray has no switch for that.
    Called by a deployment's constructor, before Serve starts the server.

    Raises:
        RuntimeError: This release of Ray starts it in another way, so that it would be open.
    """
    if os.environ.get(SWITCH) != "1":
        return
    from ray.serve._private import replica

    module: Any = replica
    usual = getattr(module, "add_port_to_grpc_server", None)
    if usual is None:
        if hasattr(module, "add_ASGIServiceServicer_to_server"):
            raise RuntimeError("this release of Ray Serve cannot be kept on loopback; install ray 2.60")
        return  # a release without such a server

    def on_loopback(server: Any, address: str) -> int:
        return usual(server, address.replace("[::]:", "127.0.0.1:"))

    module.add_port_to_grpc_server = on_loopback
