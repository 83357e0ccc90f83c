"""The first half of a step: views become states."""
