"""The simulator: fundus images with no patient behind them."""

# Names the look of all phantoms: whatever is kept of them (priors, features, digests in tests) is
# kept by it. It changes whenever the pixels of any seed change, and only then.
SIMULATOR_VERSION = "3"
