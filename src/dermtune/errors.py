"""The training side's branches of the error tree, whose root is in dermtune_bundle.errors.

DermtuneError
├── ConfigError          params.yaml: edit the key that the message names
├── SourceError          a data source is not laid out as expected: fix the folder or ingest.path
├── DataError            a stage's input is missing, stale or inconsistent: re-run the stage named
│   └── DivergedError    training came to no numbers: lower the learning rate
├── GateError            the model misses a gate: it is not exported
└── RegistryError        a bundle is not in the registry, or another was promoted meanwhile
"""

from dermtune_bundle.errors import DermtuneError


class ConfigError(DermtuneError):
    """A key of params.yaml is unknown, of the wrong type or impossible."""


class SourceError(DermtuneError):
    """A data source lacks a file or column, or holds contradictory rows."""


class DataError(DermtuneError):
    """A stage's input is missing, stale or was made from something else."""


class DivergedError(DataError):
    """Training came to no numbers."""


class GateError(DermtuneError):
    """A model misses a gate in params.yaml."""


class RegistryError(DermtuneError):
    """A registry of bundles can't be reached, lacks what is asked for, or changed meanwhile."""
