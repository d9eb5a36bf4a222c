"""A learner at work: adapt, predict, export."""
