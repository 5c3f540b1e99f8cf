"""Evaluation of detections, on the host, in NumPy.

coco.py                the twelve numbers of the COCO API, the recall of proposals, the result format
matching.py            which detection finds which box, IoU with crowds
average_precision.py   precision and recall behind the twelve numbers, on arrays
stages.py              evaluates both stages of a model on a whole split
errors.py              the kind of error of each detection, and the cost of each kind
curves.py              precision over recall, recall by size, calibration
categories.py          the categories of the RPN's detections
types.py               types of what these modules pass to one another

Ground truth is COCO JSON and detections are in COCO's result format; both may be loaded or a path to a file.
All images of the ground truth count: without objects, all detections are false; without detections, all
objects are missed.
"""
