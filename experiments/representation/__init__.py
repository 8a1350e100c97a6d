"""What representations become while values, or information, are learned."""

FLAGSHIP = "td_learning"
