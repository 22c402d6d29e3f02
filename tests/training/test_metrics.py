import json
import math

from lavit_jax.training.health import Health
from lavit_jax.training.metrics import MetricWriter, read_metrics


def _write(workdir, start, steps):
    with MetricWriter(workdir, start, total=10, every=2) as writer:
        for step in steps:
            writer.write(step, "encoder", {"loss": 1.0 / step}, rate=1.0, left=1.0)


def test_one_object_a_step(tmp_path):
    _write(tmp_path, 0, [1, 2, 3])
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["phase"], r["loss"]) for r in records][2] == (3, "encoder", 1 / 3)


def test_resuming_drops_steps_after_the_checkpoint_and_never_doubles(tmp_path):
    _write(tmp_path, 0, [1, 2, 3, 4])
    _write(tmp_path, 2, [3, 4, 5])
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_half_written_line_is_dropped(tmp_path):
    _write(tmp_path, 0, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    _write(tmp_path, 2, [3])
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    with MetricWriter(tmp_path, 0, total=1, every=1) as writer:
        writer.write(1, "encoder", {"loss": math.nan}, rate=1.0, left=0.0)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda _: 1 / 0)["loss"] is None


def test_collapse_is_told_once_and_healthy_runs_are_silent():
    health = Health()
    good = {"loss": 1.0, "codebook_in_use": 0.8, "kept_mean": 0.33}
    bad = {"loss": 1.0, "codebook_in_use": 0.05, "kept_mean": 0.01}
    assert health.check("quantize", 150, good) == []
    assert health.check("quantize", 10, bad) == []
    assert len(health.check("quantize", 150, bad)) == 2
    assert health.check("quantize", 151, bad) == []
