"""A bucket gs://bucket in memory, in place of the package that would reach a real one."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


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


def upload(folder, to):
    """Copies a local folder into the bucket."""
    from mrm_jax.paths import located

    for path in folder.rglob("*"):
        if path.is_file():
            target = located(f"{to}/{path.relative_to(folder).as_posix()}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
