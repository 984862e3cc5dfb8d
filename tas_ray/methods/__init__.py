"""The methods that find an architecture for a budget, one a file, and the supernet they train."""
