"""A child model with the interface of transformers; exported models carry a copy of this file.

It puts the super-net's own stem, chain and head behind `from_pretrained`, so there is one code
path. An exported folder needs torch and transformers alone.

`save_pretrained` writes that copy too (`_auto_class`), so a fine-tuned model is such a folder.

B: sequences, T: tokens, D: hidden size, V: vocabulary, L: labels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
)
from transformers.utils import ModelOutput

from .configuration_magic_nas import MagicNasConfig
from .operators import Chain, initialise
from .text import ClassificationHead, DiscriminatorHead, MaskedLMHead, TextStem


class MagicNasPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the models below share: their configuration and how weights begin."""

    config_class = MagicNasConfig
    base_model_prefix = "magic_nas"
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """As the super-net's weights begin; transformers guards weights that were loaded.

        Its guard is in the functions of `nn.init`: for the row of padding it has to be our own.
        """
        if isinstance(module, nn.LayerNorm | nn.Conv1d):
            module.reset_parameters()
        initialise(module)
        if isinstance(module, MaskedLMHead):
            nn.init.zeros_(module.bias)
        if module is self.get_input_embeddings() and not _was_loaded(module.weight):
            with torch.no_grad():
                module.weight[self.config.pad_token_id] = 0.0


class MagicNasModel(MagicNasPreTrainedModel):
    """Token ids to hidden states."""

    _auto_class = "AutoModel"

    def __init__(self, config: MagicNasConfig) -> None:
        super().__init__(config)
        self.stem = TextStem(
            vocab_size=config.vocab_size,
            max_length=config.max_position_embeddings,
            hidden_size=config.hidden_size,
            embedding_size=config.embedding_size,
            pad_id=config.pad_token_id,
            dropout=config.dropout,
            layer_norm_eps=config.layer_norm_eps,
            position_offset=config.position_offset,
            type_vocab_size=config.type_vocab_size,
        )
        self.chain = Chain(
            [{name: config.operators[name]} for name in config.layers],
            hidden_size=config.hidden_size,
            dropout=config.dropout,
            block_size=config.block_size,
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings."""
        return self.stem.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put other token embeddings in their place."""
        self.stem.tokens = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[torch.Tensor]:
        """Args: all (B, T); attention_mask: 1 at real tokens, 0 at padding."""
        mask_BT = None if attention_mask is None else attention_mask.bool()
        hidden_BTD = self.stem(input_ids, token_type_ids)
        hidden_BTD = self.chain(hidden_BTD, mask_BT, tuple(self.config.layers))
        output = BaseModelOutput(last_hidden_state=hidden_BTD)
        return output if _wants_dict(return_dict, self.config) else output.to_tuple()


class MagicNasForMaskedLM(MagicNasPreTrainedModel):
    """Token ids to the logits of every token of the vocabulary, tied to the token embeddings."""

    _auto_class = "AutoModelForMaskedLM"

    def __init__(self, config: MagicNasConfig) -> None:
        super().__init__(config)
        self.magic_nas = MagicNasModel(config)
        self.head = MaskedLMHead(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            embedding_size=config.embedding_size,
            layer_norm_eps=config.layer_norm_eps,
        )
        self.post_init()

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resize the token embeddings, and the head's bias with them; new biases are 0."""
        tokens: nn.Embedding = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        bias_V = self.head.bias
        added = tokens.num_embeddings - bias_V.shape[0]
        if added:
            resized_V = F.pad(bias_V.detach(), (0, added))
            self.head.bias = nn.Parameter(resized_V, requires_grad=bias_V.requires_grad)
        return tokens

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[torch.Tensor, ...]:
        """Args: all (B, T); labels: token ids, -100 where the loss leaves a token out."""
        hidden_BTD = self.magic_nas(input_ids, attention_mask, token_type_ids)[0]
        logits_BTV = self.head(hidden_BTD, self.get_input_embeddings().weight)
        loss = (
            None if labels is None else F.cross_entropy(logits_BTV.flatten(0, 1), labels.flatten())
        )
        output = MaskedLMOutput(loss=loss, logits=logits_BTV)
        return output if _wants_dict(return_dict, self.config) else output.to_tuple()


@dataclass
class ReplacedTokensOutput(ModelOutput):  # type: ignore[misc]
    """Logits (B, T), high where a token was replaced, and the mean loss where there are labels."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class MagicNasForPreTraining(MagicNasPreTrainedModel):
    """Says of every token whether it was replaced, as ELECTRA's discriminator (ICLR 2020) does."""

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: MagicNasConfig) -> None:
        super().__init__(config)
        self.magic_nas = MagicNasModel(config)
        self.head = DiscriminatorHead(hidden_size=config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ReplacedTokensOutput | tuple[torch.Tensor, ...]:
        """Args: all (B, T); labels: 1 where the token was replaced, else 0; padding is left out."""
        hidden_BTD = self.magic_nas(input_ids, attention_mask, token_type_ids)[0]
        logits_BT = self.head(hidden_BTD)
        loss = None
        if labels is not None:
            real_BT = torch.ones_like(labels) if attention_mask is None else attention_mask
            real_BT = real_BT.bool()
            loss = F.binary_cross_entropy_with_logits(
                logits_BT[real_BT], labels[real_BT].to(logits_BT.dtype)
            )
        output = ReplacedTokensOutput(loss=loss, logits=logits_BT)
        return output if _wants_dict(return_dict, self.config) else output.to_tuple()


class MagicNasForSequenceClassification(MagicNasPreTrainedModel):
    """Token ids to the logits of every label, or to `num_labels` numbers, of each sequence."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: MagicNasConfig) -> None:
        super().__init__(config)
        self.magic_nas = MagicNasModel(config)
        self.classifier = ClassificationHead(
            hidden_size=config.hidden_size,
            num_labels=config.num_labels,
            dropout=config.dropout,
            pooling=config.classifier_pooling,
        )
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[torch.Tensor, ...]:
        """Args: all but labels (B, T); labels: (B,) classes or numbers, or (B, L).

        The loss is what `config.problem_type` says; where it is not set, transformers' rule sets
        it: mean squares for one label, else cross entropy for integers, binary for floats.
        """
        hidden_BTD = self.magic_nas(input_ids, attention_mask, token_type_ids)[0]
        logits_BL = self.classifier(hidden_BTD, attention_mask)
        loss = None if labels is None else self.loss_function(labels, logits_BL, self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits_BL)
        return output if _wants_dict(return_dict, self.config) else output.to_tuple()


class MagicNasForQuestionAnswering(MagicNasPreTrainedModel):
    """Token ids to the logits of every token to begin, and to end, the answer."""

    _auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: MagicNasConfig) -> None:
        super().__init__(config)
        self.magic_nas = MagicNasModel(config)
        self.spans = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple[torch.Tensor, ...]:
        """Args: (B, T), and positions (B,): the loss leaves out those beyond the last token."""
        hidden_BTD = self.magic_nas(input_ids, attention_mask, token_type_ids)[0]
        start_BT, end_BT = self.spans(hidden_BTD).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_BT, end_BT, start_positions, end_positions)
        output = QuestionAnsweringModelOutput(loss=loss, start_logits=start_BT, end_logits=end_BT)
        return output if _wants_dict(return_dict, self.config) else output.to_tuple()


def _was_loaded(parameter: torch.Tensor) -> bool:
    return getattr(parameter, "_is_hf_initialized", False)


def _wants_dict(return_dict: bool | None, config: MagicNasConfig) -> bool:
    return bool(config.return_dict if return_dict is None else return_dict)
