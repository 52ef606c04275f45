"""What a site runs in a round."""
