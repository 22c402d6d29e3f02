"""Tokens per second of guided decoding: ours beside transformers' Llama, on this machine's CPU.

Both hold the same random float32 weights and the same prompts, decode greedily with a key/value
cache and classifier-free guidance, and must write the same ids. transformers runs the faster of
its two ways: its own `generate(guidance_scale=...)`, and both branches as one batch by hand. Both
forbid the same ids; transformers scores them first, lavit_jax, as in `lavit draw`, does not.

    pip install -e '.[convert]' transformers
    python benchmarks/generate.py --size 100M --size 1B --batch 1 --batch 8

The libraries run in processes of their own, one after the other, so that neither has the other's
threads or memory beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# The text vocabulary and codes of the published model; sizes are what their names say.
TEXT_VOCAB, CODES = 32000, 16384
VOCAB = TEXT_VOCAB + 2 + CODES
SIZES = {
    "tiny": {"width": 64, "depth": 2, "heads": 4, "kv_heads": 4, "hidden": 128},
    "100M": {"width": 640, "depth": 10, "heads": 10, "kv_heads": 10, "hidden": 1728},
    "1B": {"width": 2048, "depth": 16, "heads": 32, "kv_heads": 32, "hidden": 5632},
}
GUIDANCE = 4.0
IMAGE_START, IMAGE_END = TEXT_VOCAB, TEXT_VOCAB + 1
LIBRARIES = ("transformers", "lavit_jax")


def draw_weights(size: str) -> Iterator[tuple[str, np.ndarray]]:
    """Random weights by transformers' names, [out, in], the same every time."""
    s = SIZES[size]
    width, hidden = s["width"], s["hidden"]
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        array = rng.standard_normal((rows, columns), np.float32)
        array *= columns**-0.5
        return array

    yield "model.embed_tokens.weight", matrix(VOCAB, width)
    for layer in range(s["depth"]):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{prefix}.self_attn.{name}.weight", matrix(width, width)
        yield f"{prefix}.mlp.gate_proj.weight", matrix(hidden, width)
        yield f"{prefix}.mlp.up_proj.weight", matrix(hidden, width)
        yield f"{prefix}.mlp.down_proj.weight", matrix(width, hidden)
    yield "lm_head.weight", matrix(VOCAB, width)


def draw_prompts(batch: int, length: int) -> np.ndarray:
    """Text ids and [IMG], [batch, length]."""
    ids = np.random.default_rng(1).integers(3, TEXT_VOCAB, (batch, length))
    ids[:, -1] = IMAGE_START
    return ids


def banned_ids() -> np.ndarray:
    """All text, [IMG], and [/IMG] too, so that every run has the same length."""
    return np.arange(VOCAB) <= IMAGE_END


def ours(size: str) -> Callable[[np.ndarray, int], dict[str, Callable[[], np.ndarray]]]:
    """Loads the weights; gives what decodes prompts."""
    import jax
    import jax.numpy as jnp

    from lavit_jax.inference import decoding, generate
    from lavit_jax.models.config import LlamaConfig
    from lavit_jax.models.llama import Llama

    def joined(block: dict[str, Any], *names: str) -> dict[str, jax.Array]:
        return {"kernel": jnp.concatenate([jnp.asarray(block.pop(name)) for name in names])}

    config = LlamaConfig(**SIZES[size], text_vocab=TEXT_VOCAB, codes=CODES, stacked=False)
    llm = Llama(config)
    ones = {"scale": jnp.ones(config.width)}
    blocks: list[dict[str, Any]] = [{} for _ in range(config.depth)]
    params: dict[str, Any] = {"norm": ones}
    for name, array in draw_weights(size):
        parts = name.split(".")
        if name == "model.embed_tokens.weight":
            params["embedding"] = jnp.asarray(array)
        elif name == "lm_head.weight":
            params["lm_head"] = {"kernel": jnp.asarray(array)}
        else:
            blocks[int(parts[2])][parts[4]] = array
    for number, block in enumerate(blocks):
        params[f"blocks_{number}"] = {
            "attention_norm": ones,
            "mlp_norm": ones,
            "qkv": joined(block, "q_proj", "k_proj", "v_proj"),
            "proj": joined(block, "o_proj"),
            "gate_up": joined(block, "gate_proj", "up_proj"),
            "down": joined(block, "down_proj"),
        }

    @jax.jit
    def run(params: Any, ids: Any, start: Any, settings: Any, banned: Any, keys: Any) -> Any:
        def prompt(ids: Any) -> decoding.Prompt:
            embeds = decoding.run(llm, params, ids, method="embed")
            return decoding.Prompt(embeds, jnp.ones(ids.shape, bool))

        stop = jnp.full(ids.shape[0], IMAGE_END)
        return generate.generate(
            llm,
            params,
            prompt(ids),
            settings,
            banned,
            stop,
            keys,
            unconditional=prompt(start),
            first=IMAGE_END,
        ).ids_BM

    def decoders(prompts: np.ndarray, new: int) -> dict[str, Callable[[], np.ndarray]]:
        settings = generate.SamplingConfig(max_new=new, guidance=GUIDANCE)
        ids, start = jnp.asarray(prompts), jnp.full((len(prompts), 1), IMAGE_START)
        keys = jax.random.split(jax.random.key(0), len(prompts))
        banned = jnp.asarray(banned_ids())
        return {"lavit_jax": lambda: np.asarray(run(params, ids, start, settings, banned, keys))}

    return decoders


