"""python -m jaxdet COMMAND ... (or `jaxdet COMMAND ...` once installed)."""

import argparse
import sys

from absl import logging

from jaxdet.config.limits import LIMITS


def main(arguments=None):
    """Parses the command line and runs one command. Exits with a message if it fails."""
    parser = argparse.ArgumentParser(prog="jaxdet", description="Faster R-CNN in JAX.")
    commands = parser.add_subparsers(metavar="COMMAND")
    # their flags are defined in jaxdet.training.commands, for train.py and eval.py too
    command = commands.add_parser("train", help="train a detector", add_help=False)
    command.set_defaults(run=train)
    command = commands.add_parser("evaluate", help="COCO numbers of a trained run", add_help=False)
    command.set_defaults(run=evaluate)
    command = commands.add_parser("predict", help="draw the detections of images and videos and write them as JSON")
    command.add_argument("--workdir", required=True, help="folder of a trained run")
    command.add_argument("--output", help="folder for the results (default: WORKDIR/predictions)")
    command.add_argument("--threshold", type=float, default=0.5, help="lowest score drawn (default: 0.5)")
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE",
        help="image and video files, folders with their subfolders, or patterns such as 'in/**/*.jpg'",
    )
    command.set_defaults(run=predict)
    command = commands.add_parser("convert", help="read or write parameters of torchvision, detectron2 and timm")
    way = command.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="origin", choices=("torchvision", "detectron2", "timm"))
    way.add_argument("--to", choices=("torchvision", "detectron2"))
    command.add_argument(
        "--input", required=True, help="file to read (.safetensors, .pth, .pkl), or with --to a workdir"
    )
    command.add_argument("--output", required=True, help="new workdir, or with --to a .safetensors file")
    command.add_argument("--classes", nargs="+", default=(), help="categories to keep of a detector, such as person")
    command.add_argument(
        "--config", default="person", metavar="FILE[:ARGS]", help="for everything that the file does not decide"
    )
    command.add_argument(
        "--inputs",
        choices=("imagenet", "msra"),
        help="input of the backbone: RGB as in torchvision, or BGR and strides in 1x1 as in detectron2's own "
        "(default: what the library is known to use)",
    )
    command.add_argument(
        "--norm-epsilon", type=float, help="of the backbone's norms (default: what the library is known to use)"
    )
    command.set_defaults(run=convert)
    command = commands.add_parser("export", help="write the detector as one file that needs only JAX to run")
    command.add_argument("--workdir", required=True, help="folder of a trained run")
    command.add_argument("--output", required=True, help="file to write, such as person.jaxdet")
    command.add_argument(
        "--parameters-beside", action="store_true", help="parameters in OUTPUT.safetensors instead of inside"
    )
    command.set_defaults(run=export)
    command = commands.add_parser("serve", help="answer images over HTTP; see docs/serve.md")
    command.add_argument("--workdir", required=True, help="folder of a trained run")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    command.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    for key in LIMITS:
        command.add_argument(
            _flag(key),
            type=type(key.default),
            default=key.default,
            help=f"{key.meaning} (default: {key.default:,.10g} {key.unit})",
        )
    command.set_defaults(run=serve)
    command = commands.add_parser("inspect", help="look at a data set before training on it")
    command.add_argument("--config", required=True, metavar="FILE[:ARGS]", help="config of the training")
    command.add_argument("--output", default="inspect", help="folder for the page (default: inspect)")
    command.set_defaults(run=inspect)
    command = commands.add_parser("report", help="a page about a trained run: numbers, curves, images")
    command.add_argument("--workdir", required=True, help="folder of a trained run")
    command.add_argument("--compare", metavar="WORKDIR", help="another run to show beside it, on the same images")
    command.add_argument("--output", help="folder for the page (default: WORKDIR/report)")
    command.add_argument("--images", "--pictures", type=int, default=80, help="how many in the gallery (default: 80)")
    command.add_argument(
        "--choose",
        choices=("random", "worst"),
        default="random",
        help="which images: random, or those with the largest errors",
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the random choice (default: 0)")
    command.set_defaults(run=report)
    for name in ("convert", "inspect", "report"):
        commands.choices[name].epilog = "Keys of the config are set with --config.KEY=VALUE."
    options, options.rest = parser.parse_known_args(arguments)
    if "run" not in options:
        parser.print_help()
        return
    writes_back = options.run is convert and options.to
    if options.rest and (writes_back or options.run not in (train, evaluate, convert, inspect, report)):
        parser.error(f"unrecognized arguments: {' '.join(options.rest)}")
    if writes_back and (options.classes or options.inputs or options.norm_epsilon):
        parser.error("--classes, --inputs and --norm-epsilon go with --from")
    logging.set_verbosity(logging.ERROR)  # Orbax warns that it only reads
    if hasattr(sys.stdout, "reconfigure"):  # file names may hold characters that no terminal can print
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options.run(options)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"jaxdet: {error}")


def train(options):
    """Trains a config; see jaxdet.training.commands."""
    from jaxdet.training import commands

    commands.train(["jaxdet train", *options.rest])


def evaluate(options):
    """Evaluates a run; see jaxdet.training.commands."""
    from jaxdet.training import commands

    commands.evaluate(["jaxdet evaluate", *options.rest])


def predict(options):
    """Draws the detections of images and videos, and writes them as JSON; see jaxdet.inference.predict."""
    from jaxdet.inference.predict import predict_all

    written, failed = predict_all(options.workdir, options.inputs, options.output, options.threshold)
    print(written)
    if failed:
        sys.exit("left out:\n" + "\n".join(failed))


def convert(options):
    """Converts another library's file to a workdir, or back; see jaxdet.interop.convert."""
    from jaxdet.interop import convert as interop

    if options.to:
        print(interop.convert_back(options.to, options.input, options.output))
        return
    config = _config(options)
    chosen = options.classes, options.inputs, options.norm_epsilon
    print(interop.convert(options.origin, options.input, options.output, config, *chosen))


def export(options):
    """Writes the detector of a workdir as one file; see jaxdet.inference.export."""
    from jaxdet.inference.export import export_run

    print(export_run(options.workdir, options.output, options.parameters_beside))


def serve(options):
    """Serves the detector of a workdir over HTTP until SIGTERM; see jaxdet.inference.serve."""
    from jaxdet.inference.serve import serve as run

    limits = {key.name: getattr(options, key.name) for key in LIMITS}
    for key in LIMITS:
        if not key.rule.test(limits[key.name]):
            raise ValueError(f"{_flag(key)} must be {key.rule.words}, not {limits[key.name]}")
    run(options.workdir, options.host, options.port, **limits)


def inspect(options):
    """Writes a page about the data of a config, and exits with a list of faults, if any; see jaxdet.pages.inspect."""
    from jaxdet.pages import inspect as inspection

    config = _config(options)
    if faults := inspection.inspect(config, options.output):
        sys.exit("broken:\n" + "\n".join(faults))


def report(options):
    """Writes a page about one run, or two side by side; see jaxdet.pages.report."""
    from jaxdet.pages import report as reporting
    from jaxdet.pages.report_page import Choice

    choice = Choice(options.images, options.choose, options.seed)
    page = reporting.write_report(options.workdir, options.compare, options.output, options.rest, choice)
    print(f"open {page} in a browser")


def _config(options):
    from jaxdet.config.command_line import load_config, override

    config = load_config(options.config)
    override(config, options.rest)
    return config


def _flag(key):
    return "--" + key.name.replace("_", "-")


if __name__ == "__main__":
    main()
