"""Fine-tuning of one model on one task by one recipe: what a fine-tuning trial does.

The loop is transformers' `Trainer`; any model of transformers with the task's head fits. No Ray in
here.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from evaluators.downstream.heads import Features, TaskHead
from supernet.errors import InvalidInput, TrainingDiverged

LOG_STEPS = 20
PREDICT_BATCH = 128


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned: the defaults are RoBERTa's for GLUE (arXiv 1907.11692)."""

    learning_rate: float
    epochs: float
    seed: int
    batch_size: int = 32
    warmup_fraction: float = 0.06
    """Of the steps; then the learning rate falls linearly to zero."""
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    precision: str = "fp32"
    max_steps: int | None = None
    """Stop after so many steps; the schedule ends there."""
    distil_weight: float = 0.0
    """Of the teacher's soft targets in the loss; the labels have the rest."""
    distil_temperature: float = 2.0

    def key(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What a fine-tuning came to."""

    scores: dict[str, float]
    """The task's metrics on the dev split."""
    headline: float
    """What GLUE averages, from 0 to 1 (or -1 to 1 for correlations)."""
    predictions: dict[str, Any] = field(default_factory=dict)
    """What to keep beside the model, by file name without ".json"; empty unless asked for."""
    train_loss: float = 0.0
    steps: int = 0
    truncated: int = 0
    """See `TaskHead.truncated`."""
    trivial: float = 0.0
    """See `TaskHead.trivial`; compares with the headline."""
    wall_s: float = 0.0


def finetune(
    model: PreTrainedModel,
    head: TaskHead,
    recipe: Recipe,
    *,
    teacher_logits: Sequence[Sequence[float]] | None = None,
    with_predictions: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    in_order: bool = False,
) -> Outcome:
    """Train the model in place and score it on the task's dev split.

    Args:
        head: the task's data, encoded for this model.
        teacher_logits: of the teacher, one row per training example, for distillation (Hinton et
            al., arXiv 1503.02531); the loss is (1 - w) · task + w · T² · KL(teacher ‖ student).
        with_predictions: also predict the test splits (GLUE), or keep the n best answers (SQuAD).
        on_progress: is told steps done and in all.
        in_order: take the training examples as they stand, rather than drawn by length.

    Raises:
        TrainingDiverged: if the loss or the model's outputs are no longer finite.
        InvalidInput: if the GPU lacks the recipe's precision.
    """
    began = time.monotonic()
    set_seed(recipe.seed)
    features = [dict(feature) for feature in head.train_features]
    if teacher_logits is not None:
        for feature, logits in zip(features, teacher_logits, strict=True):
            feature["teacher_logits"] = list(logits)
    collate = _Collator(head.tokenizer, pad_to_multiple_of=_multiple(model))
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Distilling(
            recipe=recipe,
            model=model,
            args=_arguments(recipe, folder, len(features), in_order=in_order),
            train_dataset=features,
            data_collator=collate,
            callbacks=[_Told(on_progress)] if on_progress else [],
        )
        trainer.remove_callback(PrinterCallback)
        result = trainer.train()
    if not math.isfinite(result.training_loss):
        raise TrainingDiverged(
            f"the loss of a fine-tuning must be finite, but is {result.training_loss} on average: "
            f"lower finetune.learning_rates, or use precision fp32"
        )
    outputs = predict(model, head.dev_features, head.tokenizer)
    scores = head.scores(outputs)
    return Outcome(
        scores=scores,
        headline=head.headline(scores),
        predictions=head.predictions(
            outputs, lambda features: predict(model, features, head.tokenizer)
        )
        if with_predictions
        else {},
        train_loss=float(result.training_loss),
        steps=int(trainer.state.global_step),
        truncated=head.truncated,
        trivial=head.trivial,
        wall_s=round(time.monotonic() - began, 2),
    )


def predict(
    model: PreTrainedModel, features: Features, tokenizer: PreTrainedTokenizerBase
) -> list[torch.Tensor]:
    """The model's outputs per example, in order: its logits, as many as the head gives.

    Raises:
        TrainingDiverged: if any is not finite.
    """
    collate = _Collator(tokenizer, pad_to_multiple_of=_multiple(model))
    device = next(model.parameters()).device
    order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
    outputs: dict[int, torch.Tensor] = {}
    model.eval()
    for start in range(0, len(order), PREDICT_BATCH):
        chosen = order[start : start + PREDICT_BATCH]
        inputs = collate([_inputs(features[i]) for i in chosen])
        with torch.inference_mode():
            found = model(**{name: tensor.to(device) for name, tensor in inputs.items()})
        logits = _stacked(found).float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise TrainingDiverged(
                "the outputs of a fine-tuned model must be finite, but are not: lower "
                "finetune.learning_rates, or use precision fp32"
            )
        for i, row in zip(chosen, logits, strict=True):
            outputs[i] = row
    return [outputs[i] for i in range(len(features))]


def _inputs(feature: Mapping[str, Any]) -> dict[str, Any]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: feature[name] for name in names if name in feature}


