"""Product names of TPU slices."""

import importlib.util
import types

import pytest
from jax.experimental import topologies

from lavit_jax.errors import UserError
from lavit_jax.parallel import topology


@pytest.mark.parametrize(
    ("name", "libtpu", "chips"),
    [
        ("v5p-128", "v5p:4x4x4", 64),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-8192", "v5p:16x16x16", 4096),
        ("v5p-384", "v5p:4x4x12", 192),
        ("v5p-768", "v5p:4x8x12", 384),
        ("v5p-1152", "v5p:4x12x12", 576),
        ("v5p-2048", "v5p:8x8x16", 1024),
        ("v5p-6912", "v5p:12x12x24", 3456),
        ("v5p-12288", "v5p:16x16x24", 6144),
        ("v4-32", "v4:2x2x4", 16),
        ("v4-128", "v4:4x4x4", 64),
        ("v4-64", "v4:2x4x4", 32),
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-32", "v5e:4x8", 32),
        ("v6e-256", "v6e:16x16", 256),
        ("v5p:4x4x8", "v5p:4x4x8", 128),
        ("v5p:8x4x4", "v5p:8x4x4", 128),
        ("v5e:2x4", "v5e:2x4", 8),
    ],
)
def test_product_names_become_shapes(name, libtpu, chips):
    found = topology.parse(name)
    assert (found.libtpu_name, found.chips) == (libtpu, chips)


def test_slices_multiply_chips():
    found = topology.parse("v6e-256", slices=4)
    assert (found.chips, found.title) == (1024, "4 x v6e-256")
    assert (found.hosts, found.host_cores) == (256, 180)


@pytest.mark.parametrize(
    ("name", "hosts", "cores"),
    [("v5p-128", 16, 208), ("v5e-256", 64, 112), ("v5e-8", 1, 224), ("v5e-1", 1, 24)],
)
def test_hosts_are_the_machines_that_are_sold(name, hosts, cores):
    found = topology.parse(name)
    assert (found.hosts, found.host_cores) == (hosts, cores)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100-8", "not known: expected a product name such as v5p-128"),
        ("v5p", "not known"),
        (
            "v5p-100",
            "no such size; there are v5p-8, v5p-16, v5p-32, v5p-64, and multiples of 128 up to "
            "v5p-12288$",
        ),
        ("v5p-0", "no such size"),
        ("v5p-9", "no such size"),
        ("v5p-12416", "no such size"),
        ("v5e-2", "no such size; there are v5e-1, v5e-4"),
        ("v5e-512", "no such size; .*v5e-256$"),
        (
            "v5p:0x4x4",  # the TPU compiler divides by it
            "no such shape; v5p has 2x2x1, .*2x4x4, and multiples of 4 along each axis up to 6144",
        ),
        ("v5p:0x0x0", "no such shape"),
        ("v5p:3x5x7", "no such shape"),
        ("v5p:4x4", "no such shape"),
        ("v5p:16x16x28", "no such shape"),
        ("v5e:17x17", "no such shape; v5e has 1x1, 2x2, .*16x16$"),
        ("v5e:4x4x4", "no such shape"),
    ],
)
def test_other_names_are_mistakes(name, message):
    with pytest.raises(UserError, match=message):
        topology.parse(name)


@pytest.mark.parametrize(
    ("name", "slices", "expected"),
    [("v4-128", 1, {"chip_config_name": "megacore"}), ("v5p-128", 2, {"num_slices": 2})],
)
def test_the_compiler_is_asked_for_one_device_a_chip(name, slices, expected, monkeypatch):
    asked = []

    def describe(*, platform, topology_name, **more):
        asked.append(more)
        return types.SimpleNamespace(devices=[])

    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    topology.parse(name, slices).devices()
    assert asked == [expected]


@pytest.mark.parametrize(
    ("installed", "message"),
    [(None, r"\(no library\); `pip install libtpu` brings it$"), ("spec", r"\(no library\)$")],
)
def test_a_compiler_that_is_there_is_not_to_be_installed(installed, message, monkeypatch):
    def describe(**asked):
        raise RuntimeError("no library")

    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=message):
        topology.parse("v5p-128").devices()
