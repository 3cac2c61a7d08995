"""How hosts meet before JAX joins them: each says hello to host 0, at the coordinator's address and
before the coordinator is there, so that a wrong start is told in one line and in seconds.

JAX itself waits for minutes whatever is wrong, and crashes where the port is taken. What passes is
lines: host 0 sends `GREETING`; the other sends {"index", "count", "name"}; host 0 sends the parts
of the error that says what is wrong, null for nothing, once all are there or something is.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from mrm_jax.errors import UsageError

GREETING = "mrm_jax: hosts meet here"
SOON_SECONDS = 10.0
"""How long what is most likely wrong for good is tried again: a name that is not known, another
program at the address, an address of host 0 at which it does not reach itself."""
TELL_SECONDS = 15.0
"""How long one waits for the others without a word about it."""
ANSWER_SECONDS = 5.0
"""How long a connection and the greeting over it may take."""
POLL_SECONDS = 0.1
_LINE_BYTES = 4096  # what a stranger sends without an end is not read

Say = Callable[[str], None]


@dataclass
class _Caller:
    """Who has connected to host 0."""

    link: socket.socket
    said: bytes = b""
    index: int | None = None
    name: str = ""


@dataclass(frozen=True)
class _Place:
    """The coordinator's address, and until when (`time.monotonic`) and with how many one waits."""

    address: str
    count: int
    seconds: float
    say: Say
    began: float = field(default_factory=time.monotonic)

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def over(self) -> bool:
        return time.monotonic() - self.began > self.seconds

    def soon_over(self) -> bool:
        return time.monotonic() - self.began > min(SOON_SECONDS, self.seconds)


def meet(address: str, count: int, index: int, *, seconds: float, say: Say = print) -> None:
    """Returns on every host once all `count` of them are there, host 0's a moment before the
    others'. `say` is told on whom one waits.

    Raises UsageError, on all that have come: two with one index, other counts, an address that is
    not host 0's, a port that is taken, or hosts that did not come within `seconds`.
    """
    place = _Place(address, count, seconds, say)
    if not 0 < place.port < 65536:
        raise UsageError.at("config.mesh.coordinator", f" is {address}; a port is from 1 to 65535.")
    if index == 0:
        _host(place)
    else:
        _visit(place, index)


def _me() -> str:
    return f"process {os.getpid()} of {socket.gethostname()}"


# --- Host 0 ---------------------------------------------------------------------------------------


def _host(place: _Place) -> None:
    me, done = uuid.uuid4().hex, threading.Event()
    trouble: list[UsageError] = []
    with closing(_listener(place)) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        threading.Thread(target=_reach_myself, args=(place, me, trouble, done), daemon=True).start()
        callers: list[_Caller] = []
        wrong: UsageError | None = None
        told = False
        while wrong is None and len(_present(callers)) < place.count - 1:
            for key, _ in selector.select(POLL_SECONDS):
                wrong = wrong or _hear(key, listener, selector, callers, place, me)
            missing = sorted(set(range(1, place.count)) - _present(callers))
            if trouble and not _present(callers):
                wrong = wrong or trouble[0]
            elif place.over() and missing:
                wrong = wrong or UsageError(
                    f"Host {_listed(missing)} of {place.count} did not come to {place.address} "
                    f"within {place.seconds:g} s:",
                    "start the same command on all of them, or set config.mesh.hosts=off.",
                    field="config.mesh.coordinator",
                    value=place.address,
                )
            elif missing and not told and time.monotonic() - place.began > TELL_SECONDS:
                told = True
                place.say(f"waiting for host {_listed(missing)} of {place.count} ...")
        done.set()
        for caller in callers:
            with suppress(OSError):
                caller.link.sendall((json.dumps(wrong and wrong.parts()) + "\n").encode())
            caller.link.close()
    if wrong:
        raise wrong


