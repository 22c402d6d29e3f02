import jax
import pytest

from lavit_jax.errors import UserError
from lavit_jax.parallel.mesh import AXES, make_mesh

DEVICES = 8  # virtual ones, see tests/conftest.py


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({}, (1, 8, 1, 1, 1)),
        ({"fsdp": 2}, (1, 4, 2, 1, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 4}, (1, 1, 2, 1, 4)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (1, 2, 2, 1, 2)),
        ({"slice": 2, "sequence": 2}, (2, 2, 1, 2, 1)),
    ],
)
def test_one_axis_takes_what_the_others_leave(axes, shape):
    mesh = make_mesh(**axes)
    assert mesh.axis_names == AXES
    assert tuple(mesh.shape.values()) == shape


def test_every_device_has_one_place():
    assert sorted(device.id for device in make_mesh(fsdp=2).devices.flat) == sorted(
        device.id for device in jax.devices()
    )
    assert len(jax.devices()) == DEVICES


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 3},
        {"data": 16},
        {"data": -1, "fsdp": -1},
        {"data": -1, "fsdp": 3},
        {"data": 0},
        {"data": -2},
    ],
)
def test_axes_that_do_not_fit_are_refused(axes):
    with pytest.raises(UserError, match="mesh"):
        make_mesh(**axes)
