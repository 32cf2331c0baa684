"""Run what overwrites a function's inputs after everything that can run before it.

An exception then finds most of the work done and no input changed: the memory that gradients take is had, or
found missing, before the first of the weights is updated.
"""

from pytensor.graph.features import Feature
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.graph.traversal import toposort_with_orderings


class UpdatesLast(Feature):
    """Order the nodes of a graph so that updates in place come last.

    What needs the result of an update follows it. So a few bytes may be asked for after an update:
    `WeightUpdate` gives the sum of squares that a penalty on the weights adds to the cost.
    """

    def orderings(self, fgraph):
        """Return what has to run before each of the updates, as PyTensor asks of a feature."""
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
        # Ascending, because nearly everything follows from the state of random numbers, an input as well: its
        # update must not keep those of the weights from waiting.
        for update in sorted(following, key=lambda update: len(following[update])):
            late |= following[update]
            last[update] = [node for node in order if node not in late]
        return last


def _overwrites_an_input(fgraph, handler, node):
    roots = handler.refresh_droot_impact()[0]
    overwritten = (node.inputs[i] for positions in node.op.destroy_map.values() for i in positions)
    return any(roots[variable] in fgraph.inputs for variable in overwritten)


def _following(node, order, parents):
    """Return a node and all that follow from it."""
    following = {node}
    for other in order:
        if not following.isdisjoint(parents[other]):
            following.add(other)
    return following


class UpdatesLastRewriter(GraphRewriter):
    """Attach `UpdatesLast`, which changes no node."""

    def apply(self, fgraph):
        fgraph.attach_feature(UpdatesLast())
