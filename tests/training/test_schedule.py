import pytest

from lavit_jax.errors import UserError
from lavit_jax.training.schedule import make_schedule, phase_at
from tiny import mini_config


def test_phases_follow_each_other_and_modules_accumulate():
    phases = make_schedule(mini_config())
    assert [phase.start for phase in phases[1:]] == [phase.end for phase in phases[:-1]]
    assert phases[-1].end == 200
    assert set(phases[0].names) < set(phases[-1].names)


def test_a_checkpoint_at_a_border_holds_the_phase_that_ended():
    phases = make_schedule(mini_config())
    assert phase_at(phases, phases[0].end).name == phases[0].name
    assert phase_at(phases, phases[0].end + 1).name == phases[1].name


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("--config.schedule=encoder,nosuch", "nosuch"),
        ("--config.schedule=()", "schedule"),
        ("--config.phases.encoder.objective=magic", "magic"),
        ("--config.phases.encoder.modules=llm,", "llm"),
        ("--config.phases.unified.steps=0", "steps"),
        ("--config.phases.unified.batch_size=-1", "batch_size"),
        ("--config.phases.unified.optimizer.learning_rate=0.0", "learning_rate"),
    ],
)
def test_wrong_schedules_are_refused_by_name(override, names):
    with pytest.raises(UserError, match=names):
        make_schedule(mini_config(override))
