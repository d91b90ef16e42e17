"""Property tests have no deadline for an example: the machine may be shared."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
