"""Which stretches of the flat shards of DeepSpeed's ZeRO optimisers are whose.

`zero` is the optimiser that DeepSpeed wraps ours in; what is read of it is named here alone.
"""

from collections.abc import Mapping
from typing import Any

from supernet.path_adamw import Piece, cut

Names = Mapping[int, str]
"""By `id` of a parameter."""
Pieces = list[dict[str, Piece]]
"""By parameter name, for each of the optimiser's groups."""


def pieces_of_joined_parameters(zero: Any, names: Names, *, rank: int) -> Pieces:
    """At stages 1 and 2 a group's parameters lie in a row that is cut into equal shards."""
    groups = []
    for number, shard in enumerate(zero.single_partition_of_fp32_groups):
        parameters = zero.round_robin_bit16_groups[number]
        offsets = zero.round_robin_bit16_offsets[number]
        spans = [
            (names[id(parameter)], offset, parameter.numel())
            for parameter, offset in zip(parameters, offsets, strict=True)
        ]
        groups.append(cut(shard, start=rank * zero.partition_size[number], parameters=spans))
    return groups


def pieces_of_split_parameters(zero: Any, names: Names, *, rank: int) -> Pieces:
    """At stage 3 each parameter is cut into equal parts; a shard is a row of such parts."""
    groups: Pieces = [{} for _ in zero.optimizer.param_groups]
    for number, parameters in enumerate(zero.fp16_groups):
        shard = zero.fp32_partitioned_groups_flat[number]
        pieces = groups[zero.sub_group_to_group_id[number]]
        offset = 0
        for parameter in parameters:
            part = parameter.partition_numel()
            first = rank * part
            size = min(part, parameter.ds_numel - first)  # the last parts may be padded, or all pad
            if size > 0:
                tensor = shard.detach()[offset : offset + size]
                pieces[names[id(parameter)]] = Piece(tensor, first, shard, offset)
            offset += part
    return groups


def forget_gradients(zero: Any) -> None:
    """At stage 3 gradients lie in buffers that DeepSpeed never clears: begin a step with zeros.

    With a positive `micro_step_id` it adds every backward pass to them, the first one too.
    """
    zero.grad_partitions_flat_buffer.zero_()
    zero.micro_step_id = 1
