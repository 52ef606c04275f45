"""The simulator: fundus images with no patient behind them."""
