"""launch/tpu_vm.sh against a stand-in for gcloud that runs the workers' commands for real."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from .conftest import ROOT

QUOTA = (
    "ERROR: (gcloud.compute.tpus.tpu-vm.create) RESOURCE_EXHAUSTED: Quota limit "
    "'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone z."
)
FULL = 'ERROR: (gcloud.compute.tpus.tpu-vm.create) There is no more capacity in the zone "z"'
FLAKE = "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255]."
OFFLINE = "ERROR: gcloud crashed (ConnectionError): Max retries exceeded"
DENIED = "ERROR: (gcloud.compute.tpus.tpu-vm.describe) PERMISSION_DENIED: Permission tpu.nodes.get"
DELETE = "gcloud --quiet compute tpus tpu-vm delete mrm --zone=z"
UP = ["create", "status", "scp", "install", "start"]


def said(done: subprocess.CompletedProcess) -> list[str]:
    """What the script itself said, in lines."""
    return [line for line in done.stderr.splitlines() if line.startswith("tpu_vm.sh: ")]


def test_a_run_goes_from_nothing_to_done_with_the_very_words_on_every_worker(cloud):
    words = ("--config", "c.py:mic,mrm=true", "--workdir=gs://b/r", "--config.name=it's $HOME; a*")
    cloud.will(workers=3, polls=["running", "exit 0@2", "running", "exit 0"], node=["404", "READY"])
    with cloud.start(words=words) as process:
        while len(starts := cloud.trained()) < 3:
            time.sleep(0.01)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert starts == ["\n".join(["-m", "mrm_jax.main", *words, ""])] * 3
    assert cloud.verbs() == [*UP, *["status"] * 4, "delete"]
    assert not cloud.exists()


def test_a_queued_resource_is_waited_for_and_deleted_by_force(cloud):
    waiting = ["404", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    cloud.will(queue=waiting, polls=["exit 0"])
    done = cloud.run("--queued", "--spot", "--max_wait=3600")
    assert done.returncode == 0
    assert cloud.verbs() == [*UP, "status", "delete"]
    create, delete = (next(c for c in cloud.calls() if c[1] == v) for v in ("create", "delete"))
    assert create[:3] == ["queued-resources", "create", "mrm"]
    assert {"--node-id=mrm", "--spot", "--valid-until-duration=3600s"} < set(create)
    assert delete == ["queued-resources", "delete", "mrm", "--zone=z", "--force"]


@pytest.mark.parametrize("state", ["PREEMPTED", "404"])
def test_a_vm_lost_in_the_middle_is_made_again_and_trains_on_by_the_same_command(cloud, state):
    cloud.will(node=["404", "READY", "READY", state], polls=["running", "running", "exit 0"])
    done = cloud.run("--spot")
    assert done.returncode == 0
    left = ["delete"] if state == "PREEMPTED" else []
    assert cloud.verbs() == [*UP, "status", *left, *UP, "status", "status", "delete"]
    commands = [call[-1] for call in cloud.calls() if "worker.sh start" in call[-1]]
    (token, *words), (other_token, *same_words) = (line.split()[3:] for line in commands)
    assert words == same_words == ["--config", "c.py", "--workdir", "gs://b/r"]
    assert token != other_token  # so that it is not taken for a start whose connection broke
    assert any("goes on from its last checkpoint" in line for line in said(done))


def test_a_suspended_queued_resource_is_deleted_before_the_next_is_asked_for(cloud):
    cloud.will(queue=["404", "ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED"], polls=["exit 0"])
    done = cloud.run("--queued")
    assert done.returncode == 0
    assert cloud.verbs() == [*UP, "delete", *UP, "status", "delete"]


def test_processes_that_fail_while_their_vm_is_preempted_are_no_failed_training(cloud):
    cloud.will(node=["404", "READY", "READY", "PREEMPTED"], polls=["exit 1", "exit 0"])
    done = cloud.run()
    assert done.returncode == 0
    assert cloud.verbs().count("start") == 2


@pytest.mark.parametrize("end", ["stop", "kill@1"])
def test_a_process_that_was_stopped_or_lost_is_no_success_and_starts_again(cloud, end):
    # Told to stop, the run saves and ends with exit code 0 before its last step.
    cloud.will(workers=2, polls=[end, "running", "running", "exit 0"])
    done = cloud.run()
    assert done.returncode == 0
    assert cloud.verbs().count("start") == 2
    assert cloud.verbs().count("create") == 1


def test_the_words_by_which_a_stopped_run_is_known_are_those_that_training_says():
    said = re.search(r"grep -q '(.*)'", (ROOT / "launch/common.sh").read_text())
    assert said
    sources = (path.read_text() for path in (ROOT / "mrm_jax/train").glob("*.py"))
    assert any(said[1] in source for source in sources)


def test_a_failed_training_ends_with_its_exit_code_and_says_where_its_log_is(cloud):
    cloud.will(workers=2, polls=["running", "exit 3@1"])
    done = cloud.run()
    assert done.returncode == 3
    assert cloud.verbs() == [*UP, *["status"] * 3, "ssh"]
    assert "the end" in done.stderr  # of the training's own log
    assert "the end" in (cloud.home / "tpu_vm_mrm.log").read_text()
    *_, why, exists = said(done)
    assert "exit code 3" in why
    assert "mrm_jax_run/log.txt on each worker of mrm" in why
    assert cloud.exists()
    assert exists.endswith(DELETE)


def test_delete_on_exit_deletes_the_vm_of_a_failed_training(cloud):
    cloud.will(polls=["exit 2"])
    assert cloud.run("--delete_on_exit").returncode == 2
    assert not cloud.exists()


def test_all_workers_have_to_be_heard_before_the_run_is_done(cloud):
    cloud.will(workers=2, polls=["exit 0 but not w-1"])
    done = cloud.run()
    assert done.returncode == 0
    assert cloud.verbs() == [*UP, "status", "status", "delete"]


def test_broken_connections_are_tried_again_and_nothing_starts_twice(cloud):
    cloud.will(ssh=[FLAKE, "ok", f"then {FLAKE}"], scp=[FLAKE], polls=[FLAKE, "running", "kill"])
    done = cloud.run("--restarts=0")
    assert cloud.verbs() == [
        *["create", "status", "scp", "scp", "install", "install", "start", "start"],
        *["status"] * 4,
    ]
    assert [text.count("--workdir") for text in cloud.trained()] == [1]
    assert done.returncode == 1
    assert "try 1 of 5 did not succeed: ERROR" in done.stderr


def test_ctrl_c_leaves_the_training_and_says_so_and_the_same_command_attaches(cloud):
    cloud.will()
    process = cloud.start()
    while "status" not in cloud.verbs()[len(UP) :]:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith(f"this deletes it: {DELETE}")
    assert cloud.exists()

    other = cloud.run(words=("--config", "other.py", "--workdir", "gs://b/other"))
    assert other.returncode == 1
    assert "another command" in other.stderr
    cloud.will(polls=["running", "running", "exit 0"])
    again = cloud.run()
    assert again.returncode == 0
    assert "attached" in again.stderr
    assert cloud.verbs().count("start") == 1
    assert not cloud.exists()


def test_without_quota_one_line_says_so_and_nothing_is_left_or_tried_again(cloud):
    cloud.will(create=[QUOTA])
    done = cloud.run()
    assert done.returncode == 1
    assert cloud.verbs() == ["create"]
    assert said(done)[-1].startswith("tpu_vm.sh: no quota for v5litepod-8 in z: ERROR")
    assert "exists" not in done.stderr


def test_a_queued_resource_that_fails_is_deleted_and_its_reason_told(cloud):
    cloud.will(queue=["404", "PROVISIONING", "FAILED"], reason="Quota limit 'X' has been exceeded.")
    done = cloud.run("--queued")
    assert done.returncode == 1
    assert said(done)[-1].endswith("failed: Quota limit 'X' has been exceeded.")
    assert cloud.verbs() == ["create", "delete"]
    assert not cloud.exists()


def test_room_is_asked_for_until_there_is_some_but_other_errors_a_few_times_only(cloud):
    cloud.will(create=[FULL] * 4 + [OFFLINE] * 9)
    done = cloud.run("--tries=3")
    assert done.returncode == 1
    assert cloud.verbs() == ["create"] * 7
    assert "--queued waits in line" in done.stderr
    assert "in 3 tries" in said(done)[-1]


@pytest.mark.parametrize(
    ("script", "options", "why"),
    [
        ({"node": [DENIED]}, (), "PERMISSION_DENIED"),
        ({"node": ["STOPPED"]}, (), "someone stopped mrm"),
        ({"node": [OFFLINE] * 9}, ("--patience=3",), "no answer about mrm in 3 looks"),
        ({"node": ["CREATING"] * 99}, ("--max_wait=0",), "mrm is CREATING after 0 s"),
    ],
)
def test_what_no_waiting_helps_against_ends_in_one_line(cloud, script, options, why):
    cloud.will(**script)
    done = cloud.run(*options)
    assert done.returncode == 1
    assert any(why in line for line in said(done)[-2:])
    assert cloud.verbs() == []


def test_restarts_are_bounded(cloud):
    cloud.will(node=["404", "READY", "PREEMPTED", "PREEMPTED", "404", "READY", "PREEMPTED"])
    done = cloud.run("--restarts=1")
    assert done.returncode == 1
    assert cloud.verbs().count("create") == 2
    assert "giving up after 1 restarts" in done.stderr
    assert DELETE in said(done)[-1]


def test_a_vm_that_answers_no_more_is_taken_for_lost(cloud):
    cloud.will(polls=["running", *[FLAKE] * 3, "exit 0"])
    done = cloud.run("--patience=3")
    assert done.returncode == 0
    assert cloud.verbs().count("create") == 2
    assert cloud.verbs().count("delete") == 2


def test_a_vm_that_cannot_be_deleted_is_never_passed_over(cloud):
    cloud.will(polls=["exit 0"], delete=[OFFLINE] * 3)
    done = cloud.run("--tries=3")
    assert done.returncode == 1
    assert "the training is done, but mrm could not be deleted" in done.stderr
    assert said(done)[-1].endswith(DELETE)


@pytest.mark.parametrize("options", [("--spot",), ("--queued", "--project=p")])
def test_a_dry_run_prints_the_commands_of_a_real_one_and_runs_nothing(cloud, options):
    dry = cloud.run("--dry_run", *options)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert not cloud.calls()
    assert not list(cloud.home.iterdir())
    printed = [shlex.split(line, comments=True) for line in dry.stdout.splitlines()]
    assert [line[0] for line in printed if line] == ["tar", *["gcloud"] * (len(printed) - 2)]
    cloud.will(polls=["exit 0"])
    assert cloud.run(*options).returncode == 0

    def plain(words):
        text = " ".join(words[-6:] if words[0] == "tar" else words)
        return re.sub(r"start \d+-0|\S*mrm_jax.tgz(?= mrm:)", "_", text)

    done = [plain(["gcloud", "--quiet", "compute", "tpus", *call]) for call in cloud.calls()]
    assert set(map(plain, filter(None, printed[1:]))) == set(done)


def test_what_is_packed_is_in_the_checkout(cloud):
    packed = shlex.split(cloud.run("--dry_run").stdout.splitlines()[0])
    assert all(
        (ROOT / name).exists() for name in packed[packed.index("--exclude=__pycache__") + 1 :]
    )


@pytest.mark.parametrize(
    ("options", "words", "why"),
    [
        (("--zonne=z",), (), "'--zonne' is not an option"),
        ((), (), "nothing to run"),
        (("--zone",), (), "--zone needs a value"),
        (("--name", "--zone", "z"), ("--workdir=gs://b/r",), "--zone is an option"),
        (("--name=--zone",), ("--workdir=gs://b/r",), "--zone is an option"),
        (("--zone=-z",), ("--workdir=gs://b/r",), "--zone is '-z'"),
        (("--version=$(touch F)",), ("--workdir=gs://b/r",), "--version is '$(touch F)'"),
        (("--log=a\nb",), ("--workdir=gs://b/r",), "no control characters"),
        (("--extras=tpu; touch F",), ("--workdir=gs://b/r",), "--extras is 'tpu; touch F'"),
        (("--restarts=", "--tries=3"), ("--workdir=gs://b/r",), "--restarts is ''"),
        (("--poll=a[$(touch F)]",), ("--workdir=gs://b/r",), "--poll is"),
        (("--tries=some",), ("--workdir=gs://b/r",), "a whole number"),
        ((), ("--workdir", "runs/here"), "--workdir has to be in a bucket"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line(cloud, options, words, why):
    done = cloud.run(*options, words=words)
    assert done.returncode == 2
    assert [why in line for line in done.stderr.splitlines()] == [True]
    assert not cloud.calls()
    assert not list(cloud.home.iterdir())


def test_without_gcloud_one_line_says_where_it_is(cloud):
    few = cloud.folder / "few"
    few.mkdir()
    for name in ("basename", "dirname", "bash"):
        (few / name).symlink_to(str(shutil.which(name)))
    cloud.environment["PATH"] = str(few)
    done = cloud.run()
    assert done.returncode == 1
    assert [line[:33] for line in done.stderr.splitlines()] == [
        "tpu_vm.sh: gcloud is not installed"[:33]
    ]
