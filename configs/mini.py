"""Every code path in about a minute on two cores: 200 steps, a checkpoint every 20.

`configs/mini.py:selector_first` has the other order of stage one (`common.SCHEDULES`).
"""

from ml_collections import ConfigDict

from . import common, models, twemoji


def get_config(arg: str = "together") -> ConfigDict:
    """`arg`: one of `common.SCHEDULES`."""
    config = twemoji.get_config()
    config.name = "mini"
    config.schedule = common.schedule(arg)
    config.model = models.mini()
    config.data.text_vocab_size = 400
    config.data.row_length = 128
    config.data.images_per_row = 4
    config.data.variants = 1
    config.checkpoint.every = 20
    config.log.sample_every = 50
    config.evaluation.most = 16
    config.evaluation.train_captions = 8
    config.evaluation.best_of = 2
    config.phases = {
        name: {**config.phases[name], "steps": steps, "batch_size": batch_size}
        for name, steps, batch_size in (
            ("encoder", 50, 16),
            ("select", 40, 16),
            ("quantize", 40, 16),
            ("reconstruct", 30, 16),
            ("selector_alone", 20, 16),
            ("quantize_rest", 30, 16),
            ("unified", 70, 8),
        )
    }
    for phase in config.phases.values():
        phase.optimizer = common.optimizer(1e-3, b2=0.95, weight_decay=0.05, warmup=10)
    return config
