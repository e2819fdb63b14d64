"""What an edit does: the forecast of collateral damage, the comparison of pictures, charts."""
