"""umeta: learn to learn without labels."""

__version__ = "0.1.0"
