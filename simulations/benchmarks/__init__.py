"""What the parts cost, measured."""
