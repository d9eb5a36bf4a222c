"""The only place that reads true labels: labelled test data, oracles, baselines and named protocols."""
