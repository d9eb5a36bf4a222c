"""The version, also in every artefact."""

__version__ = "0.2.0"
