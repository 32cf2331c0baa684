"""Run the Ops that overwrite a function's inputs after all other Ops that can run before them.

An exception then leaves the inputs unchanged in most cases: the memory for gradients is allocated, or found
missing, before the first weights are updated.
"""

from pytensor.graph.features import Feature
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.graph.traversal import toposort_with_orderings


class UpdatesLast(Feature):
    """Order the nodes of a graph so that updates in place come last.

    Nodes that need the result of an update follow it. So a few bytes may be allocated after an update:
    `WeightUpdate` computes the sum of squares that a penalty on the weights adds to the cost.
    """

    def orderings(self, fgraph):
        """Return the nodes that must run before each update, in the form that PyTensor expects."""
        handler = getattr(fgraph, "destroy_handler", None)
        if handler is None:
            return {}
        before = handler.orderings(fgraph)
        order = list(toposort_with_orderings(fgraph.outputs, orderings=before))
        parents = {
            node: {variable.owner for variable in node.inputs}.union(before.get(node, ())) for node in order
        }
        following = {
            node: _following(node, order, parents)
            for node in order
            if _overwrites_an_input(fgraph, handler, node)
        }
        last, late = {}, set()
        # In ascending order, because nearly all nodes follow from the state of random numbers, which is also
        # an input: the updates of the weights must wait nevertheless.
        for update in sorted(following, key=lambda update: len(following[update])):
            late |= following[update]
            last[update] = [node for node in order if node not in late]
        return last


def _overwrites_an_input(fgraph, handler, node):
    roots = handler.refresh_droot_impact()[0]
    overwritten = (node.inputs[i] for positions in node.op.destroy_map.values() for i in positions)
    return any(roots[variable] in fgraph.inputs for variable in overwritten)


def _following(node, order, parents):
    """Return a node and all nodes that depend on it."""
    following = {node}
    for other in order:
        if not following.isdisjoint(parents[other]):
            following.add(other)
    return following


class UpdatesLastRewriter(GraphRewriter):
    """Attach `UpdatesLast`, which changes no node."""

    def apply(self, fgraph):
        fgraph.attach_feature(UpdatesLast())
