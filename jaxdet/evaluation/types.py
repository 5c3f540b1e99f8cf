"""Types of what the modules of this folder pass to one another."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Json = Any  # ground truth or results, loaded or the path of a file, not yet checked
GroundTruth = dict[str, Any]  # COCO JSON: images, annotations, categories
Results = Sequence[dict[str, Any]]  # detections in COCO's result format
Columns = dict[str, np.ndarray]  # one row per annotation or detection, see `coco.to_arrays`
