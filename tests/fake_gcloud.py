"""A `gcloud` that writes down how it was called and plays a Cloud TPU in a folder.

Its folder ($FAKE_CLOUD) holds `states` (one line for each `describe`, the last one stays: ABSENT,
or BROKEN for an error of its own), `calls` (JSON, written), and a home directory for each machine,
`node0-worker0` and so on. Commands over ssh really run, with such a home; when the machines are
taken away (SUSPENDED), so are their homes and what runs in them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ.get("FAKE_CLOUD", "no cloud"))


def options(args: list[str]) -> dict[str, str]:
    return dict(arg[2:].split("=", 1) for arg in args if arg.startswith("--") and "=" in arg)


def machines(given: dict[str, str]) -> list[Path]:
    shape = {"node": os.environ["FAKE_NODES"], "worker": os.environ["FAKE_WORKERS"]}
    chosen = {
        kind: range(int(count)) if given[kind] == "all" else [int(given[kind])]
        for kind, count in shape.items()
    }
    homes = [CLOUD / f"node{n}-worker{w}" for n in chosen["node"] for w in chosen["worker"]]
    for home in homes:
        home.mkdir(exist_ok=True)
    return homes


def end_run(home: Path) -> None:
    """Kills what worker.sh began in this home; nothing else, whatever its `pid` file says."""
    try:
        pid = int((home / "lavit_run" / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except (OSError, ValueError):
        return
    # A group of 1 would be every process there is.
    if pid > 1 and f"{home}/lavit_jax/launch/tpu/worker.sh\0run" in command:
        assert os.getpgid(pid) == pid
        os.killpg(pid, signal.SIGKILL)


def take_away() -> None:
    for home in CLOUD.glob("node*"):
        end_run(home)
        shutil.rmtree(home)


def describe() -> int:
    states = (CLOUD / "states").read_text().split()
    if len(states) > 1:
        (CLOUD / "states").write_text("\n".join(states[1:]))
    if states[0] == "ABSENT":
        print("ERROR: (gcloud) NOT_FOUND: Resource was not found", file=sys.stderr)
        return 1
    if states[0] == "BROKEN":
        print("ERROR: (gcloud) no network", file=sys.stderr)
        return 1
    if states[0] == "SUSPENDED":
        take_away()
    print("Your active configuration is: [default]", file=sys.stderr)
    print(states[0])
    return 0


def main(args: list[str]) -> int:
    with (CLOUD / "calls").open("a") as calls:
        calls.write(json.dumps(args) + "\n")
    assert args[:3] == ["compute", "tpus", "queued-resources"], args
    verb, given = args[3], options(args)
    if verb in os.environ.get("FAKE_FAILS", "").split():
        print(f"ERROR: (gcloud) {verb} does not work", file=sys.stderr)
        return 1
    if verb == "describe":
        return describe()
    if verb == "scp":
        source, target = args[4:6]
        for home in machines(given):
            shutil.copy(source, home / target.split(":")[1])
    if verb == "ssh":
        codes = [
            subprocess.run(
                ["bash", "-c", given["command"]],
                cwd=home,
                env={**os.environ, "HOME": str(home)},
                check=False,
            ).returncode
            for home in machines(given)
        ]
        return next((code for code in codes if code), 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
