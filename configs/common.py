"""Fields that every experiment has, each explained once."""

from ml_collections import ConfigDict

# Orders of `config.phases`. The paper's maintainer tells two (SPEC 6): "together" trains selector
# and merger without quantization, then everything with it; "selector_first" the selector alone
# without quantization, then the rest with it. The latter supposes a merger and a decoder that can
# say what a patch is worth; from nothing, "reconstruct" makes them, on patches kept at random.
SCHEDULES = {
    "together": ("encoder", "select", "quantize", "unified"),
    "selector_first": ("encoder", "reconstruct", "selector_alone", "quantize_rest", "unified"),
}


def schedule(order: str) -> tuple[str, ...]:
    """The names of phases of one of `SCHEDULES`."""
    if order not in SCHEDULES:
        raise ValueError(f"the schedule must be one of {', '.join(SCHEDULES)}, got {order!r}")
    return SCHEDULES[order]


def optimizer(learning_rate: float, b2: float, weight_decay: float, warmup: int) -> ConfigDict:
    """AdamW with linear warm-up and cosine decay."""
    return ConfigDict(
        {
            "learning_rate": learning_rate,  # at the end of warm-up
            "final_share": 0.02,  # of learning_rate, at the last step
            "warmup": warmup,  # steps
            "b1": 0.9,
            "b2": b2,
            "weight_decay": weight_decay,  # on kernels and embeddings only
            "clip": 1.0,  # global gradient norm
        }
    )


def data() -> ConfigDict:
    """The data, its text and how sequences are laid out."""
    return ConfigDict(
        {
            "dataset": "twemoji",  # or a folder, also in a bucket, that `lavit data prepare` wrote
            "cache": "",  # where those in buckets are copied to; "" is ~/.cache/lavit_jax/data
            "held_out": 64,  # examples of such a folder that are never trained on
            "max_bad_share": 0.01,  # stop when more examples than this are broken
            "languages": ("en",),  # of the captions; others as the `emoji` package has them
            "text_vocab_size": 800,  # sentencepiece BPE pieces
            "canonical_share": 0.85,  # how often the picture's own name is the caption
            "row_length": 256,  # S, tokens of a packed row
            "images_per_row": 5,  # J, condition images of a packed row at most; 0: see docs/data.md
            "variants": 2,  # augmented views of each picture in the unified phase
            "visual_ids": "",  # of the data set, a folder of `lavit tokenize-dataset`; or made here
            "text_drop": 0.1,  # [text, image] without its text, for guidance (ours)
            "mixture": {  # shares of examples in the unified phase
                "image_text": 0.45,
                "text_image": 0.42,
                "text": 0.03,
                "question": 0.10,
            },
            # Several sources in the unified phase instead of one: name -> see `data/streams.py`.
            "sources": {},
            "threads": 1,  # that prepare images; the cores belong to training, here
            "workers": 0,  # processes that do so instead, for hosts with many cores
            "weigh_by": "examples",  # what the sources' weights are shares of; or "tokens"
            "curriculum": (),  # (step of the unified phase, {source: weight from there on}), ...
            "augment": {
                "shift": 0.06,  # of the side, either way
                "scale": 0.1,  # relative, either way
                "background": 0.5,  # share of pictures on a light colour instead of white
                "blur": 0.4,  # share of stage zero's pictures without their fine detail
            },
        }
    )


def run() -> ConfigDict:
    """How a run starts, is stored, reported and laid out on devices."""
    return ConfigDict(
        {
            # Weights to start on: a work directory, a folder of `lavit convert` or one in the
            # published layout; several with commas, of which the first that has a module counts.
            "start_from": "",
            "checkpoint": {
                "every": 200,  # steps
                # What stays; each phase's last checkpoint does besides.
                "keep": 2,  # the newest
                "keep_every": 0,  # those whose step this divides; 0: none
                "keep_best": "",  # of each phase by this metric, such as "loss"; "": none
            },
            "health": {
                "max_skipped": 10,  # steps in a row with broken gradients, then it stops; 2 or more
                "spike": 10.0,  # deviations above recent losses that are told; 0: never look
                "rewinds": 0,  # times a run goes back before a spike and past its data
                "hang_seconds": 1800.0,  # without a step until all stacks are dumped; 0: never
            },
            "log": {
                "every": 10,  # steps between console and TensorBoard lines
                "sample_every": 200,  # steps between sample pictures and captions; 0 for none
            },
            "evaluation": {  # at the end of `lavit quickstart`
                "minutes": 15,  # that the report holds the whole run's against
                "most": 0,  # pictures of each split; 0 is all
                "train_captions": 256,  # training pictures whose captions are compared
                # Drawings: of each prompt the one of so many whose words are likeliest; at
                # temperature 0 all of them would be equal.
                "best_of": 16,
                "guidance": 1.5,
                "temperature": 1.0,
            },
            "mesh": {  # devices along each axis; -1: what the others leave
                "slice": 0,  # TPU slices, a copy of the model on each; 0: as many as there are
                "data": -1,  # copies of the model in a slice
                "fsdp": 1,  # parts of parameters and optimizer state
                "sequence": 1,  # parts of a row's tokens
                "tensor": 1,  # parts of heads, MLP and vocabulary
            },
        }
    )
