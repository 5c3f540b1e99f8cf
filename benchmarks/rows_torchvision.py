"""torchvision's side of benchmarks.run: the same work with its own functions and models; see rows.py."""

import functools

import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks import inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def peak_memory():
    """MiB that the device held at most, None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else None


def _finish(run):
    """Waits for the device after each call."""

    @functools.wraps(run)
    def waiting():
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return waiting


def _model(height, width):
    """R50-FPN for one class and the background, frozen as in its recipe; pictures keep their size."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=torchvision.ops.FrozenBatchNorm2d,
        trainable_layers=3,
    )
    return FasterRCNN(backbone, 2, min_size=min(height, width), max_size=max(height, width)).to(DEVICE)


def _pictures(count, height, width):
    pictures = torch.from_numpy(inputs.pictures(count, height, width)).to(DEVICE)
    return list(pictures.permute(0, 3, 1, 2).float() / 255)


def infer(height, width):
    model, pictures = _model(height, width).eval(), _pictures(1, height, width)

    @_finish
    @torch.inference_mode()
    def run():
        model(pictures)

    return run


def train(side):
    model, pictures = _model(side, side).train(), _pictures(2, side, side)
    labels = torch.ones(8, dtype=torch.int64, device=DEVICE)
    boxes = torch.from_numpy(inputs.true_boxes(2, 8, side, side)).to(DEVICE)
    targets = [{"boxes": each, "labels": labels} for each in boxes]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    @_finish
    def run():
        optimizer.zero_grad()
        sum(model(pictures, targets).values()).backward()
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
