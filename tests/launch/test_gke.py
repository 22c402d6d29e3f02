"""launch/gke and the image: what Kubernetes is told."""

import math
import re

import yaml

from fake_cloud import REPO, Cloud
from lavit_jax.cli.main import EXIT_MISTAKE, make_parser
from lavit_jax.config import load_config
from lavit_jax.parallel.peers import LOST

MANIFEST = REPO / "launch" / "gke" / "jobset.yaml"
SUBMIT = (
    *("--cluster", "c", "--name", "run", "--zone", "us-east5-a", "--type", "v5e-256"),
    *("--slices", "2", "--image", "image:1", "--config", "configs/mini.py"),
    *("--workdir", "gs://bucket/run"),
)


def pod_and_job() -> tuple[dict, dict]:
    (slices,) = yaml.safe_load(MANIFEST.read_text())["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    return job["template"]["spec"], job


def test_the_machines_of_a_slice_have_all_its_chips():
    pod, job = pod_and_job()
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert math.prod(map(int, topology.split("x"))) == job["completions"] * chips
    assert job["parallelism"] == job["completions"]


def test_a_mistake_of_the_users_ends_the_job_set_and_a_lost_machine_does_not():
    spec = yaml.safe_load(MANIFEST.read_text())["spec"]
    pod, job = pod_and_job()
    assert spec["failurePolicy"]["maxRestarts"] >= 10
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy asks for


def test_the_manifest_trains_with_arguments_that_lavit_has():
    pod, _ = pod_and_job()
    args = pod["containers"][0]["args"]
    assert args[0] == "train"
    parsed, overrides = make_parser().parse_known_args(args)
    assert parsed.workdir
    load_config(parsed.config, overrides)


def test_the_image_copies_only_what_exists_and_is_let_through():
    text = (REPO / "launch" / "Dockerfile").read_text()
    copied = [
        source for line in re.findall(r"^COPY (.+)$", text, re.M) for source in line.split()[:-1]
    ]
    assert copied
    let_through = re.findall(r"^!(.+)$", (REPO / ".dockerignore").read_text(), re.M)
    for source in copied:
        assert (REPO / source).exists()
        assert source.split("/")[0] in let_through


def test_xpk_is_called_with_one_quoted_command(cloud: Cloud):
    done = cloud.run("gke/xpk.sh", *SUBMIT, "--", "--config.name=a b")
    assert done.returncode == 0, done.stderr
    assert (cloud.folder / "xpk").read_text().splitlines() == [
        "workload",
        "create",
        "--workload=run",
        "--cluster=c",
        "--zone=us-east5-a",
        "--tpu-type=v5litepod-256",
        "--num-slices=2",
        "--docker-image=image:1",
        "--max-restarts=100",
        "--restart-on-exit-codes=1,75",
        "--command=bash /opt/lavit_jax/launch/tpu/entrypoint.sh train --config configs/mini.py"
        " --workdir gs://bucket/run '--config.name=a b'",
    ]


def test_xpk_restarts_after_a_lost_machine_and_not_after_a_mistake(cloud: Cloud):
    assert cloud.run("gke/xpk.sh", *SUBMIT).returncode == 0
    (more,) = re.findall(
        r"^--restart-on-exit-codes=(.+)$", (cloud.folder / "xpk").read_text(), re.M
    )
    restarts = {42, *range(127, 256), *map(int, more.split(","))}  # the first two are XPK's own
    assert restarts.isdisjoint({EXIT_MISTAKE})
    assert restarts.issuperset({1, LOST, 143})


def test_xpk_without_an_image_is_one_clear_line(cloud: Cloud):
    done = cloud.run("gke/xpk.sh", *(arg for arg in SUBMIT if arg not in ("--image", "image:1")))
    assert done.returncode == 2
    assert done.stderr == "error: --image IMAGE is needed\n"


def test_the_entry_point_of_a_run_that_another_machine_stopped_does_not_succeed(cloud: Cloud):
    cloud.plan("stop")
    assert cloud.run("tpu/entrypoint.sh", "train").returncode == 143


def test_the_entry_point_ends_as_lavit_does_with_the_environment_of_a_tpu(cloud: Cloud):
    cloud.plan("exit 7")
    assert cloud.run("tpu/entrypoint.sh", "train").returncode == 7
    flags, platforms = (cloud.folder / "environment").read_text().splitlines()
    assert "latency_hiding" in flags
    assert platforms.startswith("tpu")
    cloud.plan("exit 0")
    done = cloud.run("tpu/entrypoint.sh", "train", LIBTPU_INIT_ARGS="mine")
    assert done.returncode == 0
    assert (cloud.folder / "environment").read_text().splitlines()[0] == "mine"
