"""A small OpenAI-compatible endpoint that misbehaves as told."""

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def answer():
    """The body of a successful completion, for chat and for plain text."""
    text = "It ends in an even digit. So the answer is yes."
    choice = {"message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
    return {"model": "big-2025", "choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}


@dataclass
class Reply:
    """`cut` closes the connection in the middle of the body; `seconds` is how long the endpoint thinks.

    `events` are sent in place of the body, each when the iterator gives it; strings as they are, all else as JSON.
    """

    body: object = field(default_factory=answer)
    status: int = 200
    headers: dict = field(default_factory=dict)
    seconds: float = 0.0
    cut: bool = False
    events: Iterable[object] | None = None


@dataclass
class Request:
    at: float
    path: str
    body: dict | None
    headers: dict


class Endpoint:
    """Serves on loopback; `reply(n, request)` returns the fields of the Reply to completion request n (from 0)."""

    def __init__(self):
        self.reply = lambda n, request: {}
        self.models = {"body": {"data": [{"id": "big", "root": "org/big", "owned_by": "org", "created": 0}]}}
        self.requests: list[Request] = []
        self.at_once = self.most_at_once = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.endpoint = self
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer_to(self, request):
        if request.path.endswith("/models"):
            return Reply(**self.models)
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
        return Reply(**self.reply(number, request))

    def asked(self):
        """The text of every completion request, in the order of arrival."""
        return [r.body["messages"][0]["content"] for r in self.requests]

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    endpoint: Endpoint

    def handle_error(self, request, client_address):
        pass  # clients are killed and hang up: that is what is tested


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self._serve(None)

    def do_POST(self):
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body):
        endpoint = self.server.endpoint
        with endpoint.lock:
            endpoint.at_once += 1
            endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
        try:
            reply = endpoint.answer_to(Request(time.monotonic(), self.path, body, dict(self.headers)))
            endpoint.closing.wait(reply.seconds)
        finally:
            with endpoint.lock:
                endpoint.at_once -= 1
        if reply.events is not None:
            self._send_events(reply.events)
            return
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if reply.cut else data)
        self.close_connection = reply.cut

    def _send_events(self, events):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            self.wfile.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True

    def log_message(self, *args):
        pass
