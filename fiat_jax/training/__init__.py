"""The train step, its optimizer, and the loop around them."""
