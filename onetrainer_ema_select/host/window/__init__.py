"""The plugin's rows in OneTrainer's own window, built with OneTrainer's own toolkit-neutral components."""
