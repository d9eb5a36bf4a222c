"""Meta-learners: one method, one file."""
