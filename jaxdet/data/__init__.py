"""Images with boxes: three sources, one record, batches that depend on nothing but (config, seed, step).

types.py says what a source, a record and a batch are. The sources are `coco.CocoSource`, `tfds.TfdsSource` and
`synthetic.scenes.SyntheticPeople`; `pipeline.open_source` chooses by the config.
"""
