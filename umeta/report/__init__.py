"""Reports, model cards and tables."""
