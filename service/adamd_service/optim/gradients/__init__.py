"""Gradients as they come: decoded, widened, checked for NaN and infinity, their norm taken."""
