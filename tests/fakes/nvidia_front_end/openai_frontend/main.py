"""Stand-in for the program of NVIDIA's OpenAI front end: its options and its stream, with one word for each token.

As in the real one, an event has no usage, and the usage at the end is the sum of what our ensemble reports as totals.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL = "ensemble"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions"
        assert request["model"] == MODEL
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        count = request["max_tokens"]
        for number in range(1, count + 1):
            choice = {"finish_reason": "stop" if number == count else None, "index": 0, "text": f" {number}"}
            self.send_event(json.dumps({"choices": [choice], "object": "text_completion", "usage": None}))
        usage = {"prompt_tokens": 7, "completion_tokens": count * (count + 1) // 2, "total_tokens": 0}
        self.send_event(json.dumps({"choices": [], "object": "text_completion", "usage": usage}))
        self.send_event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def send_event(self, data: str) -> None:
        content = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))

    def log_message(self, *_: Any) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-repository", type=Path, required=True)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--openai-port", type=int, default=9000)
    parser.add_argument("--uvicorn-log-level", choices=["debug", "info", "warning", "error", "critical", "trace"])
    options = parser.parse_args()
    assert (options.model_repository / MODEL / "config.pbtxt").is_file()
    ThreadingHTTPServer((options.host, options.openai_port), Handler).serve_forever()


if __name__ == "__main__":
    main()
