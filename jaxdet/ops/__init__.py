"""Pure functions of one image: arrays in, arrays out, no parameters.

Every shape is static. Where the number of real rows varies, an explicit boolean `valid` says which rows are
real; the others may hold anything, NaN included, and nothing depends on them, neither values nor gradients.
Callers `vmap` over the images of a batch.

    boxes      area, IoU, clipping, and the coder between boxes and deltas
    anchors    the anchors of a feature pyramid
    matching   which ground-truth box each anchor or proposal stands for
    sampling   a random, fixed-size choice of positives and negatives
    nms        greedy non-maximum suppression, of all boxes together or class by class
    roi_align  bilinear crops of one feature map or of a pyramid
    losses     the losses of the two stages
    conv       convolutions in the form that is fastest on the platform
"""
