"""What two processes of four devices each need to work as one."""

import socket

from lavit_jax.parallel import start

COUNT = 2
FLAGS = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def environments() -> list[dict[str, str]]:
    """Variables for each of them, which name one coordinator."""
    port = free_port()
    return [
        {
            "XLA_FLAGS": FLAGS,
            start.COORDINATOR: f"localhost:{port}",
            start.COUNT: str(COUNT),
            start.INDEX: str(index),
        }
        for index in range(COUNT)
    ]
