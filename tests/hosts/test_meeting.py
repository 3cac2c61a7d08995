"""How hosts meet before JAX joins them: in threads of this process, over real sockets."""

import json
import socket
import threading
from contextlib import suppress

import pytest
from refusals import refused

from mrm_jax.errors import UsageError
from mrm_jax.hosts import meeting


@pytest.fixture
def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(meeting, "SOON_SECONDS", 0.6)
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(meeting, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(meeting, "TELL_SECONDS", 0.05)


def met(*hosts, seconds=20.0):
    """What each of the hosts (address, count, index) was told: None or its error."""
    told = ["not over"] * len(hosts)

    def one(number, host):
        try:
            meeting.meet(*host, seconds=seconds, say=lambda text: None)
            told[number] = None
        except UsageError as error:
            told[number] = error

    threads = [threading.Thread(target=one, args=each) for each in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return told


def test_all_hosts_that_fit_together_go_on(port):
    address = f"localhost:{port}"
    assert met(*((address, 4, index) for index in (3, 1, 0, 2))) == [None] * 4


def test_the_port_is_free_again_for_jax(port):
    met((f"localhost:{port}", 2, 1), (f"localhost:{port}", 2, 0))
    socket.create_server(("", port)).close()


@pytest.mark.parametrize(
    ("hosts", "field", "value", "way_out"),
    [
        ([(3, 0), (3, 1), (3, 1)], "process_index", 1, "Give each its own, from 0 to 2."),
        ([(2, 0), (3, 1)], "process_count", 2, "it must be the same."),
        ([(2, 0), (3, 2)], "process_count", 2, "it must be the same."),
    ],
)
def test_hosts_that_do_not_fit_are_all_told_why(port, hosts, field, value, way_out):
    told = met(*((f"127.0.0.1:{port}", *host) for host in hosts))
    assert len(set(map(str, told))) == 1
    for error in told:
        with refused(f"config.mesh.{field}", value, way_out=way_out):
            raise error


def test_a_port_that_is_taken_is_named_by_host_0(port):
    with socket.create_server(("", port)):
        (told,) = met((f"localhost:{port}", 2, 0))
    assert told.field == "config.mesh.coordinator"
    assert f"port {port} is in use on this machine (host 0). Choose another port" in str(told)


def test_a_second_host_0_is_named(port):
    told = sorted(met(*[(f"localhost:{port}", 2, 0)] * 2, seconds=1.5), key=str)
    assert str(told[0]).startswith("Host 1 of 2 did not come to")
    assert [error.field for error in told] == [
        "config.mesh.coordinator",
        "config.mesh.process_index",
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_a_name_that_is_not_known_is_said_soon(port, index):
    (told,) = met((f"no-such-host.invalid:{port}", 2, index))
    assert told.field == "config.mesh.coordinator"
    assert "no machine of that name is known here" in str(told)


def test_an_address_of_another_machine_is_no_place_for_host_0(port):
    (told,) = met((f"192.0.2.1:{port}", 2, 0))  # an address that no machine has
    assert (told.field, told.value) == ("config.mesh.coordinator", f"192.0.2.1:{port}")
    assert "at which host 0 (this process) does not reach" in str(told)


def test_what_answers_and_is_not_host_0_is_said_soon(port):
    done: list[bool] = []
    with socket.create_server(("", port)) as server:

        def answer():
            while True:
                with suppress(OSError), server.accept()[0] as link:
                    link.sendall(b"SSH-2.0\n")
                if done:
                    return

        thread = threading.Thread(target=answer)
        thread.start()
        (told,) = met((f"localhost:{port}", 2, 1))
        done.append(True)
        socket.create_connection(("localhost", port)).close()
        thread.join()
    assert "is not host 0 waiting for the others: another program has the port" in str(told)


def test_a_host_0_that_does_not_come_is_waited_for_and_named(port):
    (told,) = met((f"localhost:{port}", 2, 1), seconds=0.5)
    assert (told.field, told.value) == ("config.mesh.coordinator", f"localhost:{port}")
    assert str(told).startswith("Host 0 did not answer")
    assert "Connection refused" in str(told)


def test_strangers_and_hosts_that_start_again_do_no_harm(port):
    address, told = f"localhost:{port}", []
    first = threading.Thread(target=lambda: told.extend(met((address, 3, 0))))
    first.start()
    for said in (b"GET / HTTP/1.1\r\n", b"[" * 5000, b'{"index": "1"}\n', b"\xff\n", None):
        while True:
            try:
                link = socket.create_connection(("localhost", port))
                break
            except ConnectionRefusedError:
                continue
        with link:  # the last one was a host that was killed meanwhile
            hello = {"index": 1, "count": 3, "name": "killed"}
            link.sendall(said or (json.dumps(hello) + "\n").encode())
    assert met((address, 3, 1), (address, 3, 2)) == [None, None]
    first.join(30)
    assert told == [None]
