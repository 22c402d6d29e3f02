"""Restores a converted checkpoint straight into a mesh, every device reading its own share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, NamedSharding

from lavit_jax.convert import record, store
from lavit_jax.convert.convert import FLOAT32, SOURCE
from lavit_jax.convert.infer import Sizes
from lavit_jax.convert.plan import ALL_PARTS
from lavit_jax.convert.published import TEXT_MODEL, Extra, Published
from lavit_jax.convert.record import Record
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.models import lavit
from lavit_jax.models.autoencoder import Autoencoder
from lavit_jax.models.decoder import FeatureDecoder, HighresHead, LowresHead
from lavit_jax.models.pixel_config import UNetConfig
from lavit_jax.models.quantizer import Codebook
from lavit_jax.models.unet import Condition, UNet
from lavit_jax.parallel import rules
from lavit_jax.parallel.mesh import make_mesh

# Of `models.lavit`, those that are ever published.
MODEL_MODULES = ("encoder", "selector", "merger", "quantizer", "decoder", "conditioner", "llm")


def load_converted(
    path: str | os.PathLike[str],
    mesh: Mesh | None = None,
    parts: Sequence[str] | None = None,
    dtype: Any = None,
) -> Published:
    """Restores a checkpoint made by `lavit convert`, in a local folder or a bucket.

    No host ever holds the whole: every array is created sharded by the rules of
    `parallel/rules.py`, and each process reads the shards of its own devices.

    Args:
      path: folder made by `lavit convert`.
      mesh: where the parameters go (default: a mesh over all devices, each holding everything).
      parts: of "visual_tokenizer", "language_model", "pixel_decoding" and
        "highres_pixel_decoding" (default: those there).
      dtype: of the parameters (default: as stored); selector, quantizer and codebook stay float32.

    Returns:
      Sizes, parameters by module as jax arrays, codebook, and the rest.

    Raises:
      UserError: no such checkpoint, a damaged one, or one without a part.
    """
    directory = epath.Path(path)
    stored = record.load(directory)
    wanted = _modules(stored, parts, directory)
    mesh = make_mesh() if mesh is None else mesh
    arrays = {p: array for p, array in stored.arrays.items() if p.partition("/")[0] in wanted}
    shardings = array_shardings(stored.sizes, arrays, mesh)
    params = _restore(directory / store.DIRECTORY, arrays, shardings, dtype)
    codebook = None
    if "codebook" in params:
        codes = params.pop("codebook")["codes"]
        ones = jax.jit(lambda: jnp.ones(len(codes)), out_shardings=rules.replicated(mesh))
        codebook = Codebook(codes, ones())
    ignored = (f"{c}: {name}" for c, names in stored.left.items() for name in names)
    extra = Extra(stored.sizes.conditions, tuple(ignored), tuple(stored.absent))
    return Published(stored.sizes.config, params, codebook, extra, stored.sizes.pixels)


def text_tokenizer(path: str | os.PathLike[str]) -> TextTokenizer | None:
    """The text tokenizer of a converted checkpoint; None where its source had none.

    Raises:
      UserError: no such checkpoint, or a damaged tokenizer.
    """
    directory = epath.Path(path)
    model = directory / SOURCE / record.load(directory).llm_dir / TEXT_MODEL
    return TextTokenizer(model) if model.is_file() else None


def _modules(stored: Record, parts: Sequence[str] | None, directory: Any) -> set[str]:
    parts = list(stored.parts) if parts is None else parts
    for part in parts:
        if part not in ALL_PARTS:
            raise UserError(f"part {part!r} is unknown, expected some of {', '.join(ALL_PARTS)}")
        if part not in stored.parts:
            raise UserError(f"{directory}: no {part} in it, only {', '.join(stored.parts)}")
    return {module for part in parts for module in stored.parts[part]}


def array_shardings(
    sizes: Sizes, arrays: Mapping[str, store.ArrayInfo], mesh: Mesh
) -> dict[str, NamedSharding]:
    """Where every array goes: by the logical axes of its module, else by its shape."""
    boxed = _boxed(sizes, {path.partition("/")[0] for path in arrays})
    known = {
        "/".join(key.key for key in path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(
            rules.param_shardings(boxed, mesh)
        )
    }
    return {
        path: known.get(path) or rules.sharding_by_shape(array.shape, mesh)
        for path, array in arrays.items()
    }


def _boxed(sizes: Sizes, modules: set[str]) -> dict[str, Any]:
    """Shapes and logical axes of the modules that have any."""
    c, conditions = sizes.config, sizes.conditions
    own = tuple(name for name in MODEL_MODULES if name in modules)
    built = lavit.build_modules(c)
    x = jnp.zeros((1, c.patches, c.encoder.width))
    codes, valid = jnp.zeros((1, c.patches, c.quantizer.code_dim)), jnp.ones((1, c.patches), bool)
    calls: dict[str, tuple[Any, ...]] = {}
    if conditions.lowres is not None:
        calls["lowres_head"] = (LowresHead(conditions.lowres), x)
    if conditions.highres is not None and conditions.highres_decoder is not None:
        calls["highres_head"] = (HighresHead(conditions.pool_heads, *conditions.highres), x)
        calls["highres_decoder"] = (FeatureDecoder(conditions.highres_decoder), codes, valid)
    for kind, part in sizes.pixels.items():
        unet, pictures = part.config.unet, part.config.autoencoder
        calls[f"{kind}_unet"] = (
            UNet(unet),
            *_unet_inputs(unet, part.config.size // part.config.factor),
        )
        if pictures is not None:
            picture = jnp.zeros((1, part.config.size, part.config.size, pictures.image_channels))
            calls[f"{kind}_autoencoder"] = (Autoencoder(pictures), picture)

    def init() -> dict[str, Any]:
        key = jax.random.key(0)
        made = lavit.init_params(built, own, key)
        for name, (module, *args) in calls.items():
            if name in modules:
                made[name] = module.init(key, *args)["params"]
        return made

    return jax.eval_shape(init)


def _unet_inputs(sizes: UNetConfig, side: int) -> tuple[Any, ...]:
    condition = Condition(jnp.zeros((1, 1, sizes.condition)))
    if sizes.sized:
        pooled, box = jnp.zeros((1, sizes.pooled)), jnp.zeros((1, 6))
        condition = condition._replace(pooled_BP=pooled, sizes_B6=box)
    latents = jnp.zeros((1, side, side, sizes.in_channels))
    return latents, jnp.zeros(1, jnp.int32), condition


def _restore(
    directory: Any,
    arrays: Mapping[str, store.ArrayInfo],
    shardings: Mapping[str, NamedSharding],
    dtype: Any,
) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    def kind(path: str) -> Any:
        as_stored = dtype is None or path.partition("/")[0] in FLOAT32
        return store.numpy_dtype(arrays[path].dtype) if as_stored else jnp.dtype(dtype)

    abstract = store.nested(
        {
            path: jax.ShapeDtypeStruct(array.shape, kind(path), sharding=shardings[path])
            for path, array in arrays.items()
        }
    )
    args = ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(directory, args=args)
    except (ValueError, OSError, KeyError) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{directory}: damaged or incomplete ({what})") from error
