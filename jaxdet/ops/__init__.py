"""Pure functions of one image: arrays in, arrays out, no parameters.

All shapes are static. If the number of real rows varies, a boolean `valid` says which rows are real. The
other rows may hold anything, NaN included; neither values nor gradients depend on them. Callers `vmap` over
the images of a batch. Most functions take NumPy arrays as well as JAX arrays.

    boxes      area, IoU, clipping, and the coder between boxes and deltas
    anchors    the anchors of a feature pyramid
    matching   assigns a ground-truth box to each anchor or proposal
    sampling   a random, fixed-size choice of positives and negatives
    nms        greedy non-maximum suppression, over all boxes or class by class
    roi_align  bilinear crops of one feature map or of a pyramid
    losses     the losses of the two stages
    windows    windows of a feature pyramid around chosen cells
    conv       convolutions in the form that is fastest on the platform
    windows    windows of feature maps around chosen cells
    resize     resizing inside a compiled program
    types      types of arguments
"""
