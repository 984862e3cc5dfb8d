"""tas_ray: distributed architecture search that prunes convolutional networks to a compute budget."""

from tas_ray.export import load_network
from tas_ray.provenance import VERSION as __version__
from tas_ray.results import leaderboard

__all__ = ["__version__", "leaderboard", "load_network"]
