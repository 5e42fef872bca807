"""Runs one of the host's example scripts where there is no hub: stand-ins, caps and a probe. No test is in here."""
