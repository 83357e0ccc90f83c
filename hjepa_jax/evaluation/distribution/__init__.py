"""How the states of many images are distributed: along random directions, in norm, in volume."""
