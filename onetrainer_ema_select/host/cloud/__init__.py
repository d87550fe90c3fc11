"""OneTrainer's cloud training: the plugin on the rented machine, and what comes home from there."""
