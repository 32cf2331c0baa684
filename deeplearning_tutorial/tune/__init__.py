"""Tune a page's parameters: a study runs many trials."""
