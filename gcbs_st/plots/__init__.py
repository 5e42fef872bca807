"""Measurements in, PNG pictures out; needs the `report` extra (matplotlib)."""
