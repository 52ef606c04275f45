"""fundusgen: a generator of retinal fundus photographs, learned across hospitals in private."""

__version__ = "0.1.0"
