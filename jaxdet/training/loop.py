"""The trainer, read from top to bottom.

Started on a workdir (runs/workdir.py) with a checkpoint, it resumes from there. The batch and the random numbers of a
step depend on (config, seed, step) alone, so the results are those of a run that was never stopped.
"""

import collections
import contextlib
import functools
import sys
import time

import jax

from jaxdet.config.checks import check_config
from jaxdet.data import pipeline
from jaxdet.data.coco import summary
from jaxdet.evaluation.stages import final, results_table
from jaxdet.models import FasterRCNN
from jaxdet.runs.checkpoint import Checkpoints
from jaxdet.runs.files import only_one
from jaxdet.runs.mesh import device_mesh, is_first, put_batch, replicated, state_sharding, wait_for_all
from jaxdet.runs.workdir import CONVERTED, Workdir
from jaxdet.training.metrics import MetricsLog, Progress
from jaxdet.training.nonfinite import Watch, culprits
from jaxdet.training.optimizer import optimizer, peak_rate
from jaxdet.training.preemption import PREEMPTED, Preemption
from jaxdet.training.start import start_from
from jaxdet.training.step import create_state, train_step
from jaxdet.training.validation import Interrupted, Validation, check_categories, compile_shapes, remat_options


def train(config, workdir):
    """Trains `config` in `workdir`, resuming from its last checkpoint, and evaluates at the end.

    Returns the final TrainState. Raises ValueError or FileNotFoundError before the first step if config or data are
    wrong. Raises FloatingPointError, naming step and images, if a loss or gradient is not finite and `train.nonfinite`
    is "stop"; the last checkpoint is then from before. On SIGTERM it saves the current step and exits with PREEMPTED.
    """
    with contextlib.ExitStack() as held:
        return _train(config, Workdir(workdir), held)


