"""The DeepSpeed engine of a training worker; the only file that imports DeepSpeed.

ZeRO stage 0 trains what is on the path and nothing else: whatever is off it does not require a
gradient, so DeepSpeed neither reduces nor updates it. Stages 1 and 2 fill missing gradients with
zeros, so weight decay and momentum move operators off the path too; a warning says so. Stage 3
also re-applies an operator's last gradient, and is refused.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from supernet.engine import adam_state, build_adamw, load_adam_state, set_learning_rate
from supernet.errors import InvalidInput
from supernet.model import SuperNet
from supernet.settings import OptimiserSettings
from supernet.space import Architecture

logger = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")


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
        if zero_stage and self.rank == 0:
            logger.warning(
                "train.zero_stage=%d lets weight decay and momentum move operators that are off "
                "the path; stage 0 does not",
                zero_stage,
            )
        optimizer = build_adamw(model, settings)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "managed_gradient_accumulation": False,
                "gradient_clipping": settings.clip_norm,
                "zero_optimization": {"stage": zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**12,
            },
        )
        self._optimizer = optimizer

    def begin(self, paths: Sequence[Architecture]) -> None:
        """Start an optimisation step that trains these paths."""
        if not self._zero_stage:
            self.model.only_path_requires_grad(*paths)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of this worker's share; DeepSpeed averages, so scale back to a sum."""
        self._engine.backward(loss * self.world, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> None:
        """Reduce over the workers, clip, and take the optimiser step."""
        set_learning_rate(self._engine.optimizer, learning_rate)
        self._engine.step()

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all workers."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self._engine.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Optimiser state, whole, by "<state>/<parameter>"."""
        if not self._zero_stage:
            return adam_state(self.model, self._optimizer)
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_states()
        state = {}
        for name, parameter in self.model.named_parameters():
            for moment in _MOMENTS:
                state[f"{moment}/{name}"] = safe_get_full_optimizer_state(parameter, moment)
            state[f"step/{name}"] = self._flat_states()[0]["step"].clone()
        return state

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `optimizer_state` gave, on any number of workers and any stage.

        Stages 1 and 2 count one number of steps for all parameters: the highest.
        """
        if not self._zero_stage:
            load_adam_state(self.model, self._optimizer, state)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        self._link_states()
        for name, parameter in self.model.named_parameters():
            for moment in _MOMENTS:
                if f"{moment}/{name}" in state:
                    safe_set_full_optimizer_state(parameter, state[f"{moment}/{name}"], moment)
        steps = [tensor for key, tensor in state.items() if key.startswith("step/")]
        for flat in self._flat_states():
            flat["step"].copy_(torch.stack(steps).max())

    def _link_states(self) -> None:
        """Give every shard its state and tell each parameter where its own part of it lies.

        DeepSpeed does the latter after the first group's first step, when others have no state.
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self._engine.optimizer
        states = zero.optimizer.state
        shards = zero.single_partition_of_fp32_groups
        for parameters, shard in zip(zero.bit16_groups, shards, strict=True):
            if not states[shard]:
                states[shard] = {moment: torch.zeros_like(shard) for moment in _MOMENTS}
                states[shard]["step"] = torch.zeros((), device=shard.device)
            lazy_init_hp_params_optimizer_state(parameters, shard, states)

    def _flat_states(self) -> list[dict[str, Any]]:
        return list(self._engine.optimizer.optimizer.state.values())


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
