"""Operators that a model brings along, by the kind that its configuration gives them.

Within magic-nas a user's operators are imported where they lie, so there are none; an exported
model has a file of this name that imports the copies beside it.
"""

from torch import nn

CUSTOM_KINDS: dict[str, type[nn.Module]] = {}
