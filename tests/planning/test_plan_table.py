"""The page of plans."""

from benchmarks import plan_table


def collective(kind, array, size, *, group=8, count=1, between=False):
    return {
        "kind": kind, "array": array, "size": size, "group": group, "between_slices": between,
        "count": count, "sent": float(size * count),
    }  # fmt: skip


def test_every_collective_of_every_preset_is_in_one_table(capsys):
    gather = ("all-gather", "bf16[4096,11008]", 90_000_000)
    small = [collective("all-reduce", f"f32[{n}]", n * 4) for n in (100, 1408, 300)]
    plan_table._collectives(
        "unified",
        {
            "v5p-128": {
                "collectives": [
                    collective(*gather, group=16, count=64),
                    collective("all-reduce", "f32[4096]", 16384, group=64, count=65),
                    *small,
                ]
            },
            "v5p-128x2": {
                "collectives": [
                    collective(*gather, count=32),
                    collective(*gather, group=4),
                    collective("all-reduce", "f32[8,8]", 2_000_000, between=True),
                ]
            },
        },
    )
    assert capsys.readouterr().out.splitlines() == [
        "",
        "### unified",
        "",
        "| collective | array | v5p-128 | v5p-128x2 |",
        "| --- | --- | --- | --- |",
        "| all-gather | bf16[4096,11008] | 5.760 GB, 64 x over 16 "
        "| 2.880 GB, 32 x over 8; 0.090 GB, 1 x over 4 |",
        "| all-reduce between slices | f32[8,8] |  | 0.002 GB, 1 x over 8 |",
        "| all-reduce | f32[4096] | 0.001 GB, 65 x over 64 |  |",
        "| smaller ones |  | 0.0 MB, 3 arrays, the largest f32[1408] |  |",
    ]


def test_presets_belong_to_the_longest_name():
    found = dict.fromkeys(["pixels-v5p-128", "pixels-sdxl-v5p-128", "unified-v4-128", "search-x"])
    assert plan_table._order(found) == ["unified-v4-128", "pixels-v5p-128", "pixels-sdxl-v5p-128"]
    assert plan_table._config("pixels-sdxl-v5p-128") == "pixels-sdxl"
