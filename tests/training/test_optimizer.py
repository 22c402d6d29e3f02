import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from configs import common
from lavit_jax.models import lavit
from lavit_jax.training import optimizer
from tiny import tiny_modules


def test_only_kernels_and_embeddings_decay():
    params = jax.eval_shape(
        lambda: nn.meta.unbox(
            lavit.init_params(tiny_modules(), ("decoder", "llm"), jax.random.key(0))
        )
    )
    mask = optimizer.decay_mask(params)
    flat = {
        "/".join(key.key for key in path): decays
        for path, decays in jax.tree_util.tree_leaves_with_path(mask)
    }
    for name, decays in flat.items():
        assert decays == (name.split("/")[-1] in ("kernel", "embedding")), name
    assert any("query_embed" in name for name in flat)


def test_learning_rate_warms_up_and_ends_at_its_final_share():
    schedule = optimizer.learning_rate(common.optimizer(1e-3, 0.95, 0.05, warmup=10), steps=100)
    assert schedule(0) == 0.0
    assert schedule(10) == pytest.approx(1e-3)
    assert schedule(100) == pytest.approx(2e-5)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_runs_shorter_than_the_warm_up_work(steps):
    tx = optimizer.make_optimizer(common.optimizer(1e-3, 0.95, 0.05, warmup=10), steps)
    params = {"kernel": jnp.ones(3)}
    updates, _ = tx.update({"kernel": jnp.ones(3)}, tx.init(params), params)
    assert bool(jnp.isfinite(updates["kernel"]).all())
