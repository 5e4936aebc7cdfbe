"""What is true, gathered as plain data for the checks. Services are asked here; governance only judges."""
