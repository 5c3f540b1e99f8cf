"""Judging detections, on the host and in NumPy.

coco.py                the twelve numbers of the COCO API, the recall of proposals, the result format
matching.py            which detection finds which box, IoU with crowds
average_precision.py   precision and recall behind the twelve numbers, on arrays
stages.py              a model over a whole split, both stages judged
errors.py              what kind of error each detection is, and what each kind costs
curves.py              precision over recall, recall by size, calibration

Ground truth is COCO JSON, detections are COCO's result format; both may be loaded or a path to a file. Every image of
the ground truth counts, also one without objects (its detections are false) and one without detections (its objects
are missed).
"""
