"""What to forget and what to keep, as text, files and names."""
