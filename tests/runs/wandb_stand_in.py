"""A small Weights & Biases on this machine: what its package asks of the real one while a run is
trained, and resumed."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4


@contextmanager
def server(*, refuses: bool = False) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """(address, runs by id): `rows` as they were logged, `exit` code, `name`, `group`, whether it
    is `preempting`. refuses: it lets nobody in."""
    runs: dict[str, dict[str, Any]] = {}

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            asked = json.loads(body or b"{}")
            if self.path.endswith("/graphql"):
                found = graphql(asked.get("operationName"), asked.get("variables", {}))
            else:
                found = stream(self.path.split("/")[-2], asked)
            content = json.dumps(found).encode()
            self.send_response(401 if refuses else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def graphql(operation: str, given: dict[str, Any]) -> dict[str, Any]:
        if operation == "RunResumeStatus":
            bucket = tail(given["name"]) if given["name"] in runs else None
            model = {"id": "m", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}
            return {"data": {"model": model}}
        if operation == "UpsertBucket":
            known = runs.setdefault(given["name"], {"rows": []})
            if given.get("displayName"):
                known |= {"name": given["displayName"], "group": given.get("groupName")}
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": given["name"], "displayName": "", "config": "{}"}
            bucket |= {"project": project, "historyLineCount": len(known["rows"])}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        return {"data": None, "errors": [{"message": f"{operation} is not here"}]}

    def tail(name: str) -> dict[str, Any]:
        rows = runs[name]["rows"]
        lines = {"logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0}
        last = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]])}
        texts = {"summaryMetrics": "{}", "eventsTail": "[]", "config": "{}", "notes": ""}
        begun = {"wandbConfig": json.dumps({"t": 1})}
        return {"id": "b", "name": name, "displayName": "", "tags": [], **lines, **last} | {
            **texts,
            **begun,
        }

    def stream(name: str, sent: dict[str, Any]) -> dict[str, Any]:
        history = (sent.get("files") or {}).get("wandb-history.jsonl")
        if history:
            rows = [json.loads(line) for line in history["content"]]
            runs[name]["rows"][history["offset"] :] = rows
        if "exitcode" in sent:
            runs[name]["exit"] = sent["exitcode"]
        runs[name]["preempting"] = runs[name].get("preempting", False) or "preempting" in sent
        return {}

    here = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=here.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{here.server_port}", runs
    finally:
        here.shutdown()
        here.server_close()
        thread.join()
