"""Installing into OneTrainer's environment, upgrading, and taking it out again."""
