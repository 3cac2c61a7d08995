"""A stand-in for gcloud: one TPU VM in a folder, with what is to happen to it in `script`.

`script` is a dict of lists of replies, of which every call takes the next: `create`, `delete`,
`ssh`, `scp` ("ok", or an error's text; after "then " it comes once the work is done), `node` and
`queue` (states that describe tells, "404" of a VM that has vanished; without one, as the VM is) and
`polls` (what the workers' processes do just before they are asked how they are, see `act`). Every
call is recorded in `calls`, a line each, with a tab between words. Commands by ssh are really run,
in a folder for each worker.

Imports little, not even json: it starts some hundred times in the tests.
"""

import os
import sys
import time

CLOUD = os.environ["STAND_IN_CLOUD"]
VM = f"{CLOUD}/vm"
MISSING = "ERROR: (gcloud) NOT_FOUND: Resource 'projects/p/locations/z/nodes/mrm' was not found"
DEAD = ("PREEMPTED", "TERMINATED", "SUSPENDED", "FAILED")


def read(path, default=""):
    if not os.path.exists(path):
        return default
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


SCRIPT = eval(read(f"{CLOUD}/script"))


def following(name, default):
    """The next reply of a list of the script."""
    n = int(read(f"{CLOUD}/{name}.position", "0"))
    replies = SCRIPT.get(name, [])
    if n >= len(replies):
        return default
    write(f"{CLOUD}/{name}.position", str(n + 1))
    return replies[n]


def fail(text, code=1):
    print(text, file=sys.stderr)
    sys.exit(code)


def workers():
    """The workers' homes."""
    return sorted(f"{CLOUD}/{name}" for name in os.listdir(CLOUD) if name.startswith("w-"))


def live(home):
    return os.path.exists(f"{home}/live")


def kill(home):
    group = read(f"{home}/mrm_jax_run/group")
    if group and live(home):
        os.killpg(int(group), 9)
        os.remove(f"{home}/live")


def vanish():
    import shutil

    for home in workers():
        kill(home)
        shutil.rmtree(home)
    if os.path.exists(VM):
        os.remove(VM)


def create():
    reply = following("create", "ok")
    if reply != "ok":
        fail(reply)
    write(VM, "READY")
    for i in range(SCRIPT.get("workers", 1)):
        os.mkdir(f"{CLOUD}/w-{i}")


def delete():
    reply = following("delete", "ok")
    if reply != "ok":
        fail(reply)
    if not os.path.exists(VM):
        fail(MISSING)
    vanish()


def describe(kind, wanted):
    if "failedData" in wanted:
        print(SCRIPT["reason"])
        return
    state = following(kind, read(VM, "404"))
    if kind == "queue" and state == "READY":
        state = "ACTIVE"
    if state == "404":
        vanish()
        fail(MISSING)
    if state.startswith("ERROR"):
        fail(state)
    if state in DEAD and os.path.exists(VM):
        for home in workers():
            kill(home)
        write(VM, state)
    print(state if kind == "queue" else f"{state}\t{SCRIPT.get('workers', 1)}")


def act(action):
    """ "running": nothing happens; "exit 1@0": the process of worker 0 (without @, of every one)
    ends with 1; "stop": it was told to stop, and saved; "kill": it vanishes.
    """
    what, _, which = action.partition("@")
    for home in workers():
        if live(home) and (not which or home.endswith(f"w-{which}")):
            if what == "kill":
                kill(home)
            elif what != "running":
                write(f"{home}/verdict", what.removeprefix("exit "))  # a pipe, which it reads
                wait_for(f"{home}/mrm_jax_run/code")
                os.remove(f"{home}/live")


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.002)


def ssh(command):
    if "worker.sh status" not in command:
        reply = following("ssh", "ok")
    elif any(map(live, workers())):
        reply = following("polls", "running")
    else:
        reply = "ok"
    reply, _, silent = reply.partition(" but not ")  # "exit 0 but not w-1": it cannot be heard
    if reply.startswith("ERROR"):
        fail(reply, 255)
    if "worker.sh status" in command and reply != "ok":
        act(reply)
    code = 0
    for home in workers():
        if not silent or not home.endswith(silent):
            code = max(code, run(command, home))
    if "worker.sh start" in command:
        for home in workers():
            wait_for(f"{home}/live")
    if reply.startswith("then "):
        fail(reply.removeprefix("then "), 255)
    sys.exit(code)


def run(command, home):
    """Exit code of a command on a worker."""
    path = f"{os.environ['STAND_IN_WORKER']}:{os.environ['PATH']}"
    environment = {"HOME": home, "HOSTNAME": os.path.basename(home), "PATH": path}
    process = os.fork()
    if process == 0:
        os.chdir(home)
        os.execve("/bin/bash", ["bash", "-c", command], environment)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def scp(source):
    reply = following("scp", "ok")
    if reply != "ok":
        fail(reply, 255)
    for home in workers():
        with open(source, "rb") as file, open(f"{home}/mrm_jax.tgz", "wb") as copy:
            copy.write(file.read())


def main(words):
    with open(f"{CLOUD}/calls", "a") as calls:
        calls.write("\t".join(words) + "\n")
    kind, verb = words[3], words[4]
    flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    if verb == "create":
        create()
    elif verb == "delete":
        delete()
    elif verb == "describe":
        describe("queue" if kind == "queued-resources" else "node", flags["--format"])
    elif verb == "scp":
        scp(words[5])
    else:
        ssh(flags["--command"])


main(sys.argv[1:])