def _stacked(found: Any) -> torch.Tensor:
    """Logits (B, labels), or start and end logits (B, T, 2) of a span head."""
    if hasattr(found, "start_logits"):
        return torch.stack([found.start_logits, found.end_logits], dim=-1)
    logits: torch.Tensor = found.logits
    return logits


def _arguments(recipe: Recipe, folder: str, examples: int, *, in_order: bool) -> TrainingArguments:
    per_epoch = math.ceil(examples / recipe.batch_size)
    steps = max(1, math.ceil(per_epoch * recipe.epochs))
    if recipe.max_steps:
        steps = min(steps, recipe.max_steps)
    on_gpu = torch.cuda.is_available()
    if recipe.precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise InvalidInput(
            f"finetune.precision=bf16 needs a GPU that has it, but got "
            f"{torch.cuda.get_device_name()}: use fp32"
        )
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=recipe.batch_size,
        max_steps=steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(recipe.warmup_fraction * steps),
        weight_decay=recipe.weight_decay,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        max_grad_norm=recipe.clip_norm,
        bf16=recipe.precision == "bf16",
        use_cpu=not on_gpu,
        seed=recipe.seed,
        train_sampling_strategy="sequential" if in_order else "group_by_length",
        remove_unused_columns=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # else a loss that is not finite goes unseen
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one fine-tuning takes one; else Trainer multiplies the batch
    return arguments


class _Collator(DataCollatorWithPadding):  # type: ignore[misc]
    """As transformers' own; teachers' logits are stacked."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        teacher = [feature.get("teacher_logits") for feature in features]
        kept = [{k: v for k, v in f.items() if k != "teacher_logits"} for f in features]
        batch: dict[str, torch.Tensor] = dict(super().__call__(kept))
        if teacher[0] is not None:
            batch["teacher_logits"] = torch.tensor(teacher)
        return batch


class _Distilling(Trainer):  # type: ignore[misc]
    """The Trainer, with a teacher's soft targets where there are any."""

    def __init__(self, *, recipe: Recipe, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._recipe = recipe

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """The task's loss, mixed with the divergence from the teacher."""
        teacher = inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        loss = outputs.loss
        if teacher is not None:
            loss = self._mixed(loss, outputs.logits, teacher)
        return (loss, outputs) if return_outputs else loss

    def _mixed(
        self, loss: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        weight, temperature = self._recipe.distil_weight, self._recipe.distil_temperature
        if student.shape[-1] == 1:
            soft = F.mse_loss(student, teacher)
        else:
            soft = temperature**2 * F.kl_div(
                (student / temperature).log_softmax(-1),
                (teacher / temperature).log_softmax(-1),
                log_target=True,
                reduction="batchmean",
            )
        return (1 - weight) * loss + weight * soft


class _Told(TrainerCallback):  # type: ignore[misc]
    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        self._on_progress = on_progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % LOG_STEPS == 0:
            self._on_progress(state.global_step, state.max_steps)


def check_length(max_length: int, model: PreTrainedModel) -> None:
    """Compare the sequence length of a fine-tuning with the positions that the model knows.

    Raises:
        InvalidInput: if the model has fewer.
    """
    positions = positions_of(model)
    if positions is not None and max_length > positions:
        raise InvalidInput(
            f"finetune.max_length must be at most {positions}, the positions that the model "
            f"knows, but got {max_length}: lower it, or pre-train with a longer "
            f"data.sequence_length"
        )


def positions_of(model: PreTrainedModel) -> int | None:
    """The longest input that the model takes; None where its configuration does not say."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 1:  # -1: XLNet's way of saying any
        return None
    return positions - _first_position(model)


def _first_position(model: PreTrainedModel) -> int:
    """RoBERTa and its kin number their positions from behind the padding's id, others from 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _multiple(model: PreTrainedModel) -> int | None:
    """Batches are padded to a multiple of 8, for speed, unless that goes beyond the positions."""
    positions = positions_of(model)
    return 8 if positions is None or positions % 8 == 0 else None
