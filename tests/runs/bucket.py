"""A bucket gs://bucket in memory, in place of a real one.

Paths reach it through fsspec, where the package gcsfs would reach the real one. The arrays of
checkpoints go through TensorStore's own client for Google Cloud Storage: it speaks to a server on
this machine that answers from the same memory, as the JSON API is documented.
"""

import functools
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


class Bucket(MemoryFileSystem):
    protocol = ("gs", "gcs")
    store: dict = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://").removeprefix("gcs://"))


def install(monkeypatch):
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    for scheme in ("gs", "gcs"):
        fsspec.register_implementation(scheme, Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "cachable", False)


def install_for_checkpoints(monkeypatch):
    """`install`, and a server for TensorStore."""
    from orbax.checkpoint._src.path import gcs_utils

    install(monkeypatch)
    host = f"127.0.0.1:{server().server_port}"
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://{host}")
    # Credentials are asked for there alone, and it has none.
    monkeypatch.setenv("GCE_METADATA_ROOT", host)
    monkeypatch.setenv("CLOUDSDK_CONFIG", "none")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    # Orbax asks google-cloud-storage, which comes with gcsfs, whether the bucket has real folders.
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)


@functools.cache
def server():
    """One for the process: TensorStore keeps the first address it was given."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return made


class Answers(BaseHTTPRequestHandler):
    """Reads, writes, lists and deletes objects, with generations as far as one writer needs."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms
    wbufsize = -1
    generations: dict = {}

    def log_message(self, *_):
        pass

    def do_GET(self):
        name, query = self._asked()
        if name is None:
            return self._say(404)
        if name == "":
            start = f"{self._bucket()}/{query.get('prefix', '')}"
            found = [{"name": self._short(n)} for n in sorted(Bucket.store) if n.startswith(start)]
            return self._say(200, json.dumps({"items": found}).encode())
        if name not in Bucket.store:
            return self._say(404)
        content = Bucket.store[name].getvalue()
        known = {"x-goog-generation": str(self.generations.get(name, 1))}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self._say(200, content, known)
        first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        known["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._say(206, content[first : last + 1], known)

    def do_POST(self):
        _, query = self._asked()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = f"{self._bucket()}/{query['name']}"
        now = self.generations.get(name, 0) if name in Bucket.store else 0
        if int(query.get("ifGenerationMatch", now)) != now:
            return self._say(412)
        Bucket.store[name] = MemoryFile(None, name, content)
        self.generations[name] = now + 1
        told = {"name": query["name"], "generation": str(now + 1)}
        return self._say(200, json.dumps(told).encode())

    def do_DELETE(self):
        name, _ = self._asked()
        found = Bucket.store.pop(name, None)
        return self._say(404 if found is None else 204)

    def _asked(self):
        """(the object's name in the store, "" for all or None, what stands after ?)."""
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        match = re.fullmatch(r"(?:/upload)?/storage/v1/b/[^/]+/o/?(.*)", url.path)
        if match is None:
            return None, query
        return match[1] and f"{self._bucket()}/{unquote(match[1])}", query

    def _bucket(self):
        return "/" + self.path.partition("/b/")[2].partition("/")[0]

    def _short(self, name):
        return name.removeprefix(f"{self._bucket()}/")

    def _say(self, status, content=b"", headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if content:
            self.wfile.write(content)


def upload(folder, to):
    """Copies a local folder into the bucket."""
    from mrm_jax.paths import located

    for path in folder.rglob("*"):
        if path.is_file():
            target = located(f"{to}/{path.relative_to(folder).as_posix()}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def names(folder):
    """Names of all files below a folder in the bucket."""
    start = os.fspath(folder).removeprefix("gs:/") + "/"
    return [name.removeprefix(start) for name in sorted(Bucket.store) if name.startswith(start)]
