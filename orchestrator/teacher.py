"""A named teacher of pre-training: a model of masked LM on a disk or on the Hugging Face hub.

Each training worker loads it; the largest path of the super-net needs nothing of this.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from supernet.errors import InvalidInput

if TYPE_CHECKING:
    import torch

    from orchestrator.runs import Run
    from supernet.distillation import Teacher

LARGEST = "largest"


def named_teacher(run: "Run", device: "torch.device | str" = "cpu") -> "Teacher | None":
    """The teacher that `pretraining.teacher` names, on the device; None where it names none.

    Raises:
        InvalidInput: if it cannot be loaded, knows too few positions, or has another vocabulary
            than the run's data.
    """
    settings = run.config.pretraining.teacher
    if settings is None or settings.model == LARGEST:
        return None
    from orchestrator.hugging_face_models import load_pretrained, load_tokenizer
    from supernet.distillation import Teacher

    _check_place(settings.model)
    model, tokenizer = load_pretrained(settings.model, "masked_lm", new_head=False)
    _check_vocabulary(settings.model, tokenizer, load_tokenizer(str(run.data_folder / "tokenizer")))
    _check_length(settings.model, model.config, run.summary.sequence_length)
    teacher: Any = model
    teacher.to(device).eval()
    return Teacher(
        settings.weight,
        settings.temperature,
        predict=lambda ids_BT, mask_BT: teacher(ids_BT, attention_mask=mask_BT.long()).logits,
    )


def _check_place(model: str) -> None:
    if Path(model).is_dir() and not Path(model).is_absolute():
        raise InvalidInput(
            f"pretraining.teacher.model must be a whole path, for training workers have another "
            f"working directory, but got {model!r}: give {Path(model).resolve()}"
        )


def _check_vocabulary(model: str, theirs: Any, ours: Any) -> None:
    known, wanted = theirs.get_vocab(), ours.get_vocab()
    if known == wanted:
        return
    differing = {token for token in known.keys() | wanted if known.get(token) != wanted.get(token)}
    raise InvalidInput(
        f"pretraining.teacher.model must have the vocabulary of the run's data, but {model} "
        f"differs in {len(differing):,} tokens, such as {min(differing)!r}: set data.tokenizer "
        f"to it"
    )


def _check_length(model: str, config: Any, length: int) -> None:
    known = getattr(config, "max_position_embeddings", length)
    known -= config.pad_token_id + 1 if config.model_type == "roberta" else 0
    if known < length:
        raise InvalidInput(
            f"pretraining.teacher.model must know the {length} positions of data.sequence_length, "
            f"but {model} knows {known}: shorten the sequences, or take another teacher"
        )
