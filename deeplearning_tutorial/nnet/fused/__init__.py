"""Ops that only rewrites put into a graph, each in the place of several of PyTensor's or of a slower one."""
