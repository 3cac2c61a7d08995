"""A small Hugging Face hub on this machine: what huggingface_hub asks of the real one."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "refs/pr/2": "c" * 40}
"""Every repository's revisions."""


@contextmanager
def hub(files: Mapping[str, Mapping[str, bytes]], gated: str, token: str) -> Iterator[str]:
    """The address of a hub with `files` (ORG/NAME -> file -> content), the same in all revisions.
    `gated`: one of them, which asks for the token."""

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def refuse(self, status: int, code: str) -> None:
            self.reply(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"{code} here"})

        def reply(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            asked = re.fullmatch(r"/(\w+/[\w.-]+)/resolve/(.+?)/([^/]+)", path.replace("%2F", "/"))
            listed = re.match(r"/api/models/(\w+/[\w.-]+)", path)
            repository = (asked or listed)[1] if asked or listed else ""  # type: ignore[index]
            if repository not in files:
                return self.refuse(404, "RepoNotFound")
            if repository == gated and self.headers.get("Authorization") != f"Bearer {token}":
                return self.refuse(403, "GatedRepo")
            if asked is None:
                return self.listing(files[repository])
            revision, name = asked[2], asked[3]
            if revision not in (*COMMITS, *COMMITS.values()):
                return self.refuse(404, "RevisionNotFound")
            if name not in files[repository]:
                return self.refuse(404, "EntryNotFound")
            content = files[repository][name]
            digest = hashlib.sha256(content).hexdigest()
            headers = {
                "ETag": f'"{digest}"',
                "X-Linked-Etag": f'"{digest}"',
                "X-Repo-Commit": COMMITS.get(revision, revision),
            }
            return self.reply(200, content, headers)

        def listing(self, names: Mapping[str, bytes]) -> None:
            tree = [{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in names]
            below = [{"rfilename": n} for n in names]
            whole = {"id": "x/y", "sha": COMMITS["main"], "siblings": below}
            found = tree if "/tree/" in self.path else whole
            self.reply(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