def theirs(size: str) -> Callable[[np.ndarray, int], dict[str, Callable[[], np.ndarray]]]:
    """The same in transformers, in two ways."""
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    s = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=s["width"],
        intermediate_size=s["hidden"],
        num_hidden_layers=s["depth"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["kv_heads"],
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in state.items():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
        for name, array in draw_weights(size):
            state[name].copy_(torch.from_numpy(array))
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    banned = torch.from_numpy(banned_ids())

    def decoders(prompts: np.ndarray, new: int) -> dict[str, Callable[[], np.ndarray]]:
        ids = torch.from_numpy(prompts)
        batch, length = ids.shape

        @torch.inference_mode()
        def one_batch() -> np.ndarray:
            """Both branches as rows of one batch, the unconditional ones left-padded."""
            mask = torch.ones(2 * batch, length, dtype=torch.long)
            mask[batch:, :-1] = 0
            step = torch.cat([ids, ids])
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            cache, found = DynamicCache(config=config), []
            while True:
                out = model(
                    input_ids=step,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                c, u = torch.log_softmax(out.logits[:, -1], dim=-1).chunk(2)
                scores = (u + GUIDANCE * (c - u)).masked_fill(banned, -torch.inf)
                found.append(scores.argmax(-1))
                if len(found) == new:
                    return torch.stack(found, 1).numpy()
                step = torch.cat([found[-1], found[-1]])[:, None]
                mask = torch.cat([mask, mask.new_ones(2 * batch, 1)], 1)
                positions = positions[:, -1:] + 1

        @torch.inference_mode()
        def own_generate() -> np.ndarray:
            start = torch.full((batch, 1), IMAGE_START)
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                negative_prompt_ids=start,
                negative_prompt_attention_mask=torch.ones_like(start),
                guidance_scale=GUIDANCE,
                suppress_tokens=torch.nonzero(banned)[:, 0].tolist(),
                max_new_tokens=new,
                do_sample=False,
            )
            return out[:, length:].numpy()

        return {"transformers, one batch": one_batch, "transformers, generate": own_generate}

    return decoders


def measure(library: str, size: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every batch size: median tokens per second of each way, and the ids."""
    made = (ours if library == "lavit_jax" else theirs)(size)
    results = []
    for batch in args.batch:
        for way, decode in made(draw_prompts(batch, args.prompt), args.new).items():
            seconds = []
            for _ in range(args.repeat + 1):  # the first one compiles
                start = time.perf_counter()
                ids = decode()
                seconds.append(time.perf_counter() - start)
            rate = batch * args.new / statistics.median(seconds[1:])
            results.append({"way": way, "batch": batch, "rate": rate, "ids": ids.tolist()})
    return results


def agreement(first: list[list[int]], second: list[list[int]]) -> float:
    """Share of ids that are equal; after a near tie two float32 libraries go separate ways."""
    return float(np.mean(np.array(first) == np.array(second)))


def report(size: str, results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Prints one line for each batch size."""
    for batch in args.batch:
        here = [result for result in results if result["batch"] == batch]
        mine = next(result for result in here if result["way"] == "lavit_jax")
        others = [result for result in here if result is not mine]
        best = max(others, key=lambda result: result["rate"])
        rates = ", ".join(f"{r['way'].split(', ')[1]} {r['rate']:.1f}" for r in others)
        print(
            f"{size:>5} batch {batch}: lavit_jax {mine['rate']:7.1f} tokens/s, transformers "
            f"{best['rate']:7.1f} ({rates}); ratio {mine['rate'] / best['rate']:.2f}; "
            f"{agreement(mine['ids'], best['ids']):.0%} of ids equal",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", action="append", choices=list(SIZES))
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--new", type=int, default=32, help="tokens of each row")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs, of which the median")
    parser.add_argument("--only", choices=LIBRARIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.size, args.batch = args.size or ["100M", "1B"], args.batch or [1, 8]
    if args.only:
        print(json.dumps(measure(args.only, args.size[0], args)))
        return
    for size in args.size:
        results = []
        for library in LIBRARIES:
            command = [sys.executable, __file__, "--only", library, "--size", size]
            command += [f"--{name}={getattr(args, name)}" for name in ("new", "prompt", "repeat")]
            command += [f"--batch={batch}" for batch in args.batch]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            results += json.loads(done.stdout.splitlines()[-1])
        report(size, results, args)


if __name__ == "__main__":
    main()
