"""Processes and devices: which take part, and where arrays are stored.

A mesh has two axes. Batches are split over both. Parameters and optimizer state are whole on every device, or split
over the axis `model`, whose length is `train.shard_parameters`.
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
# Variables by which launchers tell a process that it is one of several: TPU pods, SLURM, Open MPI
CLUSTERS = {
    "TPU_WORKER_HOSTNAMES": lambda hosts: "," in hosts,
    "SLURM_STEP_NUM_TASKS": lambda tasks: int(tasks) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda size: int(size) > 1,
}


def join_cluster(distributed=False, coordinator=None, processes=None, process=None, heartbeat_seconds=100):
    """Makes this process one of several, if a launcher or the arguments say so. Call it before any device is used.

    distributed: let JAX find out everything by itself. coordinator: HOST:PORT of process 0, together with the number of
    processes and the index of this one. heartbeat_seconds: a process that is silent for this long counts as dead, and
    the others end. Only the first process prints. Raises ValueError if one of the three is missing.
    """
    given = (coordinator, processes, process)
    if any(value is not None for value in given):
        if None in given:
            raise ValueError("--coordinator, --processes and --process go together")
        if not 0 <= process < processes:
            raise ValueError(f"--process is {process}, of {processes} processes numbered from 0")
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=heartbeat_seconds)
    elif distributed or any(name in os.environ and several(os.environ[name]) for name, several in CLUSTERS.items()):
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
    else:
        return
    if not is_first():
        sys.stdout = pathlib.Path(os.devnull).open("w")  # noqa: SIM115 - errors still go to stderr


def leave_cluster(error):
    """Ends this process after an error. The loss of another process appears as a RuntimeError of JAX.

    It ends at once, because an orderly exit would wait for the others, which may be lost or wait for this one. Raises
    the error if there is no other process.
    """
    if jax.process_count() == 1:
        raise error
    words = f"process {jax.process_index()} ends: {error}"
    try:
        if not isinstance(error, OSError | ValueError | FloatingPointError):  # these say what to do
            traceback.print_exception(error)
            words += "\nIf another process was lost, start all of them again: they resume from the last checkpoint."
        print(words, file=sys.stderr, flush=True)
    finally:  # the reader of stderr may be gone too
        os._exit(1)


def is_first():
    """Whether this process prints and writes files. All processes write checkpoints."""
    return jax.process_index() == 0


def wait_for_all(what):
    """Returns when every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def device_mesh(model=1, devices=None):
    """A mesh of all devices, or of those given; groups of `model` devices share one copy of the parameters.

    Raises ValueError if the devices do not divide into such groups.
    """
    # sorted by process, since each process holds consecutive rows of a batch
    devices = np.array(sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id)))
    if len(devices) % model:
        raise ValueError(f"config.train.shard_parameters is {model}, which does not divide {len(devices)} devices")
    return Mesh(devices.reshape(-1, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh):
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh, state):
    """Tree of shardings for `state`: each leaf is split along its longest axis that `model` divides."""
    parts = mesh.shape["model"]

    def sharding(leaf):
        axes = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0 and length > 1]
        if parts == 1 or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "model"))

    return jax.tree.map(sharding, state)


def put_batch(batch, mesh):
    """What the devices need of this process's batch, as arrays of the whole batch that are split over the mesh.

    Image ids keep only their low 31 bits: on the device they only seed random numbers.
    """
    arrays = {name: batch[name] for name in DEVICE_KEYS}
    arrays["image_ids"] = (arrays["image_ids"] & 0x7FFFFFFF).astype(np.int32)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "model")))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in arrays.items()}
