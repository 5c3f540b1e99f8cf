"""Where arrays live: parameters on every device, each batch split over the devices of one axis, `data`."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DEVICE_KEYS = ("images", "image_sizes", "gt_boxes", "gt_labels", "gt_valid", "image_ids")


def data_mesh():
    """A mesh of all devices. Axes are automatic: the compiler places what a computation needs."""
    return Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh):
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch, mesh):
    """The part of a host's batch that the device needs, split over the mesh.

    Image ids keep their low 31 bits there: they only seed noise.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    arrays = {name: batch[name] for name in DEVICE_KEYS}
    arrays["image_ids"] = (arrays["image_ids"] & 0x7FFFFFFF).astype(np.int32)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in arrays.items()}
