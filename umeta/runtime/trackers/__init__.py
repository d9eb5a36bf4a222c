"""Trackers: where the metrics and pictures of a stage go besides its own files."""
