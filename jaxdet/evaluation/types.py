"""What the parts of evaluation/ hand to one another."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Json = Any  # ground truth or results, loaded or the path of a file, not checked yet
GroundTruth = dict[str, Any]  # COCO JSON: images, annotations, categories
Results = Sequence[dict[str, Any]]  # detections in COCO's result format
Columns = dict[str, np.ndarray]  # a row for each annotation or detection, see `coco.to_arrays`
