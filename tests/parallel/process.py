"""One of several processes of `test_processes.py`: every stage on its own rows, to an .npz file."""

import sys

import jax
import numpy as np

import stages
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.parallel.start import start


def main(path: str) -> None:
    start()
    index, count = jax.process_index(), jax.process_count()
    each = stages.ROWS // count
    found = {"processes": np.array(count), "devices": np.array(jax.device_count())}
    for stage in stages.PHASES:
        mine = slice(index * each, (index + 1) * each)
        loss, gradients = stages.loss_and_gradients(stage, make_mesh(data=2, fsdp=4), mine)
        found[f"{stage}/loss"] = np.array(loss)
        for number, leaf in enumerate(jax.tree.leaves(gradients)):
            found[f"{stage}/{number}"] = leaf
    if index == 0:
        np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
