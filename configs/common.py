"""Fields that every experiment has, each explained once."""

from ml_collections import ConfigDict


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
    """Twemoji, its text and how sequences are laid out."""
    return ConfigDict(
        {
            "dataset": "twemoji",
            "languages": ("en",),  # of the captions; others as the `emoji` package has them
            "text_vocab_size": 800,  # sentencepiece BPE pieces
            "canonical_share": 0.6,  # how often the picture's own name is the caption
            "row_length": 256,  # S, tokens of a packed row
            "images_per_row": 5,  # J, condition images of a packed row at most
            "variants": 4,  # augmented views of each picture in the unified phase
            "text_drop": 0.1,  # [text, image] without its text, for guidance (ours)
            "mixture": {  # shares of examples in the unified phase
                "image_text": 0.35,
                "text_image": 0.45,
                "text": 0.05,
                "question": 0.15,
            },
            "augment": {
                "shift": 0.06,  # of the side, either way
                "scale": 0.1,  # relative, either way
                "background": 0.5,  # share of pictures on a light colour instead of white
            },
        }
    )


def run() -> ConfigDict:
    """How a run is stored, reported and laid out on devices."""
    return ConfigDict(
        {
            "checkpoint": {
                "every": 200,  # steps
                "keep": 2,  # newest checkpoints kept
            },
            "log": {
                "every": 10,  # steps between console and TensorBoard lines
                "sample_every": 200,  # steps between sample pictures and captions
            },
            "evaluation": {  # at the end of `lavit quickstart`
                "most": 0,  # pictures of each split; 0 is all
                "train_captions": 256,  # training pictures whose captions are compared
            },
            "mesh": {  # devices along each axis; -1: what the others leave
                "slice": 1,  # TPU slices; a copy of the model on each
                "data": -1,  # copies of the model in a slice
                "fsdp": 1,  # parts of parameters and optimizer state
                "sequence": 1,  # parts of a row's tokens
                "tensor": 1,  # parts of heads, MLP and vocabulary
            },
        }
    )
