"""The last door: a generator leaves its study checked, described and signed, or not at all."""
