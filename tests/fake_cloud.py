"""A cloud in a folder, for the scripts that drive one."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]

# Stands for `python3` on a TPU machine: makes environments and installs nothing.
PYTHON = f"""\
#!/bin/sh
case "$*" in
  "-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$(dirname "$0")/lavit" "$3/bin/lavit" ;;
  *"-m pip"*) echo "$@" >>"$HOME/pip.log" ;;
  *) exec "{sys.executable}" "$@" ;;
esac
"""

# Stands for `lavit`: does what the next line of $FAKE_CLOUD/plan says; `stop` is what it does when
# another machine of the run is told to.
LAVIT = """\
#!/bin/sh
printf '%s\\n' "$@" >"$HOME/arguments"
printf '%s\\n' "$LIBTPU_INIT_ARGS" "$JAX_PLATFORMS" >"$HOME/environment"
read -r todo code <"$FAKE_CLOUD/plan"
case $HOME in
  *node0-worker0)
    sed 1d "$FAKE_CLOUD/plan" >"$FAKE_CLOUD/plan.new"
    mv "$FAKE_CLOUD/plan.new" "$FAKE_CLOUD/plan" ;;
esac
echo "lavit: $todo $code"
case $todo in
  exit) [ "$code" != 0 ] || echo completed >"$LAVIT_COMPLETED"; exit "$code" ;;
  stop) exit 0 ;;
  hang) trap '' TERM ;;
  *) trap 'echo saved; exit 0' TERM ;;
esac
while :; do /bin/sleep 0.02; done
"""


# All that the scripts may use; a real `gcloud` of whoever runs the tests must be out of reach.
TOOLS = (
    "basename bash cat cp date dirname env grep gzip hostname kill mkdir mktemp mv nohup rm sed "
    "setsid sh tail tar touch tr"
)


class Cloud:
    """The fake cloud, and the scripts called with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for tool in TOOLS.split():
            found = shutil.which(tool, path="/usr/bin:/bin")
            if found:
                (self.bin / tool).symlink_to(found)
        fake = Path(__file__).with_name("fake_gcloud.py")
        self.program("gcloud", f'#!/bin/sh\nexec "{sys.executable}" -S -E "{fake}" "$@"\n')
        self.program("xpk", '#!/bin/sh\nprintf "%s\\n" "$@" >"$FAKE_CLOUD/xpk"\n')
        self.program("python3", PYTHON)
        self.program("lavit", LAVIT)
        self.program("sleep", "#!/bin/sh\nexec /bin/sleep 0.05\n")
        self.plan("run")
        self.states("ACTIVE")
        (folder / "calls").touch()

    def program(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)  # a link would be written through
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def states(self, *states: str) -> None:
        (self.folder / "states").write_text("\n".join(states))

    def plan(self, *lines: str) -> None:
        (self.folder / "plan").write_text("".join(f"{line} \n" for line in lines))

    def home(self, node: int = 0, worker: int = 0) -> Path:
        return self.folder / f"node{node}-worker{worker}"

    def calls(self) -> list[list[str]]:
        """How `gcloud compute tpus queued-resources` was called since the last look here."""
        calls = [json.loads(line)[3:] for line in (self.folder / "calls").read_text().splitlines()]
        (self.folder / "calls").write_text("")
        return calls

    def run(
        self, script: str, *args: str, machines: tuple[int, int] = (1, 1), **env: str
    ) -> subprocess.CompletedProcess:
        """Runs launch/SCRIPT; `machines` is slices and machines of each."""
        nodes, workers = machines
        return subprocess.run(
            [str(self.bin / "bash"), str(REPO / "launch" / script), *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=self.folder,
            env={
                "PATH": str(self.bin),
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder),  # what a killed script has left goes with it
                "PYTHON": "python3",
                "FAKE_CLOUD": str(self.folder),
                "FAKE_NODES": str(nodes),
                "FAKE_WORKERS": str(workers),
                **env,
            },
        )


def commands(printed: str) -> list[list[str]]:
    """What --dry-run printed, as a shell would read it."""
    return [shlex.split(line) for line in printed.splitlines() if not line.startswith("#")]
