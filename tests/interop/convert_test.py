"""Files with the real names and shapes of the published models: there, back, and refused by name."""

import functools
import json
import pickle
import shutil
import zlib

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import jaxdet
from configs import person, person_rpn, person_small
from jaxdet import __main__
from jaxdet.config import presets
from jaxdet.data.coco import choose_categories
from jaxdet.data.tfds_layout import COCO_IDS, COCO_NAMES
from jaxdet.interop import detectron2, layout
from jaxdet.interop.convert import convert, convert_back
from jaxdet.runs.workdir import Workdir
from jaxdet.training import loop
from jaxdet.training.validation import evaluate_run
from tests import tiny
from tests.models.reference import Reference

MODELS = {
    "tv_fasterrcnn_resnet18_fpn": "torchvision",
    "tv_fasterrcnn_resnet50_fpn": "torchvision",
    "tv_fasterrcnn_resnet50_fpn_v2": "torchvision",
    "tv_resnet18": "torchvision",
    "tv_resnet50": "timm",
    "d2_R50_FPN": "detectron2",
    "d2_RPN_R50_FPN": "detectron2",
}


def entries(golden, model):
    return json.loads((golden / f"names_{model}.json").read_text())["entries"]


def arrays_of(golden, model):
    """Random numbers under the names of a published model."""
    arrays = {}
    for name, shape in entries(golden, model):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        counter = name.endswith("num_batches_tracked")
        arrays[name] = np.array(7) if counter else rng.standard_normal(shape, dtype=np.float32)
    return arrays


@pytest.fixture(scope="module")
def published(golden, tmp_path_factory):
    """Function of a model's name: the file of its `arrays_of`."""
    folder = tmp_path_factory.mktemp("published")

    @functools.cache
    def write(model):
        save_file(arrays_of(golden, model), folder / f"{model}.safetensors")
        return folder / f"{model}.safetensors"

    return write


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    """Function of a model's name: the workdir made of its file with person.py, not to be changed, and the report."""
    folder = tmp_path_factory.mktemp("converted")

    @functools.cache
    def make(model):
        report = convert(MODELS[model], published(model), folder / model, person.get_config())
        return folder / model, report

    return make


@pytest.fixture(scope="module")
def classifier(golden):
    return arrays_of(golden, "tv_resnet18")


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back_is_the_identity(published, converted, tmp_path, model):
    arrays, library = load_file(published(model)), MODELS[model]
    workdir, report = converted(model)
    assert "used once, none left over, none made up" in report
    back_to = "torchvision" if library == "timm" else library
    convert_back(back_to, workdir, tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == {name for name in arrays if not name.endswith("num_batches_tracked")}
    for name, value in back.items():
        np.testing.assert_array_equal(value, arrays[name], err_msg=name)


def classifier_entries(depth):
    """Names and shapes of timm's and torchvision's ResNets, from the architecture."""
    blocks = {34: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    expansion = 4 if depth > 34 else 1
    entries, channels = [("conv1.weight", (64, 3, 7, 7)), ("bn1", 64)], 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            sides = (1, 3, 1) if expansion > 1 else (3, 3)
            outputs = (width, width, 4 * width) if expansion > 1 else (width, width)
            inputs = (channels, *outputs[:-1])
            for i, (side, before, after) in enumerate(zip(sides, inputs, outputs, strict=True), start=1):
                entries += [(f"{name}.conv{i}.weight", (after, before, side, side)), (f"{name}.bn{i}", after)]
            if block == 0 and channels != outputs[-1]:
                entries += [
                    (f"{name}.downsample.0.weight", (outputs[-1], channels, 1, 1)),
                    (f"{name}.downsample.1", outputs[-1]),
                ]
            channels = outputs[-1]
    entries += [("fc.weight", (1000, channels)), ("fc.bias", (1000,))]
    parts = ("weight", "bias", "running_mean", "running_var")
    norms = {f"{n}.{part}": (s,) for n, s in entries if isinstance(s, int) for part in parts}
    return {n: s for n, s in entries if not isinstance(s, int)} | norms


@pytest.mark.parametrize("depth", [34, 101])
def test_other_depths(tmp_path, depth):
    rng = np.random.default_rng(depth)
    arrays = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in classifier_entries(depth).items()}
    save_file(arrays, tmp_path / "there.safetensors")
    report = convert("timm", tmp_path / "there.safetensors", tmp_path / "run", person.get_config())
    assert f"ResNet-{depth}: a backbone" in report
    convert_back("torchvision", tmp_path / "run", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == arrays.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, arrays[name], err_msg=name)


def test_names_of_older_files(golden, tmp_path):
    old = json.loads((golden / "names_tv_fasterrcnn_resnet50_fpn.json").read_text())["old_names"]
    arrays = arrays_of(golden, "tv_fasterrcnn_resnet18_fpn")
    older = {new: name for name, new in old.items()}
    save_file({older.get(name, name): value for name, value in arrays.items()}, tmp_path / "old.safetensors")
    convert("torchvision", tmp_path / "old.safetensors", tmp_path / "run", person.get_config())
    convert_back("torchvision", tmp_path / "run", tmp_path / "back.safetensors")
    assert load_file(tmp_path / "back.safetensors").keys() == arrays.keys()
    both = arrays | {"rpn.head.conv.weight": arrays["rpn.head.conv.0.0.weight"]}
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match="under its older and its newer name"):
        convert("torchvision", tmp_path / "both.safetensors", tmp_path / "other", person.get_config())


