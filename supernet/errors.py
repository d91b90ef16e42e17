"""Everything magic-nas raises on purpose, one small tree.

    MagicNasError
    ├── InvalidInput          the user can mend it: the command line exits with code 2
    │   ├── CheckpointDamaged     a file differs from what its manifest says
    │   └── RunConflict           the run's folder belongs to another configuration or driver
    ├── TrainingDiverged      the loss is no longer finite
    ├── SuperNetCollapsed     the super-net learnt nothing beyond token frequencies
    ├── SearchFailing         most children fail
    ├── WorkersLost           the cluster lost a stage's workers more often than is tried again
    ├── ExportDiffers         an ONNX file computes something else than its model
    └── StorageFailed         the run's storage refused a write (full, read-only, gone)

Every message gives the rule, the value that breaks it, and the remedy.
"""


class MagicNasError(Exception):
    """Root of the errors that magic-nas raises on purpose."""


class InvalidInput(MagicNasError, ValueError):
    """A setting, file or argument breaks a rule; nothing was started."""


class CheckpointDamaged(InvalidInput):
    """A checkpoint is incomplete or its bytes differ from its manifest."""


class RunConflict(InvalidInput):
    """The run's folder is held by another driver or another configuration."""


class TrainingDiverged(MagicNasError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""


class SuperNetCollapsed(MagicNasError):
    """The super-net's children are no better than the training unigrams: nothing to rank."""


class SearchFailing(MagicNasError):
    """Most children fail, so that scoring more of them makes no sense."""


class WorkersLost(MagicNasError):
    """The cluster lost a stage's workers too often, or could not start them."""


class ExportDiffers(MagicNasError):
    """onnxruntime does not give the model's outputs on a file; it was not kept."""


class StorageFailed(MagicNasError):
    """The run's storage refused a write; what had been written before is intact."""
