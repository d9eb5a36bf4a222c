"""Environments, without rewards."""