def _listener(place: _Place) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():  # at all addresses, as JAX's service will
            return socket.create_server(
                ("", place.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        return socket.create_server(("", place.port), backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise UsageError.at(
                "config.mesh.coordinator",
                f" is {place.address}, but this process cannot listen at port {place.port}: "
                f"{error.strerror or error}.",
                "Choose another port on all hosts.",
            ) from error
    with suppress(OSError, _StrangerError), _connected("localhost", place.port):
        raise UsageError.at(
            "config.mesh.process_index",
            f" is 0 on two processes: another one waits on this machine at port {place.port} "
            "already.",
            "Give each process its own index, each run its own port.",
        )
    raise UsageError.at(
        "config.mesh.coordinator",
        f" is {place.address}, but port {place.port} is in use on this machine (host 0).",
        "Choose another port on all hosts, or end what uses it.",
    )


def _hear(
    key: selectors.SelectorKey,
    listener: socket.socket,
    selector: selectors.BaseSelector,
    callers: list[_Caller],
    place: _Place,
    me: str,
) -> UsageError | None:
    """Takes in what came; what is wrong with it, if anything."""
    if key.fileobj is listener:
        with suppress(OSError):
            link, _ = listener.accept()
            link.settimeout(1.0)
            link.sendall((GREETING + "\n").encode())
            callers.append(_Caller(link))
            selector.register(link, selectors.EVENT_READ, callers[-1])
        return None
    caller: _Caller = key.data
    content = b""
    with suppress(OSError):
        content = caller.link.recv(_LINE_BYTES)
    caller.said += content
    if content and b"\n" not in caller.said and len(caller.said) < _LINE_BYTES:
        return None
    hello = _hello(caller.said) if content and caller.index is None else None
    if hello is None or hello["name"] == me:  # gone, a stranger, or this process itself
        selector.unregister(caller.link)
        caller.link.close()
        callers.remove(caller)
        return None
    wrong = _wrong(hello, callers, place)
    caller.index, caller.name, caller.said = hello["index"], hello["name"], b""
    return wrong


def _hello(said: bytes) -> dict[str, Any] | None:
    try:
        hello = json.loads(said.partition(b"\n")[0])
        good = all(type(hello[name]) is int for name in ("index", "count"))
        return {**hello, "name": " ".join(str(hello["name"]).split())[:200]} if good else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _wrong(hello: dict[str, Any], callers: Sequence[_Caller], place: _Place) -> UsageError | None:
    index, count, name = hello["index"], hello["count"], hello["name"]
    if count != place.count:
        return UsageError.of(
            "config.mesh.process_count",
            place.count,
            f" on host 0 and {count} on host {index} ({name})",
            "it must be the same.",
        )
    other = _me() if index == 0 else next((c.name for c in callers if c.index == index), None)
    if other is not None:
        return UsageError.of(
            "config.mesh.process_index",
            index,
            f" on two processes: {other}, and {name}.",
            f"Give each its own, from 0 to {count - 1}.",
        )
    return None


def _present(callers: Sequence[_Caller]) -> set[int]:
    return {caller.index for caller in callers if caller.index is not None}


def _listed(hosts: Sequence[int]) -> str:
    return ", ".join(map(str, hosts[:8])) + (" ..." if len(hosts) > 8 else "")


def _reach_myself(place: _Place, me: str, trouble: list[UsageError], done: threading.Event) -> None:
    """Notes in `trouble` what keeps this host from reaching itself at the coordinator's address."""
    why = ""
    while not done.is_set() and not (why and place.soon_over()):
        try:
            with _connected(place.host, place.port) as link:
                hello = {"index": 0, "count": place.count, "name": me}
                link.sendall((json.dumps(hello) + "\n").encode())
                link.settimeout(place.seconds)
                answer = _line(link)  # from another host 0; this one closes, or says null
                if answer and (wrong := json.loads(answer)):
                    trouble.append(UsageError.told(wrong))
            return
        except (OSError, ValueError, _StrangerError) as error:
            why = _why(error)
        done.wait(5 * POLL_SECONDS)
    trouble.append(
        UsageError(
            f"config.mesh.coordinator is {place.address}, at which host 0 (this process) does not "
            f"reach itself: {why}.",
            "Give an address of this machine that the others reach, or start host 0 on the other.",
            field="config.mesh.coordinator",
            value=place.address,
        )
    )


# --- The others -----------------------------------------------------------------------------------


class _StrangerError(Exception):
    """Something answers that is not host 0 waiting for the others."""


def _visit(place: _Place, index: int) -> None:
    hello = json.dumps({"index": index, "count": place.count, "name": _me()}) + "\n"
    told, answer = False, ""
    while not answer:
        try:
            with _connected(place.host, place.port) as link:
                link.sendall(hello.encode())
                link.settimeout(max(1.0, place.began + place.seconds + 30 - time.monotonic()))
                answer = _line(link)
            why = "it closed the connection"
        except (OSError, _StrangerError) as error:
            why = _why(error)
            final = isinstance(error, socket.gaierror | _StrangerError)
            if final and place.soon_over():
                raise UsageError.at(
                    "config.mesh.coordinator", f" is {place.address}: {why}."
                ) from error
        if answer:
            break
        if place.over():
            raise UsageError(
                f"Host 0 did not answer at config.mesh.coordinator={place.address} within "
                f"{place.seconds:g} s: {why}.",
                "Start the same command on all hosts, or set config.mesh.hosts=off.",
                field="config.mesh.coordinator",
                value=place.address,
            )
        if not told and time.monotonic() - place.began > TELL_SECONDS:
            told = True
            place.say(f"waiting for host 0 at {place.address}: {why} ...")
        time.sleep(5 * POLL_SECONDS)
    if wrong := json.loads(answer):
        raise UsageError.told(wrong)
    _wait_for_service(place)


def _wait_for_service(place: _Place) -> None:
    """JAX's own first try would fail, and its next comes a second later."""
    for _ in range(int(SOON_SECONDS / POLL_SECONDS)):
        with suppress(OSError), socket.create_connection((place.host, place.port), 1.0):
            return
        time.sleep(POLL_SECONDS)


@contextmanager
def _connected(host: str, port: int) -> Iterator[socket.socket]:
    """A connection over which host 0 has greeted. Raises OSError or _StrangerError."""
    with socket.create_connection((host, port), ANSWER_SECONDS) as link:
        try:
            greeting = _line(link)
        except (TimeoutError, ValueError):
            greeting = ""
        if greeting != GREETING:
            raise _StrangerError(
                "what answers there is not host 0 waiting for the others: another program has the "
                "port, or all that belong to the run are there already (is one "
                "config.mesh.process_index given twice?)"
            )
        yield link


def _line(link: socket.socket) -> str:
    """The next line, "" where the connection is closed before. Raises OSError."""
    said = b""
    while b"\n" not in said and len(said) < _LINE_BYTES:
        content = link.recv(1)
        if not content:
            return ""
        said += content
    return said.partition(b"\n")[0].decode("utf-8", "replace")


def _why(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"no machine of that name is known here ({error.strerror or error})"
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error) or type(error).__name__).rstrip(".")
