"""Asks a running `s2a-bench serve` what is on an image.

python examples/serve_client.py TASK IMAGE [ADDRESS] [TOKEN]
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path


def predict(task: str, image: str, address: str = "http://127.0.0.1:8000", token: str = "") -> dict[str, object]:
    """The most probable classes of an image file.

    Raises:
        urllib.error.HTTPError: There are none; its ``read()`` gives the reason, as JSON.
    """
    headers = {"Content-Type": "application/octet-stream"} | ({"Authorization": f"Bearer {token}"} if token else {})
    url = f"{address}/v1/tasks/{task}/predict?top=3"
    with urllib.request.urlopen(urllib.request.Request(url, Path(image).read_bytes(), headers)) as answer:
        return json.load(answer)["predictions"][0]


if __name__ == "__main__":
    print(json.dumps(predict(*sys.argv[1:]), indent=1))
