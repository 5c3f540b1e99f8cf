"""torchvision's side of benchmarks.run: the same work with its own functions and models; see rows.py."""

import functools

import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks import inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True  # tries algorithms for each shape, as XLA does


def peak_memory():
    """MiB that the device held at most, None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else None


def device():
    """Name of the device."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"


def _cast(dtype):
    """The context of the forward pass: autocast for bfloat16."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16")


def _finish(run):
    """Waits for the device after each call."""

    @functools.wraps(run)
    def waiting():
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return waiting


def _model(height, width):
    """R50-FPN for one class and the background, frozen as in its recipe; images keep their size."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d, trainable_layers=3
    )
    sizes = {"min_size": min(height, width), "max_size": max(height, width)}
    # as many proposals as detectron2's recipe, which jaxdet's rows have
    model = FasterRCNN(backbone, 2, rpn_post_nms_top_n_train=1000, **sizes).to(DEVICE)
    # Random offsets pile the proposals up on each other, and NMS leaves 258 of 1,000 at 512x512; all of jaxdet's are
    # there.
    torch.nn.init.zeros_(model.rpn.head.bbox_pred.weight)
    return model


def _images(count, height, width):
    images = torch.from_numpy(inputs.images(count, height, width)).to(DEVICE)
    return list(images.permute(0, 3, 1, 2).float() / 255)


def _check_proposals(rpn, given, output):
    """Called after the RPN: as much work for the box head as jaxdet's has."""
    counts = [len(boxes) for boxes in output[0]]
    if set(counts) != {1000}:
        raise ValueError(f"{counts} proposals, not 1000 an image")


def infer(height, width, batch=1, dtype="float32"):
    model, images = _model(height, width).eval(), _images(batch, height, width)
    model.rpn.register_forward_hook(_check_proposals)

    @_finish
    @torch.inference_mode()
    def run():
        with _cast(dtype):
            model(images)

    return run


def train(height, width, batch=2, dtype="float32"):
    model, images = _model(height, width).train(), _images(batch, height, width)
    labels = torch.ones(8, dtype=torch.int64, device=DEVICE)
    boxes = torch.from_numpy(inputs.true_boxes(batch, 8, height, width)).to(DEVICE)
    targets = [{"boxes": each, "labels": labels} for each in boxes]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    @_finish
    def run():
        optimizer.zero_grad()
        with _cast(dtype):
            loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()

    return run


def roi_align(count, gradient):
    levels = {
        str(i): torch.from_numpy(level).permute(2, 0, 1)[None].contiguous().to(DEVICE)
        for i, level in enumerate(inputs.pyramid())
    }
    boxes = [torch.from_numpy(inputs.proposals(count)).to(DEVICE)]
    pool = torchvision.ops.MultiScaleRoIAlign(list(levels), 7, 2)
    if gradient:
        levels = {name: level.requires_grad_() for name, level in levels.items()}

    @_finish
    def run():
        crops = pool(levels, boxes, [inputs.SIZE])
        if gradient:
            torch.autograd.grad(crops.sum(), list(levels.values()))

    return run


def nms(clustered):
    boxes, scores = (torch.from_numpy(array).to(DEVICE) for array in inputs.level_boxes(clustered))
    levels = torch.arange(5, device=DEVICE).repeat_interleave(boxes.shape[1])
    boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1)
    return _finish(lambda: torchvision.ops.batched_nms(boxes, scores, levels, 0.7)[:1000])
