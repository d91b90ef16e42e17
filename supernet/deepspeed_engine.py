"""The DeepSpeed engine of a training worker; the only file that imports DeepSpeed.

Off the path nothing moves, at any ZeRO stage. At stage 0 DeepSpeed sees only the parameters that
are on the path, so it reduces no others, and `PathAdamW` clips as PyTorch does. From stage 1 up it
fills missing gradients with zeros and clips over all shards; `PathAdamW` then steps the stretches
of the flat shards that are on the path. `docs/zero.md` says what else was tried.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from supernet.model import SuperNet
from supernet.path_adamw import MOMENTS, PathAdamW, State
from supernet.settings import OptimiserSettings
from supernet.space import Architecture
from supernet.zero_shards import (
    forget_gradients,
    pieces_of_joined_parameters,
    pieces_of_split_parameters,
)


class DeepSpeedEngine:
    """A worker's share of training with DeepSpeed; torch.distributed must be initialised.

    At stage 3 the model holds no whole weights: `weights` gathers them.
    """

    def __init__(
        self, model: SuperNet, settings: OptimiserSettings, *, zero_stage: int, micro_batch: int
    ) -> None:
        deepspeed = import_deepspeed(cpu=next(model.parameters()).device.type == "cpu")
        self.model = model
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._zero_stage = zero_stage
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._optimizer = PathAdamW(model, settings, clip=not zero_stage)
        if zero_stage == 3:
            _announce_shared_weights(deepspeed, model)
        self._engine, *_ = deepspeed.initialize(
            model=model if zero_stage else _OnPath(model, self._optimizer),
            optimizer=self._optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "managed_gradient_accumulation": False,
                "gradient_clipping": settings.clip_norm if zero_stage else 0.0,
                # Stage 3's own linear layer rounds differently and replaces torch's for good.
                "zero_optimization": {"stage": zero_stage, "memory_efficient_linear": False},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**12,
            },
        )
        if zero_stage:
            self._use_shards()
        elif self.world == 1:
            self._engine.enable_backward_allreduce = False  # a worker alone has its sum

    def begin(self, paths: Sequence[Architecture]) -> None:
        """Start an optimisation step that trains these paths."""
        self._optimizer.on_path.begin(paths)
        if self._zero_stage == 3:
            forget_gradients(self._engine.optimizer)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of this worker's share; DeepSpeed averages, so scale back to a sum."""
        self._engine.backward(loss * self.world, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> None:
        """Reduce over the workers, clip, and take the optimiser step."""
        self._optimizer.set_learning_rate(learning_rate)
        self._engine.step()

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all workers."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self._engine.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def weights(self) -> State:
        """Whole weights by name."""
        if self._zero_stage < 3:
            return dict(self.model.state_dict())
        own = {name: piece.tensor for name, piece in self._pieces.items()}
        return {name: self._whole(name, own.get(name)) for name in self._shapes}

    def optimizer_state(self) -> State:
        """Optimiser state, whole, by "<state>/<parameter>"; none of what never took a step."""
        own = self._optimizer.own_state()
        return self._whole_state(own) if self._zero_stage else own

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `optimizer_state` gave, on any number of workers and any stage."""
        self._optimizer.load_own_state(state)

    def _use_shards(self) -> None:
        """Tell the optimiser which stretches of this worker's shards are whose."""
        find = pieces_of_joined_parameters if self._zero_stage < 3 else pieces_of_split_parameters
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups = find(self._engine.optimizer, names, rank=self.rank)
        for group, pieces in zip(self._optimizer.param_groups, groups, strict=True):
            group["pieces"] = pieces
        self._pieces = dict(self._optimizer.pieces())

    def _whole_state(self, own: State) -> State:
        none = torch.zeros((), device=self._engine.device)
        steps = torch.stack([own.get(f"step/{name}", none) for name in self._shapes])
        dist.all_reduce(steps, op=dist.ReduceOp.MAX)
        state = {}
        for name, step in zip(self._shapes, steps, strict=True):
            if step:
                state[f"step/{name}"] = step.clone()
                for moment in MOMENTS:
                    key = f"{moment}/{name}"
                    state[key] = self._whole(name, own.get(key))
        return state

    def _whole(self, name: str, own: torch.Tensor | None) -> torch.Tensor:
        """What all workers hold of a parameter or of a state of it, put together."""
        whole = torch.zeros(self._shapes[name], device=self._engine.device)
        if own is not None:
            self._pieces[name].write(own, into=whole)
        dist.all_reduce(whole.view(torch.int32))  # as bits, so that -0.0 stays -0.0
        return whole


class _OnPath(nn.Module):
    """The super-net as DeepSpeed sees it at stage 0: its parameters are those on the path."""

    def __init__(self, model: SuperNet, optimizer: PathAdamW) -> None:
        super().__init__()
        self.model = model
        self._optimizer = optimizer

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that the step may move."""
        yield from self._optimizer.on_path.named.items()


def _announce_shared_weights(deepspeed: Any, model: SuperNet) -> None:
    """Name the weights that a module uses though another holds them: stage 3 must gather them."""
    users = [
        (model.stem, model.stem.types),
        (model.stem, model.stem.positions),
        (model.head if model.generator is None else model.generator.head, model.stem.tokens),
    ]
    for user, holder in users:
        deepspeed.zero.register_external_parameter(user, holder.weight)


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
