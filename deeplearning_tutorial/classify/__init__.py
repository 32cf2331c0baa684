"""Read saved models and pictures of digits, and classify them."""