def _train(config, workdir, held):
    """As `train`; `held` keeps the workdir's lock until the end."""
    # ---- config and data, checked before anything is written ---------------------------------------------------------
    check_config(config)
    mesh = device_mesh(config.train.shard_parameters)
    if config.train.batch_size % (mesh.size * config.train.accumulation):
        raise ValueError(
            f"train.batch_size {config.train.batch_size} does not divide into {config.train.accumulation} parts "
            f"(train.accumulation) of {mesh.size} devices"
        )
    train_source = pipeline.open_source(config.data.train, config.data.categories or None)
    val_source = pipeline.open_source(config.data.val, config.data.categories or None)
    for name, source in (("train", train_source), ("val", val_source)):
        print(f"{name}: {summary(source)}")
        check_categories(config, source, train_source.categories)
    workdir.path.mkdir(parents=True, exist_ok=True)
    # before the checkpoint manager removes what it takes for the leftovers of a crash
    held.enter_context(only_one(workdir.lock_file, is_first()))
    checkpoints = Checkpoints(workdir.checkpoints, config.train.keep_checkpoints)
    if checkpoints.latest_step() == CONVERTED:
        raise ValueError(
            f"{workdir} holds a converted model; start from it in another workdir with config.init_from={workdir}"
        )
    if checkpoints.latest_step() is not None:
        workdir.compare_config(config)
    wait_for_all("compared")
    if is_first():
        workdir.write_config(config)
        workdir.write_categories(train_source.categories)
        workdir.write_skipped(
            [{"split": "train"} | item for item in train_source.skipped]
            + [{"split": "val"} | item for item in val_source.skipped]
        )

    boxes = pipeline.max_boxes(train_source, val_source)
    batches = pipeline.TrainingBatches(train_source, config.data.train, config.seed, config.train.batch_size, boxes)

    # ---- model and state ---------------------------------------------------------------------------------------------
    model = FasterRCNN(**config.model)
    update = optimizer(config)
    fresh = functools.partial(create_state, model, update, config)
    shardings = state_sharding(mesh, jax.eval_shape(fresh))
    create = jax.jit(fresh, out_shardings=shardings)
    if checkpoints.latest_step() is None:
        state = create()
        if config.init_from:
            state, report = start_from(config.init_from, state, config, train_source.categories)
            state = jax.device_put(state, shardings)
            print(report)
        elif config.model.backbone.freeze_at:
            print(
                "config.init_from is empty: the layers that config.model.backbone.freeze_at freezes stay random; set "
                "it to a workdir, or set config.model.backbone.freeze_at=0 and config.model.backbone.norm=group_norm"
            )
    else:
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(fresh),
            shardings,
        )
        state = checkpoints.restore(checkpoints.latest_step(), like)
        print(f"resuming from step {int(state.step)} of {workdir}")
    start = int(state.step)
    # SIGTERM may have ended the run during this evaluation
    owed = start > 0 and evaluates_at(start, config) and not checkpoints.is_evaluated(start)
    if start >= config.train.steps and not owed:
        print(f"nothing to do: config.train.steps is {config.train.steps}")
        checkpoints.close()
        return state
    print(
        f"learning rate {peak_rate(config):g} after {config.optimizer.warmup_steps} steps of warmup, "
        f"for batches of {config.train.batch_size}"
    )

    # ---- every training shape is compiled before the first step; evaluation compiles when it first runs --------------
    step = functools.partial(train_step, model=model, optimizer=update, config=config)
    steps = compile_shapes(
        step,
        state,
        batches.examples(jax.process_count()),
        mesh,
        purpose="training",
        donate="state",
        out_shardings=(shardings, replicated(mesh)),
        options=remat_options(config),
    )
    validation = Validation(config, model, val_source, boxes, mesh)

    # ---- the loop ----------------------------------------------------------------------------------------------------
    log = MetricsLog(workdir, start, is_first(), evaluated=not owed)
    progress = Progress(start, config.train.steps, is_first())
    read = batches.read(start, config.train.steps, config.data.workers, jax.process_index(), jax.process_count())
    running, lost = collections.deque(), set()  # steps whose metrics are not yet checked; images
    preempted = Preemption()

    def evaluate(number):
        """Evaluates the state, which is saved already. On SIGTERM it ends the run; the next start evaluates first."""
        try:
            found = validation(state.variables(averaged=True), preempted)
        except Interrupted:
            stop(number)
        losses = {f"val/{name}": value for name, value in found.losses.items()}
        log.write(number, flat_results(found.results) | losses)
        progress.bar.write(f"step {number}\n{results_table(found.results)}")
        checkpoints.record(number, final(found.results)["AP"])

    def stop(number):
        print(f"stopped on SIGTERM with step {number} saved; start again to resume")
        sys.exit(PREEMPTED)

    def note_skipped(number, words, image_ids, alone):
        progress.bar.write(words)
        log.note(number, skipped_image_ids=image_ids, not_finite_alone=alone)

    watch = Watch(config.train.nonfinite, batches, note_skipped)

    def finish(ahead=0):
        """Waits for all steps but the last `ahead` and checks that each is finite. Returns the metrics of the last."""
        metrics = None
        while len(running) > ahead:
            number, metrics, batch = running.popleft()
            run = steps[batch["images"].shape[1:3]]
            search = functools.partial(culprits, run, number, state, batch, put=lambda b: put_batch(b, mesh))
            metrics = watch(number, metrics, search)
        return metrics

    try:
        if owed:
            evaluate(start)
        for number in range(start + 1, config.train.steps + 1):
            waiting = time.perf_counter()
            batch = next(read)
            waited = time.perf_counter() - waiting
            for image_id in set(batch["image_ids"][batch["image_sizes"][:, 0] == 0].tolist()) - lost:
                lost.add(image_id)
                item = {"split": "train", "reason": "image does not decode", "image_id": image_id}
                workdir.add_skipped(item, jax.process_index())
                progress.bar.write(
                    f"image {image_id} does not decode, its slot stays empty ({len(lost)} so far)",
                    file=sys.stdout if is_first() else sys.stderr,  # only the first process has a stdout
                )
            state, metrics = steps[batch["images"].shape[1:3]](state, put_batch(batch, mesh))
            running.append((number, metrics, batch))
            finish(ahead=1)  # the device works on this step while the host looks at the one before
            progress.lap(waited)

            evaluates, stops = evaluates_at(number, config), preempted()
            saves = evaluates or number % config.train.checkpoint_every == 0
            logs = saves or number % config.train.log_every == 0
            if logs or stops:
                metrics = finish()
            if logs:
                times = {"step_time": progress.step_time, "data_time": progress.data_time}
                log.write(number, metrics | times)
                progress.show(metrics)
            if saves or stops:
                checkpoints.save(number, state)
            if stops:
                stop(number)
            if evaluates:
                evaluate(number)
            if saves:
                progress.pause()
    finally:
        preempted.close()
        read.close()
        progress.close()
        log.close()
        checkpoints.close()
    compiled = len(steps) + len(validation.compiled)
    if start < config.train.steps:
        print(progress.summary())
    print(f"compiled {len(steps)} shapes for training and {len(validation.compiled)} for evaluation: {compiled} in all")
    return state


def evaluates_at(number, config):
    """Whether there is an evaluation after this step."""
    return number == config.train.steps or number % config.train.evaluate_every == 0


def flat_results(results):
    """{"val/AP": .., "val/rpn_AP": .., ..} of an evaluation."""
    prefixes = {"roi": "val/", "rpn": "val/rpn_", "proposals": "val/proposals_"}
    return {
        prefix + name: value for stage, prefix in prefixes.items() for name, value in results.get(stage, {}).items()
    }
