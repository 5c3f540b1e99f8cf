"""Processes and devices: who takes part, and where arrays live.

A mesh has two axes. Batches are split over both. Parameters and optimiser state stand whole on every device, or are split
over the axis `model`, which is as long as `train.shard_parameters`.
"""

import os
import pathlib
import sys
import traceback

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DEVICE_KEYS = ("images", "image_sizes", "gt_boxes", "gt_labels", "gt_valid", "image_ids", "scales")
# How launchers tell a process that it is one of several: TPU pods, SLURM, Open MPI
CLUSTERS = {
    "TPU_WORKER_HOSTNAMES": lambda hosts: "," in hosts,
    "SLURM_STEP_NUM_TASKS": lambda tasks: int(tasks) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda size: int(size) > 1,
}


def join_cluster(distributed=False, coordinator=None, processes=None, process=None, heartbeat_seconds=100):
    """Makes this process one of several, where a launcher or the arguments say so. Before any device is touched.

    distributed: ask JAX to find out everything by itself. coordinator: HOST:PORT of process 0, with the number of
    processes and which of them this is. heartbeat_seconds: a process that was silent for so long is taken for dead, and
    the others end. All processes but the first print nothing. Raises ValueError where one of the three is missing.
    """
    given = (coordinator, processes, process)
    if any(value is not None for value in given):
        if None in given:
            raise ValueError("--coordinator, --processes and --process go together")
        if not 0 <= process < processes:
            raise ValueError(f"--process is {process}, of {processes} processes numbered from 0")
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=heartbeat_seconds)
    elif distributed or any(
        name in os.environ and several(os.environ[name]) for name, several in CLUSTERS.items()
    ):
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
    else:
        return
    if not is_first():
        sys.stdout = pathlib.Path(os.devnull).open("w")  # noqa: SIM115 - one voice is enough; errors still go to stderr


def leave_cluster(error):
    """Ends this process for an error: the loss of another process looks like a RuntimeError of JAX.

    At once: an orderly end would wait for the others, who may be gone or wait for this one. Raises the error where there is
    no other process.
    """
    if jax.process_count() == 1:
        raise error
    words = f"process {jax.process_index()} ends: {error}"
    try:
        if not isinstance(
            error, OSError | ValueError | FloatingPointError
        ):  # those say themselves what to do
            traceback.print_exception(error)
            words += "\nWhere another process is gone, start all of them again: they go on from the last checkpoint."
        print(words, file=sys.stderr, flush=True)
    finally:  # whoever read this may be gone too
        os._exit(1)


def is_first():
    """Whether this process is the one that prints and writes files; checkpoints are written by all."""
    return jax.process_index() == 0


def wait_for_all(what):
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def device_mesh(model=1, devices=None):
    """A mesh of all devices or of those given, `model` of them sharing one copy of the parameters. The compiler places what a computation needs.

    Raises ValueError where the devices do not divide into such groups.
    """
    # by process, since each of them holds consecutive rows of a batch
    devices = np.array(sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id)))
    if len(devices) % model:
        raise ValueError(
            f"config.train.shard_parameters is {model}, which does not divide {len(devices)} devices"
        )
    return Mesh(devices.reshape(-1, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh):
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh, state):
    """Tree of shardings like `state` (arrays or shapes): each leaf split along its longest axis that `model` divides."""
    parts = mesh.shape["model"]

    def sharding(leaf):
        axes = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0 and length > 1]
        if parts == 1 or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "model"))

    return jax.tree.map(sharding, state)


def put_batch(batch, mesh):
    """The part of this process's batch that the devices need, as arrays of the whole batch split over the mesh.

    Image ids keep their low 31 bits there: they only seed noise.
    """
    arrays = {name: batch[name] for name in DEVICE_KEYS}
    arrays["image_ids"] = (arrays["image_ids"] & 0x7FFFFFFF).astype(np.int32)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "model")))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in arrays.items()}
