import pytest

from lavit_jax.training.retention import Facts, Policy, higher_is_better, kept

LOSSES = {10: 3.0, 20: 1.0, 30: 2.0, 40: 9.0, 50: 7.0, 60: 7.0}
SAVED = [Facts(step, "a" if step <= 30 else "b", {"loss": loss}) for step, loss in LOSSES.items()]


@pytest.mark.parametrize(
    ("policy", "stay"),
    [
        (Policy(2), {50, 60}),
        (Policy(0), set()),
        (Policy(9), set(LOSSES)),
        (Policy(1, every=30), {30, 60}),
        (Policy(1, milestones=(20, 25)), {20, 60}),
        (Policy(0, best="loss"), {20, 60}),  # of equals the newest
        (Policy(1, every=40, best="loss", milestones=(10,)), {10, 20, 40, 60}),
        (Policy(1, best="accuracy"), {60}),  # which none has
    ],
)
def test_what_any_field_asks_for_stays(policy, stay):
    assert kept(SAVED, policy) == stay


@pytest.mark.parametrize("metric", ["accuracy", "text_accuracy", "codebook_in_use"])
def test_of_some_metrics_more_is_better(metric):
    saved = [Facts(1, "a", {metric: 0.5}), Facts(2, "a", {metric: 0.2})]
    assert higher_is_better(metric)
    assert kept(saved, Policy(0, best=metric)) == {1}


def test_no_checkpoints_are_no_error():
    assert kept([], Policy(1, best="loss")) == set()
