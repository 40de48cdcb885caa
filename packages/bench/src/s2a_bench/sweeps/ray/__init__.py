"""Ray Tune as the way to run cells side by side."""
