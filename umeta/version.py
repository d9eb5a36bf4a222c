"""The version, also in every artefact."""

__version__ = "0.1.0"
