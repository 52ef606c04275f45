"""What may leave a site, what it cost, and the record of it."""
