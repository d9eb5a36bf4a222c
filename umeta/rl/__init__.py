"""Acting in environments: episodes, advantages, discriminators of skills."""
