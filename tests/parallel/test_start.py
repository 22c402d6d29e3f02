"""Which hosts look for others: those with TPU chips."""

import glob
from pathlib import Path

import jax
import pytest

from lavit_jax.parallel import start

# Device files, and vendor and device of what is on the PCI bus.
HOSTS = {
    "TPU v4": (("accel0", "accel1"), "0x1ae0 0x005e", True),
    "TPU v5e": (("vfio/0", "vfio/vfio"), "0x1ae0 0x0063", True),
    "laptop with an NPU": (("accel/accel0",), "0x8086 0x7d1d", False),
    "hypervisor that passes a GPU on": (("vfio/12", "vfio/vfio"), "0x10de 0x2330", False),
    "Google Cloud without a TPU": (("vfio/0",), "0x1ae0 0x0042", False),  # their network card
    "anything else": ((), "0x8086 0x1237", False),
}


@pytest.mark.parametrize("host", HOSTS)
def test_only_a_host_with_tpu_chips_looks_for_others(host, tmp_path, monkeypatch):
    files, bus, joins = HOSTS[host]
    for name in files:
        (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / name).touch()
    slot = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
    slot.mkdir(parents=True)
    for kind, number in zip(("vendor", "device"), bus.split()):
        (slot / kind).write_text(f"{number}\n")
    of_path, of_glob = Path.glob, glob.glob
    monkeypatch.setattr(Path, "glob", lambda at, what: of_path(tmp_path / str(at)[1:], what))
    monkeypatch.setattr(glob, "glob", lambda what: of_glob(str(tmp_path / what[1:])))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda: joined.append(host))
    start.start()
    assert joined == ([host] if joins else [])


def test_a_host_with_tpu_chips_that_is_to_use_its_cpu_stays_alone(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(
        start.hardware_utils, "num_available_tpu_chips_and_device_id", lambda: (4, 5)
    )
    monkeypatch.setattr(jax.distributed, "initialize", lambda: pytest.fail("it looks for others"))
    start.start()
