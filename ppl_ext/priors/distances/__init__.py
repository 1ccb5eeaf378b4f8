"""How far two laws of functions are apart, from draws or from moments."""
