"""The DeepSpeed engine of a training worker; the only file that imports DeepSpeed.

Off the path nothing moves, at ZeRO stages 0, 1 and 2. At stage 0 DeepSpeed sees only the parameters
that are on the path, so it reduces no others, and `PathAdamW` clips as PyTorch does. At stages 1
and 2 it fills missing gradients with zeros and clips over all shards; `PathAdamW` then steps the
stretches of its flat shards that are on the path. `docs/zero.md` says what else was tried.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from supernet.errors import InvalidInput
from supernet.model import SuperNet
from supernet.path_adamw import MOMENTS, PathAdamW, State, cut
from supernet.settings import OptimiserSettings
from supernet.space import Architecture


def check_zero_stage(stage: int) -> None:
    """Raise InvalidInput for a stage that would train what is off the path beyond repair."""
    if stage == 3:
        raise InvalidInput(
            "train.zero_stage must be 0, 1 or 2, but got 3: DeepSpeed's stage 3 applies an "
            "operator's last gradient again while the operator is off the path; use stage 2"
        )


class DeepSpeedEngine:
    """A worker's share of training with DeepSpeed; torch.distributed must be initialised.

    Raises:
        InvalidInput: if the ZeRO stage is refused.
    """

    def __init__(
        self, model: SuperNet, settings: OptimiserSettings, *, zero_stage: int, micro_batch: int
    ) -> None:
        check_zero_stage(zero_stage)
        deepspeed = import_deepspeed(cpu=next(model.parameters()).device.type == "cpu")
        self.model = model
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._zero_stage = zero_stage
        self._optimizer = PathAdamW(model, settings, clip=not zero_stage)
        self._engine, *_ = deepspeed.initialize(
            model=model if zero_stage else _OnPath(model, self._optimizer),
            optimizer=self._optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "managed_gradient_accumulation": False,
                "gradient_clipping": settings.clip_norm if zero_stage else 0.0,
                "zero_optimization": {"stage": zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**12,
            },
        )
        if zero_stage:
            self._use_shards()

    def begin(self, paths: Sequence[Architecture]) -> None:
        """Start an optimisation step that trains these paths."""
        self._optimizer.on_path.begin(paths)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of this worker's share; DeepSpeed averages, so scale back to a sum."""
        self._engine.backward(loss * self.world, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> None:
        """Reduce over the workers, clip, and take the optimiser step."""
        self._optimizer.set_learning_rate(learning_rate)
        self._engine.step()

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all workers."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self._engine.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def optimizer_state(self) -> State:
        """Optimiser state, whole, by "<state>/<parameter>"; none of what never took a step."""
        own = self._optimizer.own_state()
        return self._joined(own) if self._zero_stage else own

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `optimizer_state` gave, on any number of workers and any stage."""
        self._optimizer.load_own_state(state)

    def _use_shards(self) -> None:
        """Tell the optimiser which stretches of this worker's shards are whose."""
        zero = self._engine.optimizer
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for number, group in enumerate(self._optimizer.param_groups):
            parameters = zero.round_robin_bit16_groups[number]
            offsets = zero.round_robin_bit16_offsets[number]
            group["pieces"] = cut(
                zero.single_partition_of_fp32_groups[number],
                start=self.rank * zero.partition_size[number],
                parameters=[
                    (names[parameter], offset, parameter.numel())
                    for parameter, offset in zip(parameters, offsets, strict=True)
                ],
            )

    def _joined(self, own: State) -> State:
        """Whole states from every worker's pieces."""
        parameters = dict(self.model.named_parameters())
        none = torch.zeros((), device=self._engine.device)
        steps = torch.stack([own.get(f"step/{name}", none) for name in parameters])
        dist.all_reduce(steps, op=dist.ReduceOp.MAX)
        pieces = dict(self._optimizer.pieces())
        state = {}
        for (name, parameter), step in zip(parameters.items(), steps, strict=True):
            if not step:
                continue
            state[f"step/{name}"] = step.clone()
            for moment in MOMENTS:
                whole = torch.zeros_like(parameter, requires_grad=False)
                if name in pieces:
                    pieces[name].write(own[f"{moment}/{name}"], into=whole)
                dist.all_reduce(whole.view(torch.int32))  # as bits, so that -0.0 stays -0.0
                state[f"{moment}/{name}"] = whole
        return state


class _OnPath(nn.Module):
    """The super-net as DeepSpeed sees it at stage 0: its parameters are those on the path."""

    def __init__(self, model: SuperNet, optimizer: PathAdamW) -> None:
        super().__init__()
        self.model = model
        self._optimizer = optimizer

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that the step may move."""
        yield from self._optimizer.on_path.named.items()


def import_deepspeed(*, cpu: bool) -> Any:
    """DeepSpeed, told which device to use and not to build the kernels that need a compiler."""
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
