"""Pillow drawings for the embedded data set (jaxdet.data.synthetic): people, objects, backgrounds."""
