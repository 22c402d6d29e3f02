import jax
import pytest

from lavit_jax.errors import UserError
from lavit_jax.parallel import topology
from lavit_jax.parallel.mesh import AXES, make_mesh
from slices import devices

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


def test_without_a_number_there_are_as_many_slices_as_the_devices_form():
    assert make_mesh().shape["slice"] == 1
    mesh = make_mesh(fsdp=8, devices=devices(topology.parse("v5p-128", slices=2)))
    assert tuple(mesh.shape.values()) == (2, 8, 8, 1, 1)
    for number, half in enumerate(mesh.devices):
        assert {device.slice_index for device in half.flat} == {number}


def test_another_number_of_slices_than_the_devices_form_is_refused():
    with pytest.raises(UserError, match=r"slice=1, but the devices form 2 slices: slice=2 would"):
        make_mesh(slice=1, devices=devices(topology.parse("v5p-128", slices=2)))


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
