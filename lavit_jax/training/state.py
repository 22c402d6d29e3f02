"""The training state, how it is created sharded, and the step that every objective shares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from lavit_jax.models import lavit, placement, quantizer
from lavit_jax.models.config import LavitConfig
from lavit_jax.models.lavit import Modules
from lavit_jax.models.quantizer import Codebook
from lavit_jax.parallel import rules
from lavit_jax.training.objectives import Batch, Objective


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
      step: global step, counted through all phases.
      params: parameters by module name, trained or frozen.
      codebook: codes and their EMA statistics.
      opt_state: optimizer state of the phase's trained modules.
      key: root PRNG key; every step folds its number into it.
    """

    step: Array
    params: dict[str, Any]
    codebook: Codebook
    opt_state: Any
    key: Array


Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
Gradients = Callable[[TrainState, Batch], tuple[dict[str, Array], Codebook, Any]]


def abstract_params(modules: Modules, names: tuple[str, ...]) -> dict[str, Any]:
    """Shapes of the named modules' parameters, boxed with logical axes."""
    return {name: _abstract_module(modules.config, name) for name in names}


@functools.cache  # tracing an initialiser takes a second, and every phase asks several times
def _abstract_module(config: LavitConfig, name: str) -> Any:
    modules = lavit.build_modules(config)
    return jax.eval_shape(lambda: lavit.init_params(modules, (name,), jax.random.key(0)))[name]


def param_shardings(modules: Modules, names: tuple[str, ...], mesh: Mesh) -> dict[str, Any]:
    """Shardings of the named modules' parameters."""
    return rules.param_shardings(abstract_params(modules, names), mesh)


def state_shardings(
    modules: Modules,
    names: tuple[str, ...],
    tx: optax.GradientTransformation,
    trained: tuple[str, ...],
    mesh: Mesh,
) -> Any:
    """A `TrainState` of shardings: optimizer moments lie where their parameters lie."""
    whole: Any = rules.replicated(mesh)
    params = param_shardings(modules, names, mesh)
    shapes = nn.meta.unbox(abstract_params(modules, trained))
    opt_state = optax.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, shapes),
        {name: params[name] for name in trained},
        transform_non_params=lambda _: whole,
    )
    return TrainState(whole, params, Codebook(whole, whole), opt_state, whole)


def init_state(
    modules: Modules,
    names: tuple[str, ...],
    tx: optax.GradientTransformation,
    trained: tuple[str, ...],
    seed: int,
) -> TrainState:
    """A fresh state; a pure function of its arguments, to be jitted with `state_shardings`."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    params = nn.meta.unbox(lavit.init_params(modules, names, key))
    return _with_params(params, modules, tx, trained, seed)


def abstract_state(
    modules: Modules,
    names: tuple[str, ...],
    tx: optax.GradientTransformation,
    trained: tuple[str, ...],
    seed: int,
) -> TrainState:
    """The shapes of what `init_state` makes."""
    params = nn.meta.unbox(abstract_params(modules, names))
    return jax.eval_shape(lambda p: _with_params(p, modules, tx, trained, seed), params)


def _with_params(
    params: dict[str, Any],
    modules: Modules,
    tx: optax.GradientTransformation,
    trained: tuple[str, ...],
    seed: int,
) -> TrainState:
    root = jax.random.key(seed)
    book = quantizer.random_codebook(modules.config.quantizer, jax.random.fold_in(root, 2))
    opt_state = tx.init({name: params[name] for name in trained})
    key = jax.random.key_data(jax.random.fold_in(root, 3))
    return TrainState(jnp.zeros((), jnp.int32), params, book, opt_state, key)


def make_gradients(
    objective: Objective, trained: tuple[str, ...], accumulate: int = 1
) -> Gradients:
    """`state, batch -> metrics, codebook, gradients` of one phase; pure.

    Args:
      objective: what is minimised.
      trained: modules that get gradients.
      accumulate: parts of the batch whose gradients are computed one after the other and averaged.
        The codebook follows every part; a mean over tokens is one over each part's tokens.
    """

    def gradients(train: dict[str, Any], frozen: TrainState, batch: Batch, key: Array) -> Any:
        def loss_of(train: dict[str, Any]) -> tuple[Array, Any]:
            return objective({**frozen.params, **train}, frozen.codebook, batch, key)

        (loss, outcome), grads = jax.value_and_grad(loss_of, has_aux=True)(train)
        return {"loss": loss, **outcome.metrics}, outcome.codebook, grads

    def summed(train: dict[str, Any], state: TrainState, batch: Batch, key: Array) -> Any:
        """Means of metrics and gradients over the parts of a batch, and the last codebook."""

        def part(carry: Any, index_and_rows: Any) -> Any:
            book, total = carry
            index, rows = index_and_rows
            now = state.replace(codebook=book)  # type: ignore[attr-defined]
            metrics, book, grads = gradients(train, now, rows, jax.random.fold_in(key, index))
            return (book, jax.tree.map(jnp.add, total, grads)), metrics

        zeros = jax.tree.map(jnp.zeros_like, train)
        parts = (jnp.arange(accumulate), _parts(batch, accumulate))
        (book, total), metrics = jax.lax.scan(part, (state.codebook, zeros), parts)
        mean = jax.tree.map(lambda x: x / accumulate, total)
        return jax.tree.map(lambda x: x.mean(axis=0), metrics), book, mean

    compute = gradients if accumulate == 1 else summed

    def of(state: TrainState, batch: Batch) -> tuple[dict[str, Array], Codebook, Any]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        return compute({name: state.params[name] for name in trained}, state, batch, key)

    return of


def make_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    trained: tuple[str, ...],
    accumulate: int = 1,
) -> Step:
    """`state, batch -> state, metrics` for one phase; pure, to be jitted.

    Only the modules in `trained` get gradients. Where loss or gradients are not finite, all but
    the step's number stays as it was (ours). Metrics: "loss", "grad_norm", "skipped" (1 for such
    a step, else 0) and the objective's.

    Args:
      objective: what is minimised.
      tx: optimizer.
      trained: modules that get gradients.
      accumulate: see `make_gradients`.
    """
    gradients = make_gradients(objective, trained, accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        metrics, codebook, grads = gradients(state, batch)
        norm = optax.global_norm(grads)
        sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        train = {name: state.params[name] for name in trained}
        updates, opt_state = tx.update(grads, state.opt_state, train)
        changed = (optax.apply_updates(train, updates), codebook, opt_state)
        train, codebook, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            changed,
            (train, state.codebook, state.opt_state),
        )
        new = state.replace(  # type: ignore[attr-defined]
            step=state.step + 1,
            params={**state.params, **train},
            codebook=codebook,
            opt_state=opt_state,
        )
        skipped = 1.0 - sound.astype(jnp.float32)
        return new, {**metrics, "grad_norm": norm, "skipped": skipped}

    return step


def _parts(batch: Batch, count: int) -> dict[str, Array]:
    """[B, ..] to [count, B / count, ..]; each device divides up the rows it has."""
    return {
        name: placement.constrain(
            jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), None, "batch"
        )
        for name, x in batch.items()
    }
