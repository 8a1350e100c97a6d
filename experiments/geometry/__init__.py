"""The geometry of an optimiser: which mirror map made the weights, in which norm a step is steepest."""

FLAGSHIP = "weight_law"
