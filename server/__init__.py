"""The Flower app of a study."""
