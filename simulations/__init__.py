"""Studies simulated on one machine."""
