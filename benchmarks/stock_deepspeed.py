"""DeepSpeed as it comes, with PyTorch's own AdamW: the contrast to `supernet.deepspeed_engine`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from supernet.deepspeed_engine import import_deepspeed
from supernet.model import SuperNet
from supernet.path_adamw import MOMENTS
from supernet.settings import OptimiserSettings
from supernet.space import Architecture


def plain_adamw(model: SuperNet, settings: OptimiserSettings) -> torch.optim.AdamW:
    """PyTorch's fused AdamW on all parameters, with weight decay on matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(0.9, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )


class StockDeepSpeed:
    """An engine that knows nothing of paths; its states cannot be loaded."""

    def __init__(
        self, model: SuperNet, settings: OptimiserSettings, *, zero_stage: int, micro_batch: int
    ) -> None:
        deepspeed = import_deepspeed(cpu=True)
        if zero_stage == 3:  # weights that a module uses though they belong to another
            deepspeed.zero.register_external_parameter(model.stem, model.stem.types.weight)
            deepspeed.zero.register_external_parameter(model.stem, model.stem.positions.weight)
            deepspeed.zero.register_external_parameter(model.head, model.stem.tokens.weight)
        self.model = model
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._zero_stage = zero_stage
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=model,
            optimizer=plain_adamw(model, settings),
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
        self._steps = 0

    def begin(self, paths: Sequence[Architecture]) -> None:
        """DeepSpeed is not told of paths."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient; DeepSpeed averages, so scale back to a sum."""
        self._engine.backward(loss * self.world, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> None:
        """Take the step."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        if not self._steps and self._zero_stage in (1, 2):
            # DeepSpeed links states to parameters too early, while the second group has none.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        self._steps += 1

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all workers."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def weights(self) -> dict[str, torch.Tensor]:
        """Whole weights by name."""
        if self._zero_stage < 3:
            return {name: p.detach() for name, p in self.model.named_parameters()}
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(p) for name, p in self.model.named_parameters()}

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Both moments, whole, by "<state>/<parameter>"; nothing before the first step."""
        if not self._steps:
            return {}
        from deepspeed.utils import safe_get_full_optimizer_state

        whole = safe_get_full_optimizer_state if self._zero_stage else self._state
        return {
            f"{moment}/{name}": whole(parameter, moment)
            for name, parameter in self.model.named_parameters()
            for moment in MOMENTS
        }

    def _state(self, parameter: torch.Tensor, moment: str) -> torch.Tensor:
        found: torch.Tensor = self._optimizer.state[parameter][moment]
        return found

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Not needed here."""
        raise NotImplementedError
