"""Pictures with boxes: three sources, one record, batches that depend on nothing but (config, seed, step).

A *source* is any object with

    categories    tuple of {"id", "name"} as in the data set; the position is the label 0..K-1
    image_ids     int64 [N]
    sizes         int32 [N, 2] height, width (EXIF orientation applied)
    box_counts    int32 [N] boxes that are not crowds
    skipped       list of dicts with a "reason": what was left out when it was opened
    len(source), source[i] -> a record
    ground_truth() -> COCO JSON of its images and categories, crowds included

and a *record* is a dict: image_id int, image uint8 [H, W, 3] (None where the file does not decode), boxes float32
[n, 4] x1 y1 x2 y2 in pixels, labels int32 [n], crowd bool [n], area float32 [n]. The sources are `coco.CocoSource`,
`tfds.TfdsSource` and `synthetic.scenes.SyntheticPeople`; `pipeline.open_source` chooses by the config.
"""
