"""launch/tpu: each script against a cloud that records what it is asked."""

import os
import re
import signal
import tarfile
import time
from collections.abc import Callable

import pytest

from fake_cloud import REPO, Cloud, commands
from fake_gcloud import end_run

PLACE = ("--name", "pod", "--zone", "us-east5-a")
TRAIN = ("--config", "configs/mini.py", "--workdir", "gs://bucket/run")
CREATE = ("--type", "v5p-128")
ALL = [
    ("create.sh", CREATE),
    ("setup.sh", ()),
    ("start.sh", TRAIN),
    ("follow.sh", ()),
    ("status.sh", ()),
    ("stop.sh", ()),
    ("delete.sh", ()),
    ("resume.sh", (*CREATE, *TRAIN)),
]


def verbs(calls: list[list[str]]) -> list[str]:
    """The calls in short: what changes something, ssh by what it runs on the machines."""
    names = []
    for call in calls:
        command = next((arg for arg in call if arg.startswith("--command=")), "")
        worker = re.search(r"worker\.sh (\w+)", command)
        names.append(worker[1] if worker else call[0])
    return [name for name in names if name not in ("describe", "status", "scp")]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def status(cloud: Cloud) -> str:
    return cloud.run("tpu/status.sh", *PLACE).stdout.strip()


def set_up(cloud: Cloud, machines: tuple[int, int] = (1, 1)) -> None:
    done = cloud.run("tpu/setup.sh", *PLACE, machines=machines)
    assert done.returncode == 0, done.stderr
    cloud.calls()


# Asking for machines.


