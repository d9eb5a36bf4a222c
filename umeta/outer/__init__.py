"""Outer steps: how the meta-gradient moves theta."""
