"""Exchanges between chips, read from a program's text."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lavit_jax.parallel import collectives
from lavit_jax.parallel.collectives import Collective
from lavit_jax.parallel.mesh import make_mesh

TEXT = """\
%all-reduce-scatter.1 (p: f32[64,128]) -> f32[8,128] {
  %all-reduce.9 = f32[64,128]{1,0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add
}
ENTRY %main (a: bf16[8,128]) -> f32[8,128] {
  %ag = (bf16[8,128]{1,0}, bf16[64,128]{1,0}) all-gather-start(%a), replica_groups=[1,8]<=[8], \
dimensions={0}, metadata={op_name="jit(step)/jvp(Llama)/blocks/query/dot_general"}
  %agd = bf16[64,128]{1,0} all-gather-done(%ag)
  %ar = f32[] all-reduce(%l), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %big = f32[32]{0} all-reduce(%g), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add, \
metadata={op_name="jit(step)/transpose(jvp(Llama))/blocks/norm/mul"}
  %cp = bf16[16,16]{1,0} collective-permute(%b), source_target_pairs={{0,1},{1,0}}
  %mesh = bf16[64]{0} all-reduce(%e), \
replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}, to_apply=%add
  %send = (bf16[256,8]{1,0}, u32[]{:S(2)}, token[]) send(%ar, %t), channel_id=2, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_reduce_operation="SUM"}
  %one = f32[99]{0} all-gather(%c), replica_groups=[8,1]<=[8], dimensions={0}
}
"""


def test_kinds_sizes_groups_and_places():
    query = "blocks/query/dot_general"
    assert collectives.read(TEXT, chips=8, slices=2) == {
        Collective("reduce-scatter", "f32[64,128]", 64 * 128 * 4, 8, True, ""): 1,
        Collective("all-gather", "bf16[64,128]", 64 * 128 * 2, 8, True, query): 1,
        Collective("all-reduce", "f32[32]", 128, 2, True, "grad of blocks/norm/mul"): 1,
        Collective("collective-permute", "bf16[16,16]", 512, 2, False, ""): 1,
        Collective("all-reduce", "bf16[64]", 128, 4, True, ""): 1,
        Collective("all-reduce", "bf16[256,8]", 4096, 2, True, ""): 1,  # a host's transfer
    }


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 750), ("reduce-scatter", 750), ("all-reduce", 1500), ("all-to-all", 750),
     ("collective-permute", 1000)],
)  # fmt: skip
def test_bytes_that_a_chip_sends(kind, sent):
    assert Collective(kind, "", 1000, 4, False, "").sent == sent


def test_what_a_second_layer_adds_is_counted_for_all_layers():
    weight, once = (Collective("all-gather", name, 8, 2, False, "") for name in ("w", "head"))
    one, two = {weight: 1, once: 1}, {weight: 2, once: 1}
    assert collectives.combine([(1.0, one), (31.0, two), (-31.0, one)]) == {weight: 32, once: 1}


def test_an_exchange_that_has_another_name_in_a_deeper_program_is_the_same():
    def sums(what):
        return Collective("all-reduce", "f32[256,8]", 8192, 4, False, what)

    one, two = {sums("grad of up"): 2, sums("grad of gate"): 1}, {sums("grad of add"): 5}
    assert collectives.combine([(1.0, one), (31.0, two), (-31.0, one)]) == {sums("grad of add"): 65}
    known = {sums("b"): 1, sums("a"): 1, sums(""): 1}
    assert collectives.combine([(1.0, known)]) == {sums("a, b"): 3}


@pytest.mark.parametrize("shape", ["256,8", "1,256,8", "256,1,8"])
def test_axes_of_one_do_not_tell_arrays_apart(shape):
    text = f"  %ar = f32[{shape}]{{1,0}} all-reduce(%g), replica_groups=[4,2]<=[8], to_apply=%add\n"
    assert collectives.read(text, chips=8) == {
        Collective("all-reduce", "f32[256,8]", 8192, 2, False, ""): 1
    }


def test_a_real_program_is_read():
    mesh = make_mesh(data=1, fsdp=8)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda x: x * 2, in_shardings=split, out_shardings=whole)
    text = gather.lower(jnp.ones((64, 4))).compile().as_text()
    (found,) = collectives.read(text, chips=8)
    assert (found.kind, found.size, found.group) == ("all-gather", 64 * 4 * 4, 8)
