"""Simulation studies, one file each."""
