"""llama.cpp: llama-server with SLOTS requests at once where there is one, else llama-cpp-python, which runs one."""

from __future__ import annotations

import atexit
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers.adapters import Run, cut

SLOTS = 4
FILE = "model.gguf"


def versions(server: str | None) -> dict[str, str]:
    if server is None:
        import llama_cpp

        return {"llama_cpp_python": llama_cpp.__version__}
    told = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    return {"llama_server": (told.stderr + told.stdout).strip().splitlines()[0].removeprefix("version: ")}


def convert(source: str, destination: str, kind: str) -> None:
    from peers.gguf_file import write

    Path(destination).mkdir()
    write(source, Path(destination) / FILE)


def load(model: str, settings: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    made = in_process if settings["server"] is None else served
    run = made(str(Path(model) / FILE), settings)
    return (lambda requests: [cut(ids, settings["stops"]) for ids in run(requests)]), {"precision": "q8_0"}


def in_process(file: str, settings: dict[str, Any]) -> Run:
    from llama_cpp import Llama

    threads = settings["threads"]
    llama = Llama(file, n_ctx=settings["context"], n_threads=threads, n_threads_batch=threads, verbose=False)

    def one(ids: list[int]) -> list[int]:
        llama.reset()
        found: list[int] = []
        for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0, reset=False):
            if token in settings["stops"] or len(found) == settings["new_tokens"]:
                break
            found.append(token)
        return found

    return lambda requests: [one(request["ids"]) for request in requests]


def served(file: str, settings: dict[str, Any]) -> Run:
    """Requests go to the loopback interface alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [settings["server"], "-m", file, "--host", "127.0.0.1", "--port", str(port), "-t", str(settings["threads"]),
         "-c", str(SLOTS * settings["context"]), "-np", str(SLOTS), "-fa", "on", "--no-webui", "--no-cache-prompt"],
    )  # fmt: skip
    atexit.register(server.kill)
    while not healthy(url):
        if server.poll() is not None:
            raise RuntimeError(f"llama-server ended with {server.returncode}")
        time.sleep(0.2)
    pool = ThreadPoolExecutor(SLOTS)

    def one(request: dict[str, Any]) -> list[int]:
        body = {"prompt": request["ids"], "n_predict": settings["new_tokens"], "temperature": 0, "cache_prompt": False}
        return post(f"{url}/completion", body | {"return_tokens": True})["tokens"]

    return lambda requests: list(pool.map(one, requests))


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)
