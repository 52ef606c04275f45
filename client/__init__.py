"""The Flower app of a site."""
