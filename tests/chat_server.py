"""A server with OpenAI's chat completions on this machine, with faults on demand."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "500", "drop", "torn", "json", "html", "empty", "number")


def first_sentence(prompt: str) -> str:
    """Of the document in the default instruction."""
    document = prompt.partition("Document:\n")[2].partition("\n\nQuery:")[0]
    return document.partition(". ")[0] + "."


class ChatServer:
    """answer: prompt to text. fault: of a prompt and how often it came before, one of `FAULTS`, "slow", a status code,
    or None. delay: seconds of an answer. retry_after: seconds, sent with every status that is an error."""

    def __init__(
        self,
        answer: Callable[[str], Any] = first_sentence,
        fault: Callable[[str, int], str | None] = lambda prompt, count: None,
        delay: float = 0.0,
        retry_after: float = 0.01,
    ) -> None:
        self.answer, self.fault, self.delay, self.retry_after = answer, fault, delay, retry_after
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.times: list[float] = []
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.active = self.most = 0
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may be killed."""


def _handler(state: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][0]["content"]
            with state.lock:
                state.active += 1
                state.most = max(state.most, state.active)
                state.bodies.append(body)
                state.keys.add(self.headers["Authorization"])
                state.times.append(time.monotonic())
                fault = state.fault(prompt, state.asked[prompt])
                state.asked[prompt] += 1
            try:
                time.sleep(state.delay)
                self.fail(fault) if fault else self.succeed(prompt)
            finally:
                with state.lock:
                    state.active -= 1

        def succeed(self, prompt: str) -> None:
            message = {"role": "assistant", "content": state.answer(prompt)}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            if isinstance(message["content"], dict):  # a whole choice
                choice |= message.pop("content")
            with state.lock:
                state.answered[prompt] += 1
            self.send(200, json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}))

        def fail(self, fault: str) -> None:
            if fault == "drop":
                self.close_connection = True
            elif fault == "torn":
                self.close_connection = True
                self.send(200, '{"choices": [', more=100)
            elif fault == "slow":
                time.sleep(1.0)
                self.close_connection = True
            elif fault in (bodies := {"json": '{"choices": [{', "empty": '{"choices": []}', "number": "7"}):
                self.send(200, bodies[fault])
            elif fault == "html":
                self.send(200, "<html>Busy</html>", kind="text/html")
            else:
                self.send(int(fault), json.dumps({"error": {"message": f"fault {fault}"}}))

        def send(self, status: int, text: str, kind: str = "application/json", more: int = 0) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data) + more))
            if status >= 400:
                self.send_header("Retry-After", str(state.retry_after))
            self.end_headers()
            self.wfile.write(data)

    return Handler
