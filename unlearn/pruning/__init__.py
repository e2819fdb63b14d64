"""Forget-It-All: saliency is measured, and feed-forward weights are pruned."""