@pytest.mark.parametrize(
    ("kind", "accelerator", "runtime"),
    [
        ("v4-128", "v4-128", "tpu-ubuntu2204-base"),
        ("v5e-256", "v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5litepod-256", "v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_each_type_is_created_with_its_own_runtime(cloud, kind, accelerator, runtime):
    cloud.states("ABSENT")
    assert cloud.run("tpu/create.sh", *PLACE, "--type", kind).returncode == 0
    assert cloud.calls()[1] == [
        "create",
        "pod",
        "--zone=us-east5-a",
        "--quiet",
        "--node-id=pod",
        f"--accelerator-type={accelerator}",
        f"--runtime-version={runtime}",
    ]


def test_several_slices_are_nodes_of_one_spot_request(cloud):
    cloud.states("ABSENT")
    cloud.run(
        "tpu/create.sh",
        *(*PLACE, *CREATE, "--project=mine", "--slices", "4", "--spot", "--runtime", "other"),
        *("--create-arg", "--internal-ips", "--create-arg=--labels=a=b"),
    )
    create = cloud.calls()[1]
    assert {"--node-count=4", "--node-prefix=pod", "--spot", "--project=mine"} < set(create)
    assert {"--runtime-version=other", "--internal-ips", "--labels=a=b"} < set(create)
    assert not any(arg.startswith("--node-id") for arg in create)


@pytest.mark.parametrize("state", ["ACTIVE", "WAITING_FOR_RESOURCES"])
def test_creating_what_exists_says_so_and_changes_nothing(cloud, state):
    cloud.states(state)
    done = cloud.run("tpu/create.sh", *PLACE, *CREATE)
    assert done.returncode == 0
    assert done.stderr == f"pod exists already: {state}\n"
    assert verbs(cloud.calls()) == []


def test_creating_what_was_taken_away_names_the_scripts_that_help(cloud):
    cloud.states("SUSPENDED")
    done = cloud.run("tpu/create.sh", *PLACE, *CREATE)
    assert done.returncode == 2
    assert "SUSPENDED" in done.stderr and "resume.sh" in done.stderr


def test_waiting_lasts_until_the_machines_are_there(cloud):
    cloud.states("ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = cloud.run("tpu/create.sh", *PLACE, *CREATE, "--wait")
    assert done.returncode == 0
    assert [call[0] for call in cloud.calls()] == ["describe", "create", *["describe"] * 3]
    cloud.states("ABSENT", "PROVISIONING", "FAILED")
    assert cloud.run("tpu/create.sh", *PLACE, *CREATE, "--wait").returncode == 1


def test_not_knowing_the_state_is_not_taken_for_absence(cloud):
    cloud.states("BROKEN")
    for script, args in (("create.sh", CREATE), ("delete.sh", ()), ("status.sh", ())):
        done = cloud.run(f"tpu/{script}", *PLACE, *args)
        assert done.returncode == 1
        assert "no network" in done.stderr
    assert verbs(cloud.calls()) == []


def test_deleting_takes_the_nodes_along_and_is_harmless_again(cloud):
    cloud.run("tpu/delete.sh", *PLACE)
    assert cloud.calls()[1] == ["delete", "pod", "--zone=us-east5-a", "--quiet", "--force"]
    cloud.states("ABSENT")
    done = cloud.run("tpu/delete.sh", *PLACE)
    assert (done.returncode, verbs(cloud.calls())) == (0, [])


# The machines.


def test_setup_copies_this_repository_to_every_machine_and_installs_it(cloud):
    set_up(cloud, machines=(2, 2))
    for node in range(2):
        for worker in range(2):
            home = cloud.home(node, worker)
            assert (home / "lavit_jax" / "lavit_jax" / "cli" / "train.py").exists()
            assert (home / "lavit_jax" / "configs" / "mini.py").exists()
            assert "lavit_jax[tpu]" in (home / "pip.log").read_text()
            assert not (home / "lavit_jax.new").exists()
            with tarfile.open(home / "lavit_jax.tar.gz") as packed:
                assert not [name for name in packed.getnames() if "__pycache__" in name]


def test_setup_again_replaces_the_code_and_installs_nothing(cloud):
    set_up(cloud)
    gone = cloud.home() / "lavit_jax" / "lavit_jax" / "gone.py"
    gone.touch()
    set_up(cloud)
    assert not gone.exists()
    assert len((cloud.home() / "pip.log").read_text().splitlines()) == 1


def test_setup_refuses_while_training_runs(cloud):
    set_up(cloud)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    done = cloud.run("tpu/setup.sh", *PLACE)
    assert done.returncode == 2
    assert "training is running" in done.stderr
    assert status(cloud) == "ACTIVE running"


def test_start_hands_every_argument_over_as_it_was(cloud):
    set_up(cloud, machines=(1, 2))
    odd = '--config.name=it\'s "a $HOME" & `name`;\\'
    done = cloud.run("tpu/start.sh", *PLACE, *TRAIN, "--", odd, "--config.seed=1", machines=(1, 2))
    assert done.returncode == 0
    for worker in range(2):
        home = cloud.home(0, worker)
        until((home / "environment").exists)
        arguments = (home / "arguments").read_text().splitlines()
        assert arguments == ["train", *TRAIN, odd, "--config.seed=1"]


def test_training_gets_the_flags_and_no_cpu_to_fall_back_on(cloud):
    set_up(cloud)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    until((cloud.home() / "environment").exists)
    flags, platforms = (cloud.home() / "environment").read_text().splitlines()
    assert "--xla_tpu_enable_latency_hiding_scheduler=true" in flags
    assert platforms.startswith("tpu")


def test_starting_again_keeps_the_run_and_never_starts_another_beside_it(cloud):
    set_up(cloud)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    pid = (cloud.home() / "lavit_run" / "pid").read_text()
    again = cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    assert (again.returncode, "running already" in again.stdout) == (0, True)
    other = cloud.run("tpu/start.sh", *PLACE, *TRAIN, "--", "--config.seed=2")
    assert other.returncode == 2
    assert "running something else" in other.stderr
    assert (cloud.home() / "lavit_run" / "pid").read_text() == pid


def test_start_before_setup_says_what_is_missing(cloud):
    set_up(cloud)
    (cloud.home() / "lavit_venv" / "bin" / "lavit").unlink()
    done = cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    assert done.returncode == 2
    assert "setup.sh" in done.stderr


def test_stop_lets_training_save_and_start_goes_on(cloud):
    set_up(cloud)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    log = cloud.home() / "lavit_run" / "train.log"
    until(lambda: "lavit: run" in log.read_text())
    cloud.plan("run")
    assert cloud.run("tpu/stop.sh", *PLACE).returncode == 0
    assert "saved" in log.read_text()
    assert status(cloud) == "ACTIVE stopped"
    assert cloud.run("tpu/stop.sh", *PLACE).returncode == 0
    assert cloud.run("tpu/start.sh", *PLACE, *TRAIN).returncode == 0
    assert status(cloud) == "ACTIVE running"


def test_all_machines_are_told_to_stop_before_any_is_waited_for(cloud):
    set_up(cloud, machines=(1, 2))
    cloud.run("tpu/start.sh", *PLACE, *TRAIN, machines=(1, 2))
    cloud.calls()
    cloud.run("tpu/stop.sh", *PLACE, machines=(1, 2))
    assert verbs(cloud.calls()) == ["stop", "wait"]


def test_what_does_not_stop_is_killed(cloud):
    set_up(cloud)
    cloud.plan("hang")
    cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    log = cloud.home() / "lavit_run" / "train.log"
    until(lambda: "lavit: hang" in log.read_text())
    assert cloud.run("tpu/stop.sh", *PLACE, LAVIT_STOP_SECONDS="2").returncode == 0
    assert status(cloud) == "ACTIVE stopped"


@pytest.mark.parametrize(
    ("plan", "said"), [("exit 0", "done"), ("exit 3", "failed 3"), ("stop", "interrupted")]
)
def test_status_tells_how_training_ended(cloud, plan, said):
    assert status(cloud) == "ACTIVE absent"
    set_up(cloud)
    assert status(cloud) == "ACTIVE ready"
    cloud.plan(plan)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    until((cloud.home() / "lavit_run" / "status").exists)
    assert status(cloud) == f"ACTIVE {said}"
    cloud.states("SUSPENDING")
    assert status(cloud) == "SUSPENDING"


def test_a_run_that_lost_its_machine_is_told_from_one_that_ended(cloud):
    set_up(cloud)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    end_run(cloud.home())
    until(lambda: status(cloud) == "ACTIVE lost")
    # After a reboot another process may have its number.
    (cloud.home() / "lavit_run" / "pid").write_text(f"{os.getpid()}\n")
    assert status(cloud) == "ACTIVE lost"


def test_a_machine_that_goes_down_does_not_look_like_a_finished_run(cloud):
    set_up(cloud)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    state = cloud.home() / "lavit_run"
    until(lambda: "lavit: run" in (state / "train.log").read_text())
    os.kill(int((state / "pid").read_text()), signal.SIGTERM)  # then `lavit` saves and returns 0
    until((state / "status").exists)
    assert status(cloud) == "ACTIVE interrupted"


def test_follow_shows_the_log_of_the_machine_that_was_asked_for(cloud):
    cloud.program("tail", '#!/bin/sh\necho "tail $*"\n')
    done = cloud.run(
        "tpu/follow.sh",
        *(*PLACE, "--slice", "1", "--worker", "3", "--lines=5"),
        *("--ssh-arg", "--tunnel-through-iap"),
    )
    assert done.stdout == "tail -n 5 -F lavit_run/train.log\n"
    assert {"--node=1", "--worker=3", "--tunnel-through-iap"} < set(cloud.calls()[0])


# Through preemption.

RESUME = (*PLACE, *CREATE, "--spot", *TRAIN, "--poll", "1")


def test_resume_does_everything_from_nothing_to_a_finished_run(cloud):
    cloud.states("ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    cloud.plan("exit 0")
    done = cloud.run("tpu/resume.sh", *RESUME)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud.calls()) == ["create", "setup", "start"]
    assert "delete.sh" in done.stderr


def test_resume_recreates_what_was_taken_away_and_starts_the_same_command(cloud):
    cloud.states("ABSENT", *["ACTIVE"] * 3, "SUSPENDING", "SUSPENDED", "PROVISIONING", "ACTIVE")
    cloud.plan("run", "exit 0")
    done = cloud.run("tpu/resume.sh", *RESUME, "--", "--config.seed=1")
    assert done.returncode == 0, done.stderr
    calls = cloud.calls()
    once = ["create", "setup", "start"]
    assert verbs(calls) == [*once, "delete", *once]
    creates = [call for call in calls if call[0] == "create"]
    starts = [call for call in calls if "worker.sh start" in call[-1]]
    assert creates[0] == creates[1]
    assert starts[0] == starts[1]


def test_resume_restarts_on_all_machines_when_training_fails(cloud):
    cloud.plan("exit 1", "exit 0")
    done = cloud.run("tpu/resume.sh", *RESUME, machines=(1, 2))
    assert done.returncode == 0, done.stderr
    assert verbs(cloud.calls()) == ["setup", "start", "ssh", "stop", "wait", "setup", "start"]
    assert "lavit: exit 1" in done.stdout  # the end of its log


def test_resume_does_not_take_a_run_whose_other_slice_goes_away_for_a_finished_one(cloud):
    cloud.plan("stop", "exit 0")
    done = cloud.run("tpu/resume.sh", *RESUME, "--slices=2", "--delete-when-done", machines=(2, 1))
    assert done.returncode == 0, done.stderr
    once = ["setup", "start"]
    assert verbs(cloud.calls()) == [*once, "stop", "wait", *once, "delete"]


def test_resume_gives_up_on_training_that_keeps_failing(cloud):
    cloud.plan(*["exit 1"] * 5)
    done = cloud.run("tpu/resume.sh", *RESUME, "--max-crashes", "2")
    assert done.returncode == 1
    assert verbs(cloud.calls()).count("start") == 2


def test_resume_does_not_repeat_a_mistake_of_the_users(cloud):
    cloud.plan("exit 2")
    done = cloud.run("tpu/resume.sh", *RESUME)
    assert done.returncode == 2
    assert verbs(cloud.calls()).count("start") == 1


def test_resume_picks_up_a_run_that_is_under_way(cloud):
    set_up(cloud)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN)
    until(lambda: "lavit: run" in (cloud.home() / "lavit_run" / "train.log").read_text())
    cloud.calls()
    cloud.states("ACTIVE", "ACTIVE", "DELETING", "ABSENT")
    done = cloud.run("tpu/resume.sh", *RESUME)
    assert done.returncode == 0
    assert verbs(cloud.calls()) == ["start"]  # which found it running


def test_resume_leaves_another_run_alone(cloud):
    set_up(cloud)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN, "--", "--config.seed=2")
    cloud.calls()
    done = cloud.run("tpu/resume.sh", *RESUME)
    assert done.returncode == 2
    assert "running something else" in done.stderr
    assert status(cloud) == "ACTIVE running"


def test_resume_ends_when_the_machines_were_deleted_by_hand(cloud):
    cloud.states("PROVISIONING", "DELETING", "ABSENT")
    done = cloud.run("tpu/resume.sh", *RESUME)
    assert done.returncode == 0
    assert verbs(cloud.calls()) == []


def test_resume_lives_through_a_network_that_is_away_for_a_while(cloud):
    cloud.states("BROKEN", "BROKEN", "ACTIVE")
    cloud.plan("exit 0")
    assert cloud.run("tpu/resume.sh", *RESUME).returncode == 0
    assert verbs(cloud.calls()) == ["setup", "start"]
    cloud.states("BROKEN")
    done = cloud.run("tpu/resume.sh", *RESUME, "--max-failures", "3")
    assert done.returncode == 1
    assert [call[0] for call in cloud.calls()] == ["describe"] * 3


def test_resume_waits_for_machines_through_failures_that_are_not_in_a_row(cloud):
    cloud.states(*["BROKEN", "WAITING_FOR_RESOURCES"] * 3, "ACTIVE")
    cloud.plan("exit 0")
    done = cloud.run("tpu/resume.sh", *RESUME, "--max-failures", "2")
    assert done.returncode == 0, done.stderr
    assert verbs(cloud.calls()) == ["setup", "start"]


def test_resume_gives_up_on_requests_that_keep_coming_to_nothing(cloud):
    cloud.states(*["PROVISIONING", "FAILED"] * 4)
    done = cloud.run("tpu/resume.sh", *RESUME, "--max-failures", "3")
    assert done.returncode == 1
    assert verbs(cloud.calls()) == ["delete", "create"] * 2


def test_resume_gives_up_at_once_when_its_first_request_is_refused(cloud):
    cloud.states("ABSENT")
    done = cloud.run("tpu/resume.sh", *RESUME, FAKE_FAILS="create")
    assert done.returncode == 1
    assert verbs(cloud.calls()) == ["create"]


def test_resume_deletes_the_machines_of_a_finished_run_on_request(cloud):
    cloud.plan("exit 0")
    assert cloud.run("tpu/resume.sh", *RESUME, "--delete-when-done").returncode == 0
    assert verbs(cloud.calls()) == ["setup", "start", "delete"]


@pytest.mark.parametrize(
    ("states", "plan", "more", "status", "said"),
    [
        (["ACTIVE"], "exit 0", (), 0, "machines are still there and cost; delete.sh deletes them"),
        (["ACTIVE"], "exit 0", ("--delete-when-done",), 0, None),
        (["ACTIVE"], "exit 2", ("--delete-when-done",), 2, "machines are still there and cost"),
        (["ACTIVE"], "exit 1", ("--max-crashes", "1"), 1, "machines are still there and cost"),
        (["PROVISIONING", "BROKEN"], "run", ("--max-failures", "2"), 1, "request may still be"),
        (["PROVISIONING", "DELETING", "ABSENT"], "run", (), 0, None),
    ],
)
def test_resume_says_what_still_costs_when_it_ends(cloud, states, plan, more, status, said):
    cloud.states(*states)
    cloud.plan(plan)
    done = cloud.run("tpu/resume.sh", *RESUME, *more)
    assert done.returncode == status, done.stderr
    last = done.stderr.splitlines()[-1]
    assert said in last if said else "delete.sh" not in done.stderr


def test_resume_that_is_ended_by_a_signal_says_what_still_costs(cloud):
    cloud.program("sleep", "#!/bin/sh\nkill -TERM $PPID\n")
    done = cloud.run("tpu/resume.sh", *RESUME)
    assert done.returncode == -signal.SIGTERM
    assert done.stderr.endswith("machines are still there and cost; delete.sh deletes them\n")


# What every script has in common.


@pytest.mark.parametrize(("script", "args"), ALL)
def test_help_documents_every_option(cloud, script, args):
    done = cloud.run(f"tpu/{script}", "--help")
    assert done.returncode == 0
    assert f"bash launch/tpu/{script}" in done.stdout
    source = (REPO / "launch" / "tpu" / script).read_text()
    accepted = re.search(r'^parse "([^"]+)"', source, re.MULTILINE)
    assert accepted
    for name in [*accepted[1].replace("\\\n", " ").split(), "dry-run"]:
        if name != "--":
            assert f"\n--{name.rstrip('!*')} " in done.stdout, name


@pytest.mark.parametrize(("script", "args"), ALL)
def test_a_dry_run_prints_every_command_and_runs_none(cloud, script, args):
    (cloud.bin / "gcloud").unlink()  # nor does it need one
    done = cloud.run(f"tpu/{script}", *PLACE, *args, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    printed = commands(done.stdout)
    assert printed
    assert {line[0] for line in printed} <= {"gcloud", "tar"}
    assert not list(cloud.folder.glob("node*"))


def test_a_dry_run_prints_what_a_real_run_calls(cloud):
    dry = commands(cloud.run("tpu/start.sh", *PLACE, *TRAIN, "--dry-run", "--", "--x=a b").stdout)
    cloud.run("tpu/start.sh", *PLACE, *TRAIN, "--", "--x=a b")
    assert [line[4:] for line in dry] == cloud.calls()


@pytest.mark.parametrize(
    ("script", "args", "said"),
    [
        ("create.sh", (*PLACE, *CREATE, "--tpye", "x"), "unknown option '--tpye'"),
        ("create.sh", (*PLACE, *CREATE, "x"), "unexpected argument 'x'"),
        ("create.sh", (*PLACE, "--type"), "--type needs a value"),
        ("create.sh", (*PLACE, "--type", "--spot"), "--type needs a value, got '--spot'"),
        ("create.sh", (*PLACE, *CREATE, "--spot=1"), "--spot takes no value"),
        ("create.sh", (*PLACE, *CREATE, "--", "x"), "nothing goes after --"),
        ("create.sh", (*PLACE, "--type", "a100-8"), "--type: expected v4-N"),
        ("create.sh", (*PLACE, "--type", "v5p-"), "got 'v5p-'"),
        ("create.sh", PLACE, "--type TYPE is needed"),
        ("create.sh", (*PLACE, *CREATE, "--slices", "0"), "--slices: expected a positive number"),
        ("create.sh", (*PLACE, *CREATE, "--spot", "--reserved"), "exclude each other"),
        ("setup.sh", ("--zone", "us-east5-a"), "--name NAME is needed"),
        ("setup.sh", ("--name", "pod"), "--zone ZONE is needed"),
        ("setup.sh", ("--name", "My Pod", "--zone", "us-east5-a"), "got 'My Pod'"),
        ("setup.sh", ("--name", "pod", "--zone", "us-east5"), "--zone: expected a zone"),
        ("start.sh", (*PLACE, *TRAIN[:2]), "--workdir gs://BUCKET/FOLDER is needed"),
        ("start.sh", (*PLACE, *TRAIN[:2], "--workdir", "workdir/x"), "got 'workdir/x'"),
        ("start.sh", (*PLACE, "--config", "configs/none.py", *TRAIN[2:]), "no configs/none.py"),
        ("start.sh", (*PLACE, "--config", "/tmp/x.py", *TRAIN[2:]), "expected configs/FILE.py"),
        ("follow.sh", (*PLACE, "--worker", "some"), "--worker: expected a number or all"),
        ("resume.sh", (*PLACE, *CREATE, *TRAIN, "--poll", "soon"), "--poll: expected a positive"),
    ],
)
def test_a_mistake_is_one_clear_line_and_calls_nothing(cloud, script, args, said):
    done = cloud.run(f"tpu/{script}", *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert cloud.calls() == []


def test_without_gcloud_there_is_one_clear_line(cloud):
    (cloud.bin / "gcloud").unlink()
    done = cloud.run("tpu/setup.sh", *PLACE)
    assert done.returncode == 2
    assert "gcloud was not found" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_environment_gives_name_zone_and_type(cloud):
    done = cloud.run(
        "tpu/create.sh",
        "--dry-run",
        LAVIT_TPU_NAME="pod",
        LAVIT_TPU_ZONE="us-east5-a",
        LAVIT_TPU_PROJECT="mine",
        LAVIT_TPU_TYPE="v6e-256",
        LAVIT_TPU_SLICES="2",
    )
    create = commands(done.stdout)[1]
    assert {"--zone=us-east5-a", "--project=mine", "--node-count=2"} < set(create)
    assert "--accelerator-type=v6e-256" in create
