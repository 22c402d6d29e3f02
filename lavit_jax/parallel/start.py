"""Joins the processes of a multi-host run before the first device is touched."""

from __future__ import annotations

import os

import jax
from jax._src import hardware_utils  # nothing public counts chips before the backend is there

from lavit_jax.errors import UserError

# Set by hand (tests, clusters without a scheduler): address of process 0, and who we are.
COORDINATOR, COUNT, INDEX = "LAVIT_COORDINATOR", "LAVIT_PROCESSES", "LAVIT_PROCESS"


def start() -> None:
    """Connects this process with the others, if there are others; does nothing the second time.

    On TPU VMs and GKE jax finds them by itself, within a slice and between slices. Elsewhere the
    variables `LAVIT_COORDINATOR` (HOST:PORT), `LAVIT_PROCESSES` and `LAVIT_PROCESS` name them.

    Raises:
      UserError: some of the variables are missing or wrong.
    """
    if jax.distributed.is_initialized():
        return
    if COORDINATOR in os.environ:
        count, index = _number(COUNT), _number(INDEX)
        if index >= count:
            raise UserError(f"{INDEX}={index} must be below {COUNT}={count}")
        if _on_cpu():
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(os.environ[COORDINATOR], count, index)
    elif _on_tpu_vm():
        jax.distributed.initialize()


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdigit():
        raise UserError(f"{COORDINATOR} is set, so {name} must be a whole number, got {text!r}")
    return int(text)


def _on_tpu_vm() -> bool:
    """Whether this host has TPU chips; one host alone joins itself, which does no harm.

    As jax finds them, on the PCI bus: device files of accelerators and of VFIO are not only TPUs'.
    """
    return not _on_cpu() and hardware_utils.num_available_tpu_chips_and_device_id()[0] > 0


def _on_cpu() -> bool:
    return os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
