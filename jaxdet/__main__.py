"""python -m jaxdet COMMAND ... (or `jaxdet COMMAND ...` once installed)."""

import argparse
import json
import pathlib
import sys

import tqdm
from absl import logging

from jaxdet.command_line import load_config


def main(arguments=None):
    """Parses the command line and runs one command; exits with a message where it cannot."""
    parser = argparse.ArgumentParser(prog="jaxdet", description="Faster R-CNN in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("predict", help="draw the detections of pictures and write them as JSON")
    command.add_argument("--workdir", required=True, help="folder of a trained run")
    command.add_argument("--output", help="folder for the results (default: WORKDIR/predictions)")
    command.add_argument("--threshold", type=float, default=0.5, help="lowest score drawn (default: 0.5)")
    command.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files")
    command.set_defaults(run=predict)
    command = commands.add_parser(
        "convert", help="read or write parameters of torchvision, detectron2 and timm"
    )
    way = command.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="origin", choices=("torchvision", "detectron2", "timm"))
    way.add_argument("--to", choices=("torchvision", "detectron2"))
    command.add_argument(
        "--input", required=True, help="file to read (.safetensors, .pth, .pkl), or with --to a workdir"
    )
    command.add_argument("--output", required=True, help="new workdir, or with --to a .safetensors file")
    command.add_argument(
        "--classes", nargs="+", default=(), help="categories to keep of a detector, such as person"
    )
    command.add_argument(
        "--config", default="configs/person.py", help="for all that the file does not decide"
    )
    command.add_argument(
        "--inputs",
        choices=("imagenet", "msra"),
        help="how the backbone is fed: RGB as torchvision's, or BGR and strides in 1x1 as detectron2's own (default: by what is known of the library)",
    )
    command.add_argument(
        "--norm-epsilon", type=float, help="of the backbone's norms (default: by what is known of the file)"
    )
    command.set_defaults(run=convert)
    options = parser.parse_args(arguments)
    if options.run is convert and options.to and (options.classes or options.inputs or options.norm_epsilon):
        parser.error("--classes, --inputs and --norm-epsilon go with --from")
    logging.set_verbosity(logging.ERROR)  # Orbax warns that it only reads
    try:
        options.run(options)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"jaxdet: {error}")


def predict(options):
    """Writes each picture with its detections drawn, and OUTPUT/detections.json with all of them.

    A picture that does not open is named and left out; the exit code is then 1.
    """
    import jaxdet
    from jaxdet.data.images import decode
    from jaxdet.drawing import draw

    detector = jaxdet.load(options.workdir)
    output = pathlib.Path(options.output or pathlib.Path(options.workdir) / "predictions")
    output.mkdir(parents=True, exist_ok=True)
    names = [category["name"] for category in detector.categories]
    results, failed, taken = [], [], set()
    for path in tqdm.tqdm(options.pictures, unit="picture"):
        try:
            image = decode(path)
        except (OSError, ValueError) as error:
            failed.append(f"{path}: {error}")
            continue
        found = detector(image)
        drawn = _free_name(pathlib.Path(path).stem, taken)
        draw(
            image, found["boxes"], found["scores"], found["labels"], names, threshold=options.threshold
        ).save(output / drawn)
        detections = [
            {"box": box, "score": score, "label": names[label]}
            for box, score, label in zip(
                *(found[k].tolist() for k in ("boxes", "scores", "labels")), strict=True
            )
        ]
        results.append({"picture": str(path), "drawn": drawn, "detections": detections})
    (output / "detections.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results)} pictures and detections.json (boxes x1 y1 x2 y2 in pixels) in {output}")
    if failed:
        sys.exit("left out:\n" + "\n".join(failed))


def convert(options):
    """A workdir from another library's file, or such a file from a workdir; see jaxdet.interop.convert."""
    from jaxdet.interop import convert as interop

    if options.to:
        print(interop.export(options.to, options.input, options.output))
        return
    config = load_config(options.config)
    chosen = options.classes, options.inputs, options.norm_epsilon
    print(interop.convert(options.origin, options.input, options.output, config, *chosen))


def _free_name(stem, taken):
    """STEM.png, or STEM-2.png .. where two folders hold pictures of one name."""
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name)
    return name


if __name__ == "__main__":
    main()
