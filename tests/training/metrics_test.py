import json

import pytest
from tensorboardX.proto import event_pb2

from jaxdet.runs.workdir import Workdir
from jaxdet.training.metrics import MetricsLog, Progress


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_and_order(tmp_path):
    log = MetricsLog(Workdir(tmp_path), 0)
    log.write(1, {"loss": 1.5, "learning_rate": 0.1})
    assert lines(tmp_path) == [{"step": 1, "loss": 1.5, "learning_rate": 0.1}]  # at once: a kill loses nothing
    log.write(2, {"val/AP": 0.25})
    log.close()
    assert lines(tmp_path)[1] == {"step": 2, "val/AP": 0.25}


def test_going_on_drops_later_steps_and_half_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    log = MetricsLog(Workdir(tmp_path), 2)
    log.write(3, {"loss": 9.0})
    log.close()
    assert [line["loss"] for line in lines(tmp_path)] == [3.0, 2.0, 9.0]
    assert sorted(p.name for p in tmp_path.iterdir() if "tfevents" not in p.name) == ["metrics.jsonl"]


@pytest.mark.parametrize("junk", ["", "\n", '{"loss": 1}\n', '{"st', "\0\0\0\0"])
def test_junk_is_dropped(tmp_path, junk):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + junk)
    MetricsLog(Workdir(tmp_path), 1).close()
    assert lines(tmp_path) == [{"step": 1}]


def test_starting_anew_drops_everything(tmp_path):
    """A run that died before its first checkpoint starts at step 0 again."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    MetricsLog(Workdir(tmp_path), 0).close()
    assert lines(tmp_path) == []


def test_tensorboard_has_the_same_scalars(tmp_path):
    log = MetricsLog(Workdir(tmp_path), 0)
    log.write(1, {"loss": 1.5})
    log.write(2, {"loss": 0.5, "val/AP": 0.25})
    log.close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    data, scalars = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert scalars == [(1, "loss", 1.5), (2, "loss", 0.5), (2, "val/AP", 0.25)]


def test_the_bar_tells_loss_rate_times_and_the_wait_for_data(capsys):
    progress = Progress(3, 5)
    progress.lap(0.0)
    progress.lap(0.0)
    assert progress.step_time > 0 and progress.data_time == 0
    progress.show({"loss": 1.2345, "learning_rate": 0.01})
    progress.pause()
    progress.close()
    assert progress.bar.n == 5
    text = capsys.readouterr().err
    assert "loss 1.234" in text or "loss 1.235" in text
    assert "rate 0.01" in text and "s a step" in text and "waiting for data" in text


@pytest.mark.parametrize(
    "steps, waits, said",
    [
        ([9.0, 0.2, 0.4, 0.2], [8.0, 0.0, 0.04, 0.0], "0.20 s a step, 5.0% waiting for data"),
        ([2.0], [1.0], "2.00 s a step, 50.0% waiting for data"),
    ],
)
def test_summary_leaves_out_the_first_step(steps, waits, said):
    progress = Progress(0, len(steps), active=False)
    progress.step_times, progress.data_times = steps, waits
    assert progress.summary() == said