def change(arrays, fault):
    arrays = dict(arrays)
    if fault == "missing":
        del arrays["layer2.0.bn1.running_var"]
    elif fault == "renamed":
        arrays["layer3.2.conv1.weight"] = arrays.pop("layer3.1.conv1.weight")
    elif fault == "shape":
        arrays["layer1.0.conv2.weight"] = arrays["layer1.0.conv2.weight"][:, :32]
    elif fault == "extra":
        arrays["layer5.gamma"] = np.ones(3, np.float32)
    elif fault == "counter":
        arrays["gamma.num_batches_tracked"] = np.array(1)
    elif fault == "classifier":
        del arrays["fc.weight"]
    elif fault == "bias":
        arrays["fc.bias"] = arrays["fc.bias"][:3]
    elif fault == "nan":
        arrays["conv1.weight"] = np.full_like(arrays["conv1.weight"], np.nan)
    return arrays


@pytest.mark.parametrize(
    "fault, answers",
    [
        ("missing", ["lacks layer2.0.bn1.running_var"]),
        ("renamed", ["lacks layer3.1.conv1.weight", "has layer3.2.conv1.weight, which has no place"]),
        ("shape", ["layer1.0.conv2.weight is [64, 32, 3, 3], expected [64, 64, 3, 3]"]),
        ("extra", ["has layer5.gamma, which has no place"]),
        ("counter", ["has gamma.num_batches_tracked, which has no place"]),
        ("classifier", ["of the classifier there is fc.bias alone"]),
        ("bias", ["fc.bias [3]", "expected weight [n, 512] and bias [n]"]),
        ("nan", ["conv1.weight is not finite"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(classifier, tmp_path, fault, answers):
    save_file(change(classifier, fault), tmp_path / "file.safetensors")
    with pytest.raises(ValueError) as error:
        convert("torchvision", tmp_path / "file.safetensors", tmp_path / "run", person.get_config())
    assert all(answer in str(error.value) for answer in answers)
    assert not (tmp_path / "run").exists()


def test_the_predictors_missing(golden, tmp_path):
    for library, model in (("torchvision", "tv_fasterrcnn_resnet18_fpn"), ("detectron2", "d2_R50_FPN")):
        arrays = arrays_of(golden, model)
        del arrays["roi_heads.box_predictor.cls_score.weight"]
        save_file(arrays, tmp_path / "file.safetensors")
        with pytest.raises(ValueError, match=r"lacks roi_heads\.box_predictor\.cls_score\.weight"):
            convert(library, tmp_path / "file.safetensors", tmp_path / "run", person.get_config())


def test_something_else(tmp_path):
    save_file({"encoder.weight": np.ones(3, np.float32)}, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"is no ResNet of timm: its names begin encoder\.weight"):
        convert("timm", tmp_path / "file.safetensors", tmp_path / "run", person.get_config())


def test_a_person_detector_from_91_classes(published, tmp_path):
    path = published("tv_fasterrcnn_resnet50_fpn")
    arrays = load_file(path)
    flags = ["--from=torchvision", f"--input={path}", "--classes", "person"]
    __main__.main(["convert", f"--output={tmp_path / 'run'}", *flags])
    detector = jaxdet.load(tmp_path / "run")
    assert detector.categories == ({"id": 1, "name": "person"},)
    assert detector.config.model.num_classes == 1 and detector.config.model.backbone.norm_epsilon == 0
    assert detector.config.data.categories == ("person",)
    head = detector.variables["params"]["box_head"]
    scores, deltas = (arrays[f"roi_heads.box_predictor.{name}.weight"] for name in ("cls_score", "bbox_pred"))
    np.testing.assert_array_equal(head["class_logits"]["kernel"].T, scores[[1, 0]])
    np.testing.assert_array_equal(head["box_deltas"]["kernel"].T, deltas[4:8])
    with pytest.raises(SystemExit, match="no walrus among person, bicycle"):
        __main__.main(["convert", f"--output={tmp_path / 'other'}", *flags[:-1], "walrus"])
    with pytest.raises(SystemExit, match="is not empty"):
        __main__.main(["convert", f"--output={tmp_path / 'run'}", *flags])


def test_presets_are_stored_beside(published, tmp_path):
    convert("detectron2", published("d2_RPN_R50_FPN"), tmp_path / "run", person.get_config("torchvision"))
    config = Workdir(tmp_path / "run").config()
    assert config.model.roi_head is None and config.model.bgr and config.model.backbone.stride_in_1x1
    assert not config.model.rpn.rounded_anchors and config.data.val.resizing == "detectron2"
    assert not any("box_head" in path for path in flatten_dict(Workdir(tmp_path / "run").variables()))


def test_pixels_to_detections_are_torchvisions(golden, tmp_path):
    """Their file, the command, `jaxdet.load`, an image that is resized on the way, boxes in its own pixels."""
    reference = Reference(golden, "tv_resnet18")
    save_file(reference.arrays, tmp_path / "there.safetensors")
    config, z, given = person.get_config(), reference.values, reference.config
    config.model.rpn.pre_nms_topk = (given["pre_nms_topk"],) * 2
    config.data.val.update(short_sides=(given["short"],), longest_side=given["long"])
    convert("torchvision", tmp_path / "there.safetensors", tmp_path / "run", config)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["model"]["rpn"]["post_nms_topk"] = [given["post_nms_topk"]] * 2  # the preset has its own
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    with tiny.quick_compilation():
        found = jaxdet.load(tmp_path / "run")(z["scaled/image"])
    np.testing.assert_array_equal(found["labels"], z["scaled/labels"])
    np.testing.assert_allclose(found["scores"], z["scaled/scores"], atol=1e-4)
    np.testing.assert_allclose(found["boxes"], z["scaled/boxes"], atol=1e-2)


def test_the_default_is_detectron2s():
    config = person.get_config()
    presets.apply(config, presets.DETECTRON2)
    presets.apply(config, presets.IMAGENET)
    assert config == person.get_config() != person.get_config("torchvision")


def test_a_backbone_is_no_detector(classifier, tmp_path):
    save_file(classifier, tmp_path / "file.safetensors")
    convert("torchvision", tmp_path / "file.safetensors", tmp_path / "run", person.get_config())
    config = Workdir(tmp_path / "run").config()
    config.data.train.update(source="synthetic", scenes=8, short_sides=(64,), longest_side=96)
    config.data.val.update(source="synthetic", scenes=4, short_sides=(64,), longest_side=96)
    with pytest.raises(ValueError, match=r"holds a converted model; .* config\.init_from="):
        loop.train(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"backbone alone .* config\.init_from"):
        jaxdet.load(tmp_path / "run")
    config.data.categories = ("person",)
    with pytest.raises(ValueError, match=r"backbone alone .* config\.init_from"):
        evaluate_run(config, tmp_path / "run")


def caffe2_of(arrays):
    """Those of a D2 backbone under Caffe2's names, as `MSRA/R-50.pkl` has them."""
    renamed = {"conv1_b": np.zeros(64, np.float32), "fc1000_w": np.ones((1000, 2048), np.float32)}
    renamed["fc1000_b"] = np.ones(1000, np.float32)
    for name, value in arrays.items():
        prefix, _, leaf = name.removeprefix(detectron2.BODY).rpartition(".")
        if not name.startswith(detectron2.BODY) or leaf.startswith("running"):
            continue
        *place, last = prefix.removesuffix(".norm").split(".")
        base = "conv1" if place == ["stem"] else f"{'_'.join(place)}_branch" + {
            "shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"
        }[last]  # fmt: skip
        if prefix.endswith(".norm"):
            base = "res_conv1" if base == "conv1" else base
            renamed[f"{base}_bn_{'s' if leaf == 'weight' else 'b'}"] = value
        else:
            renamed[f"{base}_w"] = value
    return renamed


def test_a_backbone_under_names_of_caffe2(golden, tmp_path):
    arrays = arrays_of(golden, "d2_R50_FPN")
    content = caffe2_of(arrays)
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": content | {"conv1_w_momentum": content["conv1_w"]}}, 2))
    report = convert("detectron2", tmp_path / "R-50.pkl", tmp_path / "run", person.get_config())
    assert "mean 0 and variance 1" in report and "ResNet-50: a backbone" in report
    assert (
        Workdir(tmp_path / "run").config().model.bgr and Workdir(tmp_path / "run").config().model.backbone.stride_in_1x1
    )
    convert_back("detectron2", tmp_path / "run", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    body = {
        name.removeprefix(detectron2.BODY): value for name, value in arrays.items() if name.startswith(detectron2.BODY)
    }
    assert back.keys() == body.keys() | {"stem.fc.weight", "stem.fc.bias"}
    for name, value in body.items():
        if name.endswith("running_mean"):
            assert not back[name].any()
        elif name.endswith("running_var"):
            np.testing.assert_allclose(back[name] + np.float32(1e-5), 1, rtol=1e-7)
        else:
            np.testing.assert_array_equal(back[name], value, err_msg=name)
    del content["res4_2_branch2b_w"]
    content["res6_0_branch1_w"] = content["fc1000_b"]
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=r"lacks res4\.2\.conv2\.weight\n.*has res6\.0\.shortcut\.weight"):
        convert("detectron2", tmp_path / "R-50.pkl", tmp_path / "other", person.get_config())


def test_the_config_does_not_decide_the_network(published, converted, tmp_path):
    """person_small.py has other anchors, a narrower pyramid with norms and a smaller head; its images' sizes stay."""
    path = published("tv_fasterrcnn_resnet18_fpn")
    convert("torchvision", path, tmp_path / "small", person_small.get_config())
    folders = tmp_path / "small", converted("tv_fasterrcnn_resnet18_fpn")[0]
    small, full = (Workdir(folder).config() for folder in folders)
    assert small.model.fpn == full.model.fpn and small.model.rpn.anchor_sizes == full.model.rpn.anchor_sizes
    assert small.model.roi_head.hidden == 1024 and small.data.val.short_sides == (256,)


def test_what_older_detectors_hold_besides(golden, tmp_path):
    arrays = arrays_of(golden, "d2_RPN_R50_FPN") | {"pixel_mean": np.float32([[[103.53]], [[116.28]], [[123.675]]])}
    for level, side in enumerate((32, 64, 128, 256, 512)):
        w, h = side / np.sqrt([0.5, 1, 2]) / 2, side * np.sqrt([0.5, 1, 2]) / 2
        cells = np.stack([-w, -h, w, h], -1).astype(np.float32)
        arrays[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = cells
    save_file(arrays, tmp_path / "file.safetensors")
    report = convert("detectron2", tmp_path / "file.safetensors", tmp_path / "run", person_rpn.get_config())
    assert "cell_anchors.4: as in the config, and left out" in report
    arrays["proposal_generator.anchor_generator.cell_anchors.3"] *= 2
    save_file(arrays, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"cell_anchors\.3 is \[-362\.04"):
        convert("detectron2", tmp_path / "file.safetensors", tmp_path / "other", person_rpn.get_config())


def test_a_person_config_of_coco(converted):
    """The gaps in COCO's ids, which torchvision's 91 outputs count, need no name in the annotations."""
    workdir, _ = converted("tv_fasterrcnn_resnet50_fpn")
    listed = [{"id": i, "name": name} for i, name in zip(COCO_IDS, COCO_NAMES, strict=True)]
    chosen, known = choose_categories("file", listed, Workdir(workdir).config().data.categories)
    assert list(chosen) == json.loads((workdir / "categories.json").read_text())
    assert len(chosen) == 90 and len(known) == 80
    with pytest.raises(ValueError, match="no category named 'N/A'"):
        choose_categories("file", listed, ("person", "N/A"))


def test_how_the_backbone_is_fed_can_be_said(published, tmp_path):
    flags = ["--input", str(published("d2_RPN_R50_FPN")), "--output", str(tmp_path / "run")]
    flags += ["--inputs", "imagenet", "--norm-epsilon", "1e-3", "--config", "configs/person_rpn.py"]
    __main__.main(["convert", "--from", "detectron2", *flags])
    model = Workdir(tmp_path / "run").config().model
    assert not model.bgr and not model.backbone.stride_in_1x1 and model.backbone.norm_epsilon == 1e-3


def test_what_torchvision_has_no_place_for(converted, tmp_path):
    answer = "roi_head=None, model.bgr=True, model.backbone.stride_in_1x1=True"
    with pytest.raises(ValueError, match=answer):
        convert_back("torchvision", converted("d2_RPN_R50_FPN")[0], tmp_path / "back.safetensors")


def test_a_second_stage_that_the_config_has_not(published, tmp_path):
    with pytest.raises(ValueError, match=r"has a second stage, the config has none"):
        convert("torchvision", published("tv_fasterrcnn_resnet18_fpn"), tmp_path / "run", person_rpn.get_config())


def test_what_has_no_counterpart_is_not_written(tiny_run, tmp_path):
    flags = ["convert", "--to=torchvision", f"--input={tiny_run.workdir}", f"--output={tmp_path / 'x.safetensors'}"]
    __main__.main(flags)  # a run of ours with batch normalisation everywhere
    assert (tmp_path / "x.safetensors").exists()
    workdir = shutil.copytree(tiny_run.workdir, tmp_path / "agnostic")
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["roi_head"]["class_agnostic"] = True
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no class-agnostic box head"):
        convert_back("detectron2", workdir, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="resnet/stem_norm/group_norm has no counterpart"):
        layout.renamed("resnet/stem_norm/group_norm", [("resnet/stem_norm", "bn1")])
