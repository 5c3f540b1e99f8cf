"""Operations and bytes of Faster R-CNN with ResNet-50 and FPN, counted by hand from the shapes of its layers.

    python -m benchmarks.operations --height 800 --width 1344 --batch 16 --bytes 2

Operations: 2 for each multiplication with addition, of convolutions and dense layers alone; the backward pass has the
gradient of the input and that of the kernel, without what freezing the stem and the first stage (`freeze_at` 2) saves.
Bytes: what a convolution reads and writes in each pass, and one more pass over its output for normalisation and ReLU;
parameters, proposals and boxes are little beside it. A part that is fused better moves less.
"""

import argparse
from typing import NamedTuple

BLOCKS = (3, 4, 6, 3)
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16 operations a second, dense
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.0e12}  # bytes a second


class Layer(NamedTuple):
    """A convolution or dense layer of one image: cells of input and output, kernel cells, channels."""

    part: str
    cells_in: int
    cells: int
    kernel: int
    channels_in: int
    channels: int
    trained: bool = True
    passes_on: bool = True  # the gradient, to what lies before it


def layers(height, width, rois):
    """All layers of one image."""

    def cells(stride):
        return -(-height // stride) * -(-width // stride)

    found = [Layer("stem", cells(1), cells(2), 49, 3, 64, False, False)]
    before, stride = 64, 4
    for stage, blocks in enumerate(BLOCKS, start=2):
        width_here, trained = 64 * 2 ** (stage - 2), stage > 2
        for block in range(blocks):
            here = cells(stride)
            first = cells(stride // 2) if stage > 2 and block == 0 else here
            passes_on = trained and not (stage == 3 and block == 0)
            shapes = [(first, first, 1, before, width_here), (first, here, 9, width_here, width_here)]
            shapes += [(here, here, 1, width_here, 4 * width_here)]
            shapes += [(first, here, 1, before, 4 * width_here)] * (block == 0)
            for i, shape in enumerate(shapes):
                found.append(Layer(f"stage{stage}", *shape, trained, passes_on if i in (0, 3) else trained))
            before = 4 * width_here
        stride *= 2
    for level, channels in ((4, 256), (8, 512), (16, 1024), (32, 2048)):
        found.append(Layer("pyramid", cells(level), cells(level), 1, channels, 256, True, level > 4))
        found.append(Layer("pyramid", cells(level), cells(level), 9, 256, 256))
    for level in (4, 8, 16, 32, 64):
        found.append(Layer("rpn", cells(level), cells(level), 9, 256, 256))
        found.append(Layer("rpn", cells(level), cells(level), 1, 256, 15))
    for channels_in, channels in ((49 * 256, 1024), (1024, 1024), (1024, 6)):
        found.append(Layer("head", rois, rois, 1, channels_in, channels))
    return found


def operations(layer, training):
    """Of one layer."""
    forward = 2 * layer.cells * layer.kernel * layer.channels_in * layer.channels
    return forward * (1 + training * (layer.trained + layer.passes_on))


def elements(layer, training):
    """Elements moved by a layer: input and output, the output twice more for norm and ReLU; again for each gradient."""
    read, written = layer.cells_in * layer.channels_in, layer.cells * layer.channels
    backward = layer.trained * (read + 4 * written) + layer.passes_on * (read + written)
    return read + 3 * written + training * backward


def total(height, width, rois, training):
    """Operations and elements moved, of one image."""
    found = layers(height, width, rois)
    return sum(operations(each, training) for each in found), sum(elements(each, training) for each in found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--bytes", type=int, default=4, help="of a number: 4 for float32, 2 for bfloat16")
    options = parser.parse_args()
    for name, rois, training in (("inference", 1000, False), ("training", 512, True)):
        found = layers(options.height, options.width, rois)
        print(f"{name}, {options.batch} of {options.height}x{options.width}:    GFLOP       GB")
        for part in dict.fromkeys(layer.part for layer in found):
            work = sum(operations(each, training) for each in found if each.part == part)
            moved = sum(elements(each, training) for each in found if each.part == part)
            print(f"  {part:20} {options.batch * work / 1e9:12,.0f} {options.batch * options.bytes * moved / 1e9:8.1f}")
        work, moved = total(options.height, options.width, rois, training)
        work, moved = options.batch * work, options.batch * options.bytes * moved
        print(f"  {'all':20} {work / 1e9:12,.0f} {moved / 1e9:8.1f}")
        for chip, peak in PEAK.items():
            times = 1000 * work / peak, 1000 * moved / BANDWIDTH[chip]
            print(f"  {chip}: {times[0]:.1f} ms at its peak in bfloat16, {times[1]:.1f} ms of its memory")


if __name__ == "__main__":
    main()
