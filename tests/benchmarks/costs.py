"""The cost model of a configuration, without its data."""

from orchestrator.config import Config
from supernet.cost import CostModel
from supernet.model import TextShape


def cost_model(config: Config) -> CostModel:
    shape = TextShape.of(
        config.space,
        vocab_size=config.data.vocab_size,
        max_length=config.data.sequence_length,
        pad_id=0,
        pretraining=config.pretraining,
    )
    return CostModel(config.space.build(), shape)
