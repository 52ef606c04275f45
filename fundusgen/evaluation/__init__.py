"""How good generated photographs are: features, and distances between sets of them."""
