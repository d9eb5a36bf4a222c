"""Evaluation against true labels, rewards and functions."""
