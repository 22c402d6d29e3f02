"""Tests run on the CPU, as eight virtual devices, and compile each program only once a session."""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

from lavit_jax import allocator

# Most of the suite's time is compiling; unoptimised programs compute the same in half of it.
FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    "--xla_backend_optimization_level": 0,
    "--xla_cpu_use_fusion_emitters": "false",  # by far the most of compiling
    "--xla_cpu_parallel_codegen_split_count": 1,  # each part costs some
}

# All of this is read when jax is imported, here and in the processes that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
given = os.environ.get("XLA_FLAGS", "")
added = [f"{flag}={value}" for flag, value in FLAGS.items() if flag not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="lavit_jax_compiled_")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

allocator.collect_rarely()  # tracing makes more objects than anything else that tests do

# The first example of a test often compiles, and a run says the same as the last one.
hypothesis.settings.register_profile("lavit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("lavit")

# Shapes and types of arrays are checked against their annotations wherever tests call.
CHECKED = (
    "lavit_jax.convert",
    "lavit_jax.data.images",
    "lavit_jax.data.layout",
    "lavit_jax.data.packing",
    "lavit_jax.data.pipeline",
    "lavit_jax.evaluation",
    "lavit_jax.inference",
    "lavit_jax.parallel",
    "lavit_jax.report",
    "lavit_jax.training",
)
jaxtyping.install_import_hook(CHECKED, "shape_check.check")


Make = Callable[[Path], object]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Make], Path]:
    """Gives a folder by name, made by whichever of the processes that run tests asks first."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, make: Make) -> Path:
        folder = root / name
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                aside = root / f"{name}.unfinished"
                shutil.rmtree(aside, ignore_errors=True)  # of one that failed
                aside.mkdir()
                make(aside)
                aside.rename(folder)
        return folder

    return get


@pytest.fixture(scope="session")
def data_dir(shared: Callable[[str, Make], Path]) -> Path:
    """The data set, prepared once for all tests."""
    from lavit_jax.data import twemoji

    return shared("twemoji", twemoji.prepare)
