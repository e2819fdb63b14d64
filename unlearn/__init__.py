"""What the nodes call: one folder for each method, and one for each service."""
