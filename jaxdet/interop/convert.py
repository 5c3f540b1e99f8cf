"""Other libraries' parameters as a workdir of ours, and back: every one used once, none left over, none made up.

    python -m jaxdet convert --from torchvision --input FILE --output DIR [--classes person]
    python -m jaxdet convert --to torchvision --input DIR --output FILE.safetensors

DIR then holds config.json with the library's preset, categories.json and one checkpoint: `jaxdet.load(DIR)` is the
detector, and `config.init_from=DIR` starts a training from it.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load, save, save_file

from jaxdet.config import presets
from jaxdet.data.tfds_layout import COCO_IDS, COCO_NAMES
from jaxdet.interop import detectron2, torchvision
from jaxdet.interop.layout import LEAVES, module_and_leaf, to_ours, to_torch
from jaxdet.interop.weights import read
from jaxdet.models import FasterRCNN
from jaxdet.models.resnet import BLOCKS
from jaxdet.runs.workdir import Workdir

MEANINGLESS = "num_batches_tracked"


def convert(library, source, output, config, classes=(), inputs=None, norm_epsilon=None):
    """Writes the workdir `output` from a file of "torchvision", "detectron2" or "timm"; returns a report to print.

    config: everything that neither the file nor the library's preset decides (changed in place). classes: names of COCO
    categories to keep of a detector. inputs: "imagenet" or "msra", how the backbone is fed, and norm_epsilon: of its
    norms, where what is known of the library's files does not hold for this one. Raises ValueError, naming parameters,
    if names or shapes are not those of a detector or ImageNet classifier (ResNet-18 to -101) that jaxdet has; nothing
    is written then.
    """
    output = Workdir(output)
    if output.path.exists() and any(output.path.iterdir()):
        raise ValueError(f"{output} is not empty")
    arrays = read(source)
    caffe2 = library == "detectron2" and any("_branch2a_w" in name for name in arrays)
    if caffe2:
        arrays = detectron2.from_caffe2(arrays)
    fixed = {}
    if library == "detectron2":
        arrays, fixed = detectron2.without_constants(arrays)
    means = {name.removesuffix("running_mean") + MEANINGLESS for name in arrays if name.endswith("running_mean")}
    counters = [name for name in arrays if name in means]
    named = [(_today(name), value) for name, value in arrays.items() if name not in counters]
    arrays = dict(named)
    if len(arrays) < len(named):
        raise ValueError(f"{source} has a parameter under its older and its newer name")
    theirs = detectron2 if library == "detectron2" else torchvision
    whole = any(name.startswith("backbone.") for name in arrays)
    unread, ignored = {}, ""
    if not whole:
        # A classifier is the body of a detector, without its prefix, and a last layer that has no place here
        last = [name for name in arrays if re.fullmatch(r"(stem\.)?fc\.(weight|bias)", name)]
        unread, ignored = {name: arrays.pop(name) for name in last}, ", ".join(last)
        classifier = {name.rpartition(".")[2]: value.shape for name, value in unread.items()}
        arrays = {theirs.BODY + name: value for name, value in arrays.items()}
        if classes:
            raise ValueError(f"{source} is a backbone: it has no classes to choose from")
    elif library == "timm":
        raise ValueError(f"{source} is a detector, and timm has none: --from torchvision or detectron2")

    shapes = {name: value.shape for name, value in arrays.items()}
    # detectron2's detectors stand on Caffe's backbones; its bare ones under its own names were torchvision's
    inputs = inputs or ("msra" if library == "detectron2" and (whole or caffe2) else "imagenet")
    _configure(config, library, theirs, shapes, whole, source)
    presets.apply(config, {"msra": presets.MSRA, "imagenet": presets.IMAGENET}[inputs])
    if norm_epsilon is not None:
        config.model.backbone.norm_epsilon = norm_epsilon
    expected = places(config, theirs, whole)
    _check(source, shapes, expected, "" if whole else theirs.BODY)
    if unread:
        channels = 2048 if config.model.backbone.depth >= 50 else 512
        if classifier.keys() != {"weight", "bias"}:
            raise ValueError(f"{source} does not fit:\n  of the classifier there is {ignored} alone")
        if classifier["weight"] != (*classifier["bias"], channels):
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in unread.items())
            raise ValueError(f"{source} does not fit:\n  {shapes}, expected weight [n, {channels}] and bias [n]")
    detectron2.check_constants(source, fixed, config)
    variables, rest = from_torch(arrays, expected, config, theirs)
    unread |= rest
    categories = _categories(config.model.num_classes)
    if classes:
        if config.model.roi_head is None:
            raise ValueError(f"{source} is an RPN alone: it has no classes to choose from")
        variables, categories = _slice(variables, categories, classes)
        config.model.num_classes, unread = len(categories), {}
    config.data.categories = tuple(category["name"] for category in categories)
    _write(output, config, categories, variables, unread)
    lines = [f"{len(expected)} of {len(expected)} parameters used once, none left over, none made up"]
    lines += [f"{len(counters)} {MEANINGLESS} mean nothing and were left out"] * bool(counters)
    lines += [f"the classifier's {ignored} kept for the way back alone"] * bool(ignored)
    lines += ["norms of Caffe2 have no statistics: mean 0 and variance 1 stand for them"] * caffe2
    lines += [f"{', '.join(fixed)}: as in the config, and left out"] * bool(fixed)
    lines += [f"classes kept: {', '.join(classes)}"] * bool(classes)
    one = "its one class is" if config.model.roi_head else "an RPN tells no classes apart: what it finds is"
    lines += [f"{one} taken for person"] * (whole and not classes and len(categories) == 1)
    lines += [f"fed as {inputs} (--inputs), norms with epsilon {config.model.backbone.norm_epsilon:g} (--norm-epsilon)"]
    what = "a detector for jaxdet.load, eval.py and" if whole else "a backbone for"
    lines += [f"ResNet-{config.model.backbone.depth}: {what} config.init_from in {output}"]
    return "\n".join(lines)


def convert_back(library, directory, output):
    """Writes a state dict of "torchvision" or "detectron2" from a workdir, as .safetensors; returns a report to print.

    What `convert` read of float32 comes back bit for bit, but for `num_batches_tracked` and under today's names. Raises
    ValueError for what the library has no place for: a GroupNorm, one set of deltas for several classes, another number
    of dense layers; or, of torchvision, an RPN alone, images in BGR and strides in 1x1.
    """
    output = pathlib.Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: the name must end in .safetensors")
    theirs = {"torchvision": torchvision, "detectron2": detectron2}[library]
    workdir = Workdir(directory)
    config = workdir.config()
    if config.model.roi_head and config.model.roi_head.class_agnostic and config.model.num_classes > 1:
        raise ValueError(f"{library} has no class-agnostic box head of this form")
    variables = flatten_dict(workdir.variables())
    whole = any(path[1] == "pyramid" for path in variables)
    head, backbone = config.model.roi_head, config.model.backbone
    odd = {
        f"model.roi_head.num_fcs={head and head.num_fcs}": whole
        and head
        and head.num_fcs != (1 if head.num_convs else 2)
    }
    if theirs is torchvision:
        odd |= {
            "model.roi_head=None": whole and not head,
            "model.bgr=True": config.model.bgr,
            "model.backbone.stride_in_1x1=True": backbone.stride_in_1x1 and backbone.depth >= 50,
        }
    if any(odd.values()):
        raise ValueError(f"{library} has no place for {', '.join(key for key, value in odd.items() if value)}")
    unread = load(workdir.unread_file.read_bytes()) if workdir.unread_file.exists() else {}
    arrays = {}
    for path, value in variables.items():
        name = _name(path, config, theirs)
        value = to_torch(np.asarray(value), path, _pool_size(config))
        if theirs is torchvision:
            rows = np.zeros((4, *value.shape[1:]), value.dtype)  # of a model of ours: nobody reads them
            value = torchvision.background_first(name, value, unread.get(name, rows))
        arrays[name] = value
    if not whole:
        arrays = {name.removeprefix(theirs.BODY): value for name, value in arrays.items()}
    arrays = {name: value for name, value in unread.items() if name not in arrays} | arrays
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, output)
    return f"{len(arrays)} parameters in {output}"


def _today(name):
    for pattern, replacement in torchvision.OLD:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _configure(config, library, theirs, shapes, whole, source):
    """Sets the keys that the library and the file decide."""
    config.model.backbone.norm, config.model.backbone.freeze_at = "frozen_batch_norm", 2
    presets.apply(config, presets.DETECTORS)
    presets.apply(config, presets.DETECTRON2 if library == "detectron2" else presets.TORCHVISION)
    if whole:
        if config.model.roi_head is None and any(name.startswith("roi_heads.") for name in shapes):
            raise ValueError(f"{source} has a second stage, the config has none (config.model.roi_head)")
        try:
            keys = theirs.recognise(shapes)
        except KeyError as error:
            raise ValueError(f"{source} lacks {error.args[0]}") from None
        except IndexError:
            raise ValueError(f"{source}: roi_heads.box_predictor.cls_score.weight has no rows") from None
        if "model.roi_head" in keys:
            config.model.roi_head = keys.pop("model.roi_head")
        config.update_from_flattened_dict(keys)

    # the depth whose names agree most; whatever is wrong with them is named later
    def agreement(depth):
        names = {
            f"{theirs.module_name(f'resnet/stage{stage}_block{block}/conv{i}', config)}.weight"
            for stage, blocks in enumerate(BLOCKS[depth], start=2)
            for block in range(blocks)
            for i in range(1, 4 if depth >= 50 else 3)
        }
        return len(names & shapes.keys()) - len(names - shapes.keys())

    config.model.backbone.depth = max(BLOCKS, key=agreement)
    if agreement(config.model.backbone.depth) <= 0:
        names = [name.removeprefix("" if whole else theirs.BODY) for name in sorted(shapes)[:3]]
        raise ValueError(f"{source} is no ResNet of {library}: its names begin {', '.join(names)}")


def places(config, theirs, whole=True):
    """{their name: (path of ours, their shape)} of every array of the model, or of its ResNet alone."""
    images, sizes = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
    model = FasterRCNN(**config.model)
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), images, sizes, method="detect"))
    expected = {}
    for path, leaf in flatten_dict(tree).items():
        if whole or path[1] == "resnet":
            shape = leaf.shape[::-1] if len(leaf.shape) < 4 else tuple(leaf.shape[i] for i in (3, 2, 0, 1))
            module, _ = module_and_leaf(path)
            if theirs is torchvision and module in torchvision.CLASS_ROWS:
                shape = (shape[0] + (4 if module.endswith("deltas") else 0), *shape[1:])
            expected[_name(path, config, theirs)] = path, shape
    return expected


def from_torch(arrays, expected, config, theirs):
    """Arrays by their names as {path of ours: array}, and {their name: rows} of what has no place here."""
    variables, unread = {}, {}
    for name, (path, _) in expected.items():
        value = arrays[name].astype(np.float32)
        if theirs is torchvision:
            value, rest = torchvision.background_last(name, value)
            if len(rest):
                unread[name] = rest
        variables[path] = to_ours(value, path, _pool_size(config))
    return variables, unread


def _name(path, config, theirs):
    module, leaf = module_and_leaf(path)
    return f"{theirs.module_name(module, config)}.{LEAVES[leaf]}"


def _pool_size(config):
    return config.model.roi_head.pool_size if config.model.roi_head else 0


def _check(source, shapes, expected, prefix):
    """Raises ValueError that names every parameter missing, left over or of another shape."""
    missing, extra = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    lines = [f"  lacks {name.removeprefix(prefix)}" for name in missing]
    lines += [f"  has {name.removeprefix(prefix)}, which has no place" for name in extra]
    for name in sorted(expected.keys() & shapes.keys()):
        if tuple(shapes[name]) != expected[name][1]:
            short = name.removeprefix(prefix)
            lines.append(f"  {short} is {list(shapes[name])}, expected {list(expected[name][1])}")
    if lines:
        more = [f"  and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise ValueError("\n".join([f"{source} does not fit:", *lines[:20], *more]))


def _categories(count):
    """COCO's categories where the number of classes says so (torchvision counts its ten gaps too), else numbers."""
    names = dict(zip(COCO_IDS, COCO_NAMES, strict=True))
    if count == 80:
        return [{"id": i, "name": names[i]} for i in COCO_IDS]
    if count == 90:
        return [{"id": i, "name": names.get(i, f"N/A {i}")} for i in range(1, 91)]
    if count == 1:
        return [{"id": 1, "name": "person"}]
    return [{"id": i + 1, "name": f"class {i + 1}"} for i in range(count)]


def _slice(variables, categories, classes):
    """The rows of some classes, in the order of their ids, and those categories."""
    names = [category["name"] for category in categories]
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(f"--classes: no {', '.join(unknown)} among {', '.join(names)}")
    kept = [i for i, name in enumerate(names) if name in classes]
    sliced = dict(variables)
    for path, value in variables.items():
        if path[1:3] == ("box_head", "class_logits"):
            sliced[path] = value[..., [*kept, len(names)]]  # and the background
        elif path[1:3] == ("box_head", "box_deltas"):
            by_class = value.reshape(*value.shape[:-1], len(names), 4)[..., kept, :]
            sliced[path] = by_class.reshape(*value.shape[:-1], -1)
    return sliced, [categories[i] for i in kept]


def _write(workdir, config, categories, variables, unread):
    workdir.path.mkdir(parents=True, exist_ok=True)
    workdir.write_config(config)
    workdir.write_categories(categories)
    if unread:
        workdir.unread_file.write_bytes(save(unread))
    workdir.save_converted(unflatten_dict(variables))  # last: without it there is no run
