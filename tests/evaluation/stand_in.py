"""A model server whose answers are known without a model: `stand_in.py PORT FOLDER VERSION BEHAVIOUR`.

The score of a row's positive class is its first number. It writes its process id, and each request's body, into FOLDER.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PORT, FOLDER, VERSION, BEHAVIOUR = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is one packet: of two, the second would wait for the first to be acknowledged.
    wbufsize = 1 << 16

    def do_GET(self) -> None:
        self.answer(200, {"ready": True})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        with LOCK, (FOLDER / "requests.jsonl").open("ab") as requests:
            requests.write(body + b"\n")
        if BEHAVIOUR == "dies":
            print("out of memory, says the server", flush=True)
            os._exit(3)
        if BEHAVIOUR == "hangs":
            threading.Event().wait()
        if BEHAVIOUR == "fails":
            self.answer(500, {"error": "the weights are wrong"})
            return
        self.answer(200, inference(json.loads(body)))

    def answer(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def inference(request: dict[str, Any]) -> dict[str, Any]:
    tensor = request["inputs"][0]
    rows = tensor["shape"][0]
    width = len(tensor["data"]) // rows if rows else 1
    first = [float(value) for value in tensor["data"][::width]]
    labels: list[Any] = [int(value >= 0.5) for value in first]
    scores = [score for value in first for score in (1 - value, value)]
    if BEHAVIOUR == "text":
        labels = ["benign" if label else "malignant" for label in labels]
    if BEHAVIOUR == "unknown":
        labels = [7] * rows
    if BEHAVIOUR == "nan":
        scores[0] = float("nan")
    if BEHAVIOUR == "worse":
        labels = [1 - label if row % 4 == 0 else label for row, label in enumerate(labels)]
    if BEHAVIOUR == "short":
        rows, labels, scores = rows - 1, labels[1:], scores[2:]
    outputs = [
        {"name": "predict", "shape": [rows], "datatype": "INT64", "data": labels},
        {"name": "predict_proba", "shape": [rows, 2], "datatype": "FP64", "data": scores},
        {"name": "value", "shape": [rows, 1], "datatype": "FP64", "data": first},
    ]
    wanted = {output["name"] for output in request["outputs"]}
    version = "9.9.9" if BEHAVIOUR == "other-version" else VERSION
    return {"model_version": version, "outputs": [output for output in outputs if output["name"] in wanted]}


def main() -> None:
    if BEHAVIOUR == "stubborn":
        # Neither it nor its child hears SIGTERM, and the child leaves the process group.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(
            [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
            start_new_session=True,
        )
        (FOLDER / "child.pid").write_text(str(child.pid))
    (FOLDER / "server.pid").write_text(str(os.getpid()))
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()


main()
