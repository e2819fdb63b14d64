"""What the pack knows of each model family."""
